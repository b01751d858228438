"""Fill and Inpaint keep every byte outside the mask: odd sizes, transparency, rotation, colour profile, asked sizes."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from mflux import Config, UsageError
from mflux.conditions import Fill, Inpaint, MaskedEdit

STEPS = {"num_inference_steps": 2, "max_sequence_length": 16}
CONDITIONS = [("dev", Inpaint), ("fill", Fill), ("kontext", MaskedEdit)]
SIZES = [(48, 64), (37, 51), (16, 17), (9, 70)]


def picture(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


def mask(height: int, width: int) -> np.ndarray:
    values = np.zeros((height, width), np.uint8)
    values[height // 3 :, width // 4 : width // 2] = 255
    return values


def repaint(random_flux, model, kind, image, paint, **rest):
    config = Config(**STEPS, **{name: rest.pop(name) for name in ("height", "width") if name in rest})
    condition = kind(image, paint, **rest)
    return random_flux(model).generate_image(seed=1, prompt="x", config=config, conditions=[condition])


@pytest.mark.parametrize(("model", "kind"), CONDITIONS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_outside_the_mask_are_the_source_s_own_bytes(random_flux, model, kind, size, channels):
    source, paint = picture(*size, channels), mask(*size)
    result = np.asarray(repaint(random_flux, model, kind, source, paint).image)
    assert result.shape == source.shape
    assert np.array_equal(result[paint == 0], source[paint == 0])
    assert not np.array_equal(result[paint == 255], source[paint == 255])


@pytest.mark.parametrize(("model", "kind"), CONDITIONS)
def test_without_composite_other_pixels_change_too(random_flux, model, kind):
    source, paint = picture(48, 64), mask(48, 64)
    off = "none" if kind is MaskedEdit else False
    result = np.asarray(repaint(random_flux, model, kind, source, paint, composite=off).image)
    assert not np.array_equal(result[paint == 0], source[paint == 0])


@pytest.mark.parametrize(("model", "kind"), CONDITIONS)
def test_an_asked_size_keeps_the_resized_source(random_flux, model, kind):
    source, paint = picture(60, 90), mask(60, 90)
    image = repaint(random_flux, model, kind, source, paint, height=50, width=70).image
    resized = np.asarray(Image.fromarray(source).resize((64, 48), Image.Resampling.LANCZOS))
    kept = np.asarray(Image.fromarray(paint).resize((64, 48), Image.Resampling.LANCZOS)) < 128
    assert image.size == (64, 48)
    assert np.array_equal(np.asarray(image)[kept], resized[kept])


@pytest.mark.parametrize(("model", "kind"), CONDITIONS)
@pytest.mark.parametrize("size", [(40, 56, 3), (37, 51, 4)])
def test_a_rotated_photo_is_kept_upright_with_its_colour_profile(random_flux, tmp_path, model, kind, size):
    source = Image.fromarray(picture(*size))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source.save(tmp_path / "photo.png", exif=exif, icc_profile=profile)
    upright = np.asarray(source.transpose(Image.Transpose.ROTATE_270))
    paint = mask(*upright.shape[:2])
    result = repaint(random_flux, model, kind, tmp_path / "photo.png", paint)
    assert np.array_equal(np.asarray(result.image)[paint == 0], upright[paint == 0])
    written = result.save(tmp_path / "out.png")
    assert Image.open(written).info["icc_profile"] == profile


@pytest.mark.parametrize(("model", "kind"), [("dev", Inpaint), ("kontext", MaskedEdit)])
def test_a_crop_keeps_every_byte_outside_the_mask(random_flux, model, kind):
    source, paint = picture(120, 100), np.zeros((120, 100), np.uint8)
    paint[50:60, 30:45] = 255
    result = np.asarray(repaint(random_flux, model, kind, source, paint, crop=8, height=48, width=64).image)
    assert np.array_equal(result[paint == 0], source[paint == 0])
    assert not np.array_equal(result[paint == 255], source[paint == 255])


def test_a_small_mask_paints_its_whole_cell_or_vanishes_by_diffusers_rule(random_flux):
    source, paint = picture(48, 64), np.zeros((48, 64), np.uint8)
    paint[3:6, 3:6] = 255  # between the corners of the 8 px cells
    any_cell = np.asarray(repaint(random_flux, "dev", Inpaint, source, paint, composite=False).image)
    nearest = np.asarray(
        repaint(random_flux, "dev", Inpaint, source, paint, composite=False, latent_mask="nearest").image
    )
    assert not np.array_equal(any_cell, nearest)


@pytest.mark.parametrize(
    ("paint", "message"),
    [
        (np.zeros((48, 64), np.uint8), "black everywhere"),
        (mask(47, 64), "the mask is 64 x 47 px, but its image 64 x 48"),
    ],
)
@pytest.mark.parametrize(("model", "kind"), CONDITIONS)
def test_a_mask_that_cannot_be_meant_is_refused(random_flux, model, kind, paint, message):
    with pytest.raises(UsageError, match=message):
        repaint(random_flux, model, kind, picture(48, 64), paint)


def test_a_plain_model_refuses_to_fill_with_both_channel_counts(random_flux):
    with pytest.raises(UsageError, match="takes 64 channels per token, but Fill needs 384") as error:
        repaint(random_flux, "dev", Fill, picture(48, 64), mask(48, 64))
    assert "--model fill" in error.value.hint


def test_a_fill_model_refuses_to_draw_plainly(random_flux):
    with pytest.raises(UsageError, match="takes 384 channels per token, but a plain picture needs 64"):
        random_flux("fill").generate_image(seed=1, prompt="x", config=Config(**STEPS))
