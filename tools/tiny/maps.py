"""Encode what steers: `.venv/bin/python tools/tiny/maps.py --scenes 6000`.

The first scenes of .tiny/latents.pt once more: their edges (the product's own Canny), their depth, and the picture
reduced four times and enlarged again, each through the VAE. Kept in .tiny/maps.pt.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from clock import WORK, log, mixed, parsed
from latents import FIRST_SEED, PART, Codec, scenes_of_part
from PIL import Image
from torch import Tensor
from world import SIDE, Scene, depth_map, draw

from mflux.images.canny import canny

MAPS_FILE = WORK / "maps.pt"
EDGES_ABOVE = (50, 100)  # the lower thresholds of the commands for edges
REDUCED = 4


def edges(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    found = canny(np.asarray(draw(scene)), float(rng.choice(EDGES_ABOVE)), 200)
    return np.repeat(found[..., None], 3, axis=2)


def depth(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """As the world tells it, or, half of the time, stretched to the whole range of grey as the product does."""
    near = np.asarray(depth_map(scene)).astype(np.float32)
    if rng.random() < 0.5:
        near = (near - near.min()) / (near.max() - near.min()) * 255
    return np.rint(near).astype(np.uint8)


def coarse(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(draw(scene).reduce(REDUCED).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


KINDS = {"canny": edges, "depth": depth, "coarse": coarse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=6000)
    options = parsed(parser)
    codec, maps = Codec(), {kind: [] for kind in KINDS}
    for seed in range(FIRST_SEED, FIRST_SEED + options.scenes // PART):
        scenes, rng = scenes_of_part(seed, PART)
        for kind, make in KINDS.items():
            pictures = np.stack([make(scene, rng) for scene in scenes])
            with mixed():
                maps[kind] += [codec.encode(some).half() for some in np.array_split(pictures, PART // 50)]
    encoded: dict[str, Tensor] = {kind: torch.cat(parts) for kind, parts in maps.items()}
    torch.save(encoded, MAPS_FILE)
    log("maps", scenes=len(encoded["canny"]))


if __name__ == "__main__":
    main()
