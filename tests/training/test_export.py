"""The adapter that was trained is the adapter that draws, in every layout."""

import itertools

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mflux import Flux1
from mflux.models.lora import AdaptedLinear
from mflux.training.adapters import split

TYPES = ("lora", "dora", "lokr")
SINGLE, JOINT = "lora_layers__single_transformer_blocks", "lora_layers__transformer_blocks"


@pytest.fixture
def trained(trainer):
    """A run of two updates whose layers are fused elsewhere, with an alpha."""

    def make(kind="lora", **settings):
        layers = {"block_range": {"start": 0, "end": 1}, "lora_rank": 3, "alpha": 6, "type": kind}
        single = layers | {"layer_types": ["attn.to_q", "attn.to_v", "proj_mlp", "proj_out"]}
        joint = layers | {"layer_types": ["attn.add_k_proj", "attn.to_out", "ff.linear2", "norm1.linear"]}
        run = trainer(**{SINGLE: single, JOINT: joint, **settings})
        list(itertools.islice(run.run(), 2))
        return run

    return make


def save(run, path, layout="diffusers"):
    save_file({name: np.array(value) for name, value in run.exported()[layout].items()}, path)
    return path


def loaded(config, path):
    return Flux1(config["model"], lora_paths=[str(path)]).parts.get("transformer")


def velocity(run, transformer):
    """Of the first slot of an update."""
    slot, kept = next(iter(run.slots(0))), run.transformer
    run.transformer, run._networks = transformer, {}
    found = run.network(slot.example).velocity(slot.branch, slot.noise, slot.sigma)
    run.transformer, run._networks = kept, {}
    return np.array(found)


@pytest.mark.parametrize("kind", TYPES)
def test_the_file_draws_what_the_training_saw(trained, config, tmp_path, kind):
    run = trained(kind)
    own = velocity(run, run.transformer)
    transformer = loaded(config, save(run, tmp_path / "adapter.safetensors"))
    assert isinstance(transformer.single_transformer_blocks[0].proj_out, AdaptedLinear)
    np.testing.assert_allclose(velocity(run, transformer), own, atol=2e-6)  # measured: 2e-7


@pytest.mark.parametrize("kind", TYPES)
def test_before_the_first_update_every_type_is_the_base_to_the_bit(trainer, random_flux, kind):
    layers = {"block_range": {"start": 0, "end": 1}, "lora_rank": 2, "type": kind, "layer_types": ["attn.to_k"]}
    run = trainer(**{SINGLE: layers, JOINT: layers})
    own = velocity(run, run.transformer)
    run.close()
    assert np.array_equal(velocity(run, random_flux("dev").parts.get("transformer")), own)


@pytest.mark.parametrize("kind", TYPES)
def test_every_factor_of_every_type_learns(trained, kind):
    run = trained(kind)
    before = dict(run.factors)
    list(run.run())
    assert not [name for name, value in before.items() if mx.array_equal(value, run.factors[name])]


@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_layers_that_others_fuse_keep_their_change(trained, config, tmp_path, layout):
    run = trained(save__export=[layout])
    tensors = run.exported()[layout]
    fused = {"kohya": "lora_unet_single_blocks_0_linear1", "comfyui": "diffusion_model.single_blocks.0.linear1"}
    rank = {name: value.shape[0] for name, value in tensors.items() if value.ndim == 2}
    assert rank[f"{fused[layout]}.{'lora_down' if layout == 'kohya' else 'lora_A'}.weight"] == 9, "q, v and mlp"
    assert {name for name in tensors if name.endswith(".alpha")}, "both readers want one"
    transformer = loaded(config, save(run, tmp_path / "adapter.safetensors", layout))
    np.testing.assert_allclose(velocity(run, transformer), velocity(run, run.transformer), atol=2e-6)


def test_a_file_can_be_written_in_half_the_bytes(trained):
    run = trained(save__export_dtype="bfloat16", save__export=["diffusers", "kohya"])
    assert {value.dtype for tensors in run.exported().values() for value in tensors.values()} == {mx.bfloat16}


def test_sides_are_split_as_near_to_a_square_as_can_be():
    assert [split(side) for side in (1, 7, 48, 3072, 12288)] == [(1, 1), (1, 7), (6, 8), (48, 64), (96, 128)]
