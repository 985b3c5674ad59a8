"""Muon: momentum that is made orthogonal before it is applied, for the matrices inside the blocks; AdamW for the rest.

Jordan 2024 (github.com/KellerJordan/Muon) found it; Liu et al. 2025 (arXiv:2502.16982, "Moonlight") scaled its update to
the size of AdamW's, so that one learning rate serves both. All matrices of one size are made orthogonal together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Jordan's quintic: the slope at 0 is as large as it can be while singular values end up within about 0.7 to 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
MATCH_RMS = 0.2  # root mean square of AdamW's updates, Liu et al. 2025
NORMUON_BETA2 = 0.95  # Li et al. 2025 (arXiv:2510.05491)

State = dict[Tensor, Any]


def orthogonalise(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """The nearest semi-orthogonal matrix of each of (k, short, long), nearly: all singular values near 1.

    By Newton-Schulz, in the precision that the device multiplies well.
    """
    a, b, c = QUINTIC
    x = matrices.to(newton_schulz_dtype(matrices.device))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, which is exact enough, where it is multiplied faster: few CPUs do, and GPUs before Ampere emulate it."""
    if device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return torch.float32
    return torch.bfloat16


class MuonAdamW(torch.optim.Optimizer):
    """Each group names its `algorithm`: "muon" with momentum, normuon and cautious; "adamw" with betas and eps; "table"
    with betas, of which it reads the second, and eps.

    In float16, torch's GradScaler waits for the device before each step, to leave out one that overflowed. To leave it out
    on the device, as fused AdamW does, every weight and moment would have to be there twice, or each algorithm twice.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "fused": fused})

    # torch marks these two so that its compiler leaves them alone, and loads the compiler to do so: two seconds of a CPU, in
    # every run. Nothing compiles an optimizer here.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            ALGORITHMS[group["algorithm"]](self.state, group, params)


def adamw_step(state: State, group: dict[str, Any], params: list[Tensor]) -> None:
    """What torch.optim.AdamW does, in one kernel where there is one."""
    for p in params:
        if not state[p]:
            state[p] = {
                "step": torch.zeros((), device=p.device if group["fused"] else None),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }
    states = [state[p] for p in params]
    beta1, beta2 = group["betas"]
    adamw(
        params,
        [p.grad for p in params if p.grad is not None],
        [each["exp_avg"] for each in states],
        [each["exp_avg_sq"] for each in states],
        [],
        [each["step"] for each in states],
        fused=group["fused"],
        foreach=False,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def table_step(state: State, group: dict[str, Any], params: list[Tensor]) -> None:
    """Adam with beta1 = 0, exactly, for tables of rows that are looked up: a row that was not looked up has no gradient and
    does not move, so that where the gradient is sparse only the others are touched."""
    beta = group["betas"][1]
    for p in params:
        if not state[p]:
            seen = torch.zeros(len(p), 1, device=p.device)
            state[p] = {"step": torch.zeros((), device=p.device), "square": torch.zeros_like(p), "seen": seen}
        own, grad = state[p], p.grad
        rows: Tensor | slice = slice(None)
        assert grad is not None
        if grad.is_sparse:
            grad = grad.coalesce()
            rows, grad = grad.indices()[0], grad.values()
        own["step"] += 1
        square = own["square"][rows] * beta ** (own["step"] - own["seen"][rows])
        square.addcmul_(grad, grad, value=1 - beta)
        own["square"][rows], own["seen"][rows] = square, own["step"]
        denominator = (square / (1 - beta ** own["step"])).sqrt_().add_(group["eps"])
        p[rows] -= group["lr"] * grad / denominator


def muon_step(state: State, group: dict[str, Any], params: list[Tensor]) -> None:
    """Nesterov momentum, made orthogonal, as large as an update of AdamW's. `parts` of a group: how many matrices each of its
    weights holds, one above the other, e.g. 3 for queries, keys and values."""
    parts = [count for p, count in zip(group["params"], group["parts"], strict=True) if p.grad is not None]
    for p in params:
        if not state[p]:
            state[p] = {"momentum": torch.zeros_like(p)}
    gradients = [p.grad for p in params if p.grad is not None]
    velocities = [state[p]["momentum"] for p in params]
    torch._foreach_lerp_(velocities, gradients, 1 - group["momentum"])
    ahead = torch._foreach_lerp(gradients, velocities, group["momentum"])
    updates = [torch.empty_like(p) for p in params]
    by_size: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for velocity, update, count in zip(ahead, updates, parts, strict=True):
        for matrix, into in zip(velocity.chunk(count), update.chunk(count), strict=True):
            wide = (matrix, into) if matrix.shape[0] <= matrix.shape[1] else (matrix.mT, into.mT)
            by_size[wide[0].shape[0], wide[0].shape[1]].append(wide)
    for (_, longer), same in by_size.items():
        orthogonal = orthogonalise(torch.stack([matrix for matrix, _ in same]))
        torch._foreach_copy_([into for _, into in same], list(orthogonal * (MATCH_RMS * longer**0.5)))
    if group["normuon"]:
        normalise_rows(updates, [state[p] for p in params], parts)
    apply_updates(params, updates, group["lr"], group["weight_decay"], group["cautious"])


def normalise_rows(updates: list[Tensor], states: list[dict[str, Tensor]], parts: list[int]) -> None:
    """NorMuon: rows whose updates were large so far get smaller ones; each matrix keeps its norm."""
    for update, own, count in zip(updates, states, parts, strict=True):
        square = update.square().mean(dim=-1, keepdim=True)
        if "row_square" not in own:
            own["row_square"] = square.clone()
        own["row_square"].lerp_(square, 1 - NORMUON_BETA2)
        before = [matrix.norm() for matrix in update.chunk(count)]
        update.div_(own["row_square"].sqrt().clamp(min=EPS))
        for matrix, norm in zip(update.chunk(count), before, strict=True):
            matrix.mul_(norm / matrix.norm().clamp(min=EPS))


def apply_updates(
    params: list[Tensor], updates: list[Tensor], rate: float, weight_decay: float, cautious: bool
) -> None:
    """Decoupled weight decay; `cautious`: only where it points the way of the update (Chen et al. 2025,
    arXiv:2510.12402)."""
    if cautious:
        for p, update in zip(params, updates, strict=True):
            p.mul_(1 - rate * weight_decay * (p * update > 0))
    else:
        torch._foreach_mul_(params, 1 - rate * weight_decay)
    torch._foreach_add_(params, updates, alpha=-rate)


ALGORITHMS: dict[str, Callable[[State, dict[str, Any], list[Tensor]], None]] = {
    "adamw": adamw_step,
    "muon": muon_step,
    "table": table_step,
}
