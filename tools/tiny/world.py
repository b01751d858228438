"""The drawn world that `tiny` knows: scenes, their pictures and their masks.

Look at it with `.venv/bin/python tools/tiny/world.py out.png` (a sheet of 64 random scenes).

A scene is one or two plain shapes on a plain background. Coordinates are fractions of the picture's side, measured from
the top left corner; pictures are drawn 3 times larger and box-reduced. The words for a scene live in `captions.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SIDE = 128
SUPERSAMPLING = 3

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")
RESERVED_SHAPE = "crescent"  # never trained: the Dreambooth example teaches it
COLORS = {
    "red": (220, 38, 38),
    "orange": (247, 140, 20),
    "yellow": (250, 214, 30),
    "green": (34, 160, 70),
    "blue": (37, 99, 225),
    "purple": (135, 60, 190),
    "pink": (245, 130, 190),
    "white": (250, 250, 250),
}
BLACK = (18, 18, 22)
GRAY = (135, 138, 142)
BACKGROUNDS = {"black": BLACK, "gray": GRAY} | {name: COLORS[name] for name in ("white", "yellow", "blue", "green")}
STYLES = ("flat", "outlined", "striped")

OUTLINE_WIDTH = 0.028
STRIPE_PERIOD = 0.1
STRIPE_DARK_SHARE = 0.42  # below one half, so that the bright colour stays the most frequent one
RING_HOLE = 0.56
DOT_RADIUS = 0.3

ANCHORS = {"left": (0.27, 0.5), "right": (0.73, 0.5), "top": (0.5, 0.27), "bottom": (0.5, 0.73), "center": (0.5, 0.5)}
RADIUS_ALONE = {"large": 0.27, "small": 0.14}
RADIUS_PAIRED = {"large": 0.225, "small": 0.125}
HELD_OUT = frozenset((color, SHAPES[(5 * i + 1) % 6]) for i, color in enumerate(COLORS))


@dataclass(frozen=True)
class Thing:
    """One object; `x`, `y` its centre and `radius` its size, in fractions of the side; `place` names its anchor."""

    shape: str
    color: str
    size: str
    place: str
    x: float
    y: float
    radius: float
    style: str = "flat"
    dot: bool = False

    @property
    def pair(self) -> tuple[str, str]:
        return self.color, self.shape


@dataclass(frozen=True)
class Scene:
    """A background and one thing, or two that stand left and right or top and bottom (in that order)."""

    background: str
    things: tuple[Thing, ...]


# --- drawing ---------------------------------------------------------------------------------------------------------


def draw(
    scene: Scene,
    width: int = SIDE,
    height: int = SIDE,
    palette: Mapping[str, tuple[int, int, int]] = COLORS,
    outlines: Mapping[str, np.ndarray] | None = None,
) -> Image.Image:
    """The scene as an RGB picture; palette, outlines: what the names of its objects' colours and shapes mean."""
    canvas = Image.new("RGB", (width * SUPERSAMPLING, height * SUPERSAMPLING), BACKGROUNDS[scene.background])
    for thing in scene.things:
        points = (outlines or {}).get(thing.shape, outline(thing.shape))
        _draw_thing(canvas, thing, scene.background, palette[thing.color], points)
    return canvas.reduce(SUPERSAMPLING)


def coverage(thing: Thing, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """How much of each pixel the thing covers, as an `L` picture (255 = all); its dot is part of it."""
    mask = _silhouette(thing, (width * SUPERSAMPLING, height * SUPERSAMPLING), outline(thing.shape))
    if thing.dot:
        ImageDraw.Draw(mask).polygon(_dot_points(thing, mask.size), fill=255)
    return mask.reduce(SUPERSAMPLING)


def depth_map(scene: Scene, width: int = SIDE, height: int = SIDE) -> Image.Image:
    """Nearness as grey: background 0.2, a large object 0.9, a small one 0.6."""
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING), round(0.2 * 255))
    for thing in scene.things:
        canvas.paste(
            round((0.9 if thing.size == "large" else 0.6) * 255),
            mask=_silhouette(thing, canvas.size, outline(thing.shape)),
        )
    return canvas.reduce(SUPERSAMPLING).convert("RGB")


def edge_map(picture: Image.Image, threshold: int = 60) -> Image.Image:
    """White lines on black where neighbouring pixels differ by more than `threshold` in some channel."""
    pixels = np.asarray(picture).astype(np.int16)
    edges = np.zeros(pixels.shape[:2], dtype=bool)
    edges[:, 1:] |= np.abs(np.diff(pixels, axis=1)).max(axis=2) > threshold
    edges[1:] |= np.abs(np.diff(pixels, axis=0)).max(axis=2) > threshold
    return Image.fromarray(np.where(edges, 255, 0).astype(np.uint8)).convert("RGB")


