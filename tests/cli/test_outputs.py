"""What commands write and say when all is well, and when they are stopped."""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import piexif
import pytest
from PIL import Image

from mflux.images.metadata import read_metadata

GENERATE = "import sys; sys.argv[0] = 'mflux-generate'; from mflux.cli.main import named; sys.exit(named())"


@pytest.fixture
def stdin(monkeypatch):
    def feed(raw: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))

    return feed


def seeds(dev, *more):
    """The flags of the quickest picture with other seeds."""
    at = dev.index("--seed")
    return (*dev[:at], *dev[at + 2 :], "--seed", *map(str, more))


def start(dev, folder, *more, **options):
    words = [sys.executable, "-c", GENERATE, *dev, *map(str, more)]
    return subprocess.Popen(words, cwd=folder, stdout=-1, stderr=-1, text=True, **options)


def test_one_picture_is_one_line(cli, dev):
    outcome = cli(*dev)
    assert (outcome.code, outcome.out, outcome.files) == (0, "image.png\n", {"image.png"})


def test_several_seeds_give_several_names(cli, dev):
    outcome = cli(*seeds(dev, 3, 2**64 - 1), "--output", "fox.png")
    assert outcome.out.split() == ["fox_seed_3.png", f"fox_seed_{2**64 - 1}.png"]
    assert outcome.files == set(outcome.out.split())
    assert [read_metadata(name)["seed"] for name in outcome.out.split()] == [3, 2**64 - 1]


def test_seeds_add_up_over_repeated_flags(cli, dev):
    assert cli(*dev, "--seed", "2", "3").out.split() == ["image_seed_1.png", "image_seed_2.png", "image_seed_3.png"]


def test_a_placeholder_takes_the_seed(cli, dev):
    assert cli(*dev, "--output", "deep/{seed}/fox-{seed}.jpg").out == "deep/1/fox-1.jpg\n"


def test_auto_seeds_draw_so_many_different_pictures(cli, dev):
    outcome = cli(*seeds(dev)[:-1], "--auto-seeds", "3")
    drawn = [read_metadata(name)["seed"] for name in outcome.out.split()]
    assert len(set(drawn)) == 3


def test_the_same_seed_twice_overwrites_nothing(cli, dev):
    assert cli(*seeds(dev, 5, 5)).out.split() == ["image_seed_5.png", "image_seed_5_1.png"]


def test_nothing_is_ever_overwritten(cli, dev):
    Path("image.png").write_bytes(b"mine")
    assert [cli(*dev).out for _ in range(2)] == ["image_1.png\n", "image_2.png\n"]
    assert Path("image.png").read_bytes() == b"mine"


def test_batches_of_any_size_draw_the_same(cli, dev):
    names = cli(*seeds(dev, 1, 2, 3), "--output", "together.png").out.split()
    alone = cli(*seeds(dev, 1, 2, 3), "--batch-size", "1", "--output", "alone.png").out.split()
    for one, other in zip(names, alone, strict=True):
        assert np.abs(np.asarray(Image.open(one), int) - np.asarray(Image.open(other), int)).max() <= 1


@pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_the_ending_chooses_the_format(cli, dev, ending, kind):
    name = cli(*dev, "--output", f"fox.{ending}").out.strip()
    with Image.open(name) as image:
        assert (image.format, image.size) == (kind, (16, 16))
    assert read_metadata(name)["prompt"] == "a red fox"


def test_the_metadata_says_what_was_asked_for(cli, dev):
    words = ["ein Füchslein 🦊" if word == "a red fox" else word for word in dev]
    name = cli(*words, "--guidance", "2.5", "--noise", "torch", "--quantize", "8").out.strip()
    comment = piexif.load(Image.open(name).info["exif"])["Exif"][piexif.ExifIFD.UserComment]
    assert comment.startswith(b"ASCII\0\0\0") and rb"F\u00fcchslein \ud83e\udd8a" in comment
    value = json.loads(comment[8:])
    wanted = {
        "prompt": "ein Füchslein 🦊",
        "seed": 1,
        "steps": 1,
        "guidance": 2.5,
        "height": 16,
        "width": 16,
        "quantize": 8,
    }
    assert wanted.items() <= value.items()
    assert {"mflux_version", "model", "generation_time_seconds", "created_at", "negative_prompt"} <= set(value)
    assert value["request"]["seeds"] == [1] and value["request"]["config"]["noise"] == "torch"


def test_the_side_file_is_the_same_metadata_and_is_named_on_stdout(cli, dev):
    outcome = cli(*dev, "--metadata", "--output", "fox.png")
    assert outcome.out.split() == ["fox.png", "fox.json"] and outcome.files == {"fox.png", "fox.json"}
    assert json.loads(Path("fox.json").read_text()) == read_metadata("fox.png")


