"""Cross-entropy of a vocabulary matrix's logits, a slice of rows at a time, so that no more than a slice ever exists.

The gradient is made in the forward pass, while a slice's logits are at hand. That saves the memory that they would take
several times over; on a CPU, whose caches a slice fits in, it saves time as well (docs/performance.md). What a target loses
is bounded by 87 nats, as a probability below 1e-38 is none in float32; its gradient is not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.modes import compute_dtype

SLICE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}  # of a slice's logits in float32
WHOLE_BYTES = {"cpu": 0, "cuda": 1 << 31}  # logits that take no more than this are left to torch
COMPILED_BYTES = 1 << 26  # as WHOLE_BYTES, on a CPU in compiled code, which fuses what follows the logits; not measured
MIN_PROBABILITY = torch.finfo(torch.float32).tiny
TILE = 128  # rows of a matrix product that the hardware computes together; fewer at a time are slow


def is_sliced(rows: int, vocabulary: int, kind: str, precision: torch.dtype) -> bool:
    """Whether the loss of so many rows is computed here where a gradient is wanted. Not in float16, whose range a gradient
    needs scaled before it is rounded. `kind`: a device's type."""
    if kind not in SLICE_BYTES or precision == torch.float16:
        return False
    whole = COMPILED_BYTES if kind == "cpu" and torch.compiler.is_compiling() else WHOLE_BYTES[kind]
    return 4 * rows * vocabulary > whole


def rows_per_slice(rows: int, vocabulary: int, kind: str, precision: torch.dtype) -> int:
    """How many of `rows` logits exist at the same time where a gradient is wanted: all, or a slice of them."""
    if not is_sliced(rows, vocabulary, kind, precision):
        return rows
    fitting = SLICE_BYTES[kind] // (4 * vocabulary)
    return min(rows, max(TILE, fitting - fitting % TILE))


class SlicedCrossEntropy(torch.autograd.Function):
    """Mean over the targets that are not -1, in float32. Only its first derivative is there; a second one is refused."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, rows: int) -> Tensor:
        """hidden (n, D), weight (V, D), targets (n,) int64."""
        precision = compute_dtype(hidden)
        matrix = weight.to(precision)
        counted = targets != -1
        count = counted.sum()
        # A GPU is not waited for, and a compiled graph not broken, to know whether there are targets to leave out.
        padded = hidden.device.type != "cpu" or torch.compiler.is_compiling() or bool(count < len(targets))
        plain = precision == hidden.dtype == weight.dtype
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), rows):
                part = slice(first, first + rows)
                some, mask = hidden[part].to(precision), counted[part].unsqueeze(1)
                target = targets[part].clamp(min=0).unsqueeze(1)
                logits = apply_softcap((some @ matrix.T).float(), softcap)
                grad = torch.softmax(logits, dim=1)  # the gradient, when it is less by 1 at the target
                total -= (grad.gather(1, target).clamp(min=MIN_PROBABILITY).log() * mask).sum()
                grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
                if softcap:
                    grad *= 1 - (logits / softcap).square()
                grad = grad.to(precision)
                torch.mm(grad, matrix, out=hidden_grad[part]) if plain else hidden_grad[part].copy_(grad @ matrix)
                if padded:  # what is left out is so in the narrow factors, a fiftieth of the logits' size
                    hidden_grad[part] *= mask
                    some = some * mask
                weight_grad.addmm_(grad.T, some) if plain else weight_grad.add_(grad.T @ some)
        ctx.save_for_backward(hidden_grad, weight_grad, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, count = ctx.saved_tensors
        scale = grads[0] / count.clamp(min=1)  # no target, no gradient; the loss is NaN then
        return hidden_grad * scale, weight_grad * scale, None, None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Nats per target of the logits hidden @ weight.T, bounded by `softcap` where that is not 0; (n, D), (V, D), (n,).
    Sliced where a gradient is wanted and it pays."""
    size = len(hidden), len(weight), hidden.device.type, compute_dtype(hidden)
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if wanted and is_sliced(*size):
        found: Tensor = SlicedCrossEntropy.apply(hidden, weight, targets, softcap, rows_per_slice(*size))
        return found
    logits = F.linear(hidden, weight)
    return F.cross_entropy(apply_softcap(logits, softcap).float(), targets, ignore_index=-1)


def apply_softcap(logits: Tensor, softcap: float) -> Tensor:
    """Logits bounded by tanh (Gemma 2, arXiv:2408.00118); 0 leaves them unchanged."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits
