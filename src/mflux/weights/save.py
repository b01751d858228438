"""A model to files, in the layout of mflux or diffusers: streamed, resumable, atomic.

Modules are read, changed by LoRAs, quantized and put into shards one after another, so the peak of memory is a shard
and a module.  Everything is written to `TARGET.partial`, which becomes the target when it is whole; a run that was cut
goes on after the last finished shard.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mflux.errors import MfluxError, UsageError
from mflux.models.layers import GROUP_SIZE
from mflux.models.lora import AdaptedLinear, Adapter
from mflux.runtime import free_memory
from mflux.weights.catalog import LAYOUTS
from mflux.weights.files import BYTES, read_json, write_tensors
from mflux.weights.layouts import MFLUX, blocks_in, numbered
from mflux.weights.load import FLOATS, Sources, filled, open_network, stored_bits
from mflux.weights.lora_files import ADAPTABLE, WIDE_INPUT, LoraFile, gathered, read_lora
from mflux.weights.manifest import sha256, write_manifest
from mflux.weights.resolve import NETWORKS, ModelSource

SHARD_BYTES = 1 << 30
PROGRESS = "progress.json"
COPIED = ("tokenizer", "tokenizer_2", "scheduler")
BIASES = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"  # mflux keeps a copy in every block
STEMS = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}  # others: model
# What diffusers and transformers want to read in a config.json besides the sizes.
CLASSES: dict[str, dict[str, Any]] = {
    "transformer": {"_class_name": "FluxTransformer2DModel", "patch_size": 1},
    "vae": {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "act_fn": "silu",
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
    "text_encoder_2": {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu"},
}
INDEX = {
    "_class_name": "FluxPipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
Report = Callable[[int, int], None]  # bytes written, bytes in all


@dataclass
class Saving:
    """One model on its way to files.  loras: (file, scale); bits: None writes the numbers as they are stored."""

    source: ModelSource
    target: Path
    layout: str = "mflux"
    bits: int | None = None
    loras: Sequence[tuple[Path, float]] = ()
    partial_loras: bool = False

    @property
    def partial(self) -> Path:
        return self.target.with_name(self.target.name + ".partial")

    @cached_property
    def parts(self) -> dict[str, tuple[Any, Sources]]:
        """Each part's empty network and the sources of its weights."""
        return {part: open_network(part, self.source.folders[part]) for part in NETWORKS}

    @cached_property
    def files(self) -> list[LoraFile]:
        networks = {part: self.parts[part][0] for part in ADAPTABLE} if self.loras else {}
        return [read_lora(path, scale, networks, self.partial_loras) for path, scale in self.loras]

    def adapters(self, part: str) -> dict[str, list[Adapter]]:
        return gathered(self.files, part)

    @property
    def stored_bits(self) -> set[int]:
        """To how many bits the source is quantized already."""
        return stored_bits(source for _, sources in self.parts.values() for source in sources.values())

    def part_bits(self, part: str) -> int | None:
        return None if part == "vae" else self.bits

    def bytes_of(self, part: str) -> int:
        """About how many bytes a part takes on the disk."""
        _, sources = self.parts[part]
        total, bits = 0.0, self.part_bits(part)
        for source in sources.values():
            numbers, stored = math.prod(source.shape), BYTES.get(source.info.dtype, 2)
            kept = stored if source.bits or source.info.dtype in FLOATS else 2
            packs = bits and not source.bits and len(source.shape) == 2 and not source.shape[1] % GROUP_SIZE
            total += numbers * (bits / 8 + 2 * kept / GROUP_SIZE if packs and bits else kept)
        return int(total)

    def check(self) -> None:
        """Refuse what cannot be saved, before anything is written.  Raises UsageError, or MfluxError for the disk."""
        if self.layout not in LAYOUTS:
            raise UsageError(f"`{self.layout}` is unknown", f"choose one of {', '.join(LAYOUTS)}", "layout")
        if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
            raise UsageError(f"`{self.target}` is there already", "give another name, or remove it first", "target")
        if self.layout == "diffusers" and self.bits:
            problem = "the diffusers layout holds whole weights, but `quantize` is given"
            raise UsageError(problem, "leave it out, or choose the layout `mflux`", "quantize")
        stored = self.stored_bits
        if stored and (self.layout == "diffusers" or self.loras or (self.bits and {self.bits} != stored)):
            bits = ", ".join(map(str, sorted(stored)))
            raise UsageError(
                f"`{self.source.name}` is quantized already, to {bits} bits; it can only be saved as it is",
                "give the model that it was made from",
                "model",
            )
        self.files  # noqa: B018  a LoRA that does not fit is told now
        needed = sum(self.bytes_of(part) for part in NETWORKS)
        folder = next(each for each in self.target.absolute().parents if each.is_dir())
        done = sum(path.stat().st_size for path in self.partial.rglob("*.safetensors"))
        free = shutil.disk_usage(folder).free + done
        if needed > free:
            raise MfluxError(
                f"`{self.target}` needs {needed / 1e9:.2f} GB, but `{folder}` has {free / 1e9:.2f} GB left",
                "make room, choose another disk, or save with fewer bits (`quantize`)",
            )

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What this save is made of: a partial folder of another one is not continued."""
        stored = {source.info.file for _, sources in self.parts.values() for source in sources.values()}
        files = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(stored)}
        loras = [[sha256(path), scale] for path, scale in self.loras]
        return {"files": files, "layout": self.layout, "bits": self.bits, "loras": loras}


def save_model(saving: Saving, report: Report | None = None) -> Path:
    """Write a model; returns its folder.  Raises MfluxError; nothing is ever half-written under the target's name."""
    saving.check()
    progress = start_or_resume(saving)
    total = sum(saving.bytes_of(part) for part in NETWORKS)
    written = 0

    def count(size: int) -> None:
        nonlocal written
        written += size
        if report:
            report(min(written, total), total)

    try:
        for part in NETWORKS:
            write_part(saving, part, progress, count)
        for folder in COPIED:
            if saving.source.folders[folder].is_dir():
                shutil.copytree(saving.source.folders[folder], saving.partial / folder, dirs_exist_ok=True)
        if saving.layout == "diffusers":
            write_json(saving.partial / "model_index.json", INDEX)
        known = {
            final_name(saving, f"{part}/{name}", progress): entry["sha256"]
            for part, shards in progress.items()
            for name, entry in shards.items()
        }
        finish_names(saving, progress)
        (saving.partial / PROGRESS).unlink()
        write_manifest(saving.partial, facts(saving), known)
        if saving.target.is_dir():
            saving.target.rmdir()  # an empty one, as `check` found
        os.replace(saving.partial, saving.target)
    except OSError as error:
        reason = error.args[0][0][-1] if isinstance(error, shutil.Error) else error.strerror  # that of the first file
        raise MfluxError(
            f"`{saving.partial}` cannot be written ({reason})",
            "make room, then run the same command again: it goes on after the last finished shard",
        ) from None
    return saving.target


