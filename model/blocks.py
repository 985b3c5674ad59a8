"""The transformer block: attention, feed-forward part, and the two residual connections."""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import attend
from model.config import Shape
from model.layers import ACTIVATIONS, NORMS, rms_norm, apply_rotary


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head, self.qk_norm, self.dropout = shape.n_head, shape.qk_norm, shape.dropout
        self.qkv = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)
        self.out = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor] | None,
        values: Tensor | None = None,
        documents: Tensor | None = None,
    ) -> Tensor:
        """What is written to the residual stream, (B, T, D). `values` (B, T, D) are added to the block's own; `documents` as in
        `attend`."""
        B, T, D = x.shape
        qk, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4).split((2, 1))  # (.., B, H, T, S)
        v = v[0]
        if values is not None:  # modded-nanogpt's value embeddings
            v = v + values.view(B, T, self.n_head, -1).transpose(1, 2)
        if self.qk_norm:
            # Bounds the attention logits by sqrt(S) (Henry et al. 2020, arXiv:2010.04245). Free of parameters, so
            # before or after the rotation is the same: a rotation keeps the norm.
            # Autocast takes norms in float32.
            qk = rms_norm(qk).type_as(qk)
        if rotary is not None:
            qk = apply_rotary(qk, *rotary)
        # The functional form knows nothing of train and eval: without the condition, evaluation would be noisy.
        dropout = self.dropout if self.training else 0.0
        y = attend(qk[0], qk[1], v, documents, dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, D))


class FeedForward(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.activation]
        self.up = nn.Linear(shape.n_embd, shape.up_width, bias=shape.bias)
        self.out = nn.Linear(shape.hidden, shape.n_embd, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activation(self.up(x)))


class Block(nn.Module):
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
        """The residual stream (B, T, D) after the block; the rest as in `Attention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rotary, values, documents))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
