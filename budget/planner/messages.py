"""What a plan says in words: the one line for each budget that holds no plan, and what to know before believing one."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from budget.laws.published import LAWS, support
from budget.planner.candidates import least_memory
from model.config import Shape

if TYPE_CHECKING:
    from budget.clock import Limits
    from budget.planner.plan import Request

REPEAT_WARNING = 4.0  # epochs; beyond, repeated tokens lose their value (Muennighoff et al. 2023)
STEPS_NOTE = 150  # optimizer steps; fewer were never good (rules.STEP_RULES)
VOCABULARY_WARNING = 0.5  # share of the model
VOCABULARIES = ((16384, "bpe-16384"), (8192, "bpe-8192"), (4096, "bpe-4096"), (2048, "bpe-2048"), (1024, "bpe-1024"))


def does_not_fit(shape: Shape, memory: float) -> str:
    """The one line for sizes that the user fixed and no device of this memory can train."""
    return (
        f"{shape.n_layer} layers of width {shape.n_embd}, vocabulary {shape.vocab_size}: training takes at least"
        f" {least_memory(shape) / 2**30:,.1f} GiB and the device has {memory / 2**30:,.1f}; choose smaller model.* sizes"
        " (null: planned) or another device="
    )


def too_many_epochs(tokens: float, request: Request, epochs: float) -> str:
    """The one line for a corpus that the budget would repeat too often."""
    return (
        f"the plan repeats the corpus {epochs:.1f} times ({tokens:,.0f} training tokens of {request.corpus_tokens:,.0f});"
        f" beyond {request.max_epochs:g} epochs repeated text is worth too little: give more text with data.path=, a smaller"
        f" budget, or allow it with plan.max_epochs={math.ceil(epochs)}"
    )


def budget_too_small(limits: Limits, tokens: float, batch: int, needed_s: float | None) -> str:
    """The one line for a budget that does not hold a single step."""
    given = {name: getattr(limits, name) for name in ("hours", "flops", "tokens", "steps")}
    shown = ", ".join(f"budget.{name}={value:g}" for name, value in given.items() if value is not None)
    mend = f"give it at least budget.hours={1.1 * needed_s / 3600:.2g}" if needed_s and limits.hours else "raise it"
    return f"{shown} does not hold one step of {batch:,} tokens (room for {tokens:,.0f}); {mend} or lower optim.batch_tokens"


def notes(request: Request, shape: Shape, compute: float, epochs: float | None, steps: int) -> list[str]:
    """What a reader should know before believing the plan."""
    notes = list(request.notes)
    stands = support(request.law, compute)
    if stands == "extrapolated":
        low, high = request.law.measured
        own = compute < 1e16 and request.law.name in LAWS  # no published law was measured there
        better = "; runs of your own say more: make law, then law=local" if own else ""
        notes.append(
            f"{request.law.name} was measured from {low:.0e} to {high:.0e} FLOPs; {compute:.1e} is extrapolated{better}"
        )
    if epochs and epochs > REPEAT_WARNING:
        notes.append(
            f"the corpus is repeated {epochs:.1f} times; beyond {REPEAT_WARNING:.0f} epochs more text helps more"
        )
    share = shape.vocab_size * shape.n_embd / shape.matmul_parameters()
    if share > VOCABULARY_WARNING:
        rest = (1 - share) * shape.matmul_parameters()
        fits = (name for rows, name in VOCABULARIES if rows * shape.n_embd <= rest and rows < shape.vocab_size)
        notes.append(
            f"the vocabulary is {share:.0%} of the model; data.tokenizer={next(fits, 'bytes')} leaves more for the blocks"
        )
    if steps < STEPS_NOTE:
        notes.append(f"only {steps} optimizer steps fit; loss at so few steps depends more on luck than on the plan")
    return notes
