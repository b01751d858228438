"""`mflux-train`: what it writes, what it refuses before anything is written."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load, save

from mflux.training.config import with_settings
from mflux.weights.files import read_header


@pytest.fixture
def config(training_config):
    """A run of two updates, in the working folder's train.json."""
    watched = {"plot_frequency": 1, "generate_image_frequency": 2, "validation_prompt": "a thing"}
    value = training_config | {"training_loop": {"num_epochs": 2, "batch_size": 1}, "instrumentation": watched}
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


def test_the_class_is_drawn_before_it_is_learnt_and_only_once(cli, config):
    prior = 'training_loop.prior={"class_prompt": "a thing", "num": 2}'
    done = train(cli, "--config", "train.json", "--set", prior)
    assert done.code == 0, done.err
    drawn = {path: path.stat().st_mtime_ns for path in Path("run/_cache/class").iterdir()}
    assert len(drawn) == 2
    again = train(
        cli, "--resume", "latest", "--output", "run", "--max-steps", "4", "--set", "training_loop.num_epochs=9"
    )
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    plain = train(cli, "--config", "train.json", "--output", "plain")
    assert plain.code == 0
    assert Path("plain/adapter.safetensors").read_bytes() != Path("run/adapter.safetensors").read_bytes()


def test_the_log_goes_to_tensorboard_where_that_is_asked_for(cli, config):
    done = train(cli, "--config", "train.json", "--set", 'instrumentation.log=["tensorboard"]')
    assert done.code == 0, done.err
    assert not Path("run/log.jsonl").exists()
    (events,) = Path("run/tensorboard").iterdir()
    assert [step for step, name, _ in scalars(events.read_bytes()) if name == "loss"] == [1, 2]


