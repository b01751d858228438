"""Safetensors checkpoints: headers checked before a byte of weights is read, tensors read one at a time.

A file can be wrong in these ways, each with its own message: it is absent; shorter than its header says; its header is
too large, no JSON, or no table of tensors; a tensor has an unknown type, a negative size, bytes outside the file, or
bytes that do not fit its shape; an index names a shard that is absent or a tensor that its shard lacks.
"""

import json
import math
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx

from mflux.errors import ModelError

MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
BYTES |= {"U16": 2, "U32": 4, "U64": 8}
STEMS = ("diffusion_pytorch_model", "model")
DAMAGED = "the file is incomplete or damaged; copy or download it again"


class TensorInfo(NamedTuple):
    """One tensor of a file, not read yet."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]

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
    if not isinstance(header, dict):
        raise ModelError(f"`{path}` has a damaged header", DAMAGED)
    return header, total - 8 - length


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked against the file's size."""
    header, room = raw_header(path)
    header.pop("__metadata__", None)
    return {name: check_entry(path, name, entry, room) for name, entry in header.items()}


def read_metadata(path: Path) -> dict[str, Any]:
    """The free-form metadata in a safetensors header."""
    metadata = raw_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def check_entry(path: Path, name: str, entry: Any, room: int) -> TensorInfo:
    """One header entry as a TensorInfo, its bytes inside the `room` behind the header."""
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(isinstance(n, int) and n >= 0 for n in (*shape, start, end)) and start <= end <= room
    except (TypeError, KeyError, ValueError):
        raise ModelError(f"`{path}`: the header entry of tensor `{name}` is damaged", DAMAGED) from None
    if not sound:
        raise ModelError(f"`{path}`: tensor `{name}` lies outside the file, which is cut short or damaged", DAMAGED)
    if dtype not in BYTES:
        raise ModelError(f"`{path}`: tensor `{name}` has the type `{dtype}`, which is not supported")
    if end - start != math.prod(shape) * BYTES[dtype]:
        raise ModelError(f"`{path}`: tensor `{name}` has {end - start} bytes, but shape {shape} of {dtype}", DAMAGED)
    return TensorInfo(path, name, dtype, shape)


def tensors_in(folder: Path) -> dict[str, TensorInfo]:
    """All tensors of a model folder, sharded or not.  Reads headers only."""
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return sharded(index)
        if (folder / f"{stem}.safetensors").is_file():
            return read_header(folder / f"{stem}.safetensors")
    names = " or ".join(f"`{stem}.safetensors`" for stem in STEMS)
    raise ModelError(f"no weights in `{folder}`: expected {names}, or an index of shards", "is this a whole model?")


def sharded(index: Path) -> dict[str, TensorInfo]:
    """The tensors that an index file names, each found in its shard."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ModelError(f"`{index}` has no table `weight_map` of tensor and file names", DAMAGED)
    shards = {}
    for file in sorted(set(names.values())):
        if Path(file).name != file or not (index.parent / file).is_file():
            raise ModelError(f"shard `{file}`, named in `{index}`, is missing", "download the model again")
        shards[file] = read_header(index.parent / file)
    lost = [name for name, file in names.items() if name not in shards[file]]
    if lost:
        raise ModelError(f"shard `{names[lost[0]]}` lacks tensor `{lost[0]}` that `{index}` says it holds", DAMAGED)
    return {name: info for shard in shards.values() for name, info in shard.items()}


@lru_cache(maxsize=4)
def _lazy(path: Path, modified: int) -> dict[str, mx.array]:
    return dict(mx.load(str(path)))  # type: ignore[arg-type]  # lazy: a tensor is read when it is evaluated


def read_tensor(info: TensorInfo) -> mx.array:
    """One tensor; MLX reads its bytes when they are first needed."""
    return _lazy(info.file, info.file.stat().st_mtime_ns)[info.name]
