"""Files as an enemy or a broken disk makes them.  Each table maps what is wrong to the bytes that are so."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CONFIGS = {
    "transformer": "transformer/config.json",
    "vae": "vae/config.json",
    "clip": "text_encoder/config.json",
    "t5": "text_encoder_2/config.json",
    "scheduler": "scheduler/scheduler_config.json",
}


def copy_model(source: Path, target: Path) -> Path:
    """A model folder of its own, for a test to damage."""
    return Path(shutil.copytree(source, target))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def png(width: int, height: int, rows: int = 0) -> bytes:
    """A grey PNG whose header claims a size, with `rows` rows of it really there."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(rows * (width + 1)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def picture(path: Path, width: int = 64, height: int = 48, seed: int = 3) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(path)
    return path


def mask(path: Path, width: int = 64, height: int = 48, white: int = 255) -> Path:
    values = np.zeros((height, width), np.uint8)
    values[height // 4 : height // 2, width // 4 : width // 2] = white
    Image.fromarray(values).save(path)
    return path


def truncated(path: Path, source: Path) -> Path:
    raw = source.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    return path


BROKEN_PICTURES: dict[str, bytes] = {
    "no bytes at all": b"",
    "a text": b"this is no picture\n",
    "a PNG signature alone": b"\x89PNG\r\n\x1a\n",
    "a PNG without pixels": png(64, 48),
    "a JPEG signature alone": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "a GIF of no size": b"GIF89a\x00\x00\x00\x00\x00\x00\x00;",
    "a WebP cut short": b"RIFF\x24\x00\x00\x00WEBPVP8L",
    "a TIFF that points nowhere": b"II*\x00\xff\xff\xff\x7f",
    "a PNG of no width": png(0, 48),
    "a PNG of 2^31 px a side": png(2**31 - 1, 2**31 - 1),
    "a PNG of 60000 px a side": png(60000, 60000, 1),
}


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of any header (JSON value or raw bytes), claiming any header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": offsets}


WHOLE = safetensors({"a": entry()}, b"\0\0\0\0")
BROKEN_HEADERS: dict[str, bytes] = {
    "no bytes at all": b"",
    "seven bytes": b"\0" * 7,
    "a length and nothing else": struct.pack("<Q", 100),
    "a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 2^64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header of no bytes": struct.pack("<Q", 0) + b"{}",
    "a header beyond the file": safetensors({"a": entry()}, length=10_000),
    "a header that is no JSON": safetensors(b"not json"),
    "a header that is no UTF-8": safetensors(b'{"\xff\xfe": 1}'),
    "a header nested 100000 deep": safetensors(b"[" * 100_000),
    "a header with a number of 5000 digits": safetensors(b'{"a": ' + b"9" * 5000 + b"}"),
    "a list as header": safetensors([]),
    "a number as header": safetensors(b"12"),
    "null as header": safetensors(b"null"),
    "an entry that is a list": safetensors({"a": []}),
    "an entry that is null": safetensors({"a": None}),
    "an entry that is a text": safetensors({"a": "F32"}),
    "an entry without a type": safetensors({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "an entry without a shape": safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"\0" * 4),
    "an entry without a place": safetensors({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
    "a type that is a list": safetensors({"a": entry(dtype=[])}, b"\0" * 4),
    "a type that is a table": safetensors({"a": entry(dtype={})}, b"\0" * 4),
    "a type nobody knows": safetensors({"a": entry(dtype="F13")}, b"\0" * 4),
    "a type that is null": safetensors({"a": entry(dtype=None)}, b"\0" * 4),
    "a shape that is a text": safetensors({"a": entry(shape="1")}, b"\0" * 4),
    "a shape that is a number": safetensors({"a": entry(shape=1)}, b"\0" * 4),
    "a shape with a fraction": safetensors({"a": entry(shape=[1.0])}, b"\0" * 4),
    "a shape below nothing": safetensors({"a": entry(shape=[-1, -1])}, b"\0" * 4),
    "a shape of true": safetensors({"a": entry(shape=[True])}, b"\0" * 4),
    "a shape that multiplies beyond 2^64": safetensors({"a": entry(shape=[2**40, 2**40])}, b"\0" * 4),
    "a place before the file": safetensors({"a": entry(offsets=[-4, 0])}, b"\0" * 4),
    "a place behind the file": safetensors({"a": entry(offsets=[4, 8])}, b"\0" * 4),
    "a place that ends before it starts": safetensors({"a": entry(shape=[0], offsets=[4, 0])}, b"\0" * 4),
    "a place of one number": safetensors({"a": entry(offsets=[0])}, b"\0" * 4),
    "a place of texts": safetensors({"a": entry(offsets=["0", "4"])}, b"\0" * 4),
    "a place that is null": safetensors({"a": entry(offsets=None)}, b"\0" * 4),
    "fewer bytes than the shape": safetensors({"a": entry(shape=[2])}, b"\0" * 4),
    "more bytes than the shape": safetensors({"a": entry(offsets=[0, 8])}, b"\0" * 8),
    "a file cut short": WHOLE[:-1],
    "two tensors in the same bytes": safetensors({"a": entry(), "b": entry()}, b"\0" * 4),
    "two tensors that overlap": safetensors(
        {"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, b"\0" * 8
    ),
}


def tensor_file(folder: Path) -> Path:
    """The one weights file of a part (the first shard, where there are several)."""
    return min(folder.glob("*.safetensors"))


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """Change the tensors of a part's first file and write them again."""
    from safetensors.numpy import load_file, save_file

    path = tensor_file(folder)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
