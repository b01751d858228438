"""LoRA files of every layout to adapters beside our Linears.

A file is read whole or refused: an unknown layer, half a pair, a wrong width or a number that is not finite is an error
that names the tensor, and a file for another model family says which.  The rules of each layout stand in the oracle's
README (`shared/oracle/extra`); names are looked up in `layouts.py`.
"""

import difflib
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mflux.errors import UsageError
from mflux.models.layers import RMSNorm
from mflux.models.lora import AdaptedLinear, Adapter, Dense, LowRank, input_width
from mflux.runtime import on_cpu
from mflux.weights.files import read_header, read_json, read_metadata, read_tensor
from mflux.weights.hub import download_file
from mflux.weights.layouts import BFL, MFLUX, PREFIXES, TO_OUT, XLABS, Rule, spellings
from mflux.weights.load import put, quantize_module

# Endings of tensor names -> what they are.  The longest that fits counts.
LEAVES = {
    ".lora_A": "a", ".lora_A.weight": "a", ".lora_A.default.weight": "a",
    ".lora_down.weight": "a", ".lora.down.weight": "a", ".down.weight": "a",
    ".lora_B": "b", ".lora_B.weight": "b", ".lora_B.default.weight": "b",
    ".lora_up.weight": "b", ".lora.up.weight": "b", ".up.weight": "b",
    ".lora_B.bias": "bias", ".alpha": "alpha",
    ".lora_magnitude_vector": "magnitude", ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector.default.weight": "magnitude", ".dora_scale": "magnitude",
    ".lokr_w1": "w1", ".lokr_w1_a": "w1_a", ".lokr_w1_b": "w1_b",
    ".lokr_w2": "w2", ".lokr_w2_a": "w2_a", ".lokr_w2_b": "w2_b",
    ".hada_w1_a": "h1_a", ".hada_w1_b": "h1_b", ".hada_w2_a": "h2_a", ".hada_w2_b": "h2_b",
    ".scale": "norm",
}  # fmt: skip
FAMILIES = {
    "SDXL": r"unet\.down_blocks|lora_te2_text_model|(input|output)_blocks_\d+_\d+_transformer_blocks",
    "Stable Diffusion 1.5": r"lora_unet_(down|up|mid)_block",
    "Stable Diffusion 3": r"joint_blocks",
    "Wan (video)": r"diffusion_model\.blocks\.\d+\.(self|cross)_attn",
    "Qwen-Image": r"transformer_blocks\.\d+\.(img|txt)_(mlp|mod)",
}
WIDE_INPUT = "x_embedder"  # the one layer whose adapters may be wider or narrower than it is
HINT = "use a LoRA made for FLUX.1; `.safetensors` only"
PARTIAL_HINT = "`allow_partial_lora` applies the rest"
HUB_NAME = re.compile(r"(?:hf:)?(?P<repo>[\w.-]+/[\w.-]+)(?:[:/](?P<file>[\w./ -]+\.safetensors))?", re.ASCII)
ADAPTABLE = ("transformer", "text_encoder", "text_encoder_2")  # parts that a LoRA can change
Parts = Mapping[str, nn.Module]  # some of ADAPTABLE


@dataclass
class LoraFile:
    """One file, understood: adapters and norm weights by part and module path."""

    path: Path
    adapters: dict[str, dict[str, Adapter]] = field(default_factory=lambda: defaultdict(dict))
    norms: dict[str, dict[str, mx.array]] = field(default_factory=lambda: defaultdict(dict))
    tensors: int = 0
    unknown: tuple[str, ...] = ()  # layers that this model does not have

    @property
    def note(self) -> str:
        """How much of the file is applied."""
        layers = sum(len(names) for kind in (self.adapters, self.norms) for names in kind.values())
        left = f"; {len(self.unknown)} of its layers are not, first `{self.unknown[0]}`" if self.unknown else ""
        return f"LoRA `{self.path.name}`: {self.tensors} tensors are applied to {layers} layers{left}"

    @property
    def input_channels(self) -> int:
        """Channels per token that its adapter of the image input takes; 0 without one."""
        adapter = self.adapters["transformer"].get(WIDE_INPUT)
        return adapter.change.shape[1] if adapter else 0


