"""The state that the stages of a run share (Session, Trainer), and helpers that several stages use."""

from __future__ import annotations

from collections.abc import Callable
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
    from evals.tasks.task import Task
    from model.gpt import GPT
    from run.checkpoint import TrainingState
    from training.divergence import SpikeDetector
    from training.initial_model import InitialModel
    from training.objectives import Objective
    from training.step import TrainingStep
    from training.task_evaluation import RunTask


@dataclass
class Session:
    """One process's work on a run, from its first stage to its last.

    Attributes:
        config: The options of the run.
        run: The run's folder, locked.
        clock: The budget: limits, seconds spent by account, progress.
        signals: Stopping signals, as this process receives them.
        console: Terminal and log.txt.
        world: The processes that share the run; decisions that all of them must take alike go through it. train.py runs
            one process today (supervise.require_one_process).
        dashboard: The wandb run; one that does nothing until it is opened.
        tasks: The tasks of eval.tasks, loaded.
        initial: The model that the run starts from; None if its first weights are random.
        task_figures: The figures of each task in the final evaluation.
        samples: Texts of the finished model, with the keys `prompt` and `text`.
    """

    config: Config
    run: RunDirectory
    clock: BudgetClock
    signals: Signals
    console: Console
    world: World = field(default_factory=World)
    dashboard: Dashboard = field(default_factory=Dashboard)
    tasks: list[Task] = field(default_factory=list)
    initial: InitialModel | None = None
    task_figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

    def check_signals(self) -> None:
        """Raise Interrupted in every process if a stopping signal has reached one of them."""
        if received := self.world.first(self.signals.received):
            self.signals.received = received
            self.signals.check()


@dataclass
class Trainer:
    """The model, its data and everything else that the training loop changes.

    Attributes:
        shape: The sizes of the model.
        plan: The plan of the run; it does not change.
        objective: Maps model and batch to a scalar loss.
        training_step: Forward, backward and update, with the compiled objective.
        loader: The training batches, by step number.
        state: Step, tokens, FLOPs and progress: the part of the trainer that a checkpoint stores beside the tensors.
        metrics: The writer of metrics.jsonl.
        cost: Tokens and FLOPs of one step.
        micro_batch: Sequences per forward pass.
        interim: The windows of an evaluation during the run, some of those of the final one.
        final: The windows of the final evaluation.
        tasks: The tasks to evaluate, with the number of items of each evaluation.
        compile_cache: "cold" or "warm", the compiler's cache at the start; None if nothing was compiled.
        save_s: Seconds that the last checkpoint took.
        report_s: Seconds that a report takes, at most.
        window_s: Seconds per window of an evaluation; an upper estimate.
        samples_s: Seconds that all samples will take.
        saved_at: When the last checkpoint was finished, in seconds spent of the budget.
        spike: Watches the loss while `fit` runs.
        validation_loss: Nats per token in the last interim evaluation.
    """

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
    tasks: list[RunTask] = field(default_factory=list)
    compile_cache: str | None = None
    save_s: float = 0.0
    report_s: float = 0.0
    window_s: float = 0.0
    samples_s: float = 0.0
    saved_at: float = 0.0
    spike: SpikeDetector | None = None
    validation_loss: float | None = None


def set_status(session: Session, status: str, reason: str) -> None:
    """Write status.json and show the status on the dashboard. A failed write is a warning, not an error."""
    session.dashboard.summary({"status": status, "reason": reason})
    try:
        write_json(session.run.status, {"status": status, "reason": reason})
    except OSError as error:
        session.console.warn(f"{session.run.status} cannot be written ({error})")


def axes(session: Session, trainer: Trainer) -> dict[str, Any]:
    """The x-axes of a point of the curve: step, tokens, FLOPs, hours of the budget spent, and progress (0 to 1)."""
    state, hours = trainer.state, session.clock.spent_s() / 3600
    return {
        "step": state.step,
        "tokens": state.tokens,
        "flops": state.flops,
        "hours": hours,
        "progress": session.clock.progress,
    }


def timed(clock: BudgetClock, work: Callable[[], object], repeats: int) -> float:
    """Call `work` `repeats` times, and return the seconds that the last call took."""
    seconds = 0.0
    for _ in range(repeats):
        began = clock.awake_s()
        work()
        seconds = clock.awake_s() - began
    return seconds


def expected_s(previous_s: float, measured_s: float) -> float:
    """The seconds to expect next time: a longer time counts at once, a shorter one by half.

    Too little reserve overshoots the deadline; too much only costs training time.
    """
    return max(measured_s, (previous_s + measured_s) / 2)


def write_report_of(session: Session) -> None:
    """Write report.html. Any failure is a warning: a run is worth more than its report."""
    from run.report.run_report import write_report

    try:
        write_report(session.run.folder)
    except Exception as error:  # a plotting library may raise anything
        session.console.warn(f"no report: {type(error).__name__}: {error}")
