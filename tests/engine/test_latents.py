"""Tokens and noise: order, shape, and the draw of a seed, against diffusers 0.42.1 and torch 2.13 (CPU)."""

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest

from mflux.engine.latents import (
    OVERLAP,
    blended,
    cut,
    grid_ids,
    mflux_noise,
    noise,
    pack_latents,
    starts,
    torch_noise,
    torch_normal,
    unpack_latents,
)


def test_packing_is_diffusers_order():
    tokens = pack_latents(mx.arange(16 * 4 * 6, dtype=mx.float32).reshape(1, 16, 4, 6))
    assert tokens.shape == (1, 6, 64)
    assert tokens[0, 0, :6].tolist() == [0, 1, 6, 7, 24, 25]
    assert tokens[0, 1, :5].tolist() == [2, 3, 8, 9, 26]
    assert tokens[0, 5, -3:].tolist() == [377, 382, 383]


@pytest.mark.parametrize("shape", [(1, 16, 2, 2), (2, 16, 6, 10), (3, 4, 8, 2)])
def test_unpacking_undoes_packing(shape):
    latents = mx.random.normal(shape, key=mx.random.key(1))
    assert mx.array_equal(unpack_latents(pack_latents(latents), shape[2] * 8, shape[3] * 8), latents)


def test_an_odd_side_cannot_be_packed():
    with pytest.raises(ValueError, match="3 x 4 cells"):
        pack_latents(mx.zeros((1, 16, 3, 4)))


def test_ids_count_rows_and_columns():
    assert grid_ids(32, 48).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert set(grid_ids(32, 48, first=2)[:, 0]) == {2}


def test_a_seed_s_noise_is_mflux_s_own_draw():
    drawn = mflux_noise(7, 48, 64)
    assert mx.array_equal(drawn, mx.random.normal((1, 12, 64), key=mx.random.key(7)))
    assert drawn[0, 0, :2].tolist() != mflux_noise(8, 48, 64)[0, 0, :2].tolist()


@pytest.mark.parametrize("kind", ["mflux", "torch"])
def test_a_batch_of_seeds_has_the_singles_noise_bit_for_bit(kind):
    seeds = [0, 5, 2**32, 2**64 - 1]
    batch = noise(kind, seeds, 48, 64)
    assert batch.shape == (4, 12, 64) and batch.dtype == mx.float32
    for row, seed in zip(batch, seeds, strict=True):
        assert mx.array_equal(row[None], noise(kind, [seed], 48, 64))


@pytest.mark.parametrize(
    ("seed", "count", "values", "total"),
    [
        (0, 16, [-1.12584, -1.15236, 0.322275, -0.247278], -1.909114308655262),
        (42, 100, [1.926915, 1.487284, 0.078024, 0.617281], 5.976558558526449),
        (42, 4096, [1.926915, 1.487284, -0.60023, -0.011843], -4.412261032732204),
        (7, 17, [-0.820135, -0.324567, -0.848909, -0.866702], -6.4156444221735),
        (2**63 + 5, 64, [1.84233, 0.518887, -0.261668, 1.32272], 3.795608105137944),
        (2**64 - 1, 33, [-2.664298, -1.091049, 1.7934, 0.040371], -5.17697399482131),
    ],
)
def test_torch_s_numbers_are_torch_s(seed, count, values, total):
    drawn = torch_normal(seed, count)
    assert drawn.dtype == np.float32 and drawn.shape == (count,)
    assert [drawn[0], drawn[1], drawn[count // 2], drawn[-1]] == pytest.approx(values, abs=1e-6)
    assert drawn.astype(np.float64).sum() == pytest.approx(total, abs=count * 1e-7)


def test_torch_s_noise_is_drawn_in_planes_and_then_packed():
    planes = torch_normal(3, 16 * 6 * 8).reshape(1, 16, 6, 8)
    assert np.array_equal(np.array(unpack_latents(torch_noise(3, 48, 64), 48, 64)), planes)


# --- tiles ---------------------------------------------------------------------------------------------------------

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
