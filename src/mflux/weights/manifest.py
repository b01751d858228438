"""What stands beside a saved model: which model it is, and a hash of every file."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mflux.errors import ModelError
from mflux.weights.files import MANIFEST, read_json

FORMAT_VERSION = 1
CHUNK = 1 << 22


def sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The hash of a file, read piece by piece; `on_bytes` hears of every piece."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found.update(piece)
            if on_bytes:
                on_bytes(len(piece))
    return found.hexdigest()


def write_manifest(folder: Path, facts: dict[str, Any], known: dict[str, str]) -> None:
    """Write the manifest of everything in a folder.  known: hashes by relative path that need no second reading."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        name = path.relative_to(folder).as_posix()
        files[name] = {"bytes": path.stat().st_size, "sha256": known.get(name) or sha256(path)}
    size = round(sum(entry["bytes"] for entry in files.values()) / 1e9, 3)
    text = json.dumps({"format_version": FORMAT_VERSION, **facts, "size_gb": size, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; empty where there is none.  Raises ModelError for a damaged one."""
    path = folder / MANIFEST
    if not path.is_file():
        return {}
    manifest = read_json(path)
    files = manifest.get("files", {})

    def sound(entry: Any) -> bool:
        return isinstance(entry, dict) and type(entry.get("bytes")) is int and isinstance(entry.get("sha256"), str)

    if not isinstance(files, dict) or not all(map(sound, files.values())):
        raise ModelError(
            f"`{path}` has no sound table `files`", "the manifest is damaged; save or copy the model again"
        )
    return manifest


def damage(folder: Path, manifest: dict[str, Any], on_bytes: Callable[[int], None] | None = None) -> list[str]:
    """What differs between a folder and its manifest, one line a file; empty: every byte is as it was saved."""
    problems = []
    for name, entry in manifest.get("files", {}).items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            problems.append(f"`{name}` points out of the folder")
        elif not path.is_file():
            problems.append(f"`{name}` is missing")
        elif (size := path.stat().st_size) != entry["bytes"]:
            problems.append(f"`{name}` has {size} bytes, but was saved with {entry['bytes']}")
        elif sha256(path, on_bytes) != entry["sha256"]:
            problems.append(f"`{name}` is damaged: its bytes are not those that were saved")
    return problems
