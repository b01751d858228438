"""Weights of one part to a network in memory: strict, streamed, optionally quantized.

Every tensor that the network expects has to be there with its shape, and every tensor of the file has to be used; what
is tolerated stands in KINDS and ABSENT.  Tensors are read, converted and quantized one at a time.
"""

import logging
import re
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mflux.errors import ModelError
from mflux.models.layers import GROUP_SIZE, Packed, QuantizedEmbedding, QuantizedLinear
from mflux.runtime import on_cpu
from mflux.weights.catalog import BITS
from mflux.weights.files import TensorInfo, read_tensor, tensors_in
from mflux.weights.kinds import KINDS, own_tensors, read_config
from mflux.weights.layouts import AUTOENCODER, BFL, MFLUX, Rule, blocks_in, numbered, spellings

PACKED = ("weight", "scales", "biases")  # tensors of a quantized module
ABSENT = {"transformer": "norm_out.linear.bias"}  # mflux 0.16 to 0.21 did not save it
FOREIGN_HINT = "it belongs to another kind of model, or is saved in a layout that is not known here"
FLOATS = ("F16", "BF16", "F32")
FILE_TABLES = {"transformer": BFL, "vae": AUTOENCODER}  # of single files
SCALE_LEAVES = ("scale_weight", "weight_scale")  # of float8 weights: weight = stored * scale
IGNORED_LEAVES = ("scale_input", "input_scale", "scaled_fp8")  # for activations in 8 bit; a marker
log = logging.getLogger("mflux")


class Source(NamedTuple):
    """Where the numbers of one of our tensors are: some rows of a file's tensor, perhaps times a scale.

    op: `swap_halves` (of the rows), `channels_last` (a convolution stored as MLX wants it), or `copy`.  bits: of a
    tensor that belongs to a quantized module.
    """

    info: TensorInfo
    rows: slice | None = None
    op: str = "copy"
    factor: TensorInfo | None = None
    bits: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """As torch stores it: convolutions channel-first."""
        shape = self.info.shape
        if self.op == "channels_last":
            return (shape[0], shape[3], shape[1], shape[2])
        return shape if self.rows is None else (len(range(*self.rows.indices(shape[0]))), *shape[1:])

    def read(self) -> mx.array:
        """The tensor as MLX wants it: convolutions channel-last."""
        tensor = read_tensor(self.info, self.rows)
        if self.factor is not None:
            tensor = tensor.astype(mx.float32) * read_tensor(self.factor).astype(mx.float32).reshape(-1)[0]
        if self.op == "swap_halves":
            first, second = mx.split(tensor, 2, axis=0)
            tensor = mx.concatenate([second, first], axis=0)
        return tensor.transpose(0, 2, 3, 1) if tensor.ndim == 4 and self.op != "channels_last" else tensor


Sources = dict[str, Source]  # by our names


# --- which tensor is which --------------------------------------------------------------------------------------------


def expected_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a network needs, convolutions channel-first as in torch's files."""
    tensors: dict[str, mx.array] = dict(tree_flatten(network.parameters()))  # type: ignore[arg-type]
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return {name: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for name, s in shapes.items()}


def check(part: str, place: Path, network: nn.Module) -> Sources:
    """The sources of the network's tensors, or a ModelError that names the first one that does not fit."""
    kind, expected = KINDS[part], expected_shapes(network)
    found = file_sources(part, place, expected) if place.is_file() else folder_sources(part, place)
    names = (source.info.name for source in found.values())
    if part in ABSENT and ABSENT[part] not in found and mflux_rules(part, names):
        log.warning(f"`{place}` lacks `{ABSENT[part]}`, as models saved by mflux 0.16 to 0.21 do: zeros are used")
        del expected[ABSENT[part]]
    packed = packed_modules(place, found, expected)
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"`{place}` lacks the tensor `{name}`, shape {shape}", "the checkpoint is incomplete")
        theirs = found[name].shape
        if name not in packed and theirs not in (shape, (*shape, 1, 1)):  # a 1 x 1 convolution for a Linear
            raise ModelError(
                f"`{place}`: tensor `{name}` has shape {theirs}, but the sizes of this model ask for {shape}",
                "weights and config.json do not belong together, or the file is damaged",
            )
    for name in found:
        if name not in expected and name not in packed and not re.fullmatch(kind.tolerated, name):
            raise ModelError(f"`{place}` holds a tensor `{name}` that this network has no place for", FOREIGN_HINT)
    wrong = next((name for name in expected if name not in packed and not stores_numbers(found[name].info)), None)
    if wrong:
        raise ModelError(f"`{place}`: tensor `{wrong}` has the type {found[wrong].info.dtype}", f"weights are {FLOATS}")
    return {name: found[name] for name in expected if name not in packed} | packed


