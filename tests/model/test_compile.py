"""Tests of compiled training: the same results on the same weights, and no more compilation than requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch

from data.batch import Batch
from evals.scoring import score_tokens
from model.compile import cache_state, compile_for_training
from model.config import PRESETS, Shape
from model.gpt import GPT
from training.objectives import next_token

SIZES: dict[str, Any] = {"n_layer": 4, "n_head": 2, "n_embd": 32, "block_size": 16, "vocab_size": 96}
TOKENS = torch.randint(96, (3, 17), generator=torch.Generator().manual_seed(1))
BATCH = Batch(TOKENS[:, :-1], TOKENS[:, 1:])


def build(**options: Any) -> GPT:
    torch.manual_seed(0)
    model = GPT(Shape(**SIZES, **PRESETS["modern"], **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.fx.GraphModule]]:
    """Yield the graphs that torch.compile passes to a backend that runs them as they are."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("how", "options", "compiled"),
    [
        ("off", {}, 0),
        ("on", {}, 1),
        ("regional", {}, 1),
        ("regional", {"value_embeddings": True, "bigram_rows": 50}, 2),  # blocks with and without value embeddings
        ("regional", {"eot": 9}, 1),
    ],
)
def test_however_compiled_it_trains_the_same_weights_in_the_same_way(
    graphs: list[torch.fx.GraphModule], how: str, options: dict[str, Any], compiled: int
) -> None:
    model, plain = build(**options), build(**options)
    names = list(model.state_dict())
    for each in (compile_for_training(next_token, model, how), partial(next_token, plain)):
        for _ in range(2):
            each(BATCH).backward()
    for (name, parameter), expected in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert parameter.grad is not None, name
        grad = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
        torch.testing.assert_close(grad, expected.grad, atol=1e-5, rtol=1e-4)
    assert len(graphs) == compiled
    assert list(model.state_dict()) == names, "a checkpoint has the same names"


@pytest.mark.parametrize("how", ["on", "regional"])
def test_evaluating_and_sampling_compile_nothing(graphs: list[torch.fx.GraphModule], how: str) -> None:
    model = build()
    loss_of = compile_for_training(next_token, model, how)
    loss_of(BATCH).backward()
    before = len(graphs)
    model.eval()
    with torch.inference_mode():
        score_tokens(model, TOKENS[:1, :-1].numpy(), TOKENS[:1, 1:].numpy(), "cpu", nullcontext)
        model(TOKENS[:, :5])
    model.train()
    loss_of(BATCH).backward()
    assert len(graphs) == before == 1


def test_tables_have_sparse_gradients_outside_compiled_code(graphs: list[torch.fx.GraphModule]) -> None:
    sparse = {}
    for how in ("off", "regional", "on"):
        model = build(bigram_rows=50)
        compile_for_training(next_token, model, how)(BATCH).backward()
        assert model.bigrams is not None
        assert model.bigrams.weight.grad is not None
        sparse[how] = model.bigrams.weight.grad.is_sparse
    assert sparse == {"off": True, "regional": True, "on": False}


@pytest.mark.parametrize(
    ("counts", "state"),
    [
        ({"fxgraph_cache_miss": 2}, "cold"),
        ({"fxgraph_cache_hit": 1, "fxgraph_cache_miss": 1}, "cold"),
        ({"fxgraph_cache_hit": 2}, "warm"),
        ({"fxgraph_cache_hit": 2, "fxgraph_cache_bypass": 1}, "cold"),
        ({}, "cold"),  # the cache is off
    ],
)
def test_a_cache_is_warm_when_it_held_everything(
    monkeypatch: pytest.MonkeyPatch, counts: dict[str, int], state: str
) -> None:
    from torch._dynamo.utils import counters

    monkeypatch.setitem(counters, "inductor", Counter(counts))
    assert cache_state() == state
