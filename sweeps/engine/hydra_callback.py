"""A sweep's folder: what was asked for, so that the same command goes on with it and another one does not mix with it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import IO, Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from cli.compose import as_yaml, checked_config
from common.errors import UserError, reported
from common.json_io import read_json, write_json
from config import NOT_IDENTITY
from run.directory import lock, set_aside
from sweeps.engine.job import ROOT
from sweeps.engine.plan_relative import FIXED, VALUES, plan_of
from sweeps.engine.table import HIGHER_IS_BETTER

CURRENT: Path | None = None  # the sweep that this process launched
_PLANS: dict[str, dict[str, Any]] = {}
_LOCK: IO[str] | None = None


def plan_relative(what: str, *, _root_: DictConfig) -> str:
    """`${plan_relative:WHAT}` in a sweep's file: values around the plan of its budget, e.g. "1,2,4".

    What was chosen once is kept in sweep.json, since a speed measured again would choose other jobs. Raises UserError.
    """
    if what not in VALUES:
        raise UserError(f"${{plan_relative:{what}}} is not known; allowed: {', '.join(VALUES)}")
    if _root_.hydra.launcher._target_.endswith(".SlurmLauncher") and _root_.device.name == "auto":
        raise UserError(
            "this sweep takes values around the plan, and device.name=auto would plan for the machine that it is started on; name"
            " the device of Slurm's nodes, e.g. device=a100"
        )
    place = Path(_root_.hydra.sweep.dir).absolute() / "sweep.json"
    about = read_json(place) or {}
    chosen = about.get("around") or {}
    if what not in chosen:
        config = checked_config(_root_)
        yaml = as_yaml(config)
        if yaml not in _PLANS:
            _PLANS[yaml] = plan_of(yaml)
        chosen[what] = ",".join(VALUES[what](_PLANS[yaml]))
        if about:
            write_json(place, about | {"around": chosen})
    return str(chosen[what])


def width_of(*shapes: str, _root_: DictConfig) -> int | str:
    """`${width_of:2x64,4x128}` in the override of a job: the width that goes with its depth, so that a sweep over pairs of the
    two is one over depths. It stands for itself until a job has its depth. Raises UserError for a depth without a width."""
    depth, widths = OmegaConf.select(_root_, "model.n_layer"), dict(shape.split("x") for shape in shapes)
    if depth is None:
        return f"${{width_of:{','.join(shapes)}}}"
    if str(depth) not in widths:
        raise UserError(f"model.n_layer={depth} is not a depth of this sweep; allowed: {', '.join(widths)}")
    return int(widths[str(depth)])


def refuse_around(what: str) -> str:
    """The resolver's former name. Raises UserError with the new one."""
    raise UserError(f"${{around:{what}}} has a new name; write ${{plan_relative:{what}}}")


def slurm_minutes(*, _root_: DictConfig) -> int:
    """Slurm's time limit for a job: its hours and a tenth more for preparing data, and a quarter of an hour for what Slurm
    and the signal before the limit take. Raises UserError for a budget without hours, whose length nobody knows."""
    hours = _root_.budget.hours
    if hours is None:
        raise UserError(
            "hydra/launcher=slurm sets its time limit by budget.hours; set that, or hydra.launcher.timeout_min"
        )
    return math.ceil(66 * hours + 15)


def direction(*, _root_: DictConfig) -> str:
    """Which way is better in the sweep's metric, as Optuna calls it."""
    return "maximize" if _root_.sweep.metric in HIGHER_IS_BETTER else "minimize"


OmegaConf.register_new_resolver("plan_relative", plan_relative, replace=True)
OmegaConf.register_new_resolver("around", refuse_around, replace=True)
OmegaConf.register_new_resolver("direction", direction, replace=True)
OmegaConf.register_new_resolver("width_of", width_of, replace=True)
OmegaConf.register_new_resolver("slurm_minutes", slurm_minutes, replace=True)


