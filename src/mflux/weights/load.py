"""A folder of weights to a network in memory: strict, streamed, optionally quantized.

Every tensor that the network expects has to be there with its shape, and every tensor of the file has to be used; what
is tolerated stands in TOLERATED.  Tensors are read, converted and quantized one at a time.
"""

import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mflux.errors import ModelError
from mflux.models.layers import QuantizedLinear
from mflux.models.text_clip import ACTIVATIONS, ClipConfig, ClipTextEncoder
from mflux.models.text_t5 import T5Config, T5Encoder
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.models.vae import Vae, VaeConfig
from mflux.runtime import on_cpu
from mflux.weights.files import TensorInfo, read_header, read_json, read_tensor, tensors_in
from mflux.weights.layouts import AUTOENCODER, BFL, Rule, spellings

GROUP_SIZE = 64
MAX_LAYERS, MAX_SIZE = 1000, 2**20  # beyond these a config.json is damaged
LAYER_COUNTS = ("num_layers", "num_single_layers", "layers_per_block", "num_hidden_layers")
FOREIGN_HINT = "it belongs to another kind of model, or is saved in a layout that is not known here"
CONFIG_HINT = "the file is damaged, or belongs to another kind of model"
FLOATS = ("F16", "BF16", "F32")


class NetworkKind(NamedTuple):
    """How a part of a model is built, and what its files may hold besides."""

    config: type
    build: Callable[[Any], nn.Module]
    tolerated: str  # tensors of the file that may stay unused, a regular expression
    aliases: dict[str, str]  # names in some files -> ours
    prefix: str = ""  # of all our names; transformers 5 saves without it
    section: str = ""  # of a config.json that also describes other networks
    sizes: Callable[[Path], Any] | None = None  # of a single file, where they follow from its tensors
    table: dict[str, Rule] = {}  # noqa: RUF012  (names in single files; nobody changes it)


# The parts of a model.  A condition that needs a network beside them adds its kind when it is imported.
KINDS: dict[str, NetworkKind] = {
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


FILE_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "vae": ("vae.", "first_stage_model."),
}
FILE_TABLES = {"transformer": BFL, "vae": AUTOENCODER}  # of single files
SCALE_LEAVES = ("scale_weight", "weight_scale")  # of float8 weights: weight = stored * scale
IGNORED_LEAVES = ("scale_input", "input_scale", "scaled_fp8")  # for activations in 8 bit; a marker


def read_config(part: str, folder: Path) -> Any:
    """The sizes of a part, from its config.json; unknown keys are ignored, wrong values are a ModelError.

    A single file has no config.json: a transformer's sizes come from its shapes, FLUX.1's autoencoder has one size.
    """
    if folder.is_file():
        sizes = config_from_shapes if part == "transformer" else KINDS[part].sizes
        return sizes(folder) if sizes else KINDS[part].config()
    path, kind = folder / "config.json", KINDS[part].config
    raw = read_json(path)
    section = raw.get(KINDS[part].section)
    raw = {**raw, **section} if isinstance(section, dict) else raw
    values = read_sizes(path, raw, kind)
    if part == "transformer" and not raw.get("out_channels"):
        values["out_channels"] = values.get("in_channels", TransformerConfig.in_channels)
    config = kind(**values)
    check_config(path, config)
    return config


def read_sizes(path: Path, raw: dict[str, Any], kind: type) -> dict[str, Any]:
    """The values of a (part of a) config.json that `kind` has fields for."""
    values = {}
    for each in fields(kind):
        value = raw.get(each.name)
        if value is None:  # diffusers writes null for "the default", for example out_channels
            continue
        if is_dataclass(each.default) and isinstance(value, dict):
            nested: Any = type(each.default)
            values[each.name] = nested(**read_sizes(path, value, nested))
        else:
            values[each.name] = check_size(path, each.name, value, each.default)
    return values


def check_size(path: Path, name: str, value: Any, default: Any) -> Any:
    """One value of a config.json, of its default's kind and in a sane range.  Raises ModelError."""
    if isinstance(default, bool):
        sound = isinstance(value, bool)
    elif isinstance(default, tuple):
        sound = isinstance(value, list) and len(value) == len(default)
        sound = sound and all(fits_in_list(n, example) for n, example in zip(value, default, strict=True))
        value = tuple(value) if sound else value
    elif isinstance(default, int):
        counts = name in LAYER_COUNTS
        low, high = (0, MAX_LAYERS) if counts else (0, 2**31 - 1) if name.endswith("_id") else (1, MAX_SIZE)
        sound = whole(value, low, high)
    elif isinstance(default, float):
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_SIZE
        sound = number and (value > 0 or not name.endswith(("eps", "epsilon", "scaling_factor")))
    else:
        sound = isinstance(value, str) and isinstance(default, str)
    if not sound:
        shown = repr(value) if len(repr(value)) < 60 else f"{repr(value)[:50]}..."
        raise ModelError(f"`{path}`: `{name}` is {shown}, which is no size of a model", CONFIG_HINT)
    return value


