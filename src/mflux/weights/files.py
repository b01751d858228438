"""Checkpoint files, safetensors and GGUF: headers checked before a byte of weights is read, tensors one at a time.

A file can be wrong in these ways, each with its own message: it is absent; shorter than its header says; its header is
too large, no JSON, or no table of tensors; a tensor has an unknown type, a negative size, bytes outside the file or of
another tensor, or bytes that do not fit its shape; an index names a shard that is absent or a tensor that its shard
lacks.
"""

import errno
import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from mflux.errors import ModelError
from mflux.runtime import on_cpu

Arrays = dict[str, mx.array]
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "BOOL": "?"}
NUMPY |= {f"{sign}{bits}": f"<{sign.lower()}{bits // 8}" for sign in "IU" for bits in (8, 16, 32, 64)}
BYTES = {name: np.dtype(kind).itemsize for name, kind in NUMPY.items()}
MAX_NAME = 255  # bytes of a file name
# GGUF types whose unpacking was compared with the oracle's numbers.
GGUF_TYPES = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"}
GGUF_TYPES |= {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"}
MANIFEST = "mflux_model.json"  # beside a model that mflux-save wrote
STEMS = ("diffusion_pytorch_model", "model")
DAMAGED = "the file is incomplete or damaged; copy or download it again"


class TensorInfo(NamedTuple):
    """One tensor of a file, not read yet."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int = -1  # of its first byte in the file; -1: not a safetensors file

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a ModelError that names file and place."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"`{path}` is missing", "the model folder is incomplete; download or save it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"`{path}` cannot be read ({error})", DAMAGED) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"`{path}` is not valid JSON ({error})", DAMAGED) from None
    if not isinstance(value, dict):
        raise ModelError(f"`{path}` should hold a JSON object, but holds a {type(value).__name__}", DAMAGED)
    return value


def raw_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file as JSON, and how many bytes follow it."""
    try:
        with path.open("rb") as file:
            total = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER_BYTES, total - 8):
                raise ModelError(f"`{path}` is no safetensors file, or cut short ({total} bytes)", DAMAGED)
            header = json.loads(file.read(length).decode("utf-8"))
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read ({error.strerror or error})", DAMAGED) from None
    except (ValueError, RecursionError):
        raise ModelError(f"`{path}` has a damaged header", DAMAGED) from None
    metadata = (header.get("__metadata__") or {}) if isinstance(header, dict) else None  # MLX writes null for none
    if not isinstance(metadata, dict) or not all(map(is_text, (*header, *metadata, *metadata.values()))):
        raise ModelError(f"`{path}` has a damaged header", DAMAGED)
    return header, total - 8 - length


def is_text(value: Any) -> bool:
    """True for strings that can be written: JSON's escapes can also spell lone surrogates."""
    return isinstance(value, str) and not any("\ud800" <= each <= "\udfff" for each in value)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, safetensors or GGUF, checked against the file's size."""
    if path.suffix == ".gguf":
        return read_gguf_header(path)
    header, room = raw_header(path)
    header.pop("__metadata__", None)
    begin = path.stat().st_size - room
    infos = {name: check_entry(path, name, entry, begin, room) for name, entry in header.items()}
    ranges = sorted((header[name]["data_offsets"], name) for name in infos)
    for ((_, end), one), ((start, _), other) in pairwise(ranges):
        if start < end:
            raise ModelError(f"`{path}`: tensors `{one}` and `{other}` share bytes", DAMAGED)
    return infos


def read_metadata(path: Path) -> dict[str, str]:
    """The free-form metadata in a safetensors header."""
    return dict(raw_header(path)[0].get("__metadata__") or {})


def check_entry(path: Path, name: str, entry: Any, begin: int, room: int) -> TensorInfo:
    """One header entry as a TensorInfo, its bytes inside the `room` that begins at byte `begin` of the file."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(n) is int and n >= 0 for n in (*shape, start, end)) and start <= end <= room
    except (TypeError, KeyError, ValueError):
        raise ModelError(f"`{path}`: the header entry of tensor `{name}` is damaged", DAMAGED) from None
    if not sound:
        raise ModelError(f"`{path}`: tensor `{name}` lies outside the file, which is cut short or damaged", DAMAGED)
    if not isinstance(dtype, str) or dtype not in BYTES:
        problem = f"`{path}`: tensor `{name}` has the type `{dtype}`, which is not supported"
        raise ModelError(problem, f"supported: {', '.join(BYTES)}")
    if end - start != math.prod(shape) * BYTES[dtype]:
        raise ModelError(f"`{path}`: tensor `{name}` has {end - start} bytes, but shape {shape} of {dtype}", DAMAGED)
    return TensorInfo(path, name, dtype, shape, begin + start)


def tensors_in(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder, sharded or not.  Reads headers only."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return sharded(index)
        if (folder / f"{stem}.safetensors").is_file():
            return read_header(folder / f"{stem}.safetensors")
    if saved_by_mflux(folder):
        shards = (path for path in folder.glob("*.safetensors") if path.stem.isdecimal())
        return {name: info for path in sorted(shards) for name, info in read_header(path).items()}
    names = " or ".join(f"`{stem}.safetensors`" for stem in STEMS)
    raise ModelError(f"no weights in `{folder}`: expected {names}, or an index of shards", "is this a whole model?")


def saved_by_mflux(folder: Path) -> bool:
    """True for a part that mflux saved: shards 0.safetensors, 1.safetensors, ... and sometimes no config.json."""
    return (folder / "0.safetensors").is_file()


def sharded(index: Path) -> dict[str, TensorInfo]:
    """The tensors that an index file names, each found in its shard."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ModelError(f"`{index}` has no table `weight_map` of tensor and file names", DAMAGED)
    shards = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or len(file) > MAX_NAME or not (index.parent / file).is_file():
            raise ModelError(f"shard `{file[:60]}`, named in `{index}`, is missing", "download the model again")
        shards[file] = read_header(index.parent / file)
    lost = [name for name, file in names.items() if name not in shards[file]]
    if lost:
        raise ModelError(f"shard `{names[lost[0]]}` lacks tensor `{lost[0]}` that `{index}` says it holds", DAMAGED)
    return {name: info for shard in shards.values() for name, info in shard.items()}


