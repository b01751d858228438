"""Measure the adapters for two panels: does the right one show what it should?

`.venv/bin/python tools/tiny/evaluate_panels.py ic-edit` (the stage's checkpoint, torch), `... ic-edit --product` (the
shipped adapter through the product's conditions). in-context: the right panel's object has the left one's shape and
colour. ic-edit: the named change is done and the rest kept, as in `evaluate_kontext.py`. try-on: the masked object has
become the left one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from classifier import read
from clock import log
from edits import Edit
from evaluate_kontext import answer
from PIL import Image
from panels import PANEL_LENGTHS, TASKS, Canvas
from world import SIDE, draw

SEED = 801
DrawRight = Callable[[list[Canvas], list[int]], list[np.ndarray]]  # right panels (SIDE, SIDE, 3)


def canvases(task: str, count: int, seed: int = SEED) -> list[Canvas]:
    rng, made = np.random.default_rng(seed), []
    while len(made) < count:
        canvas = TASKS[task](rng)
        if canvas is not None:
            made.append(canvas)
    return made


def right(task: str, panel: np.ndarray, canvas: Canvas) -> dict[str, bool]:
    if task == "in-context":
        seen, wanted = read(panel).things[0], canvas.left.things[0]
        return {name: getattr(seen, name, None) == getattr(wanted, name) for name in ("shape", "color")}
    return answer(panel, Edit(task, canvas.before, canvas.after))


def evaluate_panels(paint: DrawRight, task: str, count: int, batch: int = 32) -> dict[str, float]:
    made, rows = canvases(task, count), []
    for start in range(0, count, batch):
        some = made[start : start + batch]
        panels = paint(some, list(range(start, start + len(some))))
        rows += [right(task, panel, canvas) for panel, canvas in zip(panels, some, strict=True)]
    found = {name: 100 * float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return found | {"all": 100 * float(np.mean([all(row.values()) for row in rows]))}


def torch_painter(task: str, guidance: float) -> DrawRight:
    import torch  # here, so that the rest needs no torch
    from export import trained
    from holes import mask_channels, masked_pictures
    from latents import Codec
    from sampler import TorchPainter

    paint = TorchPainter(trained(task), Codec(), guidance=guidance)

    def panels(some: list[Canvas], seeds: list[int]) -> list[np.ndarray]:
        given, masks = np.stack([one.given for one in some]), np.stack([one.whole_mask for one in some])
        extra = known = None
        if task == "in-context":
            left = paint.codec.encode(given[:, :, :SIDE]).unflatten(1, (SIDE // 16, -1))
            known = torch.cat([left, torch.full_like(left, float("nan"))], dim=2).flatten(1, 2)
        else:
            masked = paint.codec.encode_floats(masked_pictures(given, masks))
            extra = torch.cat([masked, mask_channels(masks).float()], dim=2)
        prompts = [one.prompts[0] for one in some]
        drawn = paint(prompts, seeds, extra, size=(SIDE, 2 * SIDE), known=known, lengths=PANEL_LENGTHS)
        whole = [
            np.where(mask[..., None], picture, own) for picture, mask, own in zip(drawn, masks, given, strict=True)
        ]
        return [picture[:, SIDE:] for picture in whole]

    return panels


def product_painter(task: str, guidance: float) -> DrawRight:
    from mflux import Config, Flux1
    from mflux.conditions import InContext, InContextEdit, TryOn

    flux = Flux1.from_name(f"tiny/{task}")
    config = Config(num_inference_steps=8, guidance=guidance)

    def condition(canvas: Canvas) -> object:
        left = draw(canvas.left)
        if task == "try-on":
            mask = Image.fromarray(canvas.mask.astype(np.uint8) * 255)
            return TryOn(person=draw(canvas.before), mask=mask, garment=left)
        return InContext(image=left) if task == "in-context" else InContextEdit(image=left)

    def panels(some: list[Canvas], seeds: list[int]) -> list[np.ndarray]:
        drawn = []
        for canvas, seed in zip(some, seeds, strict=True):
            words = {"prompt": canvas.prompts[0], "config": config, "conditions": [condition(canvas)]}
            drawn.append(np.asarray(flux.generate_image(seed=seed, **words).image))
        return drawn

    return panels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--product", action="store_true")
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--guidance", type=float, default=3.5)
    options = parser.parse_args()
    paint = (product_painter if options.product else torch_painter)(options.task, options.guidance)
    found = evaluate_panels(paint, options.task, options.count)
    source = f"{options.task}, {'mflux' if options.product else 'torch'}"
    log("evaluate", source=source, guidance=options.guidance, count=options.count, **found)


if __name__ == "__main__":
    main()
