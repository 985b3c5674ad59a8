"""Tests of a shape's validation and counts, against the built module and torch's FLOP counter."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common.errors import UserError
from model import loss
from model.config import ACTIVATIONS, NORMS, POSITIONS, PRESETS, Shape, padded_vocab
from model.gpt import GPT
from tests.model.losses import loss_of

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 96}


def built_parameters(shape: Shape) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in GPT(shape).parameters())


@pytest.mark.parametrize(
    ("preset", "n_layer", "positions", "expected"),
    [
        ("llama", 18, True, 166_063_872),
        ("llama", 24, True, 208_540_416),
        ("classic", 24, False, 208_540_416),
        ("classic", 12, False, 123_587_328),
        ("classic", 12, True, 123_587_328 + 512 * 768),
    ],
)
def test_published_sizes(preset: str, n_layer: int, positions: bool, expected: int) -> None:
    shape = Shape(
        n_layer=n_layer, n_head=12, n_embd=768, block_size=512, vocab_size=padded_vocab(50257), **PRESETS[preset]
    )
    assert shape.parameters(positions) == expected
    assert built_parameters(shape) == shape.parameters()


@pytest.mark.parametrize(("position", "norm", "activation"), list(itertools.product(POSITIONS, NORMS, ACTIVATIONS)))
def test_parameters_are_those_of_the_module(position: str, norm: str, activation: str) -> None:
    for bias, tie, qk_norm, ffn_hidden in itertools.product((False, True), (False, True), (False, True), (None, 72)):
        choices = {"position": position, "norm": norm, "activation": activation, "qk_norm": qk_norm}
        shape = Shape(**SIZES, **choices, bias=bias, tie=tie, ffn_hidden=ffn_hidden)
        assert shape.parameters() == built_parameters(shape), shape


@pytest.mark.parametrize("preset", PRESETS)
def test_matmul_parameters_are_the_blocks_matrices_and_one_vocabulary_matrix(preset: str) -> None:
    for tie in (True, False):
        shape = Shape(**SIZES, **(PRESETS[preset] | {"tie": tie}), bias=True)
        with torch.device("meta"):
            blocks = sum(p.numel() for p in GPT(shape).blocks.parameters() if p.ndim == 2)
        assert shape.non_vocab_parameters() == blocks
        assert shape.matmul_parameters() == blocks + 96 * 32


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_flop_convention_is_what_torch_counts(preset: str, tie: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convention is 6 FLOPs per parameter and token, and 12 n_layer n_embd block_size for attention (no causal discount).

    Only the "math" attention matches it: fused kernels recompute in the backward pass, which gives 14 instead of 12, and
    torch has no formula for the CPU kernel. Norms and activations are no matrix products and count 0 in both.
    """
    # The FLOP counter does not count addmm_, which the sliced loss uses: compute the loss with torch.
    monkeypatch.setitem(loss.WHOLE_BYTES, "cpu", 1 << 60)
    shape = Shape(**(SIZES | {"n_embd": 64, "block_size": 32}), **(PRESETS[preset] | {"tie": tie}))
    model = GPT(shape)
    tokens = torch.randint(96, (2, 32))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss_of(model, tokens, tokens).backward()
    per_token = 6 * shape.matmul_parameters() + 12 * shape.n_layer * shape.n_embd * shape.block_size
    assert counter.get_total_flops() / tokens.numel() == pytest.approx(per_token, rel=1e-9)


@pytest.mark.parametrize(
    ("activation", "n_embd", "hidden"),
    [("swiglu", 768, 2048), ("swiglu", 512, 1408), ("swiglu", 1, 64), ("gelu", 768, 3072), ("relu2", 96, 384)],
)
def test_default_width_of_the_feed_forward(activation: str, n_embd: int, hidden: int) -> None:
    shape = Shape(**(SIZES | {"n_embd": n_embd, "n_head": 1}), activation=activation)
    assert shape.hidden == hidden


@pytest.mark.parametrize(("n_vocab", "expected"), [(50257, 50304), (50304, 50304), (1, 64), (65, 128)])
def test_padded_vocab(n_vocab: int, expected: int) -> None:
    assert padded_vocab(n_vocab) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_embd": 100, "n_head": 3},
            "model.n_embd=100 is not divisible by model.n_head=3; try model.n_embd=99 or 102",
        ),
        ({"n_embd": 2, "n_head": 3}, "model.n_embd=2 is not divisible by model.n_head=3; try model.n_embd=3"),
        ({"n_embd": 12, "n_head": 4, "position": "rotary"}, "model.position=rotary needs an even head size"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be at least 0 and less than 1"),
        ({"dropout": -0.1}, "model.dropout=-0.1 must be"),
        ({"position": "alibi"}, "model.position=alibi is unknown; allowed: learned, rotary"),
        ({"norm": "none"}, "model.norm=none is unknown; allowed: layernorm, rmsnorm"),
        ({"activation": "silu"}, "model.activation=silu is unknown; allowed: gelu, relu2, swiglu"),
        ({"initialisation": "xavier"}, "model.initialisation=xavier is unknown; allowed: gpt2, zero"),
        ({"n_layer": 0}, "model.n_layer=0 must be at least 1"),
        ({"n_embd": -8}, "model.n_embd=-8 must be at least 1"),
        ({"ffn_hidden": 0}, "model.ffn_hidden=0 must be at least 1"),
        ({"rope_theta": 0.0}, "model.rope_theta=0.0 must be 1 to 1e+12"),
        ({"rope_theta": math.inf}, "model.rope_theta=inf must be"),
        ({"softcap": math.inf}, "model.softcap=inf must be 0.01 to 1e+06, or 0"),
        ({"softcap": math.nan}, "model.softcap=nan must be"),
        ({"softcap": 1e-30}, "model.softcap=1e-30 must be"),
        ({"bigram_rows": 1}, "model.bigram_rows=1 must be at least 2, or 0"),
        ({"n_layer": 10**9}, "model.n_layer=1000000000 must be at most 10000"),
        ({"vocab_size": 10**400}, "model.vocab_size=1000"),
    ],
)
def test_each_problem_is_one_line_that_names_the_key(options: dict[str, Any], message: str) -> None:
    (found,) = Shape(**(SIZES | options)).problems()
    assert found.startswith(message)
    assert "\n" not in found


def test_a_shape_survives_json() -> None:
    shape = Shape(**SIZES, **PRESETS["modern"], ffn_hidden=80)
    assert Shape.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


def test_from_dict_names_every_unknown_and_missing_key() -> None:
    with pytest.raises(UserError) as caught:
        Shape.from_dict({"n_layer": 2, "n_head": 2, "n_embed": 32, "block_size": 8, "vocab_size": 64, "pos": "rotary"})
    text = str(caught.value)
    assert all(part in text for part in ("no key 'n_embed'", "no key 'pos'", "lacks the key 'n_embd'"))


@pytest.mark.parametrize("module", ["model.config", "model.optim.lr_schedule"])
def test_planning_needs_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_shape_of_an_earlier_version_is_read_unless_it_used_a_removed_option() -> None:
    shape = Shape(2, 2, 64, 32, 96)
    assert Shape.from_dict({**shape.to_dict(), "value_residual": False}) == shape
    with pytest.raises(UserError, match="value_residual=True, which was removed"):
        Shape.from_dict({**shape.to_dict(), "value_residual": True})