def test_no_metadata_leaves_none(cli, dev):
    assert cli(*dev, "--no-metadata").files == {"image.png"}
    assert read_metadata("image.png") is None


def test_a_prompt_from_stdin_is_used_for_every_seed(cli, dev, stdin):
    stdin("eine Füchsin\nim Schnee\n".encode())
    words = ["-" if word == "a red fox" else word for word in seeds(dev, 1, 2)]
    assert [read_metadata(name)["prompt"] for name in cli(*words).out.split()] == ["eine Füchsin\nim Schnee"] * 2


@pytest.mark.parametrize("raw", [b"", b"\n", b"\xff", b"a\0"])
def test_a_stdin_without_a_prompt_is_refused(refused, dev, stdin, raw):
    stdin(raw)
    error, _ = refused(*["-" if word == "a red fox" else word for word in dev])
    assert error.startswith("`--prompt`: stdin is ")


def test_a_closed_stdin_is_refused(refused, dev, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    refused(*["-" if word == "a red fox" else word for word in dev])


def test_a_prompt_file_is_read_again_before_each_picture(dev, tmp_path):
    words = [word for word in seeds(dev, *range(30)) if word not in ("--prompt", "a red fox")]
    file = tmp_path / "prompt.txt"
    file.write_text("first")
    process = start(words, tmp_path, "--prompt-file", file)
    assert process.stdout.readline() == "image_seed_0.png\n"
    (tmp_path / "next.txt").write_text("second")
    (tmp_path / "next.txt").replace(file)  # at once: an empty file between the two would be refused
    process.communicate()
    drawn = [read_metadata(tmp_path / f"image_seed_{seed}.png")["prompt"] for seed in range(30)]
    assert (drawn[0], drawn[-1]) == ("first", "second")


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="needs /dev/fd")
def test_a_prompt_file_that_can_be_read_only_once_draws_one_picture(dev, tmp_path):
    words = [word for word in dev if word not in ("--prompt", "a red fox")]
    out, into = os.pipe()
    os.write(into, b"a fox from a pipe")
    os.close(into)
    process = start(words, tmp_path, "--prompt-file", f"/dev/fd/{out}", pass_fds=[out])
    assert process.communicate()[0] == "image.png\n"
    assert read_metadata(tmp_path / "image.png")["prompt"] == "a fox from a pipe"


def test_a_prompt_of_undecodable_bytes_draws(cli, dev):
    words = ["\udcff\udcfe" if word == "a red fox" else word for word in dev]
    outcome = cli(*words, "--metadata")
    assert outcome.code == 0 and read_metadata("image.png")["prompt"] == "\udcff\udcfe"


def test_ctrl_c_gives_130_and_keeps_the_finished_pictures(dev, tmp_path):
    process = start(seeds(dev, *range(2000)), tmp_path, "--batch-size", "1")
    assert process.stdout.readline() == "image_seed_0.png\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err and "error: interrupted; finished pictures are kept" in err
    left = shlex.split(err.rpartition("go on with `")[2].rpartition("`")[0])
    seed, output = left.index("--seed") + 1, left.index("--output") + 1
    assert left[seed : seed + 2] == [str(len(out.split()) + 1), str(len(out.split()) + 2)]
    assert left[output] == "image_seed_{seed}.png"
    named = {"image_seed_0.png", *out.split()}
    assert {path.name for path in tmp_path.glob("*")} - {"work"} >= named
    assert not list(tmp_path.glob(".*"))
    for name in named:
        Image.open(tmp_path / name).load()


def test_a_reader_that_goes_away_ends_the_command_quietly(dev, tmp_path):
    process = start(seeds(dev, *range(50)), tmp_path, "--batch-size", "1")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(120) != 0 and "Traceback" not in err and "unexpected" not in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_stdout_that_takes_nothing_is_said_plainly(dev, tmp_path):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", GENERATE, *dev]
        done = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=-1, text=True)
    assert done.returncode == 1 and "unexpected" not in done.stderr and "error: " in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(("more", "code"), [((), 0), (("--progress", "json"), 0), (("--guidance", "101"), 2)])
def test_a_stderr_that_takes_nothing_loses_no_picture(dev, tmp_path, more, code):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-c", GENERATE, *dev, *more]
        done = subprocess.run(words, cwd=tmp_path, stdout=-1, stderr=full, text=True)
    assert (done.returncode, done.stdout) == (code, "" if code else "image.png\n")


