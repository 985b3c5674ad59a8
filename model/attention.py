"""Causal attention over the whole sequence, or within each document of it.

Every document ends with end-of-text. As an input, end-of-text is therefore the first token of the next document: later
tokens of that document attend to it, and to nothing before it. There are two implementations: a boolean mask, which
works on every device, and a variable-length kernel on GPUs, which takes the offsets at which documents start and does not
compute the scores that a mask would discard. Positions are counted from the start of the sequence in both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.modes import compute_dtype


@dataclass(frozen=True)
class RowLayout:
    """Rows in which several sequences share their common beginning, as the branches of a tree do (evals/packing.py).

    Attributes:
        positions: The position of each token in its own sequence, int64 (B, T).
        previous: The id of the token before each token in its own sequence, -1 for the first, int64 (B, T).
        mask: True where token i may attend to token j, which is in the same sequence and not later, bool (B, 1, T, T).
    """

    positions: Tensor
    previous: Tensor
    mask: Tensor


def document_mask(tokens: Tensor, eot: int) -> Tensor:
    """Return the attention mask of `tokens` (B, T), bool (B, 1, T, T): True where row i may attend to column j, which is
    in the same document and not later."""
    document = (tokens == eot).cumsum(dim=1)  # (B, T): index of each token's document
    same = document.unsqueeze(2) == document.unsqueeze(1)  # (B, T, 1) == (B, 1, T) -> (B, T, T)
    return same.tril().unsqueeze(1)  # (B, 1, T, T), the same for all heads


def document_starts(tokens: np.ndarray, eot: int) -> np.ndarray:
    """Return the offsets at which documents start in `tokens` (B, T) laid end to end, followed by B * T, as int32
    (documents + 1,): the `cu_seqlens` of variable-length kernels.

    Every sequence starts a document. This runs on the host: the number of documents is a tensor's shape, and computing it
    on the GPU would make the host wait for the device.
    """
    starts = tokens == eot
    starts[:, 0] = True
    return np.append(np.flatnonzero(starts), tokens.size).astype(np.int32)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, dropout: float) -> Tensor:
    """Return causal attention (B, H, T, S) of `q`, `k` and `v`, (B, H, T, S) each.

    `documents` is the output of `document_mask` (bool) or `document_starts` (int32); None attends to the whole sequence.
    The variable-length kernel applies no dropout.
    """
    if documents is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if documents.dtype == torch.bool:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=documents, dropout_p=dropout)
    return variable_length_attention(q, k, v, documents)


def variable_length_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    """Return causal attention (B, H, T, S) within the documents that begin at `starts`, int32 (documents + 1,).

    Uses torch.nn.attention.varlen (`window_size` since torch 2.11), which wants half precision and all tokens in one
    dimension, (B * T, H, S).
    """
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, S = q.shape
    # Autocast does not reach the kernel, and a norm or an embedding may have returned float32.
    dtype = compute_dtype(v)
    q, k, v = (x.to(dtype).transpose(1, 2).reshape(B * T, H, S) for x in (q, k, v))  # (B, H, T, S) -> (B * T, H, S)
    # A document is at most T tokens long. The window is unlimited to the left (-1) and empty to the right (0): causal.
    y = varlen_attn(q, k, v, starts, starts, T, T, window_size=(-1, 0))
    return cast(Tensor, y).view(B, T, H, S).transpose(1, 2)  # (B * T, H, S) -> (B, H, T, S)
