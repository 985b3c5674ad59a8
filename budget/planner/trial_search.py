"""A plan from measured speed: which shapes are tried on the device, in which order, and how the results change the plan.

The trials themselves run elsewhere (training/trial_client.py). This module imports no torch.

1. First round: a short trial of each shape on the short list, and a search for the batch that saturates the device.
2. Second round: every shape once more at the chosen batch; the faster of its two trials counts.
3. Confirmation: a longer trial of the best shape, which corrects the speeds of all.
4. Compilation: a trial of the compiled model, where the budget is long enough for it to pay.
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

SATURATED = 0.05  # a doubled batch has to be this much faster to be worth half as many steps
MEMORY_SHARE = 0.9  # of the available memory; a run may pick kernels with larger workspaces than its trial did
TRIAL_S = 0.5  # seconds of timed steps per trial: enough for a stable median
MIN_REPEATS = 3  # timed steps per trial at least, after one warm-up step
CONFIRM_S = 5.0  # seconds of timed steps for the longer trial of the chosen shape
CONFIRM_SHARE = 0.7  # of the time left, at most; building the model takes some of the rest
# Expected growth of the peak memory for twice the sequences, after a single trial. Weights, gradients and optimizer
# state do not grow with the batch and are often most of it. A trial that runs out of memory costs a fraction of a
# second.
FIRST_GROWTH = 1.5
COMPILE_TRY = 0.5  # compilation is tried only with at least this share of its expected time left

Log = Callable[[str], None]


class TooLarge(Exception):
    """A shape does not fit into the device's memory even with one sequence per forward pass."""


class TrialFailed(Exception):
    """A trial ended in an error other than out of memory; the message names it."""


