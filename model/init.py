"""Weight initialisations. A new one is a function and an entry in INITIALISATIONS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from model.gpt import GPT

INIT_STD = 0.02  # GPT-2


def is_residual_output(name: str) -> bool:
    """Return whether a parameter is the weight of a projection whose output is added to the residual stream."""
    return name.endswith(".out.weight")


def initialise_gpt2(model: GPT) -> None:
    """Draw matrices from a normal distribution with standard deviation 0.02; biases are 0, norms 1 (Radford et al. 2019).

    Projections that write to the residual stream are divided by sqrt(2 n_layer), because 2 n_layer such terms are summed.
    The bigram and value embeddings start at 0, so they change nothing at first.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or name.startswith(("bigrams.", "value_tables.")):
            nn.init.zeros_(parameter)
        elif name == "shares":
            continue
        elif parameter.ndim == 2:
            scale = 1 / math.sqrt(2 * model.shape.n_layer) if is_residual_output(name) else 1.0
            nn.init.normal_(parameter, std=INIT_STD * scale)


def initialise_zero(model: GPT) -> None:
    """Initialise as `initialise_gpt2`, but zero the projections that write to the residual stream and the untied head.

    Every block then starts as the identity, an idea of Goyal et al. 2017 (arXiv:1706.02677, section 5.1) and Fixup (Zhang
    et al. 2019, arXiv:1901.09321). The last hidden state is the normalised embedding of the input token. With tied
    embeddings that token's own logit would be n_embd * std, 15 at width 768, and the first loss about as high. The
    standard deviation is therefore lowered until this logit is at most ln(V) / 2.
    """
    initialise_gpt2(model)
    for name, parameter in model.named_parameters():
        if is_residual_output(name) or name == "head.weight":
            nn.init.zeros_(parameter)
    if model.shape.tie:
        bound = 0.5 * math.log(model.shape.vocab_size) / model.shape.n_embd
        nn.init.normal_(model.wte.weight, std=min(INIT_STD, bound))


INITIALISATIONS: dict[str, Callable[[GPT], None]] = {"gpt2": initialise_gpt2, "zero": initialise_zero}