def packed_modules(place: Path, found: Sources, expected: dict[str, tuple[int, ...]]) -> Sources:
    """The tensors of modules that are stored quantized; how many bits a weight has follows from the shapes."""
    packed: Sources = {}
    for scales in [name for name in found if name.endswith(".scales")]:
        module = scales.removesuffix(".scales")
        sources = {leaf: found.get(f"{module}.{leaf}") for leaf in PACKED}
        shape = expected.get(f"{module}.weight", ())
        if len(shape) != 2:
            continue  # a module that is not ours: it is named as foreign, or tolerated
        stored = {leaf: source.info.shape for leaf, source in sources.items() if source}
        groups = (shape[0], shape[1] / GROUP_SIZE)
        fits = [
            bits
            for bits in BITS
            if stored == dict.fromkeys(PACKED, groups) | {"weight": (shape[0], shape[1] * bits / 32)}
        ]
        kinds = {leaf: source.info.dtype for leaf, source in sources.items() if source}
        if not fits or kinds.pop("weight") != "U32" or not set(kinds.values()) <= set(FLOATS):
            raise ModelError(
                f"`{place}`: `{module}` is quantized with shapes {stored}, but the sizes of this model ask for {shape}",
                f"{', '.join(map(str, BITS))} bits in groups of {GROUP_SIZE} are read",
            )
        packed |= {f"{module}.{leaf}": source._replace(bits=fits[0]) for leaf, source in sources.items() if source}
    return packed


def stores_numbers(info: TensorInfo) -> bool:
    """True for types that hold weights: floats, and everything that a GGUF file packs."""
    return info.offset < 0 or info.dtype in (*FLOATS, "F8_E4M3")


def folder_sources(part: str, folder: Path) -> Sources:
    """The tensors of a folder in the layout of diffusers or mflux, under our names."""
    kind, found = KINDS[part], tensors_in(folder)
    if not any(name.startswith(kind.prefix) for name in found):
        found = {kind.prefix + name: info for name, info in found.items()}
    for theirs, ours in kind.aliases.items():
        if theirs in found and ours not in found:
            found[ours] = found.pop(theirs)
    rules = mflux_rules(part, found)
    if not rules:
        return {name: Source(info) for name, info in found.items()}
    sources = {}
    for name, info in found.items():
        module, _, leaf = name.rpartition(".")
        ours = rules.get(module, Rule((module,))).ours[0]
        sources[f"{ours}.{leaf}"] = Source(info, op="channels_last" if len(info.shape) == 4 else "copy")
    return sources


def mflux_rules(part: str, names: Iterable[str]) -> dict[str, Rule]:
    """mflux's names of a part's modules -> ours, where the tensors `names` are called so; else nothing."""
    names = list(names)
    rules = numbered(MFLUX.get(part, {}), blocks_in(names))
    return rules if any(name.rpartition(".")[0] in rules for name in names) else {}


def stored_bits(sources: Iterable[Source]) -> set[int]:
    """To how many bits the quantized tensors among these are stored."""
    return {source.bits for source in sources} - {0}


def file_sources(part: str, path: Path, expected: dict[str, tuple[int, ...]]) -> Sources:
    """The tensors of a single file in BFL's or ComfyUI's layout, under our names; fused ones as their rows."""
    kind = KINDS[part]
    rules = spellings({name.rpartition(".")[0] for name in expected}, FILE_TABLES.get(part) or kind.table)
    found: Sources = {}
    infos = own_tensors(part, path)
    for name, info in infos.items():
        name = kind.aliases.get(name, name)
        module, _, leaf = name.rpartition(".")
        rule = rules.get(module)
        if {leaf, name} & {*IGNORED_LEAVES, *SCALE_LEAVES} or (rule is None and re.fullmatch(kind.tolerated, name)):
            continue
        if rule is None or leaf not in ("weight", "bias", "scale"):
            raise ModelError(f"`{path}` holds a tensor `{name}` that this network has no place for", FOREIGN_HINT)
        scales = [
            infos[f"{module}.{scale}"] for scale in SCALE_LEAVES if leaf == "weight" and f"{module}.{scale}" in infos
        ]
        start = 0
        for ours in rule.ours:
            full = f"{ours}.{'bias' if leaf == 'bias' else 'weight'}"
            height = expected[full][0]
            rows = slice(start, start + height) if len(rule.ours) > 1 else None
            found[full] = Source(info, rows, rule.op, scales[0] if scales else None)
            start += height
        if len(rule.ours) > 1 and info.shape[0] != start:
            problem = f"`{path}`: tensor `{name}` has {info.shape[0]} rows, but its parts need {start}"
            raise ModelError(problem, FOREIGN_HINT)
    return found


