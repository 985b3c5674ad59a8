"""What the stages of one run share, and the small acts that several of them need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from budget.clock import BudgetClock, StepCost
from budget.planner import Plan
from config import Config
from model.shape import Shape
from run.console import Console
from run.dashboard import Dashboard
from run.directory import RunDirectory
from run.record import Metrics, write_json
from run.signals import Signals

if TYPE_CHECKING:
    import torch

    from data.loader import EvalRange, Loader
    from data.shards import Corpus
    from model.gpt import GPT
    from run.checkpoint import TrainingState
    from run.machine import Machine


@dataclass
class Session:
    """What the stages of one run share."""

    config: Config
    run: RunDirectory
    clock: BudgetClock
    signals: Signals
    console: Console
    dashboard: Dashboard = field(default_factory=Dashboard)
    samples: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Trainer:
    """Everything the training loop touches."""

    shape: Shape
    planned: Plan  # as the run began with it
    plan: Plan  # as it goes on, after its correction
    machine: Machine
    corpus: Corpus
    model: GPT
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    loader: Loader
    forward: Any  # the model, compiled or not
    state: TrainingState
    metrics: Metrics
    cost: StepCost
    micro_batch: int
    interim: EvalRange
    final: EvalRange
    compile_cache: str | None = None  # cold or warm, as the compiler found it; None: nothing was compiled
    save_s: float = 0.0  # what the last checkpoint took
    report_s: float = 0.0  # what the last report took
    window_s: float = 0.0  # what a window of evaluation took, at worst so far
    samples_s: float = 0.0  # what writing the samples will take
    saved_at: float = 0.0  # on the clock's scale of spent seconds


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


def evaluate(session: Session, trainer: Trainer, windows: EvalRange) -> dict[str, Any]:
    """Score the model on a fixed range of the validation split; a stopping signal ends it between batches."""
    from evals.language_model import evaluate as score

    corpus, machine = trainer.corpus, trainer.machine
    stop, micro = session.signals.check, trainer.micro_batch
    token_bytes = corpus.tokenizer.token_bytes
    return score(trainer.model, windows, token_bytes, corpus.val.sources, micro, machine.device, machine.autocast, stop)


def write_sample(session: Session, trainer: Trainer, prompt: str, tokens: int) -> dict[str, str]:
    """Text that the model writes after `prompt`."""
    from model.sampling import generate

    tokenizer, samples = trainer.corpus.tokenizer, session.config.samples
    ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
    written = generate(
        trainer.model,
        ids,
        tokens,
        temperature=samples.temperature,
        top_k=samples.top_k,
        seed=session.config.seed,
        eot=tokenizer.eot,
        n_vocab=tokenizer.n_vocab,
        stop=lambda: session.signals.received is not None,
    )
    return {"prompt": prompt, "text": tokenizer.decode(written)}


def save_interval(session: Session, trainer: Trainer) -> float:
    """Seconds from one checkpoint to the next: as often as is wished, as rarely as keeps them cheap."""
    checkpoint, limit_s = session.config.checkpoint, session.clock.limits.seconds
    wished = checkpoint.every_s or (60.0 if limit_s is None else min(600.0, max(2.0, 0.02 * limit_s)))
    return max(wished, trainer.save_s / checkpoint.max_fraction)


def save_due(session: Session, trainer: Trainer) -> bool:
    """Whether the last checkpoint is old enough for another one."""
    return session.clock.spent_s() - trainer.saved_at > save_interval(session, trainer)


def save(session: Session, trainer: Trainer, final: bool) -> None:
    """Write a checkpoint. A disk that refuses costs a warning, and the earlier checkpoints stay; only at the end it is
    an error."""
    from run.checkpoint import save_checkpoint
    from run.directory import full_disk

    clock = session.clock
    with clock.charge("checkpoint"):
        began = clock.clock()
        trainer.state.progress = clock.progress
        trainer.state.loss_scale = trainer.scaler.get_scale() if trainer.scaler.is_enabled() else None
        try:
            save_checkpoint(session.run.checkpoints, trainer.model, trainer.optimizer, trainer.state, clock.accounts())
        except OSError as error:
            if final:
                raise full_disk(session.run.checkpoints, error, "the checkpoints before it") from None
            session.console.warn(f"no checkpoint at step {trainer.state.step}: {error}; the earlier ones are kept")
        trainer.save_s = clock.clock() - began
    trainer.saved_at = clock.spent_s()


def timed(clock: BudgetClock, work: Any, repeats: int) -> float:
    """Seconds that the last of `repeats` calls of `work` took."""
    seconds = 0.0
    for _ in range(repeats):
        began = clock.clock()
        work()
        seconds = clock.clock() - began
    return seconds


def write_report_of(session: Session) -> None:
    """report.html; a report that cannot be made costs a warning, never the run."""
    from run.report import write_report

    try:
        write_report(session.run.folder)
    except Exception as error:  # whatever a plotting library thinks of: the run is worth more than its picture
        session.console.warn(f"no report: {type(error).__name__}: {error}")
