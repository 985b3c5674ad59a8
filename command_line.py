"""From the command line to a checked configuration, and from a failure to one line: the only file that knows Hydra.

Four parts, each of which uses only those before it: composed configurations, checks of the command line, help pages, launch.
"""

from __future__ import annotations

import difflib
import os
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

from budget.devices import BY_NAME
from checks import mistakes
from config import CONF, SCRIPTS, Config, Option, closest, leaves, removed_line
from errors import MachineError, UserError, reported
from private import given_away
from run.signals import Interrupted

# -- composed configurations -------------------------------------------------------------------------------------------


def options_of(composed: Any) -> Any:
    """The checked configuration of what Hydra composed; raises UserError with every mistake."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    plain = composed.copy()
    with open_dict(plain):
        plain.pop("hydra", None)
    try:
        config = OmegaConf.to_object(plain)
        OmegaConf.structured(config)  # a list that stands for another value is looked at nowhere else
    except OmegaConfBaseException as error:  # of a value that stands for another one
        raise as_user_error(error) from None
    if wrong := mistakes(config) + given_away((name, value) for name, _, value in leaves(config)):
        raise UserError(*wrong)
    return config


def as_user_error(error: BaseException) -> UserError:
    """What Hydra or OmegaConf refused, in one line; our own line where it was a resolver of ours, or an option that was
    removed."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        if gone := removed_line(str(getattr(cause, "full_key", ""))):
            return UserError(gone)
        cause = cause.__cause__ or cause.__context__  # OmegaConf takes the first one away
    return UserError(" ".join(str(error).split()))


def register_schemas() -> None:
    """Tell Hydra the options of every script, and the device table."""
    from hydra.core.config_store import ConfigStore

    store = ConfigStore.instance()
    for name, schema in SCRIPTS.items():
        store.store(name=f"{name}_schema", node=schema)
    for device in BY_NAME:
        store.store(group="device", name=device, node={"name": device})


def groups() -> set[str]:
    """Groups of options under conf/; conf/hydra/ holds choices of Hydra's own."""
    return {path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra"}


def package_of(group: str) -> str:
    """The options that the named choices of a group set: its own, unless its files name another package."""
    first = min((CONF / group).glob("*.yaml")).read_text().partition("\n")[0]
    return first.removeprefix("# @package ") if first.startswith("# @package ") else group


def group_choices(group: str) -> list[str]:
    """Named choices of a group: the files of conf/GROUP, and for devices the table."""
    files = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return files + ([name for name in BY_NAME if name not in files] if group == "device" else [])


def as_yaml(config: Any) -> str:
    """The resolved configuration as YAML, with the names of the command line."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.structured(config))


# -- checks of the command line ----------------------------------------------------------------------------------------


def check_command_line(script: str) -> None:
    """Refuse every override that names no option or has the wrong type, all of them together with the impossible values
    of the others, before Hydra stops at the first."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if secrets := given_away((argument.split("=")[0], argument) for argument in sys.argv[1:]):
        raise UserError(*secrets)
    arguments = flags_of(sys.argv[1:])
    _check_flags(arguments)
    if arguments.shell_completion:  # its words are install=SHELL, query=SHELL: not options
        return
    parser, good, wrong = OverridesParser.create(), [], []
    for text in arguments.overrides:
        try:
            override = parser.parse_override(text)
        except (HydraException, ValueError, RecursionError):  # ValueError: a number of thousands of digits
            wrong.append(f"{text!r} is not KEY=VALUE; quote values with special signs, e.g. 'data.path=\"a=b.txt\"'")
            continue
        key = str(override.key_or_group)
        if key.startswith("hydra"):
            continue
        problem = _override_mistake(SCRIPTS[script], text, override, key)
        if problem:
            wrong.append(problem)
        else:
            good.append(text)
    if wrong and arguments.config_name is None and arguments.config_dir is None:
        raise UserError(*wrong, *_mistakes_of(script, good))
    if wrong:
        raise UserError(*wrong)


def flags_of(arguments: list[str]) -> Any:
    """Hydra's flags and the overrides of a command line. Raises UserError."""
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign]
    return parser.parse_args(arguments)


