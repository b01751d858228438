"""Tiles: all of the picture, one size, weights that add up to one and jump nowhere."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from mflux.engine.tiles import OVERLAP, blended, cut, starts

SIZES = [((128, 128), (64, 64)), ((2048, 1536), (1024, 1024)), ((1040, 4096), (1024, 1024)), ((96, 512), (96, 128))]


def weights_of(size, tile) -> tuple[np.ndarray, list[np.ndarray]]:
    """The sum of the weights, and each tile's own, on the grid of tokens."""
    rows, columns = size[0] // 16, size[1] // 16
    maps = []
    for each in cut(*size, tile):
        grid = np.zeros(rows * columns)
        grid[np.array(each.cells)] = np.array(each.weight)[:, 0]
        maps.append(grid.reshape(rows, columns))
    return np.sum(maps, axis=0), maps


@pytest.mark.parametrize(("size", "tile"), SIZES)
def test_weights_of_every_token_add_up_to_one(size, tile):
    total, maps = weights_of(size, tile)
    assert len(maps) > 1 and np.abs(total - 1).max() < 1e-6
    assert {(grid > 0).sum() for grid in maps} == {tile[0] * tile[1] // 256}


@pytest.mark.parametrize(("size", "tile"), SIZES)
def test_a_tile_fades_in_instead_of_starting(size, tile):
    """From one token to the next a tile's weight changes by what its overlap allows, also at its edges."""
    _, maps = weights_of(size, tile)
    for axis in (0, 1):
        fade = max(1, int(tile[axis] // 16 * OVERLAP))
        steps = [np.abs(np.diff(grid, axis=axis)).max() for grid in maps if size[axis] > tile[axis]]
        assert all(step <= 1.5 / (fade + 1) for step in steps)


@pytest.mark.parametrize(("length", "tile"), [(128, 64), (65, 64), (256, 64), (64, 64), (200, 48)])
def test_tiles_reach_from_end_to_end_and_overlap(length, tile):
    places = starts(length, tile)
    assert places[0] == 0 and places[-1] == length - tile
    assert all(tile - (after - before) >= int(tile * OVERLAP) for before, after in pairwise(places))


@pytest.mark.parametrize(("size", "tile"), SIZES)
def test_what_each_token_computes_alone_is_the_same_in_tiles(size, tile):
    count = size[0] * size[1] // 256
    latents = mx.random.normal((2, count, 8), key=mx.random.key(0))
    names = mx.arange(count, dtype=mx.float32)[None, :, None]
    found = blended(lambda part, cells: 3 * part + names[:, cells] / count, latents, cut(*size, tile))
    assert float(mx.abs(found - (3 * latents + names / count)).max()) <= 1e-5


def test_one_tile_that_is_the_whole_picture_counts_fully():
    (tile,) = cut(64, 96, (64, 96))
    assert np.array_equal(np.array(tile.cells), np.arange(24)) and np.array_equal(
        np.array(tile.weight), np.ones((24, 1))
    )
