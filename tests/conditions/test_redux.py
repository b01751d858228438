"""Redux: which tokens stand behind the text, and what a strength means."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, Flux1, ModelError, UsageError
from mflux.conditions import Kontext, Redux
from mflux.conditions.redux import siglip_pixels
from mflux.weights.resolve import NETWORKS

CONFIG = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64)
TOKENS, WIDTH = 16, 48  # of the tiny SigLIP (56 px in patches of 14), and of its text tokens


def picture(seed=0, height=40, width=72):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def flux(random_flux):
    return random_flux("redux")


def draw(flux, *conditions):
    image = flux.generate_image(seed=3, prompt="a fox", config=CONFIG, conditions=conditions)
    return np.array(image.artifacts["latents"])


def tokens(flux, *given, **fields):
    plan = flux.plan(3, "x", CONFIG, conditions=[Redux(*given, **fields)])
    inputs = flux._prepare(plan)[1][0].inputs
    return plan, [np.array(each) for each in inputs.text], inputs


def test_strength_0_is_absent(flux):
    one, two = picture(), picture(1)
    assert np.array_equal(draw(flux, Redux([one, two], strengths=[0, 1])), draw(flux, Redux(two)))
    assert np.array_equal(draw(flux, Redux([one, two], strengths=[0, 0])), draw(flux))
    assert np.array_equal(
        draw(flux, Redux([one, two], strengths=[0, 1], combine="sum")), draw(flux, Redux(two, combine="sum"))
    )


def test_each_picture_adds_one_token_a_patch_in_the_order_given(flux):
    pictures = [picture(seed) for seed in range(3)]
    plan, given, _ = tokens(flux, pictures)
    assert [each.shape for each in given] == [(1, TOKENS, WIDTH)] * 3
    assert plan.extra_tokens == 3 * TOKENS
    for pixels, expected in zip(pictures, given, strict=True):
        assert np.array_equal(tokens(flux, pixels)[1][0], expected)


def test_flux_1_s_own_siglip_has_729_tokens():
    from mflux.models.siglip import SiglipConfig

    assert SiglipConfig().tokens == 729


def test_a_strength_multiplies_the_picture_s_tokens_and_not_the_text(flux):
    _, (plain,), _ = tokens(flux, picture())
    _, (weak,), inputs = tokens(flux, picture(), strengths=[0.25])
    assert np.array_equal(weak, 0.25 * plain)
    assert (inputs.prompt_scale, inputs.pooled_scale) == (1, 1)


def test_one_number_is_the_first_strength():
    assert Redux("a.png", 0.5) == Redux("a.png", [0.5])


def test_missing_strengths_are_1(flux):
    pictures = [picture(), picture(1)]
    assert np.array_equal(draw(flux, Redux(pictures, strengths=[0.5])), draw(flux, Redux(pictures, strengths=[0.5, 1])))


def test_added_up_pictures_take_one_place_and_scale_the_text_as_diffusers_does(flux):
    one, two = picture(), picture(1)
    plan, (together,), inputs = tokens(flux, [one, two], strengths=[0.5, 1.5], combine="sum")
    apart = [tokens(flux, each)[1][0] for each in (one, two)]
    assert np.abs(together - (0.5 * apart[0] + 1.5 * apart[1])).max() < 1e-6
    assert (inputs.prompt_scale, inputs.pooled_scale) == (2.0, 2)
    assert plan.extra_tokens == TOKENS


def test_one_picture_of_strength_1_is_the_same_either_way(flux):
    assert np.array_equal(draw(flux, Redux(picture())), draw(flux, Redux(picture(), combine="sum")))


def test_the_picture_is_stretched_to_siglip_s_size(flux):
    square = np.asarray(Image.fromarray(picture()).resize((56, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(siglip_pixels(picture(), 56), siglip_pixels(square, 56))
    assert siglip_pixels(picture(), 56).shape == (1, 3, 56, 56)
    transparent = np.dstack([picture(), np.zeros((40, 72), np.uint8)])
    assert (siglip_pixels(transparent, 56) == 1).all()  # laid on white


def test_it_goes_with_kontext(flux):
    both = draw(flux, Redux(picture()), Kontext(picture(2), fit="own"))
    assert np.abs(both - draw(flux, Redux(picture()))).max() > 1e-3
    assert np.abs(both - draw(flux, Kontext(picture(2), fit="own"))).max() > 1e-3


def test_the_network_s_text_is_not_changed_in_place(flux):
    before = np.array(flux.encode_prompt("a fox", None, 16)[0])
    draw(flux, Redux([picture(), picture(1)], combine="sum"))
    assert np.array_equal(before, np.array(flux.encode_prompt("a fox", None, 16)[0]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"images": []}, "`images`: there is no picture"),
        ({"images": [picture()], "strengths": [1, 1]}, "there are 2 strengths for 1 pictures"),
        ({"images": [picture()], "strengths": [2.5]}, "`strengths`: 2.5 is out of range"),
        ({"images": [picture()], "strengths": [-1]}, "`strengths`: -1 is out of range"),
        ({"images": [picture()], "strengths": [float("inf")]}, "inf is not a number"),
        ({"images": [picture()], "combine": "mean"}, "'mean' is unknown"),
        ({"images": ["/no/such.png"]}, "`images`: there is no file"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, given, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[Redux(**given)])


def test_a_model_without_siglip_says_what_it_lacks(random_flux):
    with pytest.raises(UsageError, match="has no `image_encoder`") as error:
        random_flux("dev").plan(3, "x", CONFIG, conditions=[Redux(picture())])
    assert "--model redux" in error.value.hint


def test_a_projector_of_another_width_is_refused(random_flux, oracle_model):
    source = random_flux("redux").parts.source
    folders = {part: oracle_model("schnell") / part for part in NETWORKS}
    other = Flux1(replace(source, folders=source.folders | folders))
    with pytest.raises(ModelError, match="Redux' projector goes from width 24 to 48"):
        other.plan(3, "x", CONFIG, conditions=[Redux(picture())])


def test_siglip_s_dtype_follows_the_precision(flux):
    config = Config(num_inference_steps=1, max_sequence_length=16, height=16, width=16, precision="bfloat16")
    half = Flux1(flux.parts.source)
    plan = half.plan(3, "x", config, conditions=[Redux(picture())])
    assert half._prepare(plan)[1][0].inputs.text[0].dtype == mx.bfloat16
