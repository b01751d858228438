"""`mflux-train`: what it writes, what it refuses before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux.weights.files import read_header


@pytest.fixture
def config(oracle_model):
    """A run of two updates, in the working folder's train.json."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save("a.png")
    layers = {"block_range": {"start": 0, "end": 1}, "layer_types": ["attn.to_q"], "lora_rank": 2}
    value = {
        "model": str(oracle_model("dev")),
        "seed": 1,
        "steps": 2,
        "guidance": 3,
        "width": 64,
        "height": 64,
        "training_loop": {"num_epochs": 2, "batch_size": 1},
        "optimizer": {"name": "AdamW", "learning_rate": 0.01},
        "save": {"output_path": "run", "checkpoint_frequency": 1},
        "instrumentation": {"plot_frequency": 1, "generate_image_frequency": 2, "validation_prompt": "a thing"},
        "lora_layers": {"single_transformer_blocks": layers},
        "examples": {"path": ".", "images": [{"image": "a.png", "prompt": "a thing"}]},
    }
    Path("train.json").write_text(json.dumps(value))
    return value


def train(cli, *flags):
    return cli(*flags, command="mflux-train")


def test_a_run_leaves_checkpoints_plots_previews_a_log_and_a_lora_that_draws(cli, config):
    done = train(cli, "--train-config", "train.json")
    assert done.code == 0, done.err
    written = {
        "run/_checkpoints/0000001_checkpoint.zip",
        "run/_checkpoints/0000002_checkpoint.zip",
        "run/_validation/plots/0000001_loss.pdf",
        "run/_validation/images/0000002_validation_image.png",
        "run/log.jsonl",
        "run/adapter.safetensors",
    }
    assert written <= done.files
    assert done.out.splitlines()[-1].endswith("run/adapter.safetensors")
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2]
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    assert set(read_header(Path("run/adapter.safetensors"))) == {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight"}
    size = ("--width", "64", "--height", "64", "--steps", "1")
    drawn = cli("--model", config["model"], "--prompt", "a thing", *size, "--lora", "run/adapter.safetensors")
    assert drawn.code == 0 and drawn.out == "image.png\n"


def test_a_run_goes_on_from_its_checkpoint_and_ends_in_the_same_adapter(cli, config):
    assert train(cli, "--config", "train.json").code == 0
    whole = Path("run/adapter.safetensors").read_bytes()
    Path("run/adapter.safetensors").unlink()
    done = train(cli, "--resume", "run/_checkpoints/0000001_checkpoint.zip")
    assert done.code == 0, done.err
    assert Path("run/adapter.safetensors").read_bytes() == whole
    done = train(cli, "--resume", "latest", "--output", "run")
    assert done.code == 2 and "this run is complete" in done.words and "--set training_loop.num_epochs" in done.words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "there is no config and no checkpoint"),
        (("--config", "train.json", "--resume", "a.zip"), "both a config and a checkpoint are given"),
        (("--config", "none.json"), "there is no file `none.json`"),
        (("--config", "broken.json"), "line 1, column 2"),
        (("--resume", "a.png"), "is no checkpoint"),
        (("--resume", "none.zip"), "there is no file"),
        (("--config", "train.json", "--set", "seed"), "`seed` is no setting"),
        (("--config", "train.json", "--lr", "-1"), "1 problem"),
    ],
)
def test_a_wrong_call_is_refused_and_writes_nothing(cli, config, flags, words):
    Path("broken.json").write_text("{,}")
    done = train(cli, *flags)
    assert (done.code, done.out, done.files) == (2, "", frozenset())
    assert words in done.words and "hint: " in done.words and "unexpected" not in done.words


def test_a_dry_run_tells_all_problems_and_makes_no_folder(cli, config):
    assert (train(cli, "--config", "train.json", "--dry-run").code, Path("run").exists()) == (0, False)
    done = train(cli, "--config", "train.json", "--dry-run", "--set", "seed=-1", "optimizer.lr=1", "width=1")
    assert done.code == 2 and done.words.count("problem: ") == 3 and "3 problems in `train.json`" in done.words
    assert done.files == frozenset()


def test_the_template_is_a_config(cli, config):
    from mflux.training.spec import read_spec

    Path("images").mkdir()
    Path("images/01.png").touch()
    template = json.loads(train(cli, "--init-config").out)
    assert read_spec(template, "template", Path()).training_loop.timestep.mode == "flux_shift"
