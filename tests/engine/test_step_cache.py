"""Step caches: when are blocks left out, and is what they would have added guessed rightly?  Properties S1 to S9 of
methods.md, section 11."""

import mlx.core as mx
import numpy as np
import pytest

from mflux import Config
from mflux.engine import step_cache
from mflux.engine.request import StepCacheChoice
from mflux.engine.step_cache import POLYNOMIALS, FirstBlockCache, TaylorSeer, TeaCache, horner, make_step_cache
from mflux.errors import UsageError
from mflux.models.transformer import BlockPass

STEPS = 12
PROMPT = "a red circle"


def drawn(flux, choice, seed=3, steps=STEPS, **rest):
    config = Config(num_inference_steps=steps, height=64, width=64, step_cache=choice, **rest)
    negative = "blue" if rest.get("true_cfg") else None
    return flux.generate_image(seed, PROMPT, config, negative_prompt=negative)


def latents(picture):
    return np.array(picture.artifacts["latents"])


def stack(image, first, rest, modulated=None):
    """Blocks that are plain functions of an image (B, S, D)."""
    return BlockPass(
        image,
        modulated=lambda: image if modulated is None else modulated,
        first=lambda: (first(image), image),
        rest=lambda image, text: rest(image),
    )


def run(cache, passes):
    """What a cache answers to one pass after another, and which of them ran in full."""
    answers, full = [], []
    for step, blocks in enumerate(passes):
        before = cache.computed
        answers.append(cache(blocks, step, last=step == len(passes) - 1))
        full.append(cache.computed > before)
    return answers, full


@pytest.mark.parametrize("choice", ["fb:0", "tea:0", "taylor:1"])
def test_a_cache_that_is_off_changes_nothing(random_flux, choice):
    """S1."""
    flux = random_flux("dev")
    assert np.array_equal(latents(drawn(flux, choice)), latents(drawn(flux, None)))


@pytest.mark.parametrize("cache", [FirstBlockCache(0.5), TeaCache(1.0, POLYNOMIALS["base"])])
def test_blocks_that_always_add_the_same_are_left_out_without_a_trace(cache):
    """S2."""
    key = mx.random.key(0)
    images = [mx.random.normal((2, 4, 8), key=each) * 0.01 + step for step, each in enumerate(mx.random.split(key, 8))]
    added, later = mx.random.normal((2, 4, 8), key=key), mx.full((2, 4, 8), 3.0)
    passes = [stack(image, lambda x: x + added, lambda x: x + later, mx.ones_like(image)) for image in images]
    answers, full = run(cache, passes)
    assert sum(full) < len(full), "something was left out"
    for answer, image in zip(answers, images, strict=True):
        assert np.allclose(answer, image + added + later, atol=1e-5)


@pytest.mark.parametrize("threshold", [0.25, 0.4, 0.8])
def test_teacache_runs_what_its_rule_says(random_flux, monkeypatch, threshold):
    """S3, S4: the rule once more, on the distances of a run that leaves nothing out."""
    flux, seen = random_flux("dev"), []
    measure = step_cache.distance
    monkeypatch.setattr(step_cache, "distance", lambda new, old: seen.append(measure(new, old)) or seen[-1])
    picture = drawn(flux, f"tea:{threshold}")
    total, full = 0.0, 1
    for change in seen:
        total += max(0.0, np.polyval(POLYNOMIALS["base"], change))
        if total >= threshold:
            total, full = 0.0, full + 1
    assert picture.artifacts["full_steps"] == [full + 1], "and the last one"


def test_the_first_block_decides_by_its_change_since_the_last_full_step(random_flux, monkeypatch):
    """S3."""
    flux, seen = random_flux("dev"), []
    measure = step_cache.distance
    monkeypatch.setattr(step_cache, "distance", lambda new, old: seen.append(measure(new, old)) or seen[-1])
    threshold = float(np.median(_changes(flux, seen)))
    seen.clear()
    picture = drawn(flux, f"fb:{threshold}")
    expected = 2 + sum(change >= threshold for change in seen)  # the first and the last
    assert picture.artifacts["full_steps"] == [expected] and 2 < expected < STEPS


def _changes(flux, seen):
    drawn(flux, "fb:0.000001")
    return list(seen)


@pytest.mark.parametrize("choice", ["tea:1", "fb:0.5", "taylor:10"])
def test_the_first_and_the_last_step_always_run(choice):
    """S4."""
    image = mx.ones((1, 4, 8))
    cache = make_step_cache(StepCacheChoice.read(choice), "base")
    _, full = run(cache, [stack(image, lambda x: x + 1, lambda x: x + 1)] * 9)
    assert full[0] and full[-1] and not all(full)


