"""What a run trains: its plan, made once from measured speed, and one correction when the device turns out different."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from budget.clock import Limits, StepCost
from budget.flops import flops_per_token
from budget.planner import Plan, load_plan, step_rule
from budget.rules import batch_for, learning_rate_for, weight_decay_for
from config import template
from errors import UserError
from model.shape import Shape
from plan import Text, first_request, plan_here, probe_seconds
from run.console import format_count
from run.plan_view import show, show_briefly
from run.record import significant, write_json
from sealed import seal
from session import Session, Trainer, save_interval

if TYPE_CHECKING:
    from data.shards import Corpus
    from run.machine import Machine
    from run.prober import TrialProcess

# Of the budget. A machine that others share wanders by 15 % from one second to the next, also when nothing is wrong; after a
# twentieth of a short budget the speed was found off by as much, after a tenth by a few percent. Most runs are still warming
# up then. Where a step is a larger share than that, the first one has to do.
CORRECT_AT = 0.1
CORRECTED_FROM = 0.1  # of the planned tokens; the rules' answers change by half as much, less than their own error
OTHER_ACCOUNTS = ("setup", "compile", "eval", "checkpoint", "idle")  # of the ledger: what does not train
# Bytes of a parameter, in float32: the weight, its gradient and the one moment that every optimizer keeps; and of a token of
# a batch: two ids of 8 bytes.
LEAST_BYTES, TOKEN_BYTES = 12, 16
TOLERATED = 0.05  # tokens off by less than this are as planned


def saved_plan(session: Session) -> Plan | None:
    """The plan that this run began with, in an earlier process; its copy where it is damaged. Raises UserError where there
    is nothing that can be read: another plan might choose another shape, which no checkpoint of the run would fit."""
    run = session.run
    if not run.plan.exists() and not run.plan_copy.exists():
        return None
    try:
        return load_plan(run.plan)
    except UserError:
        if not run.plan_copy.exists():
            raise
        session.console.warn(f"{run.plan} is lost or damaged; its copy {run.plan_copy} is used")
        return load_plan(run.plan_copy)


def settle_plan(session: Session, corpus: Corpus, machine: Machine, trials: TrialProcess | None) -> Plan:
    """A new plan, from measured speed where time is what is limited."""
    from data.loader import Loader

    limits = session.clock.limits
    overhead_s = 0.0
    if limits.seconds is not None and limits.counts == "all":
        ending = 4.0 + 0.05 * limits.seconds  # evaluations, saving and report, before they were measured
        overhead_s = session.clock.counted_s() + probe_seconds(limits) + min(60.0, ending)
    text = Text(corpus.tokenizer.n_vocab, corpus.tokenizer.name, corpus.train.n_tokens, corpus.fingerprint)
    block_size = first_request(session.config, text, machine, overhead_s).template.block_size
    Loader(corpus.train, block_size, 1, 0)  # is the corpus long enough? Before measuring
    console = session.console
    plan = plan_here(session.config, text, machine, overhead_s, trials, console.say, console.detail)
    if trials is not None:
        trials.close()  # what they hold of the device's memory is free from here on
    require_memory(plan, plan.sized(template(session.config)), machine.free_memory())
    show(plan, console.for_log(), limits)
    show_briefly(plan, console, limits)
    content = seal(significant(plan.to_dict(), 10))
    session.run.checkpoints.mkdir(exist_ok=True)
    for path in (session.run.plan_copy, session.run.plan):
        write_json(path, content)
    return load_plan(session.run.plan)  # to the last digit what a resumed run will go on with


def require_memory(plan: Plan, shape: Shape, free: int) -> None:
    """Raise UserError where the plan cannot be trained in `free` bytes: the system would end the process without a word."""
    needed = LEAST_BYTES * shape.parameters() + TOKEN_BYTES * plan.batch_tokens
    if needed > free:
        raise UserError(
            f"{plan.n_layer} layers of width {plan.n_embd} with optim.batch_tokens={plan.batch_tokens} take at least"
            f" {needed / 2**30:,.1f} GiB to train and {free / 2**30:,.1f} are free; choose smaller model.* sizes or batches"
            " (null: planned), or another device="
        )


@dataclass(frozen=True)
class Correction:
    """What a run went on with after its first tenth. `step` and `trained`: steps and tokens behind it then; `tokens`:
    of the whole run, as the speed of those steps has it; `changed`: whether they are so far off the plan's that it was
    corrected; the rest is as in Plan."""

    step: int
    trained: int
    tokens: int
    tokens_per_second: float
    changed: bool
    batch_tokens: int
    learning_rate: float
    weight_decay: float


def correct(session: Session, trainer: Trainer, tightest: str) -> None:
    """Once, early in a run that is limited by time, and once more after it moved to another machine: where the device is
    faster or slower than it was measured, give the rules the number of tokens that it will really reach, and go on with
    the batch, learning rate and weight decay that they say. The shape stays. What the user fixed stays."""
    state, clock, moved_at = trainer.state, session.clock, trainer.state.moved_at
    begun_at = moved_at or 0.0
    settled = state.correction is not None and moved_at is None
    if settled or clock.limits.seconds is None or clock.progress < begun_at + CORRECT_AT * (1 - begun_at):
        return
    state.moved_at = None
    plan, tokens, rate = trainer.plan, trainer.plan.tokens, speed_so_far(session, trainer)
    if tightest == "hours":  # else the plan's number stands, whatever the speed
        left_s = (clock.seconds_left() or 0.0) - interruptions_s(session, trainer)
        tokens = state.tokens + int(max(0.0, left_s) * rate)
    off = tokens / plan.tokens - 1
    changed = abs(off) > CORRECTED_FROM
    correction = Correction(
        state.step, state.tokens, tokens, rate, changed, plan.batch_tokens, plan.learning_rate, plan.weight_decay
    )
    if changed:
        correction = by_the_rules(session, trainer, correction)
        session.console.say(
            f"corrected: {format_count(rate)} tokens/s, {format_count(tokens)} tokens in this budget ({off:+.0%});"
            f" batch {correction.batch_tokens:,}, learning rate {correction.learning_rate:g}"
        )
    if changed or state.correction is None:
        state.correction = asdict(correction)
    if changed:
        apply_correction(session, trainer)


def speed_so_far(session: Session, trainer: Trainer) -> float:
    """Tokens per second of all training so far; of recent steps in a run that was resumed or has gone back, whose clock counts
    what was lost."""
    training_s = session.clock.training_s()
    if session.clock.earlier_s or trainer.state.setback or training_s <= 0:
        return session.clock.tokens_per_second(trainer.cost)
    return trainer.state.tokens / training_s


def interruptions_s(session: Session, trainer: Trainer) -> float:
    """Seconds of evaluations, checkpoints and reports that are still to come, those of the end included."""
    clock, config = session.clock, session.config
    if clock.limits.counts == "training":
        return 0.0
    evaluations = int((1 - clock.progress) / config.eval.every) if config.eval.every else 0
    saves = (clock.seconds_left() or 0.0) / save_interval(session, trainer)
    on_the_way_s = (
        evaluations * trainer.interim.n_windows * trainer.window_s + saves * trainer.save_s + trainer.report_s
    )
    return on_the_way_s + clock.reserve_s


def by_the_rules(session: Session, trainer: Trainer, correction: Correction) -> Correction:
    """The correction with the rules' answers for its number of tokens."""
    plan, shape, optim, tokens = trainer.plan, trainer.shape, session.config.optim, correction.tokens
    parameters = shape.matmul_parameters()
    batch = plan.batch_tokens
    if optim.batch_tokens is None:
        saturation = float(batch) if plan.source["batch_tokens"] == "saturation" else 0.0
        rule = step_rule(session.clock.limits, plan.optimizer)
        batch = batch_for(tokens, 6 * parameters * tokens, shape.block_size, rule, saturation)
        if plan.compiled and batch % (trainer.micro_batch * shape.block_size):
            batch = plan.batch_tokens  # another micro-batch would be compiled again
    rate = optim.learning_rate or learning_rate_for(shape, tokens, batch, plan.optimizer)
    decay = optim.weight_decay
    if decay is None:
        decay = weight_decay_for(parameters, tokens, batch, rate)
    return replace(correction, batch_tokens=batch, learning_rate=rate, weight_decay=decay)


