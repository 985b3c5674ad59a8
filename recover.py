"""How a run goes on after a fault: with the seconds that it has spent, from its newest checkpoint, perhaps on another machine;
and from an earlier one, at half the rate, when its loss is no number any more.

torch is imported inside the functions, so that the scripts answer mistakes and --help at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from budget.clock import read_ledger
from json_io import number
from run.console import format_seconds
from run.history import read_metrics
from session import Session, Trainer, save

if TYPE_CHECKING:
    from run.checkpoint import Checkpoint

SETBACK_RATE = 0.5  # of the planned learning rate, after a run has gone back once


class Diverged(Exception):
    """The model is lost: its loss is no number, or has been worse than guessing for long. `since`: the step whose loss was
    the first to show it, so that the weights after the one before it are lost already."""

    def __init__(self, reason: str, since: int) -> None:
        super().__init__(reason)
        self.since = since


def refuse_no_number(trainer: Trainer, figures: dict[str, Any]) -> None:
    """Raises Diverged for an evaluation whose loss is no number."""
    step = trainer.state.step
    if figures["loss"] is None:
        raise Diverged(f"the validation loss after step {step} is no number", step + 1)


def carry_earlier(session: Session) -> None:
    """Charge what earlier processes of this run spent. Where its ledger is lost or damaged, the newest checkpoint's
    accounts and the last point of its curve say at least how much that was."""
    run, clock = session.run, session.clock
    ledger = read_ledger(run.ledger)
    if ledger is not None:
        clock.carry(ledger["ledger_s"], ledger["clean"])
        clock.standstill_s = ledger["standstill_s"]
        return
    if not run.ledger.exists() and not run.metrics.exists() and not run.checkpoints.exists():
        return  # a new run
    from run.checkpoint import latest_accounts

    clock.carry(latest_accounts(run.checkpoints), clean=False)
    hours = [point["hours"] for point in read_metrics(run.folder) if number(point.get("hours"), 0.0)]
    clock.carry_at_least(3600 * hours[-1] if hours else 0.0)
    session.console.warn(
        f"{run.ledger} is lost or damaged; by the newest checkpoint and the curve, {format_seconds(clock.earlier_s)} of the"
        " budget are spent"
    )


def resume(session: Session, trainer: Trainer) -> None:
    """Go on from the newest checkpoint that is whole, with the budget that is left."""
    from run.checkpoint import latest_checkpoint

    clock, console, here = session.clock, session.console, trainer.machine.title
    found = latest_checkpoint(session.run.checkpoints, console.warn)
    if found is None:
        if clock.earlier_s:
            console.say(
                f"resuming before the first checkpoint; {format_seconds(clock.earlier_s)} of the budget are spent"
            )
        trainer.state.machine = here
        trainer.metrics.write({"event": "resume", "step": 0})
        return
    restore(session, trainer, found)
    if sum(found.ledger.values()) > clock.earlier_s:  # an older ledger lay there than this checkpoint's
        clock.carry(found.ledger, clean=False)
    trainer.metrics.write({"event": "resume", "step": trainer.state.step})
    console.say(
        f"resuming at step {trainer.state.step}, {clock.progress:.1%} of the schedule;"
        f" {format_seconds(clock.earlier_s)} of the budget are spent"
    )
    before = trainer.state.machine
    trainer.state.machine = here
    if before not in (None, here):
        move(session, trainer, str(before))
    elif trainer.state.micro_batch is not None:  # more at once did not fit
        trainer.micro_batch = min(trainer.micro_batch, trainer.state.micro_batch)


def restore(session: Session, trainer: Trainer, found: Checkpoint) -> None:
    """Put the run where a checkpoint of it stands."""
    from run.checkpoint import load_weights, restore_optimizer

    load_weights(trainer.model, found.model, "the checkpoint")
    restore_optimizer(trainer.model, trainer.optimizer, found.optimizer)
    clock, state, limit_s = session.clock, found.state, session.clock.limits.seconds
    trainer.state, clock.progress = state, state.progress
    if limit_s is not None and state.limit_s and limit_s != state.limit_s:
        clock.progress *= state.limit_s / limit_s  # what was all of the old budget is a share of the new one
        session.console.say(f"the budget was {state.limit_s / 3600:g} hours and is now {limit_s / 3600:g}")
        state.limit_s = limit_s
    trainer.training_step.scaler = trainer.machine.scaler(state.loss_scale)
    if found.corrected:
        session.console.warn(
            "an earlier version of the code changed this run's batch and rates on the way; it goes on as planned"
        )


def move(session: Session, trainer: Trainer, before: str) -> None:
    """Another machine than the one that trained so far: say so, and take micro-batches that fit here. The plan stands, and
    the schedule follows the clock."""
    optim = session.config.optim
    sequences = trainer.plan.batch_tokens // trainer.shape.block_size
    trainer.micro_batch = optim.micro_batch or trainer.machine.micro_batch(trainer.shape, sequences)
    trainer.state.micro_batch = None
    text = f"the run moved from {before} to {trainer.machine.title}; its plan stands"
    session.console.warn(text)
    trainer.metrics.write({"event": "note", "step": trainer.state.step, "text": text})


def peak_rate(trainer: Trainer) -> float:
    """The learning rate that the schedule is a share of."""
    return trainer.plan.learning_rate * (SETBACK_RATE if trainer.state.setback else 1.0)


def go_back(session: Session, trainer: Trainer, error: Diverged) -> None:
    """Once in a run's life: from the newest checkpoint of good weights on with half the learning rate. Raises `error` again
    where that was done before, and where there is none."""
    from run.checkpoint import drop_after, latest_checkpoint

    with session.signals.deferred():
        with session.clock.charge("checkpoint"):
            first = trainer.state.setback is None
            found = latest_checkpoint(session.run.checkpoints, session.console.warn, error.since - 1) if first else None
            if found is None:
                raise error
            lost_at, micro_batch = trainer.state.step, trainer.state.micro_batch
            restore(session, trainer, found)
            trainer.state.machine, trainer.state.micro_batch = trainer.machine.title, micro_batch
            drop_after(session.run.checkpoints, trainer.state.step)  # their weights are lost
        back_to = trainer.state.step
        trainer.state.setback = {"step": lost_at, "back_to": back_to, "reason": str(error)}
        text = f"{error}; going back to step {back_to}, once, with {SETBACK_RATE:g} of the learning rate"
        session.console.warn(text)
        trainer.metrics.write({"event": "setback", "step": back_to, "text": text})
        save(session, trainer, final=False)  # so that a kill does not forget that it was once
