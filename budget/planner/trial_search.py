"""A plan from measured speed: which shapes are tried on the device, in which order, and what the trials change.

The trials themselves happen elsewhere (training/trial_client.py); no torch here.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from budget.flops import flops_per_token
from budget.planner.hyperparameters import largest_batch, optimizer_for
from budget.planner.plan import Choice, Plan, Request
from budget.planner.planner import choose, make_plan, shortlist, step_rule
from common.errors import UserError
from device.compile_cost import CompileOption, first_that_pays
from model.config import Shape

# A batch twice as large that runs by less than this faster is not worth its coarser steps.
SATURATED = 0.05


MEMORY_SHARE = 0.9  # of what is free that a micro-batch may take: a run meets longer kernels' workspaces than a trial


TRIAL_S = 0.5  # enough for a stable median; more only where the time allows


MIN_REPEATS = 3  # steps that every trial times, after a first one that does not count


CONFIRM_S = 5.0  # seconds, for the shape that was chosen


CONFIRM_SHARE = 0.7  # of the time that is left; building the model takes some of the rest


# After a single trial, for twice the sequences. A try beyond the memory costs a fraction of a second; weights, gradient
# and moments, which are there once, are often most of it.
FIRST_GROWTH = 1.5


COMPILE_TRY = 0.5  # of the seconds that compilation is expected to take: with less left it is not tried


class TooLarge(Exception):
    """A shape does not fit into the device's memory even one sequence at a time."""


class TrialFailed(Exception):
    """A trial ended in an error that is not about memory; the message says which."""


@dataclass(frozen=True)
class Trial:
    """What training steps of a shape cost on the device, apart: seconds per token, forward and backward with
    `micro_batch` sequences at once, and update_s, seconds per step of `optimizer`, whatever its batch. Trials with
    different batches can so be compared.

    peak_memory: bytes that it took at most; start_s: seconds before the steps that count, to build the model and for what a
    first step takes longer; compile_s: seconds of compilation before the first step, 0 where nothing was
    compiled, and compile_cache: "cold" or "warm", as the compiler found it.
    """

    token_s: float
    update_s: float
    micro_batch: int
    peak_memory: int
    compile_s: float = 0.0
    optimizer: str = ""
    compile_cache: str | None = None
    start_s: float = 0.0

    def step_s(self, batch_tokens: int) -> float:
        """Seconds of an optimizer step of so many tokens."""
        return batch_tokens * self.token_s + self.update_s

    def tokens_per_second(self, batch_tokens: int) -> float:
        return batch_tokens / self.step_s(batch_tokens)

    def times(self, factor: float) -> Trial:
        """The same with `factor` times the speed."""
        return replace(self, token_s=self.token_s / factor, update_s=self.update_s / factor)


class TrialClient(Protocol):
    """Tries shapes on the device, within the time that it was given."""

    def seconds_left(self) -> float: ...

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        """Tokens of the first forward pass of a trial."""
        ...

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        """About `seconds` of training steps, `compiled` as in device.compile; None when the time is up. Raises TooLarge
        and TrialFailed."""
        ...


def largest_fitting(
    attempt: Callable[[int], tuple[Trial, int] | None], first: int, most: int
) -> tuple[Trial, int] | None:
    """The trial with the largest micro-batch that leaves a tenth of the memory free, from `first` up to `most` by factors
    of two.

    `attempt(micro_batch)` gives a trial and the bytes that the process may have, None when the time is up, or raises
    TooLarge. So does this, when not even a single sequence fits.
    """
    micro = first = max(1, min(first, most))
    peaks: dict[int, int] = {}
    best: tuple[Trial, int] | None = None
    while True:
        try:
            found = attempt(micro)
        except TooLarge:
            found = None
        else:
            if found is None:
                return best
            peaks[micro] = found[0].peak_memory
            if peaks[micro] > MEMORY_SHARE * found[1]:
                found = None
        if found is None:
            if best is not None:
                return best
            if micro == 1:
                raise TooLarge
            micro //= 2
            continue
        best, larger = found, min(2 * micro, most)
        if micro < first or larger == micro or _expected_peak(peaks, micro, larger) > MEMORY_SHARE * found[1]:
            return best
        micro = larger


def _expected_peak(peaks: dict[int, int], micro: int, larger: int) -> float:
    """Bytes for `larger` sequences: on the line through the last two trials; after one, at most in proportion."""
    smaller = max((tried for tried in peaks if tried < micro), default=None)
    if smaller is None:
        return peaks[micro] * min(larger / micro, FIRST_GROWTH)
    return peaks[micro] + (peaks[micro] - peaks[smaller]) * (larger - micro) / (micro - smaller)


