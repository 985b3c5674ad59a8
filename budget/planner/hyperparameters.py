"""Batch size, learning rate and the other hyperparameters: published rules, each with its source and its limits.

Symbols as in the papers: N parameters (as laws count them, unless noted otherwise), D training tokens, C = 6 N D FLOPs,
B tokens per optimizer step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from model.config import PLAIN, PRESETS, Shape

SHORT_BLOCK, SMALL_FLOPS = 256, 1e17  # context length in tokens below so many FLOPs
TINY_BLOCK, TINY_FLOPS = 64, 1e14
WORD_VOCABULARY = 1024  # smaller vocabularies are of bytes or little more, whose contexts have to be longer


class StepRule(NamedTuple):
    """The number of optimizer steps that a run should have at least.

    Normally `steps`. Where that would make the batch smaller than `small_batch` tokens, `fewest_steps` suffice: below
    that batch, the overhead of a step costs more than additional steps gain.
    """

    steps: int
    small_batch: int
    fewest_steps: int


# Fitted to small runs (docs/performance.md, "What the plan's rules rest on"). Muon tolerates larger batches than
# AdamW (Shah et al. 2025, arXiv:2505.02222).
ADAMW_STEPS, MUON_STEPS = StepRule(1500, 1024, 300), StepRule(600, 2048, 200)
GIVEN_STEPS = StepRule(1, 1024, 1)  # with a limit of steps, a smaller batch does not give more of them
STEP_RULES = {"adamw": ADAMW_STEPS, "muon": MUON_STEPS}
TABLE_ROWS = 1 << 16  # of the hashed bigram embedding
LARGE_TABLE_ENTRIES, LARGE_TABLE_FLOPS = 1 << 24, 2e12  # rows x width, from so many FLOPs on
# Step Law is not extrapolated beyond published learning rates. Muon's updates are scaled to the size of AdamW's, and it
# tolerates a higher rate (bench/results/tuning.json).
LR_RANGE = {"adamw": (3e-4, 4e-3), "muon": (3e-4, 1e-2)}
# Muon's upper limit grows in runs of fewer steps (bench/results/tables.json).
SHORT_STEPS, HIGHEST_RATE = 700, 2e-2
WEIGHT_DECAY_RANGE = (0.01, 0.3)  # up to three times the usual 0.1
# Power Lines was fitted from 111M parameters on; below, it did worse than the usual value (bench/results/tables.json).
SMALLEST_FITTED, USUAL_WEIGHT_DECAY = 1e8, 0.1
# Equally tuned, AdamW needs 1.4 times the tokens for the same loss at 0.1B parameters (Wen et al. 2025,
# arXiv:2509.02046). The gain is larger at 3e12 FLOPs (bench/results/ablate.json), so this is a cautious value.
MUON_GAIN = 1.4
WARMUP_RANGE = (0.01, 0.1)  # share of the budget
REPEATS_WITH_DROPOUT = 4.0  # epochs


def block_size_for(flops: float | None, vocab_size: int) -> int:
    """Return the context length by compute in FLOPs (None: unknown).

    64 below 1e14 FLOPs, so that a step holds 16 sequences instead of 4: equal at 7e12 FLOPs and better at 2e12
    (docs/performance.md), not measured in between. Not for vocabularies of bytes, because 64 bytes are too little text.
    256 below 1e17 FLOPs, where a step of few tokens should still hold several sequences, and for unknown compute.
    512 below 1e19 FLOPs, as in competition runs of 1e18; 1024, GPT-2's, above.
    """
    if flops is None:
        return SHORT_BLOCK
    if flops < TINY_FLOPS and vocab_size >= WORD_VOCABULARY:
        return TINY_BLOCK
    return SHORT_BLOCK if flops < SMALL_FLOPS else 512 if flops < 1e19 else 1024


def block_for(flops: float | None) -> dict[str, Any]:
    """Return the norm, activation, initialisation, QK norm and x0 shortcut by compute in FLOPs (None: unknown).

    Below 1e14 FLOPs these are the plain ones; above, and for unknown compute, those of the preset `modern`. At 3e12
    to 2.5e13 FLOPs the modern ones cost 6 to 8 % of a step's time without a gain (docs/performance.md); larger models
    are better with them (modded-nanogpt's records, nanochat's log). The bound between the two was not measured; it is
    the one of the context length.
    """
    block = PLAIN if flops is not None and flops < TINY_FLOPS else PRESETS["modern"]
    return {option: block[option] for option in PLAIN}


def bigram_rows_for(flops: float | None, vocab_size: int, n_embd: int) -> int:
    """Return the rows of the hashed bigram embedding by compute in FLOPs; 0 where the compute is unknown or large.

    The table makes up for the depth that a small model lacks. In nanochat's runs it helped at 12 layers and gained no
    time at 25 (its dev/LOG.md). A larger table lowers the loss at 5.6e12 FLOPs, but adds seconds to each checkpoint,
    which a budget of 9e11 FLOPs cannot afford (docs/performance.md).
    """
    if flops is None or flops >= SMALL_FLOPS:
        return 0
    rows = TABLE_ROWS
    if LARGE_TABLE_FLOPS <= flops < TINY_FLOPS:
        rows = max(rows, 2 ** int(math.log2(LARGE_TABLE_ENTRIES / n_embd)))
    return min(rows, vocab_size**2)


def critical_batch(tokens: float) -> float:
    """Return the critical batch size in tokens, beyond which more parallelism stops paying.

    22.91 D^0.47 sequences of 512 tokens, D in millions (Zhang et al. 2024, arXiv 2410.21676).
    """
    return float(512 * 22.91 * (tokens / 1e6) ** 0.47)


def batch_efficiency(batch_tokens: float, tokens: float) -> float:
    """Return the share of the tokens' value that a finite batch leaves: 1 / (1 + B / B_crit) (McCandlish et al. 2018)."""
    return 1 / (1 + batch_tokens / critical_batch(tokens))