# --- into memory ------------------------------------------------------------------------------------------------------


def open_network(part: str, place: Path, config: Any = None) -> tuple[Any, Sources]:
    """An empty network and the sources of its weights, all checked; reads headers only.

    part: a key of KINDS.  place: its folder, or a single file.  config: sizes in place of the place's own.
    """
    network = KINDS[part].build(config or read_config(part, place))
    return network, check(part, place, network)


def load_network(
    part: str, place: Path, dtype: mx.Dtype | None = None, bits: int | None = None, config: Any = None
) -> Any:
    """Build and fill one network; see `open_network` and `fill`."""
    return fill(*open_network(part, place, config), dtype, bits if part != "vae" else None)


def fill(network: Any, sources: Sources, dtype: mx.Dtype | None, bits: int | None) -> Any:
    """Read, convert and quantize module by module; the peak is the result and one module more.

    dtype: of the weights and so of the activations; None: float32 on the CPU, as stored on a GPU (bfloat16 where that
    cannot compute).  bits: quantize every Linear and Embedding whose input is a multiple of 64, in groups of 64, from
    the numbers as they are stored.  What is stored quantized stays as it is.
    """
    for path, module in filled(network, sources, dtype or (mx.float32 if on_cpu() else None), bits):
        put(network, path, module)
    network.freeze()
    return network


def filled(
    network: Any,
    sources: Sources,
    dtype: mx.Dtype | None,
    bits: int | None,
    change: Callable[[str, nn.Module], None] | None = None,
    skip: Container[str] = (),
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold arrays, each with its path and its weights, evaluated.

    change: may alter a module that is not stored quantized, before it is quantized.  skip: paths to leave alone.
    """
    for path, module in list(network.named_modules()):
        prefix = f"{path}." if path else ""
        tensors = [name for name, value in module.items() if isinstance(value, mx.array)]
        if not tensors or path in skip:
            continue
        stored = f"{prefix}scales" in sources
        packs = stored or (bits is not None and can_quantize(module))
        for name in tensors:
            if not (stored and name == "weight"):
                kept = packs and name == "weight"  # quantized from the numbers as they are stored
                module[name] = read_one(sources.get(prefix + name), module[name], None if kept else dtype)
        if change and not stored:
            change(path, module)
        ready = module
        if packs:
            ready = stored_module(module, path, sources, dtype) if stored else quantize_module(module, bits or 0, dtype)
        mx.eval(ready.parameters())
        if ready is not module:
            for name in tensors:
                del module[name]  # who goes on with `ready` must not keep the whole weights in memory
        yield path, ready


def read_one(source: Source | None, empty: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """One tensor in `dtype` (None: its own, or bfloat16 where that cannot compute), or zeros for a tolerated hole."""
    if source is None:
        return mx.zeros(empty.shape, dtype or mx.bfloat16)
    tensor = source.read().reshape(empty.shape)
    return tensor.astype(dtype or (tensor.dtype if source.info.dtype in FLOATS else mx.bfloat16))


def can_quantize(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding) and not module.weight.shape[-1] % GROUP_SIZE


def quantize_module(module: Any, bits: int, dtype: mx.Dtype | None = None) -> Any:
    """The quantized form of a Linear or Embedding (activations in `dtype`); None for what cannot be quantized."""
    if not can_quantize(module):
        return None
    weight, scales, biases = mx.quantize(module.weight, GROUP_SIZE, bits)
    return packed_module(module, (weight, scales, biases), bits, dtype)


def stored_module(module: Any, path: str, sources: Sources, dtype: mx.Dtype | None) -> Any:
    weight, scales, biases = (sources[f"{path}.{leaf}"] for leaf in PACKED)
    return packed_module(module, (weight.read(), scales.read(), biases.read()), weight.bits, dtype)


def packed_module(module: Any, packed: Packed, bits: int, dtype: mx.Dtype | None) -> Any:
    if isinstance(module, nn.Embedding):
        return QuantizedEmbedding(packed, bits, dtype or module.weight.dtype)
    return QuantizedLinear(packed, bits, module.bias if "bias" in module else None)


def put(network: nn.Module, path: str, module: nn.Module) -> None:
    """Replace the module at a dotted path; the network itself has the path ``."""
    if not path:
        return
    *parents, last = path.split(".")
    holder: Any = network
    for name in parents:
        holder = holder[int(name)] if isinstance(holder, list) else holder[name]
    if isinstance(holder, list):
        holder[int(last)] = module
    else:
        holder[last] = module
