"""Flags and texts that cannot be meant: exact text, exit code 2, nothing written, and no model looked at."""

import os
import sys

import pytest

HELP = "`mflux-generate --help` lists every flag"
WORDS = ("--prompt", "x", "--model", "no-such-model")  # an error about the model would come later
SEEDS = "give a whole number from 0 to 18446744073709551615"
SIDES = "give a whole number from 16 to 16384"
STEPS = "give a whole number from 1 to 1000"
GUIDANCE = "give a number from 0 to 100"
TRUE_CFG = "give a number from 1 to 20"
ENDINGS = "use one of .png, .jpg, .jpeg, .webp"
PROMPTS = "give one of `--prompt TEXT`, `--prompt -` (stdin) and `--prompt-file FILE`"


@pytest.mark.parametrize(
    ("flag", "value", "problem", "hint"),
    [
        ("--seed", "-1", "-1 is out of range", SEEDS),
        ("--seed", "18446744073709551616", "18446744073709551616 is out of range", SEEDS),
        ("--seed", "1.5", "'1.5' is not a whole number", HELP),
        ("--seed", "nan", "'nan' is not a whole number", HELP),
        ("--seed", "", "'' is not a whole number", HELP),
        ("--height", "15", "15 is out of range", SIDES),
        ("--width", "0", "0 is out of range", SIDES),
        ("--width", "-64", "-64 is out of range", SIDES),
        ("--height", "16385", "16385 is out of range", SIDES),
        ("--height", "tall", "'tall' is not a whole number", HELP),
        ("--width", "inf", "'inf' is not a whole number", HELP),
        ("--width", "64.0", "'64.0' is not a whole number", HELP),
        ("--steps", "0", "0 is out of range", STEPS),
        ("--steps", "-4", "-4 is out of range", STEPS),
        ("--steps", "1001", "1001 is out of range", STEPS),
        ("--guidance", "-0.5", "-0.5 is out of range", GUIDANCE),
        ("--guidance", "100.5", "100.5 is out of range", GUIDANCE),
        ("--guidance", "nan", "nan is not a number from 0 to 100", GUIDANCE),
        ("--guidance", "inf", "inf is not a number from 0 to 100", GUIDANCE),
        ("--guidance", "1e400", "inf is not a number from 0 to 100", GUIDANCE),
        ("--guidance", "strong", "'strong' is not a number", HELP),
        ("--true-cfg", "0.9", "0.9 is out of range", TRUE_CFG),
        ("--true-cfg", "21", "21.0 is out of range", TRUE_CFG),
        ("--true-cfg", "nan", "nan is not a number from 1 to 20", TRUE_CFG),
        ("--max-sequence-length", "0", "0 is out of range", "give a whole number from 1 to 512"),
        ("--max-sequence-length", "513", "513 is out of range", "give a whole number from 1 to 512"),
        ("--batch-size", "0", "0 is out of range", "give a whole number from 1 to 1000"),
        ("--auto-seeds", "0", "0 is out of range", "give a whole number from 1 to 1000000"),
        ("--quantize", "7", "7 is unknown", "choose one of `3`, `4`, `5`, `6`, `8`"),
        ("--height", "2x", "there is no picture whose side to take", "give px"),
        ("--width", "auto", "there is no picture whose side to take", "give px"),
        ("--width", "0x", "'0x' is not a whole number", HELP),
        ("--width", "x", "'' is not a number", HELP),
        ("--scheduler", "euler", "'euler' is unknown", "choose one of `linear`"),
        ("--mlx-cache-limit-gb", "-1", "-1.0 is out of range", "give a number from 0 to 1024"),
        ("--vae-tile-size", "127", "127 is out of range", "give a whole number from 128 to 16384"),
        ("--vae-tile-size", "136", "136 is not a multiple of 16", "give 128"),
        ("--vae-tiling-split", "diagonal", "'diagonal' is unknown", "choose one of `horizontal`, `vertical`"),
        ("--noise", "numpy", "'numpy' is unknown", "choose one of `mflux`, `torch`"),
        ("--output", "fox", "`fox` has no ending", ENDINGS),
        ("--output", "fox.gif", "`fox.gif` has the ending `.gif`", ENDINGS),
        ("--output", ".png", "`.png` has no ending", ENDINGS),
        ("--output", "/dev/full", "`/dev/full` has no ending", ENDINGS),
        ("--output", "..", "`..` is a folder", "give a file name, for example `image.png`"),
        ("--output", "fox.png/", "`fox.png/` is a folder", "give a file name, for example `image.png`"),
        (
            "--output",
            "{name}.png",
            "`{name}.png` has an unknown placeholder, `{name}`",
            "known: `{seed}`, `{index}`, `{prompt}`",
        ),
        ("--prompt-file", "/no/such.txt", "there is no file `/no/such.txt`", "check the path"),
        ("--prompt-file", "/tmp", "`/tmp` cannot be read (Is a directory)", "give a text file"),
        ("--mask-path", "mask.png", "there is no image for it", "give `--image-path` too"),
        ("--image-strength", "0.5", "there is no image for it", "give `--image-path` too"),
    ],
)
def test_a_value_that_cannot_be_meant_is_refused_with_its_range(refused, flag, value, problem, hint):
    words = ("--model", "no-such-model") if flag == "--prompt-file" else WORDS
    assert refused(*words, flag, value) == [f"`{flag}`: {problem}", hint]


