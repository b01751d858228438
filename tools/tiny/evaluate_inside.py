"""Measure what works inside `tiny`'s attention: FluxSpace, RF-inversion, concept maps.

`.venv/bin/python tools/tiny/evaluate_inside.py [fluxspace inversion concepts] [--count 32]`, by the product. Scenes are
fresh ones; `--pairs held-out` takes the pairs of colour and shape that training never saw. The edits are compared with
the same seed's picture without them, as the classifier reads both: done is the attribute, kept are background and
place, rest are shape, colour and size.

Concept maps are compared with the true masks of two objects, cell by cell (16 px): a cell is an object's where that
covers most of it, and a map's where its share is the largest. `--show FOLDER` writes the pictures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from captions import PLACES
from classifier import Read, Reading, read
from clock import log
from evaluate import plain_prompt, table
from PIL import Image
from samples import grid
from world import COLORS, SIDE, Scene, SceneKind, Thing, coverage, draw, legible, sample_scene

from mflux import Config, Flux1
from mflux.conditions import Concepts, FluxSpace, RFInversion
from mflux.conditions.fluxspace import Edit
from mflux.images.picture import from_pixels, to_pixels

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "striped": {"style": "striped"},
    "outlined": {"style": "outlined"},
    "with a dot": {"dot": True},
}
LAMBDA = 2.0  # how far an attribute is brought in, found on other scenes (seed 900): see docs/log.md
ETA, ETA_STOP = 0.7, 2
CELLS, CELL = SIDE // 16, 16


class Painter:
    """The product, with the settings of the built-in model."""

    def __init__(self) -> None:
        self.flux = Flux1.from_name("tiny")
        self.config = Config(num_inference_steps=8, height=SIDE, width=SIDE)

    def __call__(self, prompt: str, seed: int, *conditions: Any) -> Any:
        return self.flux.generate_image(seed=seed, prompt=prompt, config=self.config, conditions=conditions)

    def round_trip(self, pixels: np.ndarray) -> np.ndarray:
        """A picture after the autoencoder alone."""
        import mlx.core as mx

        vae = self.flux.parts.get("vae")
        return from_pixels(np.array(vae.decode(vae.encode(mx.array(to_pixels(pixels)), None, False), False)))[0]


def scenes(count: int, kind: SceneKind, seed: int, change: dict[str, Any] | None = None) -> list[Scene]:
    """Fresh scenes; change: only those whose object would show it."""
    rng, found = np.random.default_rng(seed), []
    while len(found) < count:
        scene = sample_scene(rng, kind)
        if change is None or changed(scene, change) is not None:
            found.append(scene)
    return found


def changed(scene: Scene, change: dict[str, Any]) -> Scene | None:
    """The scene with its object changed; None where that could not be seen."""
    thing = replace(scene.things[0], **change)
    return replace(scene, things=(thing,)) if legible(thing, scene.background) == thing else None


def shares(answers: Sequence[dict[str, bool]]) -> dict[str, float]:
    return {name: round(100 * float(np.mean([one[name] for one in answers])), 1) for name in answers[0]}


def judged(before: Reading, after: Reading, change: dict[str, Any], rest: Sequence[str]) -> dict[str, bool]:
    """Whether the change is done, and what is as before."""
    old, new = before.things[0], after.things[0]
    if old is None or new is None:
        return {"done": False, "background": False, "place": False, "rest": False}
    return {
        "done": all(getattr(new, name) == value for name, value in change.items()),
        "background": before.background == after.background,
        "place": old.place == new.place,
        "rest": same(old, new, rest),
    }


def same(old: Read, new: Read, names: Sequence[str]) -> bool:
    return all(getattr(old, name) == getattr(new, name) for name in names)


def fluxspace(paint: Painter, count: int, pairs: str) -> tuple[dict[str, dict[str, float]], list[list[np.ndarray]]]:
    """An attribute is brought in by what its caption adds to the scene's own."""
    results, rows = {}, []
    for attribute, change in ATTRIBUTES.items():
        kind, answers, shown = SceneKind(two_objects=0, pairs=pairs, styled=0, dotted=0), [], []
        for seed, scene in enumerate(scenes(count, kind, 910, change)):
            prompt, target = plain_prompt(scene), changed(scene, change)
            assert target is not None
            edit = Edit(plain_prompt(target), LAMBDA, minus=prompt)
            condition = FluxSpace([edit], start=0, mask_threshold=0, keep_norm=False)
            before, after = (np.asarray(paint(prompt, seed, *more).image) for more in ((), (condition,)))
            answers.append(judged(read(before), read(after), change, ("shape", "color", "size")))
            shown.append((before, after))
        results[attribute] = shares(answers)
        rows += [[pair[which] for pair in shown[:8]] for which in (0, 1)]
    return results, rows


