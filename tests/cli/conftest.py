"""Commands run in this process, in a folder of their own, with what they printed and wrote."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pytest
from PIL import Image

from mflux.cli.commands import BY_NAME
from mflux.cli.main import main

FAST = ("--prompt", "a red fox", "--steps", "1", "--seed", "1", "--max-sequence-length", "8")
SMALL = ("--height", "16", "--width", "16")


@dataclass(frozen=True)
class Outcome:
    """What a command did.  files: names of what it left in its folder."""

    code: int
    out: str
    err: str
    files: frozenset[str]

    @property
    def words(self) -> str:
        """stderr without the progress bar."""
        lines = [line.rpartition("\r")[2] for line in self.err.split("\n")]
        return "\n".join(lines).strip()


def names(folder: Path) -> frozenset[str]:
    return frozenset(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run `mflux-generate` (or `command`) with flags, in an empty folder that tests may fill: tmp_path/work."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*flags: str | Path, command: str = "mflux-generate") -> Outcome:
        before = names(work)
        capsys.readouterr()
        code = main(BY_NAME[command], [str(flag) for flag in flags])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err, names(work) - before)

    return run


@pytest.fixture
def refused(cli: Callable[..., Outcome]) -> Callable[..., list[str]]:
    """Run a command that has to be refused, and return its error and its hint."""

    def run(*flags: str | Path, code: int = 2, command: str = "mflux-generate") -> list[str]:
        outcome = cli(*flags, command=command)
        assert "unexpected" not in outcome.err and "Traceback" not in outcome.err, outcome.err
        assert (outcome.code, outcome.out, outcome.files) == (code, "", frozenset()), outcome
        lines = [line for line in outcome.words.split("\n") if not line.startswith("note:")]
        assert len(lines) == 3 and lines[1] == "", lines
        assert lines[0].startswith("error: ") and lines[2].startswith("hint: ")
        return [lines[0].removeprefix("error: "), lines[2].removeprefix("hint: ")]

    return run


@pytest.fixture
def dev(oracle_model: Callable[[str], Path]) -> tuple[str, ...]:
    """Flags of the quickest picture."""
    return ("--model", str(oracle_model("dev")), *FAST, *SMALL)


@pytest.fixture
def blind(oracle_model: Callable[[str], Path], tmp_path: Path) -> Callable[[str], tuple[str, ...]]:
    """Flags with a model that cannot encode a prompt: who is refused with exit code 2 was refused before that."""

    def flags(name: str) -> tuple[str, ...]:
        model = hostile.copy_model(oracle_model(name), tmp_path / f"blind-{name}")
        shutil.rmtree(model / "tokenizer")
        return ("--model", str(model), *FAST)

    return flags


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A picture and a mask of its size."""
    return hostile.picture(tmp_path / "picture.png"), hostile.mask(tmp_path / "mask.png")


@pytest.fixture
def training_config(oracle_model) -> dict[str, Any]:
    """A train.json of one update of one layer, and its picture in the working folder."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save("a.png")
    layers = {"block_range": {"start": 0, "end": 1}, "layer_types": ["attn.to_q"], "lora_rank": 2}
    return {
        "model": str(oracle_model("dev")),
        "seed": 1,
        "steps": 2,
        "guidance": 3,
        "width": 64,
        "height": 64,
        "training_loop": {"num_epochs": 1, "batch_size": 1},
        "optimizer": {"name": "AdamW", "learning_rate": 0.01},
        "save": {"output_path": "run", "checkpoint_frequency": 1},
        "lora_layers": {"single_transformer_blocks": layers},
        "examples": {"path": ".", "images": [{"image": "a.png", "prompt": "a thing"}]},
    }
