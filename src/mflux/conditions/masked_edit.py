"""Masked edit: a Kontext model changes only the white part of a mask, perhaps with a reference to take from.

Source: diffusers' FluxKontextInpaintPipeline.  Unlike diffusers: every byte outside the mask is the source's own, a
crop is put back where it came from, a reference is never cropped, and small masks do not vanish.
"""

from dataclasses import dataclass, field
from functools import partial

import mlx.core as mx

from mflux.conditions.canvas import plan_canvas, planned_canvas
from mflux.conditions.inpaint import LATENT_MASKS, latent_mask_tokens, repainting
from mflux.conditions.kontext import FITS, reference_size, reference_tokens
from mflux.engine.latents import grid_ids, pack_latents
from mflux.engine.request import check_choice, check_number
from mflux.engine.slots import PICTURE, Condition, Draft, Inputs, Prepared, Stage
from mflux.errors import UsageError
from mflux.images.picture import PictureSource, open_picture, to_pixels

COMPOSITES = ("pixel", "latent", "none")
MAX_GROW = MAX_FEATHER = 256
MAX_CROP = 512


@dataclass(frozen=True)
class MaskedEdit(Condition):
    """Do what the prompt tells inside the white part of a mask.

    image, mask: of the same size.  reference: a picture to take from; the network then sees it in place of the image,
    or after it with reference_and_source.  strength (0, 1]: the share of steps that run, from the image with that much
    noise.  grow 0..256: px that the mask is widened by.  feather 0..256: px inside the mask over which new turns into
    old.  crop 0..512: work on the mask's surroundings only, with so many px of padding.  composite: keep the bytes
    outside (`pixel`), only the latents (`latent`, diffusers), or nothing (`none`).  latent_mask: as in Inpaint.  fit:
    how the reference is sized, as in Kontext.
    """

    image: PictureSource = field(metadata=PICTURE)
    mask: PictureSource = field(metadata=PICTURE)
    reference: PictureSource | None = field(default=None, metadata=PICTURE)
    strength: float = 1.0
    grow: int = 0
    feather: int = 8
    crop: int | None = None
    composite: str = "pixel"
    latent_mask: str = "any"
    reference_and_source: bool = False
    fit: str = "preferred"

    def plan(self, draft: Draft) -> Draft:
        check_choice("composite", self.composite, COMPOSITES)
        check_choice("latent_mask", self.latent_mask, LATENT_MASKS)
        check_choice("fit", self.fit, FITS)
        check_number("grow", self.grow, 0, MAX_GROW, whole=True)
        check_number("feather", self.feather, 0, MAX_FEATHER, whole=True)
        if self.crop is not None:
            check_number("crop", self.crop, 0, MAX_CROP, whole=True)
        if self.reference_and_source and self.reference is None:
            raise UsageError("there is no reference", "give `reference` too", "reference_and_source")
        source = open_picture(self.image, "image")
        draft = plan_canvas(source, self.mask, draft.meant_for("kontext"), self.crop, self.grow)
        draft = draft.starting_at(None, self.strength, 0.0, "MaskedEdit")
        assert draft.height and draft.width
        canvas = draft.height, draft.width
        sizes = [canvas] if self.shows_source else []
        if self.reference is not None:
            reference = open_picture(self.reference, "reference")
            sizes.append(reference_size(reference, self.fit, canvas, draft.row))
        return draft.referring(sizes, "MaskedEdit")

    @property
    def shows_source(self) -> bool:
        """True where the network sees the image itself as a reference."""
        return self.reference is None or self.reference_and_source

    def prepare(self, stage: Stage) -> Prepared:
        plan = stage.plan
        canvas = planned_canvas(open_picture(self.image, "image"), self.mask, plan, self.crop, self.grow)
        clean = pack_latents(stage.encode(mx.array(to_pixels(canvas.rgb)), "image"))
        tokens = [(clean, grid_ids(plan.height, plan.width, 1))] if self.shows_source else []
        if self.reference is not None:
            picture = open_picture(self.reference, "reference")
            tokens.append(reference_tokens(stage, picture, self.fit, len(tokens) + 1))
        blends = self.composite != "none"
        paint = latent_mask_tokens(canvas.mask, self.latent_mask) if blends else mx.array(True)
        finish = partial(canvas.kept, feather=self.feather) if self.composite == "pixel" else canvas.placed
        return Prepared(Inputs(tokens=tokens), repainting(clean, paint, plan), finish, canvas.source.icc)
