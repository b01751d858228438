"""Arrays that are kept on disk, found by what they follow from, never by their position."""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

from mflux.runtime import on_cpu
from mflux.weights.files import replacing, write_tensors

Arrays = dict[str, mx.array]


def home() -> Path:
    """Where mflux keeps what it can make again."""
    return Path(os.environ.get("MFLUX_CACHE_DIR") or Path.home() / ".cache" / "mflux")


def digest(*what: object) -> str:
    """A name made of texts, numbers and arrays."""
    parts = (np.array(each).tobytes() if isinstance(each, mx.array) else str(each).encode() for each in what)
    return hashlib.sha256(b"\n".join(parts)).hexdigest()


class Kept:
    """A folder of safetensors files, the newest `most` of them; without a folder nothing is kept.

    stamp: what all of them follow from.
    """

    def __init__(self, folder: Path | None, *stamp: object, most: int | None = None):
        self.folder, self.most = folder, most
        self.stamp = digest(version("mlx"), version("mflux"), on_cpu(), *stamp)

    def path(self, *what: object) -> Path | None:
        return self.folder and self.folder / f"{digest(self.stamp, *what)}.safetensors"

    def of(self, make: Callable[[], Mapping[str, mx.array]], *what: object) -> Arrays:
        """The arrays that `make` gives for this; made if they are not there yet, or cannot be read."""
        path = self.path(*what)
        found = load(path)
        if found is None:
            found = dict(make())
            self.save(path, found)
        return found

    def save(self, path: Path | None, arrays: Arrays) -> None:
        """Keep these; a folder that cannot be written is no reason to fail: what cannot be kept is made again."""
        mx.eval(arrays)
        if path is None:
            return
        with suppress(OSError):
            with replacing(path) as partial:
                write_tensors(partial, arrays, {})
            files = sorted(path.parent.glob("[!.]*.safetensors"), key=lambda each: each.stat().st_mtime)
            for old in files[: -self.most] if self.most else ():
                old.unlink(missing_ok=True)


def load(path: Path | None) -> Arrays | None:
    """Kept arrays; None where there are none, or damaged ones."""
    if path is None or not path.is_file():
        return None
    try:
        found: Arrays = mx.load(str(path))  # type: ignore[assignment]
        mx.eval(found)
        return found
    except RuntimeError:
        path.unlink(missing_ok=True)
        return None
