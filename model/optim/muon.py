"""Muon for the matrices inside the blocks, AdamW for the other parameters, and Adam with sparse rows for tables.

Muon orthogonalises the momentum of a matrix before it applies it (Jordan 2024, github.com/KellerJordan/Muon). Its update is
scaled to the size of AdamW's, so that one learning rate serves both (Liu et al. 2025, "Moonlight", arXiv:2502.16982). All
matrices of one size are orthogonalised in one batched product.

Shape letters: K matrices of M rows and N columns, M <= N.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

# Coefficients a, b, c of Jordan's quintic a x + b x^3 + c x^5: the largest slope at 0 for which singular values converge to
# about 0.7 to 1.2.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPS = 1e-7
MATCH_RMS = 0.2  # root mean square of AdamW's updates (Liu et al. 2025)
NORMUON_BETA2 = 0.95  # decay of the row norms, Li et al. 2025

State = dict[Tensor, Any]


def orthogonalise(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Return approximately the nearest semi-orthogonal matrix to each of `matrices` (K, M, N): singular values near 1.

    Uses the Newton-Schulz iteration in `newton_schulz_dtype`.
    """
    a, b, c = QUINTIC
    x = matrices.to(newton_schulz_dtype(matrices.device))
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPS)
    for _ in range(iterations):
        gram = x @ x.mT  # (K, M, N) @ (K, N, M) -> (K, M, M)
        # x <- a x + (b gram + c gram^2) x
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # (K, M, N)
    return x.to(matrices.dtype)


def newton_schulz_dtype(device: torch.device) -> torch.dtype:
    """Return float32 on CPUs, few of which multiply bfloat16 faster, and on GPUs that emulate it (before Ampere); else
    bfloat16, which is precise enough."""
    if device.type == "cpu" or (device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return torch.float32
    return torch.bfloat16


class MuonAdamW(torch.optim.Optimizer):
    """An optimizer whose parameter groups name their `algorithm`.

    "muon" reads momentum, normuon, cautious and parts; "adamw" reads betas and eps; "table" reads the second of betas, and
    eps.

    In float16, torch's GradScaler waits for the device before each step, to skip a step with overflowed gradients. Skipping
    it on the device, as fused AdamW does, would need a copy of every weight and moment.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, fused: bool) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0, "fused": fused})

    # torch wraps these two methods to exclude them from compilation, and imports its compiler for that, which takes two
    # seconds on a CPU. stint does not compile optimizers, so the wrappers are removed.
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        unwrap(torch.optim.Optimizer.zero_grad)(self, set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. `closure` is ignored."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            ALGORITHMS[group["algorithm"]](self.state, group, params)


def adamw_step(state: State, group: dict[str, Any], params: list[Tensor]) -> None:
    """Apply the update of torch.optim.AdamW, with its fused kernel if `group["fused"]`."""
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
        [own["exp_avg"] for own in states],
        [own["exp_avg_sq"] for own in states],
        [],  # max_exp_avg_sqs, of amsgrad only
        [own["step"] for own in states],
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
    """Apply Adam with beta1 = 0 to embeddings, (rows, D) each, with dense or sparse gradients.

    Without momentum, a row that was not looked up has a zero gradient and does not move, so a step with a sparse gradient
    touches the looked-up rows only. The result equals dense Adam: `seen` holds the step of a row's last update, and the
    decay of its second moment since then is made up at its next one.
    """
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
            rows, grad = grad.indices()[0], grad.values()  # (r,), (r, D)
        own["step"] += 1
        square = own["square"][rows] * beta ** (own["step"] - own["seen"][rows])
        square.addcmul_(grad, grad, value=1 - beta)
        own["square"][rows], own["seen"][rows] = square, own["step"]
        denominator = (square / (1 - beta ** own["step"])).sqrt_().add_(group["eps"])
        p[rows] -= group["lr"] * grad / denominator


def muon_step(state: State, group: dict[str, Any], params: list[Tensor]) -> None:
    """Apply orthogonalised Nesterov momentum, scaled to the size of AdamW's updates.

    `group["parts"]` holds the number of matrices stacked along dimension 0 of each weight, e.g. 3 for queries, keys and
    values. Each of them is orthogonalised separately.
    """
    parts = [count for p, count in zip(group["params"], group["parts"], strict=True) if p.grad is not None]
    for p in params:
        if not state[p]:
            state[p] = {"momentum": torch.zeros_like(p)}
    gradients = [p.grad for p in params if p.grad is not None]
    velocities = [state[p]["momentum"] for p in params]
    torch._foreach_lerp_(velocities, gradients, 1 - group["momentum"])
    nesterov = torch._foreach_lerp(gradients, velocities, group["momentum"])
    updates = [torch.empty_like(p) for p in params]
    by_size: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for velocity, update, count in zip(nesterov, updates, parts, strict=True):
        for matrix, into in zip(
            velocity.chunk(count), update.chunk(count), strict=True
        ):  # `into` is a view of `update`
            wide = (matrix, into) if matrix.shape[0] <= matrix.shape[1] else (matrix.mT, into.mT)  # (M, N), M <= N
            by_size[wide[0].shape[0], wide[0].shape[1]].append(wide)
    for (_, columns), pairs in by_size.items():
        orthogonal = orthogonalise(torch.stack([matrix for matrix, _ in pairs]))  # (K, M, N)
        # Entries of a semi-orthogonal (M, N) matrix have a root mean square of 1 / sqrt(N).
        torch._foreach_copy_([into for _, into in pairs], list(orthogonal * (MATCH_RMS * columns**0.5)))
    if group["normuon"]:
        normalise_rows(updates, [state[p] for p in params], parts)
    apply_updates(params, updates, group["lr"], group["weight_decay"], group["cautious"])


def normalise_rows(updates: list[Tensor], states: list[dict[str, Tensor]], parts: list[int]) -> None:
    """Divide each row of the updates by the running root mean square of its entries (NorMuon, Li et al. 2025,
    arXiv:2510.05491). Each matrix keeps its Frobenius norm."""
    for update, own, count in zip(updates, states, parts, strict=True):
        square = update.square().mean(dim=-1, keepdim=True)  # (rows, 1)
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
    """Apply decoupled weight decay, then the updates.

    With `cautious`, only weights whose update has the same sign as their decay are decayed (Chen et al. 2025,
    arXiv:2510.12402).
    """
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
