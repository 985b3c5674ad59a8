"""Parameter-free building blocks of the transformer: activations, norms, rotary positions, bigram hashing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Shape

LAYERNORM_EPS = 1e-5  # GPT-2


RMSNORM_EPS = 1e-6  # Llama, and transformers' default for it


def relu2(x: Tensor) -> Tensor:
    """Squared ReLU (So et al. 2021, arXiv:2109.08668)."""
    x = F.relu(x)
    return x * x  # a power would be taken, and kept, in float32 under autocast


def swiglu(x: Tensor) -> Tensor:
    """Gated SiLU (Shazeer 2020, arXiv:2002.05202): (..., 2 hidden), gate first, to (..., hidden)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu2": relu2, "swiglu": swiglu}


def rms_norm(x: Tensor) -> Tensor:
    """RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467) along the last dimension, free of parameters."""
    return F.rms_norm(x, x.shape[-1:], eps=RMSNORM_EPS)


NORMS: dict[str, Callable[[Shape], nn.Module]] = {
    "layernorm": lambda shape: nn.LayerNorm(shape.n_embd, eps=LAYERNORM_EPS, bias=shape.bias),
    "rmsnorm": lambda shape: nn.RMSNorm(shape.n_embd, eps=RMSNORM_EPS),
}


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position x frequency, (block_size, S / 2) each (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size)
    angles = torch.outer(torch.arange(shape.block_size, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + S/2]) by its angle: the half-split layout that transformers' Llama uses."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def bigram_ids(tokens: Tensor, shape: Shape) -> Tensor:
    """Row of the bigram table for each token and the one before it, (B, T) to (B, T): a multiplicative hash (Knuth). The
    first token of a sequence, with nothing before it, has row 0, and so has that of a document that is to see no other."""
    pairs = tokens[:, :-1] * shape.vocab_size + tokens[:, 1:]
    rows = ((pairs * 2654435761) & 0xFFFFFFFF) * (shape.bigram_rows - 1) >> 32
    rows = F.pad(rows + 1, (1, 0))
    return rows if shape.eot is None else rows.masked_fill(tokens == shape.eot, 0)
