"""A small run on the tiny random model, and the parts it is made of."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mflux import Flux1
from mflux.training.config import read_spec, with_items, with_settings
from mflux.training.dataset import find_sources
from mflux.training.trainer import Trainer


@pytest.fixture
def config(tmp_path: Path, oracle_model: Callable[[str], Path]) -> dict[str, Any]:
    """A train.json of three pictures, 64 px, two layers of either family."""
    random = np.random.default_rng(0)
    for name in "abc":
        Image.fromarray(random.integers(0, 256, (80, 64, 3), np.uint8)).save(tmp_path / f"{name}.png")
    layers = {"block_range": {"start": 0, "end": 1}, "layer_types": ["attn.to_q"], "lora_rank": 2}
    return {
        "model": str(oracle_model("dev")),
        "seed": 7,
        "steps": 4,
        "guidance": 3.0,
        "width": 64,
        "height": 64,
        "training_loop": {"num_epochs": 3, "batch_size": 2},
        "optimizer": {"name": "AdamW", "learning_rate": 0.01},
        "save": {"output_path": str(tmp_path / "run"), "checkpoint_frequency": 2},
        "lora_layers": {
            "transformer_blocks": layers | {"layer_types": ["attn.to_out", "ff.linear1"]},
            "single_transformer_blocks": layers,
        },
        "examples": {"path": ".", "images": [{"image": f"{name}.png", "prompt": f"thing {name}"} for name in "abc"]},
    }


@pytest.fixture
def train_json(tmp_path: Path, config: dict[str, Any]) -> Callable[..., Path]:
    """Write the config, with some keys changed, to a file."""

    def write(**settings: Any) -> Path:
        path = tmp_path / "train.json"
        path.write_text(json.dumps(with_settings(config, {k.replace("__", "."): v for k, v in settings.items()})))
        return path

    return write


@pytest.fixture
def trainer(
    tmp_path: Path, config: dict[str, Any], random_flux: Callable[[str], Flux1]
) -> Iterator[Callable[..., Trainer]]:
    """A trainer of the config with some keys changed; the one before it lets go of the shared model."""
    made: list[Trainer] = []

    def make(flux: str = "dev", **settings: Any) -> Trainer:
        if made:
            made.pop().close()
        changed = with_settings(config, {name.replace("__", "."): value for name, value in settings.items()})
        changed = with_items(changed, tmp_path)
        spec = read_spec(changed, "train.json", tmp_path)
        sources = find_sources(spec, tmp_path, "train.json")
        made.append(Trainer(spec, changed, random_flux(flux), *sources, tmp_path / "cache"))
        return made[-1]

    yield make
    if made:
        made.pop().close()
