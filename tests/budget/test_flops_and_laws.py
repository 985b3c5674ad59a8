"""The FLOP convention, the device table and the laws, against published numbers and torch's own counter."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from budget.devices import BY_NAME, by_cuda_name
from budget.flops import flops_6nd_per_token, flops_per_token
from budget.laws import CHINCHILLA_APPROACH_2, CHINCHILLA_TABLE_3, LAWS, loss_curve, relative_loss
from model.gpt import GPT
from model.shape import PRESETS, Shape

TABLE_3 = LAWS["chinchilla-table3"]


@pytest.mark.parametrize("preset", ["classic", "llama", "modern"])
def test_flops_agree_with_torchs_counter(preset: str) -> None:
    """torch counts what runs: forward and backward of every matrix product, and attention (its causal half in full)."""
    shape = Shape(n_layer=3, n_head=2, n_embd=128, block_size=64, vocab_size=512, **PRESETS[preset])
    model, tokens = GPT(shape), torch.randint(512, (2, 64))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(tokens, tokens).backward()
    assert counter.get_total_flops() == pytest.approx(flops_per_token(shape) * tokens.numel(), rel=0.01)


def test_published_flops_of_gpt2_small() -> None:
    """12 x 768, V 50257, T 1024: 8.54e8 FLOPs a token by PaLM's formula; 6N is 7.4e8 of them."""
    shape = Shape(12, 12, 768, 1024, 50257)
    assert flops_per_token(shape) == pytest.approx(8.54e8, rel=2e-3)
    assert flops_6nd_per_token(shape) == pytest.approx(6 * 123.5e6, rel=2e-3)


@pytest.mark.parametrize(("parameters", "flops"), CHINCHILLA_TABLE_3[:3] + CHINCHILLA_TABLE_3[5:])
def test_table_3_is_on_the_line(parameters: float, flops: float) -> None:
    assert TABLE_3.parameters(flops) == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize(("parameters", "flops"), CHINCHILLA_APPROACH_2)
def test_approach_2_is_on_its_line(parameters: float, flops: float) -> None:
    assert LAWS["chinchilla-a2"].parameters(flops) == pytest.approx(
        parameters, rel=0.05
    )  # tokens are printed to 2 digits


def test_the_regression_is_the_known_one() -> None:
    """N = 0.09916 C^0.4981; at 3.4e18 FLOPs 169M parameters and 3.38B tokens."""
    assert TABLE_3.exponent == pytest.approx(0.4981, abs=1e-4)
    assert math.exp(TABLE_3.intercept) == pytest.approx(0.09916, rel=5e-3)
    assert TABLE_3.parameters(3.4e18) == pytest.approx(169e6, rel=0.01)
    assert TABLE_3.tokens(3.4e18) == pytest.approx(3.38e9, rel=0.01)


@pytest.mark.parametrize("flops", [1e13, 1e18, 1e22])
def test_parameters_and_tokens_spend_the_compute_exactly(flops: float) -> None:
    assert 6 * TABLE_3.parameters(flops) * TABLE_3.tokens(flops) == pytest.approx(flops, rel=1e-12)


def test_where_the_law_was_not_measured_it_says_so() -> None:
    assert TABLE_3.extrapolates(1e15)
    assert not TABLE_3.extrapolates(1e20)


def test_the_expected_loss_has_its_minimum_at_the_laws_size() -> None:
    """At fixed 6ND the law's own size is best, and twice or half of it is worse by Porian's curvature."""
    best = TABLE_3.parameters(3e18)
    loss = {f: relative_loss(TABLE_3, f * best, 3e18 / (6 * f * best)) for f in (0.5, 0.9, 1.0, 1.1, 2.0)}
    assert min(loss, key=lambda f: loss[f]) == 1.0
    assert loss[2.0] - loss[1.0] == pytest.approx(0.042 * math.log(2) ** 2, rel=0.02)


def test_curve_constants_are_held_outside_the_measured_range() -> None:
    assert loss_curve(1e10) == loss_curve(1.25e16)
    assert loss_curve(1e25) == loss_curve(2.56e19)
    slopes = [loss_curve(10**e)[0] for e in range(16, 21)]
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla T4", "t4"),
        ("Tesla V100-SXM2-16GB", "v100"),
    ],
)
def test_devices_are_known_by_the_names_cuda_reports(reported: str, name: str) -> None:
    device = by_cuda_name(reported)
    assert device is not None
    assert device.name == name


def test_an_unknown_device_is_not_guessed() -> None:
    assert by_cuda_name("NVIDIA GeForce GTX 1080 Ti") is None
    assert BY_NAME["a100"].peak == 312e12