def apply_correction(session: Session, trainer: Trainer) -> None:
    """Go on as the run's correction says, and as planned where it has none: now, after a resume, or after a step back. The
    next windows are those that would have come."""
    from data.loader import Loader
    from model.optim import set_weight_decay

    correction, plan, shape = recorded_correction(trainer), trainer.planned, trainer.shape
    first_step = first_window = 0
    if correction is not None:
        first_step, first_window = correction.step, correction.trained // shape.block_size
        plan = replace(
            plan,
            tokens=correction.tokens,
            steps=correction.step + (correction.tokens - correction.trained) // correction.batch_tokens,
            tokens_per_second=correction.tokens_per_second,
            batch_tokens=correction.batch_tokens,
            learning_rate=correction.learning_rate,
            weight_decay=correction.weight_decay,
        )
    batch = plan.batch_tokens
    session.clock.pace.rescale(batch / trainer.plan.batch_tokens)
    trainer.plan = plan
    set_weight_decay(trainer.optimizer, plan.weight_decay)
    trainer.cost = StepCost(batch, batch * flops_per_token(shape))
    sequences, seed = batch // shape.block_size, session.config.seed
    trainer.loader = Loader(trainer.corpus.train, shape.block_size, sequences, seed, first_step, first_window)


def recorded_correction(trainer: Trainer) -> Correction | None:
    """What the run goes on with instead of its plan, if it does."""
    content = trainer.state.correction
    return Correction(**content) if content and content["changed"] else None