def facts(saving: Saving) -> dict[str, Any]:
    stored = saving.stored_bits
    return {
        "mflux_version": version("mflux"),
        "created_at": datetime.now().isoformat(timespec="seconds"),
        "model_name": saving.source.name,
        "base_model": saving.source.row.name,
        "layout": saving.layout,
        "quantize": saving.bits or (stored.pop() if len(stored) == 1 else None),
        "loras": [
            {"source": path.name, "scale": scale, "sha256": digest}
            for (path, _), (digest, scale) in zip(saving.loras, saving.fingerprint["loras"], strict=True)
        ],
    }


# --- shards -----------------------------------------------------------------------------------------------------------

Progress = dict[str, dict[str, dict[str, Any]]]  # part -> finished shard -> modules, tensors, sha256


def start_or_resume(saving: Saving) -> Progress:
    """The finished shards of an earlier run of the same save, or an empty partial folder."""
    path = saving.partial / PROGRESS
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        same = state["save"] == json.loads(json.dumps(saving.fingerprint))
        whole = all(
            (saving.partial / part / name).stat().st_size == entry["bytes"]
            for part, shards in state["parts"].items()
            for name, entry in shards.items()
        )
        if same and whole:
            return state["parts"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing to go on from
    if saving.partial.exists():
        shutil.rmtree(saving.partial)
    saving.partial.mkdir(parents=True)
    return {}


def write_part(saving: Saving, part: str, progress: Progress, count: Callable[[int], None]) -> None:
    """The shards of one part that are not there yet, and its config.json."""
    network, sources = saving.parts[part]
    folder, done = saving.partial / part, progress.setdefault(part, {})
    folder.mkdir(exist_ok=True)
    for entry in done.values():
        count(entry["bytes"])
    finished = {path for entry in done.values() for path in entry["modules"]}
    shard: dict[str, mx.array] = {}
    modules: list[str] = []
    size = 0

    def close() -> None:
        nonlocal shard, modules, size
        if not modules:
            return
        name = f"{len(done)}.safetensors"
        write_tensors(folder / ("new-" + name), shard, header(saving, part))
        os.replace(folder / ("new-" + name), folder / name)
        length = (folder / name).stat().st_size
        done[name] = {"modules": modules, "tensors": list(shard), "sha256": sha256(folder / name), "bytes": length}
        write_json(saving.partial / PROGRESS, {"save": saving.fingerprint, "parts": progress})
        count(length)
        shard, modules, size = {}, [], 0
        free_memory()

    for path, tensors in changed_modules(saving, part, network, sources, finished):
        bulk = sum(tensor.nbytes for tensor in tensors.values())
        if size + bulk > SHARD_BYTES:
            close()
        shard |= tensors
        modules.append(path)
        size += bulk
    close()
    write_json(folder / "config.json", config_of(saving, part))


def changed_modules(
    saving: Saving, part: str, network: Any, sources: Sources, finished: set[str]
) -> Iterator[tuple[str, dict[str, mx.array]]]:
    """The tensors of each module under their names in the layout, LoRAs in them, quantized where asked."""
    adapters = saving.adapters(part)
    norms = {name: weight for file in saving.files for name, weight in file.norms[part].items()}

    def change(path: str, module: Any) -> None:
        if path in adapters:
            dtype, both = module.weight.dtype, AdaptedLinear(module, adapters[path])
            bias = both.bias()
            module.weight = both.weight().astype(dtype)
            if bias is not None:
                module.bias = bias.astype(dtype)
        if path in norms:
            module.weight = norms[path].astype(module.weight.dtype)

    names = our_names_to_theirs(saving, part, network)
    for path, module in filled(network, sources, None, saving.part_bits(part), change, skip=finished):
        yield path, named(saving, part, path, module, names)
        for name, value in list(module.items()):
            if isinstance(value, mx.array):
                module[name] = mx.zeros((1,))  # so that the network does not grow while it is written


def our_names_to_theirs(saving: Saving, part: str, network: nn.Module) -> dict[str, str]:
    """Module names of the layout, where they are not ours."""
    if saving.layout == "diffusers":
        return {}
    rules = numbered(MFLUX.get(part, {}), blocks_in(path for path, _ in network.named_modules()))
    return {rule.ours[0]: theirs for theirs, rule in rules.items()}


def named(saving: Saving, part: str, path: str, module: nn.Module, names: dict[str, str]) -> dict[str, mx.array]:
    """A module's arrays as the layout stores them."""
    arrays = {name: value for name, value in module.items() if isinstance(value, mx.array)}
    if saving.layout == "diffusers":
        arrays = {name: value.transpose(0, 3, 1, 2) if value.ndim == 4 else value for name, value in arrays.items()}
    paths = [names.get(path, path)]
    if saving.layout == "mflux" and path == BIASES:
        paths = [names[path.replace("block.0.", f"block.{i}.")] for i in range(saving.parts[part][0].config.num_layers)]
    return {
        f"{each}.{name}" if each else name: mx.contiguous(value) for each in paths for name, value in arrays.items()
    }


def header(saving: Saving, part: str) -> dict[str, str]:
    if saving.layout == "diffusers":
        return {"format": "pt"}
    stored = next((source.bits for source in saving.parts[part][1].values() if source.bits), None)
    bits = saving.part_bits(part) or stored
    return {"quantization_level": str(bits), "mflux_version": version("mflux")}


def config_of(saving: Saving, part: str) -> dict[str, Any]:
    """A part's config.json: what its source says besides, and the sizes that it has now."""
    path, network = saving.source.folders[part] / "config.json", saving.parts[part][0]
    wide = saving.adapters(part).get(WIDE_INPUT) if part == "transformer" else None
    config = network.config
    if wide:
        config = replace(config, in_channels=max(config.in_channels, *(each.change.shape[1] for each in wide)))
    beside = read_json(path) if path.is_file() else dict(CLASSES[part])
    if part == "vae" and not path.is_file():
        levels = len(config.block_out_channels)
        beside |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return beside | asdict(config)


def final_name(saving: Saving, name: str, progress: Progress) -> str:
    """What a shard is called when all are there: diffusers counts them."""
    part, _, file = name.partition("/")
    if saving.layout == "mflux":
        return name
    stem, total = STEMS.get(part, "model"), len(progress[part])
    index = int(file.partition(".")[0]) + 1
    return f"{part}/{stem}.safetensors" if total == 1 else f"{part}/{stem}-{index:05d}-of-{total:05d}.safetensors"


def finish_names(saving: Saving, progress: Progress) -> None:
    """Give the shards their final names, and write an index where there are several or the layout always has one."""
    for part, shards in progress.items():
        weights: dict[str, str] = {}
        for name, entry in shards.items():
            final = final_name(saving, f"{part}/{name}", progress)
            if (saving.partial / part / name).exists():
                os.replace(saving.partial / part / name, saving.partial / final)
            weights |= dict.fromkeys(entry["tensors"], Path(final).name)
        stem = STEMS.get(part, "model") if saving.layout == "diffusers" else "model"
        if saving.layout == "mflux" or len(shards) > 1:
            metadata = {"total_size": sum(entry["bytes"] for entry in shards.values())} | header(saving, part)
            index = {"metadata": metadata, "weight_map": weights}
            write_json(saving.partial / part / f"{stem}.safetensors.index.json", index)


def write_json(path: Path, value: Any) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)
