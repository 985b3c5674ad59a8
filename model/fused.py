"""RMS norm and rotation in few operations, with their derivatives written out.

On a CPU in eager mode a small model's time goes to starting operations and walking through memory: composed of torch's own,
these two take some sixty operations per block and step, here a third of that (bench/results/engine.json). Under
torch.compile, which fuses for itself, and on other devices, the plain forms are used. A second derivative is refused: it would
be wrong.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

RMSNORM_EPS = 1e-6  # Llama, and transformers' default for it


def written_out(x: Tensor) -> bool:
    """Whether the forms of this module are the faster ones."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean of squares) along the last dimension, kept."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return norm.square_().div_(x.shape[-1]).add_(RMSNORM_EPS).rsqrt_()


class RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        inverse = inverse_rms(x)
        normal = x * inverse
        ctx.save_for_backward(normal, inverse, *([] if weight is None else [weight]))
        return normal if weight is None else normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        normal, inverse, *weights = ctx.saved_tensors
        grad, weight_grad = grads[0], None
        if weights:
            weight_grad = torch.linalg.vecdot(grad.flatten(0, -2), normal.flatten(0, -2), dim=0)
            grad = grad * weights[0]
        share = torch.linalg.vecdot(grad, normal).unsqueeze_(-1).div_(grad.shape[-1])
        return torch.addcmul(grad, normal, share, value=-1).mul_(inverse), weight_grad


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467) along the last dimension."""
    if written_out(x):
        found: Tensor = RMSNorm.apply(x, weight)
        return found
    return F.rms_norm(x, x.shape[-1:], weight, RMSNORM_EPS)


def turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """Each pair (x[i], x[i + S/2]) turned by its angle; backwards for direction -1."""
    (first, second), out = x.chunk(2, dim=-1), torch.empty_like(x)
    one, two = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=one).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=two).addcmul_(first, sin, value=direction)
    return out


class Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return turned(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return turned(grads[0], cos, sin, -1), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + S/2]) by its angle: the half-split layout that transformers' Llama uses."""
    if written_out(x):
        found: Tensor = Rotate.apply(x, cos, sin)
        return found
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).type_as(x)