def trial_steps(
    prober: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial]
) -> tuple[float, float]:
    """Seconds of a trial before the steps that count, and of each of these, at the best FLOP/s so far; `trials` of one shape
    at least."""
    known = [trials[shape]] if shape in trials else list(trials.values())
    flop_s = min(trial.token_s / flops_per_token(each) for each, trial in trials.items())
    token_s = trials[shape].token_s if shape in trials else flop_s * flops_per_token(shape)
    at_once = min(prober.at_once(shape, batch_tokens), batch_tokens)
    forward_s, update_s = at_once * token_s, max(trial.update_s for trial in known)
    # The first shape's start may be that of the process as well.
    start_s = statistics.median(trial.start_s for trial in known)
    return start_s + (1 if at_once == batch_tokens else 2) * forward_s + update_s, forward_s + update_s


def trial_s(prober: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial], seconds: float) -> float:
    """Seconds that a trial of `seconds` takes in all; 0 before the first. One that cannot end in the time that is left would
    only take that time from those that can."""
    if not trials:
        return 0.0
    before_s, step_s = trial_steps(prober, shape, batch_tokens, trials)
    return before_s + max(MIN_REPEATS, math.ceil(seconds / step_s)) * step_s


def tried(
    prober: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial], seconds: float
) -> Trial | None:
    """A further trial of a shape that worked before, if there is time; whatever goes wrong with it, the earlier one stands."""
    if trial_s(prober, shape, batch_tokens, trials, seconds) > prober.seconds_left():
        return None
    try:
        return prober.measure(shape, batch_tokens, seconds)
    except (TooLarge, TrialFailed):
        return None


def measured_plan(
    request: Request,
    prober: TrialClient,
    ways: Sequence[CompileOption],
    say: Callable[[str], None],
    detail: Callable[[str], None] | None = None,
) -> Plan:
    """The plan from what the shapes around the law's optimum were measured to do; from the assumed speed where the time
    did not suffice for a single one. Raises UserError when none of them fits into the memory.

    The batch is settled after the first round: all that follows is measured at it and judged by it. `ways`: to compile, the
    preferred one first. `say` shows what did not go as expected, `detail` (None: `say`) what each trial found.
    """
    detail = detail or say
    unlimited = replace(request, max_epochs=math.inf)  # before the speed is known nothing is refused
    trials, tried_with, saturation = first_round(unlimited, prober, say, detail)
    if not trials:
        say("no shape could be measured; the plan rests on an assumed speed")
        return make_plan(request)
    batch = choice_of(unlimited, trials, tried_with, saturation).batch_tokens
    settled = replace(unlimited, measured_batch=batch)
    second_round(prober, choice_of(settled, trials, batch, saturation).ranked, batch, trials)
    confirm(prober, choice_of(settled, trials, batch, saturation).shape, batch, trials)
    for shape in trials:
        detail(f"measured {_shown(shape, trials[shape], batch)}")
    plan = plan_of(replace(request, measured_batch=batch), trials, saturation)
    return compiled_plan(request, plan, prober, ways, trials, saturation, say, detail)


def confirm(prober: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial]) -> None:
    """Measure the chosen one once more, for as long as there is time: the better of two short trials is a fair judge between
    shapes, but promises too much. What it promised too much, it did for the others as well."""
    before_s, step_s = trial_steps(prober, shape, batch_tokens, trials)
    seconds = min(CONFIRM_S, CONFIRM_SHARE * prober.seconds_left(), prober.seconds_left() - before_s - step_s)
    last = tried(prober, shape, batch_tokens, trials, seconds)
    if last is None:
        return
    ratio = last.tokens_per_second(batch_tokens) / trials[shape].tokens_per_second(batch_tokens)
    for each, trial in trials.items():
        trials[each] = trial.times(ratio)
    trials[shape] = last


def _shown(shape: Shape, trial: Trial, batch_tokens: int) -> str:
    rate = trial.tokens_per_second(batch_tokens)
    return (
        f"{shape.n_layer} x {shape.n_embd} ({shape.parameters() / 1e6:.3g}M parameters): {rate:,.0f} tokens/s,"
        f" {rate * flops_per_token(shape):.3g} FLOP/s, {1000 * trial.step_s(batch_tokens):.3g} ms a step,"
        f" {trial.peak_memory / 2**20:,.0f} MiB with {trial.micro_batch} sequences at once"
    )


def choice_of(request: Request, trials: dict[Shape, Trial], batch: int, saturation: float = 0.0) -> Choice:
    """The best of the shapes that were tried, at their speeds with `batch` tokens a step."""
    return choose(request, speeds_with(batch, trials), saturation)


