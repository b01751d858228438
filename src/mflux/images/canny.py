"""Canny edges, equal to OpenCV's bit for bit, in numpy.

OpenCV is only there where it brings a BLAS (the `cpu` extra): on a Mac it would be 40 MB for this one function, and a
map that depends on what is installed would make the same seed draw two pictures.  Source: Canny, 1986; integer
thresholds, directions and tie-breaking of cv2.Canny (3 x 3 Sobel, |dx| + |dy|, borders replicated).
"""

import numpy as np

# tan(22.5 degrees) in 2^-15: OpenCV compares directions in integers.  tan(67.5) is that plus 2.
DIRECTION_BITS = 15
TAN_22 = 13573
NEIGHBOURS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if row or column]


def canny(pixels: np.ndarray, low: float, high: float) -> np.ndarray:
    """Edges (H, W) uint8, 255 or 0.  pixels: (H, W) or (H, W, C) uint8; of several channels the steepest one counts.

    Gradients above `high` are edges, and those above `low` that are joined to them.  Thresholds in any order.
    """
    low, high = sorted((np.floor(low), np.floor(high)))
    across, down = gradients(pixels)
    steepness = np.abs(across) + np.abs(down)
    candidates = (steepness > low) & is_ridge(steepness, across, down)
    return np.where(joined_to(candidates & (steepness > high), candidates), 255, 0).astype(np.uint8)


def gradients(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel derivatives (H, W) int64 along columns and rows, of the channel whose sum of both is largest."""
    channels = np.atleast_3d(pixels).astype(np.int64)
    padded = np.pad(channels, [(1, 1), (1, 1), (0, 0)], mode="edge")
    smooth_rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    smooth_columns = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across, down = smooth_rows[:, 2:] - smooth_rows[:, :-2], smooth_columns[2:] - smooth_columns[:-2]
    steepest = (np.abs(across) + np.abs(down)).argmax(axis=2)[..., None]
    return np.take_along_axis(across, steepest, 2)[..., 0], np.take_along_axis(down, steepest, 2)[..., 0]


def is_ridge(steepness: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Where the gradient is largest along its own direction, one of four.

    Along rows and columns a tie goes to the later pixel's disadvantage (> before, >= after); diagonals are strict.
    """
    padded = np.pad(steepness, 1)
    height, width = steepness.shape

    def at(row: int, column: int) -> np.ndarray:
        return padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    flat, steep = np.abs(across) * TAN_22, np.abs(down) << DIRECTION_BITS
    horizontal = steep < flat
    vertical = steep > flat + (np.abs(across) << (DIRECTION_BITS + 1))
    falling = (across ^ down) < 0  # the gradient points up right or down left
    diagonal = np.where(
        falling,
        (steepness > at(-1, 1)) & (steepness > at(1, -1)),
        (steepness > at(-1, -1)) & (steepness > at(1, 1)),
    )
    along_row = (steepness > at(0, -1)) & (steepness >= at(0, 1))
    along_column = (steepness > at(-1, 0)) & (steepness >= at(1, 0))
    return np.where(horizontal, along_row, np.where(vertical, along_column, diagonal))


def joined_to(seeds: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Candidates (H, W) bool that a path of candidates joins to a seed, by sides or corners."""
    padded = np.pad(candidates & ~seeds, 1)
    open_, width = padded.ravel(), padded.shape[1]
    steps = np.array([row * width + column for row, column in NEIGHBOURS])
    found = np.pad(seeds, 1).ravel()
    front = np.flatnonzero(found)
    while front.size:
        reached = (front[:, None] + steps).ravel()
        front = np.unique(reached[open_[reached]])
        open_[front] = False
        found[front] = True
    return found.reshape(padded.shape)[1:-1, 1:-1]
