"""Inputs made by the hundred: every flag of every command, any metadata, any line, files with bytes turned.

Who answers has to answer with exit code 2 (or 1 for a damaged model), one line of error, a hint and no traceback, and
must write nothing.  Texts of single cases are pinned in `test_refused_*.py`.
"""

import io
import json
import struct
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import piexif
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save

from mflux.cli.commands import BY_NAME, COMMANDS
from mflux.cli.options import place, real, side, whole

# A model that nobody has: whatever gets past the words is refused there, before anything is drawn.
NOBODY = ("--model", "no-such-model")
SERVES = "mflux-mask"  # opens a page where its words are right
DRAWING = [command for command in COMMANDS if not command.run]
FLOATS = ("nan", "-inf", "1e9999", "9" * 5000)  # numbers for Python; the range of each flag refuses them
ODD_NUMBERS = ("", "x", *FLOATS, "0x10", "1,5", "\u0663\udcff", "--", "1 2")
ODD_WORDS = ("", "-", "\0", "\n", "..", "/", "~nobody-here/x.png", "n" * 5000, "a\u202eb.png", "\udcff", "{", "%s%n")
EASY = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def said_well(outcome, codes=(2,)) -> None:
    """Refused in the way that is promised."""
    assert outcome.code in codes and outcome.out == "" and outcome.files == frozenset(), outcome
    assert "Traceback" not in outcome.err and "unexpected" not in outcome.err, outcome.err
    lines = [line for line in outcome.words.split("\n") if not line.startswith(("note:", "line "))]
    assert [line[:6] for line in lines] == ["error:", "", "hint: "], lines
    assert len(lines[0]) < 700 and len(lines[2]) < 700, lines


def flags_of(command, kinds):
    return [option for option in command.options if option.is_flag and option.parse.get("type") in kinds]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_numbers_that_are_none_are_refused_by_every_flag(cli, command):
    for option in flags_of(command, (whole, side, place, real)):
        for value in ODD_NUMBERS:
            outcome = cli(f"{option.flag}={value}", command=command.name)
            said_well(outcome)
            if option.parse["type"] in (whole, side) or value not in FLOATS:
                assert outcome.words.startswith(f"error: `{option.flag}`: "), outcome.words


@pytest.mark.parametrize("command", DRAWING, ids=lambda command: command.name)
def test_numbers_out_of_every_range_are_refused_by_every_flag(cli, command):
    """Also those of a method, before its pictures are opened: there are none."""
    for option in flags_of(command, (whole, side, place, real)):
        for value in (
            ("nan", "inf", "1e9", "-1e9") if option.parse["type"] is real else ("-7", "10000000000000000000000")
        ):
            said_well(cli("--prompt", "x", f"{option.flag}={value}", *NOBODY, command=command.name))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_flag_needs_its_value_and_its_right_name(cli, command):
    for option in command.options:
        if not option.is_flag:
            continue
        valueless = option.parse.get("action", "").startswith(("store_", "append_const"))
        if not valueless and option.parse.get("nargs") != "*":
            outcome = cli(option.flag, command=command.name)
            said_well(outcome)
            assert outcome.words.startswith(f"error: `{option.flag}`: expected "), outcome.words
        named = [each.parse["choices"][0] for each in command.options if not each.is_flag and "choices" in each.parse]
        outcome = cli(f"{option.flag}x" + ("" if valueless else "=1"), *named, command=command.name)
        said_well(outcome)
        assert f"`{option.flag}x" in outcome.words and f"`{command.name}`" in outcome.words


@pytest.mark.parametrize("command", DRAWING, ids=lambda command: command.name)
def test_words_that_no_flag_expects_are_refused_by_every_flag(cli, command):
    for option in flags_of(command, (None,)):
        if option.parse.get("action", "").startswith(("store_", "append_const")):
            continue
        for value in ODD_WORDS:
            said_well(cli(f"{option.flag}={value}", "--prompt-file", "none.txt", *NOBODY, command=command.name))


WORDS = st.lists(
    st.sampled_from(
        sorted({flag for command in COMMANDS for option in command.options for flag in option.flags.split()})
    )
    | st.sampled_from(ODD_WORDS + ODD_NUMBERS)
    | st.text(max_size=6),
    max_size=8,
)


@EASY
@given(words=WORDS, command=st.sampled_from([name for name in BY_NAME if name != SERVES]))
def test_any_words_are_answered(cli, words, command):
    if {"-h", "--help", "--init-config"} & set(words) or command in ("mflux-completions", "mflux-lora-library"):
        return
    said_well(cli(*words, *(NOBODY if BY_NAME[command] in DRAWING else ()), command=command), (1, 2))


KEYS = st.sampled_from(
    sorted({option.flag.strip("-").replace("-", "_") for option in BY_NAME["mflux-generate"].options} | {"request"})
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "model": JSON,
        "prompt": JSON,
        "seeds": JSON | st.lists(st.integers(-5, 5), max_size=3),
        "config": JSON | st.dictionaries(st.sampled_from(["height", "guidance", "sigmas", "noise", "x"]), JSON),
        "loras": JSON | st.lists(st.tuples(st.text(max_size=5), JSON), max_size=2),
        "conditions": JSON
        | st.lists(
            st.fixed_dictionaries({"condition": st.sampled_from(["ImageToImage", "Inpaint", "IPAdapter", "Magic"])})
            | st.dictionaries(st.sampled_from(["condition", "image", "mask"]), JSON),
            max_size=2,
        ),
    },
)


