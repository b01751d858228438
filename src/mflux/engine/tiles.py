"""Tiles of a picture that is too large for the network at once: cut in every step, blended in every step.

The tiles of one picture have one size, so that positions and modulations are the same for all of them.
Source: MultiDiffusion, arXiv 2302.08113, with weights that fall towards a tile's edges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import mlx.core as mx
import numpy as np

from mflux.engine.latents import TOKEN_PIXELS

OVERLAP = 0.25  # of a tile's side, at least


@dataclass(frozen=True)
class Tile:
    """Some tokens of a picture, row by row: their indexes (n,), and how much each counts there, (n, 1)."""

    cells: mx.array
    weight: mx.array


def cut(height: int, width: int, tile: tuple[int, int]) -> list[Tile]:
    """Tiles of a picture whose sides are multiples of 16; the weights of each token add up to 1.

    tile: height and width of a tile, px, multiples of 16.
    """
    rows, columns, tile_rows, tile_columns = (side // TOKEN_PIXELS for side in (height, width, *tile))
    grid = np.arange(rows * columns).reshape(rows, columns)
    total, parts = np.zeros(rows * columns), []
    for top, left in product(starts(rows, tile_rows), starts(columns, tile_columns)):
        cells = grid[top : top + tile_rows, left : left + tile_columns].ravel()
        share = np.outer(fading(top, tile_rows, rows), fading(left, tile_columns, columns)).ravel()
        total[cells] += share
        parts.append((cells, share))
    return [
        Tile(mx.array(cells), mx.array((share / total[cells]).astype(np.float32)[:, None])) for cells, share in parts
    ]


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin, evenly spaced, so that neighbours share at least OVERLAP of their side."""
    if tile >= length:
        return [0]
    stride = max(1, int(tile * (1 - OVERLAP)))
    count = 1 + -(-(length - tile) // stride)
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def fading(start: int, tile: int, length: int) -> np.ndarray:
    """How much a tile counts along one side: 1, falling over OVERLAP towards the ends where another one goes on."""
    up = np.arange(1, tile + 1) / (max(1, int(tile * OVERLAP)) + 1)
    rise = up if start > 0 else np.ones(tile)
    fall = up[::-1] if start + tile < length else np.ones(tile)
    return np.minimum(np.minimum(rise, fall), 1.0)


def blended(function: Callable[[mx.array, mx.array], mx.array], latents: mx.array, tiles: Sequence[Tile]) -> mx.array:
    """`function` of each tile's latents (B, n, C) and cells, put together: (B, S, C).  One tile in memory at a time."""
    total = mx.zeros(latents.shape)
    for tile in tiles:
        total = total.at[:, tile.cells].add(tile.weight * function(latents[:, tile.cells], tile.cells))
        mx.eval(total)
    return total
