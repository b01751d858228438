"""A run is a function of its config: cut, resumed, watched or checkpointed, it ends in the same bits."""

import itertools
import logging

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mflux import Config
from mflux.errors import MfluxError, UsageError
from mflux.models.lora import TrainedLinear
from mflux.training import checkpoint as checkpoints


def same(one, other):
    """Equal to the bit."""
    return one.keys() == other.keys() and all(bool(mx.array_equal(one[name], other[name])) for name in one)


def finished(trainer):
    losses = [update.loss for update in trainer.run()]
    return dict(trainer.factors), losses


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"training_loop__ema": {"decay": 0.5}, "examples__caption_dropout": 0.5, "examples__flip": True},
        {"training_loop__batch_size": 1, "training_loop__gradient_accumulation_steps": 2},
        {"optimizer__name": "Prodigy", "optimizer__learning_rate": 1.0},
        {"lora_layers__single_transformer_blocks__dropout": 0.5},
    ],
)
def test_a_run_that_was_cut_anywhere_ends_in_the_same_bits(trainer, tmp_path, extra):
    whole = trainer(**extra)
    factors, losses = finished(whole)
    average = whole.average
    assert len(losses) == 6 and all(map(np.isfinite, losses))
    for cut in (1, 2, 5):
        first = trainer(**extra)
        list(itertools.islice(first.run(), cut))
        path = first.save(tmp_path / f"cut-{cut}")
        second = trainer(**extra)
        second.restore(checkpoints.read(path))
        end, more = finished(second)
        assert same(end, factors) and more == losses[cut:]
        assert [each["loss"] for each in second.losses] == losses
        assert average is None or same(second.average, average)


def test_before_the_first_update_the_model_is_the_base(trainer, random_flux):
    config = Config(num_inference_steps=1, height=64, width=64)
    plain = random_flux("dev").generate_image(1, "x", config).artifacts["latents"]
    run = trainer()
    assert mx.array_equal(run.flux.generate_image(1, "x", config).artifacts["latents"], plain)
    finished(run)
    changed = run.flux.generate_image(1, "x", config).artifacts["latents"]
    assert not mx.array_equal(changed, plain)


def test_gradients_with_checkpointing_are_the_same_to_the_bit(trainer):
    layers = {"block_range": {"start": 0, "end": 1}, "lora_rank": 2}
    settings = {
        "lora_layers__transformer_blocks": layers
        | {"layer_types": ["norm1.linear", "attn.to_k", "ff_context.linear2"]},
        "lora_layers__single_transformer_blocks": layers | {"layer_types": ["norm.linear", "proj_mlp"]},
        "lora_layers__outside_blocks": {"layer_types": ["x_embedder", "proj_out"], "lora_rank": 2},
    }
    results = []
    for on in (True, False, 2):
        run = trainer(training_loop__gradient_checkpointing=on, **settings)
        list(itertools.islice(run.run(), 1))  # B is zero before it, and A's gradients with it
        results.append(run.gradients(list(run.slots(1))))
    (loss, gradients), *others = results
    assert all(loss.item() == other.item() and same(gradients, plain) for other, plain in others)
    assert all(mx.abs(each).max().item() > 0 for each in gradients.values())


def test_dropout_hides_inputs_from_the_adapter_alone_and_only_while_it_learns(trainer):
    names = ("transformer_blocks", "single_transformer_blocks")
    dropping = trainer(**{f"lora_layers__{name}__dropout": 0.5 for name in names})
    loss, gradients = dropping.gradients(list(dropping.slots(0)))
    once_more = dropping.gradients(list(dropping.slots(0)))[1]
    plain = trainer()
    plain_loss, whole = plain.gradients(list(plain.slots(0)))
    assert loss.item() == plain_loss.item(), "B is zero: the network's own path sees everything"
    assert same(gradients, once_more) and not same(gradients, whole)
    assert all(layer._key is None for layer in dropping.layers.values())


def test_dropout_keeps_the_mean_of_what_an_adapter_adds():
    layer = TrainedLinear(nn.Linear(8, 4), {"lora_A": mx.ones((2, 8)), "lora_B": mx.ones((4, 2))}, 1.0, dropout=0.25)
    x, added = mx.ones((4000, 8)), []
    for seed in (None, 1):
        layer.drop_by(None if seed is None else mx.random.key(seed))
        added.append(layer(x) - layer.base(x))
    assert np.ptp(np.array(added[0])) < 1e-4
    assert added[1].mean().item() == pytest.approx(added[0].mean().item(), rel=0.02)
    assert np.ptp(np.array(added[1])) > 1


