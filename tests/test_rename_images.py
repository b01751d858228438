"""tools/rename_images.py: names from prompts, files that move together, nothing lost."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mflux.images.metadata import save_picture

TOOL = Path(__file__).parents[1] / "tools" / "rename_images.py"
PICTURE = Image.fromarray(np.zeros((16, 16, 3), np.uint8))


def run(*flags: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *map(str, flags)], capture_output=True, text=True)


def save(path: Path, prompt: str = "A red fox in the snow, an oil painting", seed: int = 42) -> Path:
    return save_picture(PICTURE, path, {"prompt": prompt, "seed": seed}, False, None)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp"])
def test_a_picture_is_named_after_its_prompt_and_seed(tmp_path, ending):
    save(tmp_path / f"image{ending}")
    done = run(tmp_path)
    assert done.stdout == f"{tmp_path / f'red_fox_snow_oil_painting_42{ending}'}\n", done.stderr
    assert names(tmp_path) == {f"red_fox_snow_oil_painting_42{ending}"}
    assert run(tmp_path).stdout == ""  # the second time there is nothing to do


def test_side_files_move_with_their_picture(tmp_path):
    save(tmp_path / "image.png")
    for name in ("image.json", "image_canny.png", "other.json"):
        (tmp_path / name).write_text(json.dumps({}))
    run(tmp_path / "image.png", "--words", "2")
    assert names(tmp_path) == {"red_fox_42.png", "red_fox_42.json", "red_fox_42_canny.png", "other.json"}


def test_nothing_is_overwritten(tmp_path):
    save(tmp_path / "a.png")
    save(tmp_path / "b.png")
    (tmp_path / "red_fox_snow_oil_painting_42.png").write_bytes(b"mine")
    run(tmp_path / "a.png", tmp_path / "b.png")
    stem = "red_fox_snow_oil_painting_42"
    assert names(tmp_path) == {f"{stem}.png", f"{stem}_1.png", f"{stem}_2.png"}
    assert (tmp_path / f"{stem}.png").read_bytes() == b"mine"


def test_a_dry_run_only_tells(tmp_path):
    save(tmp_path / "image.png")
    assert run(tmp_path, "--dry-run").stdout.endswith("red_fox_snow_oil_painting_42.png\n")
    assert names(tmp_path) == {"image.png"}


@pytest.mark.parametrize("prompt", ["", "of the and", "../../../etc/passwd \0 fox", "狐狸 в снегу", "狐" * 300])
def test_any_prompt_gives_a_name_inside_the_folder_or_none(tmp_path, prompt):
    save(tmp_path / "image.png", prompt)
    done = run(tmp_path)
    assert done.returncode == 0
    (only,) = names(tmp_path)
    assert only.endswith(".png") and "/" not in only
    assert (only == "image.png") == (prompt in ("", "of the and"))


def test_pictures_of_others_are_left_alone_and_told(tmp_path):
    PICTURE.save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    done = run(tmp_path)
    assert done.returncode == 0 and done.stdout == "" and names(tmp_path) == {"photo.png", "broken.png"}
    assert "photo.png: no prompt in its metadata" in done.stderr and "broken.png" in done.stderr


def test_a_path_that_is_not_there_is_refused(tmp_path):
    done = run(tmp_path / "no.png")
    assert done.returncode == 2 and "there is no file" in done.stderr
