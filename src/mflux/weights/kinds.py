"""The parts of a model: how each is built, and where its sizes are read from.

Sizes come from config.json, or from the shapes of a file that has none; never from a name.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn

from mflux.errors import ModelError
from mflux.models.layers import ACTIVATIONS, GROUP_SIZE, LayerSizes
from mflux.models.text_clip import ClipConfig, ClipTextEncoder
from mflux.models.text_t5 import T5Config, T5Encoder
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.models.vae import Vae, VaeConfig
from mflux.weights.files import TensorInfo, read_header, read_json, saved_by_mflux, tensors_in
from mflux.weights.layouts import Rule

MAX_LAYERS, MAX_SIZE = 1000, 2**20  # beyond these a config.json is damaged
LAYER_COUNTS = ("num_layers", "num_single_layers", "layers_per_block", "num_hidden_layers")
CONFIG_HINT = "the file is damaged, or belongs to another kind of model"


# mflux saves copy the first block's biases into all of them.
LATER_BIASES = r"encoder\.block\.\d+\.layer\.0\.SelfAttention\.relative_attention_bias\.(weight|scales|biases)"


class NetworkKind(NamedTuple):
    """How a part of a model is built, and what its files may hold besides."""

    config: type
    build: Callable[[Any], nn.Module]
    tolerated: str = r"$^"  # tensors of the file that may stay unused, a regular expression
    aliases: dict[str, str] = {}  # noqa: RUF012  (names in some files -> ours)
    prefix: str = ""  # of all our names; transformers 5 saves without it
    section: str = ""  # of a config.json that also describes other networks
    sizes: Callable[[Path], Any] | None = None  # of a single file, where they follow from its tensors
    table: dict[str, Rule] = {}  # noqa: RUF012  (names in single files; nobody changes it)


# The parts of a model.  A condition that needs a network beside them adds its kind when it is imported.
KINDS: dict[str, NetworkKind] = {
    "transformer": NetworkKind(TransformerConfig, FluxTransformer),
    "text_encoder": NetworkKind(
        ClipConfig,
        ClipTextEncoder,
        r"text_model\.embeddings\.position_ids|text_projection\.weight",
        prefix="text_model.",
    ),
    "text_encoder_2": NetworkKind(
        T5Config,
        T5Encoder,
        r"(encoder|decoder)\.embed_tokens\.weight|" + LATER_BIASES,
        {"encoder.embed_tokens.weight": "shared.weight"},
    ),
    "vae": NetworkKind(VaeConfig, Vae),
}


# What all-in-one files put before the names of each part.
FILE_PREFIXES = {
    "transformer": ("model.diffusion_model.", "diffusion_model."),
    "text_encoder": ("text_encoders.clip_l.transformer.",),
    "text_encoder_2": ("text_encoders.t5xxl.transformer.",),
    "vae": ("vae.", "first_stage_model."),
}
# Tensors that tell a transformer's sizes, as diffusers and as Black Forest Labs call them.
LANDMARKS = {
    "x_embedder.weight": "img_in.weight",
    "context_embedder.weight": "txt_in.weight",
    "time_text_embed.text_embedder.linear_1.weight": "vector_in.in_layer.weight",
    "time_text_embed.guidance_embedder.linear_1.weight": "guidance_in.in_layer.weight",
    "transformer_blocks.0.attn.norm_q.weight": "double_blocks.0.img_attn.norm.query_norm.scale",
    "proj_out.weight": "final_layer.linear.weight",
    "transformer_blocks.": "double_blocks.",
    "single_transformer_blocks.": "single_blocks.",
}


def read_config(part: str, folder: Path) -> Any:
    """The sizes of a part, from its config.json; unknown keys are ignored, wrong values are a ModelError.

    Single files and most models saved by mflux have no config.json: a transformer's sizes come from its shapes, and
    FLUX.1's other parts have one size.
    """
    path, kind = folder / "config.json", KINDS[part].config
    if folder.is_file() or (saved_by_mflux(folder) and not path.is_file()):
        sizes = config_from_shapes if part == "transformer" else KINDS[part].sizes
        return sizes(folder) if sizes else kind()
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
        low, high = (
            (0, MAX_LAYERS) if counts else (0, 2**31 - 1) if name.endswith(("_id", "_padding_value")) else (1, MAX_SIZE)
        )
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
    elif isinstance(config, LayerSizes):
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


def own_tensors(part: str, path: Path) -> dict[str, TensorInfo]:
    """The tensors of a part in a single file, without the prefix that all-in-one files give it."""
    infos = read_header(path)
    for prefix in FILE_PREFIXES.get(part, ()):
        if any(name.startswith(prefix) for name in infos):
            return {name.removeprefix(prefix): info for name, info in infos.items() if name.startswith(prefix)}
    return infos


def config_from_shapes(place: Path) -> TransformerConfig:
    """The sizes of a transformer without a config.json.  Raises ModelError if it is none."""
    infos = own_tensors("transformer", place) if place.is_file() else tensors_in(place)
    shapes = {name: unpacked_shape(name, infos) for name in infos}
    names = {
        ours: theirs if place.is_file() and LANDMARKS["x_embedder.weight"] in shapes else ours
        for ours, theirs in LANDMARKS.items()
    }
    try:
        width, channels = shapes[names["x_embedder.weight"]]
        head = shapes[names["transformer_blocks.0.attn.norm_q.weight"]][0]
        outputs, text = shapes[names["proj_out.weight"]][0], shapes[names["context_embedder.weight"]][1]
        pooled = shapes[names["time_text_embed.text_embedder.linear_1.weight"]][1]
    except (KeyError, ValueError, IndexError):
        raise ModelError(f"`{place}` is no FLUX.1 transformer", "give a FLUX.1 checkpoint") from None
    joint, single = (
        len({name.split(".")[1] for name in shapes if name.startswith(names[kind])})
        for kind in ("transformer_blocks.", "single_transformer_blocks.")
    )
    part = head // 8  # of 128: 16 for the first id, 56 for row and column each
    side = (head - part) // 4 * 2
    config = TransformerConfig(
        in_channels=channels,
        out_channels=outputs,
        num_layers=joint,
        num_single_layers=single,
        attention_head_dim=head,
        num_attention_heads=width // max(head, 1),
        joint_attention_dim=text,
        pooled_projection_dim=pooled,
        guidance_embeds=names["time_text_embed.guidance_embedder.linear_1.weight"] in shapes,
        axes_dims_rope=(head - 2 * side, side, side),
    )
    check_config(place, config)
    return config


def unpacked_shape(name: str, infos: Mapping[str, TensorInfo]) -> tuple[int, ...]:
    """The shape of a tensor before it was quantized: a row of scales has one for every 64 columns."""
    scales = infos.get(f"{name.removesuffix('weight')}scales")
    shape = infos[name].shape
    return (shape[0], scales.shape[1] * GROUP_SIZE) if scales and len(scales.shape) == len(shape) == 2 else shape
