"""Resume a run: with the budget that is left, from its newest checkpoint, perhaps on another device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from budget.extension import amount_in_words
from budget.ledger import read_ledger
from common.format import format_seconds
from common.json_io import number
from run.history import read_metrics
from training.context import Session, Trainer

if TYPE_CHECKING:
    from run.checkpoint import Checkpoint, TrainingState


def restore_spent_budget(session: Session) -> None:
    """Charge the seconds that earlier processes of this run spent.

    If the ledger is lost or damaged, the newest checkpoint and the last point of the curve give a lower bound.
    """
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
        f"{run.ledger} is lost or damaged; by the newest checkpoint and the curve, {format_seconds(clock.earlier_s)} of"
        " the budget are spent"
    )


def resume(session: Session, trainer: Trainer) -> None:
    """Restore the newest intact checkpoint, if there is one, and log earlier points of the curve on the dashboard.

    An earlier process may have had no dashboard, or no network.
    """
    restore_newest(session, trainer)
    for point in read_metrics(session.run.folder):
        if "event" not in point:
            session.dashboard.log(point)


def restore_newest(session: Session, trainer: Trainer) -> None:
    """Restore the newest intact checkpoint, and handle a change of device since then."""
    from run.checkpoint import latest_checkpoint

    clock, console, device = session.clock, session.console, trainer.device.title
    checkpoint = latest_checkpoint(session.run.checkpoints, console.warn)
    if checkpoint is None:
        if clock.earlier_s:
            console.say(
                f"resuming before the first checkpoint; {format_seconds(clock.earlier_s)} of the budget are spent"
            )
        trainer.state.machine = device
        trainer.metrics.write({"event": "resume", "step": 0})
        return
    restore(session, trainer, checkpoint)
    if sum(checkpoint.ledger.values()) > clock.earlier_s:  # ledger.json is older than the checkpoint
        clock.carry(checkpoint.ledger, clean=False)
    trainer.metrics.write({"event": "resume", "step": trainer.state.step})
    console.say(
        f"resuming at step {trainer.state.step}, {clock.progress:.1%} of the schedule;"
        f" {format_seconds(clock.earlier_s)} of the budget are spent"
    )
    previous_device = trainer.state.machine
    trainer.state.machine = device
    if previous_device not in (None, device):
        handle_device_change(session, trainer, str(previous_device))
    elif trainer.state.micro_batch is not None:  # larger ones did not fit into this device's memory
        trainer.micro_batch = min(trainer.micro_batch, trainer.state.micro_batch)


def restore(session: Session, trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Set model, optimizer, state, progress and loss scale from a checkpoint.

    If the budget was extended since, progress is scaled to the new limits.
    """
    from run.checkpoint import load_weights, restore_optimizer

    load_weights(trainer.model, checkpoint.model, "the checkpoint")
    restore_optimizer(trainer.model, trainer.optimizer, checkpoint.optimizer)
    state = checkpoint.state
    trainer.state, session.clock.progress = state, state.progress
    follow_new_limits(session, state)
    trainer.training_step.scaler = trainer.device.scaler(state.loss_scale)
    if checkpoint.corrected:
        session.console.warn(
            "an earlier version of the code changed this run's batch size and learning rate during the run; it continues as"
            " planned, and some windows of the corpus may be repeated or skipped in this epoch"
        )


def follow_new_limits(session: Session, state: TrainingState) -> None:
    """Scale progress if the limits are not those under which it was reached, and keep the new ones in `state`."""
    clock, limits = session.clock, session.clock.limits
    before = limits.first_amounts | state.limits  # earlier versions recorded hours alone, and could extend nothing else
    changed = [unit for unit, amount in limits.amounts.items() if not math.isclose(amount, before[unit])]
    if changed:
        clock.rescale(before, state.step, state.tokens, state.flops)
    for unit in changed:
        was, now = (amount_in_words(unit, amounts[unit]) for amounts in (before, limits.amounts))
        session.console.say(f"the budget was {was} and is now {now}")
    state.limits = limits.amounts


def handle_device_change(session: Session, trainer: Trainer, previous_device: str) -> None:
    """Warn that the run has moved to another device, and choose a micro-batch that fits there.

    The plan is kept; the schedule follows the clock at any speed.
    """
    optim = session.config.optim
    sequences = trainer.plan.batch_tokens // trainer.shape.block_size
    micro_batch = optim.micro_batch or trainer.device.micro_batch(trainer.shape, sequences)
    trainer.micro_batch = session.world.broadcast(micro_batch)
    trainer.state.micro_batch = None
    text = f"the run moved from {previous_device} to {trainer.device.title}; its plan is kept"
    session.console.warn(text)
    trainer.metrics.write({"event": "note", "step": trainer.state.step, "text": text})
