"""Crops and fits against diffusers 0.42.1: VaeImageProcessor's get_crop_region, _resize_and_fill, _resize_and_crop."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from mflux.images.sizes import crop_box, fit, floor_to_cell

SOURCE = Image.fromarray(np.random.default_rng(7).integers(0, 256, (30, 50, 3), np.uint8))


@pytest.mark.parametrize(("side", "cell"), [(1, 16), (15, 16), (16, 16), (31, 16), (32, 32), (1023, 1008)])
def test_sides_are_floored_to_16_but_never_to_nothing(side, cell):
    assert floor_to_cell(side) == cell


@pytest.mark.parametrize(
    ("picture", "painted", "padding", "size", "box"),
    [
        ((100, 120), (30, 40, 50, 60), 8, (64, 64), (22, 32, 58, 68)),
        ((100, 120), (0, 0, 10, 10), 8, (64, 32), (0, 0, 18, 36)),
        ((100, 120), (110, 90, 119, 99), 16, (32, 64), (68, 74, 120, 100)),
        ((60, 200), (90, 20, 110, 40), 0, (128, 128), (90, 20, 110, 40)),
        ((200, 60), (5, 150, 8, 199), 32, (64, 128), (0, 118, 60, 200)),
        ((48, 64), (3, 3, 60, 44), 4, (512, 16), (0, 0, 64, 48)),
    ],
)
def test_a_crop_is_diffusers_crop(picture, painted, padding, size, box):
    left, top, right, bottom = painted
    mask = np.zeros(picture, bool)
    mask[top:bottom, left:right] = True
    assert crop_box(mask, padding, *size) == box


@pytest.mark.parametrize(
    ("size", "filled", "covered"),
    [
        ((64, 64), "b261e0874900", "a6648a30b006"),
        ((16, 64), "e6722a8a8d2b", "7387463053c9"),
        ((30, 50), "e59fdab4af82", "e59fdab4af82"),
        ((64, 16), "9c73a289ec40", "dd30274f971e"),
        ((48, 80), "114b5b124071", "114b5b124071"),
    ],
)
def test_a_fit_is_diffusers_to_the_byte(size, filled, covered):
    for cover, digest in ((False, filled), (True, covered)):
        result = np.asarray(fit(SOURCE, *size, cover=cover))
        assert result.shape == (*size, 3)
        assert hashlib.sha256(result.tobytes()).hexdigest()[:12] == digest


@pytest.mark.parametrize("cover", [False, True])
@pytest.mark.parametrize("source", [(1, 1), (1, 3000), (3000, 1)])
def test_extreme_proportions_still_fit(cover, source):
    assert fit(Image.new("RGB", source, "red"), 32, 48, cover).size == (48, 32)
