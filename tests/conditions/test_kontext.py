"""Kontext: where reference tokens stand, which sizes they and the drawn picture have, and chains of instructions."""

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, Flux1, UsageError
from mflux.conditions import ImageToImage, Kontext
from mflux.engine.latents import grid_ids, pack_latents
from mflux.engine.network import Network
from mflux.engine.slots import Inputs, Run
from mflux.images.picture import to_pixels
from mflux.images.sizes import preferred
from mflux.weights.catalog import BY_NAME, MEGAPIXEL

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import drift

CONFIG = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64)
TURNS = ("make it red", "add a star", "remove the star")


def picture(height=48, width=64, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def flux(random_flux):
    return random_flux("kontext")


def draw(flux, condition, config=CONFIG, **rest):
    return flux.generate_image(seed=3, prompt="a fox", config=config, conditions=[condition], **rest)


def latents(image):
    return np.array(image.artifacts["latents"])


def references(flux, condition, config=CONFIG):
    plan = flux.plan(3, "a fox", config, conditions=[condition])
    return [token for each in flux._prepare(plan)[1] for token in each.inputs.tokens]


def test_the_i_th_picture_s_ids_are_i_row_column(flux):
    given = references(flux, Kontext([picture(), picture(32, 80), picture(16, 16)], fit="own"))
    for number, ((tokens, ids), size) in enumerate(zip(given, [(3, 4), (2, 5), (1, 1)], strict=True), 1):
        rows, columns = size
        assert tokens.shape == (1, rows * columns, 64)
        expected = [(number, row, column) for row in range(rows) for column in range(columns)]
        assert np.array_equal(ids, expected)


def test_text_and_drawn_tokens_keep_their_own_ids(flux):
    transformer = flux.parts.get("transformer")
    alone, beside = Network(transformer, 48, 64, Inputs()), Network(transformer, 48, 64, one_reference())
    drawn = 16 + 12  # text tokens (ids 0), then the drawn ones
    assert np.array_equal(np.array(beside.rope(16))[:, :, :drawn], np.array(alone.rope(16)))
    assert beside.rope(16).shape[2] == drawn + 12


def one_reference(first=1, order=slice(None)):
    tokens = mx.random.normal((1, 12, 64), key=mx.random.key(7))
    chosen = np.arange(12)[order].copy()
    return Inputs(tokens=[(tokens[:, mx.array(chosen)], grid_ids(48, 64, first)[chosen])])


def velocity(flux, inputs):
    branch = next(flux._branches(flux.plan(3, "a fox", CONFIG)))
    noise = mx.random.normal((1, 12, 64), key=mx.random.key(1))
    network = Network(flux.parts.get("transformer"), 48, 64, inputs)
    return np.array(network.velocity(branch, noise, mx.array([0.7])))


def test_a_reference_is_told_apart_by_its_first_coordinate_not_by_its_place_in_the_sequence(flux):
    plain = velocity(flux, one_reference())
    assert np.abs(plain - velocity(flux, one_reference(first=0))).max() > 1e-3
    assert np.abs(plain - velocity(flux, one_reference(order=slice(None, None, -1)))).max() < 1e-5  # measured: 1e-6


def test_the_second_picture_matters_and_so_does_the_order(flux):
    one, two = picture(), picture(seed=9)
    drawn = [latents(draw(flux, Kontext(each, fit="own"))) for each in ([one], [one, two], [two, one])]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.01 and np.abs(drawn[1] - drawn[2]).max() > 0.01


def test_only_the_drawn_tokens_come_out_and_references_are_not_updated(flux):
    plan = flux.plan(3, "a fox", CONFIG, conditions=[Kontext(picture(80, 32), fit="own")])
    branches, prepared = flux._prepare(plan)
    before = np.array(prepared[0].inputs.tokens[0][0])
    noise = mx.random.normal((1, 12, 64), key=mx.random.key(3))
    drawn, _ = flux._denoise(plan, (3,), noise, branches, prepared, None)
    assert drawn.shape == (1, 12, 64)
    assert np.array_equal(before, np.array(prepared[0].inputs.tokens[0][0]))


def test_the_shift_does_not_depend_on_the_references(flux):
    sizes = [picture(16, 16), picture(160, 160)]
    plans = [flux.plan(3, "x", CONFIG, conditions=[Kontext(each, fit="own")]) for each in sizes]
    assert plans[0].sigmas == plans[1].sigmas == flux.plan(3, "x", CONFIG).sigmas
    assert plans[0].extra_tokens == 1 and plans[1].extra_tokens == 100


def test_there_are_17_sizes_of_multiples_of_16_about_a_megapixel():
    assert len(set(MEGAPIXEL)) == 17
    assert all(side % 16 == 0 for size in MEGAPIXEL for side in size)
    assert {(width, height) for height, width in MEGAPIXEL} == set(MEGAPIXEL)
    assert all(abs(height * width / 2**20 - 1) < 0.02 for height, width in MEGAPIXEL)


@pytest.mark.parametrize("size", [(1080, 1920), (768, 1024), (1000, 3000), (16, 16), (1, 1), (30000, 10)])
def test_the_chosen_size_has_the_nearest_proportion(size):
    height, width = preferred(MEGAPIXEL, *size)
    rows, columns = max(16, size[0] // 16 * 16), max(16, size[1] // 16 * 16)
    gaps = [abs(columns / rows - w / h) for h, w in MEGAPIXEL]
    assert abs(columns / rows - width / height) == min(gaps)


def test_of_two_sizes_as_near_the_narrower_is_chosen_in_any_order():
    assert preferred([(16, 64), (16, 32)], 16, 48) == preferred([(16, 32), (16, 64)], 16, 48) == (16, 32)


def test_without_a_size_the_first_picture_s_proportion_is_drawn(flux):
    def planned(*images, **config):
        plan = flux.plan(3, "x", Config(**config), conditions=[Kontext(images)])
        return plan.height, plan.width

    assert planned(picture(80, 160), picture(160, 80)) == preferred(MEGAPIXEL, 80, 160)
    assert planned(picture(80, 160), height=500) == (496, preferred(MEGAPIXEL, 80, 160)[1])
    assert planned(picture(80, 160), height=64, width=48) == (64, 48)
    assert planned() == (1024, 1024)


@pytest.mark.parametrize(("fit", "tokens"), [("own", 5), ("stretch", 12), ("crop", 12), ("pad", 12)])
def test_a_reference_can_take_the_drawn_picture_s_size(flux, fit, tokens):
    assert references(flux, Kontext(picture(80, 16), fit=fit))[0][0].shape == (1, tokens, 64)


def test_crop_and_pad_keep_the_proportions(flux):
    wide = picture(24, 64).copy()
    wide[[0, 1, -2, -1]] = 200  # Pillow rings where it repeats an edge
    given = {fit: references(flux, Kontext(wide, fit=fit))[0][0] for fit in ("stretch", "crop", "pad")}
    padded = np.pad(wide, [(12, 12), (0, 0), (0, 0)], mode="edge")
    expected = pack_latents(flux._encode(mx.array(to_pixels(padded)), "reference", False))
    assert np.abs(np.array(given["pad"]) - np.array(expected)).max() < 1e-5
    assert np.abs(np.array(given["pad"]) - np.array(given["stretch"])).max() > 0.01
    assert np.abs(np.array(given["pad"]) - np.array(given["crop"])).max() > 0.01


def test_each_turn_starts_from_the_latents_of_the_one_before(flux):
    first, second, third = Kontext.draw_turns(flux, 3, TURNS, CONFIG, [Kontext(picture(), fit="own")])
    alone = flux.generate_image(seed=3, prompt=TURNS[0], config=CONFIG, conditions=[Kontext(picture(), fit="own")])
    assert np.array_equal(latents(first), latents(alone))
    by_hand = Kontext(picture(), fit="own", turns=TURNS[:1], latents=latents(first))
    assert np.array_equal(latents(second), latents(draw_words(flux, TURNS[1], by_hand)))
    assert np.abs(latents(third) - latents(second)).max() > 1e-3


def draw_words(flux, words, condition):
    return flux.generate_image(seed=3, prompt=words, config=CONFIG, conditions=[condition])


def test_a_turn_s_request_draws_the_chain_again_bit_for_bit(flux):
    *_, last = Kontext.draw_turns(flux, 3, TURNS, CONFIG, [Kontext([picture(), picture(seed=4)], fit="own")])
    replayed = Kontext([picture(), picture(seed=4)], fit="own", turns=TURNS[:-1])
    assert last.metadata["request"]["conditions"] == [replayed.to_json()]
    assert np.array_equal(latents(last), latents(draw_words(flux, TURNS[-1], replayed)))


def test_a_turn_s_result_takes_the_first_picture_s_place(flux):
    condition = Kontext(
        [picture(), picture(32, 80)], fit="own", turns=TURNS[:1], latents=np.zeros((12, 64), np.float32)
    )
    plan = flux.plan(3, "x", CONFIG, conditions=[condition])
    (prepared,) = flux._prepare(plan)[1]
    run = Run(plan, mx.zeros((1, 12, 64)), (), prepared.inputs, None, (3,), None, None)
    ((result, ids),) = prepared.bind(run).tokens
    assert result.shape == (1, 12, 64) and np.array_equal(ids, grid_ids(48, 64, 1))
    ((_, others),) = prepared.inputs.tokens
    assert np.array_equal(others, grid_ids(32, 80, 2))


def test_turns_with_true_cfg_are_guided_in_each_turn(flux):
    condition = Kontext(picture(), fit="own", turns=TURNS[:1])
    config = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64, true_cfg=3.0)
    guided = draw(flux, condition, config, negative_prompt="snow")
    first = flux.generate_image(
        seed=3, prompt=TURNS[0], config=config, conditions=[Kontext(picture(), fit="own")], negative_prompt="snow"
    )
    known = Kontext(picture(), fit="own", turns=TURNS[:1], latents=latents(first))
    assert np.array_equal(latents(guided), latents(draw(flux, known, config, negative_prompt="snow")))


class ReturnsTheReference:
    """A transformer whose velocity carries any noise to the reference in one step from sigma 1: exactly, if it is 0."""

    def __init__(self, transformer):
        self.inner = transformer

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, tokens, text, table, rope, hooks):
        return mx.concatenate([tokens[:, :12] - tokens[:, 12:], tokens[:, 12:]], axis=1)


