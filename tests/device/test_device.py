"""Memory estimates, compile options and transfers of a device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from device import device as module
from device.compile_cost import first_that_pays
from device.device import CPU_MICRO_TOKENS, CPU_MOST_TOKENS, MEMORY_SHARE, Device, available_memory
from model import loss
from model.config import Shape

GIB = 2**30
# GPT-2's smallest: about half of what a token takes would be its logits, if they were all there at once.
SHAPE = Shape(12, 12, 768, 1024, 50304)
GPU = Device(torch.device("cuda"), "a GPU", "bfloat16", 1, 1e14, "given")


def test_fetch_async_returns_the_values() -> None:
    loss, norm = torch.tensor(2.5), torch.tensor(0.5)
    assert Device(torch.device("cpu"), "", "float32", 1, 1e12, "given").fetch_async(loss, norm)() == [2.5, 0.5]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fetch_async_does_not_wait_for_later_work() -> None:
    matrix = torch.randn(8192, 8192, device="cuda")
    numbers = GPU.fetch_async(matrix[0, 0], matrix[0, 0])
    for _ in range(100):
        matrix @ matrix
    numbers()
    assert not torch.cuda.current_stream().query(), "the products are still under way"


class Roomy(Device):
    """A device with 80 GiB of free memory."""

    def free_memory(self) -> int:
        return 80 * GIB


def roomy(kind: str, precision: str) -> Device:
    return Roomy(torch.device(kind), "", precision, 1, 1e14, "given")


def test_a_slice_of_the_logits_is_counted_where_the_loss_makes_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, a_slice = 24 * 12 * 768 * 2, 2**28 // (4 * 50304) // 128 * 128 * 50304 * 10
    assert GPU.step_memory(SHAPE, 65536) == 65536 * kept + a_slice
    assert replace(GPU, precision="float16").step_memory(SHAPE, 65536) == 65536 * (kept + 50304 * 10)
    assert GPU.step_memory(SHAPE, 8192) == 8192 * (kept + 50304 * 10)  # 1.5 GiB in float32: at once
    monkeypatch.setitem(loss.WHOLE_BYTES, "cuda", 0)
    assert GPU.step_memory(SHAPE, 8192) == 8192 * kept + a_slice


def test_the_micro_batch_is_the_largest_that_is_estimated_to_fit() -> None:
    bfloat16, float16 = roomy("cuda", "bfloat16"), roomy("cuda", "float16")
    assert bfloat16.micro_batch(SHAPE, 100) == 100
    found = bfloat16.micro_batch(SHAPE, 480)
    assert found == 64
    assert bfloat16.step_memory(SHAPE, 64 * 1024) <= MEMORY_SHARE * 80 * GIB < bfloat16.step_memory(SHAPE, 128 * 1024)
    assert float16.micro_batch(SHAPE, 480) == 32  # its logits are there at once
    assert bfloat16.micro_batch(replace(SHAPE, n_layer=10**6), 480) == 1
    for threads, tokens in ((1, CPU_MICRO_TOKENS), (2, 2 * CPU_MICRO_TOKENS), (64, CPU_MOST_TOKENS)):
        cpu = replace(roomy("cpu", "float32"), threads=threads)
        assert cpu.micro_batch(replace(SHAPE, n_layer=1), 480) == tokens // 1024


@pytest.mark.parametrize(
    ("seconds", "how"),
    [(80.0, None), (100.0, "regional"), (260.0, "regional"), (280.0, "on"), (1e5, "on"), (None, None)],
)
def test_blocks_are_compiled_where_the_whole_model_would_not_pay(seconds: float | None, how: str | None) -> None:
    found = first_that_pays(GPU.compile_options("auto"), seconds)
    assert (found.how if found else None) == how


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
def test_the_users_compile_setting_holds_on_every_device(kind: str) -> None:
    here = replace(GPU, torch_device=torch.device(kind))
    for setting in ("on", "regional"):
        found = first_that_pays(here.compile_options(setting), 1.0)
        assert found is not None
        assert found.how == setting
    assert here.compile_options("off") == []
    if kind != "cuda":  # nothing is expected of it
        assert first_that_pays(here.compile_options("auto"), 1e6) is None


def test_document_starts_only_where_the_varlen_kernel_supports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, masked = np.array([[1, 9, 2, 3], [4, 5, 9, 6]]), replace(SHAPE, eot=9)
    here = Device(torch.device("cpu"), "", "bfloat16", 1, 1e12, "given")
    assert here.document_starts(tokens, masked) is None  # a CPU has no such kernel
    monkeypatch.setattr(module, "best_precision", lambda device: "bfloat16")
    found = here.document_starts(tokens, masked)
    assert found is not None
    assert found.tolist() == [0, 1, 4, 6, 8]
    for unable in (
        replace(masked, dropout=0.1),
        replace(masked, n_embd=12 * 260),
        replace(masked, n_embd=12 * 12),
        SHAPE,
    ):
        assert here.document_starts(tokens, unable) is None
    assert replace(here, precision="float32").document_starts(tokens, masked) is None


def test_tensors_on_the_device_are_contiguous() -> None:
    """A compiled model is specialised to one layout."""
    batch = np.arange(20).reshape(4, 5)
    here = Device(torch.device("cpu"), "", "float32", 1, 1e12, "given")
    assert here.to_device(batch[:, :-1]).stride() == here.to_device(np.zeros((4, 4))).stride()
    assert here.to_device(batch[:, 1:]).tolist() == batch[:, 1:].tolist()


def test_the_page_cache_does_not_count_as_used_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container counts the page cache as used, but the kernel frees it on demand."""
    mega = 1 << 20
    (tmp_path / "memory.max").write_text(f"{100 * mega}\n")
    (tmp_path / "memory.current").write_text(f"{95 * mega}\n")
    (tmp_path / "memory.stat").write_text(
        f"anon {20 * mega}\nfile {75 * mega}\ninactive_file {60 * mega}\nactive_file {15 * mega}\n"
    )
    monkeypatch.setattr(module, "Path", lambda name: tmp_path if name == "/sys/fs/cgroup" else Path(name))
    assert available_memory() == 80 * mega
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 80 * mega


def test_a_gpu_with_an_index_becomes_the_default_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(torch.cuda, "init", lambda: asked.append("init"))
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    threads = torch.get_num_threads()
    module.set_up(torch.device("cuda:1"), threads)
    module.set_up(torch.device("cuda"), threads)
    module.set_up(torch.device("cpu"), threads)
    assert asked == ["init", torch.device("cuda:1"), "init"]
