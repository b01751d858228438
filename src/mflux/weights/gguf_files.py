"""GGUF checkpoints, read by the `gguf` package; refused by name where it cannot unpack a type."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mflux.errors import ModelError
from mflux.weights.files import DAMAGED, TensorInfo

# Types whose unpacking was compared with the oracle's numbers.
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
TYPES += ("IQ4_NL", "IQ4_XS")


@lru_cache(maxsize=2)
def _tensors(path: Path, modified: int) -> dict[str, Any]:
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
    for name, tensor in _tensors(path, modified).items():
        kind = tensor.tensor_type.name
        if kind not in TYPES:
            raise ModelError(
                f"`{path}`: tensor `{name}` has the type {kind}, which is not supported",
                f"use a file with one of {', '.join(TYPES)}",
            )
        infos[name] = TensorInfo(path, name, kind, tuple(int(side) for side in reversed(tensor.shape)))
    return infos


def read_gguf_tensor(info: TensorInfo) -> mx.array:
    """One tensor, unpacked to float32 (F16 and BF16 hold exact values, so nothing is lost)."""
    from gguf.quants import dequantize

    tensor = _tensors(info.file, info.file.stat().st_mtime_ns)[info.name]
    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    return mx.array(values.reshape(info.shape))
