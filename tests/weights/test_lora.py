"""LoRA beside a model: scales, quantized layers, refusals before weights are read, and how fast names are found."""

import json
import os
import time

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

import mflux  # noqa: F401
from mflux import Config, Flux1, UsageError
from mflux.models.lora import AdaptedLinear
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.weights.load import put, quantize_module
from mflux.weights.lora_files import LEAVES, attach, find_lora, locate, read_lora, spelled_modules

CONFIG = Config(num_inference_steps=2, height=48, width=64, max_sequence_length=16)
LAYERS = [f"transformer_blocks.{i}.attn.{name}" for i in (0, 1) for name in ("to_q", "to_out.0")]
WIDTH = 48  # of the random dev model


def write(path, layers=tuple(LAYERS), width=WIDTH, prefix="transformer.", seed=0, **more):
    random = np.random.default_rng(seed)
    tensors = {}
    for layer in layers:
        tensors[f"{prefix}{layer}.lora_A.weight"] = random.standard_normal((4, width), np.float32) / 4
        tensors[f"{prefix}{layer}.lora_B.weight"] = random.standard_normal((width, 4), np.float32) / 4
    save_file(tensors | more, path)
    return path


def draw(folder, *paths, scales=None, **options):
    flux = Flux1(str(folder), lora_paths=list(map(str, paths)), lora_scales=scales, **options)
    return np.array(flux.generate_image(seed=1, prompt="x", config=CONFIG).artifacts["latents"])


def test_scale_zero_is_the_plain_model_and_scales_add_up(oracle_model, tmp_path):
    dev, file = oracle_model("dev"), write(tmp_path / "a.safetensors")
    plain = draw(dev)
    assert np.array_equal(draw(dev, file, scales=[0.0]), plain)
    assert np.abs(draw(dev, file) - plain).max() > 1e-2
    assert np.abs(draw(dev, file, file, scales=[0.3, 0.7]) - draw(dev, file)).max() < 1e-5
    assert np.abs(draw(dev, file, file, scales=[1.0, -1.0]) - plain).max() < 1e-5


def test_missing_scales_are_one_and_the_metadata_tells_them(oracle_model, tmp_path):
    file = write(tmp_path / "a.safetensors")
    flux = Flux1(str(oracle_model("dev")), lora_paths=[str(file), str(file)], lora_scales=[0.5])
    image = flux.generate_image(seed=1, prompt="x", config=CONFIG)
    assert image.metadata["lora_scales"] == [0.5, 1.0] and image.metadata["lora_paths"] == [str(file)] * 2
    assert image.metadata["request"]["loras"] == [[str(file), 0.5], [str(file), 1.0]]


def test_quantized_layers_keep_their_weights_beside_the_adapter(tmp_path):
    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 64, "num_attention_heads": 2}
    network = FluxTransformer(TransformerConfig(**sizes, joint_attention_dim=64, axes_dims_rope=(16, 24, 24)))
    packed = quantize_module(network.transformer_blocks[0].attn.to_q, 8)
    put(network, "transformer_blocks.0.attn.to_q", packed)
    file = read_lora(write(tmp_path / "a.safetensors", LAYERS[:1], width=128), 1.0, {"transformer": network})
    attach([file], {"transformer": network})
    layer = network.transformer_blocks[0].attn.to_q
    x = mx.random.normal((1, 20, 128), key=mx.random.key(0))
    assert isinstance(layer, AdaptedLinear) and layer.base is packed
    assert float(mx.abs(layer(x) - (x @ layer.weight().T + packed.bias)).max()) < 1e-4


@pytest.mark.parametrize(
    ("scales", "message"),
    [([1.0, 2.0], "2 scales for 1 LoRAs"), ([float("nan")], "nan is not a number"), (["x"], "'x' is not a number")],
)
def test_scales_that_cannot_be_meant_are_refused(oracle_model, tmp_path, scales, message):
    with pytest.raises(UsageError, match=message):
        Flux1(str(oracle_model("dev")), lora_paths=[str(write(tmp_path / "a.safetensors"))], lora_scales=scales)


def test_a_lora_that_does_not_fit_is_refused_before_weights_are_read(oracle_model, tmp_path):
    flux = Flux1(str(oracle_model("dev")), lora_paths=[str(write(tmp_path / "a.safetensors", width=WIDTH + 1))])
    with pytest.raises(UsageError, match="does not fit"):
        flux.plan(1, "x", CONFIG)
    assert not flux.parts._networks


def test_the_same_layer_under_two_names_is_refused(oracle_model, tmp_path):
    random = np.random.default_rng(0)
    twice = {
        f"{LAYERS[0]}.lora_A.weight": random.standard_normal((4, WIDTH), np.float32),
        f"{LAYERS[0]}.lora_B.weight": random.standard_normal((WIDTH, 4), np.float32),
    }
    file = write(tmp_path / "a.safetensors", **twice)
    with pytest.raises(UsageError, match="there twice"):
        Flux1(str(oracle_model("dev")), lora_paths=[str(file)]).plan(1, "x", CONFIG)


def test_a_name_is_found_in_the_library_and_a_pickle_is_never_opened(monkeypatch, tmp_path):
    (tmp_path / "styles").mkdir()
    write(tmp_path / "styles" / "ink.safetensors")
    (tmp_path / "evil.pt").write_bytes(b"\x80\x04")
    monkeypatch.setenv("LORA_LIBRARY_PATH", f"/nowhere{os.pathsep}{tmp_path}")
    assert find_lora("ink") == tmp_path / "styles" / "ink.safetensors"
    with pytest.raises(UsageError, match="no safetensors file"):
        find_lora(str(tmp_path / "evil.pt"))
    with pytest.raises(UsageError, match="there is no LoRA `oil`"):
        find_lora("oil")


def test_a_peft_folder_is_read_with_its_settings(oracle_model, tmp_path):
    dev, whole = oracle_model("dev"), write(tmp_path / "a.safetensors")
    (tmp_path / "peft").mkdir()
    write(tmp_path / "peft" / "adapter_model.safetensors", prefix="base_model.model.")
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 2}))
    assert np.abs(draw(dev, tmp_path / "peft") - draw(dev, whole, scales=[0.5])).max() < 1e-5


def test_a_thousand_tensors_are_mapped_in_a_tenth_of_a_second():
    """Full depth, width 2: what is measured is the look-up of names, not the reading of numbers."""
    network = FluxTransformer(TransformerConfig(attention_head_dim=2, num_attention_heads=1, axes_dims_rope=(2, 0, 0)))
    names = [f"lora_unet_single_blocks_{i % 38}_linear{1 + i % 2}" for i in range(1000)]
    spelled = {"transformer": spelled_modules("transformer", network)}
    started = time.process_time()
    assert all(locate(name, spelled) for name in names)
    assert time.process_time() - started <= 0.1 and ".alpha" in LEAVES
