"""Latents as kontext draws them, for the decoder: `.venv/bin/python tools/tiny/drawn.py --groups 400`.

What a transformer draws is not what the encoder would say: small errors that hang together, which no independent noise
is like. From pairs of pictures that training may see, half of them with figures in place of shapes, kontext draws the
wanted picture, from noise or from a little of it; what is still that picture has kontext's errors. Kept in
.tiny/drawn.pt, for `train_vae.py --refine .tiny/vae --drawn .tiny/drawn.pt`.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from clock import WORK, log, mixed, parsed
from evaluate import SHIPPED
from groups import random_group
from latents import Codec
from networks import Networks
from pairs import drawn
from sampler import TorchPainter

DRAWN_FILE = WORK / "drawn.pt"
FIRST, LAST = 0, 2  # of the eight steps, where the picture is taken over
FIGURES = 0.5  # share of the groups
FAR = 0.6  # a token that is further off than this has become something else


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sources, wanted pictures (N, side, side, 3) and instructions of some groups' pairs with one reference."""
    rng, sources, targets, told = np.random.default_rng(seed), [], [], []
    for _ in range(count):
        group = random_group(rng)
        shown = [picture for picture, _ in drawn(group, rng, figures=rng.random() < FIGURES)]
        for (source, second, target), words in zip(group.pairs, group.told, strict=True):
            if second < 0:
                sources.append(shown[source])
                targets.append(shown[target])
                told.append(words[0][0])
    return np.stack(sources), np.stack(targets), told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--seed", type=int, default=70_000)
    options = parsed(parser)
    torch.manual_seed(options.seed)
    folder = SHIPPED / "kontext"
    codec = Codec(SHIPPED / "base" / "vae")
    paint = TorchPainter(Networks.from_folders(folder, folder / "transformer"), codec)
    sources, targets, told = pictures(options.seed, options.groups)
    latents, kept = [], []
    for start in range(0, len(told), 40):
        some = slice(start, start + 40)
        clean, references = codec.encode(targets[some]), codec.encode(sources[some])
        first, seeds = int(torch.randint(FIRST, LAST + 1, ())), list(range(start, start + len(clean)))
        with mixed():
            x = paint.latents(told[some], seeds, references=references, clean=clean, first=first).float()
        near = ((x - clean).square().mean(dim=2).sqrt() < FAR).all(dim=1)
        latents.append(codec.raw(x[near]).half())
        kept.append(torch.from_numpy(targets[some])[near])
    stored = {"latents": torch.cat(latents), "pictures": torch.cat(kept).permute(0, 3, 1, 2)}
    torch.save(stored, DRAWN_FILE)
    log("drawn", pictures=len(stored["latents"]), of=len(told))


if __name__ == "__main__":
    main()
