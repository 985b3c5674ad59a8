"""The start of a sweep: the resolvers of its YAML file, checks of its options, and sweep.json in its folder.

sweep.json holds the sweep's definition. The same command continues the sweep; another definition gets a new folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cli.compose import as_yaml, checked_config
from cli.plugins import require_storage
from common.errors import UserError, reported
from common.json_io import read_json, write_json
from config import NOT_IDENTITY, BudgetConfig, Config, extension_of, leaves
from run.directory import lock, set_aside
from sweeps.engine.job import ROOT
from sweeps.engine.plan_relative import FIXED, VALUES, make_plan
from sweeps.engine.scored_text import BITS_PER_BYTE, changes_text, changes_tokenizer, is_task
from sweeps.engine.table import higher_is_better

CURRENT: Path | None = None  # folder of the sweep that this process started
_PLANS: dict[str, dict[str, Any]] = {}
_LOCK: IO[str] | None = None


def plan_relative(name: str, *, _root_: DictConfig) -> str:
    """Resolve `${plan_relative:NAME}` in a sweep's file to values around the plan for its budget, e.g. "1,2,4".

    The values are kept in sweep.json, because a new measurement of the speed could choose other jobs. Raises UserError for an
    unknown name, and on Slurm with device.name=auto.
    """
    if name not in VALUES:
        raise UserError(f"${{plan_relative:{name}}} is not known; allowed: {', '.join(VALUES)}")
    if _root_.hydra.launcher._target_.endswith(".SlurmLauncher") and _root_.device.name == "auto":
        raise UserError(
            "this sweep uses values around the plan, and device.name=auto would plan for the machine that starts the sweep; name"
            " the device of Slurm's nodes, e.g. device=a100"
        )
    path = Path(_root_.hydra.sweep.dir).absolute() / "sweep.json"
    content = read_json(path) or {}
    chosen = content.get("around") or {}
    if name not in chosen:
        config = checked_config(_root_)
        yaml = as_yaml(config)
        if yaml not in _PLANS:
            _PLANS[yaml] = make_plan(yaml)
        chosen[name] = ",".join(VALUES[name](_PLANS[yaml]))
        if content:
            write_json(path, content | {"around": chosen})
    return str(chosen[name])


def width_of(*shapes: str, _root_: DictConfig) -> int | str:
    """Resolve `${width_of:2x64,4x128}` in a job's override to the width that belongs to the job's depth.

    With it, a sweep over pairs of depth and width is a sweep over depths. The interpolation stays as it is until a job has a
    depth. Raises UserError for a depth without a width."""
    depth, widths = OmegaConf.select(_root_, "model.n_layer"), dict(shape.split("x") for shape in shapes)
    if depth is None:
        return f"${{width_of:{','.join(shapes)}}}"
    if str(depth) not in widths:
        raise UserError(f"model.n_layer={depth} is not a depth of this sweep; allowed: {', '.join(widths)}")
    return int(widths[str(depth)])


def refuse_former_name(name: str) -> str:
    """Resolve `${around:NAME}`, the former spelling. Always raises UserError with the new one."""
    raise UserError(f"${{around:{name}}} has a new name; write ${{plan_relative:{name}}}")


def slurm_minutes(*, _root_: DictConfig) -> int:
    """Slurm's time limit for a job in minutes: the job's hours with their extension, a tenth more for preparing data, and 15
    minutes for Slurm and for the signal that it sends before the limit. Raises UserError if the budget has no hours."""
    budget = BudgetConfig(**OmegaConf.to_container(_root_.budget, resolve=True))  # type: ignore[arg-type]
    if budget.hours is None:
        raise UserError(
            "hydra/launcher=slurm sets its time limit by budget.hours; set that, or hydra.launcher.timeout_min"
        )
    return math.ceil(66 * (budget.hours + extension_of(budget).hours) + 15)


def direction(*, _root_: DictConfig) -> str:
    """Optuna's direction for the sweep's metric: "minimize" or "maximize"."""
    return "maximize" if higher_is_better(_root_.sweep.metric) else "minimize"


OmegaConf.register_new_resolver("around", refuse_former_name, replace=True)
for resolver in (plan_relative, width_of, slurm_minutes, direction):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


class SweepStart(Callback):
    """Opens the sweep's folder. Hydra calls this before the first job, with every launcher and sweeper."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global CURRENT
        with reported():  # Hydra swallows exceptions of a callback, but not the exit that `reported` turns them into
            swept = swept_keys(config)
            if problems := unsupported_options(config) + incomparable_jobs(config, swept):
                raise UserError(*problems)
            if config.hydra.sweeper.get("storage"):
                require_storage()
            content = {"command": single_run_command(), "swept": swept}
            CURRENT = open_sweep(Path(config.hydra.sweep.dir).absolute(), sweep_definition(config), content)
        # The processes of other launchers import the task.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def unsupported_options(config: DictConfig) -> list[str]:
    """List, one line each, the options of the sweep that its launcher or sweeper does not support.

    sweep.hours and sweep.prune share hours among all jobs and compare all jobs. They need the isolated launcher, and a sweeper
    that gives all jobs at once: otherwise every batch of jobs would get the full hours again."""
    hydra, sweep = config.hydra, config.get("sweep", {})
    params, size = hydra.sweeper.get("params") or {}, hydra.sweeper.get("max_batch_size")
    hours, prune = params.get("sweep.hours", sweep.get("hours")), params.get("sweep.prune", sweep.get("prune", "none"))
    if not hydra.launcher._target_.endswith(".IsolatedLauncher"):
        why = "works only with the default launcher; use hydra/launcher=isolated"
    elif not hydra.sweeper._target_.endswith(".BasicSweeper"):
        why = (
            "needs all jobs at once, and this sweeper chooses them one after another; use hydra/sweeper=basic, or limit the"
            " sweep by its number of jobs (hydra.sweeper.n_trials) and budget.hours"
        )
    elif size is not None:
        why = (
            f"needs all jobs at once, and hydra.sweeper.max_batch_size={size} gives {size} at a time; leave that option out,"
            " as each device runs one job at a time anyway"
        )
    else:
        return []
    problems = [] if hours is None else [f"sweep.hours={hours} {why}"]
    if prune != "none":
        problems.append(f"sweep.prune={prune} {why}")
    if not hydra.launcher._target_.endswith(".IsolatedLauncher") and sweep.get("on_error") == "stop":
        problems.append(f"sweep.on_error=stop {why}")
    return problems