@EASY
@given(told=JSON | st.dictionaries(KEYS, JSON, max_size=5) | st.fixed_dictionaries({"request": REQUESTS}))
def test_any_metadata_is_answered(cli, told):
    Path("told.json").write_text(json.dumps(told), encoding="utf-8")
    said_well(cli("-C", "told.json", *NOBODY))


@EASY
@given(told=st.dictionaries(KEYS, JSON, max_size=4) | st.text() | st.fixed_dictionaries({"request": REQUESTS}))
def test_any_line_of_jobs_is_answered(cli, monkeypatch, told):
    raw = (told if isinstance(told, str) else json.dumps(told)).encode("utf-8", "surrogatepass")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    said_well(cli("--jobs", "-", *NOBODY))


@EASY
@given(comment=st.binary(max_size=60) | JSON.map(lambda value: b"ASCII\0\0\0" + json.dumps(value).encode()))
def test_any_comment_of_a_picture_is_answered(cli, comment):
    exif = piexif.dump({"Exif": {piexif.ExifIFD.UserComment: comment}})
    Image.new("RGB", (16, 16)).save("told.png", exif=exif)
    said_well(cli("-C", "told.png", *NOBODY))


def test_a_damaged_block_of_metadata_is_no_warning_for_programmers(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "told.png", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0")
    code = "import sys; sys.argv[0] = 'mflux-info'; from mflux.cli.main import named; sys.exit(named())"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "told.png"], capture_output=True, text=True)
    assert done.returncode == 2 and "holds no metadata" in done.stderr and "Warning" not in done.stderr, done.stderr


def turned(raw: bytes, where: float, byte: int, cut: bool) -> bytes:
    """The file cut somewhere, or with one byte of another value."""
    at = int(where * (len(raw) - 1))
    return raw[:at] if cut else raw[:at] + bytes([raw[at] ^ (byte or 1)]) + raw[at + 1 :]


DAMAGE = {"where": st.floats(0, 1), "byte": st.integers(0, 255), "cut": st.booleans()}


@EASY
@given(kind=st.sampled_from(["png", "jpg", "webp", "gif", "tiff"]), role=st.sampled_from(["image", "mask"]), **DAMAGE)
def test_damaged_pictures_and_masks_are_refused_or_used(cli, oracle_model, kind, role, where, byte, cut):
    """A byte in the pixels may leave a picture that can be read: then it is the model that is refused, untouched."""
    hostile.picture(Path("whole.png"))
    Image.open("whole.png").save(f"bad.{kind}")
    raw = Path(f"bad.{kind}").read_bytes()
    Path(f"bad.{kind}").write_bytes(turned(raw, where, byte, cut))
    model = Path("no-tokenizer")
    if not model.exists():
        hostile.copy_model(oracle_model("dev"), model)
        for file in (model / "tokenizer").iterdir():
            file.unlink()
    pictures = (
        ("--image-path", f"bad.{kind}")
        if role == "image"
        else ("--image-path", "whole.png", "--mask-path", f"bad.{kind}")
    )
    said_well(cli("--prompt", "x", "--steps", "1", "--model", model, *pictures), (1, 2))
    if cut and where < 0.3:
        assert "bad." in cli("--prompt", "x", "--model", model, *pictures).words


HEADERS = st.dictionaries(
    st.sampled_from(["transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "lora_unet_x.alpha", "__metadata__"])
    | st.text(max_size=10),
    JSON
    | st.fixed_dictionaries(
        {"dtype": st.sampled_from(["F32", "BF16", "I64", "F13"]), "shape": JSON, "data_offsets": JSON}
    ),
    max_size=3,
)


@EASY
@given(
    header=HEADERS | st.binary(max_size=40), length=st.none() | st.integers(0, 2**64 - 1), data=st.binary(max_size=8)
)
def test_any_lora_header_is_answered(cli, oracle_model, header, length, data):
    Path("bad.safetensors").write_bytes(hostile.safetensors(header, data, length))
    lora = ("--lora", "bad.safetensors", "--prompt", "x")
    said_well(cli(*lora, "--model", oracle_model("dev"), "--height", "16", "--width", "16", "--steps", "1"), (1, 2))
    outcome = cli("bad.safetensors", command="mflux-info")
    assert outcome.code in (0, 1, 2) and "unexpected" not in outcome.err and "Traceback" not in outcome.err


@EASY
@given(**DAMAGE)
def test_a_damaged_lora_is_refused_or_drawn_with(cli, dev, where, byte, cut):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {
        f"{layer}.lora_A.weight": np.ones((4, 48), np.float32),
        f"{layer}.lora_B.weight": np.ones((48, 4), np.float32),
    }
    raw = save(tensors)
    header = 8 + struct.unpack("<Q", raw[:8])[0]
    bad = turned(raw[:header], where, byte, False) + raw[header:] if not cut else turned(raw, where, byte, cut)
    Path("bad.safetensors").write_bytes(bad)
    outcome = cli(*dev, "--lora", "bad.safetensors", "--overwrite")
    if outcome.code:
        Path("image.png").unlink(missing_ok=True)
        assert outcome.code in (1, 2) and "unexpected" not in outcome.err and "Traceback" not in outcome.err, outcome