def test_below_the_polynomial_s_minimum_nothing_is_left_out(random_flux):
    """S5."""
    assert drawn(random_flux("dev"), "tea:0.179").artifacts["full_steps"] == [STEPS]


@pytest.mark.parametrize("choice", ["fb:0.3", "tea:0.5", "taylor:4:2"])
def test_nothing_is_remembered_from_one_picture_to_the_next(random_flux, choice):
    """S6."""
    flux = random_flux("dev")
    first, _, again = (drawn(flux, choice, seed) for seed in (3, 4, 3))
    assert np.array_equal(latents(first), latents(again))


def features(degree):
    key = mx.random.split(mx.random.key(1), degree + 1)
    parts = [mx.random.normal((1, 4, 8), key=each) for each in key]
    return lambda step: sum(part * step**power for power, part in enumerate(parts)), parts


@pytest.mark.parametrize(
    ("degree", "order", "form"),
    [(1, 1, "taylor"), (1, 2, "taylor"), (1, 1, "newton"), (2, 2, "newton"), (3, 3, "newton")],
)
def test_features_of_low_degree_are_extrapolated_exactly(degree, order, form):
    """S7."""
    wanted, _ = features(degree)
    cache = TaylorSeer(4, order, form)
    passes = [stack(mx.zeros((1, 4, 8)), lambda x: x, lambda x, step=step: wanted(step)) for step in range(16)]
    answers, full = run(cache, passes)
    settled = range(7, 16)  # orders above 1 need that many full steps
    for step in settled:
        assert np.allclose(answers[step], wanted(step), rtol=1e-3, atol=1e-3), step
    assert full[3:11] == [False, False, False, True, False, False, False, True]


def test_the_published_form_is_off_by_half_the_interval_times_the_second_derivative():
    """S7: at order 2 the first difference lags behind the derivative by interval / 2 steps."""
    wanted, (_, _, bend) = features(2)
    interval, ahead = 4, 2
    cache = TaylorSeer(interval, 2, "taylor")
    passes = [stack(mx.zeros((1, 4, 8)), lambda x: x, lambda x, step=step: wanted(step)) for step in range(24)]
    answers, full = run(cache, passes)
    latest = max(step for step in range(20) if full[step])
    error = wanted(latest + ahead) - answers[latest + ahead]
    assert np.allclose(error, ahead * interval / 2 * 2 * bend, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", ["fb", "tea"])
def test_a_higher_threshold_runs_no_more_and_a_low_one_draws_nearly_the_same(random_flux, kind):
    """S8."""
    flux, whole = random_flux("dev"), latents(drawn(random_flux("dev"), None))
    thresholds = [0.0001, 0.05, 0.2, 0.4, 0.5]
    pictures = [drawn(flux, f"{kind}:{threshold}") for threshold in thresholds]
    counts = [picture.artifacts["full_steps"][0] for picture in pictures]
    errors = [float(np.abs(latents(picture) - whole).mean()) for picture in pictures]
    assert counts == sorted(counts, reverse=True) and counts[0] == STEPS
    assert errors[0] == 0 and errors[-1] == max(errors)


def test_the_polynomial_is_evaluated_as_written():
    """S9."""
    for polynomial in POLYNOMIALS.values():
        for x in (0.0, 0.05, 0.2):
            assert horner(polynomial, x) == pytest.approx(float(np.polyval(polynomial, x)), rel=1e-12)
    assert horner(POLYNOMIALS["base"], 0.0) == pytest.approx(0.2642, abs=1e-4)
    assert horner(POLYNOMIALS["base"], 0.05) == pytest.approx(0.1805, abs=1e-4)


def test_each_branch_of_true_cfg_has_its_own_cache(random_flux):
    assert len(drawn(random_flux("dev"), "fb:0.3", true_cfg=2.0).artifacts["full_steps"]) == 2


def test_the_picture_that_changes_most_decides_for_a_batch():
    still, moving = mx.ones((1, 4, 8)), mx.full((1, 4, 8), 2.0)
    assert step_cache.distance(mx.concatenate([still, moving]), mx.ones((2, 4, 8))) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "choice", ["", "fb", "fb:x", "fb:0.6", "tea:-1", "taylor:2.5", "taylor:5:4", "taylor:5:1:x", "lru:3"]
)
def test_a_wrong_choice_is_refused(choice):
    with pytest.raises(UsageError) as caught:
        Config(step_cache=choice)
    assert caught.value.field == "step_cache"
