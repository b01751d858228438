"""Two panels on one canvas: the first shows something, the second is drawn and is the result."""

from dataclasses import dataclass, replace

import numpy as np

from mflux.engine.request import check_choice
from mflux.engine.slots import Draft, Plan
from mflux.errors import ModelError, UsageError
from mflux.images.sizes import floor_to_cell
from mflux.weights.catalog import BUILT_IN, METHOD_LORAS, Row, of_task

LAYOUTS = ("lr", "tb")  # left and right, top and bottom
BUILT_IN_LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Panels:
    """height, width: of one panel in px, multiples of 16."""

    height: int
    width: int
    layout: str = "lr"

    @classmethod
    def of(cls, plan: Plan, layout: str = "lr") -> "Panels":
        """The panels of a canvas."""
        halves = (plan.height, plan.width // 2) if layout == "lr" else (plan.height // 2, plan.width)
        return cls(*halves, layout)

    @property
    def axis(self) -> int:
        """The axis of (H, W) that the panels follow each other on."""
        return 1 if self.layout == "lr" else 0

    def join(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.concatenate([first, second], axis=self.axis)

    def second(self, canvas: np.ndarray) -> np.ndarray:
        return canvas[:, self.width :] if self.layout == "lr" else canvas[self.height :]

    def lay_out(self, draft: Draft, who: str) -> Draft:
        """Give the draft the canvas of these panels.  Raises UsageError."""
        check_choice("layout", self.layout, LAYOUTS)
        if draft.height:
            raise UsageError(f"{who} draws on a canvas of its own", "put no other condition before it that sets a size")
        double = (2 * self.height, self.width) if self.axis == 0 else (self.height, 2 * self.width)
        return replace(draft, height=double[0], width=double[1])


def method_row(draft: Draft, task: str) -> Row:
    """The row with the sizes that a method was trained on, for the family of the model in use."""
    row = of_task(draft.row.family, task) or of_task("dev", task)
    assert row
    return row


def panel_of(row: Row, height: int, width: int, layout: str) -> Panels:
    """The panel of the row's width in the proportion height : width."""
    return Panels(floor_to_cell(row.panel * height // width), row.panel, layout)


def method_lora(draft: Draft, task: str, style: str | None = None) -> Draft:
    """With the adapter that a method has of its own for the model in use, if there is one; the user's come after it."""
    row = method_row(draft, task)
    if row.folder and style:
        draft = draft.noted(f"style {style} is not used: `{row.name}` has one adapter for all")
    if not row.folder:
        name = METHOD_LORAS.get(style or task)
        return draft.adapted(name) if name else draft
    folder = BUILT_IN / row.folder
    if not folder.is_dir():
        raise ModelError(f"`{row.name}` is not trained yet", "this version has no weights for it; use another model")
    own = folder / BUILT_IN_LORA
    return draft.adapted(str(own)) if own.is_file() else draft
