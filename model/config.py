"""The shape of a model: its sizes, what is impossible about them, and exact parameter counts. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from common.errors import UserError

POSITIONS = ("learned", "rotary")
NORMS = ("layernorm", "rmsnorm")
ACTIVATIONS = ("gelu", "relu2", "swiglu")
INITIALISATIONS = ("gpt2", "zero")

# Far beyond what one device trains; what is larger is a slip of the finger, and would only take for ever to plan.
LARGEST = {
    "n_layer": 10_000,
    "n_head": 2048,
    "n_embd": 1 << 17,
    "block_size": 1 << 24,
    "vocab_size": 1 << 24,
    "ffn_hidden": 1 << 20,
    "bigram_rows": 1 << 28,
}
REMOVED_KEYS = {"value_residual": False}  # of shapes that earlier versions wrote
ROPE_THETA, SOFTCAP = (1.0, 1e12), (0.01, 1e6)  # beyond, float32 divides by 0 or overflows

# Combinations of the options below and nothing else; conf/model/*.yaml names the same ones.
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

# Five options of `modern` that bought nothing in five minutes of a CPU and less, as they are without it (budget/planner/hyperparameters.py).
PLAIN: dict[str, Any] = {
    "norm": "layernorm",
    "activation": "gelu",
    "qk_norm": False,
    "initialisation": "gpt2",
    "x0_shortcut": False,
}


@dataclass(frozen=True)
class Shape:
    """Everything that decides which tensors a model has and how they are combined.

    `block_size` is the longest context in tokens. `vocab_size` includes padding (see `padded_vocab`). `ffn_hidden` is
    the width of the feed-forward part; None takes 4 n_embd, and for swiglu, which has three matrices instead of two,
    8/3 n_embd rounded up to a multiple of 64, so that the parameter count stays about the same (Shazeer 2020,
    arXiv:2002.05202). `eot` is the id of end-of-text where nothing is to be seen of the documents before; None: one
    window is one text.
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
        """Every reason why no such model can be built, one line each; empty for a valid shape."""
        return [*self._bad_sizes(), *self._bad_choices(), *self._bad_heads()]

    def _bad_sizes(self) -> list[str]:
        sizes = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "ffn_hidden")
        found = [
            f"model.{key}={value} must be at least 1"
            for key in sizes
            if (value := getattr(self, key)) is not None and value < 1
        ]
        found += [
            f"model.{key}={value} must be at most {most}"
            for key, most in LARGEST.items()
            if (value := getattr(self, key)) is not None and value > most
        ]
        if not 0 <= self.dropout < 1:
            found.append(f"model.dropout={self.dropout} must be at least 0 and less than 1")
        low, high = ROPE_THETA
        if not low <= self.rope_theta <= high:
            found.append(f"model.rope_theta={self.rope_theta} must be {low:g} to {high:g}")
        if self.bigram_rows < 0 or self.bigram_rows == 1:
            found.append(f"model.bigram_rows={self.bigram_rows} must be at least 2; 0 is none")
        low, high = SOFTCAP
        if self.softcap and not low <= self.softcap <= high:
            found.append(f"model.softcap={self.softcap} must be {low:g} to {high:g}, or 0, which is off")
        return found

    def _bad_choices(self) -> list[str]:
        choices = {
            "position": POSITIONS,
            "norm": NORMS,
            "activation": ACTIVATIONS,
            "initialisation": INITIALISATIONS,
        }
        return [
            f"model.{key}={getattr(self, key)} is unknown; allowed: {', '.join(allowed)}"
            for key, allowed in choices.items()
            if getattr(self, key) not in allowed
        ]

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
                f"model.n_head={self.n_head} is {self.head_size}; change either, or take model.position=learned"
            ]
        return []

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @property
    def hidden(self) -> int:
        """Width of the feed-forward part (after gating, for swiglu)."""
        if self.ffn_hidden is not None:
            return self.ffn_hidden
        if self.activation == "swiglu":
            return round_up(-(-8 * self.n_embd // 3), 64)
        return 4 * self.n_embd

    @property
    def up_width(self) -> int:
        """Rows of the first feed-forward matrix: swiglu holds gate and value in one."""
        return 2 * self.hidden if self.activation == "swiglu" else self.hidden

    def has_value_embedding(self, layer: int) -> bool:
        """Whether block `layer`, counted from 0, adds an embedding to its values: the last one and every second before."""
        return self.value_embeddings and (self.n_layer - 1 - layer) % 2 == 0

    def table_parameters(self) -> int:
        """Entries of the tables that are looked up besides the vocabulary matrix, and multiply nothing."""
        values = (self.n_layer + 1) // 2 if self.value_embeddings else 0
        return self.n_embd * (values * self.vocab_size + self.bigram_rows)

    def non_vocab_parameters(self) -> int:
        """Entries of the matrices in the blocks, with neither vocabulary, positions, norms nor biases."""
        attention = 4 * self.n_embd**2
        feed_forward = self.n_embd * (self.up_width + self.hidden)
        return self.n_layer * (attention + feed_forward)

    def matmul_parameters(self) -> int:
        """Parameters that every token is multiplied by: the blocks' matrices and one vocabulary matrix.

        This is the N of the FLOP convention and of the scaling laws (`parameters_law` in the records). It is the
        same whether the vocabulary matrices are tied or not, as the embedding look-up multiplies nothing.
        """
        return self.non_vocab_parameters() + self.vocab_size * self.n_embd

    def parameters(self, positions: bool = True) -> int:
        """Trainable parameters of the built module, exactly; `positions=False` leaves learned positions out."""
        norm = self.n_embd * (2 if self.norm == "layernorm" and self.bias else 1)
        linear_biases = (5 * self.n_embd + self.up_width) if self.bias else 0
        vocabulary = self.vocab_size * self.n_embd * (1 if self.tie else 2)
        learned = self.block_size * self.n_embd if positions and self.position == "learned" else 0
        shares = 2 * self.n_layer if self.x0_shortcut else 0
        blocks = self.non_vocab_parameters() + self.n_layer * (2 * norm + linear_biases)
        return blocks + norm + vocabulary + learned + shares + self.table_parameters()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, one for each field."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shape:
        """The inverse of `to_dict`; raises UserError on an unknown or a missing key, all of them at once. A removed key is
        read over where it holds the value that it had unless it was set."""
        for key, off in REMOVED_KEYS.items():
            if values.get(key, off) != off:
                raise UserError(
                    f"the model was trained with {key}={values[key]}, which was removed; use the version that made it"
                )
        values = {key: value for key, value in values.items() if key not in REMOVED_KEYS}
        known = {field.name for field in fields(cls)}
        required = [field.name for field in fields(cls) if field.default is MISSING]
        wrong = [
            f"the model's shape has no key {key!r}; known: {', '.join(sorted(known))}" for key in values.keys() - known
        ]
        wrong += [f"the model's shape lacks the key {key!r}" for key in required if key not in values]
        if wrong:
            raise UserError(*sorted(wrong))
        return cls(**values)


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def padded_vocab(n_vocab: int, multiple: int = 64) -> int:
    """Rows of the vocabulary matrix for `n_vocab` tokens: tensor cores want multiples of 64 (GPT-2: 50257 -> 50304)."""
    return round_up(n_vocab, multiple)
