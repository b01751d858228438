"""Noise levels, against diffusers 0.42.1's FlowMatchEulerDiscreteScheduler; first steps, against its get_timesteps."""

import json
from itertools import pairwise

import numpy as np
import pytest

from mflux.engine.schedule import Schedule, image_strength_start, read_schedule, strength_start
from mflux.errors import ModelError


@pytest.mark.parametrize(
    ("tokens", "steps", "sigmas"),
    [
        (64, 4, [1.0, 0.8272286653518677, 0.6147918701171875, 0.34725838899612427, 0.0]),
        (4096, 4, [1.0, 0.9045307636260986, 0.7595109343528748, 0.5128441452980042, 0.0]),
        (1024, 3, [1.0, 0.7897047996520996, 0.48421841859817505, 0.0]),
    ],
)
def test_the_dev_family_is_shifted_by_its_tokens(tokens, steps, sigmas):
    assert Schedule().sigmas(steps, tokens) == pytest.approx(sigmas, abs=1e-7)  # measured: 0


@pytest.mark.parametrize(("shift", "sigmas"), [(1.0, [1, 0.75, 0.5, 0.25, 0]), (3.0, [1, 0.9, 0.75, 0.5, 0])])
def test_without_dynamic_shifting_the_size_does_not_matter(shift, sigmas):
    schedule = Schedule(use_dynamic_shifting=False, shift=shift)
    assert schedule.sigmas(4, 64) == schedule.sigmas(4, 4096) == pytest.approx(sigmas, abs=1e-7)


def test_own_levels_are_shifted_like_the_even_ones():
    own = np.linspace(1.0, 0.25, 4)
    assert Schedule().sigmas(4, 256, list(own)) == Schedule().sigmas(4, 256)
    assert len(Schedule().sigmas(2, 256, [0.9, 0.1])) == 3


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
@pytest.mark.parametrize("tokens", [1, 64, 4096, 16384])
def test_levels_fall_from_noise_to_picture(steps, tokens):
    sigmas = Schedule().sigmas(steps, tokens)
    assert len(sigmas) == steps + 1 and sigmas[0] == 1 and sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [(4, 0.0, 0), (4, 0.01, 1), (4, 0.5, 2), (4, 0.99, 3), (20, 0.3, 6), (25, 0.4, 10), (1, 0.5, 1), (10, 0.3, 3)],
)
def test_image_strength_skips_its_share_but_at_least_one_step(steps, strength, first):
    assert image_strength_start(steps, strength) == first


@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [(4, 1.0, 0), (4, 0.5, 2), (28, 0.6, 11), (50, 0.56, 21), (25, 0.56, 10), (4, 0.01, 3), (10, 0.7, 3)],
)
def test_strength_starts_where_diffusers_starts(steps, strength, first):
    assert strength_start(steps, strength) == first


def schedule_of(tmp_path, **values):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(values))
    return read_schedule(tmp_path)


def test_a_schedule_is_read_from_its_file(oracle_model, tmp_path):
    assert read_schedule(oracle_model("dev") / "scheduler") == Schedule()
    assert not read_schedule(oracle_model("schnell") / "scheduler").use_dynamic_shifting
    assert schedule_of(tmp_path, shift=None, unknown="x") == Schedule()


@pytest.mark.parametrize(
    "values",
    [
        {"shift": "3"},
        {"shift": [3]},
        {"shift": float("nan")},
        {"shift": 10**400},
        {"use_dynamic_shifting": False, "shift": 0},
        {"use_dynamic_shifting": False, "shift": -1},
        {"max_shift": float("inf")},
        {"max_shift": -1e6},
        {"max_shift": 1e6},
        {"use_dynamic_shifting": "yes"},
        {"base_image_seq_len": 4096},
        {"use_karras_sigmas": True},
        {"invert_sigmas": True},
        {"shift_terminal": 0.1},
    ],
    ids=str,
)
def test_a_schedule_of_no_sense_is_refused_by_name(tmp_path, values):
    with pytest.raises(ModelError) as error:
        schedule_of(tmp_path, **values)
    assert f"`{[*values][-1]}`" in error.value.problem and error.value.hint
