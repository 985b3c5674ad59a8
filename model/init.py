"""Weight initialisations. A new one is a function and a line in INITIALISATIONS."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from model.gpt import GPT

INIT_STD = 0.02  # GPT-2


def is_residual_output(name: str) -> bool:
    """Whether a parameter is the weight of a projection that writes to the residual stream."""
    return name.endswith(".out.weight")


def initialise_gpt2(model: GPT) -> None:
    """Matrices N(0, 0.02), biases 0, norms 1 (Radford et al. 2019).

    What writes to the residual stream is divided by sqrt(2 n_layer), as 2 n_layer such terms add up.
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
    """As `initialise_gpt2`, but what writes to the residual stream is zero: every block starts as the identity.

    The idea is Goyal et al. 2017 (arXiv:1706.02677, section 5.1) and Fixup (Zhang et al. 2019, arXiv:1901.09321).
    Then the last hidden state is the token's own normalised embedding, which a tied vocabulary matrix gives a logit
    of n_embd x std: 15 at width 768, and a first loss as high. At half of ln V it is outweighed by the other tokens.
    """
    initialise_gpt2(model)
    for name, parameter in model.named_parameters():
        if is_residual_output(name) or name == "head.weight":
            nn.init.zeros_(parameter)
    if model.shape.tie:
        bound = 0.5 * math.log(model.shape.vocab_size) / model.shape.n_embd
        nn.init.normal_(model.wte.weight, std=min(INIT_STD, bound))


INITIALISATIONS: dict[str, Callable[[GPT], None]] = {"gpt2": initialise_gpt2, "zero": initialise_zero}
