"""Attention, over all that came before or within a document.

Every document ends with end-of-text. As an input it is therefore the first token of the next one: what follows it sees it
and nothing before it. Two forms of the same: a mask, anywhere, and the places where documents start, for a GPU's kernel of
variable lengths, which never computes what a mask would throw away. Positions stay those in the window.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.modes import compute_dtype


def document_mask(tokens: Tensor, eot: int) -> Tensor:
    """Who may look at whom in `tokens` (B, T), bool (B, 1, T, T): at the same document, and at nothing that comes later."""
    number = (tokens == eot).cumsum(dim=1)
    return (number.unsqueeze(2) == number.unsqueeze(1)).tril().unsqueeze(1)


def document_starts(tokens: np.ndarray, eot: int) -> np.ndarray:
    """Where documents start in `tokens` (B, T), one sequence after the other, and how many tokens there are in all; int32
    (documents + 1,). On the host, for the number of documents is the shape of a tensor, which a GPU would be waited for."""
    starts = tokens == eot
    starts[:, 0] = True
    return np.append(np.flatnonzero(starts), tokens.size).astype(np.int32)


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None, dropout: float) -> Tensor:
    """Causal attention of (B, H, T, S) each; `documents`: a mask or starts (see above), None for a single one."""
    if documents is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    if documents.dtype == torch.bool:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=documents, dropout_p=dropout)
    return variable_length_attention(q, k, v, documents)


def variable_length_attention(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    """The kernel sees one row of tokens, (B T, H, S), in half precision (torch.nn.attention.varlen, since torch 2.11 with
    window_size: all of the left, nothing of the right). A document is at most as long as a sequence."""
    from torch.nn.attention.varlen import varlen_attn

    B, H, T, S = q.shape
    precision = compute_dtype(v)  # autocast does not reach the kernel, and a norm or a table may have given float32
    q, k, v = (part.to(precision).transpose(1, 2).reshape(B * T, H, S) for part in (q, k, v))
    y = varlen_attn(q, k, v, starts, starts, T, T, window_size=(-1, 0))
    return cast(Tensor, y).view(B, T, H, S).transpose(1, 2)
