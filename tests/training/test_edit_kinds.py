"""Training an edit sees what drawing it sees: InFluxEdit's two ways with a Fill network, and Kontext's tokens."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux.conditions import Fill, Kontext
from mflux.engine.request import Config
from mflux.training import checkpoint as checkpoints
from mflux.training.loss import sample_losses

KINDS = {"kontext": "kontext", "fill_edit": "fill", "fill_spatial": "fill"}
DRAWN = {
    "kontext": lambda picture: Kontext([picture], fit="stretch"),
    "fill_edit": lambda picture: Fill(picture, edit_mode="channels"),
    "fill_spatial": lambda picture: Fill(picture, edit_mode="spatial"),
}
X_EMBEDDER = {"lora_layers__outside_blocks": {"layer_types": ["x_embedder"], "lora_rank": 2}}


@pytest.fixture
def editor(trainer, oracle_model, tmp_path):
    """A run of two pairs of the kind."""
    random = np.random.default_rng(1)
    for name in ("in-a", "in-b", "a", "b"):
        Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.uint8(np.arange(64) >= 48)[None].repeat(64, 0) * 255).save(tmp_path / "mask.png")

    def make(kind, **settings):
        model = KINDS[kind]
        pairs = [
            {"image": f"{name}.png", "input_image": f"in-{name}.png", "prompt": f"make it {name}", "mask": "mask.png"}
            for name in "ab"
        ]
        return trainer(model, kind=kind, model=str(oracle_model(model)), examples__images=pairs, **settings)

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_arrays_of_training_are_those_of_drawing(editor, tmp_path, kind):
    run = editor(kind)
    example = run.subjects[0]
    picture = np.asarray(Image.open(tmp_path / f"in-{example.source.image.name}"))
    config = Config(num_inference_steps=1, height=64, width=64)
    plan = run.flux.plan(1, example.source.prompt, config, conditions=[DRAWN[kind](picture)])
    drawn = run.flux._prepare(plan)[1][0].inputs
    assert plan.tokens == example.x0.shape[1]
    if kind == "kontext":
        (tokens, ids), (own, own_ids) = *drawn.tokens, *example.inputs.tokens
        assert mx.array_equal(tokens, own) and np.array_equal(ids, own_ids) and set(ids[:, 0]) == {1}
    else:
        assert mx.array_equal(drawn.channels, example.inputs.channels)


def test_the_mask_of_an_edit_is_all_ones(editor):
    masks = editor("fill_edit").subjects[0].inputs.channels[..., 64:]
    assert masks.min().item() == masks.max().item() == 1, "X10: 0 here was InFluxEdit's bug"
    beside = editor("fill_spatial").subjects[0].inputs.channels[..., 64:].reshape(4, 8, 256)
    assert beside[:, :4].max().item() == 0 and beside[:, 4:].min().item() == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("asked", [False, True])
def test_an_update_changes_what_was_asked_for_and_nothing_else(editor, kind, asked):
    run = editor(kind, **(X_EMBEDDER if asked else {}))
    base = run.layers["x_embedder"].base if asked else run.transformer.x_embedder
    kept, before = mx.array(base.weight), dict(run.factors)
    list(itertools.islice(run.run(), 2))
    assert not [name for name, value in before.items() if mx.array_equal(value, run.factors[name])]
    assert any(name.startswith("x_embedder.") for name in before) == asked
    assert mx.array_equal(base.weight, kept), "the layer itself stays; its adapter learns"


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_drawn_tokens_have_a_loss(editor, kind):
    run = editor(kind)
    slot = next(iter(run.slots(0)))
    network = run.network(slot.example)
    loss, velocity = sample_losses(network, slot.branch, slot.example.x0, slot.noise, slot.sigma)
    assert velocity.shape == slot.example.x0.shape
    wanted = mx.square(velocity - (slot.noise - slot.example.x0)).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize(("region", "columns"), [("right", slice(4, 8)), ("mask", slice(7, 8))])
def test_a_region_of_the_picture_can_be_all_that_counts(editor, region, columns):
    run = editor("fill_spatial", training_loop__loss={"region": region})
    slot = next(iter(run.slots(0)))
    parts = (slot.branch, slot.example.x0, slot.noise, slot.sigma)
    loss, velocity = sample_losses(run.network(slot.example), *parts, slot.example.region)
    error = mx.square(velocity - (slot.noise - slot.example.x0)).reshape(4, 8, 64)
    assert loss.item() == pytest.approx(error[:, columns].mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_s_run_goes_on_to_the_same_bits(editor, tmp_path, kind):
    whole = editor(kind)
    list(whole.run())
    first = editor(kind)
    list(itertools.islice(first.run(), 1))
    path = first.save(tmp_path / kind)
    second = editor(kind)
    second.restore(checkpoints.read(path))
    list(second.run())
    assert all(mx.array_equal(value, second.factors[name]) for name, value in whole.factors.items())
