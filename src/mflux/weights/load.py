"""A folder of weights to a network in memory: strict, streamed, optionally quantized.

Every tensor that the network expects has to be there with its shape, and every tensor of the file has to be used; what
is tolerated stands in TOLERATED.  Tensors are read, converted and quantized one at a time.
"""

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mflux.errors import ModelError
from mflux.models.layers import QuantizedLinear, on_cpu
from mflux.models.text_clip import ACTIVATIONS, ClipConfig, ClipTextEncoder
from mflux.models.text_t5 import T5Config, T5Encoder
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.models.vae import Vae, VaeConfig
from mflux.weights.files import TensorInfo, read_json, read_tensor, tensors_in

QUANTIZE_BITS = (3, 4, 5, 6, 8)
GROUP_SIZE = 64


class NetworkKind(NamedTuple):
    """How a part of a model is built, and what its files may hold besides."""

    config: type
    build: Callable[[Any], nn.Module]
    tolerated: str  # tensors of the file that may stay unused, a regular expression
    aliases: dict[str, str]  # names in some files -> ours
    prefix: str = ""  # of all our names; transformers 5 saves without it


KINDS = {
    "transformer": NetworkKind(TransformerConfig, FluxTransformer, r"$^", {}),
    "text_encoder": NetworkKind(
        ClipConfig,
        ClipTextEncoder,
        r"text_model\.embeddings\.position_ids|text_projection\.weight",
        {},
        prefix="text_model.",
    ),
    "text_encoder_2": NetworkKind(
        T5Config,
        T5Encoder,
        r"(encoder|decoder)\.embed_tokens\.weight",
        {"encoder.embed_tokens.weight": "shared.weight"},
    ),
    "vae": NetworkKind(VaeConfig, Vae, r"$^", {}),
}


def read_config(part: str, folder: Path) -> Any:
    """The sizes of a part, from its config.json; unknown keys are ignored, wrong values are a ModelError."""
    path, kind = folder / "config.json", KINDS[part].config
    raw, values = read_json(path), {}
    for each in fields(kind):
        value = raw.get(each.name)
        if value is None:
            continue  # diffusers writes null for "the default", for example out_channels
        default = each.default
        if isinstance(default, tuple):
            sound = isinstance(value, list) and value and all(type(n) is int and n > 0 for n in value)
            value = tuple(value) if sound else value
        elif isinstance(default, bool):
            sound = isinstance(value, bool)
        elif isinstance(default, int):
            sound = type(value) is int and value >= 0
        else:
            sound = isinstance(value, str if isinstance(default, str) else (int, float)) and not isinstance(value, bool)
        if not sound:
            raise ModelError(f"`{path}`: `{each.name}` is {value!r}, which is no size", "is this the right config?")
        values[each.name] = value
    if part == "transformer" and not raw.get("out_channels"):
        values["out_channels"] = values.get("in_channels", TransformerConfig.in_channels)
    config = kind(**values)
    check_config(path, config)
    return config


def check_config(path: Path, config: Any) -> None:
    """Refuse sizes that contradict each other."""
    if isinstance(config, TransformerConfig) and (
        sum(config.axes_dims_rope) != config.attention_head_dim or any(n % 2 for n in config.axes_dims_rope)
    ):
        raise ModelError(
            f"`{path}`: `axes_dims_rope` {config.axes_dims_rope} should be even and add up to "
            f"`attention_head_dim` {config.attention_head_dim}"
        )
    if isinstance(config, ClipConfig) and config.hidden_act not in ACTIVATIONS:
        raise ModelError(f"`{path}`: `hidden_act` is `{config.hidden_act}`; known: {', '.join(ACTIVATIONS)}")
    if isinstance(config, VaeConfig) and any(n % config.norm_num_groups for n in config.block_out_channels):
        raise ModelError(f"`{path}`: `norm_num_groups` {config.norm_num_groups} does not divide `block_out_channels`")


def expected_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a network needs, as its file stores them (convolutions channel-first)."""
    tensors: dict[str, mx.array] = dict(tree_flatten(network.parameters()))  # type: ignore[arg-type]
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return {name: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for name, s in shapes.items()}


def check(part: str, folder: Path, network: nn.Module) -> dict[str, TensorInfo]:
    """The file's tensors under the network's names, or a ModelError that names the first one that does not fit."""
    kind, expected = KINDS[part], expected_shapes(network)
    found = tensors_in(folder)
    if not any(name.startswith(kind.prefix) for name in found):
        found = {kind.prefix + name: info for name, info in found.items()}
    for theirs, ours in kind.aliases.items():
        if theirs in found and ours not in found:
            found[ours] = found.pop(theirs)
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"`{folder}` lacks the tensor `{name}`, shape {shape}", "the checkpoint is incomplete")
        if found[name].shape != shape:
            raise ModelError(
                f"`{folder}`: tensor `{name}` has shape {found[name].shape}, but config.json asks for {shape}",
                "weights and config.json do not belong together, or the file is damaged",
            )
    for name in found:
        if name not in expected and not re.fullmatch(kind.tolerated, name):
            raise ModelError(f"`{folder}` holds a tensor `{name}` that this network has no place for")
    return {name: found[name] for name in expected}


def load_network(part: str, folder: Path, dtype: mx.Dtype | None = None, bits: int | None = None) -> Any:
    """Build and fill one network.  part: a key of KINDS.

    dtype: of the weights and so of the activations; None: float32 on the CPU, as stored on a GPU.
    bits: quantize every Linear and Embedding whose input is a multiple of 64, in groups of 64.
    """
    kind = KINDS[part]
    network = kind.build(read_config(part, folder))
    tensors = check(part, folder, network)
    dtype = dtype or (mx.float32 if on_cpu() else None)
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        own = {name: prefix + name for name, value in module.items() if isinstance(value, mx.array)}
        if not own:
            continue
        for name, full in own.items():
            module[name] = convert(read_tensor(tensors[full]), dtype)
        quantized = quantize_module(module, bits) if bits and part != "vae" else None
        if quantized is not None:
            put(network, path, quantized)
        mx.eval((quantized or module).parameters())
    network.freeze()
    return network


def convert(tensor: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """As the networks want it: convolutions channel-last (OIHW -> OHWI), floats in `dtype`."""
    tensor = tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return tensor.astype(dtype) if dtype and mx.issubdtype(tensor.dtype, mx.floating) else tensor


def quantize_module(module: nn.Module, bits: int) -> nn.Module | None:
    """The quantized form of a Linear or Embedding; None for anything else, or where the width is no multiple of 64."""
    if not isinstance(module, nn.Linear | nn.Embedding) or module.weight.shape[-1] % GROUP_SIZE:
        return None
    if isinstance(module, nn.Linear):
        return QuantizedLinear.from_linear(module, GROUP_SIZE, bits)
    return nn.QuantizedEmbedding.from_embedding(module, GROUP_SIZE, bits)


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a dotted path."""
    *parents, last = path.split(".")
    holder: Any = network
    for name in parents:
        holder = holder[int(name)] if isinstance(holder, list) else holder[name]
    if isinstance(holder, list):
        holder[int(last)] = module
    else:
        holder[last] = module
