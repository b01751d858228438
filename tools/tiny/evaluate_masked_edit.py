"""Measure `mflux-generate-masked-edit` on `tiny/kontext`: does the reference's object come into the mask?

`.venv/bin/python tools/tiny/evaluate_masked_edit.py`: a picture of one object, a mask around it, a reference with
another object, which the words name by its shape alone: the colour has to come from the reference. Bytes outside the
mask are counted too. Through the product.
"""

from __future__ import annotations

import argparse

import numpy as np
from captions import PLACES
from classifier import read
from clock import log
from PIL import Image
from world import SIDE, Scene, SceneKind, box, draw, hole_around, sample_scene

from mflux import Config, Flux1
from mflux.conditions import MaskedEdit

SEED, MARGIN = 1001, 0.06


def tasks(count: int) -> list[tuple[Scene, Scene]]:
    """Pictures and references, whose objects differ in shape and colour."""
    rng, made = np.random.default_rng(SEED), []
    while len(made) < count:
        here, there = (sample_scene(rng, SceneKind(two_objects=0, styled=0, dotted=0)) for _ in range(2))
        old, new = here.things[0], there.things[0]
        if old.shape != new.shape and new.color not in (old.color, here.background) and new.size == "large":
            made.append((here, there))
    return made


def evaluate_masked_edit(count: int, guidance: float) -> dict[str, float]:
    """Per cent of masks with the reference's shape and colour; the largest difference outside, in grey levels."""
    flux = Flux1.from_name("tiny/kontext")
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE, guidance=guidance)
    rows, outside = [], 0
    for seed, (here, there) in enumerate(tasks(count)):
        picture, new = np.asarray(draw(here)), there.things[0]
        mask = hole_around(box(here.things[0], MARGIN))
        condition = MaskedEdit(image=picture, mask=Image.fromarray(mask), reference=draw(there), fit="crop")
        prompt = f"put the {new.shape} {PLACES[here.things[0].place][0]}, on a {here.background} background"
        drawn = np.asarray(flux.generate_image(seed, prompt, config, conditions=[condition]).image)
        outside = max(outside, int(np.abs(drawn.astype(np.int16) - picture)[~mask].max()))
        seen = read(drawn).things[0]
        answers = {name: getattr(seen, name, None) == getattr(new, name) for name in ("shape", "color")}
        rows.append(answers | {"both": all(answers.values())})
    return {name: round(100 * float(np.mean([row[name] for row in rows])), 1) for name in rows[0]} | {
        "outside": outside
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--guidance", type=float, default=3.5)
    options = parser.parse_args()
    found = evaluate_masked_edit(options.count, options.guidance)
    log("evaluate", source="masked edit", count=options.count, guidance=options.guidance, **found)


if __name__ == "__main__":
    main()
