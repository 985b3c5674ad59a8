"""Tests of properties that every variant of the transformer must have."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from common.errors import UserError
from evals import scoring
from model import blocks, gpt, init, layers
from model.blocks import Attention
from model.config import ACTIVATIONS, INITIALISATIONS, NORMS, POSITIONS, PRESETS, Shape
from model.gpt import GPT
from model.layers import RMSNORM_EPS, apply_rotary, rotary_tables
from tests.model.losses import loss_of, randomised

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 96}


def build(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(Shape(**(SIZES | options)))


def some_tokens(batch: int = 3, length: int = 16) -> Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("width", [32, 768])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_first_loss_is_that_of_a_uniform_guess(preset: str, tie: bool, width: int) -> None:
    model = build(**(PRESETS[preset] | {"tie": tie}), n_embd=width, vocab_size=4096, n_layer=4)
    tokens = torch.randint(4096, (8, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        loss = loss_of(model, tokens[:, :-1], tokens[:, 1:])
    assert loss.item() == pytest.approx(math.log(4096), abs=0.3)


@pytest.mark.parametrize("preset", PRESETS)
def test_dropout_acts_in_training_only(preset: str) -> None:
    tokens = some_tokens()
    model = randomised(build(**PRESETS[preset], dropout=0.1)).eval()
    first = model(tokens)
    assert torch.equal(first, model(tokens))
    assert torch.equal(first, randomised(build(**PRESETS[preset])).eval()(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_dropout_acts_on_embedding_attention_and_residual() -> None:
    model = randomised(build(dropout=0.5))
    attention, block = model.blocks[0].attention, model.blocks[0]
    x = torch.randn(2, 16, 32)
    assert not torch.equal(attention(x, None)[0], attention(x, None)[0])
    attention.dropout = 0.0
    assert torch.equal(attention(x, None)[0], attention(x, None)[0])
    for silenced, heard in ((block.attention, block.feed_forward), (block.feed_forward, block.attention)):
        weights = silenced.out.weight.detach().clone()
        torch.nn.init.zeros_(silenced.out.weight)
        assert not torch.equal(block(x, None), block(x, None)), f"no dropout after {type(heard).__name__}"
        silenced.out.weight.data.copy_(weights)
    for each in model.blocks:
        each.attention.dropout = each.dropout.p = 0.0
    assert not torch.equal(model.hidden(some_tokens()), model.hidden(some_tokens()))
    model.dropout.p = 0.0
    assert torch.equal(model.hidden(some_tokens()), model.hidden(some_tokens()))


def naive_attention(attention: Attention, x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Compute attention one head and one query at a time, in float64."""
    size = x.size(-1) // attention.n_head
    weights, out = attention.qkv.weight.double(), attention.out.weight.double()
    y = torch.zeros_like(x, dtype=torch.float64)
    for b, head, t in itertools.product(range(x.size(0)), range(attention.n_head), range(x.size(1))):
        rows = slice(head * size, (head + 1) * size)
        q, k, v = (x[b].double() @ part[rows].T for part in weights.chunk(3))
        if attention.qk_norm:
            q, k = (each / (each.square().mean(-1, keepdim=True) + RMSNORM_EPS).sqrt() for each in (q, k))
        if rotary is not None:
            q, k = (apply_rotary(each, rotary[0].double(), rotary[1].double()) for each in (q, k))
        shares = (k[: t + 1] @ q[t] / math.sqrt(size)).softmax(dim=0)
        y[b, t, rows] = shares @ v[: t + 1]
    return y @ out.T


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("position", POSITIONS)
def test_attention_equals_a_naive_one(position: str, qk_norm: bool) -> None:
    model = randomised(build(position=position, qk_norm=qk_norm))
    rotary = rotary_tables(model.shape) if position == "rotary" else None
    attention = model.blocks[0].attention
    x = torch.randn(2, 16, 32)
    torch.testing.assert_close(attention(x, rotary).double(), naive_attention(attention, x, rotary), atol=1e-5, rtol=0)


def test_rotation_depends_on_distance_only() -> None:
    cos, sin = rotary_tables(Shape(**SIZES, position="rotary"))
    q, k = torch.randn(8).expand(16, 8), torch.randn(8).expand(16, 8)
    scores = apply_rotary(q, cos, sin) @ apply_rotary(k, cos, sin).T
    for distance in range(-15, 16):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    assert scores[0].std() > 1e-3


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
        ("relu2", lambda x: torch.where(x > 0, x * x, 0)),
        ("swiglu", lambda x: x[:3] * torch.sigmoid(x[:3]) * x[3:]),
    ],
)
def test_activations(activation: str, expected: Any) -> None:
    x = torch.tensor([-2.0, -0.5, 0.3, 1.0, 2.0, -3.0])
    torch.testing.assert_close(layers.ACTIVATIONS[activation](x), expected(x))


def scored(model: gpt.GPT, tokens: torch.Tensor, targets: torch.Tensor) -> scoring.TokenScores:
    with torch.no_grad():
        return scoring.score_tokens(model, tokens.numpy(), targets.numpy(), "cpu", nullcontext)


