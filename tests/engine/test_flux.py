"""Flux1 as a Python program uses it."""

import logging

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

import mflux
from mflux import Config, Flux1, GeneratedImage, UsageError

CONFIG = Config(num_inference_steps=2, height=48, width=64, max_sequence_length=16)


def latents(image):
    return np.array(image.artifacts["latents"])


def test_the_public_names_are_importable():
    assert all(getattr(mflux, name) for name in mflux.__all__)
    assert set(mflux.__all__) <= set(dir(mflux))


def test_an_int_seed_gives_a_picture_and_a_sequence_a_list(random_flux):
    one = random_flux("dev").generate_image(seed=2, prompt="x", config=CONFIG)
    many = random_flux("dev").generate_image(seed=(2, 3), prompt="x", config=CONFIG)
    assert isinstance(one, GeneratedImage) and one.image.size == (64, 48)
    assert [image.metadata["seed"] for image in many] == [2, 3]
    assert not np.array_equal(latents(many[0]), latents(many[1]))


def test_the_same_request_gives_the_same_bits(random_flux, oracle_model):
    first = random_flux("dev").generate_image(seed=2, prompt="x", config=CONFIG)
    again = Flux1(str(oracle_model("dev"))).generate_image(seed=2, prompt="x", config=CONFIG)
    assert np.array_equal(latents(first), latents(again))


def test_start_noise_may_be_given_packed_or_not(random_flux):
    flux, noise = random_flux("dev"), mx.random.normal((1, 12, 64), key=mx.random.key(3))
    from mflux.engine.latents import unpack_latents

    by_seed = flux.generate_image(seed=3, prompt="x", config=CONFIG)
    packed = flux.generate_image(seed=0, prompt="x", config=CONFIG, latents=noise)
    unpacked = flux.generate_image(seed=0, prompt="x", config=CONFIG, latents=np.array(unpack_latents(noise, 48, 64)))
    assert np.array_equal(latents(by_seed), latents(packed)) and np.array_equal(latents(packed), latents(unpacked))


@pytest.mark.parametrize("shape", [(1, 13, 64), (2, 12, 64), (12, 64), (1, 16, 8, 6)])
def test_start_noise_of_another_shape_is_refused(random_flux, shape):
    with pytest.raises(UsageError, match="does not fit"):
        random_flux("dev").generate_image(seed=0, prompt="x", config=CONFIG, latents=mx.zeros(shape))


def test_on_step_hears_of_every_step(random_flux):
    heard = []
    random_flux("dev").generate_image(seed=[1, 2], prompt="x", config=CONFIG, on_step=heard.append)
    assert [(step.seeds, step.done, step.total) for step in heard] == [((1, 2), 1, 2), ((1, 2), 2, 2)]
    assert heard[-1].sigma == 0 and heard[-1].latents.shape == (2, 12, 64)


def test_the_plan_reads_no_weights(oracle_model):
    flux = Flux1(str(oracle_model("dev")))
    plan = flux.plan(1, "x", CONFIG)
    assert (plan.height, plan.width, plan.steps, plan.guidance) == (48, 64, 2, 3.5)
    assert not flux.parts._networks


def test_unset_values_come_from_the_model(random_flux):
    dev, schnell = (random_flux(name).plan(1, "x") for name in ("dev", "schnell"))
    assert (dev.steps, dev.guidance, dev.text_tokens) == (25, 3.5, 512)
    assert (schnell.steps, schnell.guidance, schnell.text_tokens) == (4, None, 256)


def test_guidance_on_a_model_without_it_is_noted(random_flux, caplog):
    caplog.set_level(logging.WARNING, "mflux")
    logging.getLogger("mflux").propagate = True
    random_flux("schnell").generate_image(seed=1, prompt="x", config=Config(guidance=4, height=48, width=64))
    assert "takes no guidance" in caplog.text


def test_a_picture_larger_than_the_memory_is_refused_with_both_numbers(random_flux):
    with pytest.raises(UsageError, match=r"needs about [\d.]+ GB, and this machine has [\d.]+ GB"):
        random_flux("dev").plan(1, "x", Config(height=16384, width=16384))


def test_negative_guidance_moves_the_picture_away_from_the_negative_prompt(random_flux):
    flux = random_flux("dev")
    guided = [
        latents(
            flux.generate_image(
                seed=1,
                prompt="x",
                config=Config(num_inference_steps=2, height=48, width=64, max_sequence_length=16, true_cfg=scale),
                negative_prompt="y",
            )
        )
        for scale in (1.0, 2.0, 3.0)
    ]
    assert np.abs(guided[0] - guided[1]).max() > 1e-3
    assert np.abs(guided[0] - guided[2]).mean() > np.abs(guided[0] - guided[1]).mean()


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_a_quantized_model_draws_close_to_the_whole_one(oracle_model, bits):
    """The random models are narrow, so only widths of 64 and more are packed: fill's text encoder is one."""
    image = Flux1(str(oracle_model("dev")), quantize=bits).generate_image(seed=1, prompt="x", config=CONFIG)
    assert image.metadata["quantize"] == bits


def test_a_saved_picture_carries_its_request(random_flux, tmp_path):
    from mflux.images.metadata import read_metadata

    image = random_flux("dev").generate_image(seed=7, prompt="ein Füchslein 🦊", config=CONFIG)
    path = image.save(tmp_path / "fox.png", export_json_metadata=True)
    metadata = read_metadata(path)
    assert metadata["prompt"] == "ein Füchslein 🦊" and metadata["request"]["seeds"] == [7]
    assert (tmp_path / "fox.json").is_file()
    assert image.save(tmp_path / "fox.png") == tmp_path / "fox_1.png"
    assert image.save(tmp_path / "fox.png", overwrite=True) == tmp_path / "fox.png"
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(image.image))
