"""The loop knows numbers, not FLUX: closed-form velocities show what it does."""

import mlx.core as mx
import pytest

import mflux  # noqa: F401
from mflux.engine.denoise import integrate

EVEN = [1.0, 0.75, 0.5, 0.25, 0.0]


def last(steps):
    *_, step = steps
    return step.latents


def test_a_constant_velocity_is_integrated_exactly_there_and_back():
    x = mx.random.normal((2, 3, 4), key=mx.random.key(0))
    velocity = lambda latents, at: mx.full(latents.shape, 2.0)  # noqa: E731
    there = last(integrate(velocity, x, EVEN))
    assert mx.allclose(there, x - 2, atol=1e-6)
    assert mx.allclose(last(integrate(velocity, there, EVEN[::-1])), x, atol=1e-6)


def test_the_error_of_a_known_curve_halves_when_the_steps_double():
    def error(steps):
        sigmas = [1 - i / steps for i in range(steps + 1)]
        return abs(float(last(integrate(lambda x, at: x, mx.ones((1, 1, 1)), sigmas))[0, 0, 0]) - 2.718281828**-1)

    assert error(64) / error(128) == pytest.approx(2, rel=0.05)


def test_the_network_is_called_once_a_step_from_the_first_on():
    calls = []
    velocity = lambda latents, at: calls.append((at.index, at.sigma, at.sigma_next)) or latents  # noqa: E731
    steps = list(integrate(velocity, mx.ones((1, 1, 1)), EVEN, first=2))
    assert calls == [(2, 0.5, 0.25), (3, 0.25, 0.0)]
    assert [step.at.sigma_next for step in steps] == [0.25, 0.0]


def test_after_step_sees_the_next_level_and_its_result_goes_on():
    seen = []

    def pin(latents, at):
        seen.append(at.sigma_next)
        return mx.zeros(latents.shape)

    assert not last(integrate(lambda x, at: x, mx.ones((1, 2, 1)), EVEN, after_step=[pin])).any()
    assert seen == EVEN[1:]


def test_the_caller_can_stop_after_any_step():
    calls = []
    steps = integrate(lambda x, at: calls.append(1) or x, mx.ones((1, 1, 1)), EVEN)
    next(steps)
    assert calls == [1]


def test_half_precision_velocities_do_not_round_the_latents():
    x = mx.full((1, 1, 1), 1.0009765)
    moved = last(integrate(lambda latents, at: mx.zeros(latents.shape, mx.bfloat16), x, EVEN))
    assert moved.dtype == mx.float32 and mx.array_equal(moved, x)
