"""Tests of Muon against torch.optim.Muon, of its options, and of the optimizer for tables."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers, set_schedule
from model.optim.muon import newton_schulz_dtype, orthogonalise
from model.optim.settings import MOMENTUM_START, MOMENTUM_WARMUP, OptimSettings, momentum_at
from tests.model.losses import loss_of

SHAPE = Shape(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=64, **(PRESETS["classic"] | {"qk_norm": True}))
TOKENS = torch.randint(64, (4, 17), generator=torch.Generator().manual_seed(1))


def build() -> GPT:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    with torch.no_grad():  # no gradient passes through outputs that are 0
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.1)
    return model


def steps(model: GPT, optimizer: torch.optim.Optimizer, count: int, rate: float = 0.01) -> None:
    for step in range(count):
        set_schedule(optimizer, rate * (1 - step / count), 1.0)
        optimizer.zero_grad()
        loss_of(model, TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        optimizer.step()


def muon_of(model: GPT, weight_decay: float = 0.1, **settings: Any) -> torch.optim.Optimizer:
    return configure_optimizers(model, 0.01, weight_decay, (0.9, 0.95), "cpu", OptimSettings("muon", **settings))


def whole(model: GPT) -> list[Tensor]:
    """Return the parameters of the blocks that hold a single matrix."""
    return [p for name, p in model.named_parameters() if name.endswith(("out.weight", "up.weight"))]


def test_it_is_torchs_muon_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.optim.Muon rounds to bfloat16 in Newton-Schulz. Without that, both agree to the precision of float32."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    ours, theirs = build(), build()
    steps(ours, muon_of(ours), 4)
    reference = torch.optim.Muon(
        whole(theirs), lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    others = muon_of(theirs)  # queries, keys and values are three matrices here, one there
    for step in range(4):
        rate = 0.01 * (1 - step / 4)
        reference.param_groups[0]["lr"] = rate
        set_schedule(others, rate, 1.0)
        theirs.zero_grad()
        loss_of(theirs, TOKENS[:, :-1], TOKENS[:, 1:]).backward()
        reference.step()
        for p in whole(theirs):
            p.grad = None
        others.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)


def test_queries_keys_and_values_are_orthogonalised_separately() -> None:
    model = build()
    before = model.blocks[0].attention.qkv.weight.detach().clone()
    steps(model, muon_of(model, weight_decay=0.0), 1)
    for part in (model.blocks[0].attention.qkv.weight - before).chunk(3):
        sizes = torch.linalg.svdvals(part.detach())
        assert sizes.quantile(0.2) > 0.5 * sizes.max()
        assert part.norm().item() == pytest.approx(0.01 * 0.2 * 32, rel=0.2), "of one size, whatever their gradients"


def test_other_parameters_are_updated_by_adamw() -> None:
    ours, theirs = build(), build()
    steps(ours, muon_of(ours), 1)
    steps(theirs, configure_optimizers(theirs, 0.01, 0.1, (0.9, 0.95), "cpu"), 1)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        matrix = name.startswith("blocks.") and mine.ndim == 2
        assert torch.allclose(mine, other, atol=1e-7) is not matrix, name


@pytest.mark.parametrize("size", [(32, 32), (16, 64), (128, 512)])
def test_singular_values_become_nearly_one(size: tuple[int, int]) -> None:
    matrices = (
        torch.randn((3, *size), generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    )
    found = torch.linalg.svdvals(orthogonalise(matrices))
    assert found.max() < 1.3
    assert found.quantile(0.05) > 0.5
    left, _, right = torch.linalg.svd(matrices[1], full_matrices=False)
    exact = left @ right
    assert torch.nn.functional.cosine_similarity(orthogonalise(matrices)[1].flatten(), exact.flatten(), dim=0) > 0.97


def test_momentum_rises_with_progress() -> None:
    assert momentum_at(0.0, 0.95) == MOMENTUM_START
    assert momentum_at(MOMENTUM_WARMUP / 2, 0.95) == pytest.approx(0.9)
    assert momentum_at(MOMENTUM_WARMUP, 0.95) == momentum_at(1.0, 0.95) == 0.95
    assert momentum_at(0.0, 0.5) == 0.5
    optimizer = muon_of(build())
    set_schedule(optimizer, 0.01, 0.0)
    assert [group["momentum"] for group in optimizer.param_groups if group["role"] == "matrix"] == [MOMENTUM_START]


def test_cautious_decay_leaves_alone_what_the_update_makes_smaller_by_itself() -> None:
    plain, careful, free = build(), build(), build()
    steps(plain, muon_of(plain, weight_decay=1.0), 1)
    steps(careful, muon_of(careful, weight_decay=1.0, cautious=True), 1)
    steps(free, muon_of(free, weight_decay=0.0), 1)
    start = build()
    for p, c, f, s in zip(whole(plain), whole(careful), whole(free), whole(start), strict=True):
        helps = (f - s) * s < 0  # the update already shrinks the weight: decay agrees with it
        assert 0.2 < helps.float().mean() < 0.8
        torch.testing.assert_close(c[helps], p[helps])
        torch.testing.assert_close(c[~helps], f[~helps])


def test_normuon_evens_out_the_rows_and_keeps_the_norm() -> None:
    plain, even, start = build(), build(), build()
    steps(plain, muon_of(plain, weight_decay=0.0), 1)
    steps(even, muon_of(even, weight_decay=0.0, normuon=True), 1)
    for p, e, s in zip(whole(plain), whole(even), whole(start), strict=True):
        assert (e - s).norm().item() == pytest.approx((p - s).norm().item(), rel=1e-3)
        rows = (e - s).detach().norm(dim=1)
        assert rows.std() < 0.01 * rows.mean()
        assert (p - s).detach().norm(dim=1).std() > 0.02 * rows.mean()


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("sparse", [False, True])
def test_tables_follow_adam_without_momentum_for_sparse_and_dense_gradients(name: str, sparse: bool) -> None:
    """The rows are rare or never used, over more steps than the second moment remembers."""
    options = {"bigram_rows": 40, "value_embeddings": True}
    torch.manual_seed(0)
    model = GPT(Shape(**{**vars(SHAPE), **options}))
    if sparse:
        model.use_sparse_gradients()
    settings = OptimSettings(name, table_rate=2.0)
    optimizer = configure_optimizers(model, 0.01, 0.1, (0.9, 0.8), "cpu", settings)
    tables = [p for name, p in model.named_parameters() if name.startswith(("bigrams", "value_tables"))]
    copies = [p.detach().clone().requires_grad_() for p in tables]
    oracle = torch.optim.Adam(copies, lr=0.02, betas=(0.0, 0.8))
    generator = torch.Generator().manual_seed(3)
    for step in range(25):
        tokens = torch.randint(64 if step % 5 == 0 else 8, (1, 9), generator=generator)
        optimizer.zero_grad()
        loss_of(model, tokens[:, :-1], tokens[:, 1:]).backward()
        for p, copy in zip(tables, copies, strict=True):
            assert p.grad is not None
            assert p.grad.is_sparse is sparse
            copy.grad = p.grad.to_dense() if sparse else p.grad.clone()
        set_schedule(optimizer, 0.01, 1.0)
        optimizer.step()
        oracle.step()
    for p, copy in zip(tables, copies, strict=True):
        torch.testing.assert_close(p, copy, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_half_precision_only_where_it_is_multiplied_faster(
    fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    assert newton_schulz_dtype(torch.device("cuda")) == expected
    assert newton_schulz_dtype(torch.device("cpu")) == torch.float32