def fits_in_list(value: Any, example: float) -> bool:
    """True for a sane number of the example's kind: whole, or a share of 1."""
    if isinstance(example, int):
        return whole(value, 0, MAX_SIZE)
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def whole(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def check_config(path: Path, config: Any) -> None:
    """Refuse sizes that contradict each other."""
    problem = getattr(config, "problem", "")
    if isinstance(config, TransformerConfig):
        if sum(config.axes_dims_rope) != config.attention_head_dim or any(n % 2 for n in config.axes_dims_rope):
            sizes = f"{config.axes_dims_rope} should be even and add up to `attention_head_dim`"
            problem = f"`axes_dims_rope` {sizes} {config.attention_head_dim}"
    elif isinstance(config, ClipConfig):
        if config.hidden_act not in ACTIVATIONS:
            problem = f"`hidden_act` is `{config.hidden_act[:60]}`; known: {', '.join(ACTIVATIONS)}"
        elif config.hidden_size % config.num_attention_heads:
            problem = f"`num_attention_heads` {config.num_attention_heads} does not divide `hidden_size`"
    elif isinstance(config, T5Config):
        if config.relative_attention_num_buckets % 4 or config.relative_attention_max_distance <= (
            config.relative_attention_num_buckets // 4
        ):
            problem = "`relative_attention_num_buckets` and `relative_attention_max_distance` make no buckets"
    elif isinstance(config, VaeConfig) and any(n == 0 or n % config.norm_num_groups for n in config.block_out_channels):
        problem = f"`norm_num_groups` {config.norm_num_groups} does not divide `block_out_channels`"
    if problem:
        raise ModelError(f"`{path}`: {problem}", CONFIG_HINT)


def expected_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a network needs, as its file stores them (convolutions channel-first)."""
    tensors: dict[str, mx.array] = dict(tree_flatten(network.parameters()))  # type: ignore[arg-type]
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    return {name: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for name, s in shapes.items()}


class Source(NamedTuple):
    """Where the numbers of one of our tensors are: some rows of a file's tensor, perhaps times a scale."""

    info: TensorInfo
    rows: slice | None = None
    op: str = "copy"
    factor: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        if self.rows is None:
            return self.info.shape
        return (len(range(*self.rows.indices(self.info.shape[0]))), *self.info.shape[1:])

    def read(self) -> mx.array:
        tensor = read_tensor(self.info, self.rows)
        if self.factor is not None:
            tensor = tensor.astype(mx.float32) * read_tensor(self.factor).astype(mx.float32).reshape(-1)[0]
        if self.op == "swap_halves":
            first, second = mx.split(tensor, 2, axis=0)
            tensor = mx.concatenate([second, first], axis=0)
        return tensor


def check(part: str, place: Path, network: nn.Module) -> dict[str, Source]:
    """The sources of the network's tensors, or a ModelError that names the first one that does not fit."""
    kind, expected = KINDS[part], expected_shapes(network)
    found = file_sources(part, place, expected) if place.is_file() else folder_sources(part, place)
    for name, shape in expected.items():
        if name not in found:
            raise ModelError(f"`{place}` lacks the tensor `{name}`, shape {shape}", "the checkpoint is incomplete")
        theirs = found[name].shape
        if theirs != shape and theirs != (*shape, 1, 1):  # a 1 x 1 convolution in place of a Linear
            raise ModelError(
                f"`{place}`: tensor `{name}` has shape {theirs}, but the sizes of this model ask for {shape}",
                "weights and config.json do not belong together, or the file is damaged",
            )
    for name in found:
        if name not in expected and not re.fullmatch(kind.tolerated, name):
            raise ModelError(f"`{place}` holds a tensor `{name}` that this network has no place for", FOREIGN_HINT)
    wrong = next((name for name in expected if not stores_numbers(found[name].info)), None)
    if wrong:
        raise ModelError(f"`{place}`: tensor `{wrong}` has the type {found[wrong].info.dtype}", f"weights are {FLOATS}")
    return {name: found[name] for name in expected}


def stores_numbers(info: TensorInfo) -> bool:
    """True for types that hold weights: floats, and everything that a GGUF file packs."""
    return info.offset < 0 or info.dtype in (*FLOATS, "F8_E4M3")


def folder_sources(part: str, folder: Path) -> dict[str, Source]:
    """The tensors of a folder in the diffusers layout, under our names."""
    kind, found = KINDS[part], tensors_in(folder)
    if not any(name.startswith(kind.prefix) for name in found):
        found = {kind.prefix + name: info for name, info in found.items()}
    for theirs, ours in kind.aliases.items():
        if theirs in found and ours not in found:
            found[ours] = found.pop(theirs)
    return {name: Source(info) for name, info in found.items()}


def file_sources(part: str, path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Source]:
    """The tensors of a single file in BFL's or ComfyUI's layout, under our names; fused ones as their rows."""
    rules = spellings({name.rpartition(".")[0] for name in expected}, FILE_TABLES.get(part) or KINDS[part].table)
    found: dict[str, Source] = {}
    infos = own_tensors(part, path)
    for name, info in infos.items():
        module, _, leaf = name.rpartition(".")
        if leaf in IGNORED_LEAVES or name in IGNORED_LEAVES or leaf in SCALE_LEAVES:
            continue
        rule = rules.get(module)
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


def own_tensors(part: str, path: Path) -> dict[str, TensorInfo]:
    """The tensors of a part in a single file, without the prefix that all-in-one files give it."""
    infos = read_header(path)
    for prefix in FILE_PREFIXES.get(part, ()):
        if any(name.startswith(prefix) for name in infos):
            return {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
    return infos


def open_network(part: str, place: Path, config: Any = None) -> tuple[Any, dict[str, Source]]:
    """An empty network and the sources of its weights, all checked; reads headers only.

    part: a key of KINDS.  place: its folder, or a single file.  config: sizes in place of the place's own.
    """
    network = KINDS[part].build(config or read_config(part, place))
    return network, check(part, place, network)


def load_network(
    part: str, place: Path, dtype: mx.Dtype | None = None, bits: int | None = None, config: Any = None
) -> Any:
    """Build and fill one network; see `open_network` and `fill`."""
    return fill(part, *open_network(part, place, config), dtype, bits)


def fill(part: str, network: Any, sources: dict[str, Source], dtype: mx.Dtype | None, bits: int | None) -> Any:
    """Read, convert and quantize tensor by tensor; the peak is the result and one module more.

    dtype: of the weights and so of the activations; None: float32 on the CPU, as stored on a GPU (bfloat16 where that
    cannot compute).  bits: quantize every Linear and Embedding whose input is a multiple of 64, in groups of 64.
    """
    dtype = dtype or (mx.float32 if on_cpu() else None)
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        own = {name: prefix + name for name, value in module.items() if isinstance(value, mx.array)}
        if not own:
            continue
        for name, full in own.items():
            source = sources[full]
            tensor = source.read().reshape(source.shape[: module[name].ndim])
            module[name] = convert(tensor, dtype or (None if source.info.dtype in FLOATS else mx.bfloat16))
        quantized = quantize_module(module, bits) if bits and part != "vae" else None
        if quantized is not None:
            put(network, path, quantized)
        mx.eval((quantized or module).parameters())
    network.freeze()
    return network


def config_from_shapes(path: Path) -> TransformerConfig:
    """The sizes of a transformer in a single file, which has no config.json.  Raises ModelError if it is none."""
    shapes = {name: info.shape for name, info in own_tensors("transformer", path).items()}
    try:
        width, channels = shapes["img_in.weight"]
        head = shapes["double_blocks.0.img_attn.norm.query_norm.scale"][0]
        outputs, text = shapes["final_layer.linear.weight"][0], shapes["txt_in.weight"][1]
        pooled = shapes["vector_in.in_layer.weight"][1]
    except (KeyError, ValueError, IndexError):
        raise ModelError(f"`{path}` is no FLUX.1 transformer in BFL's layout", "give a FLUX.1 checkpoint") from None
    counts = [len({name.split(".")[1] for name in shapes if name.startswith(kind)}) for kind in ("double_", "single_")]
    part = head // 8  # of 128: 16 for the first id, 56 for row and column each
    return TransformerConfig(
        in_channels=channels,
        out_channels=outputs,
        num_layers=counts[0],
        num_single_layers=counts[1],
        attention_head_dim=head,
        num_attention_heads=width // head,
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds="guidance_in.in_layer.weight" in shapes,
        axes_dims_rope=(head - 2 * ((head - part) // 4 * 2), (head - part) // 4 * 2, (head - part) // 4 * 2),
    )


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
