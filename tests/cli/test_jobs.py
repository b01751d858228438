"""Many requests in one run: lines of a file or of stdin."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux.cli import jobs, watch
from mflux.images.metadata import read_metadata


@pytest.fixture
def lines(cli, dev, monkeypatch):
    """Run lines of stdin with the flags of the quickest picture, without its prompt and seed."""

    def run(*texts, flags=()):
        raw = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in texts).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
        return cli(*dev[:2], *dev[4:6], *dev[8:], *flags, "--jobs", "-")

    return run


def test_each_line_draws_what_its_flags_draw_alone(cli, lines, dev, files):
    told = {"prompt": "a red fox", "seed": 1, "output": "one.png"}
    more = {"prompt": "snow", "seed": [2, 3], "output": "{seed}.webp", "image_path": str(files[0]), "metadata": True}
    done = lines(told, "", more | {"image_strength": 0.0}, "a plain prompt", flags=("--seed", "9"))
    assert done.code == 0 and done.out.split() == ["one.png", "2.webp", "2.json", "3.webp", "3.json", "image.png"]
    assert (read_metadata("image.png")["prompt"], read_metadata("image.png")["seed"]) == ("a plain prompt", 9)
    alone = cli(*dev, "--output", "alone.png").out.strip()
    assert np.array_equal(np.asarray(Image.open("one.png")), np.asarray(Image.open(alone)))


def test_metadata_of_pictures_are_jobs(cli, lines, dev):
    cli(*dev, "--output", "a.png", "--guidance", "2", "--metadata")
    done = lines(json.loads(Path("a.json").read_text()) | {"output": "x.png"}, flags=("--output", "b.png"))
    assert done.out == "b.png\n"
    assert read_metadata("b.png")["request"] == read_metadata("a.png")["request"]


def test_a_line_that_cannot_be_drawn_is_told_and_left_out(lines):
    done = lines("first", {"prompt": "x", "steps": 0}, "{", {"prompt": "x", "image_path": "none.png"}, {"seed": 1})
    assert (done.code, done.out) == (2, "image.png\n")
    told = [line for line in done.words.split("\n") if line.startswith("line ")]
    assert told[0] == "line 2: `--steps`: 0 is out of range; give a whole number from 1 to 1000"
    assert told[1].startswith("line 3: it is no JSON (") and told[1].endswith('{"prompt": "a fox", "seed": 3}')
    assert told[2] == "line 4: `--image-path`: there is no file `none.png`; check the path"
    assert told[3].startswith("line 5: there is no prompt; ")
    assert "error: 4 of 5 lines were not drawn" in done.words


def test_a_line_s_error_is_an_object_for_programs(lines):
    done = lines("first", {"prompt": "x", "mask_path": "none.png"}, flags=("--progress", "json"))
    told = [json.loads(line) for line in done.err.splitlines()]
    hint = "give `--image-path` too"
    wrong = {"error": "`--mask-path`: there is no image for it", "hint": hint, "exit_code": 2}
    assert (done.code, done.out) == (2, "image.png\n")
    assert [each for each in told if each["event"] == "error"] == [
        {"event": "error", "line": 2, **wrong},
        {
            "event": "error",
            "error": "1 of 2 lines were not drawn",
            "hint": "mend the lines that are named above",
            "exit_code": 2,
        },
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"seed": "x"}, '`seed` is "x", which `--seed` does not take'),
        ({"metadata": 1}, "`metadata` is 1, which is neither true nor false"),
        ({"prompt": "-"}, "a line cannot name other lines, or stdin"),
        ({"jobs": "more.txt", "prompt": "x"}, "a line cannot name other lines, or stdin"),
        ({}, "it holds nothing to draw by"),
        ({"request": {"seeds": [1], "conditions": [{"condition": "Fill"}]}}, "it was drawn with Fill, which "),
        ("-", "a line cannot name other lines, or stdin"),
    ],
)
def test_a_line_that_means_nothing_is_told(lines, line, problem):
    done = lines(line)
    assert (done.code, done.out, done.files) == (2, "", frozenset()) and f"line 1: {problem}" in done.words


def test_unknown_keys_of_a_line_warn(lines):
    done = lines({"prompt": "x", "stpes": 3})
    assert done.code == 0 and "`line 1`: the key `stpes` is unknown to `mflux-generate`" in done.words


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "`--jobs`: there are no lines to draw"),
        (b"\n \n", "`--jobs`: there are no lines to draw"),
        (b"\x89PNG", "`--jobs`: line 1 of `jobs.txt` is no UTF-8 text"),
        (b"a\0b", "`--jobs`: line 1 of `jobs.txt` is no UTF-8 text"),
        (b"x" * 1_000_001, "`--jobs`: line 1 of `jobs.txt` is longer than 1000000 bytes"),
    ],
)
def test_a_file_without_lines_is_refused(refused, dev, raw, error):
    Path("jobs.txt").write_bytes(raw)
    said = refused(*dev[:2], "--jobs", "jobs.txt")
    assert said == [error, "give a prompt or a JSON object a line"]


def test_a_file_that_cannot_be_read_is_refused(refused, dev):
    assert refused(*dev[:2], "--jobs", "none") == ["`--jobs`: there is no file `none`", "check the path"]
    assert refused(*dev[:2], "--jobs", "/")[0].startswith("`--jobs`: `/` cannot be read")


@pytest.mark.parametrize("flags", [("--prompt", "x"), ("--prompt-file", "x"), ("-C", "x.png")])
def test_what_belongs_to_one_run_is_refused(refused, dev, flags):
    assert "the lines of `--jobs` say what to draw" in refused(*dev[:2], *flags, "--jobs", "-")[0]


def test_a_batch_that_is_stopped_says_where_the_rest_begins(cli, dev, monkeypatch, tmp_path):
    """The battery runs low between the first picture and the second."""
    supply = tmp_path / "power" / "BAT0"
    supply.mkdir(parents=True)
    for name, value in {"type": "Battery", "status": "Charging", "capacity": "4"}.items():
        (supply / name).write_text(value)
    monkeypatch.setattr(watch, "POWER_SUPPLIES", supply.parent)
    monkeypatch.setattr(watch, "BATTERY_EVERY", 0)
    say = watch.Watch.say

    def say_and_unplug(self, path):
        say(self, path)
        (supply / "status").write_text("Discharging")

    monkeypatch.setattr(watch.Watch, "say", say_and_unplug)
    Path("jobs.txt").write_text("a fox\n\na hare\na crow\n")
    done = cli(*dev[:2], *dev[4:], "--jobs", "jobs.txt")
    assert (done.code, done.out) == (3, "image.png\n")
    assert "error: line 3: the battery is down to 4 %, and the limit is 5 %" in done.words
    assert "hint: the rest begins at line 3 of `jobs.txt`; go on with `mflux-generate " in done.words


def test_models_stay_open_while_they_fit(oracle_model, monkeypatch):
    models = jobs.Models()
    dev, fill = str(oracle_model("dev")), str(oracle_model("fill"))
    first = models(dev)
    assert models(fill) is not first and models(dev) is first and models(dev, quantize=8) is not first
    monkeypatch.setattr(jobs, "room", lambda: 0)
    assert models(fill) is not first and models(dev) is not first


def test_a_flag_that_may_be_repeated_takes_one_value_or_several(cli, oracle_model, files, tmp_path):
    told = [{"prompt": "x", "edit_prompt": "red", "output": "a.png"}, {"prompt": "x", "edit_prompt": ["red", "2"]}]
    Path("jobs").write_text("\n".join(map(json.dumps, told)))
    small = ("--steps", "1", "--height", "16", "--width", "16", "--max-sequence-length", "8", "--jobs", "jobs")
    done = cli("--model", oracle_model("dev"), *small, command="mflux-generate-fluxspace")
    assert done.out.split() == ["a.png", "image.png"], done.err
    edits = [read_metadata(name)["request"]["conditions"][0]["edits"] for name in ("a.png", "image.png")]
    assert edits == [[["red", None, None, ""]], [["red", 2.0, None, ""]]]
    line = {"prompt": "x", "controlnet_image_path": str(files[0]), "output": "c.png"}
    Path("jobs").write_text(json.dumps(line))
    net = ("--controlnet-model", oracle_model("controlnet"))
    done = cli("--model", oracle_model("dev"), *net, *small, command="mflux-generate-controlnet")
    assert done.out == "c.png\n", done.err
