"""Shared by all tests: settings of the libraries, and helpers that start runs of a tiny model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as hypothesis_settings

from tests.copies import copied

# Set before any test imports torch: on shared cores, spinning OpenMP threads make everything several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

# The same cases each time, so that no change fails for a case that it did not break; `--hypothesis-profile=search`
# tries others. Failing cases are not shrunk: each takes tenths of a second or more, so that would take minutes.
for profile, fixed in (("same", True), ("search", False)):
    hypothesis_settings.register_profile(
        profile,
        derandomize=fixed,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
hypothesis_settings.load_profile("same")

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and so would be by the runs of the tests

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

TINY = (
    "data=text",
    "data.tokenizer=bytes",
    "data.validation_fraction=0.2",
    "model.n_layer=1",
    "model.n_embd=64",
    "model.n_head=2",
    "model.block_size=32",
    "model.bigram_rows=64",
    "optim.batch_tokens=256",
    "optim.learning_rate=3e-3",
    "optim.weight_decay=0.1",
    "schedule.warmup=0.05",
    "plan.max_epochs=1e6",
    "eval.tokens=2000",
    "eval.interim_tokens=500",
    "device.threads=1",
    "device.name=cpu",
    "device.peak_flops=1e11",  # otherwise measured, which takes a quarter of a second
    "probe=false",  # no trials: all choices of a plan are given
)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small corpus, the working folder of runs."""
    folder = tmp_path_factory.mktemp("runs")
    texts = folder / "texts"
    texts.mkdir()
    for path in sorted(Path(os.__file__).parent.glob("*.py"))[:40]:
        (texts / f"{path.stem}.txt").write_text(path.read_text(encoding="utf-8", errors="replace")[:8000])
    return folder


def command(place: Path, *arguments: str, name: str = "t") -> list[str]:
    """The command line of a run of a tiny model on the corpus of `place`."""
    return [sys.executable, str(ROOT / "train.py"), *TINY, f"data.path={place / 'texts'}", f"name={name}", *arguments]


def train(place: Path, *arguments: str, name: str = "t", status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run that command to its end and check its exit status."""
    answer = copied(command(place, *arguments, name=name)[1:], place, 120)
    assert answer.returncode == status, answer.stdout + answer.stderr
    return answer


def run_here(place: Path, *arguments: str, name: str = "t") -> Path:
    """Run it within this process, so that a test can inject faults. Returns the run's folder."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    import common.monotonic
    import train
    from config import CONF, Config

    common.monotonic._runs_begun += 1  # the clock starts now, not with the process of the tests
    ConfigStore.instance().store(name="config_schema", node=Config)
    places = (f"data.path={place / 'texts'}", f"data.cache_dir={place / 'prepared'}", f"output_dir={place / 'outputs'}")
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("config", [*TINY, *places, f"name={name}", "device.peak_flops=1e11", *arguments])
    train.main(OmegaConf.to_object(composed))
    return next(runs_named(Path(composed.output_dir), name))


def runs_named(outputs: Path, name: str) -> Iterator[Path]:
    """The folders NAME-HASH, without runs of a longer name and older runs (.old-1) that were set aside."""
    return (path for path in outputs.glob(f"{name}-*") if re.fullmatch(r"[0-9a-f]{8}", path.name[len(name) + 1 :]))


def folder_of(place: Path, name: str) -> Path:
    """The folder outputs/NAME-HASH of the only run with this name."""
    found = list(runs_named(place / "outputs", name))
    assert len(found) == 1, found
    return found[0]