def test_a_fast_batch_and_one_with_accumulation_give_the_gradients_of_single_passes(trainer):
    exact = trainer()
    _, gradients = exact.gradients(list(exact.slots(0)))
    for settings in ({"training_loop__batching": "fast"}, {"training_loop__batch_size": 1}):
        accumulation = 1 if "training_loop__batching" in settings else 2
        other = trainer(training_loop__gradient_accumulation_steps=accumulation, **settings)
        _, own = other.gradients(list(other.slots(0)))
        for name, value in gradients.items():
            np.testing.assert_allclose(own[name], value, atol=1e-6)


def test_only_the_asked_layers_learn(trainer):
    run = trainer()
    paths = {name.rpartition(".")[0] for name in run.factors}
    assert paths == {
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "single_transformer_blocks.0.attn.to_q",
    }
    before = mx.array(run.transformer.transformer_blocks[0].attn.to_q.weight)
    finished(run)
    assert mx.array_equal(run.transformer.transformer_blocks[0].attn.to_q.weight, before)


def test_the_loss_at_fixed_noise_falls(trainer):
    validation = {"images": [{"image": "a.png", "prompt": "thing a"}], "path": "."}
    instrumentation = {"validation": validation}
    run = trainer(training_loop__num_epochs=6, instrumentation=instrumentation)
    before = run.validate()
    assert before == run.validate(), "the metric has no chance in it"
    finished(run)
    assert run.validate() < before


def test_captions_stay_with_their_pictures(trainer):
    run = trainer()
    for step in range(run.total):
        for slot in run.slots(step):
            source = slot.example.source
            assert source.prompt == f"thing {source.image.stem}"
            state = run.flux.encode_prompt(source.prompt, None, slot.example.plan.text_tokens)[0]
            assert mx.array_equal(slot.branch.text, state)


def test_each_epoch_sees_every_example_once(trainer):
    run = trainer()
    for epoch in range(3):
        steps = range(epoch * run.per_epoch, (epoch + 1) * run.per_epoch)
        seen = [slot.example.source.image.stem for step in steps for slot in run.slots(step)]
        assert sorted(seen) == ["a", "b", "c"]


def test_the_class_counts_beside_the_subject(trainer):
    prior = {"images": [{"image": "c.png", "prompt": "a thing"}], "path": ".", "weight": 0.5}
    run = trainer(training_loop__prior=prior)
    slots = list(run.slots(0))
    assert [slot.example.source.prior for slot in slots] == [False, False, True, True]
    assert [slot.share for slot in slots] == [0.5, 0.5, 0.25, 0.25]


def test_losses_that_are_not_finite_stop_the_run_and_change_nothing(trainer):
    run = trainer()
    before = dict(run.factors)
    for example in run.subjects:
        example.x0[:] = mx.array(float("nan"))
    with pytest.raises(MfluxError, match="3 updates in a row"):
        finished(run)
    assert same(run.factors, before)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantize": 8}, "`quantize` was None"),
        ({"examples__resize": "stretch"}, "`dataset` was"),
        ({"lora_layers__single_transformer_blocks__lora_rank": 3}, "should be"),
        ({"optimizer__name": "Lion"}, "another optimizer"),
        ({"training_loop__num_epochs": 1}, "complete"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(trainer, tmp_path, settings, words):
    run = trainer()
    list(itertools.islice(run.run(), 2))
    saved = checkpoints.read(run.save(tmp_path / "out"))
    with pytest.raises(UsageError, match=words):
        trainer(**settings).restore(saved)


def test_other_data_can_be_allowed(trainer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mflux"), "propagate", True)  # commands turn it off
    run = trainer()
    list(itertools.islice(run.run(), 2))
    saved = checkpoints.read(run.save(tmp_path / "out"))
    other = trainer(examples__resize="stretch")
    other.restore(saved, allow_mismatch=True)
    assert other.step == 2 and "will not have the bits" in caplog.text


def test_checkpoints_that_nobody_wants_are_removed(trainer, tmp_path):
    run = trainer(save__keep_last=2)
    for _ in itertools.islice(run.run(), 3):
        run.save(tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out/_checkpoints").iterdir())
    assert kept == ["0000002_checkpoint.zip", "0000003_checkpoint.zip"]
