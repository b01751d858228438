"""The canvas of the conditions that keep what is outside a mask: planned once, opened again with the same size."""

from dataclasses import replace

from mflux.engine.slots import Draft, Plan
from mflux.images.masks import Canvas, open_canvas
from mflux.images.picture import PictureSource, open_picture


def plan_canvas(image: PictureSource, mask: PictureSource, draft: Draft, crop: int | None = None) -> Draft:
    """Check source and mask, and give the draft their size where nobody asked for another."""
    picture = open_picture(image, "image")
    size = draft.asked(picture.height, picture.width)
    canvas = open_canvas(picture, mask, size, crop)
    return replace(draft.sized(canvas.height, canvas.width, own_size=size is None), encodes=True)


def planned_canvas(image: PictureSource, mask: PictureSource, plan: Plan, crop: int | None = None) -> Canvas:
    """The canvas that `plan_canvas` planned."""
    size = None if plan.own_size else (plan.height, plan.width)
    return open_canvas(open_picture(image, "image"), mask, size, crop)