@pytest.mark.parametrize("preset", PRESETS)
def test_token_losses_are_those_of_cross_entropy(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(build(**PRESETS[preset]))
    tokens, targets = some_tokens(), some_tokens().flip(0).clone()
    targets[0, 3:9] = -1
    logits = model(tokens)
    targets[2] = logits[2].argmax(-1)
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none")
    monkeypatch.setattr(scoring, "MAX_LOGITS", 96 * 7)  # 7 tokens in a slice; 48 is not a multiple of 7
    scores = scored(model, tokens, targets)
    torch.testing.assert_close(torch.from_numpy(scores.nats).float(), expected.view(3, 16).detach())
    assert scores.greedy.tolist() == (logits.argmax(-1) == targets).tolist()
    assert scores.greedy[2].all()
    assert (scores.nats[0, 3:9] == 0).all()
    assert loss_of(model, tokens, targets).item() == pytest.approx(scores.nats.sum() / int((targets != -1).sum()))


def test_no_slice_of_logits_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    sizes: list[int] = []
    unembed = model.unembed
    monkeypatch.setattr(scoring, "MAX_LOGITS", 96 * 7)
    monkeypatch.setattr(model, "unembed", lambda hidden: sizes.append(hidden.size(0) * 96) or unembed(hidden))
    scored(model, some_tokens(), some_tokens())
    assert max(sizes) == 96 * 7
    assert sum(sizes) == 96 * 48


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_are_float32_under_autocast(preset: str) -> None:
    model = build(**PRESETS[preset])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(some_tokens()).dtype == torch.bfloat16
        loss = loss_of(model, some_tokens(), some_tokens())
        nats = scored(model, some_tokens(), some_tokens()).nats
    assert loss.dtype == torch.float32
    assert (nats != torch.from_numpy(nats).bfloat16().double().numpy()).any(), "more digits than bfloat16 has"
    assert loss.item() == pytest.approx(loss_of(model, some_tokens(), some_tokens()).item(), abs=0.02)
    assert loss.item() == pytest.approx(nats.mean(), abs=0.02)


def test_losses_are_float32_of_a_model_in_bfloat16() -> None:
    model = build().bfloat16()
    assert loss_of(model, some_tokens(), some_tokens()).dtype == torch.float32


@pytest.mark.parametrize("preset", PRESETS)
def test_initial_weights(preset: str) -> None:
    model = build(**(PRESETS[preset] | {"tie": False}), bias=True, n_embd=256, n_layer=8)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif name == "shares":
            assert parameter.tolist() == [[1.0, 0.0]] * 8
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        elif PRESETS[preset]["initialisation"] == "zero" and name.endswith((".out.weight", "head.weight")):
            assert (parameter == 0).all(), name
        elif name.endswith(".out.weight"):
            expected = 0.02 / math.sqrt(16)
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_blocks_initialised_to_zero_are_the_identity_and_still_learn() -> None:
    model = build(
        **(PRESETS["modern"] | {"tie": True})
    )  # with an untied head of zeros, blocks learn from the second step on
    x = torch.randn(2, 16, 32)
    assert torch.equal(model.blocks[0](x, rotary_tables(model.shape)), x)
    loss_of(model, some_tokens(), some_tokens()).backward()
    assert all((block.attention.out.weight.grad != 0).any() for block in model.blocks)


def test_the_same_seed_builds_the_same_model() -> None:
    first, second = build().state_dict(), build().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_tied_model_stores_one_vocabulary_matrix(preset: str) -> None:
    tied, untied = (build(**(PRESETS[preset] | {"tie": tie})).state_dict() for tie in (True, False))
    assert set(untied) - set(tied) == {"head.weight"}
    pointers = [tensor.data_ptr() for tensor in tied.values()]
    assert len(set(pointers)) == len(pointers)
    assert not any("rotary" in name for name in tied)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_state_dict_is_the_whole_model(preset: str) -> None:
    model = randomised(build(**PRESETS[preset]))
    copy = build(**PRESETS[preset])
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(some_tokens()), model(some_tokens()))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sequence_may_be_short_but_not_too_long(preset: str) -> None:
    model = randomised(build(**PRESETS[preset]))
    torch.testing.assert_close(model(some_tokens()[:, :5]), model(some_tokens())[:, :5], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="17 tokens is longer than block_size=16"):
        model(some_tokens(1, 17))


def test_an_invalid_shape_is_refused_with_all_its_problems() -> None:
    with pytest.raises(UserError) as caught:
        GPT(Shape(**(SIZES | {"n_layer": 0, "n_embd": 33, "dropout": 2.0, "norm": "batchnorm"})))
    assert len(caught.value.messages) == 4


def test_every_name_that_a_shape_allows_is_built() -> None:
    assert set(layers.NORMS) == set(NORMS)
    assert set(layers.ACTIVATIONS) == set(ACTIVATIONS)
    assert set(init.INITIALISATIONS) == set(INITIALISATIONS)


def test_autocast_on_a_gpu_leaves_squared_relu_in_half_precision() -> None:
    """Autocast computes pow in float32, which would be kept for the backward pass. A fake tensor needs no GPU."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), torch.no_grad():
            x = torch.empty(8, device="cuda", dtype=torch.bfloat16)
            assert x.square().dtype == torch.float32, "nothing would have been tested"
            assert layers.relu2(x).dtype == torch.bfloat16
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_heads_are_attended_in_the_precision_of_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Autocast computes norms in float32, as on a GPU, but attention needs one dtype for queries, keys and values."""
    seen = []

    def attended(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
        seen.extend([q.dtype, k.dtype, v.dtype])
        return v

    norm = layers.rms_norm
    monkeypatch.setattr(blocks, "attend", attended)
    monkeypatch.setattr(blocks, "rms_norm", lambda x: norm(x.float()))
    with torch.autocast("cpu", torch.bfloat16):
        build(**PRESETS["modern"]).hidden(some_tokens())
    assert set(seen) == {torch.bfloat16}
