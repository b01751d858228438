"""Inpainting with a plain model: after each step the latents outside the mask are the source's, noised to that level.

Source: RePaint's known-region rule, arXiv 2201.09865, as in diffusers' FluxInpaintPipeline.  Unlike diffusers: pixels
outside the mask are the source's own bytes (`composite`), and small masks do not vanish (`latent_mask="any"`).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np

from mflux.conditions.canvas import plan_canvas, planned_canvas
from mflux.conditions.image_to_image import noised, start_from, starts_from_noise
from mflux.engine.denoise import At
from mflux.engine.latents import LATENT_CHANNELS, LATENT_PIXELS, pack_latents
from mflux.engine.request import check_choice
from mflux.engine.slots import PICTURE, Condition, Draft, Hooks, Plan, Prepared, Run, Stage
from mflux.images.masks import cells
from mflux.images.picture import PictureSource, open_picture, to_pixels

LATENT_MASKS = ("any", "nearest")


@dataclass(frozen=True)
class Inpaint(Condition):
    """Repaint the white part of a mask.

    image, mask: path, PIL image or uint8 array of the same size.  image_strength, strength: as in ImageToImage, at most
    one; neither: the white part is drawn anew.  composite: keep every byte outside the mask.  latent_mask: a latent
    cell is painted if `any` of its pixels is, or its first (`nearest`, diffusers).  crop: work on the surroundings of
    the mask only, with so many px of padding (diffusers' padding_mask_crop, which blends soft masks: composite=False).
    """

    image: PictureSource = field(metadata=PICTURE)
    mask: PictureSource = field(metadata=PICTURE)
    image_strength: float | None = None
    strength: float | None = None
    composite: bool = True
    latent_mask: str = "any"
    crop: int | None = None

    def plan(self, draft: Draft) -> Draft:
        check_choice("latent_mask", self.latent_mask, LATENT_MASKS)
        draft = plan_canvas(open_picture(self.image, "image"), self.mask, draft, self.crop)
        return draft.starting_at(self.image_strength, self.strength, 0.0, "Inpaint")

    def prepare(self, stage: Stage) -> Prepared:
        plan = stage.plan
        canvas = planned_canvas(open_picture(self.image, "image"), self.mask, plan, self.crop)
        clean = pack_latents(stage.encode(mx.array(to_pixels(canvas.rgb)), "image"))
        bind = repainting(clean, latent_mask_tokens(canvas.mask, self.latent_mask), plan)
        loose = canvas.blended if self.crop is not None else canvas.placed
        return Prepared(bind=bind, finish=canvas.kept if self.composite else loose, icc=canvas.source.icc)


def latent_mask_tokens(mask: np.ndarray, rule: str) -> mx.array:
    """Which numbers of the latents are painted, (1, S, 64) bool.  mask: (H, W) bool; rule: see `cells`."""
    latent_mask = cells(mask, rule, LATENT_PIXELS)[None, None]
    return pack_latents(mx.array(np.repeat(latent_mask, LATENT_CHANNELS, axis=1)))


def repainting(clean: mx.array, paint: mx.array, plan: Plan) -> Callable[[Run], Hooks]:
    """A `bind` that holds the latents where `paint` is false at those of the source, noised to each level.

    clean: the source's tokens (1, S, 64).  A run that begins later starts from them; one that begins with an inversion
    takes the noise from it.
    """

    def bind(run: Run) -> Hooks:
        level = plan.sigmas[plan.first]

        def keep_source(latents: mx.array, at: At) -> mx.array:
            noise = (run.begun() - (1 - level) * clean) / level if plan.start_steps else run.noise
            return mx.where(paint, latents, noised(clean, noise, at.sigma_next))

        pure = starts_from_noise(plan.first, plan.sigmas) or plan.start_steps
        start = None if pure else start_from(clean, run)
        return Hooks(start=start, after_step=[keep_source])

    return bind
