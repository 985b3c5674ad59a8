"""Parameter-free layers of the transformer: activations, norms, rotary positions and the bigram hash."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import Shape

LAYERNORM_EPS = 1e-5  # GPT-2
RMSNORM_EPS = 1e-6  # Llama; the default of transformers' LlamaConfig


def relu2(x: Tensor) -> Tensor:
    """Return the squared ReLU (So et al. 2021, arXiv:2109.08668), same shape as `x`."""
    x = F.relu(x)
    return x * x  # autocast would compute pow in float32 and keep that for the backward pass


def swiglu(x: Tensor) -> Tensor:
    """Return the gated SiLU (Shazeer 2020, arXiv:2002.05202): (..., 2 F), gate first, to (..., F)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu2": relu2, "swiglu": swiglu}


def rms_norm(x: Tensor) -> Tensor:
    """Return the RMS norm of `x` along its last dimension, without parameters (Zhang & Sennrich 2019, arXiv:1910.07467)."""
    return F.rms_norm(x, x.shape[-1:], eps=RMSNORM_EPS)


NORMS: dict[str, Callable[[Shape], nn.Module]] = {
    "layernorm": lambda shape: nn.LayerNorm(shape.n_embd, eps=LAYERNORM_EPS, bias=shape.bias),
    "rmsnorm": lambda shape: nn.RMSNorm(shape.n_embd, eps=RMSNORM_EPS),
}


def rotary_tables(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of position x frequency, (block_size, S / 2) each (Su et al. 2021, arXiv:2104.09864)."""
    frequencies = shape.rope_theta ** (-torch.arange(0, shape.head_size, 2, dtype=torch.float32) / shape.head_size)
    angles = torch.outer(torch.arange(shape.block_size, dtype=torch.float32), frequencies)  # radians
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x[i], x[i + S/2]) of `x` (..., T, S) by its angle, `cos` and `sin` (T, S / 2).

    This is the half-split layout of transformers' Llama.
    """
    first, second = x.chunk(2, dim=-1)  # (..., T, S / 2) each
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)


def bigram_ids(tokens: Tensor, shape: Shape, previous: Tensor | None = None) -> Tensor:
    """Return the row of the hashed bigram embedding for each token and its predecessor, (B, T) to (B, T), int64.

    The hash is multiplicative (Knuth, The Art of Computer Programming, volume 3, section 6.4). Row 0 is reserved for tokens
    without a predecessor: the first of a sequence and, with `shape.eot`, the first of a document. `previous` (B, T) holds the
    predecessors, -1 for none; None: each token follows the one before it in its row.
    """
    if previous is None:
        rows = F.pad(_hashed_bigrams(tokens[:, :-1], tokens[:, 1:], shape), (1, 0))  # (B, T - 1) -> (B, T)
    else:
        rows = _hashed_bigrams(previous, tokens, shape).masked_fill(previous < 0, 0)
    return rows if shape.eot is None else rows.masked_fill(tokens == shape.eot, 0)


def _hashed_bigrams(first: Tensor, second: Tensor, shape: Shape) -> Tensor:
    """Return a row from 1 to bigram_rows - 1 for each pair of tokens, int64 of their shape."""
    bigrams = first * shape.vocab_size + second  # one number per pair of tokens
    # Multiply by 2^32 / golden ratio modulo 2^32, then scale to 0 .. bigram_rows - 2.
    return (((bigrams * 2654435761) & 0xFFFFFFFF) * (shape.bigram_rows - 1) >> 32) + 1
