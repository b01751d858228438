"""Noise levels have the density that they are said to have."""

import math
from statistics import NormalDist

import pytest

from mflux.engine.schedule import Schedule
from mflux.training.draws import shuffled
from mflux.training.levels import noise_level
from mflux.training.spec import Timestep

TOKENS = 1024
SHARES = [(index + 0.5) / 1000 for index in range(1000)]


def levels(**values):
    return [noise_level(Timestep(**values), Schedule(), 20, TOKENS, share) for share in SHARES]


def test_the_schedule_s_levels_are_those_of_a_drawn_picture():
    assert sorted(set(levels())) == sorted(Schedule().sigmas(20, TOKENS)[:-1])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_uniform_levels_can_be_shifted(shift):
    drawn = levels(mode="shift", value=shift)
    assert drawn[500] == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5), abs=2e-3)


def test_logit_normal_levels_have_normal_logits():
    logits = [math.log(level / (1 - level)) for level in levels(mode="logit_normal", mean=0.5, std=2)]
    for share, value in zip(SHARES[50:950], logits[50:950], strict=True):
        assert value == pytest.approx(NormalDist(0.5, 2).inv_cdf(share), abs=0.02)


def test_flux_shift_multiplies_the_odds_of_noise():
    plain, moved = levels(mode="logit_normal"), levels(mode="flux_shift")
    for one, other in list(zip(plain, moved, strict=True))[50:950]:
        assert other / (1 - other) == pytest.approx(Schedule().shift_of(TOKENS) * one / (1 - one), rel=0.02)


@pytest.mark.parametrize("mode", ["schedule", "uniform", "logit_normal", "shift", "flux_shift"])
def test_levels_stay_in_their_range(mode):
    drawn = levels(mode=mode, low=0.4, high=0.7)
    assert 0.4 <= min(drawn) < 0.5 and 0.6 < max(drawn) <= 0.7 + 1e-9


def test_a_shuffle_is_a_permutation_of_its_own():
    orders = [shuffled(9, 1, "shuffle", epoch) for epoch in range(4)]
    assert all(sorted(order) == list(range(9)) for order in orders) and orders[0] != orders[1]
    assert orders[0] == shuffled(9, 1, "shuffle", 0)
