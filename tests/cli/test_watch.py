"""What a run shows while it works, and what stops it before its time."""

import json
import shlex
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux import Config, Flux1
from mflux.cli import watch
from mflux.engine.latents import unpack_latents
from mflux.images.metadata import read_metadata

STEPS = ("--steps", "3", "--image-strength", "0.4")


def events(outcome):
    return [json.loads(line) for line in outcome.err.splitlines()]


def test_progress_for_programs_is_an_object_a_line(cli, dev):
    done = cli(*dev, "--seed", "2", "3", "--batch-size", "2", "--progress", "json")
    steps = [each for each in events(done) if each["event"] == "step"]
    assert [(each["seeds"], each["done"], each["total"]) for each in steps] == [([1, 2], 2, 3), ([3], 3, 3)]
    assert steps[-1]["seconds_left"] == 0 and steps[0]["seconds_left"] > 0
    assert [each["file"] for each in events(done) if each["event"] == "saved"] == done.out.split()
    assert "\r" not in done.err


def test_verbose_says_what_is_loaded_and_how_long_it_takes(cli, dev):
    done = cli(*dev, "--verbose", "--progress", "none")
    assert "`transformer` of `" in done.err and "s a picture" in done.err
    assert "loaded in" not in cli(*dev, "--progress", "none").err


def test_notes_and_warnings_are_objects_for_programs(cli, dev, capsys):
    done = cli(*dev, "--negative-prompt", "snow", "--auto-seeds", "2", "--progress=json")
    notes = [each["note"] for each in events(done) if each["event"] == "note"]
    assert done.code == 0 and any("--auto-seeds is not used" in each for each in notes), done.err
    warnings.warn("strange", stacklevel=1)
    assert json.loads(capsys.readouterr().err) == {"event": "note", "note": "strange"}


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (("--steps", "0"), "`--steps`: 0 is out of range", "give a whole number from 1 to 1000"),
        (("--steps", "x"), "`--steps`: 'x' is not a whole number", "`mflux-generate --help` lists every flag"),
        (("--stpes", "1"), "`--stpes` is not known to `mflux-generate`", "did you mean `--steps` or `--seed`?"),
        (("-C", "no\nne"), "`--config-from-metadata`: there is no file `no\nne`", "give a picture or a .json file"),
    ],
)
def test_an_error_is_an_object_for_programs(cli, flags, error, hint):
    done = cli("--prompt", "x", "--model", "tiny", "--progress", "json", *flags)
    assert (done.code, done.out) == (2, "")
    assert events(done) == [{"event": "error", "error": error, "hint": hint, "exit_code": 2}]


def test_no_progress_is_silence(cli, dev):
    assert cli(*dev, "--progress", "none").err == ""


def test_a_preview_is_replaced_in_each_step_and_never_a_picture(cli, dev, refused):
    two = (*dev[:4], "--steps", "2", *dev[6:])
    assert cli(*two, "--preview", "look.png").files == {"image.png", "look.png"}
    with Image.open("look.png") as image:
        assert image.size == (8, 8)  # four px for each of 2 x 2 cells
    assert cli(*dev, "--preview", "look.png").code == 0
    error, hint = refused(*dev, "--preview", "image.png")
    assert error == "`--preview`: `image.png` exists, and is no preview" and "`--overwrite`" in hint
    assert read_metadata("image.png")["prompt"] == "a red fox"
    assert cli(*dev, "--preview", "image.png", "--overwrite", "--output", "b.png").code == 0


def test_a_preview_resembles_the_picture():
    """Measured: the built-in model's circle correlates with its last preview by 0.97."""
    flux = Flux1.from_name("tiny")
    latents = []
    config = Config(num_inference_steps=4)
    words = "a large red circle on the left, on a blue background"
    image = flux.generate_image(1, words, config, on_step=lambda step: latents.append(step.latents)).image
    (seen,) = flux.preview(latents[-1], flux.plan(1, words, config), flux.colours())
    small = image.resize(seen.size, Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(seen, float).ravel(), np.asarray(small, float).ravel())[0, 1] > 0.9
    assert unpack_latents(latents[-1], image.height, image.width).shape[2:] == seen.size[::-1]


def test_stepwise_pictures_end_in_the_picture_and_a_strip_for_each_seed(cli, dev, files):
    flags = (*dev[:4], "--steps", "3", *dev[6:8], "--seed", "2", "--max-sequence-length", "8", *dev[10:])
    done = cli(*flags, "--image-path", files[0], "--image-strength", "0.4", "--stepwise-image-output-dir", "steps")
    assert done.code == 0, done.err
    names = {f"steps/seed_{seed}_step{step}of3.png" for seed in (1, 2) for step in (2, 3)}
    assert done.files - {"steps", "image_seed_1.png", "image_seed_2.png"} == names | {
        "steps/seed_1_composite.png",
        "steps/seed_2_composite.png",
    }
    last, picture = np.asarray(Image.open("steps/seed_2_step3of3.png")), np.asarray(Image.open("image_seed_2.png"))
    assert np.array_equal(last, picture)
    assert np.array_equal(np.asarray(Image.open("steps/seed_2_composite.png"))[:, 16:], last)


