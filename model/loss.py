"""Cross-entropy from hidden states, computed slice by slice so that the full logits are never in memory.

The gradient is computed in the forward pass, while the logits of a slice exist. That saves the memory of the logits several
times over. On a CPU a slice fits into the caches, which saves time as well (docs/performance.md). The loss of a target is at
most 87 nats, because float32 has no normal number below 1e-38 for its probability; the gradient is not bounded.

Shape letters: n = B * T targets, D = n_embd, V = vocab_size, R rows in a slice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.modes import compute_dtype

SLICE_BYTES = {"cpu": 1 << 22, "cuda": 1 << 28}  # largest slice of logits, in float32
WHOLE_BYTES = {"cpu": 0, "cuda": 1 << 31}  # logits up to this size are not sliced
COMPILED_BYTES = (
    1 << 26
)  # WHOLE_BYTES of compiled code on a CPU, which fuses the operations after the logits; not measured
MIN_PROBABILITY = torch.finfo(torch.float32).tiny
TILE = 128  # rows that a matrix product computes together; products with fewer rows are slow


def is_sliced(rows: int, vocabulary: int, device_type: str, dtype: torch.dtype) -> bool:
    """Return whether the loss of (rows, vocabulary) logits with a gradient is computed in slices.

    float16 is not sliced: loss scaling has to multiply the gradient before it is rounded to float16's small range.
    """
    if device_type not in SLICE_BYTES or dtype == torch.float16:
        return False
    whole = COMPILED_BYTES if device_type == "cpu" and torch.compiler.is_compiling() else WHOLE_BYTES[device_type]
    return 4 * rows * vocabulary > whole


def rows_per_slice(rows: int, vocabulary: int, device_type: str, dtype: torch.dtype) -> int:
    """Return how many of `rows` rows of logits exist at the same time if a gradient is computed."""
    if not is_sliced(rows, vocabulary, device_type, dtype):
        return rows
    fitting = SLICE_BYTES[device_type] // (4 * vocabulary)
    return min(rows, max(TILE, fitting - fitting % TILE))


class SlicedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy in nats over the targets that are not -1, float32. A second derivative raises RuntimeError."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float, rows: int) -> Tensor:
        """Return the scalar loss of `hidden` (n, D), `weight` (V, D) and `targets` (n,), int64; `rows` is R."""
        dtype = compute_dtype(hidden)
        matrix = weight.to(dtype)
        counted = targets != -1
        count = counted.sum()
        # Reading `count` would make the host wait for a GPU and would break a compiled graph: assume ignored targets there.
        padded = hidden.device.type != "cpu" or torch.compiler.is_compiling() or bool(count < len(targets))
        same_dtype = dtype == hidden.dtype == weight.dtype  # products may write into the gradients without a cast
        total = torch.zeros((), device=hidden.device)
        hidden_grad = torch.empty_like(hidden)
        weight_grad = torch.zeros_like(weight)
        with torch.autocast(hidden.device.type, enabled=False):
            for first in range(0, len(hidden), rows):
                part = slice(first, first + rows)
                h, mask = hidden[part].to(dtype), counted[part].unsqueeze(1)  # (R, D), (R, 1)
                target = targets[part].clamp(min=0).unsqueeze(1)  # (R, 1)
                logits = apply_softcap((h @ matrix.T).float(), softcap)  # (R, D) @ (D, V) -> (R, V)
                grad = torch.softmax(logits, dim=1)  # d loss / d logits is softmax minus 1 at the target
                total -= (grad.gather(1, target).clamp(min=MIN_PROBABILITY).log() * mask).sum()
                grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
                if softcap:
                    grad *= 1 - (logits / softcap).square()  # derivative of softcap * tanh(x / softcap)
                grad = grad.to(dtype)
                # (R, V) @ (V, D) -> (R, D)
                torch.mm(grad, matrix, out=hidden_grad[part]) if same_dtype else hidden_grad[part].copy_(grad @ matrix)
                if padded:  # mask ignored targets in the (R, D) factors, which are much smaller than the (R, V) logits
                    hidden_grad[part] *= mask
                    h = h * mask
                # (V, R) @ (R, D) -> (V, D)
                weight_grad.addmm_(grad.T, h) if same_dtype else weight_grad.add_(grad.T @ h)
        ctx.save_for_backward(hidden_grad, weight_grad, count)
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, weight_grad, count = ctx.saved_tensors
        scale = grads[0] / count.clamp(min=1)  # without targets the loss is NaN and the gradient 0
        return hidden_grad * scale, weight_grad * scale, None, None, None


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float = 0.0) -> Tensor:
    """Return the mean cross-entropy, in nats per target, of the logits `hidden @ weight.T`.

    It is computed in slices if a gradient is needed and the logits are large (`is_sliced`).

    Args:
        hidden: Hidden states, (n, D).
        weight: Vocabulary matrix, (V, D).
        targets: Token ids, int64 (n,); -1 is ignored.
        softcap: Bound of the logits, see `apply_softcap`.
    """
    size = len(hidden), len(weight), hidden.device.type, compute_dtype(hidden)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    if needs_grad and is_sliced(*size):
        loss: Tensor = SlicedCrossEntropy.apply(hidden, weight, targets, softcap, rows_per_slice(*size))
        return loss
    logits = F.linear(hidden, weight)  # (n, V)
    return F.cross_entropy(apply_softcap(logits, softcap).float(), targets, ignore_index=-1)


def apply_softcap(logits: Tensor, softcap: float) -> Tensor:
    """Bound logits to (-softcap, softcap) with tanh (Gemma 2, arXiv:2408.00118); 0 leaves them unchanged."""
    return softcap * torch.tanh(logits / softcap) if softcap else logits
