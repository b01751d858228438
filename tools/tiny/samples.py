"""The picture of the docs: `.venv/bin/python tools/tiny/samples.py` writes docs/images/tiny-samples.png.

Eight prompts under one another, seeds 0..7 beside one another, in order, nothing chosen. Drawn by the product;
`--torch` draws with the torch networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from evaluate import SHIPPED, painter
from PIL import Image

PROMPTS = (
    "a large red circle in the center, on a white background",
    "a small blue star on the left, on a yellow background",
    "a large purple heart at the top, on a gray background",
    "a large striped green triangle in the center, on a black background",
    "a large yellow ring with a dot on the right, on a blue background",
    "a large red square in the center, on a gray background",
    "a large orange square on the left and a small white star on the right, on a blue background",
    "a small pink heart above a large green circle, on a black background",
)
SEEDS = range(8)
TARGET = SHIPPED.parents[2] / "docs" / "images" / "tiny-samples.png"


def grid(pictures: list[list[np.ndarray]]) -> Image.Image:
    """Rows of pictures with white gaps."""
    padded = [
        np.concatenate([np.pad(p, ((2, 2), (2, 2), (0, 0)), constant_values=255) for p in row], 1) for row in pictures
    ]
    return Image.fromarray(np.concatenate(padded))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", action="store_true")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--out", type=Path, default=TARGET)
    options = parser.parse_args()
    paint = painter("shipped" if options.torch else "mflux", options.guidance)
    rows = [paint([prompt] * len(SEEDS), list(SEEDS)) for prompt in PROMPTS]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
