"""What the stages of one run share, and the small acts that several of them need."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from budget.clock import BudgetClock, StepCost
from budget.planner import Plan
from config import Config
from errors import MachineError
from json_io import write_json
from model.shape import Shape
from run import memory
from run.console import Console
from run.dashboard import Dashboard
from run.directory import RunDirectory
from run.record import Metrics
from run.signals import Signals
from run.spikes import Spike
from run.world import World

if TYPE_CHECKING:
    import torch

    from data.loader import EvalRange, Loader
    from data.shards import Corpus
    from model.gpt import GPT
    from run.checkpoint import TrainingState
    from run.machine import Machine
    from training.objectives import Objective
    from training.step import TrainingStep

# What the finished model writes for the report; sample.py writes any other text.
SAMPLE_PROMPTS = ("def ", "import ", "The ")
SAMPLE_TOKENS, SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 64, 0.8, 50
RETRY_S = 1.0  # a network file system that has refused is asked once more after this long

Result = TypeVar("Result")


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
    machine: Machine
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


def evaluate(session: Session, trainer: Trainer, windows: EvalRange) -> dict[str, Any]:
    """Score the model on a fixed range of the validation split; a stopping signal ends it between batches."""
    from evals.language_model import evaluate as score

    corpus, machine, stop = trainer.corpus, trainer.machine, session.signals.check
    token_bytes, sources = corpus.tokenizer.token_bytes, corpus.val.sources
    figures: dict[str, Any] = {}
    for attempt in attempts(session, trainer):
        with attempt:
            micro = trainer.micro_batch
            figures = score(trainer.model, windows, token_bytes, sources, micro, machine.device, machine.autocast, stop)
    return figures


def attempts(session: Session, trainer: Trainer) -> Iterator[memory.Attempt]:
    """Attempts at work in micro-batches, each with half as many sequences at once as the one before, which ran out of
    memory."""
    return memory.attempts(lambda: halve_micro_batch(session, trainer))


def forward_backward(session: Session, trainer: Trainer) -> torch.Tensor:
    """The loss of this step's batch, with its gradient; computed again in smaller micro-batches where memory runs out."""
    import torch

    from assemble import micro_batches, sequences_of

    state = trainer.state
    loss = torch.zeros(())
    for attempt in attempts(session, trainer):
        with attempt:
            with session.clock.charge("data"):
                parts = micro_batches(trainer)
            if trainer.shape.dropout:
                torch.manual_seed(session.config.seed * 1_000_003 + state.step)  # the same masks after a resume
            loss = trainer.training_step.forward_backward(parts, sequences_of(trainer))
    return loss


def halve_micro_batch(session: Session, trainer: Trainer) -> None:
    """Half as many sequences at once, twice as often: the mathematics stays the same. Raises MachineError where there is
    only one already."""
    trainer.optimizer.zero_grad(set_to_none=True)  # of the part of the batch that had been done
    gc.collect()
    trainer.machine.release_memory()
    before, step = trainer.micro_batch, trainer.state.step
    if before == 1:
        raise MachineError(
            f"out of memory at step {step} with a single sequence of {trainer.shape.block_size} tokens; kept: every"
            " checkpoint; end what else uses the device, then type the same command"
        )
    trainer.micro_batch = trainer.state.micro_batch = session.world.broadcast(-(-before // 2))
    text = f"out of memory at step {step}: {trainer.micro_batch} sequences at a time from here on instead of {before}"
    session.console.warn(f"{text}; what is computed stays the same")
    trainer.metrics.write({"event": "note", "step": step, "text": text})


def write_sample(session: Session, trainer: Trainer, prompt: str, tokens: int = SAMPLE_TOKENS) -> dict[str, str]:
    """Text that the model writes after `prompt`, at most `tokens` long."""
    from model.sampling import generate

    tokenizer = trainer.corpus.tokenizer
    ids = [tokenizer.eot, *(int(token) for token in tokenizer.encode(prompt))]
    written = generate(
        trainer.model,
        ids,
        tokens,
        temperature=SAMPLE_TEMPERATURE,
        top_k=SAMPLE_TOP_K,
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
    an error. Weights that are no numbers are not written over good ones."""
    from run.checkpoint import save_checkpoint
    from run.directory import full_disk

    clock, folder, state = session.clock, session.run.checkpoints, trainer.state
    scaler = trainer.training_step.scaler

    def write() -> None:
        save_checkpoint(folder, trainer.model, trainer.optimizer, state, clock.accounts())

    with clock.charge("checkpoint"):
        began = clock.awake_s()
        state.progress = clock.progress
        state.loss_scale = scaler.get_scale() if scaler.is_enabled() else None
        try:
            if has_numbers(trainer):
                insist(write) if final else write()
            else:
                session.console.warn(f"no checkpoint at step {state.step}: its weights are no numbers")
        except OSError as error:
            if final:
                raise full_disk(folder, error, "the checkpoints before it") from None
            session.console.warn(f"no checkpoint at step {state.step}: {error}; the earlier ones are kept")
        trainer.save_s = clock.awake_s() - began
    trainer.saved_at = clock.spent_s()


def has_numbers(trainer: Trainer) -> bool:
    """Whether every weight is a finite number: a sum with another one in it is none."""
    total = sum(weight.detach().sum() for weight in trainer.model.parameters())
    return math.isfinite(float(total))


def insist(write: Callable[[], Result]) -> Result:
    """What `write` returns; where the disk refuses, what it returns when it is called once more."""
    try:
        return write()
    except OSError:
        threading.Event().wait(RETRY_S)
        return write()


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
    from run.report import write_report

    try:
        write_report(session.run.folder)
    except Exception as error:  # whatever a plotting library thinks of: the run is worth more than its picture
        session.console.warn(f"no report: {type(error).__name__}: {error}")