def library() -> dict[str, Path]:
    """The LoRAs in the folders of LORA_LIBRARY_PATH by their names; the first folder that holds a name wins.

    Shards of saved models, files with a number for a name, are none.
    """
    found: dict[str, Path] = {}
    for folder in filter(None, os.environ.get("LORA_LIBRARY_PATH", "").split(":")):
        for path in sorted(Path(folder).expanduser().rglob("*.safetensors")):
            if not path.stem.isdecimal():
                found.setdefault(path.stem, path)
    return found


def find_lora(name: str) -> Path:
    """The file that a LoRA's name means.  Raises UsageError.

    A path, a PEFT folder, a name in LORA_LIBRARY_PATH, or a file of the hub: `owner/name:file.safetensors`, or
    `owner/name` where that holds a single one.
    """
    path = Path(name).expanduser()
    known = library()
    for each in [path, *(known[key] for key in (path.name, path.stem) if key in known)]:
        each = each / "adapter_model.safetensors" if each.is_dir() else each
        if each.is_file() and each.suffix != ".safetensors":
            raise UsageError(
                f"`{each}` is no safetensors file", "other formats can run code, so they are not opened", "lora_paths"
            )
        if each.is_file():
            return each
    on_hub = HUB_NAME.fullmatch(name)
    if on_hub:
        return download_file(on_hub["repo"], on_hub["file"], "lora_paths")
    close = difflib.get_close_matches(path.stem, known, n=3)
    names = f": {', '.join(f'`{each}`' for each in close)}" if close else ""
    hint = f"give a path, a hub id `owner/name:file.safetensors`, or a name in `LORA_LIBRARY_PATH`{names}"
    raise UsageError(f"there is no LoRA `{name}`", hint, "lora_paths")


def read_lora(path: Path, scale: float, parts: Parts, partial: bool = False) -> LoraFile:
    """Read one file for networks that are built.  Raises UsageError for anything that does not fit whole.

    partial: layers that the networks do not have are left out, as long as some are there.
    """
    infos = read_header(path)
    groups = grouped(path, infos)
    spelled = {part: spelled_modules(part, network) for part, network in parts.items()}
    settings = adapter_settings(path)
    places = {name: locate(name, spelled) for name in groups}
    unknown = tuple(sorted(name for name, place in places.items() if place is None))
    if unknown and not (partial and len(unknown) < len(groups)):
        problem = f"{len(unknown)} of its {len(groups)} layers are not in this model, first `{unknown[0]}`"
        raise refused(path, problem, infos, "" if len(unknown) == len(groups) else PARTIAL_HINT)
    found = LoraFile(path, tensors=len(infos) - sum(len(groups[name]) for name in unknown), unknown=unknown)
    for name, leaves in groups.items():
        if name in unknown:
            continue
        part, rule = places[name] or ("", Rule(()))
        tensors = {leaf: read_tensor(info).astype(mx.float32) for leaf, info in leaves.items()}
        if not all(bool(mx.isfinite(value).all()) for value in tensors.values()):
            raise refused(path, f"layer `{name}` holds numbers that are not finite")
        if "norm" in tensors:
            found.norms[part][rule.ours[0]] = tensors["norm"]
            continue
        adapter = build(path, name, tensors, scale, settings)
        for ours, piece in cut(path, name, adapter, rule, parts[part]):
            if ours in found.adapters[part]:
                raise refused(path, f"layer `{ours}` is there twice, once as `{name}`")
            found.adapters[part][ours] = piece
    return found


