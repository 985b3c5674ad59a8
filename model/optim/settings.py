"""How parameters are updated: every setting of an optimizer but what changes from step to step. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

OPTIMIZERS = ("adamw", "muon")
AUTO = "auto"  # whichever the plan expects to do better
# Jordan's runs begin with a shorter memory, as the first gradients are soon out of date; a share of the budget here.
MOMENTUM_START, MOMENTUM_WARMUP = 0.85, 0.08


@dataclass(frozen=True)
class OptimSettings:
    """`table_rate`: the learning rate of the tables for bigrams and values, as a multiple of that of everything else.
    `momentum`, `normuon` and `cautious` are Muon's."""

    name: str = "adamw"  # or AUTO, until the plan has chosen
    eps: float = 1e-8
    table_rate: float = 0.3  # bench/results/tuning.json
    momentum: float = 0.95
    normuon: bool = False
    cautious: bool = False


def momentum_at(progress: float, momentum: float) -> float:
    """Muon's momentum at a share of the budget."""
    risen = min(1.0, progress / MOMENTUM_WARMUP)
    return momentum - (1 - risen) * max(0.0, momentum - MOMENTUM_START)