def speeds_with(batch: int, trials: dict[Shape, Trial]) -> dict[Shape, float]:
    """Tokens per second of the shapes that were tried, with so many a step."""
    return {shape: trial.tokens_per_second(batch) for shape, trial in trials.items()}


def plan_of(request: Request, trials: dict[Shape, Trial], saturation: float) -> Plan:
    """The plan at the request's settled batch, with what was found out about the shapes that were tried."""
    batch = request.measured_batch
    assert batch is not None
    plan = make_plan(request, speeds_with(batch, trials), "measured", saturation)
    trial = trials[plan.sized(request.template)]
    by_size = {(shape.n_layer, shape.n_embd, shape.n_head): each for shape, each in trials.items()}
    alternatives = [
        replace(row, step_s=each.step_s(batch), peak_memory=each.peak_memory)
        for row in plan.alternatives
        for each in (by_size[row.n_layer, row.n_embd, row.n_head],)
    ]
    return replace(
        plan,
        step_s=trial.step_s(batch),
        micro_batch=trial.micro_batch,
        peak_memory=trial.peak_memory,
        alternatives=alternatives,
    )


def first_round(
    request: Request, prober: TrialClient, say: Callable[[str], None], detail: Callable[[str], None]
) -> tuple[dict[Shape, Trial], int, float]:
    """A short trial of each shape of the short list, the most promising first, as far as the time goes; the tokens a step
    they had; and, tried with the first of them, those from which on the device runs at full speed (0: the rules' batch
    will do)."""
    guess = choose(request)
    waiting, untried = shortlist(guess), list[Shape]()
    seconds = min(TRIAL_S, prober.seconds_left() / (3 + 3 * len(waiting)))
    trials: dict[Shape, Trial] = {}
    too_large: list[Shape] = []
    batch, saturation = guess.batch_tokens, 0.0
    while waiting:
        shape = most_promising(waiting, guess.ranked, trials)
        waiting.remove(shape)
        if trial_s(prober, shape, batch, trials, seconds) > prober.seconds_left():
            untried.append(shape)
            continue
        try:
            trial = prober.measure(shape, batch, seconds)
        except TooLarge:
            too_large.append(shape)
            say(f"{shape.n_layer} x {shape.n_embd} does not fit into the memory")
            continue
        except TrialFailed as error:
            say(f"the trial of {shape.n_layer} x {shape.n_embd} failed: {error}")
            continue
        if trial is None:
            untried += [shape, *waiting]
            break
        trials[shape] = trial
        if len(trials) == 1 and request.batch_tokens is None:
            batch, saturation = saturate(request, prober, shape, batch, trials, seconds)
    if too_large and not trials:
        smallest = min(too_large, key=lambda shape: shape.parameters())
        raise UserError(
            f"not even {smallest.n_layer} x {smallest.n_embd} ({smallest.parameters() / 1e6:.3g}M parameters) fits into the"
            " memory of this device; free some, choose a smaller model.n_layer or model.n_embd, or a smaller"
            " optim.micro_batch"
        )
    if untried and trials:
        detail(f"no time to try {', '.join(f'{shape.n_layer} x {shape.n_embd}' for shape in untried)}")
    return trials, batch, saturation


def most_promising(waiting: list[Shape], ranked: list[Shape], trials: dict[Shape, Trial]) -> Shape:
    """The best at the assumed speed. A width of which two depths were tried comes last: the time of a token is a line in the
    depth, so that a third says the least that is new."""
    depths = Counter(shape.n_embd for shape in trials)
    return min(waiting, key=lambda shape: (depths[shape.n_embd] >= 2, ranked.index(shape)))


