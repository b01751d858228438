"""Draw pictures from the torch networks, as the product does: Euler steps with dev's shift."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latents import CLIP_LENGTH, T5_LENGTH, Codec, token_ids
from networks import IN_CHANNELS, Networks
from torch import Tensor


def shifted_sigmas(steps: int, tokens: int) -> list[float]:
    """linspace(1, 1/steps) through dev's dynamic shift, and a final 0 (scheduler config: .5 at 256, 1.15 at 4096)."""
    slope = (1.15 - 0.5) / (4096 - 256)
    stretch = float(np.exp(0.5 + slope * (tokens - 256)))
    return [*(float(stretch / (stretch + 1 / s - 1)) for s in np.linspace(1, 1 / steps, steps)), 0.0]


class TorchPainter:
    """Prompts and seeds in, pictures out."""

    def __init__(self, networks: Networks, codec: Codec, steps: int = 8, guidance: float = 3.5) -> None:
        self.networks, self.codec, self.steps, self.guidance = networks, codec, steps, guidance

    @classmethod
    def shipped(cls, base: Path, transformer: Path | None = None, guidance: float = 3.5) -> TorchPainter:
        """From exported folders; `transformer` replaces the base's (a variant's), its channels read from its config."""
        networks = Networks.from_folders(base, transformer or base / "transformer")
        return cls(networks, Codec(base / "vae"), guidance=guidance)

    @torch.no_grad()
    def __call__(
        self,
        prompts: list[str],
        seeds: list[int],
        extra: Tensor | None = None,
        size: tuple[int, int] = (128, 128),
        **given: Any,
    ) -> list[np.ndarray]:
        """Pictures (H, W, 3) uint8, of what `latents` takes."""
        return list(self.codec.decode(self.latents(prompts, seeds, extra, size=size, **given), *size))

    @torch.no_grad()
    def latents(
        self,
        prompts: list[str],
        seeds: list[int],
        extra: Tensor | None = None,
        true_cfg: float = 1.0,
        size: tuple[int, int] = (128, 128),
        references: Tensor | None = None,
        pictures: Tensor | None = None,
        known: Tensor | None = None,
        control: tuple[Tensor, Tensor] | None = None,
        lengths: tuple[int, int] = (T5_LENGTH, CLIP_LENGTH),
        clean: Tensor | None = None,
        first: int = 0,
    ) -> Tensor:
        """Tokens (B, tokens, 64). `extra` (B, tokens, channels) goes beside the latents, `references` (B, n * tokens,
        64) after them; size is height, width. `pictures` as in `Networks.describe`. `known` (B, tokens, 64): latents
        that are put back, noised, after each step wherever they are not nan. `control` as in `Networks.velocity`.
        `lengths` of the T5 and CLIP ids. `clean` (B, tokens, 64): where to start, noised to the level of step `first`.
        """
        rows, columns = size[0] // 16, size[1] // 16
        noise = [torch.randn(rows * columns, IN_CHANNELS, generator=torch.Generator().manual_seed(s)) for s in seeds]
        start = torch.stack(noise)
        text, pooled = self.networks.describe(*token_ids(prompts, *lengths), pictures)
        empty = self.networks.describe(*token_ids([""] * len(prompts), *lengths))
        guidance = torch.full((len(start),), self.guidance)
        sigmas = shifted_sigmas(self.steps, rows * columns)[first:]
        x = start if clean is None else torch.lerp(clean, start, sigmas[0])
        for now, after in pairwise(sigmas):
            time = torch.full((len(x),), now)
            inputs = x if extra is None else torch.cat([x, extra], dim=2)
            beside = rows, columns, references, control
            velocity, _ = self.networks.velocity(inputs, time, guidance, text, pooled, *beside)
            if true_cfg > 1:
                unsaid, _ = self.networks.velocity(inputs, time, guidance, *empty, *beside)
                velocity = unsaid + true_cfg * (velocity - unsaid)
            x = x + (after - now) * velocity
            if known is not None:
                x = torch.where(known.isnan(), x, torch.lerp(known, start, after))
        return x
