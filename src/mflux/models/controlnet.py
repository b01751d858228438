"""ControlNet for FLUX.1: a shorter copy of the transformer that reads a control map and adds to its image stream.

Module names are those of diffusers' FluxControlNetModel.  ControlNets that read pixels through a small convolutional
encoder instead of the autoencoder's latents (XLabs' first ones) are not supported.
"""

from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mflux.models.transformer import FluxBlocks, ModulationTable, TransformerConfig


@dataclass(frozen=True)
class ControlNetConfig(TransformerConfig):
    """Sizes of a ControlNet; field names are those of diffusers' config.json."""

    num_mode: int = 0  # of a union model, which reads several kinds of maps; 0: one kind
    conditioning_embedding_channels: int = 0  # of a pixel encoder; 0: it reads latents


class ControlResiduals(NamedTuple):
    """What is added to the image stream: arrays (B, S, D), each for several neighbouring blocks."""

    joint: list[mx.array]
    single: list[mx.array]


class FluxControlNet(FluxBlocks):
    """A ControlNet: residuals of the image stream from noisy latents, a control map and the text."""

    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig):
        super().__init__(config)
        width = config.width
        self.controlnet_x_embedder = nn.Linear(config.in_channels, width)
        self.controlnet_blocks = [nn.Linear(width, width) for _ in range(config.num_layers)]
        self.controlnet_single_blocks = [nn.Linear(width, width) for _ in range(config.num_single_layers)]
        if config.num_mode:
            self.controlnet_mode_embedder = nn.Embedding(config.num_mode, width)

    def __call__(
        self,
        tokens: mx.array,
        control: mx.array,
        text: mx.array,
        table: ModulationTable,
        rope: mx.array,
        mode: int | None = None,
    ) -> ControlResiduals:
        """tokens, control: (B, S, in_channels), the noisy latents and the map's; text: (B, T, joint_attention_dim).

        `rope` covers the text tokens, one more of them for a union model's mode, then the image tokens.
        Source: diffusers' FluxControlNetModel.forward.
        """
        image, text = self.x_embedder(tokens) + self.controlnet_x_embedder(control), self.context_embedder(text)
        if mode is not None:
            kind = mx.broadcast_to(self.controlnet_mode_embedder(mx.array([[mode]])), (text.shape[0], 1, text.shape[2]))
            text = mx.concatenate([kind.astype(text.dtype), text], axis=1)
        joint = []
        for index, block in enumerate(self.transformer_blocks):
            image, text = block(image, text, table.image[index], table.text[index], rope)
            joint.append(self.controlnet_blocks[index](image))
        both, count, single = mx.concatenate([text, image], axis=1), text.shape[1], []
        for index, one in enumerate(self.single_transformer_blocks):
            both = one(both, table.single[index], rope)
            single.append(self.controlnet_single_blocks[index](both[:, count:]))
        return ControlResiduals(joint, single)


def residual_of(residuals: list[mx.array], index: int, blocks: int) -> mx.array | None:
    """The residual for block `index` of `blocks`: neighbouring blocks share one.  Source: diffusers, floor(i / k) with
    k = ceil(blocks / residuals), which leaves the last residuals of some depths unused (6 for 19 blocks)."""
    return residuals[index // -(-blocks // len(residuals))] if residuals else None
