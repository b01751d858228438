"""In-context generation: a picture in the first panel, and one that goes with it drawn in the second.

Source: In-Context LoRA, arXiv 2410.23775, as in mflux: the first panel's latents are those of the picture, noised to
each level.  The noise levels are shifted for the whole canvas, which is what is denoised.
"""

from dataclasses import dataclass, field, replace

import mlx.core as mx
import numpy as np

from mflux.conditions.inpaint import latent_mask_tokens, repainting
from mflux.conditions.side_by_side import Panels, method_lora
from mflux.engine.latents import pack_latents
from mflux.engine.request import check_choice
from mflux.engine.slots import PICTURE, Condition, Draft, Prepared, Stage
from mflux.images.picture import PictureSource, open_picture, to_pixels
from mflux.images.sizes import preferred
from mflux.weights.catalog import STYLES


@dataclass(frozen=True)
class InContext(Condition):
    """Draw a picture that goes with another one; the prompt describes both panels.

    image: path, PIL image or uint8 array, stretched to the run's size (the preferred one of the nearest proportion, if
    none is given).  style: one of STYLES, its LoRA is used; None: no LoRA.  layout: the panels stand `lr`, left and
    right, or `tb`, top and bottom.
    """

    image: PictureSource = field(metadata=PICTURE)
    style: str | None = None
    layout: str = "lr"

    def plan(self, draft: Draft) -> Draft:
        if self.style is not None:
            check_choice("style", self.style, tuple(STYLES))
        picture = open_picture(self.image, "image")
        wish = preferred(draft.row.sizes, picture.height, picture.width)
        draft = Panels(*(draft.asked(*wish) or wish), self.layout).lay_out(draft, "InContext")
        return method_lora(replace(draft, encodes=max(draft.encodes, 1)), "in-context", self.style)

    def prepare(self, stage: Stage) -> Prepared:
        panels = Panels.of(stage.plan, self.layout)
        picture = open_picture(self.image, "image").resized(panels.height, panels.width)
        latents = stage.encode(mx.array(to_pixels(picture.rgb)), "image")
        clean = pack_latents(mx.concatenate([latents, mx.zeros_like(latents)], axis=panels.axis - 2))
        kept = np.zeros((panels.height, panels.width), bool)
        paint = latent_mask_tokens(panels.join(kept, ~kept), "any")
        bind = repainting(clean, paint, stage.plan)
        return Prepared(bind=bind, finish=panels.second, icc=picture.icc, keeps_canvas=True)
