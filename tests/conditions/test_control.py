"""Control: the map is what steers, given or made, stretched to the run's size."""

import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Control
from mflux.images.canny import canny

STEPS = {"num_inference_steps": 2, "max_sequence_length": 16}
CONFIG = Config(**STEPS, height=48, width=64)


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def draw(random_flux, condition, config=CONFIG, model="control"):
    return random_flux(model).generate_image(seed=1, prompt="x", config=config, conditions=[condition])


def same(one, other) -> bool:
    return np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_edges_made_from_a_picture_draw_what_the_map_itself_draws(random_flux):
    edges = np.repeat(canny(picture(), 50, 200)[..., None], 3, axis=2)
    assert edges.any()
    made = draw(random_flux, Control(source=picture(), kind="canny"))
    assert same(made, draw(random_flux, Control(edges, kind="canny")))
    assert np.array_equal(np.asarray(made.artifacts["canny"]), edges)
    assert not same(made, draw(random_flux, Control(picture())))


def test_thresholds_change_the_edges(random_flux):
    few = draw(random_flux, Control(source=picture(), kind="canny", canny_low=300, canny_high=600))
    many = draw(random_flux, Control(source=picture(), kind="canny", canny_low=10, canny_high=20))
    assert (np.asarray(few.artifacts["canny"]) > 0).sum() < (np.asarray(many.artifacts["canny"]) > 0).sum()


def test_a_map_of_another_size_is_stretched_to_the_asked_one(random_flux):
    stretched = np.asarray(Image.fromarray(picture(100, 30)).resize((64, 48), Image.Resampling.LANCZOS))
    assert same(draw(random_flux, Control(picture(100, 30))), draw(random_flux, Control(stretched)))


def test_a_side_that_the_map_s_proportions_would_make_too_long_is_refused(random_flux):
    with pytest.raises(UsageError, match="131072 x 16 px would be drawn"):
        random_flux("control").plan(1, "x", conditions=[Control(np.zeros((1, 16384, 3), np.uint8))])


@pytest.mark.parametrize("how", ["crop", "pad"])
def test_crop_and_pad_keep_the_map_s_proportions(random_flux, how):
    tall = picture(96, 32)
    scaled = np.asarray(
        Image.fromarray(tall).resize((64, 192) if how == "crop" else (16, 48), Image.Resampling.LANCZOS)
    )
    wanted = scaled[72:120] if how == "crop" else np.pad(scaled, [(0, 0), (24, 24), (0, 0)], mode="edge")
    found, given, stretched = (
        np.asarray(draw(random_flux, each).image, int)
        for each in (Control(tall, fit=how), Control(wanted), Control(tall))
    )
    assert np.abs(found - given).mean() < 0.5 < 5 < np.abs(found - stretched).mean()


def test_without_a_size_the_run_has_the_map_s_proportions_at_the_model_s_own_area(random_flux):
    plan = random_flux("control").plan(1, "x", Config(**STEPS), conditions=[Control(picture(40, 160))])
    assert (plan.height, plan.width) == (512, 2048)  # 1024^2 px
    plan = random_flux("control").plan(1, "x", Config(**STEPS, height=64), conditions=[Control(picture(40, 160))])
    assert (plan.height, plan.width) == (64, 2048)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Control(), "there is no control image"),
        (Control(picture(), source=picture()), "both `image` and `source`"),
        (Control(picture(), kind="pose"), "'pose' is unknown"),
        (Control(picture(), fit="tile"), "'tile' is unknown"),
        (Control(picture(), canny_low=-1), "-1 is out of range"),
        (Control(picture(), canny_high=float("nan")), "nan is not a number"),
        (Control("no-such.png"), "there is no file `no-such.png`"),
    ],
)
def test_what_cannot_be_meant_is_refused(random_flux, condition, message):
    with pytest.raises(UsageError, match=message):
        draw(random_flux, condition)


def test_a_plain_model_refuses_a_map_with_both_channel_counts(random_flux):
    with pytest.raises(UsageError, match="takes 64 channels per token, but Control needs 128") as error:
        draw(random_flux, Control(picture(), kind="canny"), model="dev")
    assert "--model canny" in error.value.hint


def test_a_control_model_refuses_to_draw_plainly(random_flux):
    with pytest.raises(UsageError, match="takes 128 channels per token, but a plain picture needs 64") as error:
        random_flux("control").generate_image(seed=1, prompt="x", config=CONFIG)
    assert "mflux-generate-canny" in error.value.hint
