"""How much a picture drifts over turns of "keep everything": `.venv/bin/python tools/tiny/evaluate_turns.py`.

PSNR to the first picture after each turn, mean over scenes: with the latents handed from turn to turn (the product's
`turns`), and the usual way, each turn's picture decoded, rounded to bytes and encoded again. Through the product.
"""

from __future__ import annotations

import argparse

import numpy as np
from clock import log
from PIL import Image
from world import SIDE, SceneKind, draw, sample_scene

from mflux import Config, Flux1
from mflux.conditions import Kontext

SEED, TURN = 1101, "keep everything"


def psnr(picture: Image.Image, wanted: Image.Image) -> float:
    error = np.asarray(picture, np.float32) - np.asarray(wanted, np.float32)
    return float(10 * np.log10(255**2 / max(float(np.square(error).mean()), 1e-9)))


def drift(count: int, turns: int, guidance: float) -> np.ndarray:
    """Mean PSNR to the first picture after each turn, in dB: (2, turns), latents handed on and the usual way."""
    flux = Flux1.from_name("tiny/kontext")
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE, guidance=guidance)
    rng = np.random.default_rng(SEED)
    curves = np.zeros((2, turns, count))
    for number in range(count):
        first = again = draw(sample_scene(rng, SceneKind()))
        kept = Kontext.draw_turns(flux, number, [TURN] * turns, config, [Kontext(images=[first])])
        for turn, result in enumerate(kept):
            curves[0, turn, number] = psnr(result.image, first)
            again = flux.generate_image(number, TURN, config, conditions=[Kontext(images=[again])]).image
            curves[1, turn, number] = psnr(again, first)
    return curves.mean(axis=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--guidance", type=float, default=3.5)
    options = parser.parse_args()
    curves = drift(options.count, options.turns, options.guidance)
    for name, curve in zip(("latents handed on", "decoded and encoded"), curves, strict=True):
        print(f"{name:22}", "  ".join(f"{value:5.2f}" for value in curve), "dB")
    log("evaluate", source="turns", latents=round(curves[0, -1], 2), pictures=round(curves[1, -1], 2))


if __name__ == "__main__":
    main()