def names_several(flags: Any) -> bool:
    """Whether a command line asks for more than one plan: with -m, a list of budgets, or the file of a sweep."""
    if flags.multirun or any(each.startswith("budget.") and "," in each for each in flags.overrides):
        return True
    if flags.config_name is None or "hydra.mode=RUN" in flags.overrides:
        return False
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = Path(flags.config_dir or CONF) / f"{flags.config_name.removesuffix('.yaml')}.yaml"
    try:
        return str(OmegaConf.select(OmegaConf.load(path), "hydra.mode")) == "MULTIRUN"
    except (OSError, YAMLError, OmegaConfBaseException):
        return False  # Hydra will say what is wrong with it


def _refuse_flags(message: str) -> NoReturn:
    """What argparse calls instead of printing how a command that is not ours is used."""
    apart = message.startswith("unrecognized arguments: ") and "=" in message and " -" not in message
    hint = (
        "flags (-m, -cd, -cn) go before or after all KEY=VALUE, not between them"
        if apart
        else ("options are KEY=VALUE and `--help` lists them; Hydra's flags: --hydra-help")
    )
    raise UserError(f"{message}; {hint}")


def _check_flags(arguments: Any) -> None:
    """Refuse what Hydra would answer with a traceback, and its way to run what a file says that Python is to unpickle."""
    modes = ("run", "multirun", "cfg", "info", "shell_completion")
    given = [f"--{mode.replace('_', '-')}" for mode in modes if getattr(arguments, mode)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} do not go together; give one of them")
    if arguments.resolve and not arguments.cfg:
        raise UserError("--resolve shows values in what --cfg prints; add --cfg job")
    if arguments.experimental_rerun:
        raise UserError("--experimental-rerun reads a pickle, which can run any code; type the run's command instead")


