"""How far does a picture drift when it is edited again and again?

    python tools/drift.py --model tiny/kontext --image picture.png [--prompt "keep everything"] [--turns 6]

Prints, turn by turn, the PSNR (dB) to the picture: with the latents kept between turns (`mflux-generate-kontext
--turns`), and with each turn's picture rounded to 8 bits and encoded again for the next.
"""

import argparse
import math
import sys

from mflux import Config, Flux1  # first: it loads the BLAS before mlx

import numpy as np
from PIL import Image

from mflux.conditions import Kontext


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two uint8 pictures in dB; infinite where they are equal."""
    error = np.square(one.astype(np.float64) - other.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def kept_latents(flux: Flux1, picture: Image.Image, prompts: list[str], seed: int, config: Config) -> list[np.ndarray]:
    """The picture after each turn, with the latents kept in between."""
    turns = Kontext.draw_turns(flux, seed, prompts, config, [Kontext(picture, fit="stretch")])
    return [np.asarray(turn.image) for turn in turns]


def encoded_again(flux: Flux1, picture: Image.Image, prompts: list[str], seed: int, config: Config) -> list[np.ndarray]:
    """The picture after each turn, each made from the pixels of the one before."""
    made = []
    for prompt in prompts:
        condition = Kontext(picture, fit="stretch")
        picture = flux.generate_image(seed=seed, prompt=prompt, config=config, conditions=[condition]).image
        made.append(np.asarray(picture))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny/kontext")
    parser.add_argument("--image", required=True)
    parser.add_argument("--prompt", default="keep everything")
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    flux, picture = Flux1.from_name(options.model), Image.open(options.image).convert("RGB")
    config = Config(height=picture.height, width=picture.width)
    prompts = [options.prompt] * options.turns
    chains = [chain(flux, picture, prompts, options.seed, config) for chain in (kept_latents, encoded_again)]
    print("turn  latents kept  encoded again")
    for turn, pictures in enumerate(zip(*chains, strict=True), 1):
        kept, again = (psnr(each, np.asarray(picture)) for each in pictures)
        print(f"{turn:4d}  {kept:12.2f}  {again:13.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
