"""Measure `tiny/redux`: does the new picture repeat what the given one shows, without a word?

`.venv/bin/python tools/tiny/evaluate_redux.py redux` (a checkpoint, torch), `... shipped` (torch) or `... mflux` (the
product). The sets are those of `evaluate.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from clock import log
from evaluate import SETS, SHIPPED, evaluate, table
from PIL import Image
from world import SIDE, draw

DrawAgain = Callable[[list[Image.Image], list[int]], list[np.ndarray]]


def torch_painter(source: str, guidance: float) -> DrawAgain:
    from latents import Codec  # here, so that the product can be evaluated without torch
    from looks import looks
    from networks import Networks
    from sampler import TorchPainter

    if source == "shipped":
        base = SHIPPED / "base"
        networks, codec = Networks.from_folders(base, base / "transformer"), Codec(base / "vae")
        networks.load_redux(SHIPPED / "redux")
    else:
        from export import trained

        networks, codec = trained(source), Codec()
    paint = TorchPainter(networks.eval(), codec, guidance=guidance)
    return lambda pictures, seeds: paint([""] * len(seeds), seeds, pictures=looks(pictures).float() / 127.5 - 1)


def product_painter(guidance: float) -> DrawAgain:
    from mflux import Config, Flux1
    from mflux.conditions import Redux

    flux = Flux1.from_name("tiny/redux")
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE, guidance=guidance)

    def again(pictures: list[Image.Image], seeds: list[int]) -> list[np.ndarray]:
        drawn = []
        for picture, seed in zip(pictures, seeds, strict=True):
            conditions = [Redux(images=[picture])]
            result = flux.generate_image(seed=seed, prompt="", config=config, conditions=conditions)
            drawn.append(np.asarray(result.image))
        return drawn

    return again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="redux, shipped or mflux")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.5)
    options = parser.parse_args()
    product = options.source == "mflux"
    paint = product_painter(options.guidance) if product else torch_painter(options.source, options.guidance)
    results = {chosen.name: evaluate(paint, chosen, options.count, ask=draw) for chosen in SETS}
    for name, one in results.items():
        log("evaluate", source=f"redux, {options.source}", guidance=options.guidance, set=name, **one)
    print(table(results))


if __name__ == "__main__":
    main()
