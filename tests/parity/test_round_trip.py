"""What we save is what diffusers loads.  Needs the `parity` extra; skipped without it."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mflux.models.transformer import rope_table
from mflux.weights.load import load_network
from mflux.weights.resolve import resolve
from mflux.weights.save import Saving, save_model

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    return {
        "hidden_states": random.standard_normal((1, 16, 64), np.float32),
        "encoder_hidden_states": random.standard_normal((1, 8, 128), np.float32),
        "pooled_projections": random.standard_normal((1, 128), np.float32),
        "timestep": np.float32([0.7]),
        "guidance": np.float32([3.5]),
        "txt_ids": np.zeros((8, 3), np.float32),
        "img_ids": np.stack([np.zeros(16), np.repeat(np.arange(4), 4), np.tile(np.arange(4), 4)], 1).astype(np.float32),
    }


def test_a_saved_transformer_gives_the_same_velocity_in_diffusers(tmp_path, inputs):
    folder = save_model(Saving(resolve("tiny"), tmp_path / "model", "diffusers"))
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    with torch.no_grad():
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        wanted = theirs(**tensors, return_dict=False)[0].numpy()
    ours = load_network("transformer", folder / "transformer", mx.float32)
    arrays = {name: mx.array(value) for name, value in inputs.items()}
    table = ours.modulate(arrays["timestep"], arrays["guidance"], arrays["pooled_projections"])
    rope = rope_table(np.concatenate([inputs["txt_ids"], inputs["img_ids"]]), ours.config.axes_dims_rope)
    velocity = ours(arrays["hidden_states"], arrays["encoder_hidden_states"], table, rope)
    assert np.abs(np.array(velocity) - wanted).max() < 1e-4


def test_the_whole_folder_opens_as_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr("mflux.weights.save.SHARD_BYTES", 1 << 20)
    folder = save_model(Saving(resolve("tiny"), tmp_path / "model", "diffusers"))
    index = json.loads((folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    pipeline = diffusers.FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a large red circle", height=128, width=128, num_inference_steps=2, max_sequence_length=32).images[
        0
    ]
    assert image.size == (128, 128) and np.asarray(image).std() > 5
