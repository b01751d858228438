"""Encode the training pictures of the fill variant: `.venv/bin/python tools/tiny/holes.py --scenes 10000`.

A scene, a hole in it, and words for what belongs there: 60 % a hole around one whole object, 20 % a random box, 10 %
everything, 10 % half the picture. Kept in .tiny/holes.pt.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from captions import caption, phrase
from clock import WORK, log, mixed
from latents import CAPTIONS_PER_SCENE, Codec, pack, token_ids, token_labels
from torch import Tensor
from world import SIDE, Scene, box, draw, hole_around, sample_scene

HOLES_FILE = WORK / "holes.pt"


def random_hole(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, int | None]:
    """Mask (SIDE, SIDE) bool, True = repaint, and the index of the object that it surrounds, if any."""
    choice = rng.random()
    if choice < 0.6:
        index = int(rng.integers(len(scene.things)))
        return hole_around(box(scene.things[index], rng.uniform(0.02, 0.1)), bool(rng.random() < 0.25)), index
    if choice < 0.8:
        left, top = rng.uniform(0, 0.7, 2)
        return hole_around((left, top, left + rng.uniform(0.2, 0.7), top + rng.uniform(0.2, 0.7))), None
    if choice < 0.9:
        return np.ones((SIDE, SIDE), dtype=bool), None
    half = [(0, 0, 0.5, 1), (0.5, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1)][int(rng.integers(4))]
    return hole_around(half), None


def mask_channels(masks: np.ndarray) -> Tensor:
    """(B, H, W) bool -> (B, tokens, 256): each latent cell's 8 x 8 pixels as channels, then FLUX's packing."""
    batch, height, width = masks.shape
    cells = torch.from_numpy(masks).reshape(batch, height // 8, 8, width // 8, 8)
    return pack(cells.permute(0, 2, 4, 1, 3).reshape(batch, 64, height // 8, width // 8))


def masked_pictures(pictures: np.ndarray, masks: np.ndarray) -> Tensor:
    """(B, 3, H, W) in [-1, 1] with zeros, mid-grey, where the mask is set."""
    floats = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return floats * ~torch.from_numpy(masks)[:, None]


def fill_captions(scene: Scene, index: int | None, rng: np.random.Generator) -> list[str]:
    """The whole scene's captions, or, half of the time, only what stands in the hole."""
    told = [caption(scene, rng).text for _ in range(CAPTIONS_PER_SCENE)]
    if index is not None:
        told[::2] = [phrase(scene.things[index], rng, size_named=0.4) for _ in told[::2]]
    return told


def _holes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[list[str]], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    holes = [random_hole(scene, rng) for scene in scenes]
    told = [fill_captions(scene, index, rng) for scene, (_, index) in zip(scenes, holes, strict=True)]
    labels = [np.stack(parts) for parts in zip(*(token_labels(scene) for scene in scenes), strict=True)]
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    return pictures, np.stack([mask for mask, _ in holes]), told, labels


def encode_holes(count: int, seed: int = 50_000, part: int = 500) -> dict[str, Tensor]:
    """clean and masked (N, 64, 64) float16, mask (N, 64, 256) bool, ids as in `latents.py`, labels."""
    codec, clean, masked, masks, told, labels = Codec(), [], [], [], [], []
    seeds = range(seed, seed + count // part)
    with ProcessPoolExecutor(1) as pool:
        for pictures, some, captions, parts in pool.map(_holes, seeds, [part] * len(seeds)):
            whole = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with mixed():
                clean += [codec.encode_floats(few).half() for few in whole.split(50)]
                masked += [codec.encode_floats(few).half() for few in masked_pictures(pictures, some).split(50)]
            masks.append(mask_channels(some))
            told += captions
            labels.append(parts)
    t5_ids, clip_ids = token_ids([text for four in told for text in four])
    shapes, colors, fine = (torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True))
    return {
        "clean": torch.cat(clean),
        "masked": torch.cat(masked),
        "mask": torch.cat(masks),
        "t5_ids": t5_ids.to(torch.uint8).view(len(told), CAPTIONS_PER_SCENE, -1),
        "clip_ids": clip_ids.to(torch.int16).view(len(told), CAPTIONS_PER_SCENE, -1),
        "shapes": shapes,
        "colors": colors,
        "fine": fine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=10_000)
    options = parser.parse_args()
    data = encode_holes(options.scenes)
    torch.save(data, HOLES_FILE)
    log("holes", scenes=len(data["clean"]))


if __name__ == "__main__":
    main()
