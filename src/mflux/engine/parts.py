"""Which network is in memory when.

Where the whole model takes less than half of the memory, it stays loaded.  Otherwise parts are loaded in the order of
use and dropped after it: text encoders, transformer, autoencoder.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from mflux.engine.latents import LATENT_CHANNELS, PATCH
from mflux.engine.schedule import Schedule, read_schedule
from mflux.engine.tokens import PromptTokenizer, open_clip, open_t5
from mflux.errors import ModelError
from mflux.models.transformer import TransformerConfig
from mflux.models.vae import VaeConfig
from mflux.runtime import on_cpu, physical_memory
from mflux.weights.files import BYTES
from mflux.weights.load import Source, fill, open_network, read_config
from mflux.weights.lora_files import LoraFile, attach, read_lora
from mflux.weights.resolve import NETWORKS, ModelSource, Side

PRECISION = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}
STAYS_BELOW = 0.5  # share of the physical memory
ADAPTABLE = ("transformer", "text_encoder", "text_encoder_2")  # parts that a LoRA can change
Part = str | Side  # a network of the model, or one beside it
QUANTIZED_OVERHEAD_BITS = 1.0  # scale and bias of a group of 64: two 32-bit numbers


class Parts:
    """The networks, tokenizers and schedule of one model, loaded on first use."""

    def __init__(self, source: ModelSource, bits: int | None = None, loras: Sequence[tuple[Path, float]] = ()):
        self.source, self.bits, self.loras = source, bits, loras
        self._networks: dict[Part, Any] = {}
        self._precision: str | None = None
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
        parts = {part: self.empty(part) for part in ADAPTABLE} if self.loras else {}
        return [read_lora(path, scale, parts) for path, scale in self.loras]

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
        same = {
            "`text_encoder_2`'s width and the transformer's": (t5.d_model, transformer.joint_attention_dim),
            "`text_encoder`'s width and the transformer's": (clip.hidden_size, transformer.pooled_projection_dim),
            "`vae`'s channels and the transformer's": (vae.latent_channels * PATCH**2, transformer.out_channels),
            "`vae`'s channels and FLUX.1's": (vae.latent_channels, LATENT_CHANNELS),
        }
        for what, (one, other) in same.items():
            if one != other:
                raise ModelError(f"{what} differ: {one} and {other}", "these parts are of different models")

    @cached_property
    def vae_config(self) -> VaeConfig:
        return read_config("vae", self.source.folders["vae"])

    @cached_property
    def schedule(self) -> Schedule:
        return read_schedule(self.source.folders["scheduler"])

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
        if self.bits and part != "vae" and len(source.shape) == 2:
            return size * (self.bits + QUANTIZED_OVERHEAD_BITS) / 8
        if precision:
            return size * PRECISION[precision].size
        return size * (mx.float32.size if on_cpu() else max(BYTES.get(source.info.dtype, 2), 2))

    def all_stay(self, precision: str | None) -> bool:
        """True where the whole model is small enough to stay in memory."""
        return sum(self.weight_bytes(part, precision) for part in NETWORKS) < STAYS_BELOW * physical_memory()

    def get(self, part: Part) -> Any:
        """A network, loaded if it is not there."""
        if part not in self._networks:
            dtype = PRECISION[self._precision] if self._precision else None
            self.empty(part)
            network = fill(self._home(part)[0], self._empty.pop(part), self._sources[part], dtype, self.bits)
            if isinstance(part, str):
                attach(self.lora_files, {part: network})
            self._networks[part] = network
        return self._networks[part]

    def release(self, *parts: Part) -> None:
        """Drop networks that are not needed for now, unless the whole model stays."""
        if not self.all_stay(self._precision):
            for part in parts:
                self._networks.pop(part, None)
            mx.clear_cache()

    def set_precision(self, precision: str | None) -> None:
        """Choose the dtype of the weights; networks of another one are loaded again."""
        if precision != self._precision:
            self._networks.clear()
            self._precision = precision
