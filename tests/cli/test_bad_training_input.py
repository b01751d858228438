"""Training files made by the hundred: any value in any key of a config, checkpoints with bytes turned.

What cannot be trained is told with exit code 2 (1 for a damaged checkpoint), without a traceback, and writes nothing.
"""

import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_bad_input import DAMAGE, EASY, JSON, turned


@pytest.fixture
def config(training_config):
    return training_config


def answered(outcome) -> None:
    """Checked and found good, or refused; nothing is written either way."""
    assert outcome.code in (0, 1, 2) and outcome.files == frozenset(), outcome
    assert "Traceback" not in outcome.err and "unexpected" not in outcome.err, outcome.err
    if outcome.code:
        assert outcome.out == "" and "error: " in outcome.words and "hint: " in outcome.words, outcome


def places(value, before=()):
    """Every key of a config, at any depth."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*before, key)
        yield from places(inner, (*before, key))


@EASY
@given(data=st.data())
def test_any_value_in_any_key_of_a_config_is_answered(cli, config, data):
    changed = json.loads(json.dumps(config))
    place = data.draw(st.sampled_from(sorted(places(config), key=str)))
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(JSON)
    if isinstance(inner, dict) and data.draw(st.booleans()):
        inner[data.draw(st.text(max_size=6))] = data.draw(JSON)
    Path("train.json").write_text(json.dumps(changed))
    answered(cli("--config", "train.json", "--dry-run", command="mflux-train"))


@EASY
@given(told=JSON | st.text())
def test_any_config_is_answered(cli, told):
    text = told if isinstance(told, str) else json.dumps(told)
    Path("train.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    outcome = cli("--config", "train.json", "--dry-run", command="mflux-train")
    answered(outcome)
    assert outcome.code == 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, bytes]:
    return {}


@EASY
@given(inside=st.booleans(), member=st.integers(0, 20), **DAMAGE)
def test_a_damaged_checkpoint_is_refused_or_used(cli, config, checkpoints, inside, member, where, byte, cut):
    """inside: one of its files is damaged, and the zip around it is whole."""
    if not checkpoints:
        Path("train.json").write_text(json.dumps(config))
        assert cli("--config", "train.json", command="mflux-train").code == 0
        checkpoints["zip"] = Path("run/_checkpoints/0000001_checkpoint.zip").read_bytes()
    raw = checkpoints["zip"]
    if inside:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        name = sorted(files)[member % len(files)]
        files[name] = turned(files[name], where, byte, cut)
        with zipfile.ZipFile("bad.zip", "w") as archive:
            for each, content in files.items():
                archive.writestr(each, content)
    else:
        Path("bad.zip").write_bytes(turned(raw, where, byte, cut))
    answered(cli("--resume", "bad.zip", "--dry-run", command="mflux-train"))


@pytest.mark.parametrize("name", ["../evil", "/tmp/judge-evil", "a/../../evil", "C:\\evil", "x" * 5000, ""])
def test_a_zip_that_points_elsewhere_writes_nothing_there(cli, config, tmp_path, name):
    with zipfile.ZipFile("bad.zip", "w") as archive:
        archive.writestr("checkpoint.json", json.dumps({"files": {"config": name}}))
        archive.writestr(name or "empty", "{}")
    outcome = cli("--resume", "bad.zip", command="mflux-train")
    answered(outcome)
    assert outcome.code in (1, 2) and not list(tmp_path.rglob("*evil*")) and not Path("/tmp/judge-evil").exists()


def test_a_zip_bomb_is_refused(cli, config):
    """One file of 64 MB of zeros in 64 KB."""
    with (
        zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("checkpoint.json", "w", force_zip64=True) as file,
    ):
        for _ in range(64):
            file.write(bytes(2**20))
    outcome = cli("--resume", "bomb.zip", command="mflux-train")
    answered(outcome)
    assert outcome.code in (1, 2)
