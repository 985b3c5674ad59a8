"""The planner's messages: one error line for each budget without a plan, and the notes that qualify a plan."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from budget.laws.published import LAWS, support
from budget.planner.candidates import least_memory
from common.format import format_count, format_number_of
from model.config import Shape

if TYPE_CHECKING:
    from budget.clock import Limits
    from budget.planner.plan import Request

REPEAT_WARNING = 4.0  # epochs; repeated tokens lose their value beyond that (Muennighoff et al. 2023)
FEW_STEPS = 150  # optimizer steps; shorter runs did poorly in every test (hyperparameters.STEP_RULES)
VOCABULARY_WARNING = 0.5  # share of the law's parameters that the vocabulary matrix may take before a note says so
LEAST_PUBLISHED_FLOPS = 1e16  # FLOPs; below them no published law has measurements
SMALLER_VOCABULARIES = (
    (16384, "bpe-16384"),
    (8192, "bpe-8192"),
    (4096, "bpe-4096"),
    (2048, "bpe-2048"),
    (1024, "bpe-1024"),
)


def does_not_fit(shape: Shape, memory: float) -> str:
    """Return the error for fixed model sizes that exceed the device's memory, `memory` in bytes."""
    layers = format_number_of(shape.n_layer, "layer")
    return (
        f"a model of {layers} of width {shape.n_embd} with a vocabulary of {shape.vocab_size:,} does not fit: training needs"
        f" at least {least_memory(shape) / 2**30:,.1f} GiB, the device has {memory / 2**30:,.1f} GiB; set smaller"
        " model.n_layer, model.n_embd or model.vocab_size (null lets the plan choose), or another device="
    )


def too_many_epochs(tokens: float, request: Request, epochs: float) -> str:
    """Return the error for a budget that repeats the corpus more often than `request.max_epochs`."""
    corpus_tokens = request.corpus_tokens or 0.0
    rough = request.corpus_source in ("known", "estimate")
    size = f"about {format_count(corpus_tokens)}" if rough else f"{corpus_tokens:,.0f}"
    corpus, remedy = f"the corpus ({size} tokens)", "add text with data.path="
    if request.most_repeated is not None:
        name = request.most_repeated
        corpus = f"{name}, the most repeated source of data.mix (all of it in {size} tokens of the mix)"
        remedy = f"give {name} more text or a smaller weight"
    return (
        f"the budget trains on {tokens:,.0f} tokens, {epochs:.1f} epochs of {corpus}; at most {request.max_epochs:g}"
        f" epochs are allowed, because repeated text lowers the loss less with each epoch: {remedy}, lower the budget,"
        f" or allow it with plan.max_epochs={math.ceil(epochs)}"
    )


def budget_too_small(limits: Limits, tokens: float, batch: int, needed_s: float | None) -> str:
    """Return the error for a budget below one optimizer step; `needed_s` is the time for one step and the overhead."""
    given = {name: getattr(limits, name) for name in ("hours", "flops", "tokens", "steps")}
    budget = ", ".join(f"budget.{name}={value:g}" for name, value in given.items() if value is not None)
    hint = "raise it"
    if needed_s and limits.hours:
        hint = f"give it at least budget.hours={1.1 * needed_s / 3600:.2g}"
    return (
        f"{budget} is too small for one step of {batch:,} tokens (there is room for {tokens:,.0f}); {hint} or lower"
        " optim.batch_tokens"
    )


def notes(request: Request, shape: Shape, compute: float, epochs: float | None, steps: int) -> list[str]:
    """Return the notes that qualify a plan: extrapolation, repetition, vocabulary share and the number of steps.

    `compute` is 6ND of the plan in FLOPs; `epochs` is None where the size of the corpus is unknown.
    """
    notes = list(request.notes)
    law = request.law
    if support(law, compute) == "extrapolated":
        low, high = law.measured
        own_runs = compute < LEAST_PUBLISHED_FLOPS and law.name in LAWS
        hint = "; to fit a law to your own runs: make law, then law=local" if own_runs else ""
        notes.append(
            f"{law.name} was measured from {low:.0e} to {high:.0e} FLOPs; at {compute:.1e} it is extrapolated{hint}"
        )
    if epochs and epochs > REPEAT_WARNING:
        notes.append(
            f"the run trains for {epochs:.1f} epochs; beyond {REPEAT_WARNING:.0f}, more text helps more than repetition"
        )
    share = shape.vocab_size * shape.n_embd / shape.matmul_parameters()
    if share > VOCABULARY_WARNING:
        notes.append(
            f"the vocabulary takes {share:.0%} of the parameters; data.tokenizer={_smaller_tokenizer(shape)} leaves more"
            " of them for the blocks"
        )
    if steps < FEW_STEPS:
        notes.append(f"the budget allows only {steps} optimizer steps; the loss of such a short run is noisy")
    return notes


def _smaller_tokenizer(shape: Shape) -> str:
    """Return the largest tokenizer whose vocabulary matrix takes at most half of the shape's parameters."""
    blocks = shape.matmul_parameters() - shape.vocab_size * shape.n_embd
    fitting = (name for rows, name in SMALLER_VOCABULARIES if rows * shape.n_embd <= blocks and rows < shape.vocab_size)
    return next(fitting, "bytes")