def box(thing: Thing, margin: float = 0.0) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the thing's outline plus `margin`, in fractions of the side."""
    points = outline(thing.shape) * thing.radius + (thing.x, thing.y)
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def outline(shape: str) -> np.ndarray:
    """The outer contour of a shape of radius 1 around (0, 0), y downwards: (points, 2)."""
    if shape in ("circle", "ring"):
        return _arc(1.0, 0.0, 2 * np.pi)
    if shape == "square":
        return 0.86 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    if shape == "triangle":
        return np.array([(0, -1), (1, 0.75), (-1, 0.75)])
    if shape == "star":
        turns = np.arange(10) * np.pi / 5
        reach = np.where(np.arange(10) % 2 == 0, 1.08, 0.45)
        return np.stack([reach * np.sin(turns), -reach * np.cos(turns)], axis=1)
    if shape == "heart":
        return _heart()
    if shape == RESERVED_SHAPE:
        return _crescent()
    raise ValueError(f"no shape is called {shape!r}")


def outline_color(color: str, background: str) -> tuple[int, int, int]:
    """What an outlined object's line is drawn in."""
    if background != "black":
        return BLACK
    return GRAY if color == "white" else COLORS["white"]


def dot_color(background: str) -> tuple[int, int, int]:
    return COLORS["white"] if background == "black" else BLACK


def _arc(radius: float, start: float, stop: float, points: int = 96, center: float = 0.0) -> np.ndarray:
    turns = np.linspace(start, stop, points)
    return np.stack([center + radius * np.cos(turns), radius * np.sin(turns)], axis=1)


def _heart() -> np.ndarray:
    """The classic curve x = 16 sin^3 t, scaled to width 2 and centred on its box."""
    t = np.linspace(0, 2 * np.pi, 96)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    middle = (y.max() + y.min()) / 2
    return np.stack([np.sin(t) ** 3, (middle - y) / 16], axis=1)


def _crescent() -> np.ndarray:
    """A disc of radius 1 minus a disc of .8 that is shifted by .45 to the right."""
    crossing_x = (1 - 0.8**2 + 0.45**2) / (2 * 0.45)
    outer = np.arccos(crossing_x)
    inner = np.arctan2(np.sin(outer), crossing_x - 0.45)
    return np.concatenate([_arc(1.0, outer, 2 * np.pi - outer), _arc(0.8, 2 * np.pi - inner, inner, center=0.45)])


def _placed(points: np.ndarray, thing: Thing, size: tuple[int, int], scale: float) -> list[tuple[float, float]]:
    """Unit points moved to the thing's place on a canvas of `size` pixels; radii count in the shorter side."""
    center = np.array([thing.x * size[0], thing.y * size[1]])
    return [(float(x), float(y)) for x, y in points * (thing.radius * scale * min(size)) + center]


def _dot_points(thing: Thing, size: tuple[int, int]) -> list[tuple[float, float]]:
    return _placed(outline("circle"), thing, size, DOT_RADIUS)


def _silhouette(thing: Thing, size: tuple[int, int], points: np.ndarray) -> Image.Image:
    mask = Image.new("L", size, 0)
    pen = ImageDraw.Draw(mask)
    pen.polygon(_placed(points, thing, size, 1.0), fill=255)
    if thing.shape == "ring":
        pen.polygon(_placed(outline("ring"), thing, size, RING_HOLE), fill=0)
    return mask


