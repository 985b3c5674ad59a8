"""The FLOP convention: every FLOP that is planned, counted, limited or printed comes from here."""

from __future__ import annotations

from model.config import Shape


def flops_per_token(shape: Shape) -> float:
    """Return the training FLOPs per token, forward and backward (PaLM, Chowdhery et al. 2022, appendix B).

    6 x (block matrices + one vocabulary matrix) + 12 x n_layer x n_embd x block_size. The embedding look-up is free,
    the causal half of attention is not discounted, and recomputation is not counted. Divided by the peak FLOP/s this
    gives the MFU.
    """
    return 6.0 * shape.matmul_parameters() + 12.0 * shape.n_layer * shape.n_embd * shape.block_size


def flops_6nd_per_token(shape: Shape) -> float:
    """Return 6 N per token, as scaling laws count (Kaplan et al. 2020); N = block matrices + one vocabulary matrix."""
    return 6.0 * shape.matmul_parameters()
