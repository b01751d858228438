"""The canvas of the conditions that keep what is outside a mask: planned once, opened again with the same size."""

from dataclasses import replace

from mflux.engine.request import check_number
from mflux.engine.slots import Draft, Plan
from mflux.images.masks import Canvas, open_canvas
from mflux.images.picture import Picture, PictureSource

MAX_CROP_PADDING = 16384


def plan_canvas(
    picture: Picture,
    mask: PictureSource,
    draft: Draft,
    crop: int | None = None,
    grow: int = 0,
    how: str = "stretch",
) -> Draft:
    """Check source and mask, and give the draft their size where nobody asked for another; a crop gets the model's."""
    if crop is not None:
        check_number("crop", crop, 0, MAX_CROP_PADDING, whole=True)
        draft = draft.sized(*(draft.asked(draft.row.side, draft.row.side) or (draft.row.side, draft.row.side)))
    size = draft.asked(picture.height, picture.width)
    if size is None and how != "stretch":
        draft = draft.noted(f"fit {how} is not used: the picture keeps its own size")
    canvas = open_canvas(picture, mask, size, crop, grow, how)
    return replace(draft.sized(canvas.height, canvas.width, own_size=size is None), encodes=max(draft.encodes, 1))


def planned_canvas(
    picture: Picture, mask: PictureSource, plan: Plan, crop: int | None = None, grow: int = 0, how: str = "stretch"
) -> Canvas:
    """The canvas that `plan_canvas` planned."""
    size = None if plan.own_size else (plan.height, plan.width)
    return open_canvas(picture, mask, size, crop, grow, how)
