"""Shared by all tests: quiet cores, and the folder of real text where there is one."""

from __future__ import annotations

import os
from pathlib import Path

# Before any test imports torch: spinning OpenMP threads on shared cores make everything several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
