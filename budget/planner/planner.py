"""From a budget to a plan: model size, training tokens, batch size, learning rate, and the alternatives that came close.

Every candidate shape is scored by its expected loss at its own speed. The budget and the speed give the tokens D; N
and D give the compute 6ND; the law gives the best loss for that compute and the penalty for being off the optimal
size. The shape with the lowest expected loss wins. This module imports no torch: a plan for an absent device takes
milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

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

SHORTLIST = (0.5, 0.75, 1.0, 1.5, 2.2, 3.3)  # sizes to measure, relative to the best one at the assumed speed
NEAR = 0.05  # in ln N: closer sizes count as equal; also the weight of the aspect ratio's distance from 64
USUAL_ASPECT = 64  # n_embd / n_layer; the median of Hoffmann et al. 2022, Table A9
TIE = 0.005  # candidates within 0.5 % of the best expected loss are called close
# Sizes within 1 % of the best expected loss; measured isoFLOP curves are this flat around the minimum.
NEAR_OPTIMAL = 0.01
CURVE_HIGHEST, CURVE_POINTS = 0.2, 100  # the curve of a plan: up to 20 % worse than the best, about 100 points
CLIPPED = 0.06  # relative; two-digit rounding changes a rate by at most 5 %, so a larger change means it was clipped


def overhead_estimate(limits: Limits) -> float:
    """Return the expected seconds of a budget that do not train: set-up, compilation and the final evaluation."""
    if limits.seconds is None or limits.counts == "training":
        return 0.0
    return min(60.0, 8.0 + 0.02 * limits.seconds)


# ---------------------------------------------------------------------------------------------------- scoring a shape


def tokens_in_budget(
    request: Request, shape: Shape, tokens_per_second: float | None, batch_tokens: int | None
) -> float:
    """Return the training tokens that the tightest limit allows for this shape, at least 1.

    A limit of steps needs the batch size; where it is None, the batch size follows from the rules.
    """
    limits, allowed = request.limits, []
    if limits.seconds is not None and tokens_per_second:
        allowed.append(max(0.0, limits.seconds - request.overhead_s) * tokens_per_second)
    if limits.flops is not None:
        allowed.append(limits.flops / flops_per_token(shape))
    if limits.tokens is not None:
        allowed.append(limits.tokens)
    if limits.steps is not None:
        by_rule = tokens_in_steps(limits.steps, shape.matmul_parameters(), shape.block_size)
        allowed.append(limits.steps * batch_tokens if batch_tokens else by_rule)
    return max(1.0, min(allowed))


def assumed_speed(request: Request, shape: Shape) -> float | None:
    """Return tokens per second at the request's sustained FLOP/s; None where the request gives none."""
    if not request.flops_per_second:
        return None
    return request.flops_per_second * width_factor(request.half_width, shape.n_embd) / flops_per_token(shape)


def effective_training_tokens(request: Request, shape: Shape, tokens: float) -> float:
    """Return the number of new tokens that would give the same loss as `tokens` of this run.

    Three effects reduce it: a repeated corpus (Muennighoff et al. 2023), AdamW where Muon does not pay, and a batch
    that the user made larger than the rule's. The laws' own runs already include the cost of the rule's batch.
    """
    effective = effective_tokens(tokens, request.corpus_tokens)
    _, optimizer = batch_and_optimizer(request, shape, tokens)
    if request.optimizer is None and optimizer == "adamw":
        effective /= MUON_GAIN  # the competing shapes train with Muon, and its cost is part of their speed
    if request.batch_tokens is None:
        return effective
    by_rule = batch_for(tokens, 6 * shape.matmul_parameters() * tokens, shape.block_size, STEP_RULES[optimizer])
    return effective * min(1.0, batch_efficiency(request.batch_tokens, tokens) / batch_efficiency(by_rule, tokens))