def test_six_turns_that_return_the_reference_lose_no_bit(oracle_model):
    flux = Flux1(str(oracle_model("kontext")))
    flux.parts._networks["transformer"] = ReturnsTheReference(flux.parts.get("transformer"))
    source = pack_latents(flux._encode(mx.array(to_pixels(picture())), "reference", False))
    config = Config(num_inference_steps=1, max_sequence_length=16, height=48, width=64)
    last = draw(
        flux, Kontext(picture(), fit="own", turns=("keep everything",) * 5), config, latents=mx.zeros((1, 12, 64))
    )
    assert np.array_equal(latents(last), np.array(source[0]))


def test_an_editor_that_keeps_everything_drifts_only_by_way_of_pixels(oracle_model):
    flux = Flux1(str(oracle_model("kontext")))
    flux.parts._networks["transformer"] = ReturnsTheReference(flux.parts.get("transformer"))
    config = Config(num_inference_steps=1, max_sequence_length=16, height=48, width=64)
    source, prompts = Image.fromarray(picture()), ["keep everything"] * 6
    kept = drift.kept_latents(flux, source, prompts, 3, config)
    again = drift.encoded_again(flux, source, prompts, 3, config)
    assert all(drift.psnr(each, kept[0]) > 60 for each in kept)  # the same up to a grey level here and there
    assert all(drift.psnr(each, kept[0]) < 30 for each in again[1:])


