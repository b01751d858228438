"""mflux 0.8's train.json is read as it is; everything wrong with a file is told at once."""

import json

import pytest

from mflux.training.config import SpecError, read_spec, with_items, with_settings
from mflux.training.spec import targets_of

# The example of mflux 0.8's README, with the pictures that the test makes.
SEED = {
    "model": "dev",
    "seed": 42,
    "steps": 20,
    "guidance": 3.0,
    "quantize": 4,
    "width": 512,
    "height": 512,
    "training_loop": {"num_epochs": 100, "batch_size": 1},
    "optimizer": {"name": "AdamW", "learning_rate": 1e-4},
    "save": {"output_path": "~/Desktop/train", "checkpoint_frequency": 10},
    "instrumentation": {
        "plot_frequency": 1,
        "generate_image_frequency": 25,
        "validation_prompt": "photo of sks dog",
    },
    "lora_layers": {
        "single_transformer_blocks": {
            "block_range": {"start": 0, "end": 38},
            "layer_types": ["proj_out", "proj_mlp", "attn.to_q", "attn.to_k", "attn.to_v"],
            "lora_rank": 4,
        }
    },
    "examples": {"path": "images/", "images": [{"image": "01.jpeg", "prompt": "photo of sks dog"}]},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "01.jpeg").touch()
    return tmp_path


def test_the_file_of_mflux_0_8_means_what_it_meant(folder):
    spec = read_spec(SEED, "train.json", folder)
    assert (spec.model, spec.seed, spec.steps, spec.guidance, spec.quantize) == ("dev", 42, 20, 3.0, 4)
    assert spec.size == (512, 512) and spec.kind == "t2i"
    assert (spec.training_loop.num_epochs, spec.training_loop.batch_size) == (100, 1)
    assert spec.training_loop.timestep.mode == "schedule"
    targets = targets_of(spec)
    assert len(targets) == 190 and {target.rank for target in targets} == {4}
    assert targets[0].path == "single_transformer_blocks.0.proj_out" and targets[0].scale == 1


def test_old_names_of_layers_are_diffusers_layers(folder):
    layers = {"block_range": {"indices": [18, 0]}, "layer_types": ["attn.to_out", "ff.linear1"], "lora_rank": 8}
    spec = read_spec(SEED | {"lora_layers": {"transformer_blocks": layers | {"alpha": 4}}}, "train.json", folder)
    assert [(target.path, target.scale) for target in targets_of(spec)] == [
        ("transformer_blocks.0.attn.to_out.0", 0.5),
        ("transformer_blocks.0.ff.net.0.proj", 0.5),
        ("transformer_blocks.18.attn.to_out.0", 0.5),
        ("transformer_blocks.18.ff.net.0.proj", 0.5),
    ]


