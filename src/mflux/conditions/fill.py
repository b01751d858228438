"""Fill: a network with 384 input channels sees the picture with a hole, and the mask, beside the noisy latents.

Source: FLUX.1-Fill-dev; channel order of diffusers' FluxFillPipeline.  Unlike diffusers: pixels outside the mask are
the source's own bytes (`composite`).  Edit modes, for adapters that were trained so: InFluxEdit (andjoer/InFluxEdit).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mflux.conditions.canvas import plan_canvas, planned_canvas
from mflux.conditions.maps import FITS
from mflux.conditions.side_by_side import Panels
from mflux.engine.latents import LATENT_PIXELS, TOKEN_CHANNELS, pack_latents
from mflux.engine.request import check_choice
from mflux.engine.slots import PICTURE, Condition, Draft, Inputs, Prepared, Stage
from mflux.errors import UsageError
from mflux.images.masks import outpainted
from mflux.images.picture import Picture, PictureSource, open_picture, to_pixels

MASK_CHANNELS = 256
FILL_CHANNELS = TOKEN_CHANNELS + MASK_CHANNELS
EDIT_MODES = ("channels", "spatial")


@dataclass(frozen=True)
class Fill(Condition):
    """Paint the white part of a mask with a Fill checkpoint.

    image, mask: path, PIL image or uint8 array of the same size.  edit_mode: draw the whole picture anew as an edit of
    it, without a mask: `channels` shows it uncovered in the extra channels, `spatial` in a panel on the left.
    outpaint: top, right, bottom, left in px or per cent ("0,25%,0,25%" or a list), painted around the picture; the mask
    may then be left out.  composite: keep every byte outside the mask.  fit: how both are brought to an asked size, as
    in Control.
    """

    image: PictureSource = field(metadata=PICTURE)
    mask: PictureSource | None = field(default=None, metadata=PICTURE)
    edit_mode: str | None = None
    outpaint: str | Sequence[int | str] | None = None
    composite: bool = True
    fit: str = "stretch"

    def plan(self, draft: Draft) -> Draft:
        check_choice("fit", self.fit, FITS)
        if self.edit_mode is not None:
            check_choice("edit_mode", self.edit_mode, EDIT_MODES)
            if self.mask is not None or self.outpaint is not None:
                raise UsageError("an edit mode draws the whole picture", "leave `mask` and `outpaint` out", "edit_mode")
        planned = plan_canvas(*self._sources(), draft, how=self.fit)
        if self.edit_mode == "spatial":
            assert planned.height and planned.width
            double = Panels(planned.height, planned.width).lay_out(draft, "Fill")
            planned = replace(planned, height=double.height, width=double.width)
        return planned.widened(FILL_CHANNELS, "Fill", "fill")

    def prepare(self, stage: Stage) -> Prepared:
        if self.edit_mode == "spatial":
            return self._beside(stage)
        canvas = planned_canvas(*self._sources(), stage.plan, how=self.fit)
        inputs = Inputs(channels=fill_channels(stage, canvas.rgb, canvas.mask, hole=self.edit_mode is None))
        return Prepared(inputs, finish=canvas.kept if self.composite else canvas.placed, icc=canvas.source.icc)

    def _sources(self) -> tuple[Picture, PictureSource]:
        """The picture and the mask, made where the user gave none."""
        picture = open_picture(self.image, "image")
        if self.edit_mode is not None:
            return picture, np.full((picture.height, picture.width), 255, np.uint8)
        if self.outpaint is not None:
            return outpainted(picture, self.mask, self.outpaint)
        if self.mask is None:
            raise UsageError("there is no mask", "give one, or `outpaint`, or `edit_mode`", "mask")
        return picture, self.mask

    def _beside(self, stage: Stage) -> Prepared:
        """The picture in the left panel, and its edit drawn in the right one."""
        panels = Panels.of(stage.plan)
        plan = replace(stage.plan, height=panels.height, width=panels.width)
        canvas = planned_canvas(*self._sources(), plan, how=self.fit)
        prepared = drawn_beside(stage, panels, canvas.rgb, np.zeros_like(canvas.rgb), canvas.mask, canvas.source.icc)
        return replace(prepared, finish=lambda pixels: canvas.placed(panels.second(pixels)))


def drawn_beside(
    stage: Stage, panels: Panels, first: np.ndarray, second: np.ndarray, mask: np.ndarray, icc: bytes | None
) -> Prepared:
    """The second panel painted where its mask is set, beside a first one that is only looked at.

    first, second: (H, W, 3) uint8; mask: (H, W) bool, of the second panel.
    """
    channels = fill_channels(stage, panels.join(first, second), panels.join(np.zeros_like(mask), mask))
    return Prepared(Inputs(channels=channels), finish=panels.second, icc=icc, keeps_canvas=True)


def fill_channels(stage: Stage, rgb: np.ndarray, mask: np.ndarray, hole: bool = True) -> mx.array:
    """What a Fill network sees beside the latents: (1, S, 320), the picture's latents and the mask.

    rgb: (H, W, 3) uint8, mask: (H, W) bool, sides multiples of 16.  hole: the picture is mid-grey where it is painted.
    """
    pixels = to_pixels(rgb) * ~mask if hole else to_pixels(rgb)
    picture = pack_latents(stage.encode(mx.array(pixels), "masked"))
    tokens = mx.broadcast_to(mask_tokens(mask), (picture.shape[0], picture.shape[1], MASK_CHANNELS))
    return mx.concatenate([picture, tokens], axis=-1)


def mask_tokens(mask: np.ndarray) -> mx.array:
    """A mask (H, W) bool, sides multiples of 16, as tokens (1, H*W/256, 256): each latent cell's 8 x 8 px, row by row,
    are its channels, then packed like latents."""
    height, width = mask.shape
    blocks = mask.reshape(height // LATENT_PIXELS, LATENT_PIXELS, width // LATENT_PIXELS, LATENT_PIXELS)
    channels = blocks.transpose(1, 3, 0, 2).reshape(1, LATENT_PIXELS**2, *blocks.shape[::2])
    return pack_latents(mx.array(channels.astype(np.float32)))