def saturate(
    request: Request, prober: TrialClient, shape: Shape, batch: int, trials: dict[Shape, Trial], seconds: float
) -> tuple[int, float]:
    """Tokens a step for the other trials, and those from which on the device runs this shape at full speed: twice the
    rules' batch, and twice again, as long as it helps and the number of steps and the critical batch allow it; 0 where
    the rules' batch will do. The trial of `shape`, which had `batch`, becomes the one with what was found."""
    rules = choice_of(request, {shape: trials[shape]}, batch).batch_tokens
    if rules != batch:  # the assumed speed was another
        again = tried(prober, shape, rules, trials, seconds)
        if again is None:
            return batch, 0.0
        batch, trials[shape] = rules, again
    found = 0.0
    while True:
        choice = choice_of(request, {shape: trials[shape]}, batch)
        if 2 * batch > largest_batch(choice.tokens, step_rule(request.limits, choice.optimizer)):
            break
        smaller = trials[shape]
        # Twice a batch in parts is in the same ones, if the optimizer is the same.
        in_parts = smaller.micro_batch * shape.block_size < batch and (
            request.optimizer is not None or optimizer_for(shape, batch) == optimizer_for(shape, 2 * batch)
        )
        larger = smaller if in_parts else tried(prober, shape, 2 * batch, trials, seconds)
        if larger is None:
            break
        larger = better(larger, smaller)  # more tokens at once take no longer each
        if larger.micro_batch == smaller.micro_batch:  # two looks at one speed, of which the faster one is no gain
            smaller = larger
        if larger.tokens_per_second(2 * batch) < (1 + SATURATED) * smaller.tokens_per_second(batch):
            break
        batch, trials[shape], found = 2 * batch, larger, 2.0 * batch
    return batch, found


def better(trial: Trial, other: Trial) -> Trial:
    """The trial with the best of both, if they did the same: other work on the machine makes a time longer, never
    shorter."""
    if trial.optimizer != other.optimizer:
        return trial
    return replace(trial, token_s=min(trial.token_s, other.token_s), update_s=min(trial.update_s, other.update_s))


def second_round(prober: TrialClient, ranked: list[Shape], batch: int, trials: dict[Shape, Trial]) -> None:
    """Each shape once more, the best ones first, and the better trial counts: a second of other work on the machine
    spoils one of them only. Time for another look at the best stays: of the others none gets a second one before it."""
    seconds = min(TRIAL_S, prober.seconds_left() / (2 + 2 * len(ranked)))
    for shape in ranked:
        kept = trial_s(prober, ranked[0], batch, trials, seconds)
        if trial_s(prober, shape, batch, trials, seconds) + kept > prober.seconds_left():
            return
        again = tried(prober, shape, batch, trials, seconds)
        if again is not None:
            trials[shape] = better(again, trials[shape])


def compiled_plan(
    request: Request,
    plan: Plan,
    prober: TrialClient,
    ways: Sequence[CompileOption],
    trials: dict[Shape, Trial],
    saturation: float,
    say: Callable[[str], None],
    detail: Callable[[str], None],
) -> Plan:
    """The plan with compilation where it pays: at its measured cost and gain where there is time to measure them, else
    at the expected ones."""
    limits = request.limits
    training_s = None if limits.seconds is None else limits.seconds - request.overhead_s
    compiling = first_that_pays(ways, training_s)
    if compiling is None:
        return plan
    source = "expected"
    if prober.seconds_left() > COMPILE_TRY * compiling.cost_s:
        try:
            compiling, source = try_compiling(plan.sized(request.template), plan, prober, compiling, trials, detail)
        except (TooLarge, TrialFailed) as error:
            say(f"compilation failed: {error or 'out of memory'}")
            if not compiling.asked:
                return plan
        if not compiling.pays(training_s):
            return replace(plan, compile_s=compiling.cost_s, compile_speedup=compiling.speedup)
    faster = {each: trial.times(compiling.speedup) for each, trial in trials.items()}
    if limits.counts == "all":
        request = replace(request, overhead_s=request.overhead_s + compiling.cost_s)
    return replace(
        plan_of(replace(request, measured_batch=plan.batch_tokens), faster, saturation),
        compiled=True,
        regional=compiling.how == "regional",
        compile_s=compiling.cost_s,
        compile_speedup=compiling.speedup,
        compile_cache=compiling.cache,
        source={**plan.source, "compile": source},
    )


def try_compiling(
    shape: Shape,
    plan: Plan,
    prober: TrialClient,
    compiling: CompileOption,
    trials: dict[Shape, Trial],
    detail: Callable[[str], None],
) -> tuple[CompileOption, str]:
    """Compilation as it was measured; where the time did not suffice, as expected, but no cheaper than what was waited."""
    left = prober.seconds_left()
    trial = prober.measure(shape, plan.batch_tokens, TRIAL_S, compiled=compiling.how)
    if trial is None:
        return replace(compiling, cost_s=max(compiling.cost_s, 2 * left)), "expected"
    rate = trial.tokens_per_second(plan.batch_tokens)
    speedup = rate / trials[shape].tokens_per_second(plan.batch_tokens)
    detail(
        f"measured compiled: {rate:,.0f} tokens/s, {speedup:.2f} times as fast, after"
        f" {trial.compile_s:.0f} s of compilation"
    )
    return replace(compiling, cost_s=trial.compile_s, speedup=speedup, cache=trial.compile_cache), "measured"
