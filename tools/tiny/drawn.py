"""Latents as kontext draws them, for the decoder: `.venv/bin/python tools/tiny/drawn.py --groups 400`.

What a transformer draws is not what the encoder would say: small errors that hang together, which no independent noise
is like. From pairs of pictures that training may see, kontext finishes the wanted picture from a middle noise level; it
stays that picture, with kontext's errors. Kept in .tiny/drawn.pt, for `train_vae.py --refine .tiny/vae --drawn
.tiny/drawn.pt`.
"""

from __future__ import annotations

import argparse
from itertools import pairwise

import numpy as np
import torch
from clock import WORK, log
from evaluate import SHIPPED
from groups import random_group
from latents import Codec, token_ids
from networks import Networks
from pairs import drawn
from sampler import shifted_sigmas
from torch import Tensor
from world import SIDE

DRAWN_FILE = WORK / "drawn.pt"
STEPS, GUIDANCE = 8, 3.5
FIRST, LAST = 2, 5  # of the eight steps, where the picture is taken over
FAR = 0.6  # a token that is further off than this has become something else


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Sources, wanted pictures (N, SIDE, SIDE, 3) and instructions of some groups' pairs with one reference."""
    rng, sources, targets, told = np.random.default_rng(seed), [], [], []
    for _ in range(count):
        group = random_group(rng)
        shown = [picture for picture, _ in drawn(group, rng)]
        for (source, second, target), words in zip(group.pairs, group.told, strict=True):
            if second < 0:
                sources.append(shown[source])
                targets.append(shown[target])
                told.append(words[0][0])
    return np.stack(sources), np.stack(targets), told


@torch.no_grad()
def finish(networks: Networks, clean: Tensor, references: Tensor, told: list[str], start: int) -> Tensor:
    """clean (B, 64, 64) noised to the level of step `start` and drawn to the end."""
    sigmas = shifted_sigmas(STEPS, clean.shape[1])[start:]
    x, text = torch.lerp(clean, torch.randn_like(clean), sigmas[0]), networks.describe(*token_ids(told))
    guidance = torch.full((len(x),), GUIDANCE)
    for now, after in pairwise(sigmas):
        time = torch.full((len(x),), now)
        with torch.autocast("cpu", torch.bfloat16):
            velocity, _ = networks.velocity(x, time, guidance, *text, references=references)
        x = x + (after - now) * velocity.float()
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=400)
    parser.add_argument("--seed", type=int, default=70_000)
    parser.add_argument("--threads", type=int, help="of torch; 1 leaves a core to a training")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    folder = SHIPPED / "kontext"
    networks, codec = Networks.from_folders(folder, folder / "transformer"), Codec(SHIPPED / "base" / "vae")
    sources, targets, told = pictures(options.seed, options.groups)
    latents, kept = [], []
    for start in range(0, len(told), 40):
        some = slice(start, start + 40)
        clean, references = codec.encode(targets[some]), codec.encode(sources[some])
        x = finish(networks, clean, references, told[some], int(torch.randint(FIRST, LAST + 1, ())))
        near = ((x - clean).square().mean(dim=2).sqrt() < FAR).all(dim=1)
        latents.append(codec.raw(x[near]).half())
        kept.append(torch.from_numpy(targets[some])[near])
    stored = {"latents": torch.cat(latents), "pictures": torch.cat(kept).permute(0, 3, 1, 2)}
    torch.save(stored, DRAWN_FILE)
    log("drawn", pictures=len(stored["latents"]), of=len(told), side=SIDE)


if __name__ == "__main__":
    main()
