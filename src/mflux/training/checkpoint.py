"""Checkpoints: a zip with the members of mflux 0.8's, and run.json, which says what the bits depend on.

A zip is written beside its name and renamed, so a run that is killed while it saves leaves the one before.
"""

import hashlib
import json
import os
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import load, save

from mflux.errors import UsageError
from mflux.weights.files import replacing

FORMAT = 1
STAMPED = re.compile(r"_\d{8}_\d{6}$")  # what a run's folder ends in where its name is taken
MEMBERS = ("adapter.safetensors", "optimizer.safetensors", "iterator.json", "loss.json", "config.json")
HINT = "give a checkpoint that `mflux-train` wrote: `<output>/_checkpoints/NNNNNNN_checkpoint.zip`"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` updates.  adapter, ema: tensors by their names in the file."""

    step: int
    adapter: Mapping[str, mx.array]
    optimizer: Mapping[str, mx.array]
    losses: list[dict[str, float]]
    config: Any
    run: dict[str, Any]
    ema: Mapping[str, mx.array] | None = None


def facts(model: str, quantize: int | None, digests: list[str]) -> dict[str, Any]:
    """What a run's bits depend on besides its config."""
    data = hashlib.sha256("\n".join(digests).encode()).hexdigest()
    return {
        "format": FORMAT,
        "model": model,
        "quantize": quantize,
        "dataset": data,
        "mlx": version("mlx"),
        "mflux": version("mflux"),
        "device": mx.default_device().type.name,
    }


def write(checkpoint: Checkpoint, folder: Path, iterator: dict[str, Any]) -> Path:
    """Save under `NNNNNNN_checkpoint.zip`, whole or not at all."""
    stem = f"{checkpoint.step:07d}"
    names = {name.split(".")[0]: f"{stem}_{name}" for name in MEMBERS}
    files = {
        names["adapter"]: packed(checkpoint.adapter),
        names["optimizer"]: packed(checkpoint.optimizer),
        names["iterator"]: text(iterator),
        names["loss"]: text(checkpoint.losses),
        names["config"]: text(checkpoint.config),
        "checkpoint.json": text({"metadata": {"step": checkpoint.step}, "files": names}),
        "run.json": text(checkpoint.run),
    }
    if checkpoint.ema is not None:
        files[f"{stem}_ema.safetensors"] = packed(checkpoint.ema)
    target = folder / f"{stem}_checkpoint.zip"
    with replacing(target) as partial, partial.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        file.flush()
        os.fsync(file.fileno())
    return target


def read(path: Path) -> Checkpoint:
    """The state in a zip, of mflux 0.8 too (then `run` is empty).  Raises UsageError."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = json.loads(archive.read("checkpoint.json"))["files"]
            members = {name: archive.read(names[name]) for name in (each.split(".")[0] for each in MEMBERS)}
            listed = archive.namelist()
            run = json.loads(archive.read("run.json")) if "run.json" in listed else {}
            averaged = next((archive.read(name) for name in listed if name.endswith("_ema.safetensors")), None)
        iterator = json.loads(members["iterator"])
        checkpoint = Checkpoint(
            step=int(iterator["num_iterations"]),
            adapter=unpacked(members["adapter"]),
            optimizer=unpacked(members["optimizer"]),
            losses=json.loads(members["loss"]),
            config=json.loads(members["config"]),
            run=run,
            ema=None if averaged is None else unpacked(averaged),
        )
    except FileNotFoundError:
        raise UsageError(f"there is no file `{path}`", HINT, "resume") from None
    except KeyError as error:
        raise UsageError(f"`{path}` lacks {error}", HINT, "resume") from None
    except Exception as error:  # zipfile, zlib, json and safetensors have many
        raise UsageError(f"`{path}` is no checkpoint ({error})", HINT, "resume") from None
    if run.get("format", FORMAT) > FORMAT:
        raise UsageError(f"`{path}` is of a newer mflux", f"this one reads format {FORMAT}; update mflux", "resume")
    for name, value in checkpoint.adapter.items():
        if not mx.isfinite(value).all():
            raise UsageError(f"`{path}`: `{name}` holds numbers that are not finite", "take an earlier one", "resume")
    if checkpoint.step and not any(value.any() for value in checkpoint.adapter.values()):
        raise UsageError(f"`{path}`: its adapter is all zeros", "take an earlier one", "resume")
    return checkpoint


def mismatches(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What has changed since a checkpoint was written, in words."""
    changed = [name for name in now if name in saved and saved[name] != now[name]]
    return [f"`{name}` was {saved[name]}, and is {now[name]}" for name in changed]


def latest(output: Path) -> Path:
    """The newest checkpoint of a run's folder, or of the later ones that have the time behind their name.

    Raises UsageError where there is none.
    """
    folders = (
        folder for folder in output.parent.glob(f"{output.name}*") if STAMPED.sub("", folder.name) == output.name
    )
    found = [path for folder in folders for path in (folder / "_checkpoints").glob("*_checkpoint.zip")]
    if not found:
        raise UsageError(f"there is no checkpoint in `{output / '_checkpoints'}`", HINT, "resume")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def text(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def packed(arrays: Mapping[str, mx.array]) -> bytes:
    return save({name: np.array(value) for name, value in arrays.items()})


def unpacked(data: bytes) -> dict[str, mx.array]:
    return {name: mx.array(value) for name, value in load(data).items()}
