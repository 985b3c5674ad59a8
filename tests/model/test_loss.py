"""Tests that the sliced cross-entropy equals the unsliced one in value and gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model import loss
from model.loss import SlicedCrossEntropy, apply_softcap, cross_entropy, rows_per_slice

N, WIDTH, VOCAB = 37, 8, 50


def case(ignored: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((N, WIDTH), generator=generator).requires_grad_()
    weight = torch.randn((VOCAB, WIDTH), generator=generator).requires_grad_()
    targets = torch.randint(VOCAB, (N,), generator=generator)
    if ignored:
        targets[::3] = -1
    return hidden, weight, targets


@pytest.mark.parametrize("softcap", [0.0, 3.0])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("rows", [1, 5, N, 2 * N])
def test_slices_change_neither_loss_nor_gradient(rows: int, ignored: bool, softcap: float) -> None:
    hidden, weight, targets = case(ignored)
    expected = F.cross_entropy(apply_softcap(hidden @ weight.T, softcap), targets, ignore_index=-1)
    expected_grads = torch.autograd.grad(2 * expected, (hidden, weight))
    found = SlicedCrossEntropy.apply(hidden, weight, targets, softcap, rows)
    torch.testing.assert_close(found, expected)
    for grad, wanted in zip(torch.autograd.grad(2 * found, (hidden, weight)), expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-6, rtol=1e-4)


def test_only_large_logits_are_sliced(monkeypatch: pytest.MonkeyPatch) -> None:
    sliced: list[int] = []
    plain = SlicedCrossEntropy.apply
    monkeypatch.setattr(SlicedCrossEntropy, "apply", lambda *args: sliced.append(args[-1]) or plain(*args))
    hidden, weight, targets = case(ignored=False)
    monkeypatch.setitem(loss.WHOLE_BYTES, "cpu", 4 * N * VOCAB)
    whole = cross_entropy(hidden, weight, targets)
    assert sliced == []
    monkeypatch.setitem(loss.WHOLE_BYTES, "cpu", 4 * N * VOCAB - 1)
    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 10 * 4 * VOCAB)
    monkeypatch.setattr(loss, "TILE", 5)
    torch.testing.assert_close(cross_entropy(hidden, weight, targets), whole)
    assert sliced == [10]
    with torch.no_grad():
        cross_entropy(hidden, weight, targets)
    cross_entropy(hidden.detach(), weight.detach(), targets)
    assert sliced == [10], "without a gradient there is nothing to save"
    with torch.autocast("cpu", torch.float16):
        cross_entropy(hidden, weight, targets)
    assert sliced == [10], "gradients would vanish in float16's range"


def test_a_slice_is_a_positive_multiple_of_a_tile() -> None:
    assert rows_per_slice(4096, 4096, "cpu", torch.float32) == 256
    assert rows_per_slice(200, 4096, "cpu", torch.float32) == 200
    assert rows_per_slice(4096, 50304, "cpu", torch.float32) == 128  # beyond SLICE_BYTES, but at least one tile
    assert rows_per_slice(65536, 50304, "cuda", torch.bfloat16) == 1280
    assert rows_per_slice(4096, 50304, "mps", torch.float32) == 4096


def test_a_target_of_probability_zero_has_a_finite_loss_and_its_full_gradient() -> None:
    """The target's probability is 0 in float32: its loss is bounded and finite."""
    hidden, weight = torch.tensor([[1.0], [0.0]]).requires_grad_(), torch.tensor([[200.0], [0.0]]).requires_grad_()
    targets = torch.tensor([1, 1])
    found = SlicedCrossEntropy.apply(hidden, weight, targets, 0.0, 10)
    expected = F.cross_entropy(hidden @ weight.T, targets)
    assert expected.item() > 100
    assert 40 < found.item() < 50, "87 nats of one target, 0.7 of the other, over two"
    grads = (torch.autograd.grad(each, (hidden, weight)) for each in (found, expected))
    for grad, wanted in zip(*grads, strict=True):
        torch.testing.assert_close(grad, wanted)


def test_without_targets_the_loss_is_nan_and_the_gradient_zero() -> None:
    hidden, weight, targets = case(ignored=False)
    found = cross_entropy(hidden, weight, torch.full_like(targets, -1))
    assert found.isnan()
    assert all(not grad.any() for grad in torch.autograd.grad(found, (hidden, weight)))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, targets = case(ignored=False)
    scale = torch.ones((), requires_grad=True)
    found = SlicedCrossEntropy.apply(hidden, weight, targets, 0.0, 10)
    (grad,) = torch.autograd.grad(found * scale, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()


def test_sliced_and_compiled_it_is_one_graph_with_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.SLICE_BYTES, "cpu", 10 * 4 * VOCAB)
    monkeypatch.setattr(loss, "TILE", 5)
    monkeypatch.setattr(loss, "COMPILED_BYTES", 0)
    hidden, weight, targets = case(ignored=True)
    torch._dynamo.reset()
    found = torch.compile(cross_entropy, backend="eager", fullgraph=True)(hidden, weight, targets)
    expected = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, weight), torch.autograd.grad(expected, weight))


def test_under_autocast_products_are_in_half_precision_and_the_loss_is_float32() -> None:
    hidden, weight, targets = case(ignored=False)
    with torch.autocast("cpu", torch.bfloat16):
        found = SlicedCrossEntropy.apply(hidden, weight, targets, 0.0, 10)
        expected = F.cross_entropy((hidden @ weight.T).float(), targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    grad, wanted = torch.autograd.grad(found, weight)[0], torch.autograd.grad(expected, weight)[0]
    assert grad.dtype == torch.float32
    assert F.cosine_similarity(grad.flatten(), wanted.flatten(), dim=0) > 0.999
