"""Single files of other programs: BFL's autoencoder, all-in-one checkpoints; and mutated files of every kind."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mflux import Config, Flux1
from mflux.errors import MfluxError, ModelError
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.weights.files import read_header, read_tensor
from mflux.weights.kinds import KINDS, config_from_shapes
from mflux.weights.layouts import AUTOENCODER, blocks_in, numbered
from mflux.weights.load import load_network
from mflux.weights.lora_files import read_lora

BUILT_IN = Path(__file__).parents[2] / "src" / "mflux" / "tiny" / "base"
CONFIG = Config(num_inference_steps=1)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def autoencoder(folder):
    """The tensors of a VAE under BFL's names; attention as 1 x 1 convolutions, as in `ae.safetensors`."""
    names = {}
    stored = mx.load(str(next(folder.glob("*.safetensors"))))
    for theirs, rule in numbered(AUTOENCODER, blocks_in(stored)).items():
        names[rule.ours[0]] = theirs
    tensors = {}
    for name, value in stored.items():
        module, _, leaf = name.rpartition(".")
        value = value[:, :, None, None] if ".attentions." in name and value.ndim == 2 else value
        tensors[f"{names.get(module, module)}.{leaf}"] = np.array(value.astype(mx.float32))
    return tensors


def test_the_autoencoder_is_black_forest_labs_s_too(tmp_path, oracle_model):
    folder = oracle_model("dev") / "vae"
    tensors = autoencoder(folder)
    assert "decoder.up.0.block.0.norm1.weight" in tensors and "encoder.mid.attn_1.q.weight" in tensors
    save_file(tensors, tmp_path / "ae.safetensors")
    whole = load_network("vae", folder)
    ours = load_network("vae", tmp_path / "ae.safetensors", config=whole.config)
    latents = mx.random.normal((1, 16, 8, 8), key=mx.random.key(0))
    assert mx.array_equal(ours.decode(latents), whole.decode(latents))
    pixels = mx.random.normal((1, 3, 64, 64), key=mx.random.key(0))
    assert mx.array_equal(ours.encode(pixels), whole.encode(pixels))


def test_the_decoder_s_levels_are_counted_the_other_way(tmp_path, oracle_model):
    """A table that did not turn them round would load where all levels are equally wide, and draw noise."""
    rules = numbered(AUTOENCODER, 4)
    levels = {
        int(theirs.split(".")[2]): rule.ours[0] for theirs, rule in rules.items() if theirs.startswith("decoder.up.")
    }
    assert all(f"up_blocks.{3 - level}." in ours for level, ours in levels.items()) and len(levels) == 4


def test_text_encoders_come_as_single_files_too(tmp_path):
    """ComfyUI's clip_l.safetensors and t5xxl_fp8: Hugging Face's names, and a marker tensor."""
    for part in ("text_encoder", "text_encoder_2"):
        whole = load_network(part, BUILT_IN / part)
        stored = mx.load(str(BUILT_IN / part / "model.safetensors"))
        file = tmp_path / f"{part}.safetensors"
        mx.save_safetensors(str(file), stored | {"scaled_fp8": mx.zeros((0,))})
        ours = load_network(part, file, config=whole.config)
        ids = mx.array([[5, 6, 7, 1]])
        results = [each(ids) for each in (ours, whole)]
        results = [each[1] if isinstance(each, tuple) else each for each in results]
        assert mx.array_equal(*results)


def test_all_in_one_files_bring_their_own_parts(tmp_path, oracle_model, monkeypatch):
    """With each part under its prefix; nothing is taken from the family then but tokenizers and schedule."""
    source = oracle_model("dev")
    bfl = load_file(oracle_model("../cases/checkpoint-bfl/flux.safetensors"))
    tensors = {f"model.diffusion_model.{name}": value for name, value in bfl.items()}
    tensors |= {f"vae.{name}": value for name, value in autoencoder(source / "vae").items()}
    for part, prefix in (
        ("text_encoder", "text_encoders.clip_l.transformer."),
        ("text_encoder_2", "text_encoders.t5xxl.transformer."),
    ):
        tensors |= {prefix + name: value for name, value in load_file(source / part / "model.safetensors").items()}
    save_file(tensors, tmp_path / "all.safetensors")
    flux = Flux1(str(tmp_path / "all.safetensors"), base_model="tiny")
    assert {flux.parts.source.folders[part] for part in ("transformer", "text_encoder", "text_encoder_2", "vae")} == {
        tmp_path / "all.safetensors"
    }
    assert flux.parts.source.folders["tokenizer"].parent == BUILT_IN


