"""Are the generated pages fresh, and does every block of the documents run with the built-in model?"""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import pages
from mflux.cli.commands import COMMANDS

ROOT = Path(__file__).parents[2]


def test_no_page_is_stale():
    wrong = [path for path, text in pages.pages().items() if not path.is_file() or path.read_text("utf-8") != text]
    assert wrong == [], "`python tools/pages.py` writes them again"
    assert {path.stem for path in (ROOT / "docs/commands").glob("mflux-*")} == {command.name for command in COMMANDS}


def test_every_link_of_the_documents_leads_somewhere():
    for path in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in pages.re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path}: {target}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the examples work on."""
    folder = tmp_path_factory.mktemp("examples")
    pages.run(pages.PREPARATION, folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_example_runs_with_the_built_in_model(prepared, tmp_path, command):
    if pages.missing(command):
        pytest.skip("its built-in model has not been trained yet")
    if command.name not in pages.BY_HAND:
        shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
        pages.run(pages.EXAMPLES[command.name], tmp_path)
        assert set(tmp_path.rglob("*")) - {tmp_path / path.name for path in prepared.iterdir()} or (
            command.name == "mflux-info"
        )


@pytest.mark.parametrize("name", ["coming-from.md", "looking-inside.md", "several-machines.md"])
def test_every_block_of_the_hand_written_documents_runs(tmp_path, name):
    blocks = pages.BLOCK.findall((ROOT / "docs" / name).read_text("utf-8"))
    assert blocks
    for download, language, text in blocks:
        if not download:
            pages.run(text if language == "sh" else f"{sys.executable} - <<'END'\n{text}END", tmp_path)