@pytest.mark.parametrize(
    ("flag", "value", "problem", "hint"),
    [
        ("--progress", "dots", "'dots' is unknown", "choose one of `bar`, `json`, `none`"),
        ("--preview", "look", "`look` has no ending", "use one of .png, .jpg, .jpeg, .webp"),
        ("--stepwise-image-output-dir", "taken", "`taken` is no folder", "give a folder"),
        ("-B", "0", "0 is out of range", "give a whole number from 1 to 99"),
        ("-B", "100", "100 is out of range", "give a whole number from 1 to 99"),
        ("-B", "low", "'low' is not a whole number", "`mflux-generate --help` lists every flag"),
    ],
)
def test_what_cannot_be_meant_is_refused(refused, flag, value, problem, hint):
    Path("taken").touch()
    long = "--battery-percentage-stop-limit" if flag == "-B" else flag
    assert refused("--prompt", "x", "--model", "no-such-model", flag, value) == [f"`{long}`: {problem}", hint]


def battery(folder: Path, name: str, **told: str) -> None:
    (folder / name).mkdir(parents=True)
    for key, value in told.items():
        (folder / name / key).write_text(value + "\n")


def test_only_a_battery_that_runs_this_machine_counts(tmp_path):
    assert watch.discharging(tmp_path / "none") == []
    battery(tmp_path, "AC", type="Mains", online="0")
    battery(tmp_path, "hid-mouse", type="Battery", scope="Device", status="Discharging", capacity="2")
    battery(tmp_path, "BAT1", type="Battery", status="Charging", capacity="3")
    assert watch.discharging(tmp_path) == []
    battery(tmp_path, "BAT0", type="Battery", status="Discharging", capacity="41")
    assert watch.discharging(tmp_path) == ["41"]


@pytest.mark.parametrize(
    ("told", "percentage"),
    [
        ("Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t87%; discharging; 3:12 remaining", 87),
        ("Now drawing from 'AC Power'\n -InternalBattery-0 (id=1)\t4%; charging; 3:12 remaining", None),
        ("Now drawing from 'AC Power'\n", None),
    ],
)
def test_a_mac_s_battery_counts_while_it_is_drawn_from(told, percentage):
    assert watch.read_pmset(told) == percentage


@pytest.mark.skipif(watch.sys.platform != "linux", reason="Linux's /sys")
def test_a_battery_that_runs_low_stops_the_run_and_keeps_what_is_finished(cli, dev, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "POWER_SUPPLIES", tmp_path / "power")
    monkeypatch.setattr(watch, "BATTERY_EVERY", 0)
    battery(tmp_path / "power", "BAT0", type="Battery", status="Discharging", capacity="30")
    assert cli(*dev, "-B", "29").code == 0
    done = cli(*dev, "--seed", "2", "-B", "30", "--output", "a.png")
    assert (done.code, done.out, done.files) == (3, "", frozenset())
    error, _, hint = done.words.split("\n")
    kept = "finished pictures are kept, 2 of 2 seeds are left"
    assert error == f"error: the battery is down to 30 %, and the limit is 30 %; {kept}"
    assert hint.startswith("hint: go on with `mflux-generate ") and hint.endswith("`")
    words = shlex.split(hint.partition("`")[2][:-1])
    assert words[words.index("--seed") + 1 :][:2] == ["1", "2"] and "a_seed_{seed}.png" in words
    (tmp_path / "power" / "BAT0" / "status").write_text("Charging")
    assert cli(*words[1:]).out.split() == ["a_seed_1.png", "a_seed_2.png"]


@pytest.mark.skipif(watch.sys.platform != "linux", reason="Linux's /sys")
def test_a_run_that_goes_on_goes_on_counting(cli, dev, tmp_path, monkeypatch):
    """Stopped after each picture: no number comes twice, and --overwrite replaces none of the finished pictures."""
    monkeypatch.setattr(watch, "POWER_SUPPLIES", tmp_path / "power")
    monkeypatch.setattr(watch, "BATTERY_EVERY", 0)
    battery(tmp_path / "power", "BAT0", type="Battery", capacity="3")
    status, say = tmp_path / "power" / "BAT0" / "status", watch.Watch.say

    def say_and_unplug(self, path):
        say(self, path)
        status.write_text("Discharging")

    monkeypatch.setattr(watch.Watch, "say", say_and_unplug)
    flags, written = (
        [*dev, "--seed", "5", "6", "--batch-size", "1", "--overwrite", "--output", "{index}_x{index}.png"],
        [],
    )
    while flags:
        status.write_text("Charging")
        done = cli(*flags)
        written += done.out.split()
        flags = shlex.split(done.words.partition("go on with `mflux-generate")[2].rstrip("`"))
    assert written == ["1_x1.png", "2_x2.png", "3_x3.png"]
    assert [read_metadata(name)["seed"] for name in written] == [1, 5, 6]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_python_drops_is_not_lost():
    class Dropped:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    with watch.Interrupts() as interrupts:
        interrupts.check()
        Dropped()  # an exception in a destructor is only printed
        with pytest.raises(KeyboardInterrupt):
            interrupts.check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
