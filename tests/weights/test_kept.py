"""What is kept on disk comes back to the bit, and nothing that happens to the files stops a run."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest

from mflux.engine import flux as engine
from mflux.models.text_t5 import T5Encoder
from mflux.weights.files import Kept


@pytest.mark.parametrize("content", [b"", b"half of a file"])
def test_a_damaged_file_of_the_cache_is_made_again(tmp_path, content):
    cache = Kept(tmp_path)
    cache.of(lambda: {"x": mx.ones(3)}, "what")
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert cache.of(lambda: {"x": mx.zeros(2)}, "what")["x"].shape == (2,)
    assert cache.of(lambda: {"x": mx.ones(3)}, "what")["x"].shape == (2,)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    """A file where the folder should be; a full disk ends in the same error."""
    folder = tmp_path / "file"
    folder.write_text("")
    cache = Kept(folder)
    assert cache.of(lambda: {"x": mx.ones(2)}, "this")["x"].tolist() == [1, 1]


def test_only_the_newest_are_kept(tmp_path):
    kept = Kept(tmp_path, most=2)
    for what in "abc":
        kept.of(lambda: {"x": mx.ones(1)}, what)
    assert len(list(tmp_path.iterdir())) == 2 and not kept.path("a").exists()


def test_an_encoded_prompt_serves_another_run_to_the_bit(oracle_model, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "PROMPTS_ON_DISK_FROM", 0)
    calls, whole = [], T5Encoder.__call__
    monkeypatch.setattr(T5Encoder, "__call__", lambda *a: calls.append(1) or whole(*a))
    runs = [engine.Flux1(str(oracle_model("dev"))).encode_prompt("a fox", None, 16) for _ in range(2)]
    assert len(calls) == 1 and len(list((tmp_path / "cache" / "prompts").iterdir())) == 1
    assert all(np.array_equal(np.array(one), np.array(other)) for one, other in zip(*runs, strict=True))
    engine.Flux1(str(oracle_model("dev")), quantize=8).encode_prompt("a fox", None, 16)
    assert len(calls) == 2, "other weights, other states"
    own = shutil.copytree(oracle_model("dev"), tmp_path / "own")
    for turn in range(2):
        (own / "tokenizer_2" / "tokenizer_config.json").write_text(json.dumps({"turn": turn}))
        engine.Flux1(str(own)).encode_prompt("a fox", None, 16)
    assert len(calls) == 4, "another tokenizer, other states"