def scalars(data):
    """Step, name and value of each number in a file of tensorboard's events: length, checksum, event, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
        data = data[16 + length :]


def test_a_run_goes_on_from_its_checkpoint_and_ends_in_the_same_adapter(cli, config):
    assert train(cli, "--config", "train.json").code == 0
    whole = Path("run/adapter.safetensors").read_bytes()
    Path("run/adapter.safetensors").unlink()
    done = train(cli, "--resume", "run/_checkpoints/0000001_checkpoint.zip")
    assert done.code == 0, done.err
    assert Path("run/adapter.safetensors").read_bytes() == whole
    done = train(cli, "--resume", "latest", "--output", "run")
    assert done.code == 2 and "this run is complete" in done.words and "--set training_loop.num_epochs=4" in done.words
    done = train(cli, "--resume", "latest", "--output", "run", "--max-steps", "2")
    assert done.code == 2 and "--max-steps 4" in done.words
    done = train(cli, "--resume", "run/_checkpoints/0000001_checkpoint.zip", "--output", "other")
    assert done.code == 0 and "other/adapter.safetensors" in done.files, "an output that is asked for is used"


def change(config, **settings):
    """Write the config with some keys changed."""
    Path("train.json").write_text(
        json.dumps(with_settings(config, {k.replace("__", "."): settings[k] for k in settings}))
    )


def adapter(folder="run"):
    return Path(folder, "adapter.safetensors").read_bytes()


def test_looking_at_a_run_does_not_change_it(cli, config):
    change(config, instrumentation__generate_image_frequency=1)
    assert train(cli, "--config", "train.json").code == 0
    change(config, instrumentation=None, save__checkpoint_frequency=2)
    assert train(cli, "--config", "train.json", "--output", "other").code == 0
    assert adapter() == adapter("other")


def test_ctrl_c_ends_after_the_update_and_the_run_goes_on_to_the_same_bits(cli, config):
    change(config, training_loop__num_epochs=12, instrumentation=None, save__checkpoint_frequency=100)
    assert train(cli, "--config", "train.json", "--output", "whole").code == 0

    def interrupt():
        while not Path("run/log.jsonl").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    done = train(cli, "--config", "train.json")
    thread.join()
    assert done.code == 130 and "goes on" in done.words and "/_checkpoints/" in done.out
    assert not Path("run/adapter.safetensors").exists()
    assert train(cli, "--resume", "latest", "--output", "run").code == 0
    assert adapter() == adapter("whole")


PROGRAM = "import sys; from mflux.cli.commands import BY_NAME; from mflux.cli.main import main; "
PROGRAM += "sys.exit(main(BY_NAME['mflux-train'], sys.argv[1:]))"


@pytest.mark.parametrize(
    "updates", [1, pytest.param(3, marks=pytest.mark.slow), pytest.param(6, marks=pytest.mark.slow)]
)
def test_a_run_that_was_killed_goes_on_to_the_same_bits(cli, config, updates):
    change(config, training_loop__num_epochs=8, instrumentation=None)
    assert train(cli, "--config", "train.json", "--output", "whole").code == 0
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, "--config", "train.json"], stdout=subprocess.PIPE)
    for _ in range(updates):  # a line for every checkpoint
        program.stdout.readline()
    program.kill()
    program.wait()
    assert train(cli, "--resume", "latest", "--output", "run").code == 0
    assert adapter() == adapter("whole")


def test_half_a_checkpoint_is_none(cli, config):
    assert train(cli, "--config", "train.json", "--max-steps", "1").code == 0
    Path("run/_checkpoints/.0000002_checkpoint-1.zip").write_bytes(b"PK")  # what a killed run leaves
    done = train(cli, "--resume", "latest", "--output", "run", "--max-steps", "2")
    assert done.code == 0, done.err


def test_a_checkpoint_of_mflux_0_9_goes_on(cli, config):
    assert train(cli, "--config", "train.json", "--max-steps", "1").code == 0
    with zipfile.ZipFile("run/_checkpoints/0000001_checkpoint.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name != "run.json"}
    state = load(members["0000001_optimizer.safetensors"])
    prefixed = {f"transformer.{name}" if "." in name else name: value for name, value in state.items()}
    members["0000001_optimizer.safetensors"] = save(prefixed)
    settings = json.loads(members["0000001_config.json"]) | {"statistics": {"state_path": "0000001_loss.json"}}
    del settings["training_loop"]["max_steps"]
    members["0000001_config.json"] = json.dumps(settings).encode()
    with zipfile.ZipFile("old.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    done = train(cli, "--resume", "old.zip", "--output", "new")
    assert done.code == 0 and "of mflux 0.9" in done.words
    assert json.loads(Path("new/log.jsonl").read_text())["step"] == 2


def test_the_adapter_of_a_checkpoint_can_be_written_alone(cli, config):
    assert train(cli, "--config", "train.json").code == 0
    done = train(
        cli, "--export", "run/_checkpoints/0000002_checkpoint.zip", "--set", 'save.export=["diffusers","kohya"]'
    )
    folder = "run/_checkpoints/0000002_checkpoint"
    assert [Path(line).name for line in done.out.splitlines()] == ["adapter.safetensors", "adapter_kohya.safetensors"]
    assert adapter(folder) == adapter()
    assert "lora_unet_single_blocks_0_linear1.alpha" in read_header(Path(folder, "adapter_kohya.safetensors"))


def test_a_disk_that_is_too_small_is_told_before_the_first_update(cli, config):
    change(config, training_loop__num_epochs=10**8)
    done = train(cli, "--config", "train.json")
    assert done.code == 2 and "the checkpoints take" in done.words and "keep_last=2" in done.words
    assert not Path("run/_checkpoints").exists()


def test_a_machine_that_is_too_small_is_told_what_to_change(cli, config):
    change(config, width=16384, height=16384)
    done = train(cli, "--config", "train.json", "--dry-run")
    assert done.code == 2 and "this machine has" in done.words and "`--force`" in done.words


def pictures():
    """Files that are no examples."""
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (64, 64, 3), np.uint8))
    noise.save("whole.png")
    noise.crop((0, 0, 40, 64)).save("small.png")
    noise.resize((128, 64)).save("wide.png")
    Image.new("L", (64, 64)).save("black.png")
    Image.new("L", (32, 32), 255).save("mask32.png")
    noise.save("moving.gif", save_all=True, append_images=[noise.rotate(90)])
    Path("cut.png").write_bytes(Path("whole.png").read_bytes()[:2000])
    Path("text.png").write_text("text")
    Path("empty.txt").write_text(" \n")


@pytest.mark.parametrize(
    ("item", "settings", "words"),
    [
        ({"image": "none.png"}, {}, "there is no file `"),
        ({"image": "text.png"}, {}, "cannot be read as a picture"),
        ({"image": "cut.png"}, {}, "cannot be read as a picture"),
        ({"image": "moving.gif"}, {}, "moves: it has 2 frames"),
        ({"image": "small.png"}, {}, "a picture of 40 x 64 px is too small"),
        ({"prompt": None, "prompt_file": "empty.txt"}, {}, "`empty.txt` is empty"),
        ({"prompt": None, "prompt_file": "none.txt"}, {}, "`examples.images[0].prompt_file`: there is no file `"),
        ({"mask": "mask32.png"}, {"training_loop.loss": {"region": "mask"}}, "the mask is 32 x 32 px"),
        ({"mask": "black.png"}, {"training_loop.loss": {"region": "mask"}}, "the mask is black everywhere"),
        ({"input_image": "wide.png"}, {"kind": "kontext"}, "differ in proportion: 64 x 64 px and 128 x 64 px"),
        ({"input_image": "none.png"}, {"kind": "kontext"}, "`examples.images[0].input_image`: there is no file `"),
        ({"input_image": "whole.png"}, {}, "kind `t2i` uses none; did you mean `kontext`?"),
    ],
)
def test_an_example_that_cannot_be_used_is_told_with_its_place(cli, config, item, settings, words):
    pictures()
    first = {"image": "whole.png", "prompt": "a thing"} | item
    config["examples"]["images"] = [{key: value for key, value in first.items() if value is not None}]
    change(with_settings(config, settings))
    done = train(cli, "--config", "train.json", "--dry-run")
    assert (done.code, done.files) == (2, frozenset())
    assert words in done.words and "problem: `examples.images[0]" in done.words, done.words


def test_what_is_allowed_and_seldom_meant_is_noted(cli, config, oracle_model):
    pictures()
    Path("copy.png").write_bytes(Path("whole.png").read_bytes())
    twins = [{"image": name, "prompt": "a thing"} for name in ("whole.png", "copy.png")]
    change(config, width=70, model=str(oracle_model("schnell")), examples__images=twins)
    done = train(cli, "--config", "train.json", "--dry-run")
    assert done.code == 0
    for words in ("70 x 64 px are floored to 64 x 64", "takes none", "`whole.png` and `copy.png` are the same picture"):
        assert words in done.words


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "there is no config and no checkpoint"),
        (("--config", "train.json", "--resume", "a.zip"), "both a config and a checkpoint are given"),
        (("--config", "none.json"), "there is no file `none.json`"),
        (("--config", "broken.json"), "line 1, column 2"),
        (("--resume", "a.png"), "is no checkpoint"),
        (("--resume", "none.zip"), "there is no file"),
        (("--resume", "latest"), "`latest` of which run?"),
        (("--config", "train.json", "--allow-mismatch"), "there is no checkpoint that could differ"),
        (("--resume", "latest", "--output", "none"), "there is no checkpoint in"),
        (("--export", "none.zip"), "there is no file"),
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
    from mflux.training.config import read_spec

    Path("images").mkdir()
    Path("images/01.png").touch()
    template = json.loads(train(cli, "--init-config").out)
    assert read_spec(template, "template", Path()).training_loop.timestep.mode == "flux_shift"