@pytest.mark.parametrize("stream", ["1", "2"])
def test_a_closed_stream_is_no_reason_to_fail(dev, tmp_path, stream):
    command = f'"$0" -c "$1" "${{@:2}}" {stream}>&-'
    done = subprocess.run(["bash", "-c", command, sys.executable, GENERATE, *dev], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done
    assert (tmp_path / "image.png").is_file()


def test_an_ascii_terminal_is_no_reason_to_fail(dev, tmp_path):
    process = start(dev, tmp_path, "--output", "Füchslein.png", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    _, err = process.communicate()
    assert process.returncode == 0, err


def test_flags_that_a_run_does_not_use_are_noted(cli, dev, tmp_path):
    (tmp_path / "prompt.txt").write_text("fox")
    file = [word for word in dev if word not in ("--prompt", "a red fox")]
    for flag, words in {
        "--auto-seeds": (*dev, "--auto-seeds", "3"),
        "--bake-lora": (*dev, "--bake-lora"),
        "--allow-partial-lora": (*dev, "--allow-partial-lora"),
        "--vae-tiling-split": (*dev, "--vae-tiling", "--vae-tiling-split", "vertical"),
        "--batch-size": (*file, "--prompt-file", tmp_path / "prompt.txt", "--batch-size", "2"),
        "negative prompt": (*dev, "--negative-prompt", "snow", "--true-cfg", "1"),
    }.items():
        assert flag in cli(*words).words, flag


def test_help_answers_fast():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", GENERATE, "--help"], capture_output=True, check=True)
    assert time.perf_counter() - started < 3  # measured: 0.15 s


def test_names_tell_seed_number_and_prompt(cli, dev):
    words = (*dev[:2], "--steps", "1", "--max-sequence-length", "8", "--height", "16", "--width", "16")
    done = cli(*words, "--seed", "7", "8", "--prompt", "a fox/ “größer”: 狐", "--output", "{index}_{seed}_{prompt}.png")
    assert done.code == 0 and done.out.split() == ["1_7_a-fox-größer-狐.png", "2_8_a-fox-größer-狐.png"]
    assert cli(*words, "--seed", "1", "--prompt", "?!", "--output", "{prompt}.png").out == "picture.png\n"
    long = cli(*words, "--seed", "1", "--prompt", "word " * 50, "--output", "{prompt}.png").out
    assert len(long) < 70 and long.startswith("word-word")


def test_a_file_is_replaced_only_on_request(cli, dev):
    Path("image.png").write_text("mine")
    assert cli(*dev).out == "image_1.png\n" and Path("image.png").read_text() == "mine"
    done = cli(*dev, "--overwrite", "--metadata")
    assert done.out.split() == ["image.png", "image.json"] and Path("image.png").read_bytes()[1:4] == b"PNG"
    assert cli(*dev, "--overwrite", "--metadata").out.split() == ["image.png", "image.json"]


def test_a_finished_picture_is_kept_where_its_own_name_cannot_be_written(cli, dev, monkeypatch):
    """The folder becomes a file while the pictures are drawn."""
    from mflux.engine.flux import Flux1

    decode = Flux1._decode

    def decode_and_block(self, plan, latents):
        if not Path("out").exists():
            Path("out").write_text("in the way")
        return decode(self, plan, latents)

    monkeypatch.setattr(Flux1, "_decode", decode_and_block)
    done = cli(*dev, "--seed", "2", "--output", "out/{seed}.png")
    assert (done.code, done.out) == (1, "mflux_seed_1.png\nmflux_seed_2.png\n")
    assert "cannot be written" in done.words and "; the picture is kept as `mflux_seed_1.png`" in done.words
    assert read_metadata("mflux_seed_2.png")["seed"] == 2


def test_spellings_of_mflux_0_24_mean_the_same(cli, dev, files):
    long = (*dev[:10], "--image-path", files[0], "--image-strength", "0", "--height", "96", "--width", "32")
    short = (*dev[:10], "--image", files[0], "0", "--height", "2x", "--width", "0.5x")
    names = [cli(*flags, "--scheduler", "linear", "--mlx-cache-limit-gb", "1").out.strip() for flags in (long, short)]
    one, other = (read_metadata(name)["request"] for name in names)
    assert one == other and one["config"]["height"] == 96
    auto = cli(*dev[:10], "--image", files[0], "0", "--height", "auto", "--width", "auto").out.strip()
    assert Image.open(auto).size == Image.open(files[0]).size
    again = cli("-C", names[0], "--image", files[1], "0", "--output", "again.png")
    assert read_metadata(again.out.strip())["image_path"] == str(files[1]), again.err
