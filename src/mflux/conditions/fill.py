"""Fill: a network with 384 input channels sees the picture with a hole, and the mask, beside the noisy latents.

Source: FLUX.1-Fill-dev; channel order of diffusers' FluxFillPipeline.  Unlike diffusers: pixels outside the mask are
the source's own bytes (`composite`).
"""

from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mflux.conditions.canvas import plan_canvas, planned_canvas
from mflux.engine.latents import LATENT_PIXELS, TOKEN_CHANNELS, pack_latents
from mflux.engine.slots import PICTURE, Condition, Draft, Inputs, Prepared, Stage
from mflux.images.picture import PictureSource, to_pixels

MASK_CHANNELS = 256


@dataclass(frozen=True)
class Fill(Condition):
    """Paint the white part of a mask with a Fill checkpoint.

    image, mask: path, PIL image or uint8 array of the same size.  composite: keep every byte outside the mask.
    """

    image: PictureSource = field(metadata=PICTURE)
    mask: PictureSource = field(metadata=PICTURE)
    composite: bool = True

    def plan(self, draft: Draft) -> Draft:
        return plan_canvas(self.image, self.mask, draft).widened(TOKEN_CHANNELS + MASK_CHANNELS, "Fill", "fill")

    def prepare(self, stage: Stage) -> Prepared:
        canvas = planned_canvas(self.image, self.mask, stage.plan)
        holed = to_pixels(canvas.rgb) * ~canvas.mask  # mid-grey in the hole
        picture = pack_latents(stage.encode(mx.array(holed), "masked"))
        mask = mx.broadcast_to(mask_tokens(canvas.mask), (picture.shape[0], picture.shape[1], MASK_CHANNELS))
        inputs = Inputs(channels=mx.concatenate([picture, mask], axis=-1))
        return Prepared(inputs, finish=canvas.kept if self.composite else canvas.placed, icc=canvas.source.icc)


def mask_tokens(mask: np.ndarray) -> mx.array:
    """A mask (H, W) bool, sides multiples of 16, as tokens (1, H*W/256, 256): each latent cell's 8 x 8 px, row by row,
    are its channels, then packed like latents."""
    height, width = mask.shape
    blocks = mask.reshape(height // LATENT_PIXELS, LATENT_PIXELS, width // LATENT_PIXELS, LATENT_PIXELS)
    channels = blocks.transpose(1, 3, 0, 2).reshape(1, LATENT_PIXELS**2, *blocks.shape[::2])
    return pack_latents(mx.array(channels.astype(np.float32)))
