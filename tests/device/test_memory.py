"""Retrying work in smaller pieces after running out of memory."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from device.memory import attempts, out_of_memory


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (MemoryError(), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("out of memory"), False),
        (None, False),
    ],
)
def test_what_counts_as_out_of_memory(error: BaseException | None, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_real_refusal_of_the_cpus_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    assert out_of_memory(caught.value)


class Held:
    """Stands for the memory that a failed attempt held."""


def test_shrinks_until_it_fits_and_frees_failed_attempts() -> None:
    size, held, seen = [8], list[weakref.ref[Held]](), list[tuple[int, bool]]()

    def shrink() -> None:
        seen.append((size[0], held[-1]() is None))
        size[0] //= 2

    def work() -> None:
        kept = Held()
        held.append(weakref.ref(kept))
        if size[0] > 2:
            raise MemoryError

    gc.disable()
    try:
        for attempt in attempts(shrink):
            with attempt:
                work()
    finally:
        gc.enable()
    assert size[0] == 2
    assert seen == [(8, True), (4, True)]


def test_other_exceptions_pass_through_and_shrink_may_raise() -> None:
    with pytest.raises(KeyError):
        for attempt in attempts(lambda: None):
            with attempt:
                raise KeyError

    def no_smaller() -> None:
        raise ValueError("one already")

    with pytest.raises(ValueError, match="one already"):
        for attempt in attempts(no_smaller):
            with attempt:
                raise MemoryError