def test_a_family_draws_with_another_s_transformer(tmp_path):
    """A fine-tune of the transformer alone, in a folder of its own."""
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "transformer").symlink_to(BUILT_IN / "transformer")
    whole = Flux1("tiny").generate_image(1, "a red circle", CONFIG)
    tuned = Flux1(str(tmp_path / "tuned"), base_model="tiny").generate_image(1, "a red circle", CONFIG)
    assert np.array_equal(whole.image, tuned.image)


def test_a_lite_model_is_read_by_its_shapes(tmp_path):
    """FLUX.1-lite: fewer joint blocks, and nothing in its name that a program should believe."""
    sizes = TransformerConfig(num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=2,
                              joint_attention_dim=24, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6))  # fmt: skip
    network = FluxTransformer(sizes)
    from mlx.utils import tree_flatten

    mx.save_safetensors(str(tmp_path / "flux1-dev.safetensors"), dict(tree_flatten(network.parameters())))
    assert config_from_shapes(tmp_path / "flux1-dev.safetensors") == sizes


# --- any bytes --------------------------------------------------------------------------------------------------------


def mutated(tmp_path, source, position, value, cut):
    raw = bytearray(source.read_bytes())
    raw[position % len(raw)] = value
    path = tmp_path / source.name
    path.write_bytes(raw[: len(raw) - cut % len(raw)] if cut else raw)
    return path


@QUICK
@given(position=st.integers(0, 4000), value=st.integers(0, 255), cut=st.just(0) | st.integers(0, 10**6))
def test_a_mutated_gguf_file_gives_tensors_or_an_error(tmp_path, oracle_model, position, value, cut):
    path = mutated(tmp_path, oracle_model("../cases/checkpoint-gguf-q4_k/flux.gguf"), position, value, cut)
    try:
        for info in list(read_header(path).values())[:3]:
            read_tensor(info)
    except ModelError as error:
        assert str(path) in error.problem and error.hint


@pytest.fixture(scope="module")
def network(oracle_model):
    folder = oracle_model("dev") / "transformer"
    return {"transformer": load_network("transformer", folder)}


@QUICK
@given(position=st.integers(0, 4000), value=st.integers(0, 255), cut=st.just(0) | st.integers(0, 10**6))
@pytest.mark.parametrize("case", ["lora-attn-c-kohya", "lora-a-header-alpha-pattern", "lora-i-lokr-w2ab-lycoris"])
def test_a_mutated_lora_gives_an_adapter_or_an_error(tmp_path, oracle_model, network, case, position, value, cut):
    path = mutated(tmp_path, oracle_model(f"../cases/{case}/lora.safetensors"), position, value, cut)
    try:
        read_lora(path, 1.0, network)
    except MfluxError as error:
        assert str(path) in error.problem and error.hint


@pytest.mark.parametrize(
    "settings_text",
    [
        "[]",
        "null",
        "3",
        '{"lora_alpha": "x"}',
        '{"alpha_pattern": []}',
        '{"alpha_pattern": {"to_q": null}}',
        '{"a": {}}',
    ],
)
def test_settings_that_are_none_are_ignored_or_refused(tmp_path, network, settings_text):
    layer, width = "transformer_blocks.0.attn.to_q", network["transformer"].config.width
    tensors = {f"transformer.{layer}.lora_A.weight": np.ones((2, width), np.float32)}
    tensors[f"transformer.{layer}.lora_B.weight"] = np.ones((width, 2), np.float32)
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": settings_text})
    try:
        assert read_lora(path, 1.0, network).tensors == 2
    except MfluxError as error:
        assert str(path) in error.problem and error.hint


def test_every_part_of_a_model_has_a_kind():
    assert {"transformer", "text_encoder", "text_encoder_2", "vae"} <= set(KINDS)