def _mistakes_of(script: str, overrides: list[str]) -> list[str]:
    """The impossible values among overrides that are well-formed, so that one run of the command shows them all."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return mistakes(OmegaConf.to_object(compose(script, overrides)))
    except (HydraException, OmegaConfBaseException):
        return []


def _override_mistake(schema: type, text: str, override: Any, key: str) -> str | None:
    """What is wrong with one override, or None."""
    named = groups() if schema is SCRIPTS["config"] else set()  # the other scripts have options alone
    options = {name: option for name, option, _ in leaves(schema)}
    values = [_unquoted(value) for value in _values_of(override)]
    if override.is_add() or override.is_delete() or override.is_force_add():
        return f"{text!r} adds or removes an option; every option is there already: write {key}=VALUE"
    if key in named and key not in options:
        choices = group_choices(key)
        unknown = [value for value in values if str(value) not in choices]
        if unknown:
            return f"{key}={unknown[0]} is not known; allowed: {', '.join(choices)}{closest(unknown[0], choices)}"
        return None
    if gone := removed_line(key):
        return gone
    if key not in options:
        near = difflib.get_close_matches(key, options, n=1) or [n for n in options if n.endswith(f".{key}")]
        return f"{key} is no option{f'; did you mean {near[0]}?' if near else ''}; `--help all` lists them"
    for value in values:
        if not _fits(schema, key, value):
            return f"{key}={value} has the wrong type; it is: {options[key].help}"
    return None


def _values_of(override: Any) -> list[Any]:
    """What an override sets, all of it in a sweep; of a range its ends, of a pattern for names nothing."""
    value = override.value()
    if override.is_interval_sweep():
        return [value.start, value.end]
    if override.is_choice_sweep():
        return list(getattr(value, "list", []))
    if override.is_range_sweep():
        return [end for end in (value.start, value.stop) if end is not None]
    return [value]


def _fits(schema: type, key: str, value: Any) -> bool:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, str) and "${" in value:
        return True  # an interpolation; Hydra resolves and checks it
    try:
        OmegaConf.update(_structured(schema), key, value)
    except (OmegaConfBaseException, ValueError, OverflowError):  # of a number that no float holds
        return False
    return True


@cache
def _structured(schema: type) -> Any:
    """The options to try values on, whatever was tried before."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _unquoted(value: Any) -> Any:
    """A value as its option gets it."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, list):
        return [_unquoted(entry) for entry in value]
    return value.text if isinstance(value, QuotedString) else value


# -- help pages --------------------------------------------------------------------------------------------------------


GENERAL, ALL = "general", "all"  # topics of `--help` besides the groups
WIDTH = 110  # columns of a help page


def asked_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def help_page(script: str, program: str, arguments: list[str]) -> str:
    """What `--help` prints: an overview, or with `--help GROUP` (or all) options in full. Raises UserError for an unknown
    group."""
    words = arguments[1 + min(arguments.index(flag) for flag in ("--help", "-h") if flag in arguments) :]
    topic = words[0] if words and "=" not in words[0] and not words[0].startswith("-") else None
    schema = SCRIPTS[script]
    common = [leaf for leaf in leaves(schema()) if leaf[1].common]
    if topic is None and common:
        return "\n".join([*_usage(schema, program), "", *_overview(schema, common, program)])
    if topic is None or topic == ALL:
        return "\n".join(
            [*_usage(schema, program), *(line for each in _topics(schema) for line in _in_full(schema, each))]
        )
    if topic not in _topics(schema):
        allowed = (*_topics(schema), ALL)
        raise UserError(f"--help {topic} is not known; allowed: {', '.join(allowed)}{closest(topic, allowed)}")
    return "\n".join(_in_full(schema, topic)[1:])


def _topics(schema: type) -> dict[str, str]:
    """Each group of options with the sentence of its dataclass; GENERAL holds those without a group."""
    hints = get_type_hints(schema)
    found = {leaf.name: _sentence(hints[leaf.name]) for leaf in fields(schema) if is_dataclass(hints[leaf.name])}
    return {GENERAL: "Options without a group.", **found}


def _sentence(schema: Any) -> str:
    return " ".join(str(schema.__doc__).partition("\n\n")[0].split())


def _usage(schema: type, program: str) -> list[str]:
    """The first sentence of the schema's docstring, the usage line and the docstring's examples."""
    examples = [line.strip() for line in str(schema.__doc__).splitlines() if line.strip().startswith("PROGRAM ")]
    flags = " [-m]" if schema is Config else ""
    lines = [_sentence(schema), "", f"usage: {program} OPTION=VALUE ...{flags}", ""]
    return [*lines, *(f"  {line.replace('PROGRAM', program, 1)}" for line in examples)]


def _overview(schema: type, common: list[tuple[str, Option, Any]], program: str) -> list[str]:
    """The options that most people set first, and a line for each group with its named choices."""
    lines = ["Options that most people set first:"]
    for name, option, value in common:
        lines += _columns(f"{name}={_shown(value)}", option.help, 26)
    lines += ["", f"Groups of options; `{program} --help GROUP` lists one, `{program} --help all` everything:"]
    for topic, sentence in _topics(schema).items():
        lines += _columns(topic, sentence, 12)
        for group in sorted(groups()):
            if package_of(group) == topic:
                lines += _columns("", f"{group}= {' | '.join(group_choices(group))}", 12)
    return [*lines, "", "Only show the configuration: --cfg job. More of Hydra: --hydra-help."]


def _in_full(schema: type, topic: str) -> list[str]:
    """Every option of a group with its default, meaning and range."""
    prefix = "" if topic == GENERAL else f"{topic}."
    lines = ["", f"{topic}: {_topics(schema)[topic]}"]
    if schema is Config:
        named = [group for group in sorted(groups()) if package_of(group) == topic]
        lines += [f"  {group}= {' | '.join(group_choices(group))}" for group in named]
    for name, option, value in leaves(schema()):
        if name.startswith(prefix) and "." not in name.removeprefix(prefix):
            allowed = f"; allowed: {option.range}" if option.range else ""
            lines += [f"  {name}={_shown(value)}", f"      {option.help}{allowed}"]
    return lines


def _columns(left: str, right: str, width: int) -> list[str]:
    """Two columns, the right one wrapped; a left one that is too wide has a line of its own."""
    wrapped = textwrap.wrap(right, WIDTH - width - 2, break_on_hyphens=False)
    if len(left) >= width:
        return [f"  {left}", *(f"  {'':<{width}}{line}" for line in wrapped)]
    return [f"  {left if number == 0 else '':<{width}}{line}" for number, line in enumerate(wrapped)]


def _shown(value: Any) -> str:
    """A default as it would be typed."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# -- launch ------------------------------------------------------------------------------------------------------------


