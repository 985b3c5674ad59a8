"""The transformer block: attention and a feed-forward network, each with a residual connection.

Shape letters: B sequences, T tokens, D = n_embd, H = n_head, S = D / H (head size), F = `Shape.hidden`.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import attend
from model.config import Shape
from model.layers import ACTIVATIONS, NORMS, apply_rotary, rms_norm


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head, self.qk_norm, self.dropout = shape.n_head, shape.qk_norm, shape.dropout
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)  # queries, keys and values in one matrix
        self.out = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        values: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the update of the residual stream, (B, T, D).

        Args:
            x: Normalised residual stream, (B, T, D).
            rotary: Cosines and sines of the rotary positions, (T, S / 2) each, or None.
            values: Value embeddings, (B, T, D), which are added to the values computed from `x`, or None.
            documents: Document mask or starts, see `attend`, or None.
        """
        B, T, D = x.shape
        # (B, T, D) -> (B, T, 3 D) -> (B, T, 3, H, S) -> (3, B, H, T, S) -> (2, B, H, T, S) and (1, B, H, T, S)
        qk, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4).split((2, 1))
        v = v[0]  # (B, H, T, S)
        if values is not None:  # value embeddings, from modded-nanogpt
            v = v + values.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, D) -> (B, H, T, S)
        if self.qk_norm:
            # Bounds the attention logits by sqrt(S) (Henry et al. 2020, arXiv:2010.04245). The norm has no parameters and
            # a rotation preserves it, so its place before or after the rotation makes no difference.
            # Autocast computes norms in float32, hence type_as.
            qk = rms_norm(qk).type_as(qk)
        if rotary is not None:
            qk = apply_rotary(qk, *rotary)  # queries and keys together, (2, B, H, T, S)
        # The functional attention ignores module.training: without this condition dropout would be on in evaluation.
        dropout = self.dropout if self.training else 0.0
        y = attend(qk[0], qk[1], v, documents, dropout)  # (B, H, T, S)
        return self.out(y.transpose(1, 2).reshape(B, T, D))  # heads side by side: (B, T, H, S) -> (B, T, D)


class FeedForward(nn.Module):
    """Two matrices with an activation between them; three for swiglu, whose first two are stored in `up`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.up = nn.Linear(shape.n_embd, shape.up_width, bias=shape.bias)
        self.out = nn.Linear(shape.hidden, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the update of the residual stream, (B, T, D)."""
        return self.out(self.activation(self.up(x)))  # (B, T, D) -> (B, T, F), for swiglu from 2 F -> (B, T, D)


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.attention = NORMS[shape.norm](shape), Attention(shape)
        self.feed_forward_norm, self.feed_forward = NORMS[shape.norm](shape), FeedForward(shape)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        values: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """Return the residual stream (B, T, D) after the block. The other arguments are those of `Attention.forward`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, values, documents))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