@dataclass(frozen=True)
class Trial:
    """The measured cost of training steps of one shape.

    The cost is split into a part per token and a part per step, so that trials with different batches can be compared.

    token_s: seconds per token for forward and backward, with `micro_batch` sequences per pass.
    update_s: seconds per optimizer step of `optimizer`, independent of the batch.
    peak_memory: bytes.
    compile_s: seconds of compilation before the first step; 0 without compilation.
    compile_cache: state of the compiler's cache before the trial, "cold" or "warm"; None without compilation.
    start_s: seconds before the timed steps: building the model, and the extra time of the first step.
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
        """Return the seconds of an optimizer step of `batch_tokens` tokens."""
        return batch_tokens * self.token_s + self.update_s

    def tokens_per_second(self, batch_tokens: int) -> float:
        """Return the training speed with `batch_tokens` tokens per step."""
        return batch_tokens / self.step_s(batch_tokens)

    def sped_up(self, factor: float) -> Trial:
        """Return the same trial at `factor` times the speed."""
        return replace(self, token_s=self.token_s / factor, update_s=self.update_s / factor)


class TrialClient(Protocol):
    """Runs trials on the device within a time limit."""

    def seconds_left(self) -> float:
        """Return the seconds left for trials."""
        ...

    def at_once(self, shape: Shape, batch_tokens: int) -> int:
        """Return the number of tokens in the first forward pass of a trial."""
        ...

    def measure(self, shape: Shape, batch_tokens: int, seconds: float, compiled: str = "off") -> Trial | None:
        """Time about `seconds` of training steps, `compiled` as in device.compile; return None when the time is up.

        Raises TooLarge and TrialFailed.
        """
        ...


# ---------------------------------------------------------------------------------------------------- the micro-batch


def largest_fitting(
    attempt: Callable[[int], tuple[Trial, int] | None], first: int, most: int
) -> tuple[Trial, int] | None:
    """Return the trial with the largest micro-batch that uses at most MEMORY_SHARE of the memory.

    The search starts at `first` sequences, doubles up to `most`, and halves where a micro-batch does not fit.
    `attempt(micro_batch)` returns a trial and the bytes of memory available to it, or None when the time is up; it
    raises TooLarge where the memory is exceeded. Raises TooLarge when a single sequence does not fit.
    """
    micro = first = max(1, min(first, most))
    peaks: dict[int, int] = {}  # bytes by micro-batch
    best: tuple[Trial, int] | None = None
    while True:
        try:
            result = attempt(micro)
            if result is None:
                return best
            usable = MEMORY_SHARE * result[1]
            peaks[micro] = result[0].peak_memory
            if peaks[micro] > usable:
                raise TooLarge
        except TooLarge:
            if best is not None:
                return best
            if micro == 1:
                raise
            micro //= 2
            continue
        best, larger = result, min(2 * micro, most)
        if micro < first or larger == micro or _expected_peak(peaks, micro, larger) > usable:
            return best
        micro = larger


def _expected_peak(peaks: dict[int, int], micro: int, larger: int) -> float:
    """Return the expected bytes for `larger` sequences: linear in the last two trials, or by FIRST_GROWTH after one."""
    smaller = max((tried for tried in peaks if tried < micro), default=None)
    if smaller is None:
        return peaks[micro] * min(larger / micro, FIRST_GROWTH)
    return peaks[micro] + (peaks[micro] - peaks[smaller]) * (larger - micro) / (micro - smaller)


# --------------------------------------------------------------------------------------------- the duration of a trial


def expected_step_s(
    client: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial]
) -> tuple[float, float]:
    """Return the expected seconds of a trial before its timed steps, and of each timed step.

    A shape without a trial is assumed to run at the best FLOP/s so far. `trials` must hold at least one shape.
    """
    known = [trials[shape]] if shape in trials else list(trials.values())
    flop_s = min(trial.token_s / flops_per_token(tried) for tried, trial in trials.items())  # seconds per FLOP
    token_s = trials[shape].token_s if shape in trials else flop_s * flops_per_token(shape)
    at_once = min(client.at_once(shape, batch_tokens), batch_tokens)
    forward_s, update_s = at_once * token_s, max(trial.update_s for trial in known)
    # The median, because the first trial's start may include the start of the process.
    start_s = statistics.median(trial.start_s for trial in known)
    return start_s + (1 if at_once == batch_tokens else 2) * forward_s + update_s, forward_s + update_s


def expected_trial_s(
    client: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial], seconds: float
) -> float:
    """Return the expected seconds of a trial with `seconds` of timed steps; 0 before the first trial.

    A trial that cannot end in time is not begun, because it would take the time from those that can.
    """
    if not trials:
        return 0.0
    before_s, step_s = expected_step_s(client, shape, batch_tokens, trials)
    return before_s + max(MIN_REPEATS, math.ceil(seconds / step_s)) * step_s


def measure_again(
    client: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial], seconds: float
) -> Trial | None:
    """Return another trial of a shape that worked before; None without time for it, or where it fails."""
    if expected_trial_s(client, shape, batch_tokens, trials, seconds) > client.seconds_left():
        return None
    try:
        return client.measure(shape, batch_tokens, seconds)
    except (TooLarge, TrialFailed):
        return None


# ----------------------------------------------------------------------------------------------------- the whole search


def measured_plan(
    request: Request,
    client: TrialClient,
    compile_options: Sequence[CompileOption],
    say: Log,
    detail: Log | None = None,
) -> Plan:
    """Return the plan from the measured speeds of shapes around the law's optimum.

    The batch is fixed after the first round, and all later trials use it. Without time for a single trial, the plan
    rests on the assumed speed. `compile_options` are ordered by preference. `say` receives what a user should know,
    `detail` (default: `say`) the result of each trial. Raises UserError when no shape fits into the memory.
    """
    detail = detail or say
    unlimited = replace(request, max_epochs=math.inf)  # the epochs are checked once the speed is known
    trials, tried_batch, saturation = first_round(unlimited, client, say, detail)
    if not trials:
        say("no shape could be measured; the plan rests on an assumed speed")
        return make_plan(request)
    batch = choose_measured(unlimited, trials, tried_batch, saturation).batch_tokens
    at_batch = replace(unlimited, measured_batch=batch)
    second_round(client, choose_measured(at_batch, trials, batch, saturation).ranked, batch, trials)
    confirm(client, choose_measured(at_batch, trials, batch, saturation).shape, batch, trials)
    for shape in trials:
        detail(f"measured {_describe(shape, trials[shape], batch)}")
    plan = plan_from_trials(replace(request, measured_batch=batch), trials, saturation)
    return add_compilation(request, plan, client, compile_options, trials, saturation, say, detail)


def _describe(shape: Shape, trial: Trial, batch_tokens: int) -> str:
    rate = trial.tokens_per_second(batch_tokens)
    return (
        f"{shape.n_layer} x {shape.n_embd} ({shape.parameters() / 1e6:.3g}M parameters): {rate:,.0f} tokens/s,"
        f" {rate * flops_per_token(shape):.3g} FLOP/s, {1000 * trial.step_s(batch_tokens):.3g} ms per step,"
        f" {trial.peak_memory / 2**20:,.0f} MiB with {trial.micro_batch} sequences per pass"
    )


def choose_measured(request: Request, trials: dict[Shape, Trial], batch: int, saturation: float = 0.0) -> Choice:
    """Return the best of the measured shapes, at their speeds with `batch` tokens per step."""
    return choose(request, speeds_at(batch, trials), saturation)


def speeds_at(batch: int, trials: dict[Shape, Trial]) -> dict[Shape, float]:
    """Return the tokens per second of each measured shape with `batch` tokens per step."""
    return {shape: trial.tokens_per_second(batch) for shape, trial in trials.items()}


def plan_from_trials(request: Request, trials: dict[Shape, Trial], saturation: float) -> Plan:
    """Return the plan at `request.measured_batch`, with the step times and the memory of the trials."""
    batch = request.measured_batch
    assert batch is not None
    plan = make_plan(request, speeds_at(batch, trials), "measured", saturation)
    chosen = trials[plan.sized(request.template)]
    by_size = {(shape.n_layer, shape.n_embd, shape.n_head): trial for shape, trial in trials.items()}
    alternatives = []
    for row in plan.alternatives:
        trial = by_size[row.n_layer, row.n_embd, row.n_head]
        alternatives.append(replace(row, step_s=trial.step_s(batch), peak_memory=trial.peak_memory))
    return replace(
        plan,
        step_s=chosen.step_s(batch),
        micro_batch=chosen.micro_batch,
        peak_memory=chosen.peak_memory,
        alternatives=alternatives,
    )


# --------------------------------------------------------------------------------------------------- the first round


def first_round(request: Request, client: TrialClient, say: Log, detail: Log) -> tuple[dict[Shape, Trial], int, float]:
    """Try each shape on the short list once, the most promising first, as far as the time allows.

    Returns the trials, the batch (tokens per step) that they had, and the batch from which the device runs at full
    speed. The latter is searched with the first shape; it is 0 where the rules' batch is large enough. Raises
    UserError when no shape fits into the memory.
    """
    guess = choose(request)
    waiting, untried = shortlist(guess), list[Shape]()
    seconds = min(TRIAL_S, client.seconds_left() / (3 + 3 * len(waiting)))
    trials: dict[Shape, Trial] = {}
    too_large: list[Shape] = []
    batch, saturation = guess.batch_tokens, 0.0
    while waiting:
        # The best at the assumed speed, but a third depth of one width last: the time per token is linear in the depth.
        depths_tried = Counter(shape.n_embd for shape in trials)
        shape = min(waiting, key=lambda shape: (depths_tried[shape.n_embd] >= 2, guess.ranked.index(shape)))
        waiting.remove(shape)
        if expected_trial_s(client, shape, batch, trials, seconds) > client.seconds_left():
            untried.append(shape)
            continue
        try:
            trial = client.measure(shape, batch, seconds)
        except TooLarge:
            too_large.append(shape)
            say(f"{_size(shape)} does not fit into the memory")
            continue
        except TrialFailed as error:
            say(f"the trial of {_size(shape)} failed: {error}")
            continue
        if trial is None:
            untried += [shape, *waiting]
            break
        trials[shape] = trial
        if len(trials) == 1 and request.batch_tokens is None:
            batch, saturation = saturate(request, client, shape, batch, trials, seconds)
    if too_large and not trials:
        smallest = min(too_large, key=lambda shape: shape.parameters())
        raise UserError(
            f"no model fits into the memory of this device, not even {_size(smallest)}"
            f" ({smallest.parameters() / 1e6:.3g}M parameters); free some memory, or set a smaller model.n_layer,"
            " model.n_embd or optim.micro_batch"
        )
    if untried and trials:
        detail(f"no time to try {', '.join(map(_size, untried))}")
    return trials, batch, saturation


def _size(shape: Shape) -> str:
    return f"{shape.n_layer} x {shape.n_embd}"


def saturate(
    request: Request, client: TrialClient, shape: Shape, batch: int, trials: dict[Shape, Trial], seconds: float
) -> tuple[int, float]:
    """Double the batch as long as the device gets faster and the number of steps and the critical batch allow it.

    Returns the tokens per step for the other trials, and the batch from which the device runs `shape` at full speed
    (0 where the rules' batch is large enough). The trial of `shape`, which had `batch` tokens, is replaced by the
    best one.
    """
    by_rule = choose_measured(request, {shape: trials[shape]}, batch).batch_tokens
    if by_rule != batch:  # the measured speed differs from the assumed one, and the rules' batch with it
        trial = measure_again(client, shape, by_rule, trials, seconds)
        if trial is None:
            return batch, 0.0
        batch, trials[shape] = by_rule, trial
    saturation = 0.0
    while True:
        choice = choose_measured(request, {shape: trials[shape]}, batch)
        if 2 * batch > largest_batch(choice.tokens, step_rule(request.limits, choice.optimizer)):
            break
        smaller = trials[shape]
        larger: Trial | None = smaller
        if not _accumulates(request, shape, smaller, batch):
            larger = measure_again(client, shape, 2 * batch, trials, seconds)
        if larger is None:
            break
        larger = fastest(larger, smaller)  # a larger micro-batch is never slower per token
        if larger.micro_batch == smaller.micro_batch:  # the same passes, so any difference is noise of the measurement
            smaller = larger
        if larger.tokens_per_second(2 * batch) < (1 + SATURATED) * smaller.tokens_per_second(batch):
            break
        batch, trials[shape], saturation = 2 * batch, larger, 2.0 * batch
    return batch, saturation


def _accumulates(request: Request, shape: Shape, trial: Trial, batch: int) -> bool:
    """Return whether `batch` already takes several passes, so that twice the batch repeats them and needs no trial.

    This holds only if the optimizer does not change with the batch.
    """
    same_optimizer = request.optimizer is not None or optimizer_for(shape, batch) == optimizer_for(shape, 2 * batch)
    return trial.micro_batch * shape.block_size < batch and same_optimizer


def fastest(trial: Trial, other: Trial) -> Trial:
    """Return `trial` with the lower times of both, if they used the same optimizer.

    Other load on the machine makes a time longer, never shorter, so the minimum is the better estimate.
    """
    if trial.optimizer != other.optimizer:
        return trial
    return replace(trial, token_s=min(trial.token_s, other.token_s), update_s=min(trial.update_s, other.update_s))


# -------------------------------------------------------------------------------------- second round and confirmation


def second_round(client: TrialClient, ranked: list[Shape], batch: int, trials: dict[Shape, Trial]) -> None:
    """Try each shape once more, the best first, and keep the lower times of both trials in `trials`.

    A short burst of other load then spoils only one of the two. Time for the second trial of the best shape is
    reserved.
    """
    seconds = min(TRIAL_S, client.seconds_left() / (2 + 2 * len(ranked)))
    for shape in ranked:
        reserved = expected_trial_s(client, ranked[0], batch, trials, seconds)
        if expected_trial_s(client, shape, batch, trials, seconds) + reserved > client.seconds_left():
            return
        trial = measure_again(client, shape, batch, trials, seconds)
        if trial is not None:
            trials[shape] = fastest(trial, trials[shape])


def confirm(client: TrialClient, shape: Shape, batch_tokens: int, trials: dict[Shape, Trial]) -> None:
    """Measure the chosen shape once more, for up to CONFIRM_S, and scale the speeds of all shapes by the result.

    The faster of two short trials compares shapes fairly, but it is too optimistic a speed for hours of training. The
    optimism is assumed to be the same for every shape.
    """
    before_s, step_s = expected_step_s(client, shape, batch_tokens, trials)
    left_s = client.seconds_left()
    seconds = min(CONFIRM_S, CONFIRM_SHARE * left_s, left_s - before_s - step_s)
    confirmed = measure_again(client, shape, batch_tokens, trials, seconds)
    if confirmed is None:
        return
    ratio = confirmed.tokens_per_second(batch_tokens) / trials[shape].tokens_per_second(batch_tokens)
    for other, trial in trials.items():
        trials[other] = trial.sped_up(ratio)
    trials[shape] = confirmed


# -------------------------------------------------------------------------------------------------------- compilation


def add_compilation(
    request: Request,
    plan: Plan,
    client: TrialClient,
    compile_options: Sequence[CompileOption],
    trials: dict[Shape, Trial],
    saturation: float,
    say: Log,
    detail: Log,
) -> Plan:
    """Return the plan with compilation where it pays, at its measured cost and speed-up, or at the expected ones.

    The expected ones are used where the time does not suffice for a trial.
    """
    limits = request.limits
    training_s = None if limits.seconds is None else limits.seconds - request.overhead_s
    option = first_that_pays(compile_options, training_s)
    if option is None:
        return plan
    source = "expected"
    if client.seconds_left() > COMPILE_TRY * option.cost_s:
        try:
            option, source = measure_compiled(plan.sized(request.template), plan, client, option, trials, detail)
        except (TooLarge, TrialFailed) as error:
            say(f"compilation failed: {error or 'out of memory'}")
            if not option.asked:
                return plan
        if not option.pays(training_s):
            return replace(plan, compile_s=option.cost_s, compile_speedup=option.speedup)
    compiled_trials = {shape: trial.sped_up(option.speedup) for shape, trial in trials.items()}
    if limits.counts == "all":
        request = replace(request, overhead_s=request.overhead_s + option.cost_s)
    return replace(
        plan_from_trials(replace(request, measured_batch=plan.batch_tokens), compiled_trials, saturation),
        compiled=True,
        regional=option.how == "regional",
        compile_s=option.cost_s,
        compile_speedup=option.speedup,
        compile_cache=option.cache,
        source={**plan.source, "compile": source},
    )


def measure_compiled(
    shape: Shape, plan: Plan, client: TrialClient, option: CompileOption, trials: dict[Shape, Trial], detail: Log
) -> tuple[CompileOption, str]:
    """Return the option with its measured cost and speed-up, and "measured".

    When the trial runs out of time, the expected values stay, with a cost of at least twice the time spent, and
    "expected".
    """
    left = client.seconds_left()
    trial = client.measure(shape, plan.batch_tokens, TRIAL_S, compiled=option.how)
    if trial is None:
        return replace(option, cost_s=max(option.cost_s, 2 * left)), "expected"
    rate = trial.tokens_per_second(plan.batch_tokens)
    speedup = rate / trials[shape].tokens_per_second(plan.batch_tokens)
    detail(
        f"measured compiled: {rate:,.0f} tokens/s, {speedup:.2f} times the speed, after"
        f" {trial.compile_s:.0f} s of compilation"
    )
    return replace(option, cost_s=trial.compile_s, speedup=speedup, cache=trial.compile_cache), "measured"