def largest_batch(tokens: float, rule: StepRule) -> float:
    """Return the largest B for a run of `tokens` tokens, by its number of steps and by half the critical batch."""
    small = min(rule.small_batch, tokens / rule.fewest_steps)
    return max(1.0, small, min(tokens / rule.steps, critical_batch(tokens) / 2))


def batch_for(tokens: float, flops: float, block_size: int, rule: StepRule, saturation: float = 0.0) -> int:
    """Return B: the geometric mean of two published rules, as a power of two in whole sequences.

    Step Law (arXiv 2503.04715): 0.58 D^0.571. DeepSeek LLM (arXiv 2401.02954): 0.2920 C^0.3271. The batch is at least
    `saturation`, the tokens per step that the device needs to run at full speed, and at most `largest_batch`, but
    never less than one sequence.
    """
    by_rule = max(saturation, math.sqrt(0.58 * tokens**0.571 * 0.2920 * flops**0.3271))
    power = min(round(math.log2(max(1.0, by_rule))), math.floor(math.log2(largest_batch(tokens, rule))))
    return max(1, 2**power // block_size) * block_size


def tokens_in_steps(steps: float, parameters: float, block_size: int) -> float:
    """Return D of a run of `steps` steps whose batch is `batch_for`'s, which in turn depends on D.

    The two equations are solved together: sqrt(0.58 D^0.571 x 0.2920 (6 N D)^0.3271) has the form k D^0.449, half the
    critical batch the form k D^0.47, and D = steps x B.
    """
    rule = math.sqrt(0.58 * 0.2920 * (6 * parameters) ** 0.3271)
    critical = critical_batch(1.0) / 2
    by_rule = (steps * rule) ** (1 / (1 - (0.571 + 0.3271) / 2))
    by_critical = (steps * critical) ** (1 / (1 - 0.47))
    return max(steps * block_size, min(by_rule, by_critical))


def learning_rates(shape: Shape, tokens: float, batch_tokens: int) -> dict[str, float]:
    """Return AdamW's peak learning rate by each published rule, before any clipping.

    Step Law (arXiv 2503.04715): 1.79 N^-0.713 D^0.307, N without the vocabulary, scaled by the square root of B
    relative to the rule's own batch, and by 0.7 without QK norm. DeepSeek LLM (2401.02954): 0.3118 C^-0.1250.
    Moonlight (2502.16982), its AdamW baseline: 0.0127 C^-0.057. Porian et al. (2406.19146): 0.0047 (N /
    108e6)^(-1/3).
    """
    parameters = shape.matmul_parameters()
    flops = 6 * parameters * tokens
    step_law = 1.79 * max(1, shape.non_vocab_parameters()) ** -0.713 * tokens**0.307
    step_law *= math.sqrt(batch_tokens / (0.58 * tokens**0.571)) * (1.0 if shape.qk_norm else 0.7)
    return {
        "step-law": step_law,
        "deepseek": 0.3118 * flops**-0.1250,
        "moonlight": 0.0127 * flops**-0.057,
        "porian": 0.0047 * (parameters / 108e6) ** (-1 / 3),
    }


def learning_rate_for(shape: Shape, tokens: float, batch_tokens: int, optimizer: str) -> float:
    """Return the peak learning rate: Step Law's for AdamW, clipped to `rate_range`, to two digits.

    Muon uses AdamW's rates (Liu et al. 2025, arXiv:2502.16982).
    """
    law = learning_rates(shape, tokens, batch_tokens)["step-law"]
    return _two_digits(_clip(law, rate_range(optimizer, tokens / batch_tokens)))


def rate_range(optimizer: str, steps: float) -> tuple[float, float]:
    """Return the lowest and the highest learning rate that `learning_rate_for` gives."""
    low, high = LR_RANGE[optimizer]
    if optimizer == "muon" and steps < SHORT_STEPS:
        high = min(HIGHEST_RATE, high * math.sqrt(SHORT_STEPS / steps))
    return low, high


def weight_decay_for(parameters: float, tokens: float, batch_tokens: int, learning_rate: float) -> float:
    """Return the decoupled weight decay of Power Lines (arXiv 2505.13738), clipped to `weight_decay_range`.

    Its time scale B / (lr wd D) is 1.084 (D/N)^-0.527.
    """
    time_scale = 1.084 * (tokens / parameters) ** -0.527
    decay = batch_tokens / (time_scale * learning_rate * tokens)
    return _two_digits(_clip(decay, weight_decay_range(parameters)))


def weight_decay_range(parameters: float) -> tuple[float, float]:
    """Return the lowest and the highest weight decay that `weight_decay_for` gives."""
    low, high = WEIGHT_DECAY_RANGE
    return low, USUAL_WEIGHT_DECAY if parameters < SMALLEST_FITTED else high


def warmup_for(parameters: float, tokens: float) -> float:
    """Return the warm-up as a share of the budget: N tokens (Porian et al. 2024), clipped to WARMUP_RANGE."""
    return _two_digits(_clip(parameters / tokens, WARMUP_RANGE))


def beta2_for(batch_tokens: int) -> float:
    """Return AdamW's beta2: 0.95, or 0.99 below 2^18 tokens per step (Porian et al. 2024: small batches need the latter)."""
    return 0.95 if batch_tokens >= 2**18 else 0.99


def dropout_for(epochs: float | None) -> float:
    """Return the dropout: 0 up to four epochs (Liu, Bauer & Manning 2025), 0.1 beyond (Muennighoff et al. 2023)."""
    return 0.1 if epochs is not None and epochs > REPEATS_WITH_DROPOUT else 0.0


def muon_overhead(shape: Shape, batch_tokens: int) -> float:
    """Return the time of Muon's orthogonalisation per step, as a share of forward and backward.

    For a matrix with a short side of n it is 5 n / T with T tokens per step: five iterations of 4 n^2 m + 2 n^3
    FLOPs, square or up to 4 n long, against 6 n m T. The vocabulary's matrices have no such cost.
    """
    return 5 * shape.n_embd / batch_tokens * shape.non_vocab_parameters() / shape.matmul_parameters()


def optimizer_for(shape: Shape, batch_tokens: int) -> str:
    """Return "muon" where its overhead is smaller than what it saves in tokens (MUON_GAIN), otherwise "adamw"."""
    return "muon" if 1 + muon_overhead(shape, batch_tokens) < MUON_GAIN else "adamw"


def _clip(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _two_digits(value: float) -> float:
    """Round to two significant digits; no rule is more precise."""
    return float(f"{value:.2g}")
