"""From inverse depth to a map, and from a picture to a drawing with its depth."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Control, ControlNet
from mflux.conditions.depth import depth_map, normalised
from mflux.weights.load import load_network
from mflux.weights.resolve import Side

CONFIG = Config(num_inference_steps=2, max_sequence_length=16, height=48, width=64)


def picture(height: int = 70, width: int = 110) -> np.ndarray:
    coarse = np.random.default_rng(height).integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def estimator(oracle_model):
    return load_network("depth_pro", oracle_model("depth-pro"))


@pytest.mark.parametrize("size", [(70, 110), (33, 16), (1, 5)])
def test_the_map_has_the_picture_s_size_and_the_whole_range(estimator, size):
    found = depth_map(estimator, picture(*size))
    assert found.shape == size and found.dtype == np.uint8
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 5.0), (3.5, 0.0), (0.01, -2.0)])
def test_normalising_forgets_scale_and_shift_and_keeps_the_order(scale, shift):
    values = np.random.default_rng(0).normal(size=(9, 7))
    assert np.abs(normalised(scale * values + shift) - normalised(values)).max() <= 1e-12
    assert np.abs(normalised(-scale * values + shift) - (1 - normalised(values))).max() <= 1e-12
    assert (normalised(values).min(), normalised(values).max()) == (0, 1)


def test_a_constant_depth_is_zero_and_no_nan():
    assert np.array_equal(normalised(np.full((3, 4), 7.5)), np.zeros((3, 4)))


def test_a_picture_draws_what_its_depth_map_draws(random_flux, oracle_model, estimator):
    model, source = str(oracle_model("depth-pro")), picture()
    depth = np.repeat(depth_map(estimator, source)[..., None], 3, axis=2)
    flux = random_flux("control")
    made = flux.generate_image(1, "x", CONFIG, conditions=[Control(source=source, depth_model=model)])
    given = flux.generate_image(1, "x", CONFIG, conditions=[Control(depth)])
    assert mx.array_equal(made.artifacts["latents"], given.artifacts["latents"])
    stretched = np.asarray(Image.fromarray(depth).resize((64, 48), Image.Resampling.LANCZOS))
    assert np.array_equal(np.asarray(made.artifacts["depth"]), stretched)


def test_the_mode_of_a_controlnet_says_what_is_made_of_a_picture(random_flux, oracle_model):
    union, model, source = str(oracle_model("controlnet-union")), str(oracle_model("depth-pro")), picture()
    artifacts = {
        mode: random_flux("dev")
        .generate_image(
            1, "x", CONFIG, conditions=[ControlNet(source=source, model=union, mode=mode, depth_model=model)]
        )
        .artifacts
        for mode in ("canny", "depth", 2, "tile")
    }
    assert [set(found) - {"latents"} for found in artifacts.values()] == [{"canny"}, {"depth"}, {"depth"}, set()]
    with pytest.raises(UsageError, match="a map of the mode `pose` cannot be made from a picture"):
        random_flux("dev").plan(1, "x", CONFIG, conditions=[ControlNet(source=source, model=union, mode="pose")])


def test_the_estimator_is_planned_and_the_plain_map_needs_none(random_flux, oracle_model):
    side = Side("depth_pro", oracle_model("depth-pro"))
    with_it = Control(source=picture(), depth_model=str(side.place))
    assert random_flux("control").plan(1, "x", CONFIG, conditions=[with_it]).sides == (side,)
    assert random_flux("control").plan(1, "x", CONFIG, conditions=[Control(picture())]).sides == ()


def test_a_pickle_is_refused_and_never_opened(random_flux, tmp_path):
    bomb = tmp_path / "depth_pro.pt"
    bomb.write_bytes(b"cos\nsystem\n(S'touch %s/opened'\ntR." % bytes(tmp_path))
    with pytest.raises(UsageError, match="is a pickle, which runs code when it is opened; it was not opened"):
        random_flux("control").plan(1, "x", CONFIG, conditions=[Control(source=picture(), depth_model=str(bomb))])
    assert not (tmp_path / "opened").exists()
