"""Paths as users type them.  Imports nothing heavy: a wrong name has to be told before mlx or Pillow is loaded."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mflux.errors import UsageError

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MAX_SIDES = {".webp": 16383, ".jpg": 65500, ".jpeg": 65500}  # what the formats can hold


def expand(name: str | os.PathLike[str], field: str | None = None) -> Path:
    """A path with its `~` expanded.  Raises UsageError for a name that no file system takes."""
    try:
        path = Path(name).expanduser()
        os.lstat(path)
    except FileNotFoundError:
        pass
    except NotADirectoryError:
        pass
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        shown = str(name) if len(str(name)) <= 60 else f"{str(name)[:50]}..."
        raise UsageError(f"`{shown}` is no usable path ({reason})", "check the name", field) from None
    return path


@contextmanager
def reading(path: Path, field: str) -> Iterator[BinaryIO]:
    """The bytes of a text file.  Raises UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"there is no file `{path}`", "check the path", field) from None
    except OSError as error:
        raise UsageError(f"`{path}` cannot be read ({error.strerror})", "give a text file", field) from None


def check_output(name: str | os.PathLike[str], field: str = "output") -> Path:
    """A name that a picture can be saved under.  Raises UsageError before anything is drawn."""
    target = expand(name, field)
    if target.is_dir() or str(name).endswith(("/", os.sep)):
        raise UsageError(f"`{name}` is a folder", "give a file name, for example `image.png`", field)
    if target.suffix.lower() not in FORMATS:
        ending = f"the ending `{target.suffix}`" if target.suffix else "no ending"
        raise UsageError(f"`{name}` has {ending}", f"use one of {', '.join(FORMATS)}", field)
    folder = target.parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    from tempfile import TemporaryFile

    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"`{name}` cannot be written: `{folder}` takes no files ({error.strerror})"
        raise UsageError(problem, "choose a folder that you may write to", field) from None
    return target


def check_output_size(target: Path, height: int, width: int) -> None:
    """Refuse a picture that its format cannot hold."""
    most = MAX_SIDES.get(target.suffix.lower(), max(height, width))
    if max(height, width) > most:
        raise UsageError(f"{target.suffix} holds sides up to {most} px, not {width} x {height}", "use .png", "output")
