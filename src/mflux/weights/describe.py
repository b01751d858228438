"""What a file or folder of weights is, in words: for `mflux-info`."""

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from mflux.errors import ModelError, UsageError
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.weights.catalog import TASK_CHANNELS
from mflux.weights.files import TensorInfo, read_header, read_metadata, tensors_in
from mflux.weights.kinds import config_from_shapes, read_config, unpacked_shape
from mflux.weights.lora_files import LEAVES, grouped, locate, other_family, spelled_modules
from mflux.weights.manifest import read_manifest
from mflux.weights.resolve import NETWORKS

Rows = list[tuple[str, str]]
TOLD = ("model_name", "base_model", "created_at", "mflux_version")  # of a manifest
# What an adapter's layer holds -> its kind.  The first that fits counts.
ADAPTER_KINDS = {"norm": "norm weight", "h1_a": "LoHa", "w1": "LoKr", "w1_a": "LoKr", "magnitude": "DoRA", "a": "LoRA"}
# How the names of an adapter begin -> whose layout that is.  The first that fits counts.
ADAPTER_LAYOUTS = {
    r"lora_unet_(double|single)_blocks": "kohya, with Black Forest Labs' names",
    r"lora_(unet|transformer)_": "kohya, with diffusers' names",
    r"lycoris_": "LyCORIS",
    r"(double|single)_blocks\.\d+\.processor": "XLabs",
    r"(model\.)?diffusion_model\.": "ComfyUI, ai-toolkit",
    r"base_model\.model\.": "fal, PEFT",
    r"(double|single)_blocks": "Black Forest Labs' names",
    r"transformer\.": "diffusers, PEFT",
    r"(single_)?transformer_blocks": "diffusers, without prefix",
    r"lora_te|text_encoder": "text encoder",
}


def describe(path: Path) -> Rows:
    """Rows of (what, value) about a folder, a checkpoint or a LoRA.  Raises MfluxError for anything else."""
    if path.is_dir():
        return describe_folder(path)
    if path.suffix not in (".safetensors", ".gguf"):
        raise UsageError(
            f"`{path}` is no file of weights", "safetensors and GGUF files are read, nothing that runs code"
        )
    infos = read_header(path)
    adapted = sum(any(name.endswith(leaf) for leaf in LEAVES if leaf != ".scale") for name in infos)
    rows = describe_lora(path, infos) if infos and adapted > len(infos) / 2 else describe_checkpoint(path, infos)
    metadata = {} if path.suffix == ".gguf" else read_metadata(path)
    return [*rows, *((f"header: {name}", value[:100]) for name, value in sorted(metadata.items()))]


def describe_folder(folder: Path) -> Rows:
    manifest = read_manifest(folder)
    rows: Rows = [("kind", "model folder" if (folder / "transformer").is_dir() else "folder without a transformer")]
    rows += [(name, str(manifest[name])) for name in TOLD if name in manifest]
    rows += [("LoRA in it", f"{lora.get('source')} x {lora.get('scale')}") for lora in manifest.get("loras", [])]
    for part in NETWORKS:
        if (folder / part).is_dir():
            rows.append((part, sizes(tensors_in(folder / part))))
    if (folder / "transformer").is_dir():
        rows += transformer_rows(read_config("transformer", folder / "transformer"))
    return rows


def describe_checkpoint(path: Path, infos: Mapping[str, TensorInfo]) -> Rows:
    rows: Rows = [("kind", "checkpoint"), ("tensors", sizes(infos))]
    try:
        return [*rows, *transformer_rows(config_from_shapes(path))]
    except ModelError:
        return [*rows, ("transformer", "none of FLUX.1")]


def transformer_rows(config: TransformerConfig) -> Rows:
    tasks = [task for task, channels in TASK_CHANNELS.items() if channels == config.in_channels]
    return [
        ("blocks", f"{config.num_layers} joint, {config.num_single_layers} single, width {config.width}"),
        ("input channels", f"{config.in_channels} ({', '.join(tasks) or 'no known task'})"),
        ("guidance", "takes one (dev family)" if config.guidance_embeds else "takes none (schnell family)"),
    ]


def describe_lora(path: Path, infos: Mapping[str, TensorInfo]) -> Rows:
    groups = grouped(path, infos)
    ranks = Counter(leaves["a"].shape[0] for leaves in groups.values() if "a" in leaves)
    kinds = Counter(
        next((kind for leaf, kind in ADAPTER_KINDS.items() if leaf in leaves), "unknown") for leaves in groups.values()
    )
    layouts = Counter(
        next((whose for start, whose in ADAPTER_LAYOUTS.items() if re.match(start, name)), "unknown") for name in groups
    )
    family = other_family(infos) or "FLUX.1"
    flux = {"transformer": spelled_modules("transformer", FluxTransformer(TransformerConfig()))}
    here = sum(locate(name, flux) is not None for name in groups)
    return [
        ("kind", ", ".join(f"{kind} ({count} layers)" for kind, count in kinds.most_common())),
        ("made for", family),
        ("layout", ", ".join(f"{whose} ({count})" for whose, count in layouts.most_common())),
        ("rank", ", ".join(f"{rank} ({count})" for rank, count in sorted(ranks.items())) or "none"),
        ("layers of FLUX.1-dev's transformer", f"{here} of {len(groups)}"),
        ("tensors", sizes(infos)),
    ]


def sizes(infos: Mapping[str, TensorInfo]) -> str:
    """How many tensors, of which types, how large."""
    types = Counter(info.dtype for info in infos.values())
    stored = sum(path.stat().st_size for path in {info.file for info in infos.values()})
    names = [name for name in infos if not name.endswith((".scales", ".biases"))]
    numbers = sum(math.prod(unpacked_shape(name, infos)) for name in names)
    packed = {
        infos[name].shape[1] * 32 // unpacked_shape(name, infos)[1] for name in names if infos[name].dtype == "U32"
    }
    bits = f", quantized to {', '.join(map(str, sorted(packed)))} bits" if packed else ""
    kinds = ", ".join(sorted(types))
    return f"{len(infos)} tensors ({kinds}), {numbers:,} numbers{bits}, {stored / 1e6:,.1f} MB"
