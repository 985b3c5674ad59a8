"""THE FLOP convention, in one place: every FLOP that stint plans, counts, limits or prints comes from here."""

from __future__ import annotations

from model.config import Shape


def flops_per_token(shape: Shape) -> float:
    """Training FLOPs per token (forward and backward), PaLM's convention (Chowdhery et al. 2022, appendix B).

    6 x (block matrices + one vocabulary matrix) + 12 x n_layer x n_embd x block_size. The embedding look-up is free,
    the causal half of attention is not discounted, recomputation is not counted: dividing by the peak gives MFU.
    """
    return 6.0 * shape.matmul_parameters() + 12.0 * shape.n_layer * shape.n_embd * shape.block_size


def flops_6nd_per_token(shape: Shape) -> float:
    """6 N per token, as scaling laws count (Kaplan et al. 2020), N = block matrices + one vocabulary matrix."""
    return 6.0 * shape.matmul_parameters()
