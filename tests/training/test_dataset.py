"""An example is what its files and words say, encoded once and found again."""

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux.training.loss import sample_losses


def noise(path, height, width, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)


def test_pictures_keep_their_proportion_where_only_an_area_is_asked_for(trainer, tmp_path):
    noise(tmp_path / "a.png", 64, 256)
    noise(tmp_path / "b.png", 100, 100)
    run = trainer(width=None, height=None, resolution=[64, 96])
    sizes = {example.source.image.stem: example.source.size for example in run.subjects}
    assert sizes == {"a": (48, 192), "b": (96, 96), "c": (64, 48)}
    assert all(example.x0.shape[1] == example.plan.tokens for example in run.subjects)


def test_a_fast_batch_never_mixes_sizes(trainer, tmp_path):
    noise(tmp_path / "a.png", 64, 128)
    settings = {"width": None, "height": None, "resolution": 64, "training_loop__batch_size": 3}
    fast = trainer(training_loop__batching="fast", **settings)
    slots = list(fast.slots(0))
    assert len({slot.example.x0.shape for slot in slots}) == 2
    _, own = fast.gradients(slots)
    exact = trainer(training_loop__batching="exact", **settings)
    for name, value in exact.gradients(list(exact.slots(0)))[1].items():
        np.testing.assert_allclose(own[name], value, atol=1e-6)


def test_some_draws_see_the_mirrored_picture(trainer, tmp_path):
    run = trainer(examples__flip=True)
    seen = {(slot.example.source.image.stem, slot.example.source.mirrored) for n in range(6) for slot in run.slots(n)}
    assert {mirrored for _, mirrored in seen} == {True, False}
    example = next(each for each in run.subjects if each.source.image.stem == "a")
    Image.open(tmp_path / "a.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "a.png")
    turned = next(each for each in trainer().subjects if each.source.image.stem == "a")
    assert mx.array_equal(example.mirror.x0, turned.x0) and not mx.array_equal(example.x0, turned.x0)


def test_a_trigger_stands_before_captions_that_lack_it(trainer):
    images = [{"image": "a.png", "prompt": "a dog"}, {"image": "b.png", "prompt": "photo of sks dog"}]
    run = trainer(examples__images=images, examples__trigger="sks")
    assert [example.source.prompt for example in run.subjects] == ["sks a dog", "photo of sks dog"]


def test_what_was_encoded_is_read_again_to_the_bit(trainer, tmp_path):
    first = trainer()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert len(files) == 6, "three pictures, three prompts"
    second = trainer()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == files
    for one, other in zip(first.subjects, second.subjects, strict=True):
        assert mx.array_equal(one.x0, other.x0) and mx.array_equal(one.branch.text, other.branch.text)


def test_a_picture_that_changed_is_encoded_anew(trainer, tmp_path):
    before = trainer().subjects[0].x0
    noise(tmp_path / "a.png", 80, 64, seed=9)
    assert not mx.array_equal(trainer().subjects[0].x0, before)


def test_a_weight_multiplies_an_example_s_loss(trainer):
    images = [{"image": "a.png", "prompt": "x", "weight": 3}, {"image": "b.png", "prompt": "x"}]
    run = trainer(examples__images=images)
    slots = {slot.example.source.image.stem: slot for slot in run.slots(0)}
    assert (slots["a"].share, slots["b"].share) == (1.5, 0.5)
    loss = sum(
        slot.share
        * sample_losses(run.network(slot.example), slot.branch, slot.example.x0, slot.noise, slot.sigma)[0].item()
        for slot in slots.values()
    )
    assert run.gradients(list(slots.values()))[0].item() == pytest.approx(loss, rel=1e-5)
