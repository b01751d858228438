"""Concepts: maps beside a picture that does not change.  A1..A8 of methods.md."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Concepts, FluxSpace, ImageToImage, Kontext, RFInversion
from mflux.conditions.concepts import MapMean, concept_layers, shares
from mflux.images.picture import from_pixels, to_pixels

CONFIG = Config(num_inference_steps=3, max_sequence_length=16, height=48, width=64)
COARSE = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
PICTURE = np.asarray(Image.fromarray(COARSE).resize((64, 48), Image.Resampling.BICUBIC))
WORDS = ["red", "star"]


@pytest.fixture
def flux(random_flux):
    return random_flux("dev")


def draw(flux, *conditions, config=CONFIG, **rest):
    return flux.generate_image(seed=3, prompt="a fox", config=config, conditions=conditions, **rest)


def maps(flux, *rest, **settings):
    made = draw(flux, Concepts(*rest, **settings)).artifacts["maps"]
    return np.stack([*made.values()], axis=-1)


@pytest.mark.parametrize("model", ["dev", "kontext"])
def test_the_picture_is_the_same_to_the_bit(random_flux, model):  # A1
    flux = random_flux(model)
    others = [Kontext(PICTURE, fit="own")] if model == "kontext" else []
    plain, watched = draw(flux, *others), draw(flux, *others, Concepts(WORDS))
    assert np.array_equal(np.array(plain.artifacts["latents"]), np.array(watched.artifacts["latents"]))
    assert np.array_equal(np.asarray(plain.image), np.asarray(watched.image))


@pytest.mark.parametrize(
    "others",
    [[FluxSpace("red", start=0)], [RFInversion(PICTURE)], [ImageToImage(PICTURE)], [FluxSpace("red"), Concepts("x")]],
)
def test_it_changes_nothing_beside_others(flux, others):  # A1
    config = replace(CONFIG, true_cfg=2.0)
    plain, watched = (draw(flux, *each, config=config) for each in (others, [*others, Concepts(WORDS)]))
    assert np.array_equal(np.array(plain.artifacts["latents"]), np.array(watched.artifacts["latents"]))


@pytest.mark.parametrize("space", ["output", "cross"])
def test_shares_add_up_to_one_everywhere_and_are_not_even(flux, space):  # A2, A6
    found = maps(flux, WORDS, "fox", space=space)
    assert found.shape == (3, 4, 3)  # rows, columns
    assert np.abs(found.sum(axis=-1) - 1).max() < 1e-5
    assert found.std(axis=(0, 1)).max() > 1e-5


def test_the_order_of_concepts_is_the_order_of_maps_and_twins_are_equal(flux):  # A3
    one, other = maps(flux, ["red", "star", "fox"]), maps(flux, ["fox", "red", "star"])
    assert np.abs(one - other[..., [1, 2, 0]]).max() < 1e-4
    twins = np.array(shares(mx.random.normal((1, 5, 8)), mx.ones((1, 2, 8))))
    assert np.array_equal(twins[..., 0], twins[..., 1])


def test_a_single_concept_is_everywhere_and_that_is_told(flux):  # A4
    assert np.array_equal(maps(flux, "red"), np.ones((3, 4, 1)))
    assert "compare it with" in flux.plan(3, "x", CONFIG, conditions=[Concepts("red")]).notes[0]


def test_layers_and_steps_are_averaged_after_the_softmax(flux):  # A5
    count = flux.parts.transformer_config.num_layers
    singles = [maps(flux, WORDS, layers=[layer]) for layer in range(count)]
    assert np.abs(maps(flux, WORDS, layers=range(count)) - np.mean(singles, axis=0)).max() < 1e-5
    steps = [maps(flux, WORDS, steps=[step]) for step in range(3)]
    assert np.abs(maps(flux, WORDS) - np.mean(steps, axis=0)).max() < 1e-5
    assert np.abs(steps[0] - steps[2]).max() > 1e-6


def test_maps_are_row_major_and_the_concept_that_is_there_wins():  # A6, A7
    concepts = mx.array(np.eye(3, 8, dtype=np.float32))[None]
    there = np.array([0, 1, 2, 0, 1, 1, 2, 2, 0, 0, 0, 1])
    found = MapMean()
    found.add(shares(9 * concepts[:, mx.array(there)], concepts))
    grid = Concepts(["a", "b"], "c").pictures(found.mean(0), np.zeros((48, 64, 3), np.uint8))
    assert np.array_equal(found.mean(0).argmax(axis=-1), there)
    assert grid["maps"]["b"][0, 1] > 0.9 > grid["maps"]["b"][1, 3]
    colors = np.asarray(grid["segmentation"])[8::16, 8::16].reshape(12, 3)
    assert len({tuple(color) for color in colors}) == 3
    assert (colors[there == 0] == colors[0]).all()


def test_what_is_kept_does_not_grow_with_the_steps():  # A8
    kept = MapMean()
    for step in range(50):
        kept.add(mx.full((1, 12, 2), step))
        mx.eval(kept.total)
    assert len(kept.total) == 1 and kept.total[0].shape == (1, 12, 2)
    assert kept.mean(0)[0, 0] == 24.5


def test_artifacts_are_pictures_of_the_run_s_size(flux):
    made = draw(flux, Concepts(WORDS, "fox")).artifacts
    names = {"heatmap_01", "heatmap_02", "overlay_01", "overlay_02", "segmentation"}
    assert names | {"maps", "latents"} == set(made)
    assert {made[name].size for name in names} == {(64, 48)}
    assert "heatmap" in draw(flux, Concepts("red", "fox")).artifacts


def test_a_picture_of_one_s_own_is_looked_into_in_one_step(flux):
    steps = []
    condition = Concepts(WORDS, image=PICTURE)
    looked = draw(flux, condition, on_step=lambda progress: steps.append(progress.sigma))
    assert steps == [0.0]
    other = draw(flux, Concepts(WORDS, image=255 - PICTURE)).artifacts["maps"]["red"]
    assert np.abs(looked.artifacts["maps"]["red"] - other).max() > 1e-5
    again = flux._encode(mx.array(to_pixels(PICTURE)), "image", False)
    plain = from_pixels(np.array(flux.parts.get("vae").decode(again, False)))[0]
    assert np.abs(np.asarray(looked.image, int) - plain.astype(int)).max() <= 1


def test_a_picture_can_be_looked_into_at_steps_of_a_run_and_several_times(flux):
    def levels(**settings):
        plan = flux.plan(3, "x", CONFIG, conditions=[Concepts(WORDS, image=PICTURE, **settings)])
        return plan.sigmas, plan.notes

    schedule = flux.plan(3, "x", CONFIG).sigmas
    note = ("a picture is looked into through one noise level: its steps are not run",)
    assert levels() == ((0.5, 0.0), note)
    assert levels(noise_level=0.3, samples=3) == ((0.3, 0.3, 0.3, 0.0), note)
    assert levels(steps=[2, 0]) == ((schedule[0], schedule[2], 0.0), ())
    once, twice = (maps(flux, WORDS, image=PICTURE, samples=samples) for samples in (1, 2))
    assert np.abs(once - twice).max() > 1e-6  # the second look has noise of its own


def test_the_default_layers_are_flux_s_15_to_18_and_never_one_alone():
    assert concept_layers(19) == (15, 16, 17, 18)
    assert concept_layers(3) == (1, 2) and concept_layers(2) == (0, 1) and concept_layers(1) == (0,)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (Concepts([]), "there is no concept"),
        (Concepts(["red", " "]), "' ' is no concept"),
        (Concepts("red", [3]), "3 is no concept"),
        (Concepts(WORDS, layers=[99]), "99 is out of range"),
        (Concepts(WORDS, layers=[-1]), "-1 is out of range"),
        (Concepts(WORDS, layers=[]), "there are no joint blocks"),
        (Concepts(WORDS, steps=[3]), "3 is out of range"),
        (Concepts(WORDS, space="value"), "'value' is unknown"),
        (Concepts(WORDS, image=PICTURE, noise_level=0), "0 is out of range"),
        (Concepts(WORDS, image=PICTURE, samples=9), "9 is out of range"),
        (Concepts(WORDS, image=PICTURE, noise_level=0.4, steps=[0]), "`steps` says which noise"),
        (Concepts(WORDS, image="/no/such.png"), "there is no file"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, condition, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[condition])
