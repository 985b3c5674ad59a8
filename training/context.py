"""What the stages of one run share, and the small acts that several of them need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from budget.clock import BudgetClock, StepCost
from budget.planner.plan import Plan
from common.json_io import write_json
from common.signals import Signals
from config import Config
from device.distributed import World
from model.config import Shape
from run.directory import RunDirectory
from run.metrics import Metrics
from run.report.console import Console
from run.tracking.logger import Dashboard

if TYPE_CHECKING:
    import torch

    from data.eval_windows import EvalRange
    from data.loader import Loader
    from data.shards import Corpus
    from device.device import Device
    from model.gpt import GPT
    from run.checkpoint import TrainingState
    from training.divergence import Spike
    from training.objectives import Objective
    from training.step import TrainingStep


@dataclass
class Session:
    """What the stages of one run share."""

    config: Config
    run: RunDirectory
    clock: BudgetClock
    signals: Signals
    console: Console
    world: World = field(default_factory=World)
    dashboard: Dashboard = field(default_factory=Dashboard)
    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything the training loop touches."""

    shape: Shape
    plan: Plan
    device: Device
    corpus: Corpus
    model: GPT
    objective: Objective
    optimizer: torch.optim.Optimizer
    training_step: TrainingStep
    loader: Loader
    state: TrainingState
    metrics: Metrics
    cost: StepCost
    micro_batch: int
    interim: EvalRange
    final: EvalRange
    compile_cache: str | None = None  # cold or warm, as the compiler found it; None: nothing was compiled
    save_s: float = 0.0  # what the last checkpoint took
    report_s: float = 0.0  # what the last report took
    window_s: float = 0.0  # what a window of evaluation takes, rather too much than too little
    samples_s: float = 0.0  # what writing the samples will take
    saved_at: float = 0.0  # on the clock's scale of spent seconds
    spike: Spike | None = None  # of the loss, while training
    validation_loss: float | None = None  # of the last interim evaluation


def set_status(session: Session, status: str, reason: str) -> None:
    """Write status.json, and say it on the dashboard; a disk that refuses costs a warning."""
    session.dashboard.summary({"status": status, "reason": reason})
    try:
        write_json(session.run.status, {"status": status, "reason": reason})
    except OSError as error:
        session.console.warn(f"{session.run.status} cannot be written ({error})")


def axes(session: Session, trainer: Trainer) -> dict[str, Any]:
    """Where on the four axes of a budget this moment is."""
    state, hours = trainer.state, session.clock.spent_s() / 3600
    return {
        "step": state.step,
        "tokens": state.tokens,
        "flops": state.flops,
        "hours": hours,
        "progress": session.clock.progress,
    }


def timed(clock: BudgetClock, work: Any, repeats: int) -> float:
    """Seconds that the last of `repeats` calls of `work` took."""
    seconds = 0.0
    for _ in range(repeats):
        began = clock.awake_s()
        work()
        seconds = clock.awake_s() - began
    return seconds


def write_report_of(session: Session) -> None:
    """report.html; a report that cannot be made costs a warning, never the run."""
    from run.report.run_report import write_report

    try:
        write_report(session.run.folder)
    except Exception as error:  # whatever a plotting library thinks of: the run is worth more than its picture
        session.console.warn(f"no report: {type(error).__name__}: {error}")
