"""Batch size, learning rate and what goes with them: published rules, each with its source and where it is cut off.

Symbols as in the papers: N parameters (as laws count them unless said otherwise), D training tokens, C = 6 N D FLOPs,
B tokens per optimizer step.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from model.config import PLAIN, PRESETS, Shape

SHORTEST_BLOCK = 256
SMALL_FLOPS = 1e17
TINY_BLOCK, TINY_FLOPS, WORDS = 64, 1e14, 1024


class StepRule(NamedTuple):
    """At least `steps`; where that would make the batch smaller than `small_batch` tokens, `few` will do, as below it the
    work beside the matrix products costs more than steps are worth."""

    steps: int
    small_batch: int
    few: int


# Judgements from small runs (docs/performance.md, "What the plan's rules rest on"). Muon tolerates larger batches than AdamW
# (Shah et al. 2025, arXiv:2505.02222).
ADAMW_STEPS, MUON_STEPS = StepRule(1500, 1024, 300), StepRule(600, 2048, 200)
GIVEN_STEPS = StepRule(1, 1024, 1)  # a smaller batch buys no more of them
STEP_RULES = {"adamw": ADAMW_STEPS, "muon": MUON_STEPS}
LARGEST_TABLE = 1 << 16  # rows
LONG_TABLE_ENTRIES, LONG_TABLE_FLOPS = 1 << 24, 2e12  # rows x width, which are tried from so much compute on
# Step Law is not extrapolated beyond what anyone trained with. Muon's updates are as large as AdamW's, and it tolerates a higher
# rate (bench/results/tuning.json).
LR_RANGE = {"adamw": (3e-4, 4e-3), "muon": (3e-4, 1e-2)}
# Each of few steps may be larger (bench/results/tables.json).
SHORT_STEPS, HIGHEST_RATE = 700, 2e-2
WEIGHT_DECAY_RANGE = (0.01, 0.3)  # to three times the usual 0.1
# Power Lines was fitted from 111M parameters on. Below that its values were worse than the usual (bench/results/tables.json).
SMALLEST_FITTED, USUAL_WEIGHT_DECAY = 1e8, 0.1
# Tokens that AdamW needs for the same loss: 1.4 times as many at 0.1B parameters, tuned as well (Wen et al. 2025,
# arXiv:2509.02046). The gain is larger at 3e12 FLOPs (bench/results/ablate.json), so this is a cautious figure.
MUON_GAIN = 1.4
WARMUP_RANGE = (0.01, 0.1)
REPEATS_WITH_DROPOUT = 4.0  # epochs


def block_size_for(flops: float | None, vocab_size: int) -> int:
    """Context length by compute: short below 1e17 FLOPs, where a step of few tokens should still hold several
    sequences; 512 up to 1e19, as competition runs of 1e18 use it; 1024, GPT-2's, above. Where the compute is not known,
    256.

    Below 1e14 FLOPs 64, so that a step holds sixteen sequences instead of four: as good at 7e12 FLOPs and better at 2e12
    (docs/performance.md); nothing was measured in between. 64 bytes are too few, so not for vocabularies of bytes."""
    if flops is None:
        return SHORTEST_BLOCK
    if flops < TINY_FLOPS and vocab_size >= WORDS:
        return TINY_BLOCK
    return SHORTEST_BLOCK if flops < SMALL_FLOPS else 512 if flops < 1e19 else 1024


def block_for(flops: float | None) -> dict[str, Any]:
    """Norm, activation, initialisation, norm of queries and keys and x0 shortcut by compute: the plain ones below 1e14 FLOPs,
    `modern`'s above, and where the compute is not known.

    At 3e12 to 2.5e13 FLOPs `modern`'s take 6 to 8 % of a step's time and buy nothing (docs/performance.md). Larger models are
    better with them (modded-nanogpt's records, nanochat's log). Nothing was measured in between: the bound is the context's."""
    block = PLAIN if flops is not None and flops < TINY_FLOPS else PRESETS["modern"]
    return {knob: block[knob] for knob in PLAIN}


def bigram_rows_for(flops: float | None, vocab_size: int, n_embd: int) -> int:
    """Rows of the hashed bigram embedding, which makes up for the depth that a small model lacks; 0 where the compute is not
    known. In nanochat's runs it helped at 12 layers and gained no time at 25 (its dev/LOG.md).

    A larger table lowers the loss at 5.6e12 FLOPs, but takes seconds of every run's checkpoints, which a budget of 9e11 FLOPs
    cannot afford (docs/performance.md)."""
    if flops is None or flops >= SMALL_FLOPS:
        return 0
    rows = LARGEST_TABLE
    if LONG_TABLE_FLOPS <= flops < TINY_FLOPS:
        rows = max(rows, 2 ** int(math.log2(LONG_TABLE_ENTRIES / n_embd)))
    return min(rows, vocab_size**2)


def critical_batch(tokens: float) -> float:
    """B beyond which more parallelism stops paying: Zhang et al. 2024 (arXiv 2410.21676), 22.91 D^0.47 sequences of 512
    with D in millions."""
    return float(512 * 22.91 * (tokens / 1e6) ** 0.47)


def batch_efficiency(batch_tokens: float, tokens: float) -> float:
    """Share of the tokens' worth that a batch of finite size leaves: 1 / (1 + B / B_crit) (McCandlish et al. 2018)."""
    return 1 / (1 + batch_tokens / critical_batch(tokens))


def largest_batch(tokens: float, rule: StepRule) -> float:
    """Tokens per step that a run of so many tokens can do with: by the number of its steps, and half the critical batch."""
    few = min(rule.small_batch, tokens / rule.few)
    return max(1.0, few, min(tokens / rule.steps, critical_batch(tokens) / 2))


