"""Image-to-image: where it starts, and how far it goes."""

import numpy as np
import pytest

from mflux import Config, UsageError
from mflux.conditions import ImageToImage

SOURCE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def plan(random_flux, condition=None, steps=20, **config):
    settings = Config(num_inference_steps=steps, **config)
    conditions = [] if condition is None else [condition]
    return random_flux("dev").plan(1, "x", settings, conditions=conditions)


@pytest.mark.parametrize(("strength", "first"), [(0.3, 6), (0.4, 8), (0.04, 1), (0.99, 19), (0.0, 0)])
def test_image_strength_skips_its_share_of_the_steps(random_flux, strength, first):
    assert plan(random_flux, ImageToImage(SOURCE, image_strength=strength)).first == first


@pytest.mark.parametrize(("steps", "strength", "runs"), [(25, 0.56, 15), (28, 0.6, 17), (50, 0.56, 29), (4, 0.01, 1)])
def test_strength_runs_as_many_steps_as_diffusers(random_flux, steps, strength, runs):
    assert plan(random_flux, ImageToImage(SOURCE, strength=strength), steps).steps == runs


def test_without_a_strength_the_readme_s_default_is_used(random_flux):
    assert plan(random_flux, ImageToImage(SOURCE)).first == 8
    assert plan(random_flux, image_path=SOURCE).first == 8


def test_the_picture_s_own_size_is_drawn(random_flux):
    odd = np.zeros((53, 70, 3), np.uint8)
    assert (plan(random_flux, ImageToImage(odd)).height, plan(random_flux, ImageToImage(odd)).width) == (48, 64)
    assert plan(random_flux, ImageToImage(odd), height=32).height == 32


def test_the_config_s_image_is_the_condition_s(random_flux):
    flux = random_flux("dev")
    config = Config(num_inference_steps=4, max_sequence_length=16, image_path=SOURCE, image_strength=0.5)
    by_config = flux.generate_image(seed=1, prompt="x", config=config)
    plain = Config(num_inference_steps=4, max_sequence_length=16)
    condition = ImageToImage(SOURCE, image_strength=0.5)
    by_condition = flux.generate_image(seed=1, prompt="x", config=plain, conditions=[condition])
    assert np.array_equal(np.asarray(by_config.image), np.asarray(by_condition.image))


def test_more_image_strength_stays_closer_to_the_picture(random_flux):
    config = Config(num_inference_steps=10, max_sequence_length=16)
    flux = random_flux("dev")
    away = []
    trip = flux.generate_image(seed=1, prompt="x", config=config, conditions=[ImageToImage(SOURCE, 0.9)])
    for strength in (0.8, 0.5, 0.2):
        image = flux.generate_image(seed=1, prompt="x", config=config, conditions=[ImageToImage(SOURCE, strength)])
        away.append(float(np.abs(np.array(image.artifacts["latents"]) - np.array(trip.artifacts["latents"])).mean()))
    assert away == sorted(away)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_strength": 0.4, "strength": 0.6}, "say the same thing in two ways"),
        ({"image_strength": 1.0}, "out of range"),
        ({"strength": 0.0}, "out of range"),
        ({"strength": float("nan")}, "nan is not a number"),
    ],
)
def test_a_strength_that_cannot_be_meant_is_refused(random_flux, values, message):
    with pytest.raises(UsageError, match=message):
        plan(random_flux, ImageToImage(SOURCE, **values))


def test_a_strength_that_leaves_no_step_is_refused(random_flux):
    with pytest.raises(UsageError, match="leave no step to draw"):
        plan(random_flux, ImageToImage(SOURCE, 0.5), steps=1)