def _draw_thing(
    canvas: Image.Image, thing: Thing, background: str, color: tuple[int, int, int], points: np.ndarray
) -> None:
    size = canvas.size
    mask = _silhouette(thing, size, points)
    canvas.paste(color, mask=mask)
    if thing.style == "striped":
        dark = (color[0] // 2, color[1] // 2, color[2] // 2)
        canvas.paste(dark, mask=ImageChops.darker(mask, _stripes(thing, size)))
    elif thing.style == "outlined":
        canvas.paste(outline_color(thing.color, background), mask=ImageChops.darker(mask, _lines(thing, size, points)))
    if thing.dot:
        ImageDraw.Draw(canvas).polygon(_dot_points(thing, size), fill=dot_color(background))


def _stripes(thing: Thing, size: tuple[int, int]) -> Image.Image:
    """Diagonal stripes, fixed to the thing's centre."""
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    across = (x - thing.x * size[0] + y - thing.y * size[1]) / (np.sqrt(2) * min(size) * STRIPE_PERIOD)
    return Image.fromarray(np.where(across % 1.0 < STRIPE_DARK_SHARE, 255, 0).astype(np.uint8))


def _lines(thing: Thing, size: tuple[int, int], outer: np.ndarray) -> Image.Image:
    """A line along the outer contour, twice as wide as what stays of it inside the silhouette."""
    lines = Image.new("L", size, 0)
    points = _placed(outer, thing, size, 1.0)
    width = round(2 * OUTLINE_WIDTH * min(size))
    ImageDraw.Draw(lines).line([*points, points[0], points[1]], fill=255, width=width, joint="curve")
    return lines


# --- random scenes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneKind:
    """What to draw at random: `pairs` is seen | held-out; `styled` and `dotted` are shares of the objects."""

    two_objects: float = 0.5
    pairs: str = "seen"
    styled: float = 0.25
    dotted: float = 0.2


def sample_scene(rng: np.random.Generator, kind: SceneKind = SceneKind()) -> Scene:
    """A random scene; with pairs="seen" none of its objects is a held-out pair, with "held-out" all of them are."""
    background = str(rng.choice(list(BACKGROUNDS)))
    if rng.random() >= kind.two_objects:
        return Scene(background, (sample_thing(rng, kind, background, str(rng.choice(list(ANCHORS))), paired=False),))
    places = ("left", "right") if rng.random() < 0.5 else ("top", "bottom")
    return Scene(background, tuple(sample_thing(rng, kind, background, place, paired=True) for place in places))


def sample_thing(rng: np.random.Generator, kind: SceneKind, background: str, place: str, paired: bool) -> Thing:
    color, shape = _sample_pair(rng, kind.pairs, background)
    size = str(rng.choice(list(RADIUS_ALONE)))
    style = str(rng.choice(["outlined", "striped"])) if rng.random() < kind.styled else "flat"
    dot = bool(rng.random() < kind.dotted)
    x, y, radius = _jitter(rng, place, size, paired)
    return legible(Thing(shape, color, size, place, x, y, radius, style, dot), background)


def legible(thing: Thing, background: str) -> Thing:
    """Without a style or a dot that could not be seen, or that would leave nothing of a small object's colour."""
    style, dot, small = thing.style, thing.dot, thing.size == "small"
    if style == "striped" and (thing.color, background) == ("white", "gray"):
        style = "flat"  # the dark stripes of white would be the background's gray
    if style == "outlined" and small and thing.shape == "star":
        style = "flat"
    if (thing.color, background) == ("white", "black") or (small and style != "flat"):
        dot = False
    return replace(thing, style=style, dot=dot)


def _sample_pair(rng: np.random.Generator, pairs: str, background: str) -> tuple[str, str]:
    while True:
        pair = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        if pair[0] != background and (pair in HELD_OUT) == (pairs == "held-out"):
            return pair


def _jitter(rng: np.random.Generator, place: str, size: str, paired: bool) -> tuple[float, float, float]:
    """Centre and radius around the anchor. Two objects stay inside their halves, so they move less along their axis."""
    x, y = ANCHORS[place]
    if not paired:
        dx, dy = rng.uniform(-0.02, 0.02, 2)
        return float(x + dx), float(y + dy), float(RADIUS_ALONE[size] * rng.uniform(0.94, 1.06))
    along, across = rng.uniform(-0.005, 0.005), rng.uniform(-0.02, 0.02)
    dx, dy = (along, across) if place in ("left", "right") else (across, along)
    return float(x + dx), float(y + dy), float(RADIUS_PAIRED[size] * rng.uniform(0.94, 1.0))


def main(path: str) -> None:
    rng = np.random.default_rng(0)
    sheet = Image.new("RGB", (8 * SIDE, 8 * SIDE))
    for i in range(64):
        sheet.paste(draw(sample_scene(rng)), (i % 8 * SIDE, i // 8 * SIDE))
    sheet.save(path)


if __name__ == "__main__":
    main(sys.argv[1])


def hole_around(edges: tuple[float, float, float, float], ellipse: bool = False) -> np.ndarray:
    """A box in fractions of the side as a mask, or the ellipse around it."""
    picture = Image.new("L", (SIDE, SIDE))
    left, top, right, bottom = (edge * SIDE for edge in edges)
    pen = ImageDraw.Draw(picture)
    if not ellipse:
        pen.rectangle((round(left), round(top), round(right) - 1, round(bottom) - 1), fill=255)
    else:
        wide, high = 0.2 * (right - left), 0.2 * (bottom - top)
        pen.ellipse((left - wide, top - high, right + wide, bottom + high), fill=255)
    return np.asarray(picture) > 127
