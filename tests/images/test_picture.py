"""Pictures of any mode, from a path, PIL or an array."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from mflux import UsageError
from mflux.images.picture import describe, described, from_pixels, open_grey, open_picture, to_pixels

RGB = np.random.default_rng(1).integers(0, 256, (6, 9, 3), np.uint8)
ALPHA = np.dstack([RGB, np.arange(54, dtype=np.uint8).reshape(6, 9) * 4])


def saved(tmp_path, image, name="picture.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("pixels", [RGB, ALPHA], ids=["RGB", "RGBA"])
def test_path_pil_and_array_are_the_same_picture(tmp_path, pixels):
    path = saved(tmp_path, Image.fromarray(pixels))
    for source in (path, str(path), Image.fromarray(pixels), pixels):
        assert np.array_equal(open_picture(source, "image").pixels, pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_a_mode_without_transparency_becomes_pillow_s_rgb(mode):
    image = Image.fromarray(RGB).convert("RGB" if mode == "LAB" else mode)
    assert np.array_equal(open_picture(image, "image").pixels, np.asarray(image.convert("RGB")))


def test_grey_with_transparency_keeps_it():
    grey = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(ALPHA[..., 3])])
    assert np.array_equal(open_picture(grey, "image").pixels[..., 3], ALPHA[..., 3])


def test_a_transparent_palette_entry_is_transparent(tmp_path):
    indices = Image.fromarray(np.tile(np.arange(3, dtype=np.uint8), (2, 1)))
    palette = Image.frombytes("P", indices.size, indices.tobytes())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    picture = open_picture(saved(tmp_path, palette, transparency=1), "image")
    assert picture.pixels[0].tolist() == [[255, 0, 0, 255], [0, 255, 0, 0], [0, 0, 255, 255]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    for mode in ("I;16", "I"):
        image = Image.fromarray(values if mode == "I;16" else values.astype(np.int32))
        assert open_picture(image, "image").pixels[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_dark_sixteen_bit_picture_stays_dark():
    values = np.array([[0, 100, 200, 255]], np.uint16)
    assert open_picture(Image.fromarray(values), "image").pixels.max() <= 1


def test_sixteen_bit_masks_are_scaled_like_pictures():
    mask = open_grey(Image.fromarray(np.array([[0, 30000, 40000, 65535]], np.uint16)), "mask")
    assert np.asarray(mask).tolist() == [[0, 117, 156, 255]]


def test_transparency_lies_on_white_for_the_network():
    picture = open_picture(np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8), "image")
    assert picture.rgb.tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]


def test_what_is_transparent_in_a_mask_is_kept():
    rgba = np.full((1, 2, 4), 255, np.uint8)
    rgba[0, 0, 3] = 0
    assert np.asarray(open_grey(rgba, "mask")).tolist() == [[0, 255]]


@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_a_photo_is_turned_upright(tmp_path, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(RGB), exif=exif)
    assert np.array_equal(open_picture(path, "image").pixels, np.rot90(RGB, turn))
    assert np.array_equal(open_picture(Image.open(path), "image").pixels, np.rot90(RGB, turn))


def test_the_colour_profile_is_kept(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    path = saved(tmp_path, Image.fromarray(RGB), icc_profile=profile)
    assert open_picture(path, "image").icc == profile
    assert open_picture(path, "image").resized(16, 16).icc == profile
    assert open_picture(RGB, "image").icc is None


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_profile_of_another_colour_space_does_not_follow_into_rgb(mode):
    image = Image.fromarray(RGB).convert(mode)
    image.info["icc_profile"] = b"\0" * 16 + {"L": b"GRAY", "CMYK": b"CMYK"}[mode] + b"\0" * 108
    assert open_picture(image, "image").icc is None


def test_its_own_size_leaves_every_byte():
    picture = open_picture(ALPHA, "image")
    assert picture.resized(6, 9) is picture
    assert picture.resized(12, 18).pixels.shape == (12, 18, 4)


@pytest.mark.parametrize(
    "array",
    [
        RGB.astype(np.float32),
        RGB.astype(np.int64),
        RGB[None],
        RGB[..., :2],
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.uint8),
        np.zeros((3,), np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_that_is_no_picture_is_refused(array):
    with pytest.raises(UsageError, match="is no picture"):
        open_picture(array, "image")


@pytest.mark.parametrize("source", [None, 5, b"picture.png", ["picture.png"], object()], ids=repr)
def test_what_is_neither_path_nor_picture_is_refused(source):
    with pytest.raises(UsageError) as error:
        open_picture(source, "image")
    assert error.value.field == "image"


def test_an_empty_pil_image_is_refused():
    with pytest.raises(UsageError):
        open_picture(Image.new("RGB", (0, 0)), "image")


def test_a_pil_image_of_a_damaged_file_is_refused(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.tile(RGB, (20, 20, 1))))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UsageError, match="cannot be read"):
        open_picture(Image.open(path), "image")


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "bmp"])
def test_a_file_cut_in_the_middle_is_refused(tmp_path, ending):
    path = saved(tmp_path, Image.fromarray(np.tile(RGB, (20, 20, 1))), f"picture.{ending}")
    raw = path.read_bytes()
    for share in (0.2, 0.5, 0.9):
        path.write_bytes(raw[: int(len(raw) * share)])
        with pytest.raises(UsageError, match="cannot be read as a picture"):
            open_picture(path, "image")


def test_a_single_boolean_array_is_a_mask():
    assert np.asarray(open_grey(np.array([[True, False]]), "mask")).tolist() == [[255, 0]]


def test_every_grey_level_survives_the_way_to_the_network_and_back():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    pixels = to_pixels(levels)
    assert (pixels.min(), pixels.max(), pixels.shape) == (-1, 1, (1, 3, 16, 16))
    assert np.array_equal(from_pixels(pixels)[0], levels)


def test_pixels_beyond_the_range_are_clamped():
    assert from_pixels(np.array([-9.0, 9.0, 0.0]).reshape(1, 3, 1, 1)).ravel().tolist() == [0, 255, 128]


def test_a_described_picture_is_found_again_while_it_is_the_same(tmp_path):
    path = saved(tmp_path, Image.fromarray(RGB))
    value = describe(path, "image")
    assert described(value, "image") == str(path) and len(value["sha256"]) == 64
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UsageError, match="has changed since"):
        described(value, "image")
    path.unlink()
    with pytest.raises(UsageError, match="there is no file"):
        described(value, "image")
    with pytest.raises(UsageError, match="given in memory"):
        described(describe(RGB, "image"), "image")