def grouped(path: Path, infos: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tensors of each layer by what they are."""
    groups: dict[str, dict[str, Any]] = defaultdict(dict)
    for name, info in infos.items():
        leaf = max((ending for ending in LEAVES if name.endswith(ending)), key=len, default=None)
        if leaf is None:
            raise refused(path, f"tensor `{name}` is no part of a LoRA", infos)
        groups[name.removesuffix(leaf)][LEAVES[leaf]] = info
    if not groups:
        raise refused(path, "it holds no tensors")
    return groups


def spelled_modules(part: str, network: nn.Module) -> dict[str, Rule]:
    """Every spelling of the network's Linears and norms."""
    kinds = (nn.Linear, nn.QuantizedLinear, AdaptedLinear, RMSNorm)
    names = [name for name, module in network.named_modules() if isinstance(module, kinds)]
    names = [name for name in names if not name.endswith(".base")]
    tables = (BFL, XLABS, MFLUX["transformer"], TO_OUT)
    return spellings(names, *tables) if part == "transformer" else spellings(names)


def locate(name: str, spelled: Mapping[str, Mapping[str, Rule]]) -> tuple[str, Rule] | None:
    """The part and rule of a layer as the file names it; the longest known prefix is taken off."""
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        if name.startswith(prefix):
            part = PREFIXES[prefix]
            rule = spelled.get(part, {}).get(name.removeprefix(prefix))
            return (part, rule) if rule else None
    rule = spelled.get("transformer", {}).get(name)
    return ("transformer", rule) if rule else None


def adapter_settings(path: Path) -> dict[str, Any]:
    """PEFT's settings from the file's header or an adapter_config.json beside it, without part prefixes."""
    text, beside = read_metadata(path).get("lora_adapter_metadata"), path.parent / "adapter_config.json"
    try:
        values = json.loads(text) if text else read_json(beside) if beside.is_file() else {}
    except (ValueError, RecursionError):
        raise refused(path, "its `lora_adapter_metadata` is not valid JSON") from None
    settings = (
        {str(key).removeprefix("transformer."): value for key, value in values.items()}
        if isinstance(values, dict)
        else {}
    )
    alphas = settings.get("alpha_pattern") or {}
    if not (isinstance(values, dict) and isinstance(alphas, dict) and all(map(is_number, alphas.values()))):
        raise refused(path, "its `lora_adapter_metadata` is no table of PEFT's settings")
    return settings


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def build(path: Path, name: str, tensors: dict[str, mx.array], scale: float, settings: Mapping[str, Any]) -> Adapter:
    """The adapter of one layer, on the fused matrix where the file has one."""
    change, rank = change_of(path, name, tensors)
    alpha = float(tensors["alpha"].reshape(-1)[0]) if "alpha" in tensors else setting_alpha(settings, name)
    share = 1.0
    if rank and alpha is not None:
        share = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    magnitude = tensors.get("magnitude")
    bias = tensors.get("bias")
    return Adapter(change, scale * share, bias, None if magnitude is None else magnitude.reshape(-1))


def change_of(path: Path, name: str, tensors: dict[str, mx.array]) -> tuple[LowRank | Dense, int]:
    """The change itself, and the rank that alpha is divided by (0: alpha does not count)."""
    if "a" in tensors or "b" in tensors:
        if not {"a", "b"} <= set(tensors):
            raise refused(path, f"layer `{name}` has only one half of its pair")
        a, b = tensors["a"], tensors["b"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise refused(path, f"layer `{name}`: the pair has shapes {a.shape} and {b.shape}, ranks differ")
        return LowRank(a, b), a.shape[0]
    if "h1_a" in tensors:
        wanted = ("h1_a", "h1_b", "h2_a", "h2_b")
        factors = needed(path, name, tensors, wanted)
        return dense(path, name, factors, "hadamard"), factors[1].shape[0]
    if "w1" in tensors or "w1_a" in tensors:
        one, two = (whole_factor(path, name, tensors, which) for which in ("w1", "w2"))
        split = [tensors[f"{which}_b"] for which in ("w1", "w2") if f"{which}_b" in tensors]
        return dense(path, name, (one, two), "kron"), split[0].shape[0] if split else 0
    raise refused(path, f"layer `{name}` holds {', '.join(sorted(tensors))}, which is no adapter")


def dense(path: Path, name: str, factors: tuple[mx.array, ...], kind: str) -> Dense:
    if any(factor.ndim != 2 for factor in factors):
        raise refused(path, f"layer `{name}` has factors that are not matrices")
    rows = factors[0].shape[0] * (factors[1].shape[0] if kind == "kron" else 1)
    return Dense(factors, kind, mx.arange(rows))


def whole_factor(path: Path, name: str, tensors: dict[str, mx.array], which: str) -> mx.array:
    if which in tensors:
        return tensors[which]
    a, b = needed(path, name, tensors, (f"{which}_a", f"{which}_b"))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise refused(path, f"layer `{name}`: factors of shapes {a.shape} and {b.shape} cannot be multiplied")
    return a @ b


def needed(path: Path, name: str, tensors: dict[str, mx.array], leaves: Sequence[str]) -> tuple[mx.array, ...]:
    missing = [leaf for leaf in leaves if leaf not in tensors]
    if missing:
        raise refused(path, f"layer `{name}` lacks its factor `{missing[0]}`")
    return tuple(tensors[leaf] for leaf in leaves)


def setting_alpha(settings: Mapping[str, Any], name: str) -> float | None:
    """Alpha by PEFT's settings: a pattern holds for every layer whose name ends in it after a dot."""
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if name == pattern or name.endswith("." + pattern):
            return float(alpha)
    alpha = settings.get("lora_alpha")
    return float(alpha) if alpha is not None and is_number(alpha) else None


def cut(path: Path, name: str, adapter: Adapter, rule: Rule, network: nn.Module) -> list[tuple[str, Adapter]]:
    """The adapter's rows for each of our Linears, widths checked."""
    modules = dict(network.named_modules())
    heights = [output_width(modules[ours]) for ours in rule.ours]
    rows, columns = adapter.change.shape
    if rows != sum(heights):
        raise refused(path, f"layer `{name}` has {rows} outputs, but `{' '.join(rule.ours)}` {sum(heights)}")
    own = input_width(base_of(modules[rule.ours[0]]))
    if columns != own and (rule.ours[0] != WIDE_INPUT or columns % 64):
        raise refused(path, f"layer `{name}` has {columns} inputs, but `{rule.ours[0]}` {own}")
    index = mx.arange(rows)
    if rule.op == "swap_halves":
        index = mx.concatenate([index[rows // 2 :], index[: rows // 2]])
    pieces, start = [], 0
    for ours, height in zip(rule.ours, heights, strict=True):
        part = index[start : start + height]
        some = [None if vector is None else vector[part] for vector in (adapter.bias, adapter.magnitude)]
        pieces.append((ours, Adapter(adapter.change.rows(part), adapter.scale, *some)))
        start += height
    return pieces


def base_of(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, AdaptedLinear) else module


def output_width(module: nn.Module) -> int:
    return base_of(module).weight.shape[0]


def gathered(files: Sequence[LoraFile], part: str) -> dict[str, list[Adapter]]:
    """The adapters of all files for each layer of a part."""
    together: dict[str, list[Adapter]] = defaultdict(list)
    for file in files:
        for name, adapter in file.adapters[part].items():
            together[name].append(adapter)
    return together


def attach(files: Sequence[LoraFile], parts: Parts) -> None:
    """Put the adapters of all files beside their Linears; norm weights are replaced."""
    for part, network in parts.items():
        modules = dict(network.named_modules())
        for name, adapters in gathered(files, part).items():
            put(network, name, AdaptedLinear(base_of(modules[name]), adapters))
        for file in files:
            for name, weight in file.norms[part].items():
                modules[name].weight = weight.astype(modules[name].weight.dtype)


def fuse(network: nn.Module) -> None:
    """Put the adapters of a network into its weights; quantized ones are quantized again, which loses small changes."""
    for path, module in list(network.named_modules()):
        if isinstance(module, AdaptedLinear):
            base, bias = module.base, module.bias()
            linear = nn.Linear(1, 1, bias=bias is not None)
            linear.weight = module.weight().astype(mx.float32 if on_cpu() else base.get("scales", base.weight).dtype)
            if bias is not None:
                linear.bias = bias
            packed = quantize_module(linear, base.bits) if isinstance(base, nn.QuantizedLinear) else None
            put(network, path, packed or linear)
            mx.eval((packed or linear).parameters())


def other_family(names: Iterable[str]) -> str | None:
    """Which other family of models the names of an adapter's tensors belong to."""
    text = " ".join(names)
    return next((name for name, pattern in FAMILIES.items() if re.search(pattern, text)), None)


def refused(path: Path, problem: str, infos: Mapping[str, Any] | None = None, hint: str = "") -> UsageError:
    """The error for a file that does not fit; `infos` let it say for which other family it was made."""
    family = other_family(infos or ())
    made_for = f"; it looks like a LoRA for {family}" if family else ""
    return UsageError(
        f"`{path}` does not fit: {problem}{made_for}", hint if hint and not family else HINT, "lora_paths"
    )
