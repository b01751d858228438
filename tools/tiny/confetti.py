"""Pieces and figures in any colour: content without a name, which has to be kept for what it looks like.

The VAE learns from them that a colour does not tell its shape, kontext to copy what it has never met. None of them is
a shape of the world's. No torch in here.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from world import COLORS, SHAPES, SIDE, SUPERSAMPLING, Scene, SceneKind, box, draw, sample_scene

MOST, TRIES = 3, 12


def confetti(rng: np.random.Generator) -> Image.Image:
    """A picture of nothing else."""
    picture = Image.new("RGB", (SUPERSAMPLING * SIDE, SUPERSAMPLING * SIDE), any_color(rng))
    for _ in range(rng.integers(1, 6)):
        _piece(ImageDraw.Draw(picture), rng, rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.3))
    return picture.reduce(SUPERSAMPLING)


def figures(rng: np.random.Generator) -> Image.Image:
    """A scene whose objects have outlines without a name, in any colour; their styles and dots are the world's."""
    scene = sample_scene(rng, SceneKind(styled=0.5, dotted=0.3))
    outlines = {shape: figure(rng) for shape in SHAPES}
    return draw(scene, palette={name: any_color(rng) for name in COLORS}, outlines=outlines)


def figure(rng: np.random.Generator) -> np.ndarray:
    """A closed outline (points, 2) of reach 1: three to eight corners or waves, but not five, flattened and turned."""
    count, depth = rng.choice([3, 4, 6, 7, 8]), rng.uniform(0.05, 0.7)
    if rng.random() < 0.6:
        turns = np.arange(2 * count) * np.pi / count
        reach = np.where(np.arange(2 * count) % 2 == 0, 1.0, 1 - depth)
    else:
        turns = np.linspace(0, 2 * np.pi, 96)
        reach = 1 + 0.6 * depth * np.sin(count * turns)
    points = reach[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1) * (1.0, rng.uniform(0.6, 0.9))
    return turned(points, rng) / np.linalg.norm(points, axis=1).max()


def turned(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An outline (points, 2) turned by any angle."""
    angle = rng.uniform(0, 2 * np.pi)
    return points @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def around(scenes: list[Scene], rng: np.random.Generator) -> Image.Image:
    """Up to MOST pieces where none of the scenes has an object, RGBA: laid over each, they are what an edit keeps."""
    layer = Image.new("RGBA", (SUPERSAMPLING * SIDE, SUPERSAMPLING * SIDE))
    edges = np.array([box(thing, 0.02) for scene in scenes for thing in scene.things]).reshape(-1, 4)
    left, top, right, bottom = edges.T
    laid = 0
    for _ in range(TRIES):
        (x, y), reach = rng.uniform(0.05, 0.95, 2), rng.uniform(0.06, 0.18)
        free = (x + reach < left) | (x - reach > right) | (y + reach < top) | (y - reach > bottom)
        if free.all() and laid < MOST:
            _piece(ImageDraw.Draw(layer), rng, np.array([x, y]), reach / 1.2)
            laid += 1
    return layer.reduce(SUPERSAMPLING)


def any_color(rng: np.random.Generator) -> tuple[int, int, int]:
    if rng.random() < 0.6:
        return list(COLORS.values())[int(rng.integers(len(COLORS)))]
    red, green, blue = rng.integers(0, 256, 3)
    return int(red), int(green), int(blue)


def _piece(pen: ImageDraw.ImageDraw, rng: np.random.Generator, center: np.ndarray, reach: float) -> None:
    """A polygon of 3 to 11 corners, none further from its centre than 1.2 times `reach`; sometimes with a line."""
    corners = int(rng.integers(3, 12))
    turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = reach * rng.uniform(0.3, 1.2, corners)
    corners_at = center + np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
    points = [(float(x), float(y)) for x, y in SUPERSAMPLING * SIDE * corners_at]
    pen.polygon(points, fill=any_color(rng))
    if rng.random() < 0.4:
        pen.line([*points, points[0]], fill=any_color(rng), width=int(rng.integers(6, 16)))
