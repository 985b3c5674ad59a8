"""Validates a configuration: ranges, choices, paths, and combinations of options that cannot work together."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

from budget.laws.published import LOCAL, load_law
from common.errors import UserError
from common.typed import closest
from config import (
    HALVING_RUNGS,
    METRICS,
    BudgetConfig,
    Config,
    DataConfig,
    EvaluateConfig,
    InitConfig,
    extension_of,
    identity,
    leaves,
    template,
)
from data.sources.hub import DEFAULT
from device.specs import BY_NAME
from model.optim.lr_schedule import schedule_problems
from run.directory import run_name

CUDA = re.compile(r"cuda(:\d{1,4})?")
LONGEST_NAME = 100  # characters; file systems allow 255 bytes, and a hash and suffixes such as ".old-1" are added
# Seconds by budget.counts: no machine starts a process with torch, or takes a step, in less.
LEAST_SECONDS = {"all": 1.0, "training": 1e-3}
MOST_EVALUATIONS = 10_000  # interim evaluations per run
COMPETITION = "competition"  # the kind of task whose answers are written to and read from a submission
# Options of evaluate.py that have no effect without tasks, and without a text.
TASKS_ONLY = (
    "limit", "fraction", "skip", "baseline", "route", "submission", "answers", "reference_parameters", "folder",
)  # fmt: skip
TEXT_ONLY = ("tokens", "data.text_key", "data.bad_documents")


def find_problems(config: Any) -> list[str]:
    """Every invalid value and combination in a configuration, one line each and one per option."""
    problems = value_problems(config)
    invalid = {line.partition("=")[0] for line in problems}
    combined = _run_problems(config) if isinstance(config, Config) else _model_problems(config)
    problems += without_combinations_of(invalid, combined)
    by_option: dict[str, str] = {}
    for line in problems:  # of several problems with one option, report the first
        by_option.setdefault(line.partition("=")[0], line)
    return list(by_option.values())


def value_problems(tree: Any) -> list[str]:
    """The invalid values of a tree of options, one line each: of texts, choices and ranges."""
    problems = []
    for name, option, value in leaves(tree):
        if value is None:
            continue
        if isinstance(value, str) and (
            problem := _text_problem(value) or (_path_problem(value) if option.path else None)
        ):
            problems.append(f"{name}={value!r} {problem} ({option.help})")
        elif option.choices and value not in option.choices:
            near = closest(value, option.choices)
            problems.append(f"{name}={value} is not known; allowed: {', '.join(option.choices)}{near}")
        elif option.range and not option.in_range(value):
            shown = str(value).removesuffix(".0")
            problems.append(f"{name}={shown} is out of range; allowed: {option.range} ({option.help})")
    return problems


def without_combinations_of(names: set[str], problems: list[str]) -> list[str]:
    """The problems that name none of these options or groups of options.

    What a combination of options lacks is not known where the value of one of them is invalid.
    """
    invalid = [rf"{re.escape(name)}(?=[=.])" if "." not in name else rf"{re.escape(name)}(?![\w.])" for name in names]
    return [line for line in problems if not any(re.search(rf"(?<![\w.]){name}", line) for name in invalid)]


def _text_problem(value: str) -> str | None:
    """The problem with a string value, or None. Names, paths and keys all need at least one visible character."""
    if not value.strip():
        return "is empty; leave the option out, or give it a value"
    try:
        value.encode("utf-8", "surrogateescape")  # a file name may hold bytes that are not UTF-8
    except UnicodeEncodeError:
        return "contains half of a surrogate pair; remove it"
    return "contains a NUL character; remove it" if "\0" in value else None


def _path_problem(value: str) -> str | None:
    """The problem with a path that the operating system would refuse, perhaps only after hours; or None."""
    raw = value.encode("utf-8", "surrogateescape")
    longest = max(len(part) for part in raw.split(b"/"))
    if longest > 255 or len(raw) > 4095:
        return f"is too long for a path: {longest} bytes between two slashes (at most 255), {len(raw)} in all (4095)"
    try:
        Path(value).expanduser()
    except RuntimeError:
        return "begins with the home folder of an unknown user; write out the folder"
    return None


def _model_problems(config: Any) -> list[str]:
    """Required options of evaluate.py and sample.py that are missing, and options without effect."""
    problems = []
    if config.checkpoint is None and not (isinstance(config, EvaluateConfig) and config.answers):
        problems.append("checkpoint is missing; give a run's folder, e.g. checkpoint=outputs/NAME")
    if not isinstance(config, EvaluateConfig):
        return problems
    if config.data.path is None and not config.tasks:
        return [
            *problems,
            "data.path is missing; give a file, folder or glob of text, e.g. data.path=my.jsonl.zst, or tasks, e.g."
            " tasks=[blimp] task.path=FOLDER",
        ]
    return problems + _idle_options(config) + _competition_problems(config)


def _idle_options(config: EvaluateConfig) -> list[str]:
    """A line for each option of evaluate.py that has no effect without another one."""
    defaults = {name: value for name, _, value in leaves(EvaluateConfig())}
    changed = {name: value for name, _, value in leaves(config) if value != defaults[name]}
    problems = [
        f"route.{name}={value!r} is not a folder of a run; write e.g. route='{{summarization: outputs/B}}'"
        for name, value in config.route.items()
        if not isinstance(value, str) or not value.strip()
    ]
    if not config.tasks:
        idle = [name for name in changed if name in TASKS_ONLY or name.startswith("task.")]
        problems += [f"{name}={changed[name]} has no effect without tasks; set e.g. tasks=[blimp]" for name in idle]
    if config.data.path is None:
        idle = [name for name in changed if name in TEXT_ONLY]
        problems += [f"{name}={changed[name]} has no effect without data.path, the text to score" for name in idle]
    return problems


def _competition_problems(config: EvaluateConfig) -> list[str]:
    """Problems with the options that are only for the files of a competition."""
    tasks = config.tasks if isinstance(config.tasks, dict) else {}
    kinds = {name: task["kind"] for name, task in tasks.items() if isinstance(task, dict) and "kind" in task}
    if not tasks or len(kinds) < len(tasks):
        return []  # what is wrong with a task is reported elsewhere
    problems = []
    for name in ("submission", "answers"):
        value = getattr(config, name)
        if value is not None and COMPETITION not in kinds.values():
            problems.append(f"{name}={value} needs a task of the kind {COMPETITION}, e.g. tasks=[{COMPETITION}:FILE]")
    if config.answers is None:
        return problems
    if config.submission is not None:
        problems.append(
            f"submission={config.submission} would hold the answers of answers={config.answers}; leave one out"
        )
    if config.route:
        problems.append(
            f"route={config.route} has no effect with answers={config.answers}, which no model computes; leave one out"
        )
    others = [name for name, kind in kinds.items() if kind != COMPETITION]
    if others and not problems:
        problems.append(
            f"answers={config.answers} holds no answers to {', '.join(others)}; evaluate a competition's file by itself"
        )
    return problems


def _run_problems(config: Config) -> list[str]:
    """Invalid combinations of options, and values that a range cannot express."""
    schedule = config.schedule
    return [
        *_budget_problems(config.budget),
        *_init_problems(config.init),
        *_corpus_problems(config.data),
        *_name_problems(config.name),
        *_other_problems(config),
        *schedule_problems(schedule.shape, schedule.warmup or 0.0, schedule.floor, schedule.decay),
        *_task_problems(config),
        *_sweep_problems(config),
        *_law_problems(config),
        *template(config).problems(),
    ]


def _budget_problems(budget: BudgetConfig) -> list[str]:
    problems = []
    if budget.hours is None and budget.flops is None and budget.tokens is None and budget.steps is None:
        problems.append(
            "no budget is set: give budget.hours, budget.flops, budget.tokens or budget.steps, e.g. budget.hours=0.05"
        )
    least = LEAST_SECONDS.get(budget.counts, 0.0)
    if budget.hours is not None and 0 < 3600 * budget.hours < least:
        takes = "the start of a run" if budget.counts == "all" else "one step"
        problems.append(
            f"budget.hours={budget.hours:g} is less than {takes} takes; allowed: at least {least:g}s, e.g. budget.hours=3m"
        )
    if budget.extend_hours and budget.hours is None:
        problems.append(f"budget.extend_hours={budget.extend_hours} has no effect without budget.hours")
    elif budget.extend is not None:
        try:
            extension_of(budget)
        except UserError as error:
            problems += error.messages
    return problems


def _init_problems(init: InitConfig) -> list[str]:
    if init.source != "scratch" and init.checkpoint is None:
        return [f"init.source={init.source} needs init.checkpoint, e.g. init.checkpoint=outputs/NAME"]
    if init.source == "scratch" and init.checkpoint is not None:
        return [f"init.checkpoint={init.checkpoint} has no effect with init=scratch; add init=run"]
    return []


def _corpus_problems(data: DataConfig) -> list[str]:
    problems = []
    if data.source == "text" and data.path is None:
        problems.append("data.source=text needs data.path=FILE, FOLDER or GLOB")
    if data.source == "stdlib" and data.path:
        problems.append(f"data.path={data.path} is ignored by data=stdlib; use data=text or data=slimpajama")
    return problems + _token_file_problems(data) + _validation_problems(data) + _hub_problems(data)


def _name_problems(name: str) -> list[str]:
    problems = []
    if set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
        problems.append(f"name={name!r} is not a folder name; allowed: letters, digits, '.', '_' and '-'")
    if name.startswith("."):
        problems.append(f"name={name!r} begins with a dot; begin with a letter or a digit")
    if len(name) > LONGEST_NAME:
        problems.append(f"name={name} has {len(name)} characters; allowed: at most {LONGEST_NAME}")
    return problems


def _other_problems(config: Config) -> list[str]:
    problems, device, optim = [], config.device.name, config.optim
    if device not in ("auto", "cpu", "mps") and not CUDA.fullmatch(device) and device not in BY_NAME:
        known = ("auto", "cpu", "cuda", "mps", *BY_NAME)
        problems.append(f"device.name={device} is not known; allowed: {', '.join(known)}{closest(device, known)}")
    if 0 < config.eval.every < 1 / MOST_EVALUATIONS:
        problems.append(
            f"eval.every={config.eval.every:g} gives more than {MOST_EVALUATIONS:,} evaluations; allowed: 0 (none), or"
            f" {1 / MOST_EVALUATIONS:g} to 1"
        )
    if optim.name == "adamw" and (optim.normuon or optim.cautious):
        problems.append("optim.normuon and optim.cautious need optim.name=muon, not adamw; use optim=muon")
    if config.plan.aspect_min > config.plan.aspect_max:
        problems.append(
            f"plan.aspect_min={config.plan.aspect_min:g} is more than plan.aspect_max={config.plan.aspect_max:g}; it must"
            " be at most that"
        )
    return problems


def _task_problems(config: Config) -> list[str]:
    """Options of tasks that have no effect, and names of tasks that a sweep could not tell from its other metrics."""
    if config.eval.tasks is None:
        given = [leaf.name for leaf in fields(config.task) if getattr(config.task, leaf.name) is not None]
        return [f"task.{given[0]} has no effect without eval.tasks; set e.g. eval.tasks=[blimp]"] if given else []
    tasks = config.eval.tasks if isinstance(config.eval.tasks, dict) else {}
    return [
        f"eval.tasks: {name} is a metric of every run; give the task another name" for name in tasks if name in METRICS
    ]


def _sweep_problems(config: Config) -> list[str]:
    problems, sweep = [], config.sweep
    tasks = config.eval.tasks if isinstance(config.eval.tasks, dict) else {}
    # The file of a competition holds tasks with names of their own, which are known when it is opened.
    opened_later = any(isinstance(task, dict) and task.get("kind") == COMPETITION for task in tasks.values())
    if sweep.metric not in (*METRICS, *tasks) and not opened_later:
        allowed = (*METRICS, *tasks)
        none = "" if tasks else ", and the names of tasks in eval.tasks, which is not set"
        problems.append(
            f"sweep.metric={sweep.metric} is not known; allowed: {', '.join(allowed)}{none}{closest(sweep.metric, allowed)}"
        )
    if sweep.hours is not None and config.budget.hours is None:
        problems.append(f"sweep.hours={sweep.hours:g} needs budget.hours, the hours of each job; set it")
    if sweep.prune != "none" and not config.eval.every:
        problems.append(
            f"sweep.prune={sweep.prune} compares interim evaluations; eval.every=0 disables them, set e.g. 0.1"
        )
    if sweep.prune == "halving" and config.eval.every >= HALVING_RUNGS[0]:
        problems.append(
            f"eval.every={config.eval.every:g} gives no evaluation before sweep.prune=halving compares the jobs at"
            f" {HALVING_RUNGS[0]:g} of their budgets; allowed: less than that, e.g. eval.every=0.1"
        )
    return problems


def _validation_problems(data: DataConfig) -> list[str]:
    """Problems with data.validation_path, which needs training text in files and other files than those.

    That data=text has no data.path, that data=stdlib has one, and that data=mix does not use the option, is reported
    elsewhere.
    """
    path = data.validation_path
    if path is None or data.source == "mix" or (data.path is None and data.source == "text"):
        return []
    if data.path is None:
        return [f"data.validation_path={path} needs training text in files: data=text data.path=FILE, FOLDER or GLOB"]
    with suppress(OSError, ValueError, RuntimeError):  # invalid paths are reported elsewhere
        if Path(path).expanduser().resolve() == Path(data.path).expanduser().resolve():
            return [
                f"data.validation_path={path} is data.path; give other text, or leave it out to hold out"
                " data.validation_fraction of data.path"
            ]
    return []


def _token_file_problems(data: DataConfig) -> list[str]:
    """Options that cannot hold for token files, whose text and tokenizer are given."""
    if data.source != "tokens":
        return []
    from data.tokenizers.tokenizer import is_trained  # tiktoken, which it imports, takes a quarter of a second

    problems = []
    if data.path is None:
        problems.append(
            "data.source=tokens needs data.path=FOLDER, FILE or GLOB of token files, e.g. train.bin and val.bin"
        )
    if is_trained(data.tokenizer):
        problems.append(
            f"data.tokenizer={data.tokenizer} would be trained on text, which data=tokens does not read; set the tokenizer"
            " that wrote the files, e.g. data.tokenizer=gpt2"
        )
    if data.max_bytes is not None:
        problems.append(f"data.max_bytes={data.max_bytes} has no effect on data=tokens; leave it out")
    return problems


def _hub_problems(data: DataConfig) -> list[str]:
    """Options for the Hugging Face Hub that are missing, or that another corpus would ignore."""
    if data.source == "hub" and data.path:
        return [
            f"data.path={data.path} is for files; use data=text, or data=hub data.repo={data.path} for a copy from the Hub"
        ]
    if data.source == "hub" and data.repo is None:
        return ["data.repo is missing; data=hub needs data.repo=OWNER/NAME, a data set on the Hugging Face Hub"]
    if data.source in ("hub", "mix") or (data.source == "slimpajama" and not data.path):
        return []
    preset = {"repo": DEFAULT[0], "revision": DEFAULT[1]} if data.source == "slimpajama" else {}
    options = {"repo": data.repo, "config": data.config, "split": data.split, "revision": data.revision}
    unused = {"repo": None, "config": None, "split": "train", "revision": None}
    ignored = [
        f"data.{name}={value}" for name, value in options.items() if value not in (unused[name], preset.get(name))
    ]
    if not ignored:
        return []
    reader, instead = f"data={data.source}", "use data=hub data.repo=OWNER/NAME"
    if data.path:
        reader, instead = f"{reader} data.path={data.path}", f"{instead}, without data.path"
    return [f"{' and '.join(ignored)} {'is' if len(ignored) == 1 else 'are'} ignored by {reader}; {instead}"]


def _law_problems(config: Config) -> list[str]:
    """Problems with the file of law=local.

    The plan reads the law after the corpus is prepared, which may take hours, so it is checked here as well. A run that
    already has its plan needs no law.
    """
    if config.law != LOCAL:
        return []
    with suppress(OSError, ValueError):  # invalid names are reported elsewhere
        run = Path(config.output_dir) / run_name(config.name, identity(config))
        if (run / "plan.json").exists() and not config.fresh:
            return []
    try:
        load_law(Path(config.plan.law_file))
    except UserError as error:
        return list(error.messages)
    return []
