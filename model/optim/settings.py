"""Optimizer settings that are constant during a run, and the warm-up of Muon's momentum. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("adamw", "muon")
AUTO = "auto"  # the plan chooses the optimizer
# Jordan's runs start with a lower momentum, because the first gradients are soon out of date. The warm-up is a fraction of
# the budget.
MOMENTUM_START, MOMENTUM_WARMUP = 0.85, 0.08


@dataclass(frozen=True)
class OptimSettings:
    """Settings of an optimizer.

    Attributes:
        name: One of OPTIMIZERS, or AUTO until the plan has chosen one.
        eps: Added to the denominator of AdamW.
        table_rate: Learning rate of the bigram and value embeddings, as a multiple of the learning rate.
        momentum: Nesterov momentum of Muon.
        normuon: Whether Muon normalises rows (see `model.optim.muon.normalise_rows`).
        cautious: Whether Muon's weight decay is cautious (see `model.optim.muon.apply_updates`).
    """

    name: str = "adamw"
    eps: float = 1e-8
    table_rate: float = 0.3  # bench/results/tuning.json
    momentum: float = 0.95
    normuon: bool = False
    cautious: bool = False


def momentum_at(progress: float, momentum: float) -> float:
    """Return Muon's momentum at `progress`, the fraction of the budget that is spent."""
    warmed_up = min(1.0, progress / MOMENTUM_WARMUP)
    return momentum - (1 - warmed_up) * max(0.0, momentum - MOMENTUM_START)