def expected_log_loss(request: Request, shape: Shape, speed: float | None) -> float:
    """Return ln of the expected loss up to a constant, so only differences between shapes have a meaning.

    `speed` is in tokens per second; None where no limit is in hours.
    """
    tokens = tokens_in_budget(request, shape, speed, request.batch_tokens)
    return relative_loss(request.law, shape.matmul_parameters(), effective_training_tokens(request, shape, tokens))


def _aspect_distance(shape: Shape) -> float:
    """Return the absolute difference in ln between the shape's n_embd / n_layer and USUAL_ASPECT."""
    return abs(math.log(shape.n_embd / shape.n_layer / USUAL_ASPECT))


# --------------------------------------------------------------------------------------------------- choosing a shape


def step_rule(limits: Limits, optimizer: str) -> StepRule:
    """Return how many steps a run should have at least; a limit of steps replaces the optimizer's rule."""
    return GIVEN_STEPS if limits.steps is not None else STEP_RULES[optimizer]


def batch_and_optimizer(request: Request, shape: Shape, tokens: float, saturation: float = 0.0) -> tuple[int, str]:
    """Return (tokens per step, optimizer): what the user fixed, otherwise what the rules give.

    Muon is tried first, with Muon's batch size. Where its overhead does not pay at that batch, AdamW is chosen, with
    AdamW's batch size.
    """
    flops, given = 6 * shape.matmul_parameters() * tokens, request.batch_tokens or request.measured_batch
    batch, optimizer = 0, ""
    for optimizer in [request.optimizer] if request.optimizer else ["muon", "adamw"]:
        rule = step_rule(request.limits, optimizer)
        batch = given or batch_for(tokens, flops, shape.block_size, rule, saturation)
        if optimizer_for(shape, batch) == optimizer:
            break
    return batch, optimizer


