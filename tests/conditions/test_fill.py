"""Fill: what the network sees in each mode, and painting around a picture."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, Flux1, UsageError
from mflux.conditions import Fill
from mflux.conditions.fill import mask_tokens
from mflux.engine.latents import pack_latents
from mflux.images.masks import outpainted
from mflux.images.picture import Picture, to_pixels
from mflux.images.sizes import fit, parse_padding

CONFIG = Config(num_inference_steps=2, max_sequence_length=16)
WHITE = np.full((48, 64), 255, np.uint8)


def picture(height=48, width=64, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def mask(height=48, width=64):
    values = np.zeros((height, width), np.uint8)
    values[10:37, 21:50] = 255
    return values


@pytest.fixture
def flux(random_flux):
    return random_flux("fill")


def draw(flux, condition, config=CONFIG):
    return flux.generate_image(seed=3, prompt="a fox", config=config, conditions=[condition])


def channels(flux, condition, config=CONFIG):
    plan = flux.plan(3, "x", config, conditions=[condition])
    return np.array(flux._prepare(plan)[1][0].inputs.channels)[0]


def encoded(flux, pixels):
    return np.array(pack_latents(flux._encode(mx.array(pixels), "masked", False)))[0]


class Listens:
    """A transformer that keeps the tokens it is called with."""

    def __init__(self, transformer):
        self.inner, self.tokens = transformer, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, tokens, *rest):
        self.tokens.append(np.array(tokens))
        return self.inner(tokens, *rest)


def test_a_token_is_64_noise_64_picture_256_mask(oracle_model):
    flux = Flux1(str(oracle_model("fill")))
    heard = flux.parts._networks["transformer"] = Listens(flux.parts.get("transformer"))
    draw(flux, Fill(picture(), mask()))
    (first, *_) = (each[0] for each in heard.tokens)
    assert first.shape == (12, 384)
    assert np.array_equal(first[:, :64], np.array(mx.random.normal((1, 12, 64), key=mx.random.key(3)))[0])
    assert np.array_equal(first[:, 64:128], encoded(flux, to_pixels(picture()) * (mask() == 0)))
    assert np.array_equal(first[:, 128:], np.array(mask_tokens(mask() > 0))[0])


def test_a_mask_pixel_s_channel_is_its_place_in_its_latent_cell():
    """channel = (row of 8 * 8 + column of 8) * 4 + place of the cell in its token.  Source: specs/diffusers 6.4."""
    for row, column in [(0, 0), (5, 3), (8, 0), (0, 15), (47, 63), (20, 42)]:
        paint = np.zeros((48, 64), bool)
        paint[row, column] = True
        found = np.argwhere(np.array(mask_tokens(paint))[0])
        token = (row // 16) * 4 + column // 16
        cell = (row // 8 % 2) * 2 + column // 8 % 2
        assert found.tolist() == [[token, ((row % 8) * 8 + column % 8) * 4 + cell]]
    assert (np.array(mask_tokens(WHITE > 0)) == 1).all()


def test_the_channels_mode_shows_the_whole_picture_under_a_white_mask(flux):
    seen = channels(flux, Fill(picture(), edit_mode="channels"))
    assert np.array_equal(seen[:, :64], encoded(flux, to_pixels(picture())))
    assert (seen[:, 64:] == 1).all()
    hidden = channels(flux, Fill(picture(), WHITE))
    assert np.array_equal(hidden[:, :64], encoded(flux, np.zeros((1, 3, 48, 64), np.float32)))
    assert (hidden[:, 64:] == 1).all()


def test_the_spatial_mode_paints_a_panel_on_the_right_and_returns_it(flux):
    plan = flux.plan(3, "x", CONFIG, conditions=[Fill(picture(), edit_mode="spatial")])
    assert (plan.height, plan.width) == (48, 128)
    seen = channels(flux, Fill(picture(), edit_mode="spatial")).reshape(3, 8, 320)
    assert (seen[:, :4, 64:] == 0).all() and (seen[:, 4:, 64:] == 1).all()
    assert seen[..., 64:].sum() == 48 * 128 / 2
    canvas = np.concatenate([to_pixels(picture()), np.zeros((1, 3, 48, 64), np.float32)], axis=3)
    assert np.array_equal(seen.reshape(24, 320)[:, :64], encoded(flux, canvas))
    image = draw(flux, Fill(picture(), edit_mode="spatial"))
    full = np.asarray(image.artifacts["full"])
    assert image.image.size == (64, 48) and full.shape == (48, 128, 3)
    assert np.array_equal(np.asarray(image.image), full[:, 64:])


@pytest.mark.parametrize("mode", ["channels", "spatial"])
def test_an_edit_has_the_picture_s_own_size_or_the_asked_one(flux, mode):
    odd = Fill(picture(45, 61), edit_mode=mode)
    assert draw(flux, odd).image.size == (61, 45)
    asked = Config(num_inference_steps=1, max_sequence_length=16, height=32, width=48)
    assert draw(flux, odd, asked).image.size == (48, 32)


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_crop_and_pad_keep_the_picture_s_proportions_and_its_bytes(flux, how):
    source, paint = picture(96, 32), np.zeros((96, 32), np.uint8)
    paint[40:56, 8:24] = 255
    asked = Config(num_inference_steps=1, max_sequence_length=16, height=48, width=48)
    result = draw(flux, Fill(source, paint, fit=how), asked)
    fitted, grey = (np.asarray(fit(Image.fromarray(each), 48, 48, cover=how == "crop")) for each in (source, paint))
    assert np.array_equal(np.asarray(result.image)[grey < 128], fitted[grey < 128])
    assert not np.array_equal(np.asarray(result.image)[grey >= 128], fitted[grey >= 128])


def test_fit_is_said_to_be_unused_where_no_size_is_asked_for(flux):
    notes = flux.plan(3, "x", CONFIG, conditions=[Fill(picture(), mask(), fit="pad")]).notes
    assert "fit pad is not used: the picture keeps its own size" in notes


@pytest.mark.parametrize(
    ("padding", "expected"),
    [
        ("0,30%,20%,0", (0, 300, 80, 0)),
        ("10, 20 ,30,40", (10, 20, 30, 40)),
        ([1, "2", "50%", 0], (1, 2, 200, 0)),
        ("0.5%,0,0,12.5 %", (2, 0, 0, 125)),
    ],
)
def test_a_padding_is_px_or_a_share_of_the_side(padding, expected):
    assert parse_padding(padding, 400, 1000) == expected


@pytest.mark.parametrize(
    ("padding", "message"),
    [
        ("1,2,3,4,5", "'1,2,3,4,5' has 5 parts, not 1 to 4"),
        ("", "'' is no length"),
        ("0,0,0,0", "adds nothing"),
        ("-5,0,0,0", "'-5' is no length"),
        ("1.5,0,0,0", "is no length"),
        ("nan%,0,0,0", "is no length"),
        ("1e3,0,0,0", "is no length"),
        ("٣,0,0,0", "is no length"),
        ("99999,0,0,0", "the picture would be 64 x 100047 px"),
        ("100000%,0,0,0", "the picture would be"),
        ([1, 2, 3, None], "None is no length"),
    ],
)
def test_a_padding_that_cannot_be_meant_is_refused(flux, padding, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[Fill(picture(), outpaint=padding)])


@pytest.mark.parametrize("shown", [3, 4])
def test_outpainting_keeps_the_picture_in_the_middle(flux, shown):
    source = picture(45, 61, channels=shown)
    result = np.asarray(draw(flux, Fill(source, outpaint="16,50%,0,7")).image)
    assert result.shape == (16 + 45, 7 + 61 + 30, shown)  # half of 61, rounded to even
    assert np.array_equal(result[16:, 7:68], source)
    assert not np.array_equal(result[:16, 7:68], np.broadcast_to(source[:1], (16, 61, shown)))


def test_outpainting_can_repaint_a_part_of_the_picture_too():
    grey = mask()
    padded, paint = outpainted(Picture(picture()), grey, [0, 8, 0, 0])
    assert padded.pixels.shape == (48, 72, 3)
    assert np.array_equal(paint[:, :64], grey) and (paint[:, 64:] == 255).all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Fill(picture()), "`mask`: there is no mask"),
        (Fill(picture(), mask(), edit_mode="channels"), "an edit mode draws the whole picture"),
        (Fill(picture(), edit_mode="spatial", outpaint="1,1,1,1"), "an edit mode draws the whole picture"),
        (Fill(picture(), edit_mode="beside"), "'beside' is unknown"),
        (Fill(picture(), mask(16, 16), outpaint="1,1,1,1"), "the mask is 16 x 16 px"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, condition, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[condition])


def test_a_colour_profile_survives_in_every_mode(flux, tmp_path):
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture()).save(tmp_path / "photo.png", icc_profile=profile)
    for rest in ({"mask": mask()}, {"outpaint": "0,16,0,0"}, {"edit_mode": "channels"}, {"edit_mode": "spatial"}):
        assert draw(flux, Fill(tmp_path / "photo.png", **rest)).icc == profile