class SweepStart(Callback):
    """Hydra calls this before it asks for the first job, whatever the launcher and the sweeper."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        global CURRENT
        with reported():  # Hydra swallows what a callback raises, but not the exit that this makes of it
            if refused := unsupported_options(config):
                raise UserError(*refused)
            about = {"command": single_run_command(), "swept": swept_keys(config)}
            CURRENT = begin(Path(config.hydra.sweep.dir).absolute(), definition_of(config), about)
        # Launchers that start processes of their own have these import the task.
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def unsupported_options(config: DictConfig) -> list[str]:
    """Why hours and pruning that were asked for would not be kept, a line each: they compare and share among all jobs, so they
    need a sweeper that names all at once, since each batch would have the hours anew, and the launcher that knows of both."""
    hydra, sweep = config.hydra, config.get("sweep", {})
    params, size = hydra.sweeper.get("params") or {}, hydra.sweeper.get("max_batch_size")
    hours, prune = params.get("sweep.hours", sweep.get("hours")), params.get("sweep.prune", sweep.get("prune", "none"))
    if not hydra.launcher._target_.endswith(".IsolatedLauncher"):
        why = "is for the default launcher alone; take hydra/launcher=isolated"
    elif not hydra.sweeper._target_.endswith(".BasicSweeper"):
        why = (
            "is for jobs that are named at once, and this sweeper chooses them one after another; take hydra/sweeper=basic, or"
            " limit it by its number of jobs (hydra.sweeper.n_trials) and budget.hours"
        )
    elif size is not None:
        why = (
            f"is for jobs that are named at once, and hydra.sweeper.max_batch_size={size} names {size} at a time; leave that"
            " out, one job runs on each device anyhow"
        )
    else:
        return []
    hours_line = [] if hours is None else [f"sweep.hours={hours} {why}"]
    alone = not hydra.launcher._target_.endswith(".IsolatedLauncher") and sweep.get("on_error") == "stop"
    stop_line = [f"sweep.on_error=stop {why}"] if alone else []
    return hours_line + ([] if prune == "none" else [f"sweep.prune={prune} {why}"]) + stop_line


def settings_of(config: DictConfig) -> str:
    """A digest of all that the jobs share: with an edited file or other defaults they are other jobs."""
    plain = OmegaConf.to_container(config, resolve=False)
    assert isinstance(plain, dict)
    shared = {str(key): value for key, value in plain.items() if key != "hydra" and not _beside_the_point(str(key))}
    for group, leaf in (name.split(".") for name in NOT_IDENTITY if "." in name):
        shared[group].pop(leaf, None)
    return hashlib.sha256(json.dumps(shared, sort_keys=True, default=str).encode()).hexdigest()[:16]


def definition_of(config: DictConfig) -> dict[str, Any]:
    """What makes a sweep another one: its knobs, as the sweep's file and the command line give them."""
    overrides = [each for each in config.hydra.overrides.task if not _beside_the_point(each.split("=")[0])]
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=False).get("params") or {}  # type: ignore[union-attr]
    return {"overrides": sorted(overrides), "params": params, "settings": settings_of(config)}


def swept_keys(config: DictConfig) -> list[str]:
    """The knobs that the sweep's file or the command line gives several values."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    params = OmegaConf.to_container(config.hydra.sweeper, resolve=False).get("params") or {}  # type: ignore[union-attr]
    several = [key for key, values in params.items() if values not in [f"${{plan_relative:{each}}}" for each in FIXED]]
    return [*several, *(override.get_key_element() for override in parsed if override.is_sweep_override())]


def _beside_the_point(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in NOT_IDENTITY)


def single_run_command() -> list[str]:
    """The command of one job alone, to be followed by its overrides."""
    arguments = get_args_parser().parse_args()
    command = ["python", "train.py"]
    if arguments.config_dir:
        command += ["-cd", arguments.config_dir]
    if arguments.config_name:
        command += ["-cn", arguments.config_name, "hydra.mode=RUN"]
    return command


def begin(folder: Path, definition: dict[str, Any], about: dict[str, Any]) -> Path:
    """Lock the sweep's folder and write sweep.json; the folder of another sweep of the same name is set aside.

    Raises UserError where another live process has it, or it cannot be written.
    """
    global _LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _LOCK = lock(folder)
        before = read_json(folder / "sweep.json")
        if before is not None and before.get("definition") != definition:
            print(
                f"sweep   {folder} holds another sweep of this name; that is now {set_aside(folder).name}", flush=True
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