def read_tensor(info: TensorInfo, rows: slice | None = None) -> mx.array:
    """One tensor, or some of its rows; only those bytes are read, and nothing is kept."""
    if info.offset < 0:
        array = read_gguf_tensor(info)
        return array if rows is None else array[rows]
    raw: np.ndarray = np.zeros(info.shape, NUMPY[info.dtype])
    if info.size:
        raw = np.memmap(info.file, NUMPY[info.dtype], "r", info.offset, info.shape)
    raw = raw if rows is None else raw[rows]
    if info.dtype == "F64":
        return mx.array(raw.astype(np.float32))
    if info.dtype == "BF16":
        return mx.array(raw).view(mx.bfloat16)
    if info.dtype == "F8_E4M3":
        return mx.from_fp8(mx.array(raw), mx.bfloat16)  # every one of its numbers is a bfloat16
    return mx.array(raw)


@lru_cache(maxsize=2)
def gguf_tensors(path: Path, modified: int) -> dict[str, Any]:
    from gguf import GGUFReader

    try:
        return {tensor.name: tensor for tensor in GGUFReader(path, "r").tensors}
    except Exception as error:  # the reader checks little itself: IndexError, ValueError, UnicodeDecodeError, ...
        raise ModelError(f"`{path}` is no GGUF file, or damaged ({error})", DAMAGED) from None


def read_gguf_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file.  Raises ModelError for a damaged file or a type that cannot be unpacked."""
    try:
        modified = path.stat().st_mtime_ns
    except OSError as error:
        raise ModelError(f"`{path}` cannot be read ({error.strerror})", DAMAGED) from None
    infos = {}
    for name, tensor in gguf_tensors(path, modified).items():
        kind = tensor.tensor_type.name
        if kind not in GGUF_TYPES:
            raise ModelError(
                f"`{path}`: tensor `{name}` has the type {kind}, which is not supported",
                f"use a file with one of {', '.join(sorted(GGUF_TYPES))}",
            )
        infos[name] = TensorInfo(path, name, kind, tuple(int(side) for side in reversed(tensor.shape)))
    return infos


def read_gguf_tensor(info: TensorInfo) -> mx.array:
    """One tensor, unpacked to float32 (F16 and BF16 hold exact values, so nothing is lost)."""
    from gguf.quants import dequantize

    tensor = gguf_tensors(info.file, info.file.stat().st_mtime_ns)[info.name]
    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    return mx.array(values.reshape(info.shape))


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A name beside the target to write to; at the end that file becomes the target.  A failure leaves no trace."""
    partial = target.with_name(f".{target.stem}-{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(target)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_tensors(path: Path, tensors: dict[str, mx.array], metadata: dict[str, str]) -> None:
    """A safetensors file.  Raises OSError where it cannot be written: MLX says that with a RuntimeError."""
    try:
        mx.save_safetensors(str(path), tensors, metadata)
    except RuntimeError as error:
        raise OSError(errno.ENOSPC, "the disk is full, or takes no file of this size", str(path)) from error


# --- arrays that can be made again -----------------------------------------------------------------------------------


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
        self.folder, self.stamp, self.most = folder, stamp, most

    def path(self, *what: object) -> Path | None:
        if self.folder is None:
            return None
        stamp = digest(version("mlx"), version("mflux"), on_cpu(), *self.stamp)
        return self.folder / f"{digest(stamp, *what)}.safetensors"

    def of(self, make: Callable[[], Mapping[str, mx.array]], *what: object) -> Arrays:
        """The arrays that `make` gives for this; made if they are not there yet, or cannot be read."""
        path = self.path(*what)
        found = kept_arrays(path)
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


def kept_arrays(path: Path | None) -> Arrays | None:
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
