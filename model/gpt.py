"""A decoder-only transformer: pre-norm blocks of causal attention and a feed-forward part, on a residual stream.

Letters in shape comments: B sequences, T tokens each, D = n_embd, H = n_head, S = D / H (head size), V = vocab_size.
Every variant is an option of `Shape`; a new norm, activation or initialisation is one function and one line in a table.
Weights are float32; a lower precision comes from the caller's autocast.

What each part changes in the loss of a small model is in docs/performance.md, "One part more or less".
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from model.documents import attend, document_mask
from model.loss import capped
from model.shape import Shape

LAYERNORM_EPS = 1e-5  # GPT-2
RMSNORM_EPS = 1e-6  # Llama, and transformers' default for it
INIT_STD = 0.02  # GPT-2


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
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
            qk = rotate(qk, *rotary)
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
        if mistakes := shape.mistakes():
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

    def touch_rows_only(self) -> None:
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
        return capped(F.linear(hidden, self.vocabulary()), self.shape.softcap)

    def vocabulary(self) -> Tensor:
        """The matrix (V, D) that logits are made with."""
        return self.wte.weight if self.head is None else self.head.weight

    def forward(self, tokens: Tensor, *, starts: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of `tokens`, int64 (B, T); `starts` as in `hidden`. Losses are in training/objectives.py."""
        return self.unembed(self.hidden(tokens, starts))


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
