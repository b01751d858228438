"""Measure `tiny`: what share of pictures shows what the prompt says.

`.venv/bin/python tools/tiny/evaluate.py base` (a stage's checkpoint, torch), `... shipped` (the exported weights,
torch) or `... mflux` (the exported weights through the product's own API). `--count 128` pictures a set, fixed seeds.
`world` and `vae` score the drawings and their VAE round trips: the classifier's own error.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from captions import PLACES, with_article
from classifier import read, score
from clock import WORK, load_checkpoint, log, parsed
from world import Scene, SceneKind, Thing, draw, sample_scene

Draw = Callable[[list[str], list[int]], list[np.ndarray]]
SHIPPED = Path(__file__).resolve().parents[2] / "src" / "mflux" / "tiny"


@dataclass(frozen=True)
class EvaluationSet:
    """A kind of scene, and the seed that fixes which ones."""

    name: str
    kind: SceneKind
    seed: int


SETS = (
    EvaluationSet("seen", SceneKind(two_objects=0, styled=0, dotted=0), 501),
    EvaluationSet("held-out", SceneKind(two_objects=0, pairs="held-out", styled=0, dotted=0), 502),
    EvaluationSet("styles", SceneKind(two_objects=0, styled=0.7, dotted=0.4), 503),
    EvaluationSet("two", SceneKind(two_objects=1, styled=0, dotted=0), 504),
)


def plain_prompt(scene: Scene) -> str:
    """A caption that names everything the classifier asks for."""
    rng = np.random.default_rng(0)
    told = [f"{_phrase(thing, rng)} {PLACES[thing.place][0]}" for thing in scene.things]
    return " and ".join(told) + f", on a {scene.background} background"


def _phrase(thing: Thing, rng: np.random.Generator) -> str:
    style = "" if thing.style == "flat" else thing.style + " "
    dot = " with a dot" if thing.dot else ""
    return with_article(f"{thing.size} {style}{thing.color} {thing.shape}{dot}", rng)


def scenes_of(chosen: EvaluationSet, count: int) -> list[Scene]:
    rng = np.random.default_rng(chosen.seed)
    return [sample_scene(rng, chosen.kind) for _ in range(count)]


def evaluate(
    paint: Callable[[list[Any], list[int]], list[np.ndarray]],
    chosen: EvaluationSet,
    count: int,
    batch: int = 32,
    ask: Callable[[Scene], Any] = plain_prompt,
) -> dict[str, float]:
    """Per cent of right answers to each question. ask: what the painter is given of a scene."""
    scenes, answers = scenes_of(chosen, count), []
    for start in range(0, count, batch):
        some = scenes[start : start + batch]
        pictures = paint([ask(scene) for scene in some], list(range(start, start + len(some))))
        answers += [answer(picture, scene) for picture, scene in zip(pictures, some, strict=True)]
    return {name: round(100 * float(np.mean([one[name] for one in answers])), 1) for name in answers[0]}


def answer(picture: np.ndarray, scene: Scene) -> dict[str, float]:
    stacked = scene.things[0].place == "top" and len(scene.things) == 2
    return score(read(picture, len(scene.things), stacked), scene)


def table(results: dict[str, dict[str, float]]) -> str:
    """Sets as rows, questions as columns, in per cent (Markdown)."""
    questions = list(next(iter(results.values())))
    head = ["| set | " + " | ".join(questions) + " |", "|---" * (len(questions) + 1) + "|"]
    rows = ["| " + " | ".join([name, *(f"{one[q]:.0f}" for q in questions)]) + " |" for name, one in results.items()]
    return "\n".join(head + rows)


# --- who draws -------------------------------------------------------------------------------------------------------


def painter(source: str, guidance: float) -> Draw:
    """A stage's running average, the exported folders, or the product."""
    if source == "mflux":
        return product_painter(guidance)
    from sampler import TorchPainter

    if source == "shipped":
        return TorchPainter.shipped(SHIPPED / "base", guidance=guidance)
    from latents import Codec
    from networks import Networks

    networks = Networks()
    state = load_checkpoint(WORK / f"{source}.pt")
    if state is None:
        raise SystemExit(f"error: no checkpoint of the stage `{source}`")
    networks.load_state_dict(state["average"])
    return TorchPainter(networks.eval(), Codec(), guidance=guidance)


def product_painter(guidance: float) -> Draw:
    from mflux import Config, Flux1

    flux = Flux1.from_name("tiny")
    config = Config(num_inference_steps=8, height=128, width=128, guidance=guidance)

    def paint(prompts: list[str], seeds: list[int]) -> list[np.ndarray]:
        pairs = zip(prompts, seeds, strict=True)
        return [
            np.asarray(flux.generate_image(seed=seed, prompt=prompt, config=config).image) for prompt, seed in pairs
        ]

    return paint


def rated_drawings(source: str, count: int) -> dict[str, dict[str, float]]:
    """The classifier on drawings (`world`) or on their round trips (`vae`)."""
    results = {}
    for chosen in SETS:
        scenes = scenes_of(chosen, count)
        pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
        if source == "vae":
            from latents import Codec

            codec = Codec()
            pictures = np.concatenate([codec.decode(codec.encode(part)) for part in np.array_split(pictures, 8)])
        answers = [answer(picture, scene) for picture, scene in zip(pictures, scenes, strict=True)]
        results[chosen.name] = {name: round(100 * float(np.mean([a[name] for a in answers])), 1) for name in answers[0]}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="base, distill, shipped, mflux, world or vae")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--sets", nargs="+", default=[chosen.name for chosen in SETS])
    options = parsed(parser)
    if options.source in ("world", "vae"):
        results = rated_drawings(options.source, options.count)
    else:
        paint = painter(options.source, options.guidance)
        chosen_sets = [chosen for chosen in SETS if chosen.name in options.sets]
        results = {chosen.name: evaluate(paint, chosen, options.count) for chosen in chosen_sets}
    for name, one in results.items():
        log("evaluate", source=options.source, guidance=options.guidance, count=options.count, set=name, **one)
    print(table(results))


if __name__ == "__main__":
    main()
