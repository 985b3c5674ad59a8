"""The shape of a model: sizes, variants, validation and exact parameter counts. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from common.errors import UserError

POSITIONS = ("learned", "rotary")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("gelu", "relu2", "swiglu")
INITIALISATIONS = ("gpt2", "zero")
CHOICES = {"position": POSITIONS, "norm": NORMS, "activation": ACTIVATIONS, "initialisation": INITIALISATIONS}

# Upper limits, far beyond what one device can train. A larger value is a typing error and would make planning very slow.
LARGEST = {
    "n_layer": 10_000,
    "n_head": 2048,
    "n_embd": 1 << 17,
    "block_size": 1 << 24,
    "vocab_size": 1 << 24,
    "ffn_hidden": 1 << 20,
    "bigram_rows": 1 << 28,
}
# Options that files of earlier versions may hold, with the value that means off.
REMOVED_KEYS = {"value_residual": False}
ROPE_THETA, SOFTCAP = (1.0, 1e12), (0.01, 1e6)  # outside these ranges float32 divides by 0 or overflows

# Named combinations of the options of `Shape`; conf/model/*.yaml holds the same ones.
PRESETS: dict[str, dict[str, Any]] = {
    "classic": {"position": "learned", "norm": "layernorm", "activation": "gelu", "initialisation": "gpt2"},
    "llama": {"position": "rotary", "norm": "rmsnorm", "activation": "swiglu", "initialisation": "gpt2"},
    "modern": {
        "position": "rotary",
        "norm": "rmsnorm",
        "activation": "relu2",
        "qk_norm": True,
        "initialisation": "zero",
        "tie": False,
        "embed_norm": True,
        "x0_shortcut": True,
    },
}

# Five options of `modern` that do not lower the loss at small budgets, at their values in a GPT-2 block. block_for in
# budget/planner/hyperparameters.py says from which budget on `modern` is used.
PLAIN: dict[str, Any] = {
    "norm": "layernorm",
    "activation": "gelu",
    "qk_norm": False,
    "initialisation": "gpt2",
    "x0_shortcut": False,
}


@dataclass(frozen=True)
class Shape:
    """All options that determine the tensors of a model and how they are combined.

    Attributes:
        n_layer: Number of blocks.
        n_head: Number of attention heads; divides `n_embd`.
        n_embd: Width of the residual stream.
        block_size: Longest context, in tokens.
        vocab_size: Rows of the vocabulary matrix, padding included (see `padded_vocab`).
        dropout: Probability of dropout on embeddings, attention and residual updates.
        bias: Whether linear layers and layer norms have biases.
        tie: Whether the token embedding is also the output matrix; False gives the model an untied head.
        position: A name in POSITIONS.
        norm: A name in NORMS.
        activation: A name in ACTIVATIONS.
        qk_norm: Whether queries and keys are normalised (RMS norm without parameters).
        initialisation: A name in INITIALISATIONS.
        ffn_hidden: Width of the feed-forward network. None: 4 n_embd; for swiglu, which has three matrices instead of two,
            8/3 n_embd rounded up to a multiple of 64, for about the same parameter count (Shazeer 2020, arXiv:2002.05202).
        rope_theta: Base of the rotary frequencies.
        embed_norm: Whether embeddings are normalised before the first block.
        x0_shortcut: Whether each block's input is a learned mix of the residual stream and the embedding.
        value_embeddings: Whether every second block adds an embedding of the token to its values.
        bigram_rows: Rows of the hashed bigram embedding; 0 turns it off.
        softcap: Bound of the logits (see `model.loss.apply_softcap`); 0 turns it off.
        eot: Id of end-of-text; attention then stays within a document. None: it covers the whole sequence.
    """

    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float = 0.0
    bias: bool = False
    tie: bool = True
    position: str = "learned"
    norm: str = "layernorm"
    activation: str = "gelu"
    qk_norm: bool = False
    initialisation: str = "gpt2"
    ffn_hidden: int | None = None
    rope_theta: float = 10000.0
    embed_norm: bool = False
    x0_shortcut: bool = False
    value_embeddings: bool = False
    bigram_rows: int = 0
    softcap: float = 0.0
    eot: int | None = None

    def problems(self) -> list[str]:
        """Return every reason why such a model cannot be built, one line each; an empty list for a valid shape."""
        problems = []
        for key, most in LARGEST.items():
            value = getattr(self, key)
            if key == "bigram_rows" and (value < 0 or value == 1):
                problems.append(f"model.bigram_rows={value} must be at least 2, or 0, which turns it off")
            elif key != "bigram_rows" and value is not None and value < 1:
                problems.append(f"model.{key}={value} must be at least 1")
            elif value is not None and value > most:
                problems.append(f"model.{key}={value} must be at most {most}")
        if not 0 <= self.dropout < 1:
            problems.append(f"model.dropout={self.dropout} must be at least 0 and less than 1")
        low, high = ROPE_THETA
        if not low <= self.rope_theta <= high:
            problems.append(f"model.rope_theta={self.rope_theta} must be {low:g} to {high:g}")
        low, high = SOFTCAP
        if self.softcap and not low <= self.softcap <= high:
            problems.append(f"model.softcap={self.softcap} must be {low:g} to {high:g}, or 0, which turns it off")
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                problems.append(f"model.{key}={getattr(self, key)} is unknown; allowed: {', '.join(allowed)}")
        return problems + self._bad_heads()

    def _bad_heads(self) -> list[str]:
        if self.n_head < 1 or self.n_embd < 1:
            return []
        if self.n_embd % self.n_head:
            lower = self.n_embd // self.n_head * self.n_head
            nearest = " or ".join(str(width) for width in (lower, lower + self.n_head) if width)
            return [
                f"model.n_embd={self.n_embd} is not divisible by model.n_head={self.n_head}; try model.n_embd={nearest}"
            ]
        if self.position == "rotary" and self.head_size % 2:
            return [
                f"model.position=rotary needs an even head size, but model.n_embd={self.n_embd} / "
                f"model.n_head={self.n_head} is {self.head_size}; change one of them or set model.position=learned"
            ]
        return []

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Width of the feed-forward network (after gating, for swiglu)."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        if self.activation == "swiglu":
            return round_up(-(-8 * self.n_embd // 3), 64)
        return 4 * self.n_embd

    @property
    def up_width(self) -> int:
        """Rows of the first feed-forward matrix, which holds both gate and value for swiglu."""
        return 2 * self.hidden if self.activation == "swiglu" else self.hidden

    def has_value_embedding(self, layer: int) -> bool:
        """Return whether block `layer`, counted from 0, adds a value embedding: the last block and every second before it."""
        return self.value_embeddings and (self.n_layer - 1 - layer) % 2 == 0

    def table_parameters(self) -> int:
        """Return the parameters of the value and bigram embeddings, which are looked up and take part in no matmul."""
        values = (self.n_layer + 1) // 2 if self.value_embeddings else 0
        return self.n_embd * (values * self.vocab_size + self.bigram_rows)

    def non_vocab_parameters(self) -> int:
        """Return the parameters of the matrices in the blocks, without vocabulary, positions, norms and biases."""
        attention = 4 * self.n_embd**2
        feed_forward = self.n_embd * (self.up_width + self.hidden)
        return self.n_layer * (attention + feed_forward)

    def matmul_parameters(self) -> int:
        """Return the parameters in matrix products with every token: the blocks' matrices and one vocabulary matrix.

        This is the N of the FLOP convention and of the scaling laws (`parameters_law` in result files). It is the same
        for a tied and an untied head, because an embedding look-up is not a matrix product.
        """
        return self.non_vocab_parameters() + self.vocab_size * self.n_embd

    def parameters(self, positions: bool = True) -> int:
        """Return the exact number of trainable parameters; `positions=False` leaves learned positions out."""
        norm = self.n_embd * (2 if self.norm == "layernorm" and self.bias else 1)
        linear_biases = (5 * self.n_embd + self.up_width) if self.bias else 0
        vocabulary = self.vocab_size * self.n_embd * (1 if self.tie else 2)
        learned = self.block_size * self.n_embd if positions and self.position == "learned" else 0
        shares = 2 * self.n_layer if self.x0_shortcut else 0
        blocks = self.non_vocab_parameters() + self.n_layer * (2 * norm + linear_biases)
        return blocks + norm + vocabulary + learned + shares + self.table_parameters()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shape:
        """Return the shape that `to_dict` was called on.

        Raises UserError with all unknown and missing keys, one line each, and for a removed option that is not off.
        """
        for key, off in REMOVED_KEYS.items():
            if values.get(key, off) != off:
                raise UserError(
                    f"the model was trained with {key}={values[key]}, which was removed; use the version that trained it"
                )
        values = {key: value for key, value in values.items() if key not in REMOVED_KEYS}
        known = {field.name for field in fields(cls)}
        required = [field.name for field in fields(cls) if field.default is MISSING]
        problems = [
            f"the model's shape has no key {key!r}; known: {', '.join(sorted(known))}" for key in values.keys() - known
        ]
        problems += [f"the model's shape lacks the key {key!r}" for key in required if key not in values]
        if problems:
            raise UserError(*sorted(problems))
        return cls(**values)


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def padded_vocab(n_vocab: int, multiple: int = 64) -> int:
    """Return `n_vocab` rounded up for the vocabulary matrix: tensor cores want multiples of 64 (GPT-2: 50257 -> 50304)."""
    return round_up(n_vocab, multiple)
