"""The FLOP convention and the device table, against published numbers and torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from budget.flops import flops_6nd_per_token, flops_per_token
from device.specs import BY_NAME, by_cuda_name, width_factor
from model import loss
from model.config import PRESETS, Shape
from model.gpt import GPT
from tests.model.losses import loss_of


@pytest.mark.parametrize("preset", ["classic", "llama", "modern"])
def test_flops_agree_with_torchs_counter(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts what runs: forward and backward of every matrix product, and attention (its causal half in full)."""
    # The counter knows no products that are added to something: torch's own loss, which has none.
    monkeypatch.setitem(loss.WHOLE_BYTES, "cpu", 1 << 60)
    shape = Shape(n_layer=3, n_head=2, n_embd=128, block_size=64, vocab_size=512, **PRESETS[preset])
    model, tokens = GPT(shape), torch.randint(512, (2, 64))
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss_of(model, tokens, tokens).backward()
    assert counter.get_total_flops() == pytest.approx(flops_per_token(shape) * tokens.numel(), rel=0.01)


def test_published_flops_of_gpt2_small() -> None:
    """12 x 768, V 50257, T 1024: 8.54e8 FLOPs a token by PaLM's formula; 6N is 7.4e8 of them."""
    shape = Shape(12, 12, 768, 1024, 50257)
    assert flops_per_token(shape) == pytest.approx(8.54e8, rel=2e-3)
    assert flops_6nd_per_token(shape) == pytest.approx(6 * 123.5e6, rel=2e-3)


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
        ("NVIDIA GeForce GTX 1080 Ti", None),  # variants and parts of known devices are not guessed
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H200 NVL", None),
    ],
)
def test_devices_are_known_by_the_names_cuda_reports(reported: str, name: str | None) -> None:
    device = by_cuda_name(reported)
    assert (device.name if device else None) == name


@pytest.mark.parametrize("name", ["v100", "t4"])
def test_devices_that_emulate_bfloat16_are_planned_for_in_float16(name: str) -> None:
    device = BY_NAME[name]
    assert (device.precision, device.peak) == ("float16", device.fp16)
    assert device.peak_in("bfloat16") is None  # measured, where somebody asks for it


def test_a_precision_that_the_table_does_not_know_is_measured() -> None:
    assert BY_NAME["a100"].peak_in("float32") is None
    assert BY_NAME["a100"].peak_in("float16") == BY_NAME["a100"].peak_in("bfloat16") == 312e12


def test_expected_speed_by_width_is_what_nanochat_measured_on_h100() -> None:
    half_width = BY_NAME["h100"].half_width
    assert width_factor(half_width, 768) == 1.0
    assert width_factor(half_width, 1152) == pytest.approx(46 / 41, rel=0.01)  # 41 % at 768, 46 % at 1152
    assert width_factor(half_width, 128) < 0.5
    assert BY_NAME["a100"].half_width < half_width  # more bandwidth for its FLOPs
