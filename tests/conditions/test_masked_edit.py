"""Masked edit: what is kept at each stage, what the network sees, and how far the mask reaches.

That a full mask is the plain Kontext stands in test_every_condition.py.
"""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Kontext, MaskedEdit
from mflux.engine.latents import pack_latents, unpack_latents
from mflux.images.picture import from_pixels, to_pixels
from mflux.models.transformer import FluxTransformer

STEPS = {"num_inference_steps": 3, "max_sequence_length": 16}
WHITE = np.full((48, 64), 255, np.uint8)


def picture(height=48, width=64, seed=0, channels=3):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, channels), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def mask(height=48, width=64, top=10, left=21, bottom=37, right=50):
    values = np.zeros((height, width), np.uint8)
    values[top:bottom, left:right] = 255
    return values


@pytest.fixture
def flux(random_flux):
    return random_flux("kontext")


def edit(flux, *given, config=None, on_step=None, **fields):
    settings = Config(**STEPS | (config or {}))
    condition = MaskedEdit(*given, **fields)
    return flux.generate_image(seed=3, prompt="a fox", config=settings, conditions=[condition], on_step=on_step)


def plan(flux, *given, steps=28, **fields):
    config = Config(num_inference_steps=steps, max_sequence_length=16)
    return flux.plan(3, "x", config, conditions=[MaskedEdit(*given, **fields)])


def latents(image):
    return np.array(image.artifacts["latents"])


def encoded(flux, pixels):
    return np.array(pack_latents(flux._encode(mx.array(to_pixels(pixels)), "image", False)))[0]


def latent_mask(paint):
    """Which tokens hold a painted pixel."""
    return paint.reshape(3, 16, 4, 16).max(axis=(1, 3)).ravel() > 0


@pytest.mark.parametrize("feather", [0, 1, 8, 200])
@pytest.mark.parametrize("grow", [0, 5])
@pytest.mark.parametrize("channels", [3, 4])
def test_only_bytes_within_the_grown_mask_change(flux, feather, grow, channels):
    source = picture(channels=channels)[:45, :61].copy()
    paint = mask(45, 61)
    result = np.asarray(edit(flux, source, paint, feather=feather, grow=grow).image)
    reach = mask(45, 61, 10 - grow, 21 - grow, 37 + grow, 50 + grow) > 0
    assert result.shape == source.shape
    assert np.array_equal(result[~reach], source[~reach])
    changed = (result != source).any(axis=-1)
    assert changed[reach].mean() > 0.5


def test_the_feather_goes_evenly_from_the_source_to_the_drawn_picture(flux):
    source, paint = picture(), mask()
    hard = np.asarray(edit(flux, source, paint, feather=0).image).astype(float)
    soft = np.asarray(edit(flux, source, paint, feather=3).image).astype(float)
    row, column = 10, 35  # the first row of the mask, far from its other sides
    for depth, share in enumerate([0.25, 0.5, 0.75, 1.0, 1.0]):
        expected = share * hard[row + depth, column] + (1 - share) * source[row + depth, column]
        assert np.abs(soft[row + depth, column] - expected).max() <= 0.5


def test_latents_outside_the_mask_are_the_source_s_at_each_noise_level(flux):
    source, paint = picture(), mask()
    clean, noise = encoded(flux, source), np.array(mx.random.normal((1, 12, 64), key=mx.random.key(3)))[0]
    seen = []
    edit(flux, source, paint, on_step=lambda progress: seen.append((progress.sigma, np.array(progress.latents[0]))))
    outside = ~latent_mask(paint)
    assert outside.any() and [sigma for sigma, _ in seen][-1] == 0
    for sigma, each in seen:
        expected = np.float32(sigma) * noise + np.float32(1 - sigma) * clean
        assert np.abs(each[outside] - expected[outside]).max() <= 1e-6
        assert np.abs(each[~outside] - expected[~outside]).max() > 0.01
    assert np.array_equal(seen[-1][1][outside], clean[outside])


@pytest.mark.parametrize(("strength", "runs"), [(1.0, 28), (0.6, 17), (0.5, 14), (0.1, 3), (1e-6, 1)])
def test_a_strength_runs_its_share_of_the_steps(flux, monkeypatch, strength, runs):
    passes, whole = [], FluxTransformer.__call__
    monkeypatch.setattr(FluxTransformer, "__call__", lambda *a: passes.append(1) or whole(*a))
    edit(flux, picture(16, 16), WHITE[:16, :16], strength=strength, config={"num_inference_steps": 28})
    assert len(passes) == runs
    assert plan(flux, picture(), mask(), strength=strength).steps == runs


def given_tokens(flux, *given, **fields):
    chosen = plan(flux, *given, steps=2, **fields)
    return flux._prepare(chosen)[1][0].inputs.tokens


