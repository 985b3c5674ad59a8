"""From a budget to a plan: which size, how many tokens, which batch and learning rate, and what else was close.

Every candidate shape is charged at its own speed: tokens that fit into the budget at the measured (or stated) rate, the
compute 6ND those tokens amount to, and how far its size is from the law's optimum for that compute. The lowest expected
loss wins. No torch here: a plan for a device that is not at hand takes milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from budget.clock import Limits
from budget.flops import flops_6nd_per_token, flops_per_token
from budget.laws import Law, relative_loss
from errors import UserError
from model.shape import Shape

ASPECT = (40, 100)  # n_embd / n_layer; Hoffmann et al. 2022, Table A9: 40..99, median 64
SMALL_WIDTH, SMALL_ASPECT = (
    256,
    (16, 100),
)  # below any table the grid would be too coarse: nanoGPT's CPU demo is 4 x 128
SHORTLIST = (0.5, 0.75, 1.0, 1.5, 2.2, 3.3)  # sizes to measure, relative to the law's optimum at the first estimate
TIE = 0.005  # candidates within 0.5 % of the best expected loss are called close
MIN_STEPS = 1000  # below this many steps a smaller batch beats a larger one (recipe reports of 5-minute runs)
LR_RANGE = (3e-4, 4e-3)  # Step Law is not extrapolated beyond what anyone trained with
SHORTEST_BLOCK = 256
REPEAT_WARNING = 4.0  # epochs; beyond, repeated tokens lose their value (Muennighoff et al. 2023)


@dataclass(frozen=True)
class Request:
    """What the plan is for. `template` carries the architecture, block size and vocabulary; None sizes are free.

    flops_per_second: sustained rate to assume where a shape was not measured. overhead_s: of the hours, what is not
    training (set-up, compilation, final evaluation). The other None fields are the user's to fix and ours to choose.
    """

    limits: Limits
    template: Shape
    law: Law
    n_layer: int | None = None
    n_head: int | None = None
    n_embd: int | None = None
    flops_per_second: float | None = None
    overhead_s: float = 0.0
    batch_tokens: int | None = None
    learning_rate: float | None = None
    corpus_tokens: int | None = None


@dataclass(frozen=True)
class Alternative:
    """A candidate, what it would have reached and why it lost. `worse`: expected loss, relative to the choice."""

    n_layer: int
    n_head: int
    n_embd: int
    parameters: int
    tokens: int
    tokens_per_second: float | None
    worse: float
    reason: str


@dataclass(frozen=True)
class Plan:
    """What to train. `parameters_law` is N as the law counts it; `optimum` the law's own answer (N, D)
    for this many FLOPs."""

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    parameters: int
    parameters_law: int
    tokens: int
    flops: float
    flops_6nd: float
    steps: int
    batch_tokens: int
    learning_rate: float
    beta2: float
    hours: float | None
    tokens_per_second: float | None
    epochs: float | None
    predicted_loss: float | None
    law: str
    optimum: dict[str, float]
    alternatives: list[Alternative]
    source: dict[str, str]
    notes: list[str] = field(default_factory=list)
    mfu: float | None = None
    micro_batch: int | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(content: dict[str, Any]) -> Plan:
        return Plan(**{**content, "alternatives": [Alternative(**row) for row in content["alternatives"]]})

    def sized(self, template: Shape) -> Shape:
        """The template with the plan's sizes."""
        sizes = {name: getattr(self, name) for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")}
        return replace(template, **sizes)


def overhead_estimate(seconds: float) -> float:
    """Seconds of a budget that do not train, before any of it was measured: set-up, compilation, final evaluation."""
    return min(60.0, 8.0 + 0.02 * seconds)


def block_size_for(flops: float) -> int:
    """Context length by compute: short below 1e17 FLOPs, where a step of few tokens should still hold several
    sequences; 512 up to 1e19, as competition runs of 1e18 use it; 1024, GPT-2's, above."""
    return SHORTEST_BLOCK if flops < 1e17 else 512 if flops < 1e19 else 1024


def batch_for(tokens: float, flops: float, block_size: int) -> int:
    """Tokens per optimizer step: the geometric mean of two measured laws, to the nearest power of two.

    Step Law (arXiv 2503.04715): 0.58 D^0.571; DeepSeek LLM (2401.02954): 0.2920 C^0.3271. At most D / MIN_STEPS, at
    least one sequence.
    """
    wished = math.sqrt(0.58 * tokens**0.571 * 0.2920 * flops**0.3271)
    wished = max(1.0, min(wished, tokens / MIN_STEPS))
    return max(1, round(2 ** round(math.log2(wished)) / block_size)) * block_size


def learning_rate_for(shape: Shape, tokens: float, batch_tokens: int) -> float:
    """Peak learning rate of AdamW: Step Law (arXiv 2503.04715), 1.79 N^-0.713 D^0.307 with N without the vocabulary,
    times sqrt(batch / its batch), times 0.7 where queries and keys are not normalised, clipped to LR_RANGE."""
    law = 1.79 * max(1, shape.non_vocab_parameters()) ** -0.713 * tokens**0.307
    law *= math.sqrt(batch_tokens / (0.58 * tokens**0.571)) * (1.0 if shape.qk_norm else 0.7)
    return float(f"{min(max(law, LR_RANGE[0]), LR_RANGE[1]):.2g}")


def beta2_for(batch_tokens: int) -> float:
    """Second-moment decay: 0.95 is too short for small batches (Porian et al. 2024), so 0.99 below 2^18 tokens."""
    return 0.95 if batch_tokens >= 2**18 else 0.99


def heads_for(n_embd: int) -> int:
    """Heads of 64, of 128 from a width of 1024 on (Hoffmann et al. 2022, Table A9)."""
    size = 128 if n_embd >= 1024 and n_embd % 128 == 0 else 64
    return max(1, n_embd // size)


def candidates(request: Request) -> list[Shape]:
    """Every sensible shape that respects what the user fixed, by size. Never empty."""
    widths = [request.n_embd] if request.n_embd else [*range(64, 1024, 64), *range(1024, 8193, 128)]
    found = []
    for width in widths:
        low, high = SMALL_ASPECT if width <= SMALL_WIDTH else ASPECT
        layers = range(max(1, math.ceil(width / high)), max(1, width // low) + 1)
        if request.n_layer:
            layers = (
                range(request.n_layer, request.n_layer + 1) if request.n_embd or request.n_layer in layers else range(0)
            )
        for n_layer in layers:
            n_head = request.n_head or heads_for(width)
            if width % n_head == 0:
                found.append(replace(request.template, n_layer=n_layer, n_head=n_head, n_embd=width))
    if not found:  # a depth or head count that no width of the grid goes with: let the aspect ratio give way
        width = max(64, 64 * (request.n_layer or 1)) * (request.n_head or 1)
        found = [replace(request.template, n_layer=request.n_layer or 1, n_head=request.n_head or 1, n_embd=width)]
    return sorted(found, key=lambda shape: shape.matmul_parameters())


def tokens_within(request: Request, shape: Shape, tokens_per_second: float | None, batch_tokens: int | None) -> float:
    """Training tokens that the limits leave for this shape; the tightest decides."""
    limits, fits = request.limits, []
    if limits.seconds is not None and tokens_per_second:
        fits.append(max(0.0, limits.seconds - request.overhead_s) * tokens_per_second)
    if limits.flops is not None:
        fits.append(limits.flops / flops_per_token(shape))
    if limits.tokens is not None:
        fits.append(limits.tokens)
    if limits.steps is not None:
        # Without a batch the two rules are solved together: D = steps x 0.58 D^0.571.
        fits.append(limits.steps * (batch_tokens or max(shape.block_size, (0.58 * limits.steps) ** (0.571 / 0.429))))
    return max(1.0, min(fits))


def assumed_speed(request: Request, shape: Shape) -> float | None:
    """Tokens per second at the sustained rate of the request."""
    return request.flops_per_second / flops_per_token(shape) if request.flops_per_second else None


def expected(request: Request, shape: Shape, speed: float | None) -> float:
    """ln of the expected loss up to a constant; comparable between shapes only."""
    tokens = tokens_within(request, shape, speed, request.batch_tokens)
    return relative_loss(request.law, shape.matmul_parameters(), tokens)


def shortlist(request: Request) -> list[Shape]:
    """A handful of shapes worth measuring: around the best one at the assumed rate, spread over SHORTLIST sizes."""
    shapes = candidates(request)
    best = min(shapes, key=lambda shape: expected(request, shape, assumed_speed(request, shape)))
    chosen: dict[Shape, None] = {}
    for factor in SHORTLIST:
        target = math.log(factor * best.matmul_parameters())
        near = min(
            shapes, key=lambda shape: (round(abs(math.log(shape.matmul_parameters()) - target), 1), _skew(shape))
        )
        chosen.setdefault(near)
    return list(chosen)


def _skew(shape: Shape) -> float:
    """Distance of the aspect ratio from 64, the median of Hoffmann et al.'s Table A9, in ln."""
    return abs(math.log(shape.n_embd / shape.n_layer / 64))


def make_plan(request: Request, speeds: dict[Shape, float] | None = None, speed_source: str = "assumed") -> Plan:
    """The plan for a request. With `speeds` (tokens per second, measured) only those shapes compete."""
    speed: Callable[[Shape], float | None]
    if speeds is not None:
        shapes, speed = list(speeds), lambda shape: speeds[shape]
    else:
        shapes, speed = candidates(request), lambda shape: assumed_speed(request, shape)
    # Differences below a ten-thousandth mean nothing: among those the usual proportions win over deep and thin ones.
    ranked = sorted(shapes, key=lambda shape: (round(expected(request, shape, speed(shape)), 4), _skew(shape)))
    best, rate = ranked[0], speed(ranked[0])
    tokens = tokens_within(request, best, rate, request.batch_tokens)
    parameters = best.matmul_parameters()
    compute = 6 * parameters * tokens
    batch = request.batch_tokens or batch_for(tokens, compute, best.block_size)
    tokens = tokens_within(request, best, rate, batch)  # once more: a limit of steps is tokens only now
    steps = int(tokens // batch)
    if steps < 1:
        raise UserError(_too_small(request.limits, tokens, batch, request.overhead_s + batch / rate if rate else None))
    tokens = steps * batch
    epochs = tokens / request.corpus_tokens if request.corpus_tokens else None
    flops = tokens * flops_per_token(best)
    optimum = {"flops": flops, "parameters": request.law.parameters(flops), "tokens": request.law.tokens(flops)}
    chosen_lr = request.learning_rate or learning_rate_for(best, tokens, batch)
    return Plan(
        n_layer=best.n_layer,
        n_head=best.n_head,
        n_embd=best.n_embd,
        block_size=best.block_size,
        vocab_size=best.vocab_size,
        parameters=best.parameters(),
        parameters_law=parameters,
        tokens=tokens,
        flops=flops,
        flops_6nd=tokens * flops_6nd_per_token(best),
        steps=steps,
        batch_tokens=batch,
        learning_rate=chosen_lr,
        beta2=beta2_for(batch),
        hours=tokens / rate / 3600 if rate else None,
        tokens_per_second=rate,
        epochs=epochs,
        predicted_loss=None,  # a literature law's absolute loss does not transfer between corpora and vocabularies
        law=request.law.name,
        optimum=optimum,
        alternatives=_alternatives(request, best, ranked[1:], speed),
        source={
            "size": "fixed" if len(shapes) == 1 and request.n_layer and request.n_embd else request.law.name,
            "tokens_per_second": speed_source if rate else "none",
            "batch_tokens": "fixed" if request.batch_tokens else "step-law+deepseek",
            "learning_rate": "fixed" if request.learning_rate else "step-law",
        },
        notes=_notes(request, best, compute, epochs, steps),
    )


def _too_small(limits: Limits, tokens: float, batch: int, needed_s: float | None) -> str:
    """The one line for a budget that does not hold a single step."""
    given = {name: getattr(limits, name) for name in ("hours", "flops", "tokens", "steps")}
    shown = ", ".join(f"budget.{name}={value:g}" for name, value in given.items() if value is not None)
    mend = f"give it at least budget.hours={1.1 * needed_s / 3600:.2g}" if needed_s and limits.hours else "raise it"
    return f"{shown} does not hold one step of {batch:,} tokens (room for {tokens:,.0f}); {mend} or lower optim.batch_tokens"


def _alternatives(
    request: Request, best: Shape, others: list[Shape], speed: Callable[[Shape], float | None]
) -> list[Alternative]:
    """The runners-up: the five closest, and where the grid is large, one clearly smaller and one clearly larger."""
    size = best.matmul_parameters()
    shown = others[:5]
    smaller = [shape for shape in others if shape.matmul_parameters() <= 0.5 * size]
    larger = [shape for shape in others if shape.matmul_parameters() >= 2 * size]
    shown += [shape for shape in smaller[:1] + larger[:1] if shape not in shown]
    reference = expected(request, best, speed(best))
    reference_compute = 6 * size * tokens_within(request, best, speed(best), request.batch_tokens)
    rows = []
    for shape in shown:
        rate = speed(shape)
        tokens = tokens_within(request, shape, rate, request.batch_tokens)
        worse = math.expm1(expected(request, shape, rate) - reference)
        compute = 6 * shape.matmul_parameters() * tokens
        rows.append(
            Alternative(
                shape.n_layer,
                shape.n_head,
                shape.n_embd,
                shape.parameters(),
                int(tokens),
                rate,
                worse,
                _reason(request.law, shape, compute, reference_compute, worse),
            )
        )
    return rows


def _reason(law: Law, shape: Shape, compute: float, reference: float, worse: float) -> str:
    """Why a shape lost, in a few words."""
    ratio = shape.matmul_parameters() / law.parameters(compute)
    size = f"{ratio:.2g}x the law's size" if not 0.9 <= ratio <= 1.1 else "the law's size"
    share = compute / reference
    speed = f", {1 - share:.0%} less compute in the same budget" if share < 0.97 else ""
    speed = f", {share - 1:.0%} more compute in the same budget" if share > 1.03 else speed
    return ("close: " if worse < TIE else "") + size + speed


def _notes(request: Request, shape: Shape, compute: float, epochs: float | None, steps: int) -> list[str]:
    """What a reader should know before believing the plan."""
    notes = []
    if request.law.extrapolates(compute):
        low, high = request.law.fitted
        notes.append(
            f"{request.law.name} was measured from {low:.0e} to {high:.0e} FLOPs; {compute:.1e} is extrapolated"
        )
    if epochs and epochs > REPEAT_WARNING:
        notes.append(
            f"the corpus is repeated {epochs:.1f} times; beyond {REPEAT_WARNING:.0f} epochs more text helps more"
        )
    vocabulary = shape.vocab_size * shape.n_embd
    if vocabulary > 0.75 * shape.matmul_parameters():
        share = vocabulary / shape.matmul_parameters()
        notes.append(f"the vocabulary is {share:.0%} of the model; a smaller data.tokenizer leaves more for the blocks")
    if steps < MIN_STEPS / 10:
        notes.append(f"only {steps} optimizer steps fit; loss at so few steps depends more on luck than on the plan")
    return notes
