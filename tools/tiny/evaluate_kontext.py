"""Measure `tiny/kontext`: is the named change done, and is the rest kept?

`.venv/bin/python tools/tiny/evaluate_kontext.py kontext` (a checkpoint, torch), `... shipped` (torch) or `... mflux`
(the product); `vae` scores the round trips of the wanted pictures, the most that can be reached. Each kind of
instruction by itself; a pair of colour and shape that training never saw stands in the source or in the target, unless
`--seen`. Done: each answer of the classifier that differs between source and wanted scene is the wanted one. Kept: all
other answers are the source's, and outside the objects' boxes the picture is the wanted one within 8 grey levels on
average.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from classifier import read
from clock import log, parsed
from edits import SIMPLE_KINDS, Edit, combine, instruct, reverse, sample_edit
from evaluate import SHIPPED, table
from PIL import Image
from world import SIDE, Scene, SceneKind, box, draw, hole_around, sample_scene

SEED = 701
OUTSIDE = 8.0
QUESTIONS = ("shape", "color", "style", "dot", "place", "size")
TWO_PICTURES = ("object", "join")
KINDS = (*SIMPLE_KINDS, *TWO_PICTURES)


@dataclass(frozen=True)
class Task:
    """An edit in words, and a second picture where it needs one."""

    edit: Edit
    prompt: str
    second: Scene | None = None

    @property
    def references(self) -> list[np.ndarray]:
        return [np.asarray(draw(scene)) for scene in (self.edit.source, self.second) if scene is not None]


DrawTasks = Callable[[list[Task], list[int]], list[np.ndarray]]  # tasks and seeds


def tasks(kind: str, count: int, held_out: bool, seed: int = SEED) -> list[Task]:
    """Instructions of one kind. Two pictures combine only pairs that training saw."""
    rng, made = np.random.default_rng([seed, KINDS.index(kind)]), []
    while len(made) < count:
        task = _combined(kind, rng) if kind in TWO_PICTURES else _simple(kind, held_out, rng)
        if task is not None:
            made.append(task)
    return made


def _simple(kind: str, held_out: bool, rng: np.random.Generator) -> Task | None:
    """To add is to undo a removal: objects of two then stand where the classifier can tell them apart."""
    pairs = "held-out" if held_out and rng.random() < 0.5 else "seen"
    scene = sample_scene(rng, SceneKind(two_objects=1 if kind == "add" else 0.5, pairs=pairs))
    edit = sample_edit("remove" if kind == "add" else kind, scene, rng, held_out)
    if edit is None or edit.held_out != held_out:
        return None
    edit = reverse(edit) if kind == "add" else edit
    prompt = instruct(edit, rng).text
    while kind == "add" and edit.target.things[edit.index or 0].size not in prompt:
        prompt = instruct(edit, rng).text  # of any size would be right
    return Task(edit, prompt)


def _combined(kind: str, rng: np.random.Generator) -> Task | None:
    first, second = sample_scene(rng, SceneKind(two_objects=0)), sample_scene(rng, SceneKind(two_objects=0))
    edit = combine(kind, first, second, rng)
    if edit is None or any(thing.size == "large" for thing in first.things if kind == "join"):
        return None  # a large object reaches into the other one's half
    return Task(edit, instruct(edit, rng).text, second)


def facts(picture: np.ndarray, edit: Edit) -> dict[str, object]:
    """All that the classifier sees; None for what is not there."""
    things = max(edit.source.things, edit.target.things, key=len)
    reading = read(picture, max(1, len(things)), stacked=len(things) == 2 and things[0].place == "top")
    seen: dict[str, object] = {"background": reading.background}
    for i, thing in enumerate(reading.things):
        seen |= {f"{question} {i}": None if thing is None else getattr(thing, question) for question in QUESTIONS}
    return seen


def answer(picture: np.ndarray, edit: Edit) -> dict[str, bool]:
    """Whether the change is done, the rest kept, and both."""
    source, wanted = np.asarray(draw(edit.source)), np.asarray(draw(edit.target))
    before, after, seen = facts(source, edit), facts(wanted, edit), facts(picture, edit)
    done = all(seen[name] == value for name, value in after.items() if value != before[name])
    same = all(seen[name] == value for name, value in before.items() if value == after[name])
    inside = np.zeros((SIDE, SIDE), dtype=bool)
    for thing in (*edit.source.things, *edit.target.things):
        inside |= hole_around(box(thing))
    off = np.abs(picture.astype(np.int16) - wanted)[~inside].mean()
    return {"done": done, "kept": bool(same and off <= OUTSIDE), "both": bool(done and same and off <= OUTSIDE)}


def evaluate_kontext(
    paint: DrawTasks, kind: str, count: int, held_out: bool = True, batch: int = 32
) -> dict[str, float]:
    """Per cent of instructions of one kind that are done, that keep the rest, and both."""
    made, rows = tasks(kind, count, held_out), []
    for start in range(0, count, batch):
        some = made[start : start + batch]
        painted = paint(some, list(range(start, start + len(some))))
        rows += [answer(picture, task.edit) for picture, task in zip(painted, some, strict=True)]
    return {name: round(100 * float(np.mean([row[name] for row in rows])), 1) for name in rows[0]}


# --- who draws -------------------------------------------------------------------------------------------------------


def torch_painter(source: str, guidance: float, true_cfg: float) -> DrawTasks:
    import torch  # here, so that the product can be evaluated without torch
    from latents import Codec
    from networks import Networks
    from sampler import TorchPainter

    if source == "shipped":
        folder = SHIPPED / "kontext"
        networks, codec = Networks.from_folders(folder, folder / "transformer"), Codec(SHIPPED / "base" / "vae")
    else:
        from export import trained

        networks, codec = trained(source), Codec()
    paint = TorchPainter(networks, codec, guidance=guidance)

    def edit(some: list[Task], seeds: list[int]) -> list[np.ndarray]:
        columns = [codec.encode(np.stack(column)) for column in zip(*(task.references for task in some), strict=True)]
        prompts = [task.prompt for task in some]
        return paint(prompts, seeds, true_cfg=true_cfg, references=torch.cat(columns, dim=1))

    return edit


def round_trips(some: list[Task], seeds: list[int]) -> list[np.ndarray]:
    from latents import Codec

    codec = Codec()
    return list(codec.decode(codec.encode(np.stack([np.asarray(draw(task.edit.target)) for task in some]))))


def product_painter(guidance: float) -> DrawTasks:
    from mflux import Config, Flux1
    from mflux.conditions import Kontext

    flux = Flux1.from_name("tiny/kontext")
    config = Config(num_inference_steps=8, height=SIDE, width=SIDE, guidance=guidance)

    def edit(some: list[Task], seeds: list[int]) -> list[np.ndarray]:
        drawn = []
        for task, seed in zip(some, seeds, strict=True):
            condition = Kontext(images=[Image.fromarray(picture) for picture in task.references])
            result = flux.generate_image(seed=seed, prompt=task.prompt, config=config, conditions=[condition])
            drawn.append(np.asarray(result.image))
        return drawn

    return edit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="kontext, kontext-distill, shipped, mflux or vae")
    parser.add_argument("--count", type=int, default=48, help="of each kind")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--true-cfg", type=float, default=1.0, help="of torch")
    parser.add_argument("--kinds", nargs="+", default=KINDS)
    parser.add_argument("--seen", action="store_true", help="only pairs that training saw")
    options = parsed(parser)
    if options.source == "vae":
        paint = round_trips
    elif options.source == "mflux":
        paint = product_painter(options.guidance)
    else:
        paint = torch_painter(options.source, options.guidance, options.true_cfg)
    results = {kind: evaluate_kontext(paint, kind, options.count, not options.seen) for kind in options.kinds}
    simple = [one for kind, one in results.items() if kind in SIMPLE_KINDS]
    if simple:
        results["all of one picture"] = {name: float(np.mean([one[name] for one in simple])) for name in simple[0]}
    shown = {"guidance": options.guidance, "true_cfg": options.true_cfg, "count": options.count, "seen": options.seen}
    for kind, one in results.items():
        log("evaluate", source=f"kontext, {options.source}", **shown, kind=kind, **one)
    print(table(results))


if __name__ == "__main__":
    main()
