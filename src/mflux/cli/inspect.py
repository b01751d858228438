"""`mflux-info`, `mflux-check`, `mflux-lora-library`: what files hold, on stdout."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from mflux.cli.options import Values
from mflux.errors import ModelError, UsageError
from mflux.paths import FORMATS, expand


def info(values: Values) -> None:
    """Print what a picture, a checkpoint, a LoRA or a folder holds.  Raises MfluxError."""
    file = values["file"]
    path = expand(file, "file")
    if not path.exists():
        raise UsageError(f"there is no file `{file}`", "give a picture, a .safetensors or .gguf file, or a folder")
    if path.suffix.lower() in FORMATS:
        print(json.dumps(picture_metadata(path), indent=2))
        return
    from mflux.weights.describe import describe

    rows = describe(path)
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:{width}}  {value}" for name, value in rows))


def picture_metadata(path: Path) -> dict[str, Any]:
    from mflux.images.metadata import read_metadata
    from mflux.images.picture import open_picture

    open_picture(path, "file")  # says what is wrong with a file that is no picture
    found = read_metadata(path)
    if found is None:
        raise UsageError(
            f"`{path}` holds no metadata of mflux", "pictures that mflux drew hold it, unless a program removed it"
        )
    return found


def check(values: Values) -> None:
    """Compare a saved model with its manifest; raises ModelError if it is damaged."""
    from tqdm import tqdm

    from mflux.weights.load import open_network
    from mflux.weights.manifest import damage, read_manifest
    from mflux.weights.resolve import NETWORKS, resolve

    found = resolve(values["model"])
    root = found.folders["transformer"].parent
    manifest = read_manifest(root)
    files = manifest.get("files", {})
    if files:
        total = sum(entry["bytes"] for entry in files.values())
        with tqdm(total=total, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True, leave=False) as bar:
            problems = damage(root, manifest, bar.update)
        if problems:
            more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
            raise ModelError(f"`{root}` is damaged: {problems[0]}{more}", "save or copy the model again")
    for part in NETWORKS:
        open_network(part, found.folders[part])
    what = (
        f"{len(files)} files are as they were saved"
        if files
        else "it has no manifest; every tensor is there and has its size"
    )
    print(f"{root}: {what}")


def lora_library(values: Values) -> None:
    """Print the names that `--lora` understands, with their files."""
    if "paths" in values:
        os.environ["LORA_LIBRARY_PATH"] = ":".join(values["paths"])
    from mflux.weights.lora_files import library

    found = library()
    if not found:
        where = os.environ.get("LORA_LIBRARY_PATH")
        problem = f"no LoRAs below `{where}`" if where else "`LORA_LIBRARY_PATH` is not set"
        raise UsageError(problem, "`export LORA_LIBRARY_PATH=~/loras`, folders separated by colons, or give `--paths`")
    for name, path in sorted(found.items()):
        print(f"{name}  {path}")