def why_off(
    plan: Plan, spent: dict[str, Any], ledger: dict[str, float], limits: Limits, rates: list[float]
) -> list[str]:
    """In words, why a run limited by time trained on more or fewer tokens than planned; empty within TOLERATED.

    `spent` and `ledger` are result.json's; `rates`: tokens per second on the way, as logged.
    """
    planned = plan.tokens_per_second
    if not planned or plan.hours is None or limits.hours is None or abs(spent["tokens"] / plan.tokens - 1) <= TOLERATED:
        return []
    training_s, planned_s = spent["training_hours"] * 3600, plan.hours * 3600
    rate = median(rates) if rates else spent["tokens"] / max(training_s, 1e-9)
    reasons = []
    if limits.extend_hours:
        reasons.append(f"{limits.extend_hours:g} hours were added to the budget")
    if abs(rate / planned - 1) > TOLERATED / 2:
        how = "measured" if plan.source["tokens_per_second"] == "measured" else "assumed"
        reasons.append(
            f"{format_count(rate)} tokens/s instead of the {format_count(planned)} that were {how} ({rate / planned - 1:+.0%})"
        )
    few = len(rates) // 5
    if few and abs(median(rates[-few:]) / median(rates[:few]) - 1) > TOLERATED:
        first, last = median(rates[:few]), median(rates[-few:])
        reasons.append(
            f"the device went from {format_count(first)} to {format_count(last)} tokens/s ({last / first - 1:+.0%})"
        )
    again_s = training_s - spent["tokens"] / rate
    if again_s > TOLERATED / 2 * planned_s:
        reasons.append(f"{again_s:.1f} s of training were slower than usual, or lost to a kill and done again")
    if limits.counts == "all" and abs(training_s / planned_s - 1) > TOLERATED / 2 and not limits.extend_hours:
        accounts = ", ".join(f"{name} {ledger[name]:.1f} s" for name in OTHER_ACCOUNTS if ledger.get(name, 0.0) >= 0.05)
        reasons.append(f"{accounts}; {limits.hours * 3600 - planned_s:.1f} s were planned for all that is not training")
    return reasons or ["a little more or less of everything"]
