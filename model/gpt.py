"""GPT: a decoder-only transformer with pre-norm blocks of causal attention and a feed-forward network.

Shape letters: B sequences, T tokens each, D = n_embd, H = n_head, S = D / H (head size), V = vocab_size.
Every variant is an option of `Shape`. A new norm, activation or initialisation is one function and one entry in a table.
Weights are float32; lower precision comes from the caller's autocast.

The effect of each part on the loss of a small model is in docs/performance.md, "One part more or less".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from model.attention import RowLayout, document_mask
from model.blocks import Block
from model.config import Shape
from model.init import INITIALISATIONS
from model.layers import NORMS, bigram_ids, rms_norm, rotary_tables
from model.loss import apply_softcap


class GPT(nn.Module):
    """A freshly initialised model of the given `Shape`.

    Raises UserError with every problem of the shape, one line each.

    Build it under `with torch.device(...)` to allocate the weights on that device. A model on the "meta" device cannot be
    completed by loading a state dict: the rotary tables are not part of it. With tied embeddings the state dict has no
    `head.weight`, because logits are computed with `wte.weight`.
    """

    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        if problems := shape.problems():
            raise UserError(*problems)
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)  # (V, D)
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd) if shape.position == "learned" else None
        # Hashed bigram embedding: a learned vector for each token and its predecessor, added to the token embedding.
        self.bigrams = nn.Embedding(shape.bigram_rows, shape.n_embd) if shape.bigram_rows else None
        # Value embeddings (modded-nanogpt): learned vectors of the token, added to the values of every second block.
        self.value_tables = nn.ModuleDict(
            {
                str(layer): nn.Embedding(shape.vocab_size, shape.n_embd)
                for layer in range(shape.n_layer)
                if shape.has_value_embedding(layer)
            }
        )
        # Input of block i: shares[i, 0] * residual stream + shares[i, 1] * embedding (the x0 shortcut of modded-nanogpt).
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
        """Give the bigram and value embeddings sparse gradients, so that a step touches only the rows in its batch.

        This is for eager mode on a CPU: torch.compile does not support sparse gradients, and a GPU has enough bandwidth for
        dense ones.
        """
        for embedding in [self.bigrams, *self.value_tables.values()]:
            if isinstance(embedding, nn.Embedding):
                embedding.sparse = True

    def hidden(self, tokens: Tensor, starts: Tensor | None = None, layout: RowLayout | None = None) -> Tensor:
        """Return the normalised hidden states (B, T, D) of the last block.

        Args:
            tokens: Token ids, int64 (B, T). Raises ValueError if T is larger than block_size, unless there is a layout.
            starts: Offsets of documents, see `document_starts`. None: if `shape.eot` is set, a mask separates documents.
            layout: For rows of sequences that share their beginnings; its mask replaces that of documents. A row may be longer
                than block_size, its sequences may not.
        """
        T = tokens.size(1)
        positions = slice(T) if layout is None else layout.positions  # (T,), or (B, T)
        if layout is None and self.shape.block_size < T:
            raise ValueError(f"a sequence of {T} tokens is longer than block_size={self.shape.block_size}")
        x = self.wte(tokens)  # (B, T) -> (B, T, D)
        if self.wpe is not None:
            x = x + self.wpe.weight[positions]  # (T, D), the same for every sequence, or (B, T, D)
        rotary = None
        if self.shape.position == "rotary":
            rotary = self.rotary_cos[positions], self.rotary_sin[positions]  # (T, S / 2) each
            if layout is not None:
                rotary = rotary[0].unsqueeze(1), rotary[1].unsqueeze(1)  # (B, 1, T, S / 2), the same for all heads
        if self.bigrams is not None:
            x = x + self.bigrams(bigram_ids(tokens, self.shape, None if layout is None else layout.previous))
        if self.shape.embed_norm:
            x = rms_norm(x)
        x = embedded = self.dropout(x)
        documents = starts if layout is None else layout.mask
        if documents is None and self.shape.eot is not None:
            documents = document_mask(tokens, self.shape.eot)  # (B, 1, T, T)
        for layer, block in enumerate(self.blocks):
            if self.shares is not None:
                x = self.shares[layer, 0] * x + self.shares[layer, 1] * embedded
            values = self.value_tables[str(layer)](tokens) if str(layer) in self.value_tables else None
            x = block(x, rotary, values, documents)
        return self.norm(x)

    def unembed(self, hidden: Tensor) -> Tensor:
        """Return the logits (..., V) of hidden states (..., D)."""
        return apply_softcap(F.linear(hidden, self.vocabulary()), self.shape.softcap)

    def vocabulary(self) -> Tensor:
        """Return the matrix (V, D) that maps hidden states to logits: the token embedding if tied, else the untied head."""
        return self.wte.weight if self.head is None else self.head.weight

    def forward(self, tokens: Tensor, *, starts: Tensor | None = None) -> Tensor:
        """Return the logits (B, T, V) of `tokens`, int64 (B, T); `starts` as in `hidden`.

        Losses are in training/objectives.py.
        """
        return self.unembed(self.hidden(tokens, starts))
