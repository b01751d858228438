"""Does what the documents say run?  README's blocks in their order, and the older README's Python block."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- needs a download -->\n)?```(sh|python)\n(.*?)```", README, re.DOTALL)
# The block of mflux 0.8's README, with the built-in model and its size in place of `schnell` and 1024.
OLD_README = """
from mflux import Flux1, Config

flux = Flux1.from_name(
   model_name="tiny",
   quantize=8,
)
image = flux.generate_image(
   seed=2,
   prompt="Luxury food photograph",
   config=Config(
      num_inference_steps=2,
      height=128,
      width=128,
   )
)
image.save(path="image.png")
"""
pytestmark = pytest.mark.skipif(
    not (ROOT / "src/mflux/tiny/fill/transformer").is_dir(), reason="the built-in fill model has not been trained yet"
)


def run(folder: Path, words: list[str]) -> None:
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"


def test_every_block_of_the_readme_runs_as_it_stands(tmp_path):
    (tmp_path / ".venv").symlink_to(BIN.parent)
    ran = 0
    for download, language, text in BLOCKS:
        if download or text.startswith("make"):
            continue
        run(tmp_path, ["bash", "-ec", text] if language == "sh" else [sys.executable, "-c", text])
        ran += 1
    assert ran >= 4
    assert (tmp_path / "filled.png").is_file() and (tmp_path / "ring_1.png").is_file()


def test_the_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert targets and all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_the_block_of_the_older_readme_runs(tmp_path):
    run(tmp_path, [sys.executable, "-c", OLD_README])
    assert (tmp_path / "image.png").is_file()
