"""Several processes draw more than one could: each its seeds or lines, or all of them one picture."""

import numpy as np
import pytest
import together
from PIL import Image

from mflux.cli.commands import BY_NAME
from mflux.cli.main import main

DRAWING = ("--model", "tiny", "--prompt", "a red circle", "--steps", 2, "--progress", "none")


def drawn(folder, *flags, ranks=2, command="mflux-generate"):
    """What each process printed; all of them have to end well."""
    processes = together.start(folder, ranks, command, *flags)
    told = together.finished(processes)
    assert [process.returncode for process in processes] == [0] * ranks, told
    return [out.split() for out, _ in told]


def refusals(folder, *flags, ranks=2, command="mflux-generate"):
    processes = together.start(folder, ranks, command, *flags)
    told = together.finished(processes)
    assert [process.returncode for process in processes] == [2] * ranks, told
    return [err for _, err in told]


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def alone(folder, *flags):
    assert main(BY_NAME["mflux-generate"], [*map(str, DRAWING), *map(str, flags)]) == 0


@pytest.mark.parametrize("flags", [(), ("--quantize", 8), ("--true-cfg", 2, "--negative-prompt", "blue")])
def test_split_over_two_processes_a_picture_is_the_same(tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    told = drawn(tmp_path, *DRAWING, "--seed", 3, "--split-image", "--output", "split.png", *flags)
    assert told == [["split.png"], []], "the first one writes"
    alone(tmp_path, "--seed", 3, "--output", "whole.png", *flags)
    assert np.abs(pixels("split.png") - pixels("whole.png")).max() <= 1


def test_the_seeds_are_spread_and_named_as_by_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = drawn(tmp_path, *DRAWING, "--seed", 7, 8, 9, "--output", "{index}.png")
    assert told == [["1.png", "3.png"], ["2.png"]]
    alone(tmp_path, "--seed", 8, "--output", "other.png")
    assert np.array_equal(pixels("2.png"), pixels("other.png"))


def test_random_seeds_are_the_same_for_all(tmp_path):
    first, second = drawn(tmp_path, *DRAWING, "--auto-seeds", 2, "--output", "{index}_{seed}.png")
    assert [name.split("_")[0] for name in (*first, *second)] == ["1", "2"]


def test_lines_are_spread(tmp_path):
    lines = [f'{{"prompt": "a star", "seed": {number}, "output": "{number}.png"}}' for number in range(3)]
    (tmp_path / "jobs").write_text("\n".join([*lines, '{"prompt": "a ring", "output": "without.png"}']))
    told = drawn(tmp_path, *DRAWING[:2], "--steps", 1, "--progress", "none", "--jobs", "jobs")
    assert told == [["0.png", "2.png"], ["1.png", "without.png"]]


def test_a_process_without_a_seed_says_so(tmp_path):
    processes = together.start(tmp_path, 2, "mflux-generate", *DRAWING, "--seed", 1)
    (out, _), (nothing, err) = together.finished(processes)
    assert out.split() == ["image.png"] and nothing == "" and "no seed for this process" in err


@pytest.mark.parametrize(
    ("ranks", "command", "flags", "error"),
    [
        (3, "mflux-generate", (), "4 heads cannot be shared by 3 processes"),
        (4, "mflux-generate", ("--quantize", 8), "32 channels for each of 4 processes are no whole groups of 64"),
        (2, "mflux-concept", ("--concept", "circle"), "Concepts looks at all heads"),
    ],
)
def test_what_cannot_be_split_is_refused(tmp_path, ranks, command, flags, error):
    for told in refusals(tmp_path, *DRAWING, "--split-image", *flags, ranks=ranks, command=command):
        assert error in told


def test_one_process_has_nothing_to_share(refused):
    assert "there is one process" in refused("--model", "tiny", "--prompt", "x", "--split-image")[0]
