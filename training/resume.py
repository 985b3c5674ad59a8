"""How a run continues: with the budget it has left, from its newest checkpoint, perhaps on another device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from budget.ledger import read_ledger
from common.format import format_seconds
from common.json_io import number
from run.history import read_metrics
from training.context import Session, Trainer

if TYPE_CHECKING:
    from run.checkpoint import Checkpoint


def restore_spent_budget(session: Session) -> None:
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

    clock, console, here = session.clock, session.console, trainer.device.title
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
        handle_device_change(session, trainer, str(before))
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
    trainer.training_step.scaler = trainer.device.scaler(state.loss_scale)
    if found.corrected:
        session.console.warn(
            "an earlier version of the code changed this run's batch and rates on the way; it goes on as planned"
        )


def handle_device_change(session: Session, trainer: Trainer, before: str) -> None:
    """Another machine than the one that trained so far: say so, and take micro-batches that fit here. The plan stands, and
    the schedule follows the clock."""
    optim = session.config.optim
    sequences = trainer.plan.batch_tokens // trainer.shape.block_size
    trainer.micro_batch = optim.micro_batch or trainer.device.micro_batch(trainer.shape, sequences)
    trainer.state.micro_batch = None
    text = f"the run moved from {before} to {trainer.device.title}; its plan stands"
    session.console.warn(text)
    trainer.metrics.write({"event": "note", "step": trainer.state.step, "text": text})
