"""Pictures as redux sees them: `.venv/bin/python tools/tiny/looks.py --scenes 8000`.

The first scenes of .tiny/latents.pt once more, drawn and scaled down as SigLIP's processor does (Pillow, bicubic). Kept
in .tiny/looks.pt.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from clock import WORK, log
from latents import FIRST_SEED, PART, scenes_of_part
from networks import REDUX_SIDE
from PIL import Image
from torch import Tensor
from world import draw

LOOKS_FILE = WORK / "looks.pt"


def looks(pictures: list[Image.Image]) -> Tensor:
    """(B, 3, REDUX_SIDE, REDUX_SIDE) uint8."""
    scaled = [np.asarray(one.resize((REDUX_SIDE, REDUX_SIDE), Image.Resampling.BICUBIC)) for one in pictures]
    return torch.from_numpy(np.stack(scaled)).permute(0, 3, 1, 2).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=8000)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.scenes // PART)
    seen = torch.cat([looks([draw(scene) for scene in scenes_of_part(seed, PART)[0]]) for seed in seeds])
    torch.save(seen, LOOKS_FILE)
    log("looks", scenes=len(seen))


if __name__ == "__main__":
    main()
