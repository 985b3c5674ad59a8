"""From a budget to a plan: which size, how many tokens, which batch and learning rate, and what else was close.

Every candidate shape is charged at its own speed: tokens that fit into the budget at the measured (or stated) rate, the
compute 6ND those tokens amount to, and how far its size is from the law's optimum for that compute. The lowest expected
loss wins. No torch here: a plan for a device that is not at hand takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from budget.clock import Limits
from budget.flops import flops_6nd_per_token, flops_per_token
from budget.laws.published import LOCAL, Law, curve_source, effective_tokens, law_range, relative_loss, support
from budget.planner.candidates import candidates, least_memory
from budget.planner.hyperparameters import (
    GIVEN_STEPS,
    MUON_GAIN,
    STEP_RULES,
    StepRule,
    batch_efficiency,
    batch_for,
    beta2_for,
    dropout_for,
    learning_rate_for,
    learning_rates,
    optimizer_for,
    tokens_in_steps,
    warmup_for,
    weight_decay_for,
    weight_decay_range,
)
from budget.planner.messages import budget_too_small, does_not_fit, notes, too_many_epochs
from budget.planner.plan import Alternative, Choice, Plan, Request
from common.errors import UserError
from device.specs import width_factor
from model.config import PLAIN, Shape

SHORTLIST = (0.5, 0.75, 1.0, 1.5, 2.2, 3.3)  # sizes to measure, relative to the law's optimum at the first estimate


NEAR = 0.05  # in ln N: a size so near is near enough; proportions an e-fold off the usual ones count as much


TIE = 0.005  # candidates within 0.5 % of the best expected loss are called close


NEAR_OPTIMAL = 0.01  # sizes within 1 % of the best expected loss: the flat bottom that measured isoFLOP curves have


CURVE_HIGHEST, CURVE_POINTS = 0.2, 100


def overhead_estimate(limits: Limits) -> float:
    """Seconds of a budget that do not train, before any of it was measured: set-up, compilation, final evaluation."""
    if limits.seconds is None or limits.counts == "training":
        return 0.0
    return min(60.0, 8.0 + 0.02 * limits.seconds)


def tokens_in_budget(
    request: Request, shape: Shape, tokens_per_second: float | None, batch_tokens: int | None
) -> float:
    """Training tokens that the limits leave for this shape; the tightest decides."""
    limits, fits = request.limits, []
    if limits.seconds is not None and tokens_per_second:
        fits.append(max(0.0, limits.seconds - request.overhead_s) * tokens_per_second)
    if limits.flops is not None:
        fits.append(limits.flops / flops_per_token(shape))
    if limits.tokens is not None:
        fits.append(limits.tokens)
    if limits.steps is not None:
        open_batch = tokens_in_steps(limits.steps, shape.matmul_parameters(), shape.block_size)
        fits.append(limits.steps * batch_tokens if batch_tokens else open_batch)
    return max(1.0, min(fits))


def assumed_speed(request: Request, shape: Shape) -> float | None:
    """Tokens per second at the sustained rate of the request."""
    if not request.flops_per_second:
        return None
    return request.flops_per_second * width_factor(request.half_width, shape.n_embd) / flops_per_token(shape)


def effective_training_tokens(request: Request, shape: Shape, tokens: float) -> float:
    """New tokens in small batches that these are worth: less where the corpus is repeated, where the user's batch is
    larger than the rule's, whose cost the laws' own runs have paid, and where Muon would not pay."""
    worth = effective_tokens(tokens, request.corpus_tokens)
    _, optimizer = batch_and_optimizer(request, shape, tokens)
    if request.optimizer is None and optimizer == "adamw":
        worth /= MUON_GAIN  # beside shapes that Muon pays for, and whose speed has its cost in it
    if request.batch_tokens is None:
        return worth
    usual = batch_for(tokens, 6 * shape.matmul_parameters() * tokens, shape.block_size, STEP_RULES[optimizer])
    return worth * min(1.0, batch_efficiency(request.batch_tokens, tokens) / batch_efficiency(usual, tokens))


def expected_log_loss(request: Request, shape: Shape, speed: float | None) -> float:
    """ln of the expected loss up to a constant; comparable between shapes only."""
    tokens = tokens_in_budget(request, shape, speed, request.batch_tokens)
    return relative_loss(request.law, shape.matmul_parameters(), effective_training_tokens(request, shape, tokens))


def _skew(shape: Shape) -> float:
    """Distance of the aspect ratio from 64, the median of Hoffmann et al.'s Table A9, in ln."""
    return abs(math.log(shape.n_embd / shape.n_layer / 64))


def step_rule(limits: Limits, optimizer: str) -> StepRule:
    """How many steps a run is to have."""
    return GIVEN_STEPS if limits.steps is not None else STEP_RULES[optimizer]


