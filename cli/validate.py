"""What no configuration may be: values out of range, names that no file can have, combinations that make no sense."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from budget.laws.published import LOCAL, load_law
from common.errors import UserError
from config import HALVING_RUNGS, Config, EvaluateConfig, closest, identity, leaves, template
from device.specs import BY_NAME
from model.optim.lr_schedule import schedule_problems
from run.directory import run_name

CUDA = re.compile(r"cuda(:\d{1,4})?")
LONGEST_NAME = 100  # characters; file systems take 255 bytes, and a hash, ".old-1" and the like are added
MOST_EVALUATIONS = 10_000  # on the way of one run


def mistakes(config: Any) -> list[str]:
    """Every impossible value and combination of a configuration, one line each."""
    found = []
    for name, option, value in leaves(config):
        if value is None:
            continue
        if isinstance(value, str) and (wrong := _bad_text(value) or (_bad_path(value) if option.path else None)):
            found.append(f"{name}={value!r} {wrong} ({option.help})")
        elif option.choices and value not in option.choices:
            near = closest(value, option.choices)
            found.append(f"{name}={value} is not known; allowed: {', '.join(option.choices)}{near}")
        elif option.range and not option.in_range(value):
            found.append(f"{name}={value} is out of range; allowed: {option.range} ({option.help})")
    found += _run_mistakes(config) if isinstance(config, Config) else _model_mistakes(config)
    by_option: dict[str, str] = {}
    for line in found:  # a value may be wrong in several ways; the first says it
        by_option.setdefault(line.partition("=")[0], line)
    return list(by_option.values())


def _bad_text(value: str) -> str | None:
    """What no option that is a text may be: names, paths and keys all need a sign that can be seen."""
    if not value.strip():
        return "is empty; leave the option out, or give it a value"
    try:
        value.encode("utf-8", "surrogateescape")  # bytes that are no UTF-8 may be the name of a file
    except UnicodeEncodeError:
        return "holds half a character; leave that out"
    return "holds a NUL character; leave that out" if "\0" in value else None


def _bad_path(value: str) -> str | None:
    """What the system would refuse only when it is asked, perhaps after hours."""
    raw = value.encode("utf-8", "surrogateescape")
    longest = max(len(part) for part in raw.split(b"/"))
    if longest > 255 or len(raw) > 4095:
        return f"is too long for a path: {longest} bytes between two slashes (at most 255), {len(raw)} in all (4095)"
    try:
        Path(value).expanduser()
    except RuntimeError:
        return "begins with the home folder of nobody who is known here; write the folder out"
    return None


def _model_mistakes(config: Any) -> list[str]:
    """What evaluate.py and sample.py need."""
    found = []
    if config.checkpoint is None:
        found.append("checkpoint is missing; give a run's folder, e.g. checkpoint=outputs/NAME")
    if isinstance(config, EvaluateConfig) and config.data.path is None:
        found.append("data.path is missing; give a file, folder or glob of text, e.g. data.path=my.jsonl.zst")
    return found


def _run_mistakes(config: Config) -> list[str]:
    """Combinations that no single range can see."""
    found = []
    budget, data = config.budget, config.data
    if budget.hours is None and budget.flops is None and budget.tokens is None and budget.steps is None:
        found.append(
            "no limit at all: set budget.hours, budget.flops, budget.tokens or budget.steps, e.g. budget.hours=0.05"
        )
    if budget.extend_hours and budget.hours is None:
        found.append(f"budget.extend_hours={budget.extend_hours} extends nothing; it goes with budget.hours")
    if data.source == "text" and data.path is None:
        found.append("data.source=text needs data.path=FILE, FOLDER or GLOB")
    if data.source == "stdlib" and data.path:
        found.append(f"data.path={data.path} is not read by data=stdlib; use data=text or data=slimpajama")
    if set(config.name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"):
        found.append(f"name={config.name!r} is not a folder name; allowed: letters, digits, '.', '_' and '-'")
    if config.name.startswith("."):
        found.append(f"name={config.name!r} begins with a dot; begin with a letter or a digit")
    if len(config.name) > LONGEST_NAME:
        found.append(f"name={config.name} has {len(config.name)} characters; allowed: at most {LONGEST_NAME}")
    device = config.device.name
    if device not in ("auto", "cpu", "mps") and not CUDA.fullmatch(device) and device not in BY_NAME:
        known = ("auto", "cpu", "cuda", "mps", *BY_NAME)
        found.append(f"device.name={device} is not known; allowed: {', '.join(known)}{closest(device, known)}")
    if 0 < config.eval.every < 1 / MOST_EVALUATIONS:
        found.append(
            f"eval.every={config.eval.every:g} asks for more than {MOST_EVALUATIONS:,} evaluations; allowed: 0 (none), or"
            f" {1 / MOST_EVALUATIONS:g} to 1"
        )
    schedule = config.schedule
    found += schedule_problems(schedule.shape, schedule.warmup or 0.0, schedule.floor, schedule.decay)
    optim = config.optim
    if optim.name == "adamw" and (optim.normuon or optim.cautious):
        found.append(
            "optim.normuon and optim.cautious are Muon's; they do nothing with optim.name=adamw: take optim=muon"
        )
    if config.plan.aspect_min > config.plan.aspect_max:
        found.append(
            f"plan.aspect_min={config.plan.aspect_min:g} is more than plan.aspect_max={config.plan.aspect_max:g}; no shape"
            " is between them"
        )
    if config.sweep.hours is not None and budget.hours is None:
        found.append(f"sweep.hours={config.sweep.hours:g} is shared out by budget.hours, which is not set")
    if config.sweep.prune != "none" and not config.eval.every:
        found.append(f"sweep.prune={config.sweep.prune} goes by interim evaluations, and eval.every=0 makes none")
    if config.sweep.prune == "halving" and config.eval.every >= HALVING_RUNGS[0]:
        found.append(
            f"eval.every={config.eval.every:g} evaluates no job before sweep.prune=halving compares them at"
            f" {HALVING_RUNGS[0]:g} of their budgets; allowed: less than that, e.g. eval.every=0.1"
        )
    return found + _law_mistakes(config) + template(config).problems()


def _law_mistakes(config: Config) -> list[str]:
    """A law of the user's own is read by the plan, after the corpus is prepared, which may take hours; so look now. A run
    that has its plan already needs no law."""
    if config.law != LOCAL:
        return []
    with suppress(OSError, ValueError):  # names that no file can have are a mistake of their own
        run = Path(config.output_dir) / run_name(config.name, identity(config))
        if (run / "plan.json").exists() and not config.fresh:
            return []
    try:
        load_law(Path(config.plan.law_file))
    except UserError as error:
        return list(error.messages)
    return []
