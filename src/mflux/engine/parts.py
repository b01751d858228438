"""Which network is in memory when.

Where the whole model takes less than half of the memory, it stays loaded.  Otherwise parts are loaded in the order of
use and dropped after it: text encoders, transformer, autoencoder.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux.engine.latents import LATENT_CHANNELS, PATCH
from mflux.engine.schedule import Schedule, read_schedule
from mflux.engine.tokens import PromptTokenizer, open_clip, open_t5
from mflux.errors import ModelError, UsageError
from mflux.models.layers import GROUP_SIZE
from mflux.models.transformer import TransformerConfig
from mflux.models.vae import VaeConfig
from mflux.ranks import Ranks, check_split, split
from mflux.runtime import free_memory, on_cpu, physical_memory
from mflux.weights.files import BYTES, saved_by_mflux
from mflux.weights.kinds import read_config
from mflux.weights.load import Source, fill, open_network, stored_bits
from mflux.weights.lora_files import ADAPTABLE, LoraFile, attach, fuse, read_lora
from mflux.weights.resolve import NETWORKS, ModelSource, Side

log = logging.getLogger("mflux")
PRECISION = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
STAYS_BELOW = 0.5  # share of the physical memory
Part = str | Side  # a network of the model, or one beside it


@dataclass(frozen=True)
class LoadOptions:
    """low_ram: every part is dropped after its use.  partial_loras: layers that the model lacks are left out.

    bake_loras: adapters are put into the weights.  split: the transformer is shared with other processes.
    """

    low_ram: bool = False
    partial_loras: bool = False
    bake_loras: bool = False
    split: Ranks | None = None


class Parts:
    """The networks, tokenizers and schedule of one model, loaded on first use."""

    def __init__(
        self,
        source: ModelSource,
        bits: int | None = None,
        loras: Sequence[tuple[Path, float]] = (),
        options: LoadOptions = LoadOptions(),
    ):
        self.source, self.bits, self.loras, self.options = source, bits, loras, options
        self._networks: dict[Part, Any] = {}
        self._precision: str | None = None
        self._own_loras: tuple[Path, ...] = ()
        self._empty: dict[Part, Any] = {}  # networks that are built, but not loaded
        self._sources: dict[Part, dict[str, Source]] = {}
        self._bytes: dict[tuple[Part, str | None], int] = {}

    @cached_property
    def transformer_config(self) -> TransformerConfig:
        config = read_config("transformer", self.source.folders["transformer"])
        return replace(
            config, in_channels=max(config.in_channels, *(file.input_channels for file in self.lora_files), 0)
        )

    @cached_property
    def lora_files(self) -> list[LoraFile]:
        """The LoRAs, checked against networks that are built but not loaded."""
        loras = [*((path, 1.0) for path in self._own_loras), *self.loras]
        parts = {part: self.empty(part) for part in ADAPTABLE} if loras else {}
        return [read_lora(path, scale, parts, self.options.partial_loras) for path, scale in loras]

    def adapt(self, loras: tuple[Path, ...]) -> bool:
        """Put a method's own LoRAs before the user's; networks that carry others are loaded again.

        Returns whether anything changed.
        """
        if self.options.split and not self.options.bake_loras and (loras or self.loras):
            raise UsageError("LoRAs beside the weights cannot be split", "add `--bake-lora`", "split_image")
        changed = loras != self._own_loras
        if changed:
            self._own_loras = loras
            self.__dict__.pop("lora_files", None)
            for part in ADAPTABLE:
                self._networks.pop(part, None)
        self.lora_files  # noqa: B018  (read now, so that a file that does not fit is refused before weights are)
        return changed

    def _home(self, part: Part) -> tuple[str, Path]:
        """The kind of a network, and where its weights are."""
        return (part.kind, part.place) if isinstance(part, Side) else (part, self.source.folders[part])

    def empty(self, part: Part) -> Any:
        """A network without its weights, every tensor of its file checked."""
        if part not in self._empty:
            self._empty[part], self._sources[part] = open_network(*self._home(part))
        return self._empty[part]

    def check(self) -> None:
        """Raise ModelError where weights are damaged or the parts do not belong together.  Reads headers only."""
        if all(part in self._sources for part in NETWORKS):
            return  # checked before
        transformer, clip, t5, vae = (self.empty(part).config for part in NETWORKS)
        if self.options.split:
            packed = self.bits is not None or any(source.bits for source in self._sources["transformer"].values())
            check_split(transformer, packed, self.options.split)
        same = {
            "`text_encoder_2`'s width and the transformer's": (t5.d_model, transformer.joint_attention_dim),
            "`text_encoder`'s width and the transformer's": (clip.hidden_size, transformer.pooled_projection_dim),
            "`vae`'s channels and the transformer's": (vae.latent_channels * PATCH**2, transformer.out_channels),
            "`vae`'s channels and FLUX.1's": (vae.latent_channels, LATENT_CHANNELS),
        }
        for what, (one, other) in same.items():
            if one != other:
                raise ModelError(f"{what} differ: {one} and {other}", "these parts are of different models")

    def notes(self) -> Iterator[str]:
        """What the user should know about the weights: LoRAs, and a quantization that is there already."""
        yield from (file.note for file in self.lora_files)
        stored = stored_bits(source for sources in self._sources.values() for source in sources.values())
        if stored and self.bits and {self.bits} != stored:
            saved = ", ".join(map(str, sorted(stored)))
            yield f"quantize {self.bits} is not used: the model is saved with {saved} bits"

    def side_config(self, part: str, hint: str) -> Any:
        """The sizes of a network that only some models have, its file checked.  Raises UsageError where it lacks."""
        folder = self.source.folders.get(part)
        if folder is None or not folder.is_dir():
            raise UsageError(f"`{self.source.name}` has no `{part}`", hint, "model")
        self.weight_bytes(part, None)
        return read_config(part, folder)

    @cached_property
    def vae_config(self) -> VaeConfig:
        return read_config("vae", self.source.folders["vae"])

    @cached_property
    def schedule(self) -> Schedule:
        folder = self.source.folders["scheduler"]
        if saved_by_mflux(self.source.folders["transformer"]) and not folder.is_dir():
            return Schedule(use_dynamic_shifting=self.source.row.shifts, shift=1.0)  # mflux does not save it
        return read_schedule(folder)

    @cached_property
    def clip_tokenizer(self) -> PromptTokenizer:
        return open_clip(self.source.folders["tokenizer"])

    @cached_property
    def t5_tokenizer(self) -> PromptTokenizer:
        return open_t5(self.source.folders["tokenizer_2"])

    def weight_bytes(self, part: Part, precision: str | None) -> int:
        """Memory of a part once loaded.  Raises ModelError for a damaged file."""
        if part not in self._sources:
            self.empty(part)
        if (part, precision) not in self._bytes:
            sizes = (self._tensor_bytes(part, source, precision) for source in self._sources[part].values())
            self._bytes[part, precision] = math.ceil(sum(sizes))
        return self._bytes[part, precision]

    def _tensor_bytes(self, part: Part, source: Source, precision: str | None) -> float:
        size = math.prod(source.shape)
        if source.bits:
            return size * BYTES[source.info.dtype]
        if self.bits and part != "vae" and len(source.shape) == 2:
            overhead = 64 if source.info.dtype == "F32" else 32  # a scale and a bias for each group
            return size * (self.bits + overhead / GROUP_SIZE) / 8
        if precision:
            return size * PRECISION[precision].size
        return size * (mx.float32.size if on_cpu() else max(BYTES.get(source.info.dtype, 2), 2))

    def all_stay(self, precision: str | None) -> bool:
        """True where the whole model is small enough to stay in memory."""
        whole = sum(self.weight_bytes(part, precision) for part in NETWORKS)
        return not self.options.low_ram and whole < STAYS_BELOW * physical_memory()

    def get(self, part: Part) -> Any:
        """A network, loaded if it is not there."""
        if part not in self._networks:
            started = time.perf_counter()
            dtype = PRECISION[self._precision] if self._precision else None
            self.empty(part)
            bits = None if part == "vae" else self.bits  # its Linears are a few; fine lines need them whole
            network = fill(self._empty.pop(part), self._sources[part], dtype, bits)
            if isinstance(part, str):
                attach(self.lora_files, {part: network})
                if self.options.bake_loras:
                    fuse(network)
            if part == "transformer" and self.options.split:
                split(network, self.options.split)
            self._networks[part] = network
            log.debug(f"`{part}` of `{self.source.name}`: loaded in {time.perf_counter() - started:.2f} s")
        return self._networks[part]

    def stamp(self, *parts: str) -> Iterator[object]:
        """What the outputs of these networks and tokenizers follow from, but for their inputs."""
        files = [file for part in parts for file in sorted(self.source.folders[part].glob("*")) if file.is_file()]
        yield from (self.source.name, self.bits, self._precision, self.options.bake_loras, self.options.partial_loras)
        for path, scale in [*((path, 1.0) for path in [*files, *self._own_loras]), *self.loras]:
            yield from (path, scale, path.stat().st_size, path.stat().st_mtime_ns)

    def put(self, part: Part, network: Any) -> None:
        """Use this network for a part from now on, for example one that is being trained."""
        self._networks[part] = network

    def release(self, *parts: Part) -> None:
        """Drop networks that are not needed for now, unless the whole model stays."""
        if not self.all_stay(self._precision):
            for part in parts:
                self._networks.pop(part, None)
            free_memory()

    def set_precision(self, precision: str | None) -> None:
        """Choose the dtype of the weights; networks of another one are loaded again."""
        if precision != self._precision:
            self._networks.clear()
            self._precision = precision
