"""Try-on: a garment in the left panel is worn by the person in the right one, painted by a Fill network.

Source: CatVTON-flux (xiaozaa/catvton-flux-beta).  Unlike mflux, the noise levels are shifted, as in its training.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from mflux.conditions.fill import FILL_CHANNELS, drawn_beside
from mflux.conditions.side_by_side import Panels, method_lora, method_row, panel_of
from mflux.engine.slots import PICTURE, Condition, Draft, Prepared, Stage
from mflux.images.masks import open_mask, painted
from mflux.images.picture import PictureSource, open_picture

PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; "
    "[IMAGE1] Detailed product shot of a clothing; "
    "[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)


@dataclass(frozen=True)
class TryOn(Condition):
    """Dress a person in a garment.  Without a prompt, the model's own is used.

    person, mask: of the same size, white where the garment goes.  garment: its picture.  All are stretched to the run's
    size (the width that the model was trained on, in the person's proportion, if none is given).  layout: the garment
    stands `lr`, left of the person, as the model was trained, or `tb`, above.
    """

    person: PictureSource = field(metadata=PICTURE)
    mask: PictureSource = field(metadata=PICTURE)
    garment: PictureSource = field(metadata=PICTURE)
    layout: str = "lr"

    def plan(self, draft: Draft) -> Draft:
        person = open_picture(self.person, "person")
        open_picture(self.garment, "garment")
        wish = panel_of(method_row(draft, "try-on"), person.height, person.width, self.layout)
        size = draft.asked(wish.height, wish.width)
        panels = Panels(*size, self.layout) if size else wish
        self._mask(panels)
        draft = panels.lay_out(draft, "TryOn").widened(FILL_CHANNELS, "TryOn", "try-on")
        if not draft.request.prompt:
            draft = draft.prompted(PROMPT, "TryOn")
        return method_lora(replace(draft.meant_for("try-on"), encodes=max(draft.encodes, 1)), "try-on")

    def prepare(self, stage: Stage) -> Prepared:
        panels = Panels.of(stage.plan, self.layout)
        person, garment = (
            open_picture(source, name).resized(panels.height, panels.width)
            for source, name in ((self.person, "person"), (self.garment, "garment"))
        )
        return drawn_beside(stage, panels, garment.rgb, person.rgb, self._mask(panels), person.icc)

    def _mask(self, panels: Panels) -> np.ndarray:
        """Where to paint, (H, W) bool of one panel."""
        grey = open_mask(self.mask, open_picture(self.person, "person"), "mask")
        return painted(grey.resize((panels.width, panels.height), Image.Resampling.LANCZOS))
