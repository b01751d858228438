"""In-context edit: the picture stands in the left panel, and the right one, painted by a Fill network, shows it edited.

Source: ICEdit, arXiv 2504.20690: its template, its LoRA, and the width of 512 px that it was trained on.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from mflux.conditions.fill import FILL_CHANNELS, drawn_beside
from mflux.conditions.side_by_side import Panels, method_lora, method_row, panel_of
from mflux.engine.slots import PICTURE, Condition, Draft, Prepared, Stage
from mflux.errors import UsageError
from mflux.images.picture import PictureSource, open_picture

TEMPLATES = {
    "lr": "A diptych with two side-by-side images of the same scene. "
    "On the right, the scene is exactly the same as on the left but {}",
    "tb": "A diptych with two images of the same scene, one above the other. "
    "On the bottom, the scene is exactly the same as on the top but {}",
}


@dataclass(frozen=True)
class InContextEdit(Condition):
    """Edit a picture as an instruction says.

    image: path, PIL image or uint8 array; it is drawn at the width that the method was trained on.  instruction: what
    is different on the right; None: the request's prompt describes both panels itself.  lora: another adapter than the
    method's own, a path or hub name; empty: none, for a network that was trained whole.  layout: `lr`, as the method
    was trained, or `tb`, the picture on top.
    """

    image: PictureSource = field(metadata=PICTURE)
    instruction: str | None = None
    lora: str | None = None
    layout: str = "lr"

    def plan(self, draft: Draft) -> Draft:
        picture, config = open_picture(self.image, "image"), draft.request.config
        if (self.instruction is None) == (not draft.request.prompt):
            problem = "neither a prompt nor an instruction is given" if self.instruction is None else "both are given"
            raise UsageError(problem, "give `instruction`, or a prompt that describes both panels", "instruction")
        if self.instruction is not None and not (isinstance(self.instruction, str) and self.instruction.strip()):
            raise UsageError("the instruction is empty", "say what is to change", "instruction")
        panels = panel_of(method_row(draft, "ic-edit"), picture.height, picture.width, self.layout)
        if config.height or config.width:
            draft = draft.noted(
                f"in-context edit was trained at a width of {panels.width} px: "
                f"{panels.width} x {panels.height} px are drawn"
            )
        draft = panels.lay_out(draft, "InContextEdit").widened(FILL_CHANNELS, "InContextEdit", "ic-edit")
        if self.instruction is not None:
            draft = draft.prompted(TEMPLATES[self.layout].format(self.instruction.strip()), "InContextEdit")
        draft = replace(draft, encodes=max(draft.encodes, 1))
        if self.lora is None:
            return method_lora(draft, "ic-edit")
        return draft.adapted(self.lora) if self.lora else draft

    def prepare(self, stage: Stage) -> Prepared:
        panels = Panels.of(stage.plan, self.layout)
        picture = open_picture(self.image, "image").resized(panels.height, panels.width)
        everything = np.ones((panels.height, panels.width), bool)
        return drawn_beside(stage, panels, picture.rgb, picture.rgb, everything, picture.icc)
