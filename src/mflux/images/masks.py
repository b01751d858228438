"""What to repaint and what to keep.

Everything outside a mask is kept by selecting the source's own bytes, never by blending.  White (128..255) is painted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mflux.engine.request import CELL
from mflux.errors import UsageError
from mflux.images.picture import Picture, PictureSource, open_grey
from mflux.images.sizes import Box, crop_box, fit, parse_padding

PAINT_FROM = 128  # 8-bit value from which a mask is white: 0.5, as in diffusers


@dataclass(frozen=True)
class Canvas:
    """A source with its mask, and both on a canvas whose sides are multiples of 16.

    source: the picture that has to be kept; grey: (H, W) uint8, its mask.  rgb, mask: the same two on the canvas,
    (H', W', 3) uint8 and (H', W') bool: padded at the right and bottom by their edges where no size was asked for.
    box: the part of the source that the canvas shows, where that is not all.
    """

    source: Picture
    grey: np.ndarray
    rgb: np.ndarray
    mask: np.ndarray
    box: Box | None = None

    @property
    def height(self) -> int:
        return int(self.rgb.shape[0])

    @property
    def width(self) -> int:
        return int(self.rgb.shape[1])

    def placed(self, drawn: np.ndarray) -> np.ndarray:
        """The drawn canvas where it belongs in the source: (H, W, 3)."""
        if self.box is None:
            return drawn[: self.source.height, : self.source.width]
        left, top, right, bottom = self.box
        whole = self.source.rgb.copy()
        whole[top:bottom, left:right] = np.asarray(fit(Image.fromarray(drawn), bottom - top, right - left, cover=True))
        return whole

    def kept(self, drawn: np.ndarray, feather: int = 0) -> np.ndarray:
        """The drawn picture where the mask is white, the source's own bytes elsewhere (alpha included).

        feather: px inside the mask over which the one turns into the other.
        """
        placed, source = self.placed(drawn), self.source.pixels
        if source.shape[2] == 4:
            placed = np.concatenate([placed, np.full_like(placed[..., :1], 255)], axis=-1)
        paint = self.grey >= PAINT_FROM
        if feather:
            share = opacity(paint, feather)[..., None]
            placed = np.rint(share * placed + (1 - share) * source).astype(np.uint8)
        return np.where(paint[..., None], placed, source)

    def blended(self, drawn: np.ndarray) -> np.ndarray:
        """The source laid over the drawn picture, as opaque as the mask is dark.  Source: diffusers' apply_overlay."""
        drawn_image, source = Image.fromarray(self.placed(drawn)), Image.fromarray(self.source.rgb)
        return np.asarray(Image.composite(drawn_image, source, Image.fromarray(self.grey)))


def open_mask(source: PictureSource, picture: Picture, field: str) -> Image.Image:
    """A mask of the picture's size with something white in it.  Raises UsageError."""
    mask = open_grey(source, field)
    if mask.size != (picture.width, picture.height):
        raise UsageError(
            f"the mask is {mask.width} x {mask.height} px, but its image {picture.width} x {picture.height}",
            "make a mask of the image's size: white where to paint, black where to keep",
            field,
        )
    if np.asarray(mask).max() < PAINT_FROM:
        raise UsageError("the mask is black everywhere, so there is nothing to paint", "paint its area white", field)
    return mask


def open_canvas(
    picture: Picture,
    mask: PictureSource,
    size: tuple[int, int] | None,
    crop: int | None = None,
    grow: int = 0,
    how: str = "stretch",
) -> Canvas:
    """Source and mask for a run.  size: height and width, multiples of 16, or None for the source's own.  grow: px that
    the mask is widened by first.

    With a size, both are brought to it (Lanczos) as `how` says: `stretch`, `crop` or `pad`, and that picture is the one
    to keep.  With `crop`, only the mask's surroundings, so many px wide, are brought to the size, proportions kept.
    """
    grey = open_mask(mask, picture, "mask")
    if grow:
        grey = Image.fromarray(spread(np.asarray(grey) >= PAINT_FROM, grow).astype(np.uint8) * 255)
    if size and crop is not None:
        box = crop_box(np.asarray(grey) > 0, crop, *size)
        rgb = fit(Image.fromarray(picture.rgb).crop(box), *size, cover=False)
        shown = fit(grey.crop(box), *size, cover=False)
        return Canvas(picture, np.asarray(grey), np.asarray(rgb), painted(shown), box)
    if size and how == "stretch":
        grey = grey.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        picture = picture.resized(*size)
    elif size:
        pixels, grey = (fit(each, *size, cover=how == "crop") for each in (Image.fromarray(picture.pixels), grey))
        picture = Picture(np.asarray(pixels), picture.icc)
    return Canvas(picture, np.asarray(grey), pad(picture.rgb), pad(painted(grey)))


def outpainted(
    picture: Picture, mask: PictureSource | None, padding: str | Sequence[int | str]
) -> tuple[Picture, np.ndarray]:
    """A picture with room around it, and the mask of that room, (H, W) uint8; a mask of the picture is kept in it."""
    grey = np.zeros((picture.height, picture.width), np.uint8)
    if mask is not None:
        grey = np.asarray(open_mask(mask, picture, "mask"))
    top, right, bottom, left = parse_padding(padding, picture.height, picture.width)
    room = ((top, bottom), (left, right))
    pixels = np.pad(picture.pixels, [*room, (0, 0)], mode="edge")
    return Picture(pixels, picture.icc), np.pad(grey, room, constant_values=255)


def painted(grey: Image.Image) -> np.ndarray:
    """Where a mask is white, (H, W) bool.  Raises UsageError where nothing is."""
    paint = np.asarray(grey) >= PAINT_FROM
    if not paint.any():
        raise UsageError("at this size nothing of the mask is left to paint", "use a larger mask or size", "mask")
    return paint


def spread(mask: np.ndarray, distance: int) -> np.ndarray:
    """A mask (H, W) bool with all pixels painted that are within `distance` px of it along both axes."""
    window = 2 * distance + 1
    for axis in (0, 1):
        lines = np.pad(np.moveaxis(mask, axis, 0), [(distance + 1, distance), (0, 0)])
        counts = np.cumsum(lines, axis=0, dtype=np.int32)
        mask = np.moveaxis(counts[window:] > counts[:-window], 0, axis)
    return mask


def opacity(mask: np.ndarray, feather: int) -> np.ndarray:
    """0 outside a mask, rising evenly to 1 over `feather` px inside it; (H, W) float32.

    Where the mask is narrower than that it rises faster, so that its middle is painted whole.
    """
    inside, depth = mask, mask.astype(np.float32)
    for _ in range(feather):
        inside = ~spread(~inside, 1)
        if not inside.any():
            break
        depth += inside
    return np.asarray(depth / depth.max())


def pad(pixels: np.ndarray) -> np.ndarray:
    """Repeat the last row and column until both sides are multiples of 16."""
    below, right = -pixels.shape[0] % CELL, -pixels.shape[1] % CELL
    return np.pad(pixels, [(0, below), (0, right), *[(0, 0)] * (pixels.ndim - 2)], mode="edge")


def cells(mask: np.ndarray, rule: str, size: int) -> np.ndarray:
    """A mask on a coarser grid, (H / size, W / size) bool: a cell is painted if `any` of its pixels is, or its first
    one (`nearest`, diffusers' rule, which loses small masks)."""
    blocks = mask.reshape(mask.shape[0] // size, size, mask.shape[1] // size, size)
    return np.asarray(blocks.any(axis=(1, 3)) if rule == "any" else blocks[:, 0, :, 0])
