"""RF-inversion: the way there and back, the controller, and what is kept.  R1..R13 of methods.md."""

import math
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Config, UsageError
from mflux.conditions import Concepts, FluxSpace, ImageToImage, Inpaint, RFInversion
from mflux.engine.denoise import At, integrate
from mflux.engine.slots import Run
from mflux.models.transformer import FluxTransformer

CONFIG = Config(num_inference_steps=4, max_sequence_length=16, height=48, width=64)
COARSE = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
PICTURE = np.asarray(Image.fromarray(COARSE).resize((64, 48), Image.Resampling.BICUBIC))


@pytest.fixture
def flux(random_flux):
    return random_flux("dev")


def draw(flux, *conditions, prompt="a fox", config=CONFIG, **rest):
    return flux.generate_image(seed=3, prompt=prompt, config=config, conditions=conditions, **rest)


def latents(image):
    return np.array(image.artifacts["latents"])


def normal(*shape, key=0):
    return mx.random.normal(shape, key=mx.random.key(key))


@dataclass
class Toy:
    """A velocity in closed form, in place of a network, and the plan around it."""

    of: object
    sigmas: tuple[float, ...]
    first: int = 0
    guidance: float | None = None

    def velocity(self, branch, latents, sigma):
        return self.of(latents, sigma)

    def run(self, noise):
        return Run(self, noise, (), None, None, (3,), lambda: self, lambda: noise)

    def inverted(self, condition, clean, noise):
        return list(replace(condition, cache=False).inverted(clean, None, self.run(noise)))

    def drawn(self, condition, clean, noise):
        """The picture that the controlled drawing ends in."""
        steer = condition.controller(clean, len(self.sigmas) - 1)
        after = condition.noise_after(self.run(noise)) if condition.sde else ()
        velocity = lambda x, at: steer(self.of(x, at.sigma), x, at)  # noqa: E731
        *_, last = integrate(velocity, noise, self.sigmas, self.first, after)
        return last.latents


def even(steps, shift=0.0):
    ratio, levels = math.exp(shift), [1 - i / steps for i in range(steps)]
    return (*(ratio / (ratio + 1 / level - 1) for level in levels), 0.0)


def gaussian(x, sigma):
    """Exact for pictures of N(10, 1)."""
    return (2 * sigma - 1) * (x - 10 * (1 - sigma)) / (sigma**2 + (1 - sigma) ** 2) - 10


def test_gamma_0_is_the_plain_euler_inversion_to_the_bit():  # R1
    clean, noise, toy = normal(1, 5, 4), normal(1, 5, 4, key=1), Toy(gaussian, even(6))
    *_, plain = integrate(lambda x, at: toy.velocity(None, x, at.sigma), clean, toy.sigmas[::-1])
    assert mx.array_equal(toy.inverted(RFInversion(PICTURE, gamma=0), clean, noise)[-1].latents, plain.latents)


def test_gamma_1_is_the_straight_line_to_the_noise():  # R2
    clean, noise, toy = normal(1, 5, 4), normal(1, 5, 4, key=1), Toy(gaussian, even(6))
    for step in toy.inverted(RFInversion(PICTURE, gamma=1), clean, noise):
        there = (1 - step.at.sigma_next) * clean + step.at.sigma_next * noise
        assert mx.abs(step.latents - there).max() < 1e-5


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"eta": 0.9, "eta_start": 9, "eta_stop": 12}])
def test_without_a_controller_it_is_the_plain_sampler_to_the_bit(settings):  # R3
    noise, toy = normal(1, 5, 4), Toy(gaussian, even(6))
    *_, plain = integrate(lambda x, at: gaussian(x, at.sigma), noise, toy.sigmas)
    assert mx.array_equal(toy.drawn(RFInversion(PICTURE, **settings), normal(1, 5, 4, key=1), noise), plain.latents)


@pytest.mark.parametrize("start", [5, 0])  # R4, R5
def test_eta_1_in_the_last_step_ends_in_the_picture(start):
    clean, noise, toy = normal(1, 5, 4), normal(1, 5, 4, key=1), Toy(gaussian, even(6))
    held = RFInversion(PICTURE, eta=1, eta_start=start, eta_stop=1.0)
    assert mx.abs(toy.drawn(held, clean, noise) - clean).max() < 1e-4


def test_a_constant_velocity_goes_there_and_back():  # R6
    clean, toy = normal(1, 5, 4), Toy(lambda x, sigma: mx.full(x.shape, 3.0), even(6))
    plain = RFInversion(PICTURE, gamma=0, eta=0)
    inverted = toy.inverted(plain, clean, normal(1, 5, 4, key=1))[-1].latents
    assert mx.abs(toy.drawn(plain, clean, inverted) - clean).max() < 1e-5


