"""Tests that every preset and shortcut (x0, value and bigram embeddings, softcap) is causal, counted and learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from model.config import PRESETS, Shape
from model.gpt import GPT
from model.layers import apply_rotary, bigram_ids
from tests.model.losses import loss_of, randomised

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 16, "vocab_size": 96}
SHORTCUTS: dict[str, dict[str, Any]] = {
    "embed_norm": {"embed_norm": True},
    "x0_shortcut": {"x0_shortcut": True},
    "value_embeddings": {"value_embeddings": True},
    "bigram_rows": {"bigram_rows": 50},
    "softcap": {"softcap": 5.0},
    "all": {
        "embed_norm": True,
        "x0_shortcut": True,
        "value_embeddings": True,
        "bigram_rows": 50,
        "softcap": 5.0,
        "tie": False,
    },
}
VARIANTS = {name: vars(Shape(**SIZES, **options)) for name, options in PRESETS.items()} | SHORTCUTS
EACH = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
TOKENS = torch.randint(96, (3, 17), generator=torch.Generator().manual_seed(1))
OFF = {"tie": True, "embed_norm": False, "x0_shortcut": False, "value_embeddings": False}


def build(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(Shape(**{**SIZES, **PRESETS["modern"], **OFF, **options}))


@EACH
def test_a_later_token_changes_nothing_before_it(options: dict[str, Any]) -> None:
    model = randomised(build(**options))
    other = TOKENS.clone()
    other[:, 9] = (other[:, 9] + 1) % 96
    before, after = model(TOKENS[:, :16]), model(other[:, :16])
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before[:, 9:11], after[:, 9:11], atol=1e-3)


@pytest.mark.parametrize("name", SHORTCUTS)
def test_parameters_are_counted(name: str) -> None:
    model = build(**SHORTCUTS[name])
    assert model.shape.parameters() == sum(p.numel() for p in model.parameters())
    assert model.shape.matmul_parameters() == build().shape.matmul_parameters()


@EACH
def test_the_first_loss_is_that_of_a_uniform_guess_and_all_parameters_learn(options: dict[str, Any]) -> None:
    model = build(**options)
    loss = loss_of(model, TOKENS[:, :-1], TOKENS[:, 1:])
    assert loss.item() == pytest.approx(math.log(96), abs=0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(60):
        optimizer.zero_grad()
        loss = loss_of(model, TOKENS[:, :-1], TOKENS[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters())


@EACH
def test_one_graph_for_torch_compile(options: dict[str, Any]) -> None:
    model = randomised(build(**options))
    torch._dynamo.reset()  # other models of this process count as recompilations
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)
    found, expected = (each(model, TOKENS[:, :16], TOKENS[:, 1:]) for each in (compiled, loss_of))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tables_and_shares_change_nothing_at_initialisation() -> None:
    plain = build()(TOKENS[:, :16])
    for option in ("x0_shortcut", "value_embeddings", "bigram_rows"):
        changed = build(**SHORTCUTS[option])
        changed.load_state_dict(build().state_dict(), strict=False)
        assert torch.equal(changed(TOKENS[:, :16]), plain), option


def test_values_are_added_in_the_last_block_and_every_second_before() -> None:
    assert set(build(n_layer=4, value_embeddings=True).value_tables) == {"1", "3"}
    assert set(build(n_layer=1, value_embeddings=True).value_tables) == {"0"}
    assert set(build(n_layer=4).value_tables) == set()


def test_a_bigram_has_its_row_whatever_else_is_there() -> None:
    shape = build(bigram_rows=1 << 16).shape
    tokens = torch.tensor([[5, 7, 9, 5, 7, 7, 5]])
    rows = bigram_ids(tokens, shape)[0].tolist()
    assert rows[0] == 0, "nothing stands before the first token"
    assert rows[1] == rows[4]
    assert len(set(rows)) == 6
    every = torch.cartesian_prod(torch.arange(96), torch.arange(96))
    found = bigram_ids(every, shape)[:, 1]
    assert found.min() >= 1
    assert found.max() < 1 << 16
    assert len(found.unique()) > 0.9 * len(every)  # as many as with random hashing
    assert bigram_ids(every, build(bigram_rows=2).shape)[:, 1].unique().tolist() == [1]


def test_the_softcap_bounds_logits_and_keeps_their_order() -> None:
    free, capped = randomised(build()), randomised(build(softcap=1.0))
    logits, bounded = free(TOKENS[:, :16]), capped(TOKENS[:, :16])
    assert logits.abs().max() > 1.0 > bounded.abs().max()
    torch.testing.assert_close(bounded, torch.tanh(logits))


def test_the_rotation_is_a_product_of_complex_numbers() -> None:
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    angles = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    cos, sin = angles.cos(), angles.sin()
    plain = torch.view_as_complex(torch.stack(x.chunk(2, -1), -1)) * torch.complex(cos, sin)
    expected = torch.cat((plain.real, plain.imag), -1)
    torch.testing.assert_close(apply_rotary(x, cos, sin), expected)
    torch.testing.assert_close(apply_rotary(x.double(), cos.double(), sin.double()).float(), expected)
