"""Scenes that are one edit apart, in groups: what kontext learns from.

A group is a scene and what four different edits make of it. Each picture serves in several pairs: an edit, the edit
that undoes it, and two edits of one kind one after another. Some groups hold a second picture to take an object or a
background from. No torch in here.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

import numpy as np
from captions import pieces
from confetti import any_color, figure, turned
from edits import COMBINED, Edit, combine, instruct, reverse, sample_edit
from world import BACKGROUNDS, COLORS, HELD_OUT, Scene, SceneKind, outline, sample_scene

WORDINGS_PER_PAIR = 3
EDITS_PER_GROUP = 4
COMBINED_SHARE = 0.35  # of the groups
BESIDE = 0.7  # share of the groups with figures where one shape at most becomes one
APART = 110  # of a colour without a name from the backgrounds, in grey levels
# Drawing a new shape is harder than any other edit. An edit trains its reverse too: add and remove share one number.
SHARES = {"recolour": 1.5, "background": 2.2, "replace": 1.8, "remove": 0.8, "style": 1.8, "size": 2.2, "add": 2.8}
SHARES |= {"dot": 1.3, "keep": 0.5}


@dataclass
class Group:
    """Scenes, and pairs of them: indices of source and second source (-1: none) and target, words and their roles."""

    scenes: list[Scene] = field(default_factory=list)
    pairs: list[tuple[int, int, int]] = field(default_factory=list)
    told: list[list[tuple[str, list[int]]]] = field(default_factory=list)

    def add(self, edit: Edit, rng: np.random.Generator, second: Scene | None = None) -> None:
        told = [instruct(edit, rng) for _ in range(WORDINGS_PER_PAIR)]
        self.told.append([(one.text, one.roles) for one in told])
        other = -1 if second is None else self._place(second)
        self.pairs.append((self._place(edit.source), other, self._place(edit.target)))

    def _place(self, scene: Scene) -> int:
        if scene not in self.scenes:
            self.scenes.append(scene)
        return self.scenes.index(scene)


def random_group(rng: np.random.Generator) -> Group:
    group = Group()
    if rng.random() < COMBINED_SHARE:
        _combine_two(group, rng)
        return group if group.pairs else random_group(rng)
    source = sample_scene(rng)
    chances = np.array(list(SHARES.values())) / sum(SHARES.values())
    drawn = [sample_edit(str(kind), source, rng) for kind in rng.choice(list(SHARES), EDITS_PER_GROUP, p=chances)]
    edits = [edit for edit in drawn if edit is not None]
    for edit in [*edits, *chained(edits)]:
        group.add(edit, rng)
        if edit.kind != "keep":
            group.add(reverse(edit), rng)
    return group


def _combine_two(group: Group, rng: np.random.Generator) -> None:
    """What becomes of two scenes of one object, either of which comes first."""
    alone = SceneKind(two_objects=0)
    scenes = sample_scene(rng, alone), sample_scene(rng, alone)
    for first, second in (scenes, scenes[::-1]):
        for kind in rng.choice(COMBINED, 2, replace=False, p=(0.3, 0.05, 0.25, 0.4)):
            edit = combine(str(kind), first, second, rng)
            if edit is not None:
                group.add(edit, rng, None if kind == "bring" else second)


def repainted(group: Group, rng: np.random.Generator, figures: Container[str] = ()) -> dict[str, tuple[int, int, int]]:
    """Other colours for a group's objects, and of its instructions only those that name none of theirs.

    So an object's colour is copied for what it looks like. A pair held out from training does not come up this way: no
    new colour is nearest to the one that its shape must not have. Shapes that are drawn as `figures` are none of the
    world's and take any colour, also one with a name.
    """
    things = {thing for scene in group.scenes for thing in scene.things}
    names = sorted({thing.color for thing in things})
    _leave_unsaid(group, set(names))
    behind = [BACKGROUNDS[scene.background] for scene in group.scenes]
    shapes = {name: {thing.shape for thing in things if thing.color == name} for name in names}
    held_out = {name: {shape for shape in some if shape not in figures} for name, some in shapes.items()}
    return {name: _color_for(held_out[name], behind, rng) for name in names}


def _leave_unsaid(group: Group, words: set[str]) -> None:
    """Of a group's instructions only those that say none of these words."""
    told = [[one for one in some if not set(pieces(one[0])) & words] for some in group.told]
    group.pairs = [pair for pair, some in zip(group.pairs, told, strict=True) if some]
    group.told = [(some * WORDINGS_PER_PAIR)[:WORDINGS_PER_PAIR] for some in told if some]


def reshaped(group: Group, rng: np.random.Generator, figures: bool = False) -> dict[str, np.ndarray]:
    """Outlines for the shapes of a group's first scene, turned and bent or (`figures`) without a name, and of its pairs
    only those that bring in none of them: so a shape is copied for what it looks like, and one that is asked for is the
    world's own. Beside a figure another object often stays what it is, and instructions tell of that one."""
    known = {thing.shape for scene in group.scenes[:1] for thing in scene.things}
    if figures and known and rng.random() < BESIDE:
        known = {str(rng.choice(sorted(known)))}

    def brings_in(source: int, target: int) -> bool:
        before, after = ([thing.shape for thing in group.scenes[index].things] for index in (source, target))
        return any(after.count(shape) > before.count(shape) for shape in known)

    kept = [index for index, (source, _, target) in enumerate(group.pairs) if not brings_in(source, target)]
    group.pairs, group.told = [group.pairs[index] for index in kept], [group.told[index] for index in kept]
    if figures:
        if len(known) == 1:
            (shape,) = known
            named = f" {shape}"
            group.told = [[(text.replace(named, " object"), roles) for text, roles in some] for some in group.told]
        _leave_unsaid(group, known)
    return {shape: figure(rng) if figures else _bent(outline(shape), rng) for shape in sorted(known)}


def _bent(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An outline (points, 2) turned, flattened and waved, of the same reach or a little less."""
    first, waves = turned(points, rng), rng.integers(2, 6)
    again = turned(first * (1.0, rng.uniform(0.7, 1.0)), rng)
    angles = np.arctan2(again[:, 1], again[:, 0])
    bent = again * (1 + rng.uniform(0, 0.2) * np.sin(waves * angles + rng.uniform(0, 6.3)))[:, None]
    reach, own = (np.linalg.norm(some, axis=1).max() for some in (bent, points))
    return bent * own / reach * rng.uniform(0.85, 1.0)


def _color_for(shapes: set[str], behind: list[tuple[int, int, int]], rng: np.random.Generator) -> tuple[int, int, int]:
    """One that stands out and makes no pair held out: without a name, or any for what has none of the shapes."""
    while True:
        red, green, blue = rng.integers(0, 256, 3) if shapes else any_color(rng)
        color = np.array([int(red), int(green), int(blue)])
        nearest = min(COLORS, key=lambda name: float(np.square(color - COLORS[name]).sum()))
        if min(float(np.square(color - other).sum()) for other in np.array(behind)) > APART**2 and not any(
            (nearest, shape) in HELD_OUT for shape in shapes
        ):
            return int(red), int(green), int(blue)


def chained(edits: list[Edit]) -> Iterator[Edit]:
    """From one edited scene to another, where both differ from the source in the same thing."""
    for i, first in enumerate(edits):
        for second in edits[i + 1 :]:
            same = first.kind == second.kind and first.index == second.index and first.target != second.target
            if same and first.kind in ("recolour", "background", "style"):
                yield Edit(first.kind, first.target, second.target, first.index)