def incomparable_jobs(config: DictConfig, swept: Sequence[str]) -> list[str]:
    """List, one line each, the options that compare jobs while they run, if the `swept` options make that impossible.

    The table at the end compares what can be compared (table.py). Pruning and a sweeper that searches cannot wait for it."""
    text = [] if config.get("data", {}).get("validation_path") else [key for key in swept if changes_text(key)]
    tokenizer = [key for key in swept if changes_tokenizer(key)]
    hydra, sweep = config.hydra, config.get("sweep", {})
    params = hydra.sweeper.get("params") or {}
    metric, prune = (params.get(f"sweep.{key}", sweep.get(key)) for key in ("metric", "prune"))
    searches = not hydra.sweeper._target_.endswith(".BasicSweeper")
    problems = []
    why = "changes the text that jobs are scored on, so they cannot be compared"
    if text and prune not in (None, "none"):
        problems.append(f"sweep.prune={prune}: {text[0]} {why}; leave out one of the two")
    if searches and is_task(str(metric)):  # its items are the same for every text and tokenizer
        return problems
    if text and searches:
        problems.append(f"{text[0]} {why}, and this sweeper looks for the best; use hydra/sweeper=basic")
    elif tokenizer and searches and metric != BITS_PER_BYTE:
        problems.append(
            f"sweep.metric={metric} is per token, and {tokenizer[0]} changes the tokenizer; set sweep.metric={BITS_PER_BYTE}"
        )
    return problems


def settings_digest(config: DictConfig) -> str:
    """Hash the configuration that all jobs share. An edited file or other defaults make a different sweep."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    shared = {str(key): value for key, value in plain.items() if key != "hydra" and not _is_not_identity(str(key))}
    for group, leaf in (name.split(".") for name in NOT_IDENTITY if "." in name):
        shared[group].pop(leaf, None)
    for name, rules, default in leaves(Config()):  # a sweep of an earlier version stays the same one, as a run does
        group, _, leaf = name.rpartition(".")
        place = shared.get(group) if group else shared
        if rules.added_later and place and leaf in place and place[leaf] == default:
            del place[leaf]
            if group and not place:
                del shared[group]
    return hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:16]


def sweep_definition(config: DictConfig) -> dict[str, Any]:
    """The options that identify a sweep, as its file and the command line give them."""
    overrides = [text for text in config.hydra.overrides.task if not _is_not_identity(text.split("=")[0])]
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=False).get("params") or {}  # type: ignore[union-attr]
    return {"overrides": sorted(overrides), "params": params, "settings": settings_digest(config)}


def swept_keys(config: DictConfig) -> list[str]:
    """The options to which the sweep's file or the command line gives several values."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=False).get("params") or {}  # type: ignore[union-attr]
    fixed = [f"${{plan_relative:{name}}}" for name in FIXED]
    several = [key for key, values in params.items() if values not in fixed]
    return [*several, *(override.get_key_element() for override in parsed if override.is_sweep_override())]


def _is_not_identity(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NOT_IDENTITY)


def single_run_command() -> list[str]:
    """The command that runs one job without the sweep; the job's overrides are to be appended."""
    arguments = get_args_parser().parse_args()
    command = ["python", "train.py"]
    if arguments.config_dir:
        command += ["-cd", arguments.config_dir]
    if arguments.config_name:
        command += ["-cn", arguments.config_name, "hydra.mode=RUN"]
    return command


def open_sweep(folder: Path, definition: dict[str, Any], about: dict[str, Any]) -> Path:
    """Lock the sweep's folder and write sweep.json with `definition` and the keys of `about`.

    A folder of a different sweep with the same name is set aside first. Raises UserError if another live process uses the
    folder, or if it cannot be written.
    """
    global _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _LOCK = lock(folder)
        before = read_json(folder / "sweep.json")
        if before is not None and before.get("definition") != definition:
            print(
                f"sweep   {folder} held another sweep with this name; it was renamed to {set_aside(folder).name}",
                flush=True,
            )
            folder.mkdir()
            _LOCK, before = lock(folder), None
        content = {"name": folder.name, "definition": definition, **about}
        write_json(folder / "sweep.json", content | {"around": (before or {}).get("around", {})})
    except OSError as error:
        raise UserError(
            f"the sweep's folder {folder} cannot be written ({error.strerror}); choose another with output_dir=FOLDER"
        ) from None
    return folder