def batch_for(tokens: float, flops: float, block_size: int, rule: StepRule, saturation: float = 0.0) -> int:
    """Tokens per optimizer step: the geometric mean of two measured laws, to the nearest power of two.

    Step Law (arXiv 2503.04715): 0.58 D^0.571; DeepSeek LLM (2401.02954): 0.2920 C^0.3271. At least `saturation`, the
    tokens per step that the device needs to run at full speed; but no more than `largest_batch`, and one sequence.
    """
    wished = max(saturation, math.sqrt(0.58 * tokens**0.571 * 0.2920 * flops**0.3271))
    power = min(round(math.log2(max(1.0, wished))), math.floor(math.log2(largest_batch(tokens, rule))))
    return max(1, 2**power // block_size) * block_size


def tokens_in_steps(steps: float, parameters: float, block_size: int) -> float:
    """D of a run of so many steps when its batch is `batch_for`'s, which in turn depends on D: the two solved together.

    sqrt(0.58 D^0.571 x 0.2920 (6 N D)^0.3271) is k D^0.449, and half the critical batch k D^0.47; D = steps x B.
    """
    rule = math.sqrt(0.58 * 0.2920 * (6 * parameters) ** 0.3271)
    critical = critical_batch(1.0) / 2
    by_rule = (steps * rule) ** (1 / (1 - (0.571 + 0.3271) / 2))
    by_critical = (steps * critical) ** (1 / (1 - 0.47))
    return max(steps * block_size, min(by_rule, by_critical))


def learning_rates(shape: Shape, tokens: float, batch_tokens: int) -> dict[str, float]:
    """Peak learning rate of AdamW by each published rule, before any clipping.

    Step Law (arXiv 2503.04715): 1.79 N^-0.713 D^0.307, N without the vocabulary, scaled by sqrt(B / its batch), and by
    0.7 where queries and keys are not normalised. DeepSeek LLM (2401.02954): 0.3118 C^-0.1250. Moonlight (2502.16982),
    its AdamW baseline: 0.0127 C^-0.057. Porian et al. (2406.19146): 0.0047 (N / 108e6)^(-1/3).
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
    """Peak learning rate: Step Law's for AdamW, clipped to `rate_range`, two digits. Muon takes AdamW's rates (Liu et al.
    2025, arXiv:2502.16982)."""
    law = learning_rates(shape, tokens, batch_tokens)["step-law"]
    return _digits(_clipped(law, rate_range(optimizer, tokens / batch_tokens)))


def rate_range(optimizer: str, steps: float) -> tuple[float, float]:
    """What learning_rate_for is cut to."""
    low, high = LR_RANGE[optimizer]
    if optimizer == "muon" and steps < SHORT_STEPS:
        high = min(HIGHEST_RATE, high * math.sqrt(SHORT_STEPS / steps))
    return low, high


def weight_decay_for(parameters: float, tokens: float, batch_tokens: int, learning_rate: float) -> float:
    """Decoupled weight decay whose time scale, B / (lr wd D), is 1.084 (D/N)^-0.527 (Power Lines, arXiv 2505.13738),
    clipped to `weight_decay_range`."""
    time_scale = 1.084 * (tokens / parameters) ** -0.527
    wanted = batch_tokens / (time_scale * learning_rate * tokens)
    return _digits(_clipped(wanted, weight_decay_range(parameters)))


def weight_decay_range(parameters: float) -> tuple[float, float]:
    """What weight_decay_for is cut to."""
    low, high = WEIGHT_DECAY_RANGE
    return low, USUAL_WEIGHT_DECAY if parameters < SMALLEST_FITTED else high


def warmup_for(parameters: float, tokens: float) -> float:
    """Share of the budget for the warm-up: as many tokens as parameters (Porian et al. 2024), within WARMUP_RANGE."""
    return _digits(_clipped(parameters / tokens, WARMUP_RANGE))


def beta2_for(batch_tokens: int) -> float:
    """Second-moment decay: 0.95 is too short for small batches (Porian et al. 2024), so 0.99 below 2^18 tokens."""
    return 0.95 if batch_tokens >= 2**18 else 0.99


def dropout_for(epochs: float | None) -> float:
    """0 where text is seen once or a few times (Liu, Bauer & Manning 2025), 0.1, as all of Muennighoff et al.'s runs had
    it, beyond four epochs."""
    return 0.1 if epochs is not None and epochs > REPEATS_WITH_DROPOUT else 0.0


def muon_overhead(shape: Shape, batch_tokens: int) -> float:
    """Seconds that making updates orthogonal adds to a step, as a share of forward and backward: 5 n / T for a matrix with
    a short side of n (five iterations of 4 n^2 m + 2 n^3 FLOPs, square or up to 4 n long, against 6 n m T), and nothing
    for the vocabulary's."""
    return 5 * shape.n_embd / batch_tokens * shape.non_vocab_parameters() / shape.matmul_parameters()


def optimizer_for(shape: Shape, batch_tokens: int) -> str:
    """Muon where it costs less than the tokens that it saves (MUON_GAIN), else AdamW."""
    return "muon" if 1 + muon_overhead(shape, batch_tokens) < MUON_GAIN else "adamw"


def _clipped(value: float, limits: tuple[float, float]) -> float:
    return min(max(value, limits[0]), limits[1])


def _digits(value: float) -> float:
    """Two significant digits: more would claim a precision that no rule has."""
    return float(f"{value:.2g}")
