"""The shapes that a plan chooses from: a grid of widths and depths in the usual proportions. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from budget.planner.hyperparameters import bigram_rows_for
from budget.planner.plan import ASPECT
from model.config import LARGEST, Shape, round_up

if TYPE_CHECKING:
    from budget.planner.plan import Request

# The published proportions do not reach below this width, where the grid would be too coarse. nanoGPT's CPU demo is 4
# x 128; between 4 x 64 and 2 x 128 there is only 1 x 128, the best of these for short CPU runs (docs/performance.md).
SMALL_WIDTH, SMALL_ASPECT = 256, (16.0, 128.0)
MANY_DEPTHS = 200  # depths per width that are all tried; the usual proportions leave at most 123


def heads_for(n_embd: int) -> int:
    """Return the number of heads for a width: a head size of 64, or 128 from a width of 1024 on.

    The sizes follow Hoffmann et al. 2022, Table A9. There are fewer heads where the width would not be divisible, or
    where the head size would be odd, which rotary position embeddings do not allow.
    """
    heads = max(1, n_embd // (128 if n_embd >= 1024 and n_embd % 128 == 0 else 64))
    while heads > 1 and (n_embd % heads or n_embd // heads % 2):
        heads -= 1
    return heads


def least_memory(shape: Shape) -> float:
    """Return a lower bound of the bytes that training takes: weights, gradients and two moments in float32."""
    return 16.0 * shape.parameters()


def candidates(request: Request) -> list[Shape]:
    """Return every sensible shape with the sizes that the user fixed, sorted by N. The list is never empty."""
    widths = [request.n_embd] if request.n_embd else [*range(64, 1024, 64), *range(1024, 8193, 128)]
    shapes = []
    for width in widths:
        low, high = SMALL_ASPECT if width <= SMALL_WIDTH and request.aspect == ASPECT else request.aspect
        least, most = max(1, math.ceil(width / high)), max(1, int(width // low))
        depths = _depths(least, most)
        if request.n_layer:
            depths = [request.n_layer] if request.n_embd or least <= request.n_layer <= most else []
        for n_layer in depths:
            n_head = request.n_head or heads_for(width)
            shape = sized(request, n_layer, n_head, width)
            if _is_valid(shape) and (request.memory is None or least_memory(shape) <= request.memory):
                shapes.append(shape)
    return sorted(shapes, key=lambda shape: shape.matmul_parameters()) or [_unusual(request)]


def sized(request: Request, n_layer: int, n_head: int, n_embd: int) -> Shape:
    """Return the request's architecture in these sizes, with the bigram embedding that the compute allows."""
    template = request.template
    rows = template.bigram_rows
    if request.table_flops is not None:
        rows = bigram_rows_for(request.table_flops, template.vocab_size, n_embd)
    return replace(template, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bigram_rows=rows)


def _is_valid(shape: Shape) -> bool:
    """Return whether the heads divide the width, into an even head size where positions are rotary."""
    return shape.n_embd % shape.n_head == 0 and (shape.position != "rotary" or shape.head_size % 2 == 0)


def _unusual(request: Request) -> Shape:
    """Return a shape for a fixed depth or number of heads that the grid does not hold.

    It ignores the limits on the aspect ratio and on the memory.
    """
    multiple = 64 * (request.n_head or 1)
    width = min(round_up(64 * (request.n_layer or 1), multiple), LARGEST["n_embd"] // multiple * multiple)
    return sized(request, request.n_layer or 1, request.n_head or 1, request.n_embd or width)


def _depths(least: int, most: int) -> list[int]:
    """Return the depths to try: each of the first MANY_DEPTHS, then in steps of 5 %."""
    most = min(most, LARGEST["n_layer"])
    depths = list(range(least, min(most, least + MANY_DEPTHS) + 1))
    while depths and depths[-1] < most:
        depths.append(min(most, math.ceil(1.05 * depths[-1])))
    return depths
