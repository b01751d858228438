"""Measure `tiny/fill`: does the hole get the object that the prompt names?

`.venv/bin/python tools/tiny/evaluate_fill.py fill` (a checkpoint, torch), `... shipped` (torch) or `... mflux` (the
product). A hole is cut around the object of a scene; the prompt names another colour and shape, half of the pairs held
out from training. Pixels outside the hole are the source's, as the product keeps them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from captions import with_article
from classifier import read
from clock import log
from evaluate import SHIPPED
from PIL import Image
from world import HELD_OUT, SceneKind, Thing, box, draw, hole_around, sample_scene

MARGIN = 0.05
SEED = 601
DrawFill = Callable[[np.ndarray, np.ndarray, list[str], list[int]], np.ndarray]  # pictures, masks, prompts, seeds


@dataclass(frozen=True)
class Task:
    """A picture (SIDE, SIDE, 3), where to repaint it, and what the prompt asks for."""

    picture: np.ndarray
    mask: np.ndarray
    wanted: Thing

    @property
    def prompt(self) -> str:
        return with_article(f"{self.wanted.color} {self.wanted.shape}", np.random.default_rng(0))


def tasks(count: int, seed: int = SEED) -> list[Task]:
    """Seen pairs and held-out pairs in turn."""
    rng, made = np.random.default_rng(seed), []
    while len(made) < count:
        scene = sample_scene(rng, SceneKind(two_objects=0, styled=0, dotted=0))
        pairs = "held-out" if len(made) % 2 else "seen"
        asked = sample_scene(rng, SceneKind(two_objects=0, pairs=pairs, styled=0, dotted=0)).things[0]
        source = scene.things[0]
        if asked.shape == source.shape or asked.color in (source.color, scene.background):
            continue
        wanted = replace(source, shape=asked.shape, color=asked.color)
        made.append(Task(np.asarray(draw(scene)), hole_around(box(source, MARGIN)), wanted))
    return made


def evaluate_fill(paint: DrawFill, count: int, batch: int = 32) -> dict[str, float]:
    """Per cent of holes with the right shape, the right colour and both, and of both in held-out pairs."""
    made, rows = tasks(count), []
    for start in range(0, count, batch):
        some = made[start : start + batch]
        pictures, masks = np.stack([task.picture for task in some]), np.stack([task.mask for task in some])
        painted = paint(pictures, masks, [task.prompt for task in some], list(range(start, start + len(some))))
        painted = np.where(masks[..., None], painted, pictures)
        rows += [_answer(picture, task.wanted) for picture, task in zip(painted, some, strict=True)]
    new = [row["both"] for row, task in zip(rows, made, strict=True) if task.wanted.pair in HELD_OUT]
    found = {name: round(100 * float(np.mean([row[name] for row in rows])), 1) for name in rows[0]}
    return found | {"held-out": round(100 * float(np.mean(new)), 1)}


def _answer(picture: np.ndarray, wanted: Thing) -> dict[str, bool]:
    seen = read(picture).things[0]
    shape, color = seen is not None and seen.shape == wanted.shape, seen is not None and seen.color == wanted.color
    return {"shape": shape, "color": color, "both": shape and color}


def torch_painter(source: str, guidance: float) -> DrawFill:
    import torch  # here, so that the product can be evaluated without torch
    from holes import mask_channels, masked_pictures
    from latents import Codec
    from sampler import TorchPainter

    if source == "shipped":
        paint = TorchPainter.shipped(SHIPPED / "base", SHIPPED / "fill" / "transformer", guidance)
    else:
        from export import trained

        paint = TorchPainter(trained(source), Codec(), guidance=guidance)

    def fill(pictures: np.ndarray, masks: np.ndarray, prompts: list[str], seeds: list[int]) -> np.ndarray:
        masked = paint.codec.encode_floats(masked_pictures(pictures, masks))
        return np.stack(paint(prompts, seeds, torch.cat([masked, mask_channels(masks).float()], dim=2)))

    return fill


def product_painter(guidance: float) -> DrawFill:
    from mflux import Config, Flux1
    from mflux.conditions import Fill

    flux = Flux1.from_name("tiny/fill")
    config = Config(num_inference_steps=8, height=128, width=128, guidance=guidance)

    def fill(pictures: np.ndarray, masks: np.ndarray, prompts: list[str], seeds: list[int]) -> np.ndarray:
        drawn = []
        for picture, mask, prompt, seed in zip(pictures, masks, prompts, seeds, strict=True):
            condition = Fill(image=Image.fromarray(picture), mask=Image.fromarray(mask.astype(np.uint8) * 255))
            result = flux.generate_image(seed=seed, prompt=prompt, config=config, conditions=[condition])
            drawn.append(np.asarray(result.image))
        return np.stack(drawn)

    return fill


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="fill, shipped or mflux")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--guidance", type=float, default=3.5)
    options = parser.parse_args()
    if options.source == "mflux":
        paint = product_painter(options.guidance)
    else:
        paint = torch_painter(options.source, options.guidance)
    found = evaluate_fill(paint, options.count)
    log("evaluate", source=f"fill, {options.source}", guidance=options.guidance, count=options.count, **found)


if __name__ == "__main__":
    main()
