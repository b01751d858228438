"""Upscale: sizes, tiles, and what the ControlNet looks at."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Concepts, ControlNet, FluxSpace, RFInversion, Upscale
from mflux.engine.schedule import read_schedule

STEPS = {"num_inference_steps": 2, "max_sequence_length": 16}
CONFIG = Config(**STEPS, height=48, width=64)


def picture(height: int = 30, width: int = 40) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def net(oracle_model) -> str:
    return str(oracle_model("controlnet"))


def small_side(flux, side: int):
    """The same model, whose own size is side x side px."""
    from mflux import Flux1

    return Flux1(replace(flux.parts.source, row=replace(flux.parts.source.row, side=side)))


def test_it_is_a_controlnet_that_sees_the_picture_enlarged_by_bicubic_interpolation(random_flux, net):
    flux = random_flux("dev")
    enlarged = np.asarray(Image.fromarray(picture()).resize((64, 48), Image.Resampling.BICUBIC))
    up = flux.generate_image(1, "", CONFIG, conditions=[Upscale(picture(), 0.6, model=net)])
    same = flux.generate_image(1, "", CONFIG, conditions=[ControlNet(enlarged, net, strength=0.6)])
    assert mx.array_equal(up.artifacts["latents"], same.artifacts["latents"])


def test_strength_zero_plans_no_controlnet(random_flux, net):
    off, on = (
        random_flux("dev").plan(1, "", CONFIG, conditions=[Upscale(picture(), strength, model=net)])
        for strength in (0, 0.4)
    )
    assert off.sides == () and [side.kind for side in on.sides] == ["controlnet"]


@pytest.mark.parametrize(
    ("values", "asked", "size"),
    [
        ({}, {}, (16, 32)),  # its own, floored to 16
        ({"scale": 2}, {}, (48, 80)),  # 60 x 80
        ({"scale": 3.3}, {}, (96, 128)),  # 99 x 132
        ({"scale": 3.3}, {"height": 200, "width": 100}, (192, 96)),
        ({"scale": 2}, {"width": 128}, (48, 128)),
    ],
)
def test_the_size_is_the_asked_one_or_the_picture_s_own_times_the_scale(random_flux, net, values, asked, size):
    condition = Upscale(picture(), model=net, **values)
    plan = random_flux("dev").plan(1, "", Config(**STEPS, **asked), conditions=[condition])
    assert (plan.height, plan.width) == size
    notes = [note for note in plan.notes if "not enlarged" in note]
    assert bool(notes) == (size == (16, 32))


def test_a_large_target_is_planned_in_tiles_of_the_model_s_own_size(random_flux, net):
    condition = Upscale(picture(), model=net)

    def plan(height, width):
        return random_flux("dev").plan(1, "", Config(**STEPS, height=height, width=width), conditions=[condition])

    assert plan(1024, 2048).tile is None
    large = plan(1536, 2048)
    assert large.tile == (1024, 1024) and plan(768, 4096).tile == (768, 1024)
    schedule = read_schedule(random_flux("dev").parts.source.folders["scheduler"])
    assert large.sigmas == schedule.sigmas(2, 4096)  # noise levels of what the network sees at once
    assert large.memory_bytes < plan(1024, 1024).memory_bytes * 4


@pytest.mark.parametrize("condition", [FluxSpace("red"), Concepts(["red", "star"]), RFInversion(picture(48, 48))])
def test_what_has_to_see_the_whole_picture_is_refused_with_tiles(random_flux, net, condition):
    flux = random_flux("dev")
    for pair in ([Upscale(picture(), model=net), condition], [condition, Upscale(picture(), model=net)]):
        assert flux.plan(1, "", Config(height=64, width=64), conditions=pair).tile is None
        with pytest.raises(UsageError, match="needs the whole picture at once, but one of this size is drawn in tiles"):
            flux.plan(1, "", Config(height=2048, width=2048), conditions=pair)


def test_tiles_see_their_part_of_the_picture_and_every_token_is_drawn(random_flux, net):
    flux = small_side(random_flux("dev"), 64)
    config = Config(**STEPS, height=96, width=128)
    plan = flux.plan(1, "", config, conditions=[Upscale(picture(), model=net)])
    assert plan.tile == (64, 64)
    tiled, strong, flipped = (
        np.array(flux.generate_image(1, "", config, conditions=[condition]).artifacts["latents"])
        for condition in (
            Upscale(picture(), model=net),
            Upscale(picture(), 2.0, model=net),
            Upscale(picture()[::-1], model=net),
        )
    )
    assert np.isfinite(tiled).all() and tiled.shape == (48, 64)
    assert (np.abs(strong - tiled).max(axis=1) > 1e-4).all()  # the ControlNet reaches every token
    assert (np.abs(flipped - tiled).max(axis=1) > 1e-4).all()


def test_tiles_work_with_true_cfg_and_in_batches(random_flux, net):
    flux = small_side(random_flux("dev"), 64)
    config = Config(**STEPS, height=96, width=96, true_cfg=2.0)
    rest = {"negative_prompt": "blurred", "conditions": [Upscale(picture(), model=net)]}
    pair = flux.generate_image([1, 2], "", config, **rest)
    alone = flux.generate_image(2, "", config, **rest)
    assert np.abs(np.array(pair[1].artifacts["latents"]) - np.array(alone.artifacts["latents"])).max() <= 1e-5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strength": 3}, "3 is out of range"),
        ({"scale": 0.5}, "0.5 is out of range"),
        ({"scale": float("inf")}, "inf is not a number"),
        ({"image": "no.png"}, r"there is no file `no\.png`"),
        ({"model": "upscaler.ckpt"}, "is a pickle"),
    ],
)
def test_what_cannot_be_meant_is_refused(random_flux, net, values, message):
    with pytest.raises(UsageError, match=message):
        random_flux("dev").plan(1, "", CONFIG, conditions=[Upscale(**{"image": picture(), "model": net, **values})])
