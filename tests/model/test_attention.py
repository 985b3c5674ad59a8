"""Tests that attention stays within documents, with the mask and with the variable-length kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evals.scoring import score_tokens
from model.attention import document_starts
from model.config import PRESETS, Shape
from model.gpt import GPT
from model.layers import bigram_ids
from tests.model.losses import loss_of, randomised

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": 96}
EOT = 95
# A sequence holds the end of a document, a whole one, and the beginning of a third: starts of the second and the third.
SECOND, THIRD = 7, 16
OPTIONS: dict[str, dict[str, Any]] = {
    "classic": PRESETS["classic"],
    "llama": PRESETS["llama"],
    "modern": PRESETS["modern"],
    "all": {**PRESETS["modern"], "value_embeddings": True, "bigram_rows": 50, "softcap": 5.0},
}
EACH = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def build(eot: int | None = EOT, **options: Any) -> GPT:
    return randomised(GPT(Shape(**{**SIZES, **options}, eot=eot)))


def some_tokens(batch: int = 2) -> Tensor:
    tokens = torch.randint(EOT, (batch, 24), generator=torch.Generator().manual_seed(1))
    tokens[:, [SECOND, THIRD]] = EOT
    return tokens


@EACH
@pytest.mark.parametrize("change", ["replaced", "permuted", "one more end"])
def test_earlier_documents_do_not_change_later_ones(options: dict[str, Any], change: str) -> None:
    tokens, other = some_tokens(), some_tokens()
    if change == "replaced":
        other[:, :SECOND] = (other[:, :SECOND] + 17) % EOT
        other[:, SECOND + 1 : THIRD] = (other[:, SECOND + 1 : THIRD] + 5) % EOT
    elif change == "permuted":
        other[:, :THIRD] = other[:, :THIRD].flip(1)
    else:
        other[:, 3] = EOT
    with torch.no_grad():
        masked, leaking = build(**options), build(None, **options)
        torch.testing.assert_close(masked(other)[:, THIRD:], masked(tokens)[:, THIRD:], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(leaking(other)[:, THIRD:], leaking(tokens)[:, THIRD:], atol=1e-3)


@EACH
def test_documents_in_one_window_equal_separate_documents(options: dict[str, Any]) -> None:
    model, tokens = build(**options), some_tokens()
    with torch.no_grad():
        together = model(tokens)
        for first, last in itertools.pairwise((0, SECOND, THIRD, 24)):
            alone = build(**options)
            if alone.wpe is not None:  # positions are counted from the start of the window
                alone.wpe.weight.copy_(model.wpe.weight.roll(-first, dims=0))
            torch.testing.assert_close(alone(tokens[:, first:last]), together[:, first:last], atol=1e-5, rtol=1e-5)


@EACH
def test_no_gradient_flows_into_another_document(options: dict[str, Any]) -> None:
    model = build(**options)
    embedded: list[Tensor] = []

    def keep(module: torch.nn.Module, arguments: Any, output: Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    tables = [model.wte, *model.value_tables.values(), *([model.bigrams] if model.bigrams is not None else [])]
    for table in tables:
        table.register_forward_hook(keep)
    tokens = some_tokens()
    targets = tokens.roll(-1, dims=1)
    targets[:, :SECOND], targets[:, THIRD:] = -1, -1  # only the loss of the second document
    loss_of(model, tokens, targets).backward()
    assert len(embedded) == len(tables)
    for each in embedded:
        assert each.grad is not None
        reach = each.grad.abs().sum(dim=-1)
        assert (reach[:, :SECOND] == 0).all()
        assert (reach[:, THIRD:] == 0).all()
        assert (reach[:, SECOND:THIRD] > 0).all()


def test_losses_of_single_tokens_have_the_same_mask() -> None:
    model, tokens = build(**OPTIONS["all"]), some_tokens()
    targets = tokens.roll(-1, dims=1)
    with torch.no_grad():
        expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="none")
        scores = score_tokens(model.eval(), tokens.numpy(), targets.numpy(), "cpu", nullcontext)
    torch.testing.assert_close(torch.from_numpy(scores.nats).float().flatten(), expected)


def test_the_first_token_of_a_document_has_no_bigram() -> None:
    tokens = torch.tensor([[5, 7, EOT, 5, 7, EOT, EOT, 7], [EOT, 7, 5, 7, 5, 7, 9, 5]])
    shape = build(**PRESETS["modern"], bigram_rows=1 << 16).shape
    rows = bigram_ids(tokens, shape).tolist()
    assert [rows[0][i] for i in (0, 2, 5, 6)] == [0, 0, 0, 0]
    assert rows[1][0] == 0
    assert rows[0][1] == rows[0][4] == rows[1][3] == rows[1][5]
    assert rows[0][7] == rows[1][1], "that something is first is known"
    without = build(None, **PRESETS["modern"], bigram_rows=1 << 16).shape
    assert all(row > 0 for row in bigram_ids(tokens, without)[0, 1:].tolist())


def test_a_shape_saved_before_document_masks_has_none() -> None:
    values = Shape(**SIZES, eot=EOT).to_dict()
    assert Shape.from_dict(values).eot == EOT
    del values["eot"]
    assert Shape.from_dict(values) == Shape(**SIZES)


# -- the variable-length kernel --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "starts"),
    [
        ([[1, 2, 3], [4, 5, 6]], [0, 3, 6]),
        ([[1, 9, 3], [9, 5, 9]], [0, 1, 3, 5, 6]),
        ([[9, 9, 9], [1, 2, 9]], [0, 1, 2, 3, 5, 6]),
    ],
)
def test_documents_start_at_their_end_of_text_and_with_each_sequence(
    tokens: list[list[int]], starts: list[int]
) -> None:
    found = document_starts(np.array(tokens), 9)
    assert found.dtype == np.int32
    assert found.tolist() == starts


def shares_of(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention weights within one document, (H, T, T), of `q` and `k`, (H, T, S)."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(), -torch.inf).softmax(dim=-1)


def by_document(starts: Tensor, *parts: Tensor) -> Iterator[list[Tensor]]:
    """Yield each document of arrays (tokens, H, S) as (H, T, S) in float32."""
    for first, last in itertools.pairwise(starts.tolist()):
        yield [part[first:last].transpose(0, 1).float() for part in parts]


def naive(q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> Tensor:
    found = [shares_of(one, two) @ three for one, two, three in by_document(starts, q, k, v)]
    return torch.cat([part.transpose(0, 1) for part in found]).to(q.dtype)


def naive_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for above, one, two, three in by_document(starts, grad, q, k, v):
        shares, of_shares = shares_of(one, two), above @ three.mT
        scores = shares * (of_shares - (of_shares * shares).sum(dim=-1, keepdim=True)) / q.shape[-1] ** 0.5
        found.append((scores @ two, scores.mT @ one, shares.mT @ above))
    q_grad, k_grad, v_grad = (
        torch.cat([part.transpose(0, 1) for part in each]).to(q.dtype) for each in zip(*found, strict=True)
    )
    return q_grad, k_grad, v_grad


@pytest.fixture(scope="module")
def kernel() -> Iterator[list[torch.dtype]]:
    """Register a naive CPU implementation of torch's operator. Returns the dtypes that it is called with."""
    from torch.nn.attention import varlen

    seen: list[torch.dtype] = []

    def forward(
        q: Tensor, k: Tensor, v: Tensor, starts: Tensor, other: Tensor, longest: int, longest_k: int, *rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert (*rest[:3], longest) == (True, None, [-1, 0], longest_k)  # causal, default scale, unlimited to the left
        assert q.dtype == k.dtype == v.dtype
        assert all(part.stride(-1) == 1 for part in (q, k, v))
        assert starts.dtype == other.dtype == torch.int32
        assert max(starts.diff().tolist()) <= longest
        seen.append(q.dtype)
        return naive(q, k, v, starts), torch.zeros(q.shape[1], q.shape[0]), torch.zeros(2).to(torch.uint64)

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, starts: Tensor, other: Tensor,
        longest: int, *rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        return naive_backward(grad, q, k, v, starts)

    varlen._varlen_attn.register_kernel("cpu", forward)
    varlen._varlen_attn_backward.register_kernel("cpu", backward)
    yield seen


@EACH
def test_the_kernel_and_the_mask_are_the_same_attention(kernel: list[torch.dtype], options: dict[str, Any]) -> None:
    tokens = some_tokens()
    tokens[1] = tokens[1].roll(3)  # documents at other positions in the second sequence
    targets = tokens.roll(-1, dims=1)
    starts = torch.from_numpy(document_starts(tokens.numpy(), EOT))
    losses, grads = [], []
    for each in (None, starts):
        model = build(**options)
        loss = loss_of(model, tokens, targets, each)
        loss.backward()
        losses.append(loss)
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(losses[1], losses[0])
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-3)


def test_the_kernel_gets_half_precision_from_float32_norms_and_tables(kernel: list[torch.dtype]) -> None:
    tokens = some_tokens()
    starts = torch.from_numpy(document_starts(tokens.numpy(), EOT))
    kernel.clear()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = build(**OPTIONS["all"])(tokens, starts=starts)
        expected = build(**OPTIONS["all"])(tokens)
    assert kernel == [torch.bfloat16] * 3
    assert F.cosine_similarity(found.float().flatten(), expected.float().flatten(), dim=0) > 0.999


@pytest.mark.parametrize("form", ["mask", "starts"])
def test_one_graph_for_any_number_of_documents(kernel: list[torch.dtype], form: str) -> None:
    model = build(**OPTIONS["all"], n_layer=1)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(loss_of, backend="eager", fullgraph=True)
    for ends in ([], [3], [3, 9, 11]):
        tokens = some_tokens()
        tokens[:, ends] = EOT
        starts = torch.from_numpy(document_starts(tokens.numpy(), EOT)) if form == "starts" else None
        if starts is not None:
            torch._dynamo.maybe_mark_dynamic(starts, 0)
        found, expected = (each(model, tokens, tokens, starts) for each in (compiled, loss_of))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
