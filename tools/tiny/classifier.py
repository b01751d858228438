"""What a picture of the world shows, read by rules alone: no network, no training.

`read(picture, objects=1)` answers background, and for each object shape, colour, style, dot, place and size. On drawn
scenes it is right always (`tests/tiny/test_classifier.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage
from world import ANCHORS, BACKGROUNDS, BLACK, COLORS, GRAY, SHAPES, STYLES, Scene, Thing
from world import coverage, dot_color, outline, outline_color

FRAME = 3
DIFFERS = 45  # grey levels between an object's pixel and the background
LEAST_PIXELS = 50
TEMPLATE = 40
RIM = 3
WHITE_YIELDS_TO = 0.22
LARGE_FROM = {1: 0.2, 2: 0.175}


@dataclass(frozen=True)
class Read:
    """One object as the classifier sees it. `box`: left, top, right, bottom in pixels."""

    shape: str
    color: str
    style: str
    dot: bool
    place: str
    size: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class Reading:
    """The background's name and the objects, None where there is none (two objects: one entry for each half)."""

    background: str
    things: tuple[Read | None, ...]


def read(
    picture: Image.Image | np.ndarray, objects: int = 1, stacked: bool = False, shapes: tuple[str, ...] = SHAPES
) -> Reading:
    """Read a picture of one object, or of two: left and right, or (`stacked`) top and bottom.

    shapes: those that an object can have.
    """
    pixels = np.asarray(picture).astype(np.float32)
    background = list(BACKGROUNDS)[int(_nearest(_background(pixels)[None], BACKGROUNDS)[0])]
    different = stands_out(pixels)
    if objects == 1:
        return Reading(background, (_read_thing(pixels, different, background, 1, shapes),))
    half = np.zeros(different.shape, dtype=bool)
    if stacked:
        half[: half.shape[0] // 2] = True
    else:
        half[:, : half.shape[1] // 2] = True
    halves = (half, ~half)
    return Reading(background, tuple(_read_thing(pixels, different & part, background, 2, shapes) for part in halves))


def stands_out(pixels: np.ndarray) -> np.ndarray:
    """Where a picture (H, W, 3) differs from its frame, bool (H, W): its objects."""
    return np.abs(pixels - _background(pixels)).max(axis=2) > DIFFERS


def score(reading: Reading, scene: Scene) -> dict[str, float]:
    """1 or 0 for each question; for two objects the mean over them."""
    pairs = list(zip(reading.things, scene.things, strict=True))
    questions = ("shape", "color", "style", "dot", "place", "size")
    answers = {name: float(np.mean([_agrees(seen, thing, name) for seen, thing in pairs])) for name in questions}
    return answers | {"background": float(reading.background == scene.background)}


def _agrees(seen: Read | None, thing: Thing, question: str) -> bool:
    return seen is not None and getattr(seen, question) == getattr(thing, question)


def _background(pixels: np.ndarray) -> np.ndarray:
    """The median colour (3,) of the frame."""
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[FRAME:-FRAME, FRAME:-FRAME] = True
    return np.median(pixels[~inner].astype(np.float32), axis=0)


def _nearest(pixels: np.ndarray, names: dict[str, tuple[int, int, int]]) -> np.ndarray:
    """The index of the nearest named colour of each pixel of (n, 3)."""
    palette = np.array(list(names.values()), dtype=np.float32)
    return ((pixels[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1)


def _read_thing(
    pixels: np.ndarray, different: np.ndarray, background: str, objects: int, shapes: tuple[str, ...]
) -> Read | None:
    labels, count = ndimage.label(different)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.max() < LEAST_PIXELS:
        return None
    mask = labels == 1 + int(sizes.argmax())
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    shape = _shape(mask, box, shapes)
    color = _color(pixels[mask])
    side = max(box[2] - box[0], box[3] - box[1]) / 2 / min(mask.shape)
    return Read(
        shape=shape,
        color=color,
        style=_style(pixels, mask, color, background),
        dot=(color, background) != ("white", "black") and _dotted(pixels, shape, box, background),
        place=_place(box, mask.shape, objects),
        size="large" if side > LARGE_FROM[objects] else "small",
        box=box,
    )


# --- shape -----------------------------------------------------------------------------------------------------------


@cache
def _templates(shapes: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    """Each shape's own mask at two radii."""
    found = []
    for shape in shapes:
        for radius in (0.27, 0.14):
            covered = np.asarray(coverage(Thing(shape, "red", "large", "center", 0.5, 0.5, radius))) > 127
            rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
            found.append((shape, _scaled(covered, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))))
    return found


def _scaled(mask: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    picture = Image.fromarray(mask.astype(np.uint8) * 255).crop(box)
    return np.asarray(picture.resize((TEMPLATE, TEMPLATE), Image.Resampling.BILINEAR)) > 127


def _shape(mask: np.ndarray, box: tuple[int, int, int, int], shapes: tuple[str, ...]) -> str:
    seen = _scaled(mask, box)
    return max(_templates(shapes), key=lambda entry: (seen & entry[1]).sum() / (seen | entry[1]).sum())[0]


# --- colour and style ------------------------------------------------------------------------------------------------


def _color(pixels: np.ndarray) -> str:
    """The most frequent nearest named colour; black and gray never, white only if nothing else holds 22 %."""
    counts = np.bincount(_nearest(pixels, COLORS | {"black": BLACK, "gray": GRAY}), minlength=len(COLORS) + 2)
    shares = dict(zip(COLORS, counts / len(pixels), strict=False))
    best = max((name for name in COLORS if name != "white"), key=lambda name: shares[name])
    if shares["white"] > shares[best] and shares[best] < WHITE_YIELDS_TO:
        return "white"
    return best


def _style(pixels: np.ndarray, mask: np.ndarray, color: str, background: str) -> str:
    own, line = np.array(COLORS[color], np.float32), np.array(outline_color(color, background), np.float32)
    filled = ndimage.binary_fill_holes(mask)
    rim = filled & ~ndimage.binary_erosion(filled, iterations=RIM) & mask
    seen = pixels[rim]
    lined = ((seen - line) ** 2).sum(axis=1) < ((seen - own) ** 2).sum(axis=1)
    inside = pixels[ndimage.binary_erosion(mask, iterations=2)]
    brightness = inside @ own / (own @ own) if len(inside) else np.zeros(1)
    bright, dark = np.mean(np.abs(brightness - 1) < 0.2), np.mean(np.abs(brightness - 0.5) < 0.18)
    if bright >= 0.25 and dark >= 0.25:
        return STYLES[2]
    return STYLES[1] if lined.mean() >= 0.5 else STYLES[0]


def _dotted(pixels: np.ndarray, shape: str, box: tuple[int, int, int, int], background: str) -> bool:
    """Whether the pixels within .2 r of the shape's own centre have the dot's colour."""
    points = outline(shape)
    low, high = points.min(axis=0), points.max(axis=0)
    radius = float(np.mean([(box[2] - box[0]) / (high - low)[0], (box[3] - box[1]) / (high - low)[1]]))
    x, y = box[0] - low[0] * radius, box[1] - low[1] * radius
    rows, columns = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    near = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 <= max(1.5, 0.2 * radius) ** 2
    distance = np.sqrt(((pixels[near] - np.array(dot_color(background), np.float32)) ** 2).sum(axis=1))
    return bool(np.median(distance) < 60) if len(distance) else False


def _place(box: tuple[int, int, int, int], shape: tuple[int, ...], objects: int) -> str:
    """The nearest anchor; with two objects none of them stands in the centre."""
    x, y = (box[0] + box[2]) / 2 / shape[1], (box[1] + box[3]) / 2 / shape[0]
    names = [name for name in ANCHORS if objects == 1 or name != "center"]
    return min(names, key=lambda name: (x - ANCHORS[name][0]) ** 2 + (y - ANCHORS[name][1]) ** 2)
