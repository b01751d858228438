"""Encoded examples as files, found by what they follow from, never by their position."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx

from mflux.runtime import on_cpu
from mflux.weights.files import replacing, write_tensors
from mflux.weights.resolve import ModelSource

ENCODERS = ("text_encoder", "text_encoder_2", "vae")
Arrays = dict[str, mx.array]


def digest(*what: object) -> str:
    return hashlib.sha256("\n".join(map(str, what)).encode()).hexdigest()


class Cache:
    """A folder of safetensors files; without one, nothing is kept."""

    def __init__(self, folder: Path | None, source: ModelSource, bits: int | None):
        self.folder = folder
        files = [file for part in ENCODERS for file in sorted(source.folders[part].glob("*.safetensors"))]
        stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        self.encoders = digest(version("mlx"), version("mflux"), on_cpu(), bits, source.name, *stamps)

    def of(self, make: Callable[[], Mapping[str, mx.array]], *what: object) -> Arrays:
        """The arrays that `make` gives for this; made if they are not there yet, or cannot be read."""
        path = self.folder and self.folder / f"{digest(self.encoders, *what)}.safetensors"
        if path and path.is_file():
            try:
                found: Arrays = mx.load(str(path))  # type: ignore[assignment]
                mx.eval(found)
                return found
            except RuntimeError:
                path.unlink()
        made = dict(make())
        mx.eval(made)
        if path:
            with suppress(OSError), replacing(path) as partial:  # what cannot be kept is made again
                write_tensors(partial, made, {})
        return made
