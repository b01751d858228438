"""Training an edit sees what drawing it sees: InFluxEdit's two ways with a Fill network, and Kontext's tokens."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mflux import Flux1
from mflux.conditions import Fill, Kontext
from mflux.engine.request import Config
from mflux.training import checkpoint as checkpoints
from mflux.training.config import read_spec
from mflux.training.dataset import find_sources
from mflux.training.loss import sample_losses
from mflux.training.trainer import Trainer

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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fill_edit", "fill_spatial"])
def test_one_pair_can_be_learnt_by_heart(tmp_path, kind):
    """X6: the loss at fixed noise falls below a tenth."""
    random = np.random.default_rng(0)
    for name in ("before", "after"):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)).save(tmp_path / f"{name}.png")
    pair = {"image": "after.png", "input_image": "before.png", "prompt": "make it other"}
    layers = {"lora_rank": 32, "layer_types": ["attn.to_q", "attn.to_k", "attn.to_v"]}
    joint = layers | {"block_range": {"start": 0, "end": 3}}
    joint["layer_types"] = [*layers["layer_types"], "attn.to_out", "ff.linear1", "ff.linear2"]
    single = layers | {"block_range": {"start": 0, "end": 6}}
    single["layer_types"] = [*layers["layer_types"], "proj_mlp", "proj_out"]
    outside = {"layer_types": ["x_embedder", "proj_out"], "lora_rank": 32}
    config = {
        "model": "tiny/fill",
        "kind": kind,
        "seed": 1,
        "steps": 8,
        "guidance": 30,
        "width": 64,
        "height": 64,
        "training_loop": {
            "num_epochs": 300,
            "batch_size": 1,
            "gradient_checkpointing": False,
            "timestep": {"mode": "uniform", "low": 0.3},
        },
        "optimizer": {"name": "AdamW", "learning_rate": 0.002},
        "save": {"output_path": "run", "checkpoint_frequency": 1000},
        "instrumentation": {"validation": {"path": ".", "images": [pair], "sigmas": [0.4, 0.6, 0.8]}},
        "lora_layers": {
            "transformer_blocks": joint,
            "single_transformer_blocks": single,
            "outside_blocks": outside,
        },
        "examples": {"path": ".", "images": [pair]},
    }
    spec = read_spec(config, "train.json", tmp_path)
    run = Trainer(spec, config, Flux1("tiny/fill"), *find_sources(spec, tmp_path, "train.json"))
    before = run.validate()
    list(run.run())
    after = run.validate()
    assert after < 0.1 * before, (before, after)
