"""Does what docs/training.md says run?  Its blocks in their order, in a folder with the examples."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(<!-- needs a download -->\n)?```sh\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_page_runs_as_it_stands(tmp_path):
    (tmp_path / ".venv").symlink_to(BIN.parent)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for download, text in BLOCKS:
        if download or text.startswith("make"):
            continue
        done = subprocess.run(["bash", "-ec", text], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "image.png").is_file() and (tmp_path / "two/adapter.safetensors").is_file()


def test_every_key_of_a_run_is_in_the_page():
    from dataclasses import fields

    from mflux.training import spec

    told = ("Examples", "TrainingLoop", "Save", "Spec", "Item")
    for owner in told:
        for field in fields(getattr(spec, owner)):
            assert field.name in PAGE or field.name in ("version", "statistics"), (
                f"{owner}.{field.name} is not in docs/training.md"
            )
