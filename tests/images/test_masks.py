"""What is painted and what is kept: by selection, byte for byte."""

import numpy as np
import pytest
from PIL import Image

from mflux import UsageError
from mflux.images.masks import Canvas, cells, opacity, open_canvas, pad, spread
from mflux.images.picture import open_picture


def canvas(height: int, width: int, channels: int = 3, size=None, crop=None) -> tuple[Canvas, np.ndarray, np.ndarray]:
    random = np.random.default_rng(height * width)
    source = random.integers(0, 256, (height, width, channels), np.uint8)
    grey = random.integers(0, 256, (height, width), np.uint8)
    return open_canvas(open_picture(source, "image"), grey, size, crop), source, grey


def drawn_on(value: Canvas) -> np.ndarray:
    return np.random.default_rng(9).integers(0, 256, value.rgb.shape, np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (1, 1), (50, 3)])
def test_kept_selects_bytes_and_never_blends(size, channels):
    value, source, grey = canvas(*size, channels)
    drawn = drawn_on(value)
    result, white = value.kept(drawn), grey >= 128
    assert result.shape == source.shape
    assert np.array_equal(result[~white], source[~white])
    assert np.array_equal(result[white][:, :3], drawn[: size[0], : size[1]][white])
    assert channels == 3 or (result[white][:, 3] == 255).all()


def test_the_canvas_is_rounded_up_and_padded_by_its_edge():
    value, source, grey = canvas(17, 31)
    assert (value.height, value.width) == (32, 32)
    assert np.array_equal(value.rgb[:17, :31], source)
    assert (value.rgb[17:, :31] == source[16]).all() and (value.rgb[:17, 31:] == source[:, 30:]).all()
    assert np.array_equal(value.mask[:17, :31], grey >= 128)


def test_an_asked_size_makes_the_resized_source_the_one_to_keep():
    value, source, _ = canvas(40, 60, size=(32, 48))
    resized = Image.fromarray(source).resize((48, 32), Image.Resampling.LANCZOS)
    assert np.array_equal(value.source.pixels, np.asarray(resized))
    assert np.array_equal(value.kept(drawn_on(value))[~value.mask], np.asarray(resized)[~value.mask])


def test_a_crop_touches_nothing_outside_its_box():
    source = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    grey = np.zeros((90, 70), np.uint8)
    grey[40:50, 20:30] = 255
    value = open_canvas(open_picture(source, "image"), grey, (32, 32), 4)
    left, top, right, bottom = value.box
    placed = value.placed(drawn_on(value))
    outside = np.ones((90, 70), bool)
    outside[top:bottom, left:right] = False
    assert (value.height, value.width) == (32, 32) and (right - left) < 70
    assert np.array_equal(placed[outside], source[outside])
    assert not np.array_equal(placed[~outside], source[~outside])


def test_a_soft_mask_blends_only_where_asked():
    source = np.zeros((16, 16, 3), np.uint8)
    value = open_canvas(open_picture(source, "image"), np.full((16, 16), 200, np.uint8), None)
    white = np.full((16, 16, 3), 255, np.uint8)
    assert (value.kept(white) == 255).all()
    assert (value.blended(white) == 200).all()


@pytest.mark.parametrize(("white", "painted"), [(127, False), (128, True)])
def test_white_starts_at_half(white, painted):
    picture, grey = open_picture(np.zeros((16, 16, 3), np.uint8), "image"), np.full((16, 16), white, np.uint8)
    if painted:
        assert open_canvas(picture, grey, None).mask.all()
    else:
        with pytest.raises(UsageError, match="black everywhere"):
            open_canvas(picture, grey, None)


def test_a_mask_that_vanishes_at_the_asked_size_is_refused():
    picture, grey = open_picture(np.zeros((320, 320, 3), np.uint8), "image"), np.zeros((320, 320), np.uint8)
    grey[100, 100] = 255
    with pytest.raises(UsageError, match="at this size nothing of the mask is left"):
        open_canvas(picture, grey, (32, 32))


def test_a_cell_is_painted_if_any_of_its_pixels_is_or_its_first():
    mask = np.zeros((8, 12), bool)
    mask[3, 3] = mask[4, 8] = True
    assert cells(mask, "any", 4).tolist() == [[True, False, False], [False, False, True]]
    assert cells(mask, "nearest", 4).tolist() == [[False, False, False], [False, False, True]]


def test_nothing_is_padded_where_the_size_is_right():
    pixels = np.zeros((32, 16), bool)
    assert pad(pixels).shape == (32, 16) and pad(np.zeros((33, 1, 3))).shape == (48, 16, 3)


@pytest.mark.parametrize("distance", [0, 1, 3, 50])
def test_a_grown_mask_reaches_so_many_px_along_both_axes(distance):
    mask = np.random.default_rng(distance).random((23, 31)) > 0.97
    rows, columns = np.nonzero(mask)
    far = np.abs(np.arange(23)[:, None, None] - rows), np.abs(np.arange(31)[None, :, None] - columns)
    assert np.array_equal(spread(mask, distance), (np.maximum(*far) <= distance).any(axis=-1))


@pytest.mark.parametrize("feather", [0, 1, 4, 100])
def test_a_feather_lies_inside_the_mask_and_ends_in_its_middle(feather):
    mask = np.zeros((40, 40), bool)
    mask[5:30, 8:33] = True
    share = opacity(mask, feather)
    assert np.array_equal(share > 0, mask) and share.max() == 1
    assert (np.diff(share[17, 8:21]) >= 0).all() and (np.diff(share[17, 20:33]) <= 0).all()
    assert share[17, 8] == pytest.approx(1 / (min(feather, 12) + 1))  # the mask is 25 px wide: 12 to its middle


def test_a_mask_that_reaches_the_edge_is_not_feathered_there():
    mask = np.zeros((20, 20), bool)
    mask[:, :10] = True
    share = opacity(mask, 3)
    assert (share[:, 0] == 1).all() and (share[0] == share[10]).all()
