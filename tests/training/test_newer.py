"""A train.json of mflux 0.16 and newer runs with what it says, in our keys."""

import json

import numpy as np
import pytest
from PIL import Image

from mflux.training.config import SpecError, read_spec, with_items
from mflux.training.newer import in_our_keys
from mflux.training.spec import targets_of

LAYER = "transformer_blocks.{block}.attn.to_q"


def newer(**changes):
    value = {
        "model": "dev",
        "data": "images/",
        "seed": 4,
        "steps": 20,
        "guidance": 1.0,
        "quantize": None,
        "max_resolution": 512,
        "low_ram": True,
        "training_loop": {"num_epochs": 2, "batch_size": 1, "timestep_low": 5, "timestep_high": 20},
        "optimizer": {"name": "AdamW", "learning_rate": 1e-4, "lr_warmup_steps": 7, "optimizer_params": {"eps": 1e-6}},
        "checkpoint": {"save_frequency": 15, "output_path": "training"},
        "monitoring": {"preview_width": 64, "plot_frequency": 3, "generate_image_frequency": 9},
        "lora_layers": {
            "targets": [
                {"module_path": "single_transformer_blocks.{block}.proj_out", "blocks": {"indices": [2]}, "rank": 4},
                {"module_path": LAYER, "blocks": {"start": 0, "end": 2}, "rank": 8, "alpha": 16},
                {"module_path": "transformer_blocks.{block}.ff.linear1", "blocks": {"indices": [1]}, "rank": 2},
                {"module_path": "x_embedder", "rank": 3},
            ]
        },
    }
    return value | changes


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()

    def add(*names):
        for name in names:
            if name.endswith(".txt"):
                (folder / name).write_text(f"words of {name}")
            else:
                Image.fromarray(np.zeros((80, 64, 3), np.uint8)).save(folder / name)

    return add


def spec_of(value, folder):
    return read_spec(with_items(in_our_keys(value, folder), folder), "train.json", folder)


def test_what_it_says_is_what_runs(images, tmp_path, caplog):
    images("a.png", "a.txt", "b.jpg", "b.txt", "preview_1.txt")
    spec = spec_of(newer(), tmp_path)
    assert [(item.image, item.prompt_file) for item in spec.examples.images] == [("a.png", "a.txt"), ("b.jpg", "b.txt")]
    assert (spec.resolution, spec.save.checkpoint_frequency, spec.save.output_path) == ((512,), 15, "training")
    assert spec.optimizer.schedule.warmup_steps == 7 and spec.optimizer.eps == 1e-6
    assert spec.instrumentation.plot_frequency == 3 and spec.instrumentation.preview_prompts == (
        "words of preview_1.txt",
    )
    assert (spec.training_loop.timestep.low, spec.training_loop.timestep.high) == (0.0, 0.75)
    assert [(each.path, each.rank, each.scale) for each in targets_of(spec)] == [
        ("transformer_blocks.0.attn.to_q", 8, 2.0),
        ("transformer_blocks.1.attn.to_q", 8, 2.0),
        ("transformer_blocks.1.ff.net.0.proj", 2, 1.0),
        ("single_transformer_blocks.2.proj_out", 4, 1.0),
        ("x_embedder", 3, 1.0),
    ]
    assert "`low_ram` is not used" in caplog.text and "`monitoring.preview_width` is not used" in caplog.text


def test_pictures_in_and_out_are_edits(images, tmp_path):
    images("one_in.png", "one_out.png", "one_in.txt", "two_in.png", "two_out.png", "two.txt")
    spec = spec_of(newer(), tmp_path)
    found = [(item.input_image, item.image, item.prompt_file) for item in spec.examples.images]
    assert spec.kind == "kontext"
    assert found == [("one_in.png", "one_out.png", "one_in.txt"), ("two_in.png", "two_out.png", "two.txt")]


def test_a_file_of_ours_is_left_as_it_is(tmp_path):
    value = {"model": "dev", "save": {"output_path": "x"}, "lora_layers": {"targets": []}}
    assert in_our_keys(value, tmp_path) is value
    assert in_our_keys([1], tmp_path) == [1]


def test_the_file_that_was_given_does_not_change(images, tmp_path):
    images("a.png", "a.txt")
    value = newer()
    before = json.dumps(value)
    in_our_keys(value, tmp_path)
    assert json.dumps(value) == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "nowhere"}, "`examples.images`: [] is not a list with something in it"),
        ({"monitoring": {"plot_frequenzy": 1}}, "`monitoring`: unknown key"),
        (
            {"lora_layers": {"targets": [{"module_path": "layers.{block}.attention.to_q", "rank": 4}]}},
            "`lora_layers.targets[0].module_path`: 'layers.{block}.attention.to_q' is no layer of FLUX.1",
        ),
        (
            {"lora_layers": {"targets": [{"module_path": LAYER, "blocks": {"indices": [19]}, "rank": 4}]}},
            "`lora_layers.targets[0].blocks.indices`: there is no block 19",
        ),
        (
            {"lora_layers": {"targets": [{"module_path": LAYER, "rank": 4}]}},
            "`lora_layers.targets[0].blocks`: give `start`",
        ),
        ({"lora_layers": {"targets": [{"module_path": "x_embedder", "rank": 65}]}}, "65 is above the 64 sides"),
    ],
)
def test_what_is_wrong_is_told(images, tmp_path, changes, words):
    images("a.png", "a.txt")
    with pytest.raises(SpecError) as error:
        spec_of(newer(**changes), tmp_path)
    assert any(words in problem for problem in error.value.problems), error.value.problems
