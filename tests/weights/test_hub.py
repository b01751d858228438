"""Models and LoRAs from a hub: downloaded once, resumed, and refused in words.

A server on the loopback address speaks the hub's protocol; each command runs in a process of its own, because
huggingface_hub reads its address when it is imported.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
from hub_server import Hub, serve
from safetensors.numpy import save_file

REPO = "some-owner/some-model"
GENERATE = "import sys; sys.argv[0] = 'mflux-generate'; from mflux.cli.main import named; raise SystemExit(named())"
LONG = 24_000_000
FAST = ("--prompt", "x", "--steps", "1", "--seed", "1", "--height", "16", "--width", "16", "--max-sequence-length", "8")


@pytest.fixture
def hub(oracle_model, tmp_path):
    """A repository with a whole model."""
    with serve(Hub(REPO, hostile.copy_model(oracle_model("dev"), tmp_path / "repository"))) as running:
        yield running


@pytest.fixture
def draw(tmp_path):
    """Draw with a hub's model, in a process of its own; the cache is empty at first."""

    def run(hub: Hub, *flags: str, offline: bool = False, model: str = REPO) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        words = [sys.executable, "-c", GENERATE, "--model", model, *FAST, *flags]
        return subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)

    return run


def long(hub: Hub) -> Hub:
    """With a file of several of the client's pieces of 10 MB, of which it keeps what it received."""
    (hub.folder / "tokenizer" / "notes.txt").write_bytes(b"a" * LONG)
    return hub


def error_of(done: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """The error and the hint; nothing else may look like a failure of ours."""
    assert "Traceback" not in done.stderr and "unexpected" not in done.stderr and done.stdout == "", done.stderr
    found = re.search(r"^error: (.*)\n\nhint: (.*)\Z", done.stderr.strip(), re.MULTILINE)
    assert found, done.stderr
    return found[1], found[2]


@pytest.mark.parametrize("redirect", [False, True], ids=["direct", "redirected"])
def test_a_model_is_downloaded_once_and_then_needs_no_network(hub, draw, redirect):
    hub.redirect = redirect
    first = draw(hub)
    assert first.returncode == 0 and first.stdout == "image.png\n", first.stderr
    assert any("/elsewhere/" in path for _, path, _ in hub.requests) == redirect
    hub.requests.clear()
    assert draw(hub).stdout == "image_1.png\n" and hub.requests == []
    assert draw(hub, offline=True).stdout == "image_2.png\n"


def test_a_connection_that_is_cut_is_taken_up_where_it_broke(hub, draw):
    hub.cuts = 1
    done = draw(long(hub))
    assert done.returncode == 0, done.stderr
    assert [0 < start <= LONG // 2 for start in hub.ranges()] == [True]


def test_a_second_run_fetches_only_what_the_first_one_did_not(hub, draw):
    hub.cuts = 100
    problem, hint = error_of(draw(long(hub)))
    assert problem.startswith(f"`{REPO}` is not on this machine and cannot be downloaded (") and "is kept" in hint
    first = hub.fetched()
    hub.cuts = 0
    hub.requests.clear()
    assert draw(hub).returncode == 0
    assert hub.largest.name in hub.fetched() and hub.fetched() < first


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_names_its_licence_page(hub, draw, status):
    hub.status = status
    done = draw(hub)
    assert done.returncode == 1
    assert error_of(done) == (
        f"`{REPO}` asks you to accept its licence first",
        f"open https://huggingface.co/{REPO}, accept, then `hf auth login`",
    )


def test_a_model_that_is_not_there_is_said_to_be_so(hub, draw):
    hub.status = 404
    problem, hint = error_of(draw(hub))
    assert problem == f"the hub has no model `{REPO}`, or it is private" and "check the name" in hint


def test_too_many_requests_ask_for_patience(hub, draw):
    hub.status = 429
    problem, hint = error_of(draw(hub))
    assert "429" in problem and "wait" in hint


def test_without_the_network_a_model_that_is_not_here_says_so(hub, draw):
    done = draw(hub, offline=True)
    assert done.returncode == 1 and hub.requests == []
    problem, hint = error_of(done)
    assert problem.startswith(f"`{REPO}` is not on this machine") and "network" in hint


@pytest.fixture
def lora_hub(tmp_path):
    folder = tmp_path / "loras"
    folder.mkdir()
    random = np.random.default_rng(0)
    layer = "transformer.transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": random.standard_normal((4, 48), np.float32)}
    tensors[f"{layer}.lora_B.weight"] = random.standard_normal((48, 4), np.float32)
    for name in ("ink", "film"):
        save_file(tensors, folder / f"{name}.safetensors")
    with serve(Hub("some-owner/loras", folder)) as running:
        yield running


@pytest.mark.parametrize(
    "flags",
    [
        ("--lora", "some-owner/loras:ink.safetensors", "0.5"),
        ("--lora-paths", "hf:some-owner/loras/ink.safetensors"),
        ("--lora-name", "ink.safetensors", "--lora-repo-id", "some-owner/loras"),
        ("--lora-name", "ink", "--lora-repo-id", "some-owner/loras"),
    ],
    ids=lambda flags: flags[0] + flags[1][:3],
)
def test_a_lora_of_the_hub_has_three_names(lora_hub, draw, oracle_model, flags):
    done = draw(lora_hub, *flags, model=str(oracle_model("dev")))
    assert done.returncode == 0 and "LoRA `ink.safetensors`: 2 tensors are applied to 1 layers" in done.stderr


def test_a_repository_of_several_loras_lists_them(lora_hub, draw, oracle_model):
    done = draw(lora_hub, "--lora", "some-owner/loras", model=str(oracle_model("dev")))
    problem, hint = error_of(done)
    assert done.returncode == 2 and "holds 2 safetensors files" in problem
    assert "`some-owner/loras:film.safetensors`, `some-owner/loras:ink.safetensors`" in hint
    (lora_hub.folder / "film.safetensors").unlink()
    assert draw(lora_hub, "--lora", "some-owner/loras", model=str(oracle_model("dev"))).returncode == 0


def test_a_lora_that_the_repository_lacks_is_named(lora_hub, draw, oracle_model):
    done = draw(lora_hub, "--lora", "some-owner/loras:chalk.safetensors", model=str(oracle_model("dev")))
    assert done.returncode == 2 and "has no such file" in error_of(done)[0]


def test_two_repositories_may_hold_files_of_the_same_name(lora_hub, draw, oracle_model, tmp_path):
    """mflux 0.24 links downloads by file name alone, and silently takes the first."""
    model = str(oracle_model("dev"))
    assert draw(lora_hub, "--lora", "some-owner/loras:ink.safetensors", model=model).returncode == 0
    other = Path(tmp_path / "other")
    other.mkdir()
    (other / "ink.safetensors").write_bytes(b"not the same")
    with serve(Hub("other-owner/loras", other)) as hub:
        done = draw(hub, "--lora", "other-owner/loras:ink.safetensors", model=model)
    assert done.returncode != 0 and "ink.safetensors" in error_of(done)[0]
