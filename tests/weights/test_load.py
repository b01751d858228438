"""Networks from folders: every tensor is asked for, every tensor is used."""

import shutil

import hostile
import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mflux.conditions import controlnet, depth, ip_adapter, redux  # noqa: F401  (they add their kinds)
from mflux.errors import ModelError
from mflux.models.text_clip import ClipConfig
from mflux.weights.kinds import KINDS, read_config
from mflux.weights.load import check, expected_shapes, load_network

PARTS = tuple(part for part in KINDS if part != "ip_adapter")  # that one is always a single file
BESIDE = {"controlnet": "controlnet", "depth_pro": "depth-pro", "clip_vision": "clip-vision"}  # no part of a model
SIZE_KEYS = {
    "transformer": "num_layers",
    "text_encoder": "hidden_size",
    "vae": "sample_size",
    "controlnet": "num_layers",
    "depth_pro": "fusion_hidden_size",
    "clip_vision": "hidden_size",
    "image_encoder": "hidden_size",
    "image_embedder": "redux_dim",
}


@pytest.fixture
def model(oracle_model, tmp_path):
    folder = hostile.copy_model(oracle_model("dev"), tmp_path / "model")
    for part, name in BESIDE.items():
        hostile.copy_model(oracle_model(name), folder / part)
    shutil.copytree(oracle_model("redux"), folder, dirs_exist_ok=True)
    return folder


def names(folder):
    from safetensors.numpy import load_file

    return [name for path in sorted(folder.glob("*.safetensors")) for name in load_file(path)]


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_of_the_network_comes_from_the_file(model, part):
    folder = model / part
    network = load_network(part, folder)
    assert set(check(part, folder, network)) == set(dict(tree_flatten(network.parameters())))
    assert not tree_flatten(network.trainable_parameters())


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_is_the_file_s_own_numbers(model, part):
    from safetensors.numpy import load_file

    path = hostile.tensor_file(model / part)
    loaded = dict(tree_flatten(load_network(part, path.parent).parameters()))
    for name, value in load_file(path).items():
        ours = KINDS[part].aliases.get(name, name)
        value = value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        if ours in loaded:
            assert np.array_equal(np.array(loaded[ours]), value), name


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(model, part):
    lost = min(name for name in names(model / part) if name.endswith(".weight"))

    def reshape(tensors):
        tensors[max(tensors)] = tensors[max(tensors)].reshape(1, -1)
        reshape.name = max(tensors)

    hostile.rewrite(model / part, lambda tensors: tensors.update(stranger=np.zeros(1, np.float32)))
    with pytest.raises(ModelError, match="holds a tensor `stranger`") as error:
        load_network(part, model / part)
    assert error.value.hint
    hostile.rewrite(model / part, lambda tensors: tensors.pop("stranger"))
    hostile.rewrite(model / part, reshape)
    with pytest.raises(ModelError, match=rf"tensor `{reshape.name}` has shape \(1, "):
        load_network(part, model / part)
    for path in (model / part).glob("*.index.json"):
        path.unlink()
    for path in (model / part).glob("*.safetensors"):
        path.write_bytes(hostile.safetensors({lost + "x": hostile.entry()}, b"\0" * 4))
        path.rename(path.parent / "model.safetensors")
    with pytest.raises(ModelError, match="lacks the tensor `"):
        load_network(part, model / part)


def test_text_encoders_saved_without_their_prefix_are_the_same(model):
    before = load_network("text_encoder", model / "text_encoder")

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("text_model.")] = tensors.pop(name)

    hostile.rewrite(model / "text_encoder", strip)
    after = load_network("text_encoder", model / "text_encoder")
    ids = mx.array([[1, 2, 3]])
    assert mx.array_equal(before(ids)[1], after(ids)[1])


@pytest.mark.parametrize("part", PARTS)
def test_a_config_without_a_key_uses_flux_1_s_own_size(model, part):
    (model / part / "config.json").write_text("{}")
    assert read_config(part, model / part) == KINDS[part].config()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("value", ["8", 8.5, True, [8], {"a": 8}, -8, float("nan")], ids=repr)
def test_a_size_that_is_no_size_is_refused(model, part, value):
    key = SIZE_KEYS.get(part, "d_model")
    hostile.edit_json(model / part / "config.json", **{key: value})
    with pytest.raises(ModelError, match=f"`{key}` is") as error:
        read_config(part, model / part)
    assert error.value.exit_code == 1 and error.value.hint


def test_null_means_the_default(model):
    hostile.edit_json(model / "text_encoder" / "config.json", layer_norm_eps=None)
    assert read_config("text_encoder", model / "text_encoder").layer_norm_eps == ClipConfig.layer_norm_eps


def test_unknown_keys_do_not_matter(model):
    before = read_config("vae", model / "vae")
    hostile.edit_json(model / "vae" / "config.json", new_key_of_next_year={"a": [1]})
    assert read_config("vae", model / "vae") == before


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
def test_quantized_weights_stay_close(oracle_model, bits):
    """Only rows of a multiple of 64 numbers are packed; the VAE never is."""
    folder = oracle_model("fill") / "transformer"
    whole, packed = load_network("transformer", folder), load_network("transformer", folder, bits=bits)
    done = 0
    for (path, a), (_, b) in zip(whole.named_modules(), packed.named_modules(), strict=True):
        if hasattr(b, "scales"):
            back = mx.dequantize(b.weight, b.scales, b.biases, b.group_size, b.bits)
            span = a.weight.reshape(-1, b.group_size)
            step = (span.max(axis=1) - span.min(axis=1)).max().item() / (2**bits - 1)
            assert mx.abs(back - a.weight).max().item() <= step, path  # half a step, and the zero point's rounding
            done += 1
    assert done > 0
    vae = load_network("vae", oracle_model("fill") / "vae", bits=bits)
    assert not [name for name, _ in tree_flatten(vae.parameters()) if name.endswith("scales")]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_the_weights_have_the_dtype_that_was_asked_for(oracle_model, dtype):
    network = load_network("text_encoder_2", oracle_model("dev") / "text_encoder_2", dtype)
    assert {value.dtype for _, value in tree_flatten(network.parameters())} == {dtype}


def test_expected_shapes_are_channel_first(oracle_model):
    shapes = expected_shapes(load_network("vae", oracle_model("dev") / "vae"))
    assert shapes["encoder.conv_in.weight"] == (8, 3, 3, 3)
