"""Tests of the optimizers: every parameter is in one group, AdamW is that of the paper, and only matrices decay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import PRESETS, Shape
from model.gpt import GPT
from model.optim.build import configure_optimizers, set_schedule
from model.optim.settings import OptimSettings
from run.checkpoint import named_optimizer_tensors, restore_optimizer
from tests.model.losses import loss_of

ROOT = Path(__file__).parents[3]

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8, "vocab_size": 64}


def build(**options: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(Shape(**SIZES, **options))


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_parameter_is_in_one_group_and_matrices_decay(preset: str, tie: bool) -> None:
    model = build(**(PRESETS[preset] | {"tie": tie}), bias=True)
    optimizer = configure_optimizers(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decay)
    expected = {id(p): 0.1 if p.ndim >= 2 and name != "shares" else 0.0 for name, p in model.named_parameters()}
    assert decay == expected
    assert set(decay.values()) == {0.1, 0.0}


def test_frozen_parameters_are_left_out() -> None:
    model = build()
    model.wte.weight.requires_grad_(False)
    optimizer = configure_optimizers(model, 1e-3, 0.1, (0.9, 0.95), "cpu")
    assert all(p is not model.wte.weight for group in optimizer.param_groups for p in group["params"])


@pytest.mark.parametrize("device_type", ["cpu", "xpu"])  # MuonAdamW with torch's kernel, and torch.optim.AdamW
def test_adamw_is_that_of_the_paper(device_type: str) -> None:
    """Compares three steps with algorithm 2 of arXiv:1711.05101, written out in float64."""
    model = build(bias=True)
    learning_rate, weight_decay, (beta1, beta2), eps = 3e-3, 0.1, (0.9, 0.95), 1e-6
    settings = OptimSettings(eps=eps)
    optimizer = configure_optimizers(model, learning_rate, weight_decay, (beta1, beta2), device_type, settings)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in expected.items()}
    second = {name: torch.zeros_like(p) for name, p in expected.items()}
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))
    for step in (1, 2, 3):
        rate = learning_rate / step
        set_schedule(optimizer, rate, 0.5)
        optimizer.zero_grad()
        loss_of(model, tokens[:, :-1], tokens[:, 1:]).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.double()
            first[name] = beta1 * first[name] + (1 - beta1) * gradient
            second[name] = beta2 * second[name] + (1 - beta2) * gradient**2
            change = first[name] / (1 - beta1**step) / ((second[name] / (1 - beta2**step)).sqrt() + eps)
            decay = weight_decay * expected[name] if parameter.ndim >= 2 else 0.0
            expected[name] = expected[name] - rate * (change + decay)
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize("device_type", ["cpu", "xpu"])
def test_checkpoints_of_torchs_adamw_and_ours_are_interchangeable(device_type: str) -> None:
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(1))

    def after(steps: int, change: str | None) -> dict[str, Tensor]:
        model, kind = build(), device_type
        optimizer = configure_optimizers(model, 1e-2, 0.1, (0.9, 0.95), kind)
        for step in range(steps):
            if step == 2 and change:
                saved = {name: value.clone() for name, value in named_optimizer_tensors(model, optimizer).items()}
                optimizer = configure_optimizers(model, 1e-2, 0.1, (0.9, 0.95), change)
                restore_optimizer(model, optimizer, saved)
            optimizer.zero_grad()
            loss_of(model, tokens[:, :-1], tokens[:, 1:]).backward()
            optimizer.step()
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    other = "xpu" if device_type == "cpu" else "cpu"
    straight, moved = after(4, None), after(4, other)
    for name, expected in straight.items():
        torch.testing.assert_close(moved[name], expected, atol=1e-6, rtol=1e-5)


def test_the_learning_rate_of_a_group_follows_its_scale() -> None:
    optimizer = configure_optimizers(build(), 1e-3, 0.1, (0.9, 0.95), "cpu")
    assert all(group["lr_scale"] == 1.0 for group in optimizer.param_groups)
    settings = OptimSettings(table_rate=0.25)
    optimizer = configure_optimizers(build(tie=False, bigram_rows=50), 1e-3, 0.1, (0.9, 0.95), "cpu", settings)
    set_schedule(optimizer, 2e-3, 0.5)
    rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"matrix": 2e-3, "table": 5e-4, "embedding": 2e-3, "head": 2e-3, "vector": 2e-3}


@pytest.mark.parametrize(("device_type", "fused"), [("cpu", True), ("cuda", True), ("xpu", False)])
def test_fused_on_devices_with_a_fused_kernel(device_type: str, fused: bool) -> None:
    if device_type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = build().to(device_type if device_type == "cuda" else "cpu")
    optimizer = configure_optimizers(model, 1e-3, 0.1, (0.9, 0.95), device_type)
    assert optimizer.defaults["fused"] is fused


@pytest.mark.parametrize("rows", [0, 8])
def test_a_step_does_not_load_torchs_compiler(rows: int) -> None:
    """Importing the compiler takes two seconds, which a run without compilation does not need."""
    code = (
        "import sys, torch; from data.batch import Batch; from training.objectives import next_token\n"
        "from model.gpt import GPT; from model.optim.build import configure_optimizers as make\n"
        f"from model.config import Shape; model = GPT(Shape(1, 2, 32, 8, 64, bigram_rows={rows}))\n"
        "optimizer = make(model, 1e-3, 0.1, (0.9, 0.95), 'cpu')\n"
        "optimizer.zero_grad(); next_token(model, Batch(*2 * [torch.zeros(1, 8, dtype=int)])).backward(); optimizer.step()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_process_for_trials_is_ready_without_torchs_compiler() -> None:
    code = "import sys; from training.trial_worker import warm_up; warm_up('cpu'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
