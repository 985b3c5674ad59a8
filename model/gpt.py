"""A decoder-only transformer: pre-norm blocks of causal attention and a feed-forward part, on a residual stream.

Letters in shape comments: B sequences, T tokens each, D = n_embd, H = n_head, S = D / H (head size), V = vocab_size.
Every variant is an option of `Shape`; a new norm, activation or initialisation is one function and one line in a table.
Weights are float32; a lower precision comes from the caller's autocast.

What each part changes in the loss of a small model is in docs/performance.md, "One part more or less".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from model.attention import document_mask
from model.blocks import Block
from model.config import Shape
from model.init import INITIALISATIONS
from model.layers import NORMS, bigram_ids, rms_norm, rotary_tables
from model.loss import apply_softcap


class GPT(nn.Module):
    """The model of a `Shape`, freshly initialised; raises UserError with every mistake of the shape.

    Build it under `with torch.device(...)` to fill the weights where they will live. On "meta" it has sizes only: the
    rotary tables are not part of the state dict, so weights are to be loaded into a model that was built for real.
    Tied, the state dict has no `head.weight`: one tensor is stored once.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if mistakes := shape.problems():
            raise UserError(*mistakes)
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd) if shape.position == "learned" else None
        self.bigrams = nn.Embedding(shape.bigram_rows, shape.n_embd) if shape.bigram_rows else None
        self.value_tables = nn.ModuleDict(
            {
                str(layer): nn.Embedding(shape.vocab_size, shape.n_embd)
                for layer in range(shape.n_layer)
                if shape.has_value_embedding(layer)
            }
        )
        self.shares = nn.Parameter(torch.tensor([[1.0, 0.0]] * shape.n_layer)) if shape.x0_shortcut else None
        self.dropout = nn.Dropout(shape.dropout)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = NORMS[shape.norm](shape)
        self.head = None if shape.tie else nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        if shape.position == "rotary":
            cos, sin = rotary_tables(shape)
            self.register_buffer("rotary_cos", cos, persistent=False)
            self.register_buffer("rotary_sin", sin, persistent=False)
        INITIALISATIONS[shape.initialisation](self)

    def use_sparse_gradients(self) -> None:
        """Make gradients of tables sparse, so that a step costs what the rows in its batch do, not what all rows do: for a
        CPU in eager mode. torch.compile knows no sparse gradients, and a GPU has the bandwidth."""
        for table in [self.bigrams, *self.value_tables.values()]:
            if isinstance(table, nn.Embedding):
                table.sparse = True

    def hidden(self, tokens: Tensor, starts: Tensor | None = None) -> Tensor:
        """Normalised last hidden states (B, T, D) of `tokens` (B, T), int64; ValueError if T > block_size. `starts`: see
        `document_starts`; without it a mask keeps documents apart where they are to be."""
        T = tokens.size(1)
        if self.shape.block_size < T:
            raise ValueError(f"a sequence of {T} tokens is longer than block_size={self.shape.block_size}")
        x = self.wte(tokens)
        if self.wpe is not None:
            x = x + self.wpe.weight[:T]
        rotary = (self.rotary_cos[:T], self.rotary_sin[:T]) if self.shape.position == "rotary" else None
        if self.bigrams is not None:
            x = x + self.bigrams(bigram_ids(tokens, self.shape))
        if self.shape.embed_norm:
            x = rms_norm(x)
        x = embedded = self.dropout(x)
        documents = starts
        if documents is None and self.shape.eot is not None:
            documents = document_mask(tokens, self.shape.eot)
        for layer, block in enumerate(self.blocks):
            if self.shares is not None:
                x = self.shares[layer, 0] * x + self.shares[layer, 1] * embedded
            values = self.value_tables[str(layer)](tokens) if str(layer) in self.value_tables else None
            x = block(x, rotary, values, documents)
        return self.norm(x)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., D)."""
        return apply_softcap(F.linear(hidden, self.vocabulary()), self.shape.softcap)

    def vocabulary(self) -> Tensor:
        """The matrix (V, D) that logits are made with."""
        return self.wte.weight if self.head is None else self.head.weight

    def forward(self, tokens: Tensor, *, starts: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `tokens`, int64 (B, T); `starts` as in `hidden`. Losses are in training/objectives.py."""
        return self.unembed(self.hidden(tokens, starts))
