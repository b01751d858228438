"""Pictures of two panels and the words for them.

A canvas is 256 x 128: left what is given, right what is to be drawn. in-context: the same object once more in another
scene. ic-edit: the left scene after an instruction. try-on: the left object in the place of the right scene's. No torch
in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from captions import PLACES
from edits import SIMPLE_KINDS, Edit, combine, instruct, sample_edit
from world import SIDE, Scene, SceneKind, box, draw, hole_around, sample_scene

PROMPTS_PER_CANVAS = 2
PANEL_LENGTHS = (64, 77)  # of T5 and CLIP ids
# The templates of the published adapters; users' own words for in-context.
EDIT_TEMPLATE = (
    "A diptych with two side-by-side images of the same scene. "
    "On the right, the scene is exactly the same as on the left but {instruction}"
)
TRY_ON_PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; "
    "[IMAGE1] Detailed product shot of a clothing; "
    "[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)
IN_CONTEXT_PROMPTS = (
    "two side-by-side images of the same object. On the right, it is {there}, on a {background} background",
    "This set of two images shows the same object; [IMAGE1] the object; [IMAGE2] the object {there}, "
    "on a {background} background",
    "This two-panel image shows a {look}; [IMAGE1] a {look}; [IMAGE2] the same {look} {there}, "
    "on a {background} background",
    "a diptych with two images of a {look}, on the right {there}, on a {background} background",
)


@dataclass(frozen=True)
class Canvas:
    """Left scene, what the right one shows before and after, where it is repainted (SIDE, SIDE), and the words."""

    left: Scene
    before: Scene
    after: Scene
    mask: np.ndarray
    prompts: list[str]

    @property
    def picture(self) -> np.ndarray:
        """(SIDE, 2 SIDE, 3): what training draws."""
        return np.concatenate([np.asarray(draw(self.left)), np.asarray(draw(self.after))], axis=1)

    @property
    def given(self) -> np.ndarray:
        return np.concatenate([np.asarray(draw(self.left)), np.asarray(draw(self.before))], axis=1)

    @property
    def whole_mask(self) -> np.ndarray:
        return np.concatenate([np.zeros_like(self.mask), self.mask], axis=1)


def in_context(rng: np.random.Generator) -> Canvas | None:
    first, second = (sample_scene(rng, SceneKind(two_objects=0)) for _ in range(2))
    edit = combine("bring", first, second, rng)
    if edit is None:
        return None
    thing = edit.target.things[0]
    words = {"look": f"{thing.color} {thing.shape}", "background": edit.target.background}
    told = [IN_CONTEXT_PROMPTS[int(i)] for i in rng.integers(len(IN_CONTEXT_PROMPTS), size=PROMPTS_PER_CANVAS)]
    prompts = [one.format(there=rng.choice(PLACES[thing.place]), **words) for one in told]
    return Canvas(first, edit.target, edit.target, np.ones((SIDE, SIDE), dtype=bool), prompts)


def ic_edit(rng: np.random.Generator) -> Canvas | None:
    edit = sample_edit(str(rng.choice(SIMPLE_KINDS)), sample_scene(rng), rng)
    if edit is None:
        return None
    told = [EDIT_TEMPLATE.format(instruction=instruct(edit, rng).text) for _ in range(PROMPTS_PER_CANVAS)]
    return Canvas(edit.source, edit.source, edit.target, np.ones((SIDE, SIDE), dtype=bool), told)


def try_on(rng: np.random.Generator) -> Canvas | None:
    person, garment = (sample_scene(rng, SceneKind(two_objects=0)) for _ in range(2))
    edit = combine("object", person, garment, rng)
    if edit is None:
        return None
    return Canvas(garment, person, edit.target, object_mask(edit), [TRY_ON_PROMPT] * PROMPTS_PER_CANVAS)


def object_mask(edit: Edit, margin: float = 0.04) -> np.ndarray:
    """A box around the object before and after."""
    index = edit.index or 0
    return hole_around(box(edit.source.things[index], margin)) | hole_around(box(edit.target.things[index], margin))


TASKS: dict[str, Callable[[np.random.Generator], Canvas | None]] = {
    "in-context": in_context,
    "ic-edit": ic_edit,
    "try-on": try_on,
}