# How many turns GNU's OpenMP runtime, torch's on Linux, spins before a waiting thread sleeps. Its default makes a step several
# times as long once another process is busy; 0 costs a third on an idle machine. 3000 turns, about 10 microseconds, come near
# the better of the two in both cases (docs/performance.md). Read when the runtime is loaded.
BEFORE_TORCH = {"GOMP_SPINCOUNT": "3000"}


@dataclass(frozen=True)
class SweepFunctions:
    """What a script that sweeps hands to `launch`; functions of modules, as launchers pickle them.

    run_job(configuration, number, overrides, folder of the sweep): run one job in a process of its own, for launchers that
    are not stint's; returns the sweep's metric. conclude(): write what is known about the sweep that this process started,
    if it did, whatever it ended with.
    """

    run_job: Callable[[Any, int, list[str], str], float | None]
    conclude: Callable[[], None]


def launch(task: Callable[[Any], None], script: str, sweep: SweepFunctions | None = None) -> None:
    """Run `task(config)` under Hydra with the options of `script` (a key of SCRIPTS) from the command line.

    sweep: in a multirun, every job is a process of its own, started by these functions. Mistakes of the user's end with
    status 2, faults of the machine with status 1, each in one line on standard error.
    """
    if asked_for_help(sys.argv[1:]):
        with reported():
            print(help_page(script, Path(sys.argv[0]).name, sys.argv[1:]))
        return
    for name, value in BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    with reported():
        _launch(Task(task, script, sweep))


def leave(status: int = 0) -> NoReturn:
    """End the process with everything said, without taking the interpreter apart: that costs up to a second, and a thread
    of torch.distributed that is still alive then aborts the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Task:
    """What Hydra calls with a composed configuration. Pickled by launchers that start processes of their own, it leaves the
    script's function behind: there a job is a process of train.py."""

    def __init__(self, function: Callable[[Any], None] | None, script: str, sweep: SweepFunctions | None) -> None:
        self.function, self.script, self.sweep = function, script, sweep

    @property
    def isolated(self) -> bool:
        """Whether every job of a sweep is a process of its own."""
        return self.sweep is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return Task, (None, self.script, self.sweep)

    def __call__(self, composed: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        hydra = HydraConfig.get()
        if self.sweep is not None and hydra.mode == RunMode.MULTIRUN:
            job = int(hydra.job.num), list(hydra.overrides.task), str(hydra.sweep.dir)
            return self.sweep.run_job(options_of(composed), *job)
        assert self.function is not None
        with reported():  # inside Hydra, which would put a report of its own around any exception
            config = options_of(composed)
            if isinstance(config, Config):
                label_as_job(config)
            self.function(config)
        return None


def _launch(task: Task) -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_schemas()

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise to us instead of printing a trace and exiting with status 1
    check_command_line(task.script)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=task.script)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        raise as_user_error(error) from None
    except ValueError as error:
        if "No trials are completed" not in str(error):  # what Optuna says, once it has tried them all
            raise
        raise MachineError("no trial of the study has finished; the table says why") from None
    except Interrupted as stop:
        print(f"sweep   stopped by {stop.name}; the same command goes on with what is left", flush=True)
        sys.exit(stop.exit_status)
    finally:
        if task.sweep is not None:
            task.sweep.conclude()


def label_as_job(config: Config) -> None:
    """Let wandb know a job of a sweep that an agent of its own starts (-cn NAME hydra.mode=RUN) by its name as its
    group, and by tags: that name and what the job was told. Where a group is given, by the user or the sweep, it stays."""
    from hydra.core.hydra_config import HydraConfig

    hydra = HydraConfig.get()
    if hydra.job.config_name in SCRIPTS or config.wandb.group:
        return
    told = [text for text in hydra.overrides.task if not text.startswith(("wandb.", "output"))]
    config.wandb.group = config.name
    config.wandb.tags = list(dict.fromkeys([*config.wandb.tags, config.name, *told]))