def test_the_network_sees_the_reference_in_place_of_the_source_unless_both_are_asked_for(flux):
    source, reference = picture(), picture(32, 80, seed=8)
    ((alone, ids),) = given_tokens(flux, source, mask())
    assert np.array_equal(np.array(alone)[0], encoded(flux, source)) and set(ids[:, 0]) == {1}
    ((taken, ids),) = given_tokens(flux, source, mask(), reference, fit="own")
    assert np.array_equal(np.array(taken)[0], encoded(flux, reference)) and set(ids[:, 0]) == {1}
    (first, one), (second, two) = given_tokens(flux, source, mask(), reference, fit="own", reference_and_source=True)
    assert np.array_equal(np.array(first), np.array(alone)) and np.array_equal(np.array(second), np.array(taken))
    assert (set(one[:, 0]), set(two[:, 0])) == ({1}, {2})


@pytest.mark.parametrize("feather", [0, 8])
def test_a_crop_changes_nothing_outside_the_mask_in_or_beyond_its_box(flux, feather):
    source, paint = picture(120, 104), mask(120, 104, 50, 30, 60, 45)
    result = np.asarray(edit(flux, source, paint, crop=4, feather=feather, config={"height": 48, "width": 64}).image)
    assert result.shape == source.shape
    assert np.array_equal(result[paint == 0], source[paint == 0])
    assert not np.array_equal(result[paint > 0], source[paint > 0])


@pytest.mark.parametrize(
    ("box", "rule", "cells"),
    [
        (mask(top=19, left=27, bottom=20, right=28), "any", [[2, 3]]),  # one pixel, not the first of its cell
        (mask(top=6, left=14, bottom=10, right=18), "any", [[0, 1], [0, 2], [1, 1], [1, 2]]),  # covers none of them
        (mask(top=19, left=27, bottom=20, right=28), "nearest", []),
        (mask(top=6, left=14, bottom=10, right=18), "nearest", [[1, 2]]),
    ],
)
def test_each_8_px_cell_that_the_mask_touches_is_drawn_and_every_other_is_the_source_s(flux, box, rule, cells):
    image = edit(flux, picture(), box, latent_mask=rule)
    drawn, source = (
        np.array(unpack_latents(mx.array(each)[None], 48, 64)[0]) for each in (latents(image), encoded(flux, picture()))
    )
    assert np.argwhere((drawn != source).any(axis=0)).tolist() == cells
    changed = (np.asarray(image.image) != picture()).any(axis=-1)
    assert np.array_equal(changed, box > 0)


def test_the_more_is_kept_the_closer_is_the_picture_outside_the_mask(flux):
    source, paint = picture(), mask()

    def error(composite):
        result = np.asarray(edit(flux, source, paint, composite=composite).image).astype(float)
        return np.square(result - source)[paint == 0].mean()

    assert error("pixel") == 0 < error("latent") < error("none")


def test_with_latents_kept_the_picture_outside_the_mask_is_the_source_through_the_autoencoder(flux):
    source, paint = picture(96, 128), mask(96, 128, 40, 56, 48, 64)  # one cell: the random decoder mixes far
    there = flux._encode(mx.array(to_pixels(source)), "image", False)
    and_back = from_pixels(np.array(flux.parts.get("vae").decode(there)))[0].astype(float)

    def drift(composite):
        result = np.asarray(edit(flux, source, paint, composite=composite).image).astype(float)
        return np.square(result - and_back)[paint == 0].mean()

    assert drift("latent") < 0.2 * drift("none")  # measured: 0.08


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strength": 0.0}, "`strength`: 0.0 is out of range"),
        ({"strength": 1.5}, "`strength`: 1.5 is out of range"),
        ({"strength": float("nan")}, "nan is not a number"),
        ({"grow": 257}, "`grow`: 257 is out of range"),
        ({"feather": -1}, "`feather`: -1 is out of range"),
        ({"crop": 513}, "`crop`: 513 is out of range"),
        ({"composite": "alpha"}, "'alpha' is unknown"),
        ({"latent_mask": "all"}, "'all' is unknown"),
        ({"fit": "squeeze"}, "'squeeze' is unknown"),
        ({"reference_and_source": True}, "there is no reference"),
        ({"reference": "/no/such.png"}, "`reference`: there is no file"),
    ],
)
def test_a_value_out_of_its_range_is_refused(flux, fields, message):
    with pytest.raises(UsageError, match=message):
        plan(flux, picture(), mask(), **fields)


def test_it_does_not_go_with_another_condition_that_has_references_or_starts(flux):
    both = [MaskedEdit(picture(), mask()), Kontext(picture())]
    with pytest.raises(UsageError, match="both have references"):
        flux.plan(3, "x", Config(**STEPS), conditions=both)