@pytest.mark.parametrize("flag", ["--seed", "--steps", "--height", "--width", "--batch-size", "--auto-seeds"])
@pytest.mark.parametrize("digits", [400, 5000])
def test_numbers_beyond_all_bounds_are_refused_in_a_short_line(refused, flag, digits):
    error, _ = refused(*WORDS, flag, "9" * digits)
    assert error.startswith(f"`{flag}`: ")
    assert len(error) < 600


@pytest.mark.parametrize(
    ("content", "problem", "hint"),
    [
        (b"", "is empty", "give a text with the prompt"),
        (b" \n\t\r\n", "is empty", "give a text with the prompt"),
        (b"\xef\xbb\xbf", "is empty", "give a text with the prompt"),
        (b"\x89PNG\r\n\x1a\n", "is not UTF-8 text", "give a text file"),
        (b"fox\0tail", "is binary", "give a text with the prompt"),
        (b"x" * 1_000_001, "is longer than 1000000 bytes", "give a text file"),
    ],
)
def test_a_prompt_file_that_holds_no_prompt_is_refused(refused, tmp_path, content, problem, hint):
    path = tmp_path / "prompt.txt"
    path.write_bytes(content)
    flags = ("--prompt-file", path, "--model", "no-such-model")
    assert refused(*flags) == [f"`--prompt-file`: `{path}` {problem}", hint]


def test_there_has_to_be_one_prompt_and_no_more(refused, tmp_path):
    (tmp_path / "prompt.txt").write_text("fox")
    both = refused("--prompt", "x", "--prompt-file", tmp_path / "prompt.txt", "--model", "no-such-model")
    assert both == ["both `--prompt` and `--prompt-file` are given", PROMPTS]
    assert refused("--model", "no-such-model") == ["there is no prompt", PROMPTS]


@pytest.mark.parametrize(
    ("flags", "error", "hint"),
    [
        (["--hight", "64"], "`--hight` is not known to `mflux-generate`", "did you mean `--height`?"),
        (["--zzzzzz"], "`--zzzzzz` is not known to `mflux-generate`", HELP),
        (["--image-outpaint-padding", "5"], "`--image-outpaint-padding` is not known to `mflux-generate`", None),
        (["fox"], "`fox` is not known to `mflux-generate`", HELP),
        (["--seed"], "`--seed`: expected at least one argument", None),
        (
            ["--prompt"],
            "`--prompt`: expected one argument",
            "give it a value; one that starts with `-` goes as `--prompt=VALUE`",
        ),
        (["--guidance=-inf"], "`--guidance`: -inf is not a number from 0 to 100", GUIDANCE),
        (["--metadata=yes"], "`--metadata`: ignored explicit argument 'yes'", HELP),
    ],
)
def test_a_flag_that_is_unknown_or_incomplete_is_refused(refused, flags, error, hint):
    said = refused(*WORDS, *flags)
    assert said[0] == error
    assert hint is None or said[1] == hint


@pytest.mark.parametrize(
    "flags",
    [["--prompt", "y"], ["--model", "dev"], ["--output", "b.png"], ["--steps", "3"]],
    ids=lambda flags: flags[0],
)
def test_a_flag_given_twice_is_refused_or_noted(cli, dev, flags):
    outcome = cli(*dev, "--output", "a.png", *flags)
    assert flags[0] in outcome.words


