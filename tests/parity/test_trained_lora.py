"""What we train is what diffusers loads.  Needs the `parity` extra; skipped without it."""

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from mflux.engine.network import Branch, Network
from mflux.engine.slots import Inputs
from mflux.models.lora import input_width
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.training.adapters import attach, factors_of
from mflux.training.export import in_layout
from mflux.training.loss import put_factors
from mflux.training.spec import FAMILIES, Target
from mflux.weights.load import load_network
from mflux.weights.lora_files import output_width

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
pytest.importorskip("peft", reason="the parity extra is not installed")


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_trained_lora_gives_the_same_velocity_in_diffusers(oracle_model, tmp_path, kind):
    folder = oracle_model("dev") / "transformer"
    ours = load_network("transformer", folder)
    targets = [
        Target(f"{family}.0.{name}", 4, 0.5, kind) for family, known in FAMILIES.items() for name in known.values()
    ]
    layers = attach(ours, targets, 0)
    random = np.random.default_rng(0)
    factors = {
        name: value + mx.array(random.standard_normal(value.shape, np.float32)) * 0.1
        for name, value in factors_of(layers).items()
    }
    put_factors(layers, factors)
    tensors = in_layout("diffusers", factors, {target.path: target.scale for target in targets}, {})
    save_file({name: np.array(value) for name, value in tensors.items()}, tmp_path / "adapter.safetensors")
    grid, text_tokens = 4, 8
    latents = random.standard_normal((1, grid**2, 64), np.float32)
    text = random.standard_normal((1, text_tokens, ours.config.joint_attention_dim), np.float32)
    pooled = random.standard_normal((1, ours.config.pooled_projection_dim), np.float32)
    network = Network(ours, 16 * grid, 16 * grid, Inputs())
    own = network.velocity(Branch(mx.array(text), mx.array(pooled), 3.5), mx.array(latents), mx.array([0.7]))

    theirs = diffusers.FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline = diffusers.FluxPipeline(None, None, None, None, None, None, theirs)
    pipeline.load_lora_weights(str(tmp_path), weight_name="adapter.safetensors")
    rows = np.stack([np.zeros(grid**2), np.repeat(np.arange(grid), grid), np.tile(np.arange(grid), grid)], axis=1)
    with torch.no_grad():
        wanted = theirs(
            hidden_states=torch.from_numpy(latents),
            encoder_hidden_states=torch.from_numpy(text),
            pooled_projections=torch.from_numpy(pooled),
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([3.5]),
            txt_ids=torch.zeros((text_tokens, 3)),
            img_ids=torch.from_numpy(rows.astype(np.float32)),
            return_dict=False,
        )[0].numpy()
    plain = load_network("transformer", folder)
    base = Network(plain, 16 * grid, 16 * grid, Inputs()).velocity(
        Branch(mx.array(text), mx.array(pooled), 3.5), mx.array(latents), mx.array([0.7])
    )
    assert np.abs(np.array(base) - wanted).max() > 1e-2, "the adapter does something"
    assert np.abs(np.array(own) - wanted).max() < 1e-4


def test_in_kohya_s_layout_it_is_the_same_change_of_every_layer_for_diffusers(tmp_path):
    """At full width, which diffusers takes for granted there; the network's own weights are never made."""
    whole = FluxTransformer(TransformerConfig(num_layers=1, num_single_layers=1, guidance_embeds=True))
    modules, random = dict(whole.named_modules()), np.random.default_rng(0)
    paths = [f"{family}.0.{name}" for family, known in FAMILIES.items() for name in known.values()]
    heights = {path: output_width(modules[path]) for path in paths}
    factors = {}
    for path in paths:
        factors[f"{path}.lora_A"] = mx.array(random.standard_normal((2, input_width(modules[path])), np.float32))
        factors[f"{path}.lora_B"] = mx.array(random.standard_normal((heights[path], 2), np.float32))
    tensors = in_layout("kohya", factors, dict.fromkeys(paths, 0.5), heights)
    save_file({name: np.array(value) for name, value in tensors.items()}, tmp_path / "adapter.safetensors")
    read = diffusers.FluxPipeline.lora_state_dict(str(tmp_path), weight_name="adapter.safetensors")
    assert len(read) == 2 * len(paths)
    for path in paths:
        ours = 0.5 * np.array(factors[f"{path}.lora_B"][::61] @ factors[f"{path}.lora_A"])
        a, b = (read[f"transformer.{path}.lora_{side}.weight"].numpy() for side in "AB")
        np.testing.assert_allclose(b[::61] @ a, ours, atol=1e-4)
