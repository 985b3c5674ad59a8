"""The shapes that a plan chooses from: widths of a grid, the usual proportions, and what the user fixed. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from budget.planner.hyperparameters import bigram_rows_for
from budget.planner.plan import ASPECT
from model.config import LARGEST, Shape, round_up

if TYPE_CHECKING:
    from budget.planner.plan import Request

# Below any table the grid would be too coarse: nanoGPT's CPU demo is 4 x 128, and between 4 x 64 and 2 x 128 there is only
# 1 x 128, which is the best of them for five and ten minutes of one core (docs/performance.md).
SMALL_WIDTH, SMALL_ASPECT = 256, (16.0, 128.0)


MANY_DEPTHS = 200  # of one width; the usual proportions leave 123 at the largest


def heads_for(n_embd: int) -> int:
    """Heads of 64, of 128 from a width of 1024 on (Hoffmann et al. 2022, Table A9); fewer where they would not divide it,
    or leave each an odd width, which rotary positions cannot turn."""
    heads = max(1, n_embd // (128 if n_embd >= 1024 and n_embd % 128 == 0 else 64))
    while heads > 1 and (n_embd % heads or n_embd // heads % 2):
        heads -= 1
    return heads


def least_memory(shape: Shape) -> float:
    """Bytes that training takes at the very least: weights, gradient and two moments in float32."""
    return 16.0 * shape.parameters()


def candidates(request: Request) -> list[Shape]:
    """Every sensible shape that respects what the user fixed, by size. Never empty."""
    widths = [request.n_embd] if request.n_embd else [*range(64, 1024, 64), *range(1024, 8193, 128)]
    found = []
    for width in widths:
        low, high = SMALL_ASPECT if width <= SMALL_WIDTH and request.aspect == ASPECT else request.aspect
        least, most = max(1, math.ceil(width / high)), max(1, int(width // low))
        depths = _depths(least, most)
        if request.n_layer:
            depths = [request.n_layer] if request.n_embd or least <= request.n_layer <= most else []
        for n_layer in depths:
            n_head = request.n_head or heads_for(width)
            shape = sized(request, n_layer, n_head, width)
            if _fits(shape) and (request.memory is None or least_memory(shape) <= request.memory):
                found.append(shape)
    return sorted(found, key=lambda shape: shape.matmul_parameters()) or [_regardless(request)]


def sized(request: Request, n_layer: int, n_head: int, n_embd: int) -> Shape:
    """The request's architecture in these sizes."""
    template = request.template
    rows = template.bigram_rows
    if request.table_flops is not None:
        rows = bigram_rows_for(request.table_flops, template.vocab_size, n_embd)
    return replace(template, n_layer=n_layer, n_head=n_head, n_embd=n_embd, bigram_rows=rows)


def _fits(shape: Shape) -> bool:
    """Whether heads of one width fill the model, an even one where positions are rotary."""
    return shape.n_embd % shape.n_head == 0 and (shape.position != "rotary" or shape.head_size % 2 == 0)


def _regardless(request: Request) -> Shape:
    """For a depth or head count that no width of the grid goes with: the aspect ratio gives way, and the memory."""
    whole = 64 * (request.n_head or 1)
    width = min(round_up(64 * (request.n_layer or 1), whole), LARGEST["n_embd"] // whole * whole)
    return sized(request, request.n_layer or 1, request.n_head or 1, request.n_embd or width)


def _depths(least: int, most: int) -> list[int]:
    """Numbers of layers to choose from: every one; of very many, each a twentieth more than the last."""
    most = min(most, LARGEST["n_layer"])
    found = list(range(least, min(most, least + MANY_DEPTHS) + 1))
    while found and found[-1] < most:
        found.append(min(most, math.ceil(1.05 * found[-1])))
    return found
