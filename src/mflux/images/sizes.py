"""Sizes and crops of pictures.  Integer arithmetic as in diffusers' VaeImageProcessor, which `crop` has to equal."""

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mflux.engine.request import CELL, MAX_SIDE, short
from mflux.errors import UsageError

PADDING_HINT = "give top, right, bottom, left in px or per cent, for example `0,25%,0,25%`"
CSS_SIDES = ((0, 0, 0, 0), (0, 1, 0, 1), (0, 1, 2, 1), (0, 1, 2, 3))  # which of 1 to 4 values each side has
Box = tuple[int, int, int, int]  # left, top, right, bottom


def floor_to_cell(side: int) -> int:
    """The largest multiple of 16 that is not above `side`, at least 16."""
    return max(CELL, side // CELL * CELL)


def preferred(sizes: Sequence[tuple[int, int]], height: int, width: int) -> tuple[int, int]:
    """Of some sizes (height, width) the one of the nearest proportion; the narrower one where two are as near.

    Source: diffusers' FluxKontextPipeline, which takes the proportion of the sides floored to 16.
    """
    proportion = floor_to_cell(width) / floor_to_cell(height)
    return min(sizes, key=lambda size: (abs(proportion - size[1] / size[0]), size[1]))


def of_area(area: float, height: int, width: int) -> tuple[int, int]:
    """The size of an area (px) in the proportion height : width, floored to 16.  Source: FluxKontextPipeline."""
    proportion = width / height
    return floor_to_cell(round((area / proportion) ** 0.5)), floor_to_cell(round((area * proportion) ** 0.5))


def parse_padding(padding: str | Sequence[int | str], height: int, width: int) -> tuple[int, int, int, int]:
    """Top, right, bottom, left in px, from numbers or per cents of the side, in a text with commas or a list.

    Fewer than four mean what they mean in CSS: the other sides are those opposite.  Raises UsageError for anything
    else, and where the whole would be larger than pictures may be.
    """
    parts = padding.split(",") if isinstance(padding, str) else list(padding)
    if not 1 <= len(parts) <= 4:
        raise UsageError(f"{short(padding)} has {len(parts)} parts, not 1 to 4", PADDING_HINT, "outpaint")
    sides = [parts[index] for index in CSS_SIDES[len(parts) - 1]]
    top, right, bottom, left = (
        part_of_side(part, side) for part, side in zip(sides, (height, width, height, width), strict=True)
    )
    if not (top or right or bottom or left):
        raise UsageError(f"{short(padding)} adds nothing", PADDING_HINT, "outpaint")
    if max(height + top + bottom, width + left + right) > MAX_SIDE:
        problem = f"the picture would be {width + left + right} x {height + top + bottom} px"
        raise UsageError(problem, f"sides up to {MAX_SIDE} px", "outpaint")
    return top, right, bottom, left


def part_of_side(part: int | str, side: int) -> int:
    """`64`, `64px` or `30%` of a side, in px."""
    text = str(part).strip().removesuffix("px")
    number = text.removesuffix("%").strip()
    if not re.fullmatch(r"\d{1,6}" if number == text else r"\d{1,6}(\.\d+)?", number, re.ASCII):
        raise UsageError(f"{short(part)} is no length", PADDING_HINT, "outpaint")
    return int(number) if number == text else round(side * float(number) / 100)


def crop_box(mask: np.ndarray, padding: int, height: int, width: int) -> Box:
    """The surroundings of a mask (H, W) bool: its box grown by `padding` px, then to the aspect width : height as far
    as the picture allows.  Source: VaeImageProcessor.get_crop_region."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, right = grown(int(columns[0]), int(columns[-1]), padding, mask.shape[1])
    top, bottom = grown(int(rows[0]), int(rows[-1]), padding, mask.shape[0])
    if (right - left) / (bottom - top) > width / height:
        top, bottom = widened(top, bottom, (right - left) / (width / height), mask.shape[0])
    else:
        left, right = widened(left, right, (bottom - top) * (width / height), mask.shape[1])
    return left, top, right, bottom


def grown(first: int, last: int, padding: int, limit: int) -> tuple[int, int]:
    return max(first - padding, 0), min(last + 1 + padding, limit)


def widened(start: int, end: int, wanted: float, limit: int) -> tuple[int, int]:
    """An interval of length `wanted`, kept inside 0..limit."""
    extra = int(wanted - (end - start))
    start, end = start - extra // 2, end + extra - extra // 2
    if end >= limit:
        start, end = start - (end - limit), limit
    if start < 0:
        start, end = 0, end - start
    return start, min(end, limit)


def fit(image: Image.Image, height: int, width: int, cover: bool) -> Image.Image:
    """Scale with the proportions kept, centred: inside the size with the borders filled by the outermost rows or
    columns, or (`cover`) over it with the overflow cut.  Source: VaeImageProcessor's resize modes `fill` and `crop`."""
    wide = width * image.height > height * image.width if not cover else width * image.height < height * image.width
    scaled_width = max(1, height * image.width // image.height) if wide else width
    scaled_height = height if wide else max(1, width * image.height // image.width)
    scaled = image.resize((scaled_width, scaled_height), Image.Resampling.LANCZOS)
    result = Image.new(image.mode, (width, height))
    left, top = width // 2 - scaled_width // 2, height // 2 - scaled_height // 2
    result.paste(scaled, (left, top))
    if cover:
        return result
    if top > 0:
        result.paste(scaled.resize((width, top), box=(0, 0, scaled_width, 0)), (0, 0))
        foot = height - top - scaled_height
        if foot > 0:
            edge = (0, scaled_height, scaled_width, scaled_height)
            result.paste(scaled.resize((width, foot), box=edge), (0, top + scaled_height))
    elif left > 0:
        result.paste(scaled.resize((left, height), box=(0, 0, 0, scaled_height)), (0, 0))
        rest = width - left - scaled_width
        if rest > 0:
            edge = (scaled_width, 0, scaled_width, scaled_height)
            result.paste(scaled.resize((rest, height), box=edge), (left + scaled_width, 0))
    return result