BLOCKS = "lora_layers.single_transformer_blocks"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimizer.learning_rat": 1}, "`optimizer.learning_rat`: unknown key; did you mean `learning_rate`?"),
        ({"optimizer.learning_rate": -1}, "`optimizer.learning_rate`: -1 is out of range"),
        ({"optimizer.learning_rate": float("nan")}, "`optimizer.learning_rate`: nan is not"),
        ({"optimizer.name": "SGD"}, "`optimizer.name`: 'SGD' is unknown; choose one of AdamW"),
        ({"optimizer.schedule": {"name": "linear"}}, "`optimizer.schedule.name`: 'linear' is unknown"),
        ({"optimizer.betas": [0.9]}, "`optimizer.betas`: there are 1, not two"),
        ({f"{BLOCKS}.dropout": 1}, f"`{BLOCKS}.dropout`: 1 is out of range"),
        ({"instrumentation": {"log": ["wandb"]}}, "`instrumentation.log[0]`: 'wandb' is unknown"),
        ({"seed": True}, "`seed`: True is not"),
        ({"model": "dave"}, "`model`: unknown model `dave`"),
        ({"quantize": 7}, "`quantize`: 7 is unknown; choose one of 3, 4, 5, 6, 8"),
        ({"training_loop.gradient_checkpointing": 0}, "`training_loop.gradient_checkpointing`: 0 is out of range"),
        ({"training_loop.loss": {"weighting": "snr"}}, "`training_loop.loss.weighting`: 'snr' is unknown"),
        ({"training_loop.prior": {"weight": 1}}, "`training_loop.prior`: give `images`, a `path`"),
        ({"examples.resize": "bucket"}, "`bucket` needs a `resolution`"),
        ({"training_loop.num_epochs": 0}, "`training_loop.num_epochs`: 0 is out of range"),
        ({"training_loop.batch_size": 2}, "`training_loop.batch_size`: 2 is above the 1 examples"),
        ({"training_loop.timestep": {"mode": "cosmap"}}, "`training_loop.timestep.mode`: 'cosmap' is unknown"),
        ({"training_loop.timestep": {"low": 0.5, "high": 0.4}}, "low 0.5 is not below high 0.4"),
        ({"save.checkpoint_frequency": 0}, "`save.checkpoint_frequency`: 0 is out of range"),
        ({f"{BLOCKS}.lora_rank": 0}, f"`{BLOCKS}.lora_rank`: 0 is out of range"),
        ({f"{BLOCKS}.lora_rank": 4000}, f"`{BLOCKS}.lora_rank`: 4000 is above the layers' width 3072"),
        ({f"{BLOCKS}.block_range.end": 39}, "`dev` has blocks 0 to 37"),
        ({f"{BLOCKS}.block_range": {"indices": [38]}}, "there is no block 38"),
        ({f"{BLOCKS}.block_range": {"start": 3, "end": 3}}, "start 3 is not below end 3"),
        ({f"{BLOCKS}.layer_types": ["ff.linear1"]}, "'ff.linear1' is unknown; choose from proj_out"),
        ({f"{BLOCKS}.layer_types": []}, "[] is not a list with something in it"),
        ({"lora_layers": {}}, "`lora_layers`: it selects no layer"),
        ({"examples.images": [{"image": "02.jpeg", "prompt": "x"}]}, "there is no file `"),
        ({"examples.images": [{"image": "01.jpeg"}]}, "give a `prompt` or a `prompt_file`"),
        ({"examples.images": [{"image": "01.jpeg", "prompt": " "}]}, "' ' is not a text"),
        ({"kind": "kontext"}, "kind `kontext` needs an `input_image`"),
        ({"training_loop.loss": {"region": "mask"}}, "so it needs a `mask`"),
        ({"model": "fill"}, "`kind`: `t2i` needs a model of 64 channels a token, and `fill` takes 384"),
        ({"width": None}, "`width`, `height`: missing; give both, or a `resolution`"),
        ({"resolution": 512}, "`resolution`: `width` or `height` is there too"),
        ({f"{BLOCKS}.type": "loha"}, f"`{BLOCKS}.type`: 'loha' is unknown; choose one of lora, dora, lokr"),
        ({f"{BLOCKS}.type": "lokr", "save.export": ["kohya"]}, "only adapters of type `lora` can be written for kohya"),
        (
            {"lora_layers.outside_blocks": {"layer_types": ["x_embedder"], "lora_rank": 65}},
            "`lora_layers.outside_blocks.lora_rank`: 65 is above the 64 sides of `x_embedder`",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_path(folder, settings, words):
    with pytest.raises(SpecError) as error:
        read_spec(with_settings(SEED, settings), "train.json", folder)
    assert len(error.value.problems) == 1 and words in error.value.problems[0]


def test_all_problems_are_told_at_once(folder):
    wrong = {"seed": -1, "optimizer.learning_rat": 1, "training_loop.num_epochs": "many"}
    with pytest.raises(SpecError) as error:
        read_spec(with_settings(SEED, wrong), "train.json", folder)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize("key", [key for key in SEED if key not in ("quantize", "instrumentation", "width", "height")])
def test_a_missing_key_is_named(folder, key):
    with pytest.raises(SpecError, match=f"`{key}`: missing"):
        read_spec({name: value for name, value in SEED.items() if name != key}, "train.json", folder)


def test_pictures_keep_their_proportion_at_a_resolution(folder):
    settings = {"width": None, "height": None, "resolution": [512, 768]}
    spec = read_spec(with_settings(SEED, settings), "train.json", folder)
    assert spec.size_of(512, 512) == (512, 512) and spec.size_of(2000, 1000) == (1072, 528)
    assert spec.size_of(100, 100) == (512, 512), "nothing is above its own size: the smallest resolution"


def test_comments_are_no_keys(folder):
    read_spec(SEED | {"//": "guidance 1 is what others use"}, "train.json", folder)


def test_examples_can_be_a_folder_or_lines_of_json(folder):
    (folder / "images" / "01.txt").write_text("a dog")
    listed = with_items(SEED | {"examples": "images"}, folder)
    assert listed == with_items(SEED | {"examples": {"path": "images"}}, folder)
    assert listed["examples"]["images"] == [{"image": "01.jpeg", "prompt_file": "01.txt"}]
    read_spec(listed, "train.json", folder)
    lines = folder / "images" / "all.jsonl"
    lines.write_text(json.dumps({"image": "01.jpeg", "prompt": "a dog"}) + "\n\n")
    listed = with_items(SEED | {"examples": "images/all.jsonl"}, folder)
    assert read_spec(listed, "train.json", folder).examples.images[0].prompt == "a dog"
