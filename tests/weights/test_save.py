"""Saved models: what is read back is what was saved, in both layouts; cut runs go on, damage is found."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mflux import Config, Flux1
from mflux.errors import MfluxError, ModelError, UsageError
from mflux.weights import save
from mflux.weights.catalog import BY_NAME
from mflux.weights.files import tensors_in
from mflux.weights.load import load_network
from mflux.weights.manifest import damage, read_manifest
from mflux.weights.resolve import NETWORKS, resolve
from mflux.weights.save import Saving, save_model

CONFIG = Config(num_inference_steps=2)
PROMPT = "a large red circle on the left, on a white background"


def drawn(model, bits=None, **rest):
    return Flux1(str(model), quantize=bits, **rest).generate_image(3, PROMPT, CONFIG)


def saved(target, model="tiny", **rest):
    return save_model(Saving(resolve(str(model)), target, **rest))


def same(one, other):
    return np.array_equal(one.artifacts["latents"], other.artifacts["latents"]) and np.array_equal(
        one.image, other.image
    )


@pytest.mark.parametrize("bits", [None, 3, 4, 5, 6, 8])
def test_what_was_quantized_before_saving_draws_what_is_quantized_at_run_time(tmp_path, bits):
    folder = saved(tmp_path / "model", bits=bits)
    assert same(drawn(folder), drawn("tiny", bits))
    assert read_manifest(folder)["quantize"] == bits


def test_the_diffusers_layout_draws_the_same(tmp_path):
    assert same(drawn(saved(tmp_path / "model", layout="diffusers")), drawn("tiny"))


def test_the_layout_is_mflux_s_own(tmp_path):
    folder = saved(tmp_path / "model", bits=4)
    with safe_open(folder / "transformer" / "0.safetensors", "numpy") as file:
        assert file.metadata()["quantization_level"] == "4" and file.metadata()["mflux_version"]
        names = set(file.keys())
    assert "transformer_blocks.0.ff_context.linear2.scales" in names
    assert "single_transformer_blocks.5.proj_mlp.biases" in names
    t5 = mx.load(str(folder / "text_encoder_2" / "0.safetensors"))
    assert "t5_blocks.1.attention.SelfAttention.relative_attention_bias.weight" in t5, "it is in every block"
    vae = mx.load(str(folder / "vae" / "0.safetensors"))
    assert vae["encoder.conv_in.conv2d.weight"].shape == (16, 3, 3, 3)
    assert vae["decoder.conv_out.conv2d.weight"].shape == (3, 3, 3, 16), "channels last"
    index = json.loads((folder / "vae" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(vae)


def test_a_save_holds_one_shard_and_one_module_and_never_the_whole_network(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 1 << 16)
    source = resolve("tiny")
    (whole,) = (source.folders["transformer"]).glob("*.safetensors")
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    saved(tmp_path / "model", bits=4)
    assert mx.get_peak_memory() - before < whole.stat().st_size / 4


def test_numbers_are_quantized_as_they_are_stored(tmp_path):
    """bfloat16 weights have bfloat16 scales: half a bit a weight less than from float32."""
    folder = saved(tmp_path / "model", bits=4)
    kinds = {info.dtype for name, info in tensors_in(folder / "transformer").items() if name.endswith("scales")}
    assert kinds == {"BF16"}


def test_a_save_without_config_and_manifest_is_read_by_its_shapes(tmp_path, oracle_model):
    """As mflux writes them: no config.json, no scheduler, no manifest."""
    source = oracle_model("dev") / "transformer"
    folder = saved(tmp_path / "model", oracle_model("dev"))
    (folder / "transformer" / "config.json").unlink()
    network = load_network("transformer", folder / "transformer")
    whole = load_network("transformer", source)
    assert replace(network.config, axes_dims_rope=whole.config.axes_dims_rope) == whole.config
    assert mx.array_equal(network.x_embedder.weight, whole.x_embedder.weight)
    (folder / "mflux_model.json").unlink()
    shutil.rmtree(folder / "scheduler")
    source = Flux1(str(folder), base_model="schnell")
    assert source.parts.schedule.sigmas(2, 64) == (1.0, 0.5, 0.0)
    assert Flux1(str(folder)).parts.schedule.use_dynamic_shifting


def without_last_bias(folder):
    path = folder / "transformer" / "0.safetensors"
    tensors = load_file(path)
    tensors.pop("norm_out.linear.bias", None)
    save_file(tensors, path, {"quantization_level": "None", "mflux_version": "0.18.0"})
    (folder / "transformer" / "model.safetensors.index.json").unlink()


def test_the_bias_that_mflux_0_16_forgot_is_zero_with_a_warning(tmp_path, oracle_model, caplog):
    folder = saved(tmp_path / "model", oracle_model("dev"))
    without_last_bias(folder)
    network = load_network("transformer", folder / "transformer")
    assert "norm_out.linear.bias" in caplog.text and "zeros are used" in caplog.text
    assert not mx.any(network.norm_out.linear.bias)


def test_that_hole_is_tolerated_in_mflux_s_layout_only(tmp_path, oracle_model):
    folder = saved(tmp_path / "model", oracle_model("dev"), layout="diffusers") / "transformer"
    [path] = folder.glob("*.safetensors")
    tensors = load_file(path)
    del tensors["norm_out.linear.bias"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"lacks the tensor `norm_out\.linear\.bias`"):
        load_network("transformer", folder)


def test_a_packed_tensor_that_does_not_fit_is_named(tmp_path):
    folder = saved(tmp_path / "model", bits=4)
    path = folder / "transformer" / "0.safetensors"
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
    tensors = mx.load(str(path))
    tensors["x_embedder.scales"] = tensors["x_embedder.scales"][:, :0]
    mx.save_safetensors(str(path), tensors, metadata)
    with pytest.raises(ModelError, match="`x_embedder` is quantized with shapes"):
        load_network("transformer", folder / "transformer")


def lora(path, scale=0.05):
    random = np.random.default_rng(0)
    tensors = {}
    for layer, outputs, inputs in (("transformer_blocks.0.attn.to_q", 128, 128), ("x_embedder", 128, 64)):
        tensors[f"transformer.{layer}.lora_A.weight"] = scale * random.standard_normal((4, inputs), np.float32)
        tensors[f"transformer.{layer}.lora_B.weight"] = random.standard_normal((outputs, 4), np.float32)
    save_file(tensors, path)
    return path


def test_a_lora_is_folded_before_quantizing(tmp_path):
    file = lora(tmp_path / "ink.safetensors")
    folder = saved(tmp_path / "whole", loras=[(file, 0.7)])
    beside = Flux1("tiny", lora_paths=[str(file)], lora_scales=[0.7])
    network = load_network("transformer", folder / "transformer")
    ours = beside.parts.get("transformer").transformer_blocks[0].attn.to_q.weight()
    assert mx.abs(network.transformer_blocks[0].attn.to_q.weight - ours).max() < 2e-3, "bfloat16"
    packed = load_network("transformer", saved(tmp_path / "packed", bits=8, loras=[(file, 0.7)]) / "transformer")
    layer = packed.transformer_blocks[0].attn.to_q
    back = mx.dequantize(layer.weight, layer.scales, layer.biases, 64, 8)
    assert mx.abs(back - ours).max() < 0.02 and layer.bits == 8
    told = read_manifest(folder)["loras"]
    assert [(each["source"], each["scale"], len(each["sha256"])) for each in told] == [("ink.safetensors", 0.7, 64)]


def test_a_lora_that_widens_the_input_widens_the_saved_model(tmp_path):
    path = tmp_path / "control.safetensors"
    save_file(
        {
            "transformer.x_embedder.lora_A.weight": np.ones((2, 128), np.float32),
            "transformer.x_embedder.lora_B.weight": np.ones((128, 2), np.float32),
        },
        path,
    )
    folder = saved(tmp_path / "model", loras=[(path, 1.0)], layout="diffusers")
    assert load_network("transformer", folder / "transformer").config.in_channels == 128


class CutError(Exception):
    pass


@pytest.mark.parametrize("layout", ["mflux", "diffusers"])
def test_a_save_that_was_cut_goes_on_and_ends_the_same(tmp_path, monkeypatch, layout):
    monkeypatch.setattr(save, "SHARD_BYTES", 1 << 20)
    whole = saved(tmp_path / "whole", layout=layout)
    read = []

    def cut(written, total):
        if written > total / 2:
            raise CutError

    with pytest.raises(CutError):
        save_model(Saving(resolve("tiny"), tmp_path / "model", layout), cut)
    assert not (tmp_path / "model").exists()
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "model.partial").rglob("*.safetensors")}
    assert len(shards) > 3
    monkeypatch.setattr(save, "filled", lambda *args, **rest: counted(read, *args, **rest))
    folder = saved(tmp_path / "model", layout=layout)
    assert not (tmp_path / "model.partial").exists()
    names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
    assert names == {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for name in names - {Path("mflux_model.json")}:
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name
    everything = sum(len(load_names(whole / part)) for part in NETWORKS)
    assert 0 < len(read) < everything


def load_names(folder):
    return tensors_in(folder)


REAL = save.filled


def counted(read, *args, **rest):
    for path, module in REAL(*args, **rest):
        read.append(path)
        yield path, module


def test_the_rest_of_another_save_is_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(save, "SHARD_BYTES", 1 << 20)

    def cut(written, total):
        raise CutError

    with pytest.raises(CutError):
        save_model(Saving(resolve("tiny"), tmp_path / "model", bits=4), cut)
    assert same(drawn(saved(tmp_path / "model", bits=8)), drawn("tiny", 8))


def test_the_disk_is_measured_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(MfluxError, match=r"needs 0.01 GB, but `.*` has 0.00 GB left") as error:
        saved(tmp_path / "model")
    assert error.value.exit_code == 1 and list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_refused(tmp_path, oracle_model):
    packed = saved(tmp_path / "packed", bits=4)
    with pytest.raises(UsageError, match="is there already"):
        saved(packed)
    for rest in ({"bits": 8}, {"layout": "diffusers"}, {"loras": [(lora(tmp_path / "ink.safetensors"), 1.0)]}):
        with pytest.raises(UsageError, match="is quantized already, to 4 bits"):
            saved(tmp_path / "again", packed, **rest)
    with pytest.raises(UsageError, match="holds whole weights"):
        saved(tmp_path / "again", layout="diffusers", bits=4)
    assert same(drawn(saved(tmp_path / "again", packed)), drawn(packed))


@pytest.mark.parametrize("change", ["flip", "cut", "lose"])
def test_damage_is_found(tmp_path, change):
    folder = saved(tmp_path / "model")
    assert damage(folder, read_manifest(folder)) == []
    path = folder / "vae" / "0.safetensors"
    whole = path.read_bytes()
    if change == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif change == "cut":
        path.write_bytes(whole[:-1])
    else:
        path.unlink()
    [problem] = damage(folder, read_manifest(folder))
    assert "`vae/0.safetensors`" in problem


def test_a_manifest_that_points_elsewhere_is_damage(tmp_path):
    folder = saved(tmp_path / "model")
    manifest = read_manifest(folder)
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": ""}
    assert "points out of the folder" in damage(folder, manifest)[0]


def test_the_manifest_says_which_family_a_save_belongs_to(tmp_path):
    folder = save_model(Saving(replace(resolve("tiny"), row=BY_NAME["dev-kontext"]), tmp_path / "model"))
    assert resolve(str(folder)).row.name == "dev-kontext"
