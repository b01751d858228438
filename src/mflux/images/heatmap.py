"""Maps of numbers as pictures."""

from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image

# Black through violet and orange to pale yellow, evenly brighter, so that it reads in grey too.
HEAT = np.array([(4, 3, 18), (74, 16, 110), (165, 44, 96), (233, 93, 50), (252, 180, 25), (252, 252, 190)], float)
GOLDEN = 0.618034  # of a turn: neighbouring hues differ


def enlarged(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each number (rows, columns, ...) as a block of pixels (H, W, ...)."""
    rows, columns = grid.shape[:2]
    return grid.repeat(height // rows, 0).repeat(width // columns, 1)


def heat_picture(grid: np.ndarray, height: int, width: int) -> Image.Image:
    """A map (rows, columns) in colours, its lowest number dark and its highest one bright; an even one is dark."""
    low, high = grid.min(), grid.max()
    places = (grid - low) / max(high - low, 1e-8) * (len(HEAT) - 1)
    colors = np.stack([np.interp(places, np.arange(len(HEAT)), channel) for channel in HEAT.T], axis=-1)
    return Image.fromarray(enlarged(np.rint(colors).astype(np.uint8), height, width))


def segmented(classes: np.ndarray, count: int, height: int, width: int) -> Image.Image:
    """A map of whole numbers below `count`, a hue for each."""
    palette = np.array([hsv_to_rgb(k * GOLDEN % 1, 0.8, 0.9) for k in range(count)])
    return Image.fromarray(enlarged(np.rint(255 * palette[classes]).astype(np.uint8), height, width))
