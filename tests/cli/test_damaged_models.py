"""A model folder whose content is wrong: exit code 1, one line that names the file, no picture."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest

INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
FAST = ("--prompt", "fox", "--steps", "1", "--seed", "1", "--height", "16", "--width", "16")
NETWORKS = ("transformer", "text_encoder", "text_encoder_2", "vae")
BINARY = b"\xff\xfe\0"


@pytest.fixture
def model(oracle_model, tmp_path) -> Path:
    return hostile.copy_model(oracle_model("dev"), tmp_path / "model")


@pytest.fixture
def damaged(refused, model):
    """Draw with the model, which has to be refused as damaged; returns the error."""
    return lambda: refused(*FAST, "--max-sequence-length", "8", "--model", model, code=1)[0]


@pytest.mark.parametrize("part", hostile.CONFIGS)
@pytest.mark.parametrize(
    ("content", "message"),
    [(b'{"a": ', "is not valid JSON"), (b"[1]", "should hold a JSON object"), (BINARY, "cannot be read")],
    ids=["cut", "list", "binary"],
)
def test_a_config_that_is_no_json_object_is_named(damaged, model, part, content, message):
    path = model / hostile.CONFIGS[part]
    path.write_bytes(content)
    assert damaged().startswith(f"`{path}` {message}")


@pytest.mark.parametrize("part", hostile.CONFIGS)
def test_a_config_that_is_missing_is_named(damaged, model, part):
    (model / hostile.CONFIGS[part]).unlink()
    assert damaged() == f"`{model / hostile.CONFIGS[part]}` is missing"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("transformer", "num_layers", "2"),
        ("transformer", "num_layers", 2.0),
        ("transformer", "num_layers", True),
        ("transformer", "num_layers", [2]),
        ("transformer", "num_layers", -1),
        ("transformer", "num_attention_heads", 0),
        ("transformer", "pooled_projection_dim", 0),
        ("transformer", "axes_dims_rope", "4,6,6"),
        ("transformer", "axes_dims_rope", [4, 4, 4, 4]),
        ("transformer", "axes_dims_rope", [16]),
        ("transformer", "axes_dims_rope", [6, 6, 6]),
        ("transformer", "guidance_embeds", "yes"),
        ("vae", "norm_num_groups", 0),
        ("vae", "norm_num_groups", 3),
        ("vae", "latent_channels", 0),
        ("vae", "block_out_channels", []),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", float("nan")),
        ("vae", "scaling_factor", float("inf")),
        ("vae", "scaling_factor", 10**400),
        ("vae", "shift_factor", 1e308),
        ("clip", "num_attention_heads", 0),
        ("clip", "num_attention_heads", 5),
        ("clip", "hidden_act", "tanhshrink"),
        ("clip", "eos_token_id", 10**30),
        ("clip", "layer_norm_eps", -1),
        ("clip", "layer_norm_eps", float("nan")),
        ("t5", "num_heads", 0),
        ("t5", "d_kv", 0),
        ("t5", "relative_attention_max_distance", 0),
        ("scheduler", "shift", "3"),
        ("scheduler", "shift", -1),
        ("scheduler", "use_dynamic_shifting", "no"),
        ("scheduler", "max_shift", float("nan")),
        ("scheduler", "max_shift", 10**400),
        ("scheduler", "max_shift", -1e6),
        ("scheduler", "base_image_seq_len", 4096),
        ("scheduler", "use_karras_sigmas", True),
    ],
)
def test_a_config_with_a_value_of_no_sense_is_refused_by_name(damaged, model, part, key, value):
    path = model / hostile.CONFIGS[part]
    hostile.edit_json(path, **{key: value})
    error = damaged()
    assert str(path) in error and f"`{key}`" in error and len(error) < 1000


@pytest.mark.parametrize(
    ("part", "key"),
    [("transformer", "num_layers"), ("vae", "layers_per_block"), ("clip", "num_hidden_layers"), ("t5", "num_layers")],
)
def test_a_config_of_a_billion_layers_is_refused_at_once(model, part, key):
    """In a process of its own: building such a network would take all memory."""
    hostile.edit_json(model / hostile.CONFIGS[part], **{key: 10**9})
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (8, 8))\n"
        "sys.argv[0] = 'mflux-generate'; from mflux.cli.main import named; sys.exit(named())"
    )
    words = [*FAST, "--max-sequence-length", "8", "--model", str(model)]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=model)
    assert done.returncode == 1 and "unexpected" not in done.stderr and "out of memory" not in done.stderr


@pytest.mark.parametrize("part", NETWORKS)
def test_weights_that_are_missing_or_cut_short_are_named(damaged, model, part):
    path = hostile.tensor_file(model / part)
    path.write_bytes(path.read_bytes()[:-100])
    assert f"`{path}`: tensor `" in damaged()
    path.unlink()
    error = damaged()
    assert path.name in error or str(path.parent) in error


@pytest.mark.parametrize("part", NETWORKS)
def test_a_tensor_of_another_shape_is_named_before_a_weight_is_read(damaged, model, part):
    changed = []

    def turn(tensors):
        name = max(tensors, key=lambda each: tensors[each].size)
        changed.append(name)
        tensors[name] = tensors[name].reshape(-1, 1)

    hostile.rewrite(model / part, turn)
    shutil.rmtree(model / "tokenizer")  # so that encoding the prompt, which comes first, would fail
    assert f"tensor `{changed[0]}` has shape" in damaged()


@pytest.mark.parametrize("part", NETWORKS)
def test_a_tensor_too_many_is_named(damaged, model, part):
    hostile.rewrite(model / part, lambda tensors: tensors.update(stranger=np.zeros(3, np.float32)))
    assert "holds a tensor `stranger`" in damaged()


@pytest.mark.parametrize("part", NETWORKS[1:])
def test_a_tensor_too_few_is_named(damaged, model, part):
    lost = []
    hostile.rewrite(model / part, lambda tensors: (lost.append(min(tensors)), tensors.pop(lost[0])))
    assert f"lacks the tensor `{lost[0]}`" in damaged()


@pytest.mark.parametrize("part", NETWORKS)
@pytest.mark.parametrize("dtype", [np.int32, np.float64, np.bool_], ids=lambda dtype: np.dtype(dtype).name)
def test_weights_of_a_type_that_is_no_weight_s_are_refused(damaged, model, part, dtype):
    def retype(tensors):
        for name in tensors:
            tensors[name] = tensors[name].astype(dtype)

    hostile.rewrite(model / part, retype)
    assert str(model / part) in damaged()


@pytest.mark.parametrize("part", NETWORKS)
def test_weights_that_are_no_numbers_draw_no_picture(damaged, model, part):
    def spoil(tensors):
        for name in tensors:
            tensors[name] = np.full_like(tensors[name], np.nan)

    hostile.rewrite(model / part, spoil)
    damaged()


@pytest.mark.parametrize(
    "metadata",
    [5, {"a": {"b": 1}}, {"a": float("nan")}, {"a": "\ud800"}],
    ids=["number", "nested", "nan", "surrogate"],
)
def test_a_header_that_python_reads_and_mlx_does_not_is_refused(damaged, model, metadata):
    path = hostile.tensor_file(model / "vae")
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = {**json.loads(raw[8 : 8 + length]), "__metadata__": metadata}
    path.write_bytes(hostile.safetensors(header, raw[8 + length :]))
    assert f"`{path}`" in damaged()


@pytest.mark.parametrize(
    "shard", ["../vae/diffusion_pytorch_model.safetensors", "/etc/passwd", "..", ".", "", "x" * 300, "a\0b", "gone"]
)
def test_an_index_that_points_elsewhere_is_refused(damaged, model, shard):
    table = json.loads((model / INDEX).read_text())
    table["weight_map"] = dict.fromkeys(table["weight_map"], shard)
    (model / INDEX).write_text(json.dumps(table))
    error = damaged()
    assert "shard" in error and str(model / INDEX) in error


@pytest.mark.parametrize("weight_map", [None, [], {"a": 1}, {"a": None}, "x"])
def test_an_index_without_a_table_is_refused(damaged, model, weight_map):
    hostile.edit_json(model / INDEX, weight_map=weight_map)
    assert damaged() == f"`{model / INDEX}` has no table `weight_map` of tensor and file names"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer/vocab.json", None),
        ("tokenizer/vocab.json", BINARY),
        ("tokenizer/vocab.json", b"{}"),
        ("tokenizer/vocab.json", b"[]"),
        ("tokenizer/merges.txt", None),
        ("tokenizer/merges.txt", BINARY),
        ("tokenizer/merges.txt", b"three pieces here\n"),
        ("tokenizer/merges.txt", b"{}"),
        ("tokenizer/tokenizer_config.json", None),
        ("tokenizer/tokenizer_config.json", b'{"bos_token": {"text": "x"}}'),
        ("tokenizer/tokenizer_config.json", b'{"added_tokens_decoder": []}'),
        ("tokenizer_2/tokenizer.json", b""),
        ("tokenizer_2/tokenizer.json", BINARY),
        ("tokenizer_2/tokenizer.json", b"{}"),
        ("tokenizer_2/tokenizer_config.json", None),
        ("tokenizer_2/tokenizer_config.json", b'{"pad_token": 3}'),
    ],
)
def test_a_damaged_tokenizer_is_named(damaged, model, file, content):
    (model / file).unlink()
    if content is not None:
        (model / file).write_bytes(content)
    assert str((model / file).parent) in damaged()


def run_apart(model: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own, which may die."""
    words = [*FAST, "--max-sequence-length", "8", "--model", str(model), "--output", str(model / "x.png")]
    code = "import sys; sys.argv[0] = 'mflux-generate'; from mflux.cli.main import named; sys.exit(named())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


@pytest.mark.parametrize("first", [1000, 10**6, 2**31])
def test_a_vocabulary_larger_than_its_embedding_is_refused(model, first):
    path = model / "tokenizer" / "vocab.json"
    path.write_text(json.dumps({word: first + index for word, index in json.loads(path.read_text()).items()}))
    done = run_apart(model)
    assert done.returncode == 1 and "unexpected" not in done.stderr and "tokenizer" in done.stderr


def test_a_t5_vocabulary_larger_than_its_embedding_is_refused(model):
    path = model / "tokenizer_2" / "tokenizer.json"
    table = json.loads(path.read_text())
    table["model"]["vocab"] = [*[[f"<filler{n}>", -9.0] for n in range(5000)], *table["model"]["vocab"]]
    path.write_text(json.dumps(table))
    done = run_apart(model)
    assert done.returncode == 1 and "unexpected" not in done.stderr and "tokenizer_2" in done.stderr


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_an_encoder_of_another_width_than_the_transformer_expects_is_refused(damaged, model, oracle_model, part):
    shutil.rmtree(model / part)
    shutil.copytree(oracle_model("fill") / part, model / part)
    error = damaged()
    assert part in error or "transformer" in error