@pytest.mark.parametrize(
    ("shift", "errors"),
    [
        (0.0, {28: 0.070, 50: 0.040, 100: 0.0203, 200: 0.0102}),
        (1.15, {28: 0.0998, 50: 0.0575, 100: 0.0293, 200: 0.0148}),
    ],
)
def test_the_round_trip_s_error_halves_when_the_steps_double(shift, errors):  # R7
    clean, plain = 10 + normal(1, 100, 100), RFInversion(PICTURE, gamma=0, eta=0)
    for steps, error in errors.items():
        toy = Toy(gaussian, even(steps, shift))
        there = toy.inverted(plain, clean, mx.zeros_like(clean))[-1].latents
        assert float(mx.abs(toy.drawn(plain, clean, there) - clean).mean()) == pytest.approx(error, rel=0.1)


def test_more_eta_is_nearer_to_the_picture():  # R8
    clean, noise, toy = 10 + normal(1, 5, 4), normal(1, 5, 4, key=1), Toy(gaussian, even(12))
    away = [
        float(mx.abs(toy.drawn(RFInversion(PICTURE, eta=eta, eta_stop=1.0), clean, noise) - clean).mean())
        for eta in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert away == sorted(away, reverse=True) and away[0] > 10 * away[-1]


def test_the_controller_s_schedules():  # R9
    def etas(**settings):
        return [RFInversion(PICTURE, eta=0.8, **settings).eta_at(index, 8) for index in range(8)]

    assert etas(eta_stop=3) == [0.8] * 3 + [0] * 5
    assert etas(eta_stop=1.0, eta_schedule="decay", eta_power=0) == [0.8] * 8
    assert etas(eta_stop=1.0, eta_schedule="decay")[4] == pytest.approx(0.4)
    assert etas(eta_start=2, eta_stop=5, eta_schedule="rise")[2:5] == pytest.approx([0, 0.4, 0.8])
    assert etas(eta_start=2, eta_stop=5, eta_schedule="fall")[2:5] == pytest.approx([0.8, 0.4, 0])
    for schedule in ("rise", "fall"):
        assert etas(eta_start=2, eta_stop=3, eta_schedule=schedule) == [0, 0, 0.8, 0, 0, 0, 0, 0]
    assert sum(eta > 0 for eta in etas()) == 2  # 6 of 28 steps, rounded up


@pytest.mark.parametrize(("start", "calls"), [(0, 8), (1, 6), (3, 2)])  # R10
def test_both_ways_leave_out_the_noisiest_steps_and_progress_counts_both(flux, monkeypatch, start, calls):
    passes, seen, whole = [], [], FluxTransformer.__call__
    monkeypatch.setattr(FluxTransformer, "__call__", lambda *a: passes.append(1) or whole(*a))
    draw(flux, RFInversion(PICTURE, start=start), on_step=lambda p: seen.append((p.done, p.total)))
    assert len(passes) == calls
    assert seen == [(done, calls) for done in range(1, calls + 1)]


def test_a_kept_inversion_serves_another_prompt_to_the_bit(flux, monkeypatch, tmp_path):  # R11
    fresh = draw(flux, RFInversion(PICTURE, cache=False), prompt="a star")
    draw(flux, RFInversion(PICTURE))
    (kept,) = (tmp_path / "cache" / "inversions").iterdir()
    passes, whole = [], FluxTransformer.__call__
    monkeypatch.setattr(FluxTransformer, "__call__", lambda *a: passes.append(1) or whole(*a))
    assert np.array_equal(latents(draw(flux, RFInversion(PICTURE), prompt="a star")), latents(fresh))
    assert len(passes) == 5  # one to know it by, four to draw
    draw(flux, RFInversion(PICTURE, gamma=0.4))
    assert len(list(kept.parent.iterdir())) == 2
    kept.write_bytes(b"torn")
    assert np.array_equal(latents(draw(flux, RFInversion(PICTURE), prompt="a star")), latents(fresh))


def test_with_fluxspace_without_strength_it_is_itself_to_the_bit(flux):  # R12
    alone, both = (draw(flux, RFInversion(PICTURE), *more) for more in ([], [FluxSpace("red", lambda_fine=0, start=0)]))
    assert np.array_equal(latents(alone), latents(both))
    edited = draw(flux, RFInversion(PICTURE), FluxSpace("red", start=0), config=replace(CONFIG, true_cfg=2.0))
    assert np.abs(latents(edited) - latents(alone)).max() > 1e-3


def test_the_stochastic_form_with_eta_1_draws_no_noise_and_with_0_is_the_paper_s():  # R13
    clean, noise, toy = normal(1, 5, 4), normal(1, 5, 4, key=1), Toy(gaussian, even(6))
    held = RFInversion(PICTURE, eta=1, eta_stop=1.0)
    assert mx.array_equal(toy.drawn(replace(held, sde=True), clean, noise), toy.drawn(held, clean, noise))
    at = At(2, toy.sigmas[2], toy.sigmas[3])
    w = -gaussian(noise, at.sigma)
    drift = -RFInversion(PICTURE, eta=0, sde=True).controller(clean, 6)(-w, noise, at)
    assert mx.abs(drift - (2 * w - noise / (1 - at.sigma))).max() < 1e-4


def test_the_stochastic_form_s_noise_comes_from_seed_and_step():
    toy, stirred = Toy(gaussian, even(6)), RFInversion(PICTURE, eta=0, sde=True)
    run = replace(toy.run(None), seeds=(3, 9))
    both = stirred.noise_after(run)[0](mx.zeros((2, 5, 4)), At(2, 0.7, 0.6))
    alone = stirred.noise_after(replace(run, seeds=(9,)))[0](mx.zeros((1, 5, 4)), At(2, 0.7, 0.6))
    other = stirred.noise_after(run)[0](mx.zeros((2, 5, 4)), At(3, 0.7, 0.6))
    assert mx.array_equal(both[1:], alone) and mx.abs(both - other).max() > 0.01
    assert not stirred.noise_after(run)[0](mx.zeros((2, 5, 4)), At(5, 0.2, 0.0)).any()


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("turned", [False, True])
def test_inpainting_pins_the_unpainted_part_with_the_inverted_noise(flux, start, turned):
    """Between the steps it lies on the line from the picture to the noise that the picture inverts to."""
    mask = np.zeros((48, 64), np.uint8)
    mask[:, :16] = 255
    invert, paint = RFInversion(PICTURE, start=start, eta=0), Inpaint(PICTURE, mask)
    seen, pair = {}, [paint, invert] if turned else [invert, paint]
    draw(flux, *pair, on_step=lambda p: seen.update({p.done: (p.sigma, np.array(p.latents))}))
    calls = 4 - start
    level, begun = seen[calls]
    clean = seen[2 * calls][1]
    inverted = (begun - (1 - level) * clean) / level
    painted = np.arange(12) % 4 == 0
    for done in range(calls + 1, 2 * calls):
        sigma, drawn = seen[done]
        there = (1 - sigma) * clean + sigma * inverted
        assert np.abs(drawn - there)[:, ~painted].max() < 1e-4
        assert np.abs(drawn - there)[:, painted].max() > 0.01


@pytest.mark.parametrize(
    "other", [ImageToImage(PICTURE, 0.5), RFInversion(PICTURE), Concepts(["red", "star"], image=PICTURE)]
)
@pytest.mark.parametrize("turned", [False, True])
def test_it_does_not_go_with_another_start(flux, other, turned):
    pair = [other, RFInversion(PICTURE)] if turned else [RFInversion(PICTURE), other]
    with pytest.raises(UsageError, match="both make the first latents"):
        flux.plan(3, "x", CONFIG, conditions=pair)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": 1.1}, "1.1 is out of range"),
        ({"eta": -0.1}, "-0.1 is out of range"),
        ({"eta_stop": 0}, "steps 0 to below 0 are none"),
        ({"eta_schedule": "up"}, "'up' is unknown"),
        ({"eta_power": 11}, "11 is out of range"),
        ({"start": 4}, "4 is out of range"),
        ({"start": 0.5}, "0.5 is not a whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused(flux, settings, message):
    with pytest.raises(UsageError, match=message):
        flux.plan(3, "x", CONFIG, conditions=[RFInversion(PICTURE, **settings)])


@pytest.mark.parametrize("size", [(48, 48), (256, 64), (96, 64)])
def test_a_size_of_another_aspect_is_refused(flux, size):
    config = replace(CONFIG, height=size[0], width=size[1])
    with pytest.raises(UsageError, match=f"64 x 48 px would be stretched to {size[1]} x {size[0]} px") as error:
        flux.plan(3, "x", config, conditions=[RFInversion(PICTURE)])
    assert error.value.field == "image" and error.value.hint.startswith("give a `height` and `width`")


@pytest.mark.parametrize("size", [(48, 64), (96, 128), (192, 256), (32, 48)])  # the last: floored from 36 x 48
def test_a_size_of_its_aspect_is_not(flux, size):
    config = replace(CONFIG, height=size[0], width=size[1])
    assert flux.plan(3, "x", config, conditions=[RFInversion(PICTURE)]).height == size[0]
    odd = flux.plan(3, "x", Config(), conditions=[RFInversion(PICTURE[:30, :40])])
    assert (odd.height, odd.width) == (16, 32)
