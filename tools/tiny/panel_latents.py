"""Encode training pictures of two panels: `.venv/bin/python tools/tiny/panel_latents.py ic-edit --canvases 2500`.

Kept in .tiny/<task>.panels.pt.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from clock import WORK, log, mixed, parsed
from holes import mask_channels, masked_pictures
from latents import Codec, token_ids, token_labels
from panels import PANEL_LENGTHS, PROMPTS_PER_CANVAS, TASKS
from torch import Tensor
from world import SIDE


def panels_file(task: str) -> Path:
    return WORK / f"{task}.panels.pt"


def _canvases(task: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, list[list[str]]]:
    """Pictures, given pictures, masks, labels and prompts of `count` canvases."""
    rng, made = np.random.default_rng(seed), []
    while len(made) < count:
        canvas = TASKS[task](rng)
        if canvas is not None:
            made.append(canvas)
    labels = [
        [beside(*pair) for pair in zip(token_labels(one.left), token_labels(one.after), strict=True)] for one in made
    ]
    columns = [np.stack(part) for part in zip(*labels, strict=True)]
    pictures, given, masks = ([getattr(one, name) for one in made] for name in ("picture", "given", "whole_mask"))
    return np.stack(pictures), np.stack(given), np.stack(masks), columns, [one.prompts for one in made]


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The labels (64, ...) of two panels in the order of the canvas's tokens: (128, ...)."""
    rows = (part.reshape(SIDE // 16, SIDE // 16, *part.shape[1:]) for part in (left, right))
    return np.concatenate(list(rows), axis=1).reshape(2 * len(left), *left.shape[1:])


def encode_panels(task: str, count: int, seed: int = 130_000, part: int = 100) -> dict[str, Tensor]:
    """As `holes.encode_holes`, of 128 tokens: clean, masked, mask, ids (N, 2, 64) and (N, 2, 77), labels."""
    codec, clean, masked, masks, told, labels = Codec(), [], [], [], [], []
    seeds = range(seed, seed + count // part)
    with ProcessPoolExecutor(1) as pool:
        for pictures, given, some, parts, words in pool.map(_canvases, [task] * len(seeds), seeds, [part] * len(seeds)):
            whole = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with mixed():
                clean += [codec.encode_floats(few).half() for few in whole.split(25)]
                masked += [codec.encode_floats(few).half() for few in masked_pictures(given, some).split(25)]
            masks.append(mask_channels(some))
            labels.append(parts)
            told += words
    t5_ids, clip_ids = token_ids([text for some in told for text in some], *PANEL_LENGTHS)
    shapes, colors, fine = (torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True))
    return {
        "clean": torch.cat(clean),
        "masked": torch.cat(masked),
        "mask": torch.cat(masks),
        "t5_ids": t5_ids.to(torch.uint8).view(len(told), PROMPTS_PER_CANVAS, -1),
        "clip_ids": clip_ids.to(torch.int16).view(len(told), PROMPTS_PER_CANVAS, -1),
        "shapes": shapes,
        "colors": colors,
        "fine": fine,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--canvases", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=130_000, help="another one makes other canvases")
    options = parsed(parser)
    data = encode_panels(options.task, options.canvases, options.seed)
    torch.save(data, panels_file(options.task))
    log("panels", task=options.task, canvases=len(data["clean"]), longest=int((data["t5_ids"] > 0).sum(-1).max()))


if __name__ == "__main__":
    main()
