"""Sizes and crops of pictures.  Integer arithmetic as in diffusers' VaeImageProcessor, which `crop` has to equal."""

import numpy as np
from PIL import Image

from mflux.engine.request import CELL

Box = tuple[int, int, int, int]  # left, top, right, bottom


def floor_to_cell(side: int) -> int:
    """The largest multiple of 16 that is not above `side`, at least 16."""
    return max(CELL, side // CELL * CELL)


def of_area(area: float, height: int, width: int) -> tuple[int, int]:
    """The size of an area (px) in the proportion height : width, floored to 16.  Source: FluxKontextPipeline."""
    proportion = width / height
    return floor_to_cell(round((area / proportion) ** 0.5)), floor_to_cell(round((area * proportion) ** 0.5))


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