def test_more_noise_is_more_drift():
    noise = np.random.default_rng(0).standard_normal((48, 64, 3))
    noisy = [np.clip(picture() + level * noise, 0, 255).astype(np.uint8) for level in (1, 2, 5, 20)]
    curve = [drift.psnr(each, picture()) for each in noisy]
    assert drift.psnr(picture(), picture()) == np.inf
    assert curve == sorted(curve, reverse=True) and len(set(curve)) == 4


def test_the_negative_prompt_s_pass_sees_the_reference(flux):
    config = Config(num_inference_steps=1, max_sequence_length=16, height=48, width=64, true_cfg=3.0)
    negative = {"negative_prompt": "a fox"}  # the prompt itself: both passes cancel only if both see the reference
    plain = Config(num_inference_steps=1, max_sequence_length=16, height=48, width=64)
    guided = draw(flux, Kontext(picture(), fit="own"), config, **negative)
    assert np.abs(latents(guided) - latents(draw(flux, Kontext(picture(), fit="own"), plain))).max() < 1e-5


def test_it_goes_with_image_to_image(flux):
    source = picture()
    both = [ImageToImage(source, image_strength=0.5), Kontext(source, fit="own")]
    drawn = flux.generate_image(seed=3, prompt="x", config=CONFIG, conditions=both)
    assert np.isfinite(latents(drawn)).all()


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Kontext(picture(), fit="squeeze"), "'squeeze' is unknown"),
        (Kontext(picture(), max_area=0), "0 is out of range"),
        (Kontext([], turns=TURNS), "no picture to begin the turns with"),
        (Kontext(picture(), turns="make it red"), "'make it red' is no list of instructions"),
        (Kontext(picture(), turns=["make it red", " "]), "is no list of instructions"),
        (Kontext(picture(), turns=[3]), "is no list of instructions"),
        (Kontext(["/no/such.png"]), "there is no file"),
        (Kontext([np.zeros((4, 4), np.float32)]), "is no picture"),
        (Kontext([None]), "NoneType is no picture"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, condition, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[condition])


def test_two_kontexts_are_refused_with_a_way_out(flux):
    with pytest.raises(UsageError, match="both have references") as error:
        flux.plan(3, "x", CONFIG, conditions=[Kontext(picture()), Kontext(picture())])
    assert error.value.hint == "give all of them to one"


def test_a_named_model_of_another_task_is_told_of(flux):
    condition = Kontext(picture(), fit="own")
    notes = Flux1.from_name("tiny").plan(3, "x", CONFIG, conditions=[condition]).notes
    assert notes == ("`tiny` was not trained for this: `kontext` is, or weights like it",)
    assert flux.plan(3, "x", CONFIG, conditions=[condition]).notes == ()  # a folder may hold any model


def test_a_fill_model_is_refused_with_both_channel_counts(random_flux):
    with pytest.raises(UsageError, match="takes 384 channels per token, but a plain picture needs 64") as error:
        random_flux("fill").plan(3, "x", CONFIG, conditions=[Kontext(picture(), fit="own")])
    assert "`--model kontext`" in error.value.hint


def test_the_built_in_model_has_one_size_and_other_rows_the_17():
    assert BY_NAME["tiny/kontext"].sizes == ((128, 128),)
    assert BY_NAME["kontext"].sizes == MEGAPIXEL