def inversion(paint: Painter, count: int, pairs: str) -> tuple[dict[str, dict[str, float]], list[list[np.ndarray]]]:
    """Drawn pictures get another colour or a style; with eta = 1 they come back."""
    results, rows = {}, []
    for name in ("colour", "style"):
        kind, answers, shown = SceneKind(two_objects=0, pairs=pairs, styled=0, dotted=0), [], []
        rng = np.random.default_rng(5)
        for seed, scene in enumerate(scenes(count, kind, 920, ATTRIBUTES["outlined"])):
            change = other_color(scene, rng) if name == "colour" else ATTRIBUTES["outlined"]
            target, source = changed(scene, change), np.asarray(draw(scene))
            assert target is not None
            condition = RFInversion(source, eta=ETA, eta_stop=ETA_STOP, cache=False)
            after = np.asarray(paint(plain_prompt(target), seed, condition).image)
            rest = ("shape", "style", "size") if name == "colour" else ("shape", "color", "size")
            answers.append(judged(read(source), read(after), change, rest))
            shown.append((source, after))
        results[name] = shares(answers)
        rows += [[pair[which] for pair in shown[:8]] for which in (0, 1)]
    held = [np.asarray(draw(scene)) for scene in scenes(8, SceneKind(two_objects=0), 930)]
    far = 0
    for seed, source in enumerate(held):
        condition = RFInversion(source, eta=1.0, eta_stop=1.0, cache=False)
        back = np.asarray(paint("a large red ring, on a blue background", seed, condition).image)
        far = max(far, int(np.abs(back.astype(int) - paint.round_trip(source)).max()))
    print(f"eta = 1: at most {far} grey levels from the autoencoder's own round trip, 8 pictures")
    return results, rows


def other_color(scene: Scene, rng: np.random.Generator) -> dict[str, Any]:
    own = {scene.things[0].color, scene.background}
    return {"color": str(rng.choice([color for color in COLORS if color not in own]))}


def concepts(paint: Painter, count: int, pairs: str) -> tuple[dict[str, dict[str, float]], list[list[np.ndarray]]]:
    """Each object is looked for by its phrase, beside the background's colour, in drawn and in given pictures."""
    overlaps: dict[str, list[float]] = {"given picture": [], "drawn picture": []}
    shown = []
    kind = SceneKind(two_objects=1, pairs=pairs, styled=0, dotted=0)
    apart = [one for one in scenes(3 * count, kind, 940) if one.things[0].color != one.things[1].color][:count]
    for seed, scene in enumerate(apart):
        words = [f"{thing.color} {thing.shape} {PLACES[thing.place][0]}" for thing in scene.things]
        source = np.asarray(draw(scene))
        for name, image in (("given picture", source), ("drawn picture", None)):
            condition = Concepts(words, [scene.background], image=image, noise_level=image_level(image))
            made = paint(plain_prompt(scene), seed, condition)
            classes = np.stack([*made.artifacts["maps"].values()]).argmax(axis=0)
            overlaps[name] += [overlap(classes == k, thing) for k, thing in enumerate(scene.things)]
            shown.append([np.asarray(made.image), np.asarray(made.artifacts["segmentation"])])
    results = {name: {"mean IoU": round(100 * float(np.mean(found)), 1)} for name, found in overlaps.items()}
    return results, [[pair[which] for pair in shown[:8]] for which in (0, 1)]


def image_level(image: np.ndarray | None) -> float | None:
    return None if image is None else 0.2


def overlap(found: np.ndarray, thing: Thing) -> float:
    """Intersection over union of cells with those that the object covers."""
    covered = np.asarray(coverage(thing)).reshape(CELLS, CELL, CELLS, CELL).mean(axis=(1, 3)) > 127
    return float((found & covered).sum() / max(1, (found | covered).sum()))


PARTS = {"fluxspace": fluxspace, "inversion": inversion, "concepts": concepts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []))
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--pairs", default="seen", choices=("seen", "held-out"))
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    paint = Painter()
    for part in options.parts or PARTS:
        results, rows = PARTS[part](paint, options.count, options.pairs)
        for name, one in results.items():
            log("evaluate", source=f"inside, {part}", count=options.count, pairs=options.pairs, set=name, **one)
        print(table(results))
        if options.show:
            options.show.mkdir(parents=True, exist_ok=True)
            picture: Image.Image = grid(rows)
            picture.save(options.show / f"tiny-{part}.png", optimize=True)


if __name__ == "__main__":
    main()
