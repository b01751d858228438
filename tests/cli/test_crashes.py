"""Killed at any moment, or with a disk that is full: what has its name is whole, and the next run goes on."""

import json
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

CODE = "import sys; sys.argv[0] = sys.argv.pop(1); from mflux.cli.main import named; sys.exit(named())"
KILLS = 6


def start(command, *flags, folder, **options):
    words = [sys.executable, "-c", CODE, command, *map(str, flags)]
    return subprocess.Popen(words, cwd=folder, stdout=-1, stderr=-1, text=True, **options)


def seconds_of(*words, folder):
    started = time.monotonic()
    process = start(*words, folder=folder)
    out, err = process.communicate()
    assert process.returncode == 0, err
    return time.monotonic() - started, out


def small_files(size):
    """A limit on the size of files, which stands for a full disk."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.slow
def test_pictures_that_have_their_names_are_whole_whenever_the_run_is_killed(dev, tmp_path):
    flags = (*dev, "--seed", *range(2, 40), "--batch-size", "3", "--metadata", "--output", "out/{seed}.png")
    (tmp_path / "first").mkdir()
    whole, _ = seconds_of("mflux-generate", *flags, folder=tmp_path / "first")
    chance = random.Random(1)
    for index in range(KILLS):
        folder = tmp_path / str(index)
        folder.mkdir()
        process = start("mflux-generate", *flags, folder=folder)
        time.sleep(chance.uniform(0.2, 1) * whole)
        process.send_signal(signal.SIGKILL)
        out = process.communicate()[0].split()
        found = {str(path.relative_to(folder)) for path in folder.glob("out/[!.]*")}
        assert set(out) <= found
        for name in found:
            if name.endswith(".png"):
                Image.open(folder / name).load()
            else:
                json.loads((folder / name).read_text())


@pytest.mark.slow
def test_a_save_is_whole_or_not_there_and_goes_on_whenever_it_is_killed(tmp_path):
    whole, _ = seconds_of("mflux-save", "--model", "tiny", "--path", "first", folder=tmp_path)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "first").rglob("*.safetensors")}
    chance = random.Random(2)
    for index in range(KILLS):
        flags = ("--model", "tiny", "--path", f"save{index}")
        process = start("mflux-save", *flags, folder=tmp_path)
        time.sleep(chance.uniform(0.2, 1) * whole)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        target = tmp_path / f"save{index}"
        if not target.exists():
            seconds_of("mflux-save", *flags, folder=tmp_path)
        seconds_of("mflux-check", target, folder=tmp_path)
        assert {path.name: path.read_bytes() for path in target.rglob("*.safetensors")} == expected


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 100, 500])
def test_a_full_disk_is_told_and_leaves_no_half_picture(dev, tmp_path, size):
    process = start("mflux-generate", *dev, "--metadata", folder=tmp_path, preexec_fn=small_files(size))
    out, err = process.communicate()
    assert (process.returncode, out) == (1, ""), err
    assert "error: `--output`: `image.png` cannot be written (File too large)" in err and "is the disk full?" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 10_000, 3_000_000])
def test_a_disk_that_fills_while_a_model_is_saved_is_told_and_the_save_goes_on(tmp_path, size):
    flags = ("mflux-save", "--model", "tiny", "--path", "save")
    process = start(*flags, folder=tmp_path, preexec_fn=small_files(size))
    out, err = process.communicate()
    assert (process.returncode, out) == (1, ""), err
    assert "unexpected" not in err and "Traceback" not in err, err
    assert "error: `save.partial` cannot be written (" in err and "it goes on after the last finished shard" in err
    assert not (tmp_path / "save").exists()
    seconds_of(*flags, folder=tmp_path)
    seconds_of("mflux-check", "save", folder=tmp_path)
    assert Path(tmp_path / "save").is_dir() and not list(tmp_path.glob("*.partial"))
