"""Safetensors headers and indexes: whatever bytes there are, a table of tensors or a ModelError."""

import json
import struct
from pathlib import Path

import hostile
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mflux.errors import ModelError
from mflux.weights.files import TensorInfo, read_header, read_json, read_tensor, tensors_in

QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
NUMBERS = st.integers(-2, 20) | st.integers()
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I64", "BOOL", "F8"]) | JSON,
        "shape": st.lists(NUMBERS, max_size=3) | JSON,
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2) | JSON,
    }
)


def read(tmp_path: Path, raw: bytes) -> dict[str, TensorInfo]:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    return read_header(path)


def only_tables_or_errors(tmp_path: Path, raw: bytes) -> None:
    try:
        table = read(tmp_path, raw)
    except ModelError as error:
        assert str(tmp_path) in error.problem and error.exit_code == 1
    else:
        assert all(isinstance(info, TensorInfo) and info.size >= 0 for info in table.values())


@pytest.mark.parametrize("kind", hostile.BROKEN_HEADERS)
def test_a_damaged_file_is_refused_by_name(tmp_path, kind):
    with pytest.raises(ModelError) as error:
        read(tmp_path, hostile.BROKEN_HEADERS[kind])
    assert str(tmp_path / "model.safetensors") in error.value.problem


def test_every_refusal_says_what_to_do(tmp_path):
    for kind, raw in hostile.BROKEN_HEADERS.items():
        with pytest.raises(ModelError) as error:
            read(tmp_path, raw)
        assert error.value.hint, kind


def test_a_whole_file_is_read(tmp_path):
    begin = len(hostile.WHOLE) - 4
    assert read(tmp_path, hostile.WHOLE) == {"a": TensorInfo(tmp_path / "model.safetensors", "a", "F32", (1,), begin)}


@given(raw=st.binary(max_size=300))
@QUICK
def test_any_bytes_give_a_table_or_an_error(tmp_path, raw):
    only_tables_or_errors(tmp_path, raw)


@given(header=JSON, data=st.binary(max_size=20))
@QUICK
def test_any_json_as_header_gives_a_table_or_an_error(tmp_path, header, data):
    only_tables_or_errors(tmp_path, hostile.safetensors(header, data))


@given(entries=st.dictionaries(st.text(max_size=5), ENTRIES, max_size=3), data=st.binary(max_size=20))
@QUICK
def test_any_entries_give_a_table_or_an_error(tmp_path, entries, data):
    only_tables_or_errors(tmp_path, hostile.safetensors(entries, data))


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@QUICK
def test_a_real_file_with_one_byte_changed_gives_a_table_or_an_error(tmp_path, oracle_model, position, value):
    raw = bytearray(hostile.tensor_file(oracle_model("dev") / "text_encoder").read_bytes()[:20_000])
    raw[position] = value
    only_tables_or_errors(tmp_path, bytes(raw))


@given(raw=st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()))
@QUICK
def test_any_bytes_as_json_give_an_object_or_an_error(tmp_path, raw):
    (tmp_path / "config.json").write_bytes(raw)
    try:
        assert isinstance(read_json(tmp_path / "config.json"), dict)
    except ModelError as error:
        assert "config.json" in error.problem and error.hint


def test_tensors_are_read_as_they_were_written(tmp_path):
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones((1,), np.float16)}
    from safetensors.numpy import save_file

    save_file(values, tmp_path / "model.safetensors")
    found = tensors_in(tmp_path)
    assert {name: info.shape for name, info in found.items()} == {"a": (2, 3), "b": (1,)}
    for name, info in found.items():
        assert np.array_equal(np.array(read_tensor(info)), values[name])


def test_a_file_that_changed_is_read_again(tmp_path):
    path = tmp_path / "model.safetensors"
    for value in (1.0, 2.0):
        path.write_bytes(hostile.safetensors({"a": hostile.entry()}, struct.pack("<f", value)))
        assert read_tensor(read_header(path)["a"]).item() == value


def shards(folder: Path, weight_map: dict[str, str]) -> Path:
    for number in (1, 2):
        header = {f"t{number}": hostile.entry()}
        (folder / f"part-{number}.safetensors").write_bytes(hostile.safetensors(header, b"\0" * 4))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_read_by_their_index(tmp_path):
    shards(tmp_path, {"t1": "part-1.safetensors", "t2": "part-2.safetensors"})
    assert sorted(tensors_in(tmp_path)) == ["t1", "t2"]


def test_a_shard_that_lacks_its_tensor_is_named(tmp_path):
    index = shards(tmp_path, {"t1": "part-2.safetensors"})
    with pytest.raises(ModelError) as error:
        tensors_in(tmp_path)
    assert error.value.problem == f"shard `part-2.safetensors` lacks tensor `t1` that `{index}` says it holds"


@pytest.mark.parametrize("shard", ["part-3.safetensors", "../x.safetensors", "/etc/passwd", "", ".", "..", "x" * 999])
def test_a_shard_that_is_not_beside_its_index_is_missing(tmp_path, shard):
    shards(tmp_path, {"t1": shard})
    with pytest.raises(ModelError, match="is missing"):
        tensors_in(tmp_path)


def test_a_folder_without_weights_names_what_was_expected(tmp_path):
    with pytest.raises(ModelError, match="diffusion_pytorch_model"):
        tensors_in(tmp_path)


def test_reading_a_header_reads_no_weights(tmp_path):
    """The tensor's bytes are a hole in a sparse file of 1 TB."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile.safetensors({"a": hostile.entry(shape=[2**38], offsets=[0, 2**40])}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**40)
    assert read_header(path)["a"].size == 2**38
    assert mx.get_peak_memory() < 2**40