def choose(request: Request, speeds: dict[Shape, float] | None = None, saturation: float = 0.0) -> Choice:
    """Return the best shape with its batch size, optimizer and number of steps.

    `speeds` are measured tokens per second; where given, only those shapes compete. `saturation` is the number of
    tokens per step from which the device was measured to run at full speed. Raises UserError where the budget has no
    plan.
    """
    speed: Callable[[Shape], float | None]
    if speeds is not None:
        shapes, speed = list(speeds), lambda shape: speeds[shape]
    else:
        shapes, speed = candidates(request), lambda shape: assumed_speed(request, shape)
    # Losses that are equal to four digits are a tie, which the more usual aspect ratio wins.
    ranked = sorted(
        shapes, key=lambda shape: (round(expected_log_loss(request, shape, speed(shape)), 4), _aspect_distance(shape))
    )
    best, rate = ranked[0], speed(ranked[0])
    if request.memory is not None and least_memory(best) > request.memory:
        raise UserError(does_not_fit(best, request.memory))
    tokens = tokens_in_budget(request, best, rate, request.batch_tokens)
    batch, optimizer = batch_and_optimizer(request, best, tokens, saturation)
    tokens = tokens_in_budget(request, best, rate, batch)  # again: a limit of steps depends on the batch
    steps = int(tokens // batch)
    if steps < 1:
        needed_s = request.overhead_s + batch / rate if rate else None
        raise UserError(budget_too_small(request.limits, tokens, batch, needed_s))
    epochs = steps * batch / request.corpus_tokens if request.corpus_tokens else None
    if epochs and epochs > request.max_epochs:
        raise UserError(too_many_epochs(steps * batch, request, epochs))
    return Choice(ranked, speed, batch, optimizer, steps, epochs)


def shortlist(choice: Choice) -> list[Shape]:
    """Return the shapes worth measuring: for each factor in SHORTLIST, the one nearest to that multiple of the best size."""
    selected: dict[Shape, None] = {}
    for factor in SHORTLIST:
        target = math.log(factor * choice.shape.matmul_parameters())

        def distance(shape: Shape, target: float = target) -> float:
            return max(NEAR, abs(math.log(shape.matmul_parameters()) - target)) + NEAR * _aspect_distance(shape)

        selected.setdefault(min(choice.ranked, key=distance))
    return list(selected)


# ------------------------------------------------------------------------------------------------------- the whole plan


def make_plan(
    request: Request,
    speeds: dict[Shape, float] | None = None,
    speed_source: str = "assumed",
    saturation: float = 0.0,
) -> Plan:
    """Return the plan for a request: the choice, its training settings, and how well the law supports it.

    `speeds` and `saturation` are as in `choose`. Raises UserError where the budget has no plan.
    """
    choice = choose(request, speeds, saturation)
    shape, tokens, rate, law = choice.shape, choice.tokens, choice.speed(choice.shape), request.law
    parameters = shape.matmul_parameters()
    compute, flops = 6 * parameters * tokens, tokens * flops_per_token(shape)
    predicted = law.predict(parameters, effective_tokens(tokens, request.corpus_tokens))
    curve = _loss_by_size(request, shape, rate)
    near_optimal = [size for size, worse in curve if worse <= NEAR_OPTIMAL] or [float(parameters)]
    settings, setting_sources = _training_settings(request, choice)
    return Plan(
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        n_embd=shape.n_embd,
        block_size=shape.block_size,
        vocab_size=shape.vocab_size,
        bigram_rows=shape.bigram_rows,
        block={option: getattr(shape, option) for option in PLAIN},
        parameters=shape.parameters(),
        parameters_law=parameters,
        tokens=tokens,
        flops=flops,
        flops_6nd=tokens * flops_6nd_per_token(shape),
        steps=choice.steps,
        batch_tokens=choice.batch_tokens,
        optimizer=choice.optimizer,
        **settings,
        hours=tokens / rate / 3600 if rate else None,
        tokens_per_second=rate,
        epochs=choice.epochs,
        predicted_loss=predicted[0] if predicted else None,
        predicted_loss_interval=predicted[1:] if predicted else None,
        law=law.name,
        standing=support(law, compute),
        optimum={"flops": flops, "parameters": law.parameters(flops), "tokens": law.tokens(flops)},
        bracket=law_range(flops, law if law.name == LOCAL else None),
        interval=law.interval(flops),
        flat=(min(near_optimal), max(near_optimal)),
        alternatives=_alternatives(request, choice),
        curve=curve,
        source={
            "size": "fixed" if len(choice.ranked) == 1 and request.n_layer and request.n_embd else law.name,
            "tokens_per_second": speed_source if rate else "none",
            "block": "compute" if request.block_by_compute else "fixed",
            "batch_tokens": _source(
                request.batch_tokens, "saturation" if choice.batch_tokens <= saturation else "step-law+deepseek"
            ),
            "optimizer": _source(request.optimizer, "overhead"),
            "corpus": request.corpus_source if request.corpus_tokens else "unknown",
            "flat": law.name if law.curve else curve_source(compute),
            **setting_sources,
        },
        notes=notes(request, shape, compute, choice.epochs, choice.steps),
        corpus_tokens=request.corpus_tokens,
    )


def _training_settings(request: Request, choice: Choice) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the plan's learning rate, weight decay, warm-up, beta2 and dropout, and the source of each."""
    shape, tokens, batch = choice.shape, choice.tokens, choice.batch_tokens
    parameters = shape.matmul_parameters()
    rates = learning_rates(shape, tokens, batch)
    learning_rate = request.learning_rate or learning_rate_for(shape, tokens, batch, choice.optimizer)
    weight_decay = request.weight_decay
    if weight_decay is None:
        weight_decay = weight_decay_for(parameters, tokens, batch, learning_rate)
    settings = {
        "learning_rate": learning_rate,
        "learning_rate_spread": (min(rates.values()), max(rates.values())),
        "weight_decay": weight_decay,
        "warmup": request.warmup if request.warmup is not None else warmup_for(parameters, tokens),
        "beta2": request.beta2 if request.beta2 is not None else beta2_for(batch),
        "dropout": request.dropout if request.dropout is not None else dropout_for(choice.epochs),
    }
    clipped = abs(learning_rate / rates["step-law"] - 1) > CLIPPED
    sources = {
        "learning_rate": _source(request.learning_rate, "step-law", clipped),
        "weight_decay": _source(request.weight_decay, "power-lines", weight_decay in weight_decay_range(parameters)),
        "warmup": _source(request.warmup, "porian"),
        "beta2": _source(request.beta2, "porian"),
        "dropout": _source(request.dropout, "epochs"),
    }
    return settings, sources


def _source(given: object, rule: str, clipped: bool = False) -> str:
    """Return "fixed" where the user gave a value, otherwise the name of the rule, and whether its value was clipped."""
    if given is not None:
        return "fixed"
    return f"{rule}, cut" if clipped else rule


def _loss_by_size(request: Request, best: Shape, rate: float | None) -> list[tuple[float, float]]:
    """Return (N, expected loss relative to the best) for the best shape of each size, sorted by N.

    All shapes are scored at the chosen shape's FLOP/s (`rate` is its tokens per second), adjusted for their width. The
    list has about CURVE_POINTS entries, up to CURVE_HIGHEST, and always includes the chosen size.
    """
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
    least, chosen = min(scores.values()), best.matmul_parameters()
    curve = [(size, math.expm1(score - least)) for size, score in sorted(scores.items())]
    shown = [point for point in curve if point[1] <= CURVE_HIGHEST or point[0] == chosen]
    stride = math.ceil(len(shown) / CURVE_POINTS)
    return [point for i, point in enumerate(shown) if i % stride == 0 or point[0] == chosen]


def _alternatives(request: Request, choice: Choice) -> list[Alternative]:
    """Return the runners-up: every close one, at least five in all, and one clearly smaller and one clearly larger size."""
    best, others, speed = choice.shape, choice.ranked[1:], choice.speed
    best_size = best.matmul_parameters()
    best_score = expected_log_loss(request, best, speed(best))
    best_compute = 6 * best_size * tokens_in_budget(request, best, speed(best), request.batch_tokens)

    def worse_by(shape: Shape) -> float:
        return math.expm1(expected_log_loss(request, shape, speed(shape)) - best_score)

    close = [shape for shape in others if worse_by(shape) < TIE]
    shown = close if len(close) > 5 else others[:5]
    smaller = [shape for shape in others if shape.matmul_parameters() <= 0.5 * best_size]
    larger = [shape for shape in others if shape.matmul_parameters() >= 2 * best_size]
    shown += [shape for shape in smaller[:1] + larger[:1] if shape not in shown]
    rows = []
    for shape in shown:
        tokens, worse = tokens_in_budget(request, shape, speed(shape), request.batch_tokens), worse_by(shape)
        compute = 6 * shape.matmul_parameters() * tokens
        rows.append(
            Alternative(
                n_layer=shape.n_layer,
                n_head=shape.n_head,
                n_embd=shape.n_embd,
                parameters=shape.parameters(),
                parameters_law=shape.matmul_parameters(),
                tokens=int(tokens),
                tokens_per_second=speed(shape),
                worse=worse,
                reason=_reason(request.law, shape, best, compute, best_compute, worse),
            )
        )
    return rows


def _reason(law: Law, shape: Shape, best: Shape, compute: float, best_compute: float, worse: float) -> str:
    """Return why a shape lost to `best`: its size relative to the law's optimum, its compute, or its proportions.

    `compute` and `best_compute` are 6ND in FLOPs; `worse` is the relative difference in expected loss.
    """
    ratio, share = shape.matmul_parameters() / law.parameters(compute), compute / best_compute
    size = f"{ratio:.2g}x the law's size" if not 0.9 <= ratio <= 1.1 else "the law's size"
    speed = ""
    if share < 0.97:
        speed = f", {1 - share:.0%} less compute in the same budget"
    elif share > 1.03:
        speed = f", {share - 1:.0%} more compute in the same budget"
    if worse < 1e-4 and not speed and _aspect_distance(shape) > _aspect_distance(best):
        aspect = shape.n_embd / shape.n_layer
        return f"equally good; n_embd / n_layer = {aspect:.0f} is further from the usual {USUAL_ASPECT}"
    return ("close: " if worse < TIE else "") + size + speed
