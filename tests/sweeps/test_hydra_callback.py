"""The folder of a sweep: the same command continues it, and another sweep with the same name gets a new folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from common.errors import UserError
from config import NOT_IDENTITY
from sweeps.engine import hydra_callback as record
from tests.conftest import ROOT

ABOUT = {"command": ["python", "train.py"], "swept": ["seed"]}


def begin(folder: Path, definition: dict[str, object]) -> None:
    record.open_sweep(folder, definition, ABOUT)
    assert record._LOCK is not None
    record._LOCK.close()


def test_the_same_sweep_keeps_its_jobs_and_plan_relative_values(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    begin(folder, {"params": {"model.n_layer": "${plan_relative:depths}"}})
    about = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(about | {"around": {"depths": "1x64,2x64"}}))
    (folder / "jobs").mkdir()
    begin(folder, {"params": {"model.n_layer": "${plan_relative:depths}"}})
    assert json.loads((folder / "sweep.json").read_text())["around"] == {"depths": "1x64,2x64"}
    assert (folder / "jobs").exists()


def test_another_sweep_with_the_same_name_sets_the_first_aside(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    begin(folder, {"overrides": ["seed=1,2"]})
    (folder / "jobs").mkdir()
    begin(folder, {"overrides": ["seed=3"]})
    assert not (folder / "jobs").exists()
    assert (tmp_path / "s.old-1" / "jobs").exists()
    assert json.loads((folder / "sweep.json").read_text())["around"] == {}


def test_changed_files_or_defaults_make_another_sweep(tmp_path: Path) -> None:
    """Otherwise earlier runs would count as other seeds of the new ones. Options that do not reach a run change nothing."""
    content = {name: {leaf: 1} for name, leaf in (part.split(".") for part in NOT_IDENTITY if part.count(".") == 1)}
    content |= {"schedule": {"warmup": 0.05}, "hydra": {"mode": "RUN"}, "output_dir": "a"}
    first = record.settings_digest(OmegaConf.create(content))
    content |= {"output_dir": "b", "hydra": {"mode": "MULTIRUN"}, "plan": {"folder": "c"}}
    assert record.settings_digest(OmegaConf.create(content)) == first
    assert record.settings_digest(OmegaConf.create(content | {"schedule": {"warmup": 0.1}})) != first
    added_later = {"init": {"source": "scratch", "checkpoint": None}}
    assert record.settings_digest(OmegaConf.create(content | added_later)) == first
    added_later["init"]["source"] = "run"
    assert record.settings_digest(OmegaConf.create(content | added_later)) != first


def test_slurm_needs_a_named_device_for_plan_relative_values() -> None:
    target = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
    root = {"hydra": {"launcher": {"_target_": target}}, "device": {"name": "auto"}}
    with pytest.raises(UserError, match="device=a100"):
        record.plan_relative("n_layer", _root_=OmegaConf.create(root))


@pytest.mark.parametrize(
    ("metric", "direction"), [("loss", "minimize"), ("accuracy", "maximize"), ("blimp", "maximize")]
)
def test_the_direction_for_optuna_follows_the_metric(metric: str, direction: str) -> None:
    assert record.direction(_root_=OmegaConf.create({"sweep": {"metric": metric}})) == direction


def test_a_running_sweep_is_not_started_twice(tmp_path: Path) -> None:
    record.open_sweep(tmp_path / "s", {}, ABOUT)
    code = (
        "from pathlib import Path; from sweeps.engine.hydra_callback import open_sweep;"
        f" open_sweep(Path({str(tmp_path / 's')!r}), {{}}, {ABOUT!r})"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "UserError" in answer.stderr
    assert "is in use by process" in answer.stderr
    assert record._LOCK is not None
    record._LOCK.close()


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        record.open_sweep(tmp_path / "file" / "s", {}, ABOUT)


BASIC = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper", "max_batch_size": None, "params": None}
OPTUNA = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "n_jobs": 1}
ISOLATED = {"_target_": "hydra_plugins.isolated_launcher.IsolatedLauncher"}
JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"}


@pytest.mark.parametrize(
    ("sweeper", "launcher", "sweep", "said"),
    [
        (BASIC, ISOLATED, {"hours": 5, "prune": "halving"}, []),
        (BASIC | {"max_batch_size": 2}, ISOLATED, {"hours": 5}, ["sweep.hours=5"]),
        (BASIC | {"params": {"sweep.hours": 7}, "max_batch_size": 2}, ISOLATED, {}, ["sweep.hours=7"]),
        (OPTUNA, ISOLATED, {"hours": 5}, ["sweep.hours=5"]),
        (OPTUNA, ISOLATED, {"prune": "median"}, ["sweep.prune=median"]),
        (BASIC | {"max_batch_size": 2}, ISOLATED, {"prune": "halving"}, ["sweep.prune=halving"]),
        (OPTUNA, JOBLIB, {}, []),
        (BASIC, JOBLIB, {"on_error": "stop"}, ["sweep.on_error=stop"]),
        (BASIC, JOBLIB, {"hours": 5, "prune": "median"}, ["sweep.hours=5", "sweep.prune=median"]),
    ],
)
def test_unsupported_hours_and_pruning_are_refused(
    sweeper: dict[str, object], launcher: dict[str, object], sweep: dict[str, object], said: list[str]
) -> None:
    """Hours would start again for each batch of jobs, and other launchers support neither hours nor pruning."""
    content = {"hydra": {"sweeper": sweeper, "launcher": launcher}, "sweep": {"hours": None, "prune": "none"} | sweep}
    lines = record.unsupported_options(OmegaConf.create(content))
    assert len(lines) == len(said)
    assert all(text in line for text, line in zip(said, lines, strict=True))


@pytest.mark.parametrize(
    ("sweeper", "sweep", "swept", "said"),
    [
        (BASIC, {"prune": "median"}, ["data.tokenizer", "seed"], ""),
        (BASIC, {"prune": "median"}, ["data.path"], "sweep.prune=median: data.path changes the text"),
        (BASIC | {"params": {"sweep.prune": "halving"}}, {}, ["data"], "sweep.prune=halving: data changes the text"),
        (BASIC, {}, ["data.path"], ""),
        (OPTUNA, {}, ["data.path"], "data.path changes the text"),
        (OPTUNA, {"metric": "loss"}, ["data.tokenizer"], "set sweep.metric=bits_per_byte"),
        (OPTUNA, {"metric": "accuracy"}, ["data.tokenizer"], "set sweep.metric=bits_per_byte"),
        (OPTUNA, {"metric": "bits_per_byte"}, ["data.tokenizer"], ""),
        (OPTUNA, {"metric": "blimp"}, ["data.tokenizer", "data.path"], ""),
        (
            BASIC,
            {"metric": "blimp", "prune": "median"},
            ["data.path"],
            "sweep.prune=median: data.path changes the text",
        ),
        (OPTUNA, {}, ["optim.learning_rate", "data.workers"], ""),
    ],
)
def test_jobs_that_cannot_be_compared_while_they_run_are_refused(
    sweeper: dict[str, object], sweep: dict[str, object], swept: list[str], said: str
) -> None:
    content = {"hydra": {"sweeper": sweeper}, "sweep": {"metric": "loss", "prune": "none"} | sweep, "data": {}}
    lines = record.incomparable_jobs(OmegaConf.create(content), swept)
    assert len(lines) == bool(said)
    assert said in " ".join(lines)


@pytest.mark.parametrize(("extension", "minutes"), [({}, 147), ({"extend": "1h"}, 213), ({"extend_hours": 0.5}, 180)])
def test_slurms_time_limit_covers_an_extension(extension: dict[str, object], minutes: int) -> None:
    budget = OmegaConf.create({"budget": {"hours": 2.0, **extension}})
    assert record.slurm_minutes(_root_=budget) == minutes
