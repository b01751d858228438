"""Encode the training pictures of the kontext variant: `.venv/bin/python tools/tiny/pairs.py --groups 5000`.

Each picture of a group (`groups.py`) is encoded once and serves in several pairs. Kept in .tiny/pairs.pt.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from clock import WORK, log, mixed, parsed
from confetti import around
from groups import WORDINGS_PER_PAIR, Group, random_group, repainted, reshaped
from latents import CLIP_LENGTH, T5_LENGTH, UNLABELLED, Codec, padded_labels, token_ids, token_labels
from PIL import Image
from torch import Tensor
from world import COLORS, SHAPES, SIDE, draw

PAIRS_FILE = WORK / "pairs.pt"
CHANGED = 8  # grey levels
LITTERED, NAMELESS, RESHAPED, FIGURES = 0.5, 0.4, 0.5, 0.25  # shares of groups, but for colours those of one picture


def changed_tokens(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which of the 64 tokens of a picture (SIDE, SIDE, 3) look different in another one."""
    differs = np.abs(first.astype(np.int16) - second).max(axis=2) > CHANGED
    side = SIDE // 16
    return differs.reshape(side, 16, side, 16).any(axis=(1, 3)).reshape(-1)


def drawn(
    group: Group, rng: np.random.Generator, figures: bool = False
) -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """The pictures of a group and their labels. What has no name has to be copied: in half of the groups pieces around
    all objects, in some the objects' own colours or shapes, in some (`figures`: in all of one picture) figures in place
    of shapes."""
    alone = all(second < 0 for _, second, _ in group.pairs)
    layer = around(group.scenes, rng) if alone and rng.random() < LITTERED else Image.new("RGBA", (SIDE, SIDE))
    figures = alone and (figures or rng.random() < FIGURES)
    outlines = reshaped(group, rng, figures) if figures or (alone and rng.random() < RESHAPED) else {}
    nameless = rng.random() < (0.7 if figures else NAMELESS)
    palette = repainted(group, rng, outlines if figures else ()) if nameless else COLORS
    known = [1 + SHAPES.index(shape) for shape in outlines if figures]
    for scene in group.scenes:
        picture = draw(scene, palette=palette, outlines=outlines)
        picture.paste(layer, mask=layer)
        shapes, colors, fine = token_labels(scene)
        colors = np.where(nameless & (shapes > 0), UNLABELLED, colors)
        yield np.asarray(picture), (np.where(np.isin(shapes, known), UNLABELLED, shapes), colors, fine)


def _groups(seed: int, count: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray, np.ndarray, list]:
    """Pictures, labels, pairs, changed tokens and words of `count` groups."""
    rng = np.random.default_rng(seed)
    groups = [random_group(rng) for _ in range(count)]
    shown = [one for group in groups for one in drawn(group, rng)]
    starts = np.cumsum([0, *(len(group.scenes) for group in groups)])
    pairs = [
        [index if index < 0 else index + start for index in pair]
        for start, group in zip(starts, groups, strict=False)
        for pair in group.pairs
    ]
    pictures = np.stack([picture for picture, _ in shown])
    labels = [np.stack(parts).astype(np.uint8) for parts in zip(*(some for _, some in shown), strict=True)]
    changed = np.stack([changed_tokens(pictures[source], pictures[target]) for source, _, target in pairs])
    return pictures, labels, np.array(pairs), changed, [told for group in groups for told in group.told]


def encode_pairs(count: int, seed: int = 90_000, part: int = 50) -> dict[str, Tensor]:
    """Of N pictures `latents` (N, 64, 64) float16 and labels as in `latents.py`; of P pairs their `rows` (P, 3) among
    these (source, second source or -1, target), `changed` (P, 64) bool, ids and roles (P, 3, 32)."""
    codec, latents, labels, rows, changed, told = Codec(), [], [], [], [], []
    found = 0
    seeds = range(seed, seed + count // part)
    with ProcessPoolExecutor(1) as pool:
        for pictures, parts, pairs, differs, words in pool.map(_groups, seeds, [part] * len(seeds)):
            floats = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with mixed():
                latents += [codec.encode_floats(few).half() for few in floats.split(50)]
            labels.append(parts)
            rows.append(np.where(pairs < 0, -1, pairs + found))
            changed.append(differs)
            told += words
            found += len(pictures)
    texts, roles = zip(*(one for some in told for one in some), strict=True)
    t5_ids, clip_ids = token_ids(list(texts))
    shapes, colors, fine = (torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True))
    return {
        "latents": torch.cat(latents),
        "shapes": shapes,
        "colors": colors,
        "fine": fine,
        "rows": torch.from_numpy(np.concatenate(rows)).int(),
        "changed": torch.from_numpy(np.concatenate(changed)),
        "t5_ids": t5_ids.to(torch.uint8).view(-1, WORDINGS_PER_PAIR, T5_LENGTH),
        "clip_ids": clip_ids.to(torch.int16).view(-1, WORDINGS_PER_PAIR, CLIP_LENGTH),
        "roles": torch.tensor([padded_labels(one) for one in roles], dtype=torch.uint8).view(
            -1, WORDINGS_PER_PAIR, T5_LENGTH
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=90_000)
    options = parsed(parser)
    data = encode_pairs(options.groups, options.seed)
    torch.save(data, PAIRS_FILE)
    log(
        "pairs", pictures=len(data["latents"]), pairs=len(data["rows"]), longest=int((data["t5_ids"] > 0).sum(-1).max())
    )


if __name__ == "__main__":
    main()