def batch_and_optimizer(request: Request, shape: Shape, tokens: float, saturation: float = 0.0) -> tuple[int, str]:
    """What the user did not fix of them, by the rules: Muon with the batch that it bears, or, where it would not pay at that,
    AdamW with its own."""
    flops, given = 6 * shape.matmul_parameters() * tokens, request.batch_tokens or request.measured_batch
    batch, optimizer = 0, ""
    for optimizer in [request.optimizer] if request.optimizer else ["muon", "adamw"]:
        rule = step_rule(request.limits, optimizer)
        batch = given or batch_for(tokens, flops, shape.block_size, rule, saturation)
        if optimizer_for(shape, batch) == optimizer:
            break
    return batch, optimizer


def choose(request: Request, speeds: dict[Shape, float] | None = None, saturation: float = 0.0) -> Choice:
    """The best shape and its batch. With `speeds` (tokens per second, measured) only those shapes compete. `saturation`:
    tokens per step that the device was measured to need for full speed. Raises UserError where the request has no plan."""
    speed: Callable[[Shape], float | None]
    if speeds is not None:
        shapes, speed = list(speeds), lambda shape: speeds[shape]
    else:
        shapes, speed = candidates(request), lambda shape: assumed_speed(request, shape)
    # Differences below a ten-thousandth mean nothing: among those the usual proportions win over deep and thin ones.
    ranked = sorted(shapes, key=lambda shape: (round(expected_log_loss(request, shape, speed(shape)), 4), _skew(shape)))
    best, rate = ranked[0], speed(ranked[0])
    if request.memory is not None and least_memory(best) > request.memory:
        raise UserError(does_not_fit(best, request.memory))
    tokens = tokens_in_budget(request, best, rate, request.batch_tokens)
    batch, optimizer = batch_and_optimizer(request, best, tokens, saturation)
    tokens = tokens_in_budget(request, best, rate, batch)  # once more: a limit of steps is tokens only now
    steps = int(tokens // batch)
    if steps < 1:
        raise UserError(
            budget_too_small(request.limits, tokens, batch, request.overhead_s + batch / rate if rate else None)
        )
    epochs = steps * batch / request.corpus_tokens if request.corpus_tokens else None
    if epochs and epochs > request.max_epochs:
        raise UserError(too_many_epochs(steps * batch, request, epochs))
    return Choice(ranked, speed, batch, optimizer, steps, epochs)


def shortlist(choice: Choice) -> list[Shape]:
    """A handful of shapes worth measuring: around the one chosen at the assumed rate, spread over SHORTLIST sizes."""
    chosen: dict[Shape, None] = {}
    for factor in SHORTLIST:
        target = math.log(factor * choice.shape.matmul_parameters())

        def distance(shape: Shape, target: float = target) -> float:
            return max(NEAR, abs(math.log(shape.matmul_parameters()) - target)) + NEAR * _skew(shape)

        chosen.setdefault(min(choice.ranked, key=distance))
    return list(chosen)


def make_plan(
    request: Request,
    speeds: dict[Shape, float] | None = None,
    speed_source: str = "assumed",
    saturation: float = 0.0,
) -> Plan:
    """The plan for a request, `speeds` and `saturation` as in `choose`: what was chosen, and all that is known about it."""
    choice = choose(request, speeds, saturation)
    best, rate, law = choice.shape, choice.speed(choice.shape), request.law
    tokens, batch, optimizer, epochs = choice.tokens, choice.batch_tokens, choice.optimizer, choice.epochs
    parameters = best.matmul_parameters()
    compute, flops = 6 * parameters * tokens, tokens * flops_per_token(best)
    peak_rate = request.learning_rate or learning_rate_for(best, tokens, batch, optimizer)
    decay = request.weight_decay
    if decay is None:
        decay = weight_decay_for(parameters, tokens, batch, peak_rate)
    all_rates = learning_rates(best, tokens, batch)
    predicted = law.predict(parameters, effective_tokens(tokens, request.corpus_tokens))
    curve = _curve(request, best, rate)
    near = [size for size, worse in curve if worse <= NEAR_OPTIMAL] or [float(parameters)]
    return Plan(
        n_layer=best.n_layer,
        n_head=best.n_head,
        n_embd=best.n_embd,
        block_size=best.block_size,
        vocab_size=best.vocab_size,
        bigram_rows=best.bigram_rows,
        parameters=best.parameters(),
        parameters_law=parameters,
        tokens=tokens,
        flops=flops,
        flops_6nd=tokens * flops_6nd_per_token(best),
        steps=choice.steps,
        batch_tokens=batch,
        learning_rate=peak_rate,
        learning_rate_spread=(min(all_rates.values()), max(all_rates.values())),
        weight_decay=decay,
        warmup=request.warmup if request.warmup is not None else warmup_for(parameters, tokens),
        beta2=request.beta2 if request.beta2 is not None else beta2_for(batch),
        optimizer=optimizer,
        block={knob: getattr(best, knob) for knob in PLAIN},
        dropout=request.dropout if request.dropout is not None else dropout_for(epochs),
        hours=tokens / rate / 3600 if rate else None,
        tokens_per_second=rate,
        epochs=epochs,
        predicted_loss=predicted[0] if predicted else None,
        predicted_loss_interval=predicted[1:] if predicted else None,
        law=law.name,
        standing=support(law, compute),
        optimum={"flops": flops, "parameters": law.parameters(flops), "tokens": law.tokens(flops)},
        bracket=law_range(flops, law if law.name == LOCAL else None),
        interval=law.interval(flops),
        flat=(min(near), max(near)),
        alternatives=_alternatives(request, choice),
        curve=curve,
        source=_sources(request, len(choice.ranked), batch, saturation, speed_source if rate else "none")
        | {
            "flat": law.name if law.curve else curve_source(compute),
            "learning_rate": _ruled(
                request.learning_rate, "step-law", abs(peak_rate / all_rates["step-law"] - 1) > 0.06
            ),
            "weight_decay": _ruled(request.weight_decay, "power-lines", decay in weight_decay_range(parameters)),
        },
        notes=notes(request, best, compute, epochs, choice.steps),
    )


def _ruled(fixed: object, rule: str, cut: bool = False) -> str:
    """Where a choice is from: the user, or a rule, whose answer was cut off or not."""
    return "fixed" if fixed is not None else f"{rule}, cut" if cut else rule


def _sources(request: Request, n_shapes: int, batch: int, saturation: float, speed: str) -> dict[str, str]:
    """Where each choice is from, in a word or two."""
    return {
        "size": "fixed" if n_shapes == 1 and request.n_layer and request.n_embd else request.law.name,
        "tokens_per_second": speed,
        "block": "compute" if request.block_by_compute else "fixed",
        "batch_tokens": _ruled(request.batch_tokens, "saturation" if batch <= saturation else "step-law+deepseek"),
        "warmup": _ruled(request.warmup, "porian"),
        "beta2": _ruled(request.beta2, "porian"),
        "optimizer": _ruled(request.optimizer, "overhead"),
        "dropout": _ruled(request.dropout, "epochs"),
    }


def _curve(request: Request, best: Shape, rate: float | None) -> list[tuple[float, float]]:
    """(N, expected loss relative to the best) of the best shape of each size, by size, all as fast as the chosen one;
    about CURVE_POINTS of them, up to CURVE_HIGHEST."""
    assumed = request
    if rate:
        reference = flops_per_token(best) * rate / width_factor(request.half_width, best.n_embd)
        assumed = replace(request, flops_per_second=reference)
    free = replace(assumed, n_layer=None, n_embd=None, n_head=None)
    scores: dict[float, float] = {}
    for shape in [*candidates(free), best]:
        score = expected_log_loss(free, shape, assumed_speed(free, shape))
        size = float(shape.matmul_parameters())
        scores[size] = min(score, scores.get(size, math.inf))
    least = min(scores.values())
    worse = [(size, math.expm1(score - least)) for size, score in sorted(scores.items())]
    near = [point for point in worse if point[1] <= CURVE_HIGHEST or point[0] == best.matmul_parameters()]
    stride = -(-len(near) // CURVE_POINTS)
    return [point for i, point in enumerate(near) if i % stride == 0 or point[0] == best.matmul_parameters()]


def _alternatives(request: Request, choice: Choice) -> list[Alternative]:
    """The runners-up: all that are close, at least five, and one clearly smaller and one clearly larger."""
    best, others, speed = choice.shape, choice.ranked[1:], choice.speed
    size = best.matmul_parameters()
    reference = expected_log_loss(request, best, speed(best))
    close = [shape for shape in others if math.expm1(expected_log_loss(request, shape, speed(shape)) - reference) < TIE]
    shown = close if len(close) > 5 else others[:5]
    smaller = [shape for shape in others if shape.matmul_parameters() <= 0.5 * size]
    larger = [shape for shape in others if shape.matmul_parameters() >= 2 * size]
    shown += [shape for shape in smaller[:1] + larger[:1] if shape not in shown]
    reference_compute = 6 * size * tokens_in_budget(request, best, speed(best), request.batch_tokens)
    rows = []
    for shape in shown:
        rate = speed(shape)
        tokens = tokens_in_budget(request, shape, rate, request.batch_tokens)
        worse = math.expm1(expected_log_loss(request, shape, rate) - reference)
        compute = 6 * shape.matmul_parameters() * tokens
        rows.append(
            Alternative(
                shape.n_layer,
                shape.n_head,
                shape.n_embd,
                shape.parameters(),
                shape.matmul_parameters(),
                int(tokens),
                rate,
                worse,
                _reason(request.law, shape, best, compute, reference_compute, worse),
            )
        )
    return rows


def _reason(law: Law, shape: Shape, best: Shape, compute: float, reference: float, worse: float) -> str:
    """Why a shape lost, in a few words."""
    ratio = shape.matmul_parameters() / law.parameters(compute)
    size = f"{ratio:.2g}x the law's size" if not 0.9 <= ratio <= 1.1 else "the law's size"
    share = compute / reference
    speed = f", {1 - share:.0%} less compute in the same budget" if share < 0.97 else ""
    speed = f", {share - 1:.0%} more compute in the same budget" if share > 1.03 else speed
    if worse < 1e-4 and not speed and _skew(shape) > _skew(best):
        return f"as good; n_embd / n_layer = {shape.n_embd / shape.n_layer:.0f} is further from 64"
    return ("close: " if worse < TIE else "") + size + speed