def test_a_command_without_a_model_names_the_built_in_one(refused):
    error, hint = refused("--prompt", "x")
    assert error == "`--model` is missing"
    assert hint == "try the built-in demonstration model: `--model tiny`; for FLUX.1: `--model schnell`"


@pytest.mark.parametrize(
    ("name", "near"),
    [("schnel", "schnell"), ("DEV", "dev"), ("kontxt", "kontext"), ("tiny/fil", "tiny/fill"), ("tinny", "tiny")],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(refused, name, near):
    error, hint = refused("--prompt", "x", "--model", name)
    assert error == f"`--model`: unknown model `{name}`"
    assert f"`{near}`" in hint


@pytest.mark.parametrize("name", ["/no/such/model", "./model", "~/no-such-model", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(refused, name):
    assert refused("--prompt", "x", "--model", name)[0] == f"`--model`: there is no folder `{name}`"


@pytest.mark.parametrize("path", ["/no/such/model", "models/dev", "no-such-folder", "dev"])
def test_path_means_a_folder_and_never_asks_the_hub(refused, path):
    error, _ = refused("--prompt", "x", "--path", path)
    assert f"there is no folder `{path}`" in error


@pytest.mark.parametrize("name", ["foo bar/baz!", "a/b" * 200, "owner/-name"])
def test_a_name_that_can_be_neither_folder_nor_hub_id_is_the_user_s_mistake(refused, name):
    refused("--prompt", "x", "--model", name)


@pytest.mark.parametrize("flag", ["--model", "--path", "--base-model", "--output", "--prompt-file", "--image-path"])
@pytest.mark.parametrize("value", ["n" * 300 + ".png", "~no-such-user-here/x.png", "a\nb"], ids=["long", "~", "lines"])
def test_names_that_no_file_can_have_are_refused_in_one_line(refused, dev, flag, value):
    if flag == "--output" and value == "a\nb":
        value += "/"
    words = [word for word in dev if word not in ("--prompt", "a red fox")]
    flags = [*words, *(() if flag == "--prompt-file" else ("--prompt", "x"))]
    if flag in ("--model", "--path"):
        del flags[flags.index("--model") : flags.index("--model") + 2]
    refused(*flags, flag, value)


def test_an_output_that_is_a_folder_or_lies_in_a_file_is_refused(refused, tmp_path):
    (tmp_path / "work" / "taken.png").mkdir()
    (tmp_path / "work" / "file").write_text("")
    (tmp_path / "work" / "gone").symlink_to("nowhere")
    assert refused(*WORDS, "--output", "taken.png")[0] == "`--output`: `taken.png` is a folder"
    for name in ("file/x.png", "/dev/null/x.png", "gone/x.png"):
        assert refused(*WORDS, "--output", name)[0].startswith(f"`--output`: `{name}` cannot be written")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux's /proc")
def test_a_folder_that_takes_no_files_is_found_before_drawing(refused, dev):
    refused(*dev, "--output", "/proc/x.png")


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_a_folder_without_the_right_to_write_is_refused(refused, tmp_path):
    (tmp_path / "work" / "closed").mkdir(mode=0o500)
    assert "`closed` is no folder" in refused(*WORDS, "--output", "closed/x.png")[0]


def test_a_name_that_seeds_make_too_long_is_found_before_drawing(refused, dev):
    refused(*dev, "--seed", "1", "2", "--output", "n" * 250 + ".png")


def test_an_error_is_one_line_even_where_the_name_is_not(cli):
    outcome = cli(*WORDS, "--output", "a\nb")
    assert len([line for line in outcome.words.splitlines() if line]) == 2


def test_words_are_refused_before_mlx_is_imported(refused):
    """The unknown model comes last of the words; it must not cost the import of mlx either."""
    import subprocess

    code = (
        "import sys; from mflux.cli.main import main; from mflux.cli.commands import BY_NAME\n"
        "code = main(BY_NAME['mflux-generate'], sys.argv[1:])\n"
        "print(code, *(name for name in ('mlx.core', 'numpy', 'PIL', 'transformers', 'torch') if name in sys.modules))"
    )
    for flags in (["--steps", "0"], ["--output", "x"], ["--model", "schnel"], ["--hight", "3"], ["--mask-path", "m"]):
        words = ["--prompt", "x", "--model", "tiny", *flags]
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.stdout.strip() == "2", (flags, done.stdout, done.stderr)
