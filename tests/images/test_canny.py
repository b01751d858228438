"""Edges beyond parity (tests/parity has OpenCV's own numbers): where they are, what thresholds do."""

import numpy as np
import pytest

from mflux.images.canny import canny, joined_to


def square(size: int = 40) -> np.ndarray:
    pixels = np.zeros((size, size, 3), np.uint8)
    pixels[10:30, 12:28] = 200
    return pixels


def test_a_square_has_edges_on_its_border_only_and_the_same_ones_each_time():
    edges = canny(square(), 100, 200)
    rows, columns = np.nonzero(edges)
    inside = np.zeros((40, 40), bool)
    inside[12:28, 14:26] = True
    near = np.zeros((40, 40), bool)
    near[9:31, 11:29] = True
    assert set(np.unique(edges)) == {0, 255}
    assert near[rows, columns].all() and not inside[rows, columns].any()
    assert len(set(rows)) >= 18 and len(set(columns)) >= 14  # all four sides
    assert np.array_equal(edges, canny(square(), 100, 200))


def test_a_picture_of_one_colour_has_no_edges():
    assert not canny(np.full((9, 7, 3), 130, np.uint8), 1, 2).any()


def test_more_is_found_below_lower_thresholds_and_their_order_does_not_matter():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    strict, loose = canny(pixels, 400, 900), canny(pixels, 200, 500)
    assert 0 < (strict > 0).sum() < (loose > 0).sum()
    assert np.array_equal(strict, canny(pixels, 900, 400))


def test_the_steepest_channel_counts():
    pixels = square()
    pixels[..., :2] = 0
    assert np.array_equal(canny(pixels, 100, 200), canny(square(), 100, 200))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (3, 50)])
def test_pictures_of_any_size_have_maps_of_that_size(size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    assert canny(pixels, 50, 200).shape == size


def test_a_weak_edge_lives_by_a_path_to_a_strong_one():
    weak = np.zeros((5, 30), bool)
    weak[2, 3:20] = True  # joined to the seed
    weak[0, 25:] = True  # not joined
    weak[1, 20] = True  # by a corner
    seeds = np.zeros_like(weak)
    seeds[2, 3] = True
    wanted = weak.copy()
    wanted[0, 25:] = False
    assert np.array_equal(joined_to(seeds, weak), wanted)
