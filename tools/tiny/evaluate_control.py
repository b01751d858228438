"""Measure what steers by maps: `.venv/bin/python tools/tiny/evaluate_control.py canny` (also depth, controlnet,
upscaler, depth-pro).

The stage's checkpoint in torch; `--product` draws with the shipped weights through the product's conditions.
canny, depth, controlnet: a scene's map and words that name other colours; does the outline follow the map (IoU with the
scene's own), do the words' colours hold? upscaler: a picture reduced four times and enlarged again; the result, reduced
again, against its input, beside what the VAE's own round trip of the whole picture does to it. depth-pro: are a large
object, a small one and the background found in this order?
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from classifier import score, read, stands_out
from clock import log
from evaluate import SHIPPED, plain_prompt
from PIL import Image
from world import BACKGROUNDS, COLORS, SIDE, Scene, SceneKind, coverage, draw, sample_scene

SEED, REDUCED = 901, 4
STAGES = {"canny": "control", "depth": "control", "controlnet": "controlnet", "upscaler": "upscaler"}
Paint = Callable[[list[Scene], list[str], list[int]], list[np.ndarray]]  # the maps' scenes, words, seeds


def repainted(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same outlines in other colours."""
    background = str(rng.choice([name for name in BACKGROUNDS if name != scene.background]))
    things = [
        replace(thing, color=str(rng.choice([name for name in COLORS if name not in (background, thing.color)])))
        for thing in scene.things
    ]
    return Scene(background, tuple(things))


def outlines(scene: Scene) -> np.ndarray:
    return np.max([np.asarray(coverage(thing)) for thing in scene.things], axis=0) > 127


def evaluate_map(paint: Paint, count: int, batch: int = 16) -> dict[str, float]:
    """Per cent of outlines that follow the map (IoU >= 0.85) and of objects and backgrounds in the words' colours."""
    rng, rows = np.random.default_rng(SEED), []
    for start in range(0, count, batch):
        scenes = [sample_scene(rng, SceneKind(styled=0, dotted=0)) for _ in range(min(batch, count - start))]
        asked = [repainted(scene, rng) for scene in scenes]
        seeds = list(range(start, start + len(scenes)))
        pictures = paint(scenes, [plain_prompt(scene) for scene in asked], seeds)
        for picture, scene, told in zip(pictures, scenes, asked, strict=True):
            drawn, wanted = stands_out(picture.astype(np.float32)), outlines(scene)
            stacked = scene.things[0].place == "top" and len(scene.things) == 2
            found = score(read(picture, len(scene.things), stacked), told)
            iou = (drawn & wanted).sum() / (drawn | wanted).sum()
            colors = {name: found[name] for name in ("color", "background")}
            rows.append({"iou": iou, "follows": iou >= 0.85, **colors})
    return {name: round(100 * float(np.mean([row[name] for row in rows])), 1) for name in rows[0]}


def evaluate_upscaler(paint: Paint, round_trip: Callable[[np.ndarray], np.ndarray], count: int) -> dict[str, float]:
    """Mean difference, in grey levels, of the reduced result from the input, and of the VAE's own round trip."""
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng) for _ in range(count)]
    pictures = paint(scenes, [""] * count, list(range(count)))
    rows = []
    for picture, scene in zip(pictures, scenes, strict=True):
        whole = draw(scene)
        wanted = np.asarray(whole.reduce(REDUCED)).astype(np.float32)
        both = Image.fromarray(picture), Image.fromarray(round_trip(np.asarray(whole)))
        rows.append([np.abs(np.asarray(one.reduce(REDUCED)) - wanted).mean() for one in both])
    ours, vae = np.mean(rows, axis=0)
    return {"differs": round(float(ours), 2), "vae": round(float(vae), 2), "ratio": round(float(ours / vae), 2)}


def evaluate_depth(find: Callable[[Image.Image], np.ndarray], count: int) -> dict[str, float]:
    """Per cent of two-object scenes whose large object is found nearer than the small one, and both before the rest."""
    rng, rows = np.random.default_rng(SEED), []
    while len(rows) < count:
        scene = sample_scene(rng, SceneKind(two_objects=1))
        if len({thing.size for thing in scene.things}) == 2:
            found = find(draw(scene))
            near = {thing.size: np.median(found[np.asarray(coverage(thing)) > 250]) for thing in scene.things}
            rows.append(near["large"] > near["small"] > np.median(found[~outlines(scene)]))
    return {"ordered": round(100 * float(np.mean(rows)), 1)}


# --- who draws -------------------------------------------------------------------------------------------------------


def torch_painter(variant: str, guidance: float, strength: float) -> Paint:
    import torch  # here, so that the product can be evaluated without torch
    from export import trained
    from latents import Codec
    from maps import KINDS
    from sampler import TorchPainter

    paint = TorchPainter(trained(STAGES[variant]), Codec(), guidance=guidance)
    make = KINDS[{"controlnet": "canny", "upscaler": "coarse"}.get(variant, variant)]

    def steered(scenes: list[Scene], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        rng = np.random.default_rng(0)
        shown = paint.codec.encode(np.stack([make(scene, rng) for scene in scenes]))
        if STAGES[variant] == "control":
            return paint(prompts, seeds, extra=shown)
        return paint(prompts, seeds, control=(shown, torch.tensor(strength)))

    return steered


def product_painter(variant: str, guidance: float, strength: float) -> Paint:
    from mflux import Config, Flux1, conditions

    flux = Flux1.from_name(f"tiny/{variant}")
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE, guidance=guidance)

    def condition(scene: Scene) -> object:
        picture = draw(scene)
        if variant == "upscaler":
            return conditions.Upscale(image=picture.reduce(REDUCED), scale=REDUCED, strength=strength)
        if variant == "controlnet":
            return conditions.ControlNet(source=picture, strength=strength)
        return conditions.Control(kind=variant, source=picture)

    def steered(scenes: list[Scene], prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        return [
            np.asarray(flux.generate_image(seed, prompt, config, conditions=[condition(scene)]).image)
            for scene, prompt, seed in zip(scenes, prompts, seeds, strict=True)
        ]

    return steered


@cache
def shipped(kind: str, folder: str) -> Any:
    """A shipped network of the product, loaded once for all pictures."""
    from mflux.weights.load import load_network

    return load_network(kind, SHIPPED / folder)


def round_trip(picture: np.ndarray) -> np.ndarray:
    """Through the shipped VAE, by the product."""
    import mlx.core as mx

    from mflux.images.picture import from_pixels, to_pixels

    vae = shipped("vae", "base/vae")
    return from_pixels(np.array(vae.decode(vae.encode(mx.array(to_pixels(picture))))))[0]


def product_depth(picture: Image.Image) -> np.ndarray:
    from mflux.conditions.depth import depth_map

    return depth_map(shipped("depth_pro", "control/depth_pro"), np.asarray(picture))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=[*STAGES, "depth-pro"])
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--strength", type=float, default=0.4)
    options = parser.parse_args()
    variant, count = options.variant, options.count
    if variant == "depth-pro":
        found = evaluate_depth(product_depth, count)
    else:
        make = product_painter if options.product else torch_painter
        paint = make(variant, options.guidance, options.strength)
        found = evaluate_upscaler(paint, round_trip, count) if variant == "upscaler" else evaluate_map(paint, count)
    log("evaluate", source=variant, product=options.product, count=count, guidance=options.guidance, **found)


if __name__ == "__main__":
    main()
