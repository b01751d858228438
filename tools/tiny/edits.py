"""Edits of a scene and the instructions that ask for them, with all their wordings.

`.venv/bin/python tools/tiny/edits.py` prints a few. Nine kinds change one picture; `COMBINED` ones take an object or a
background from a second picture, or bring the object of the one picture into another scene. No torch in here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from captions import PLACES, RELATIONS, phrase, pieces, with_article
from world import BACKGROUNDS, COLORS, HELD_OUT, RADIUS_ALONE, RADIUS_PAIRED, SHAPES, STYLES
from world import Scene, SceneKind, Thing, box, legible, sample_scene, sample_thing

LONGEST = 30  # T5 tokens without the end token
ATTEMPTS = 12
PLAIN = 0.4  # share of instructions in the first three wordings, which people use most
ROLES = ("named", "wanted", "gone", "there", "kept")  # what a word of an instruction is about
OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
LOOK = ("shape", "color", "style", "dot")

# Words in braces are written by `_words`: {named} the object, {wanted} what it becomes, {gone} what goes away,
# {there} a place.
WORDINGS = {
    "recolour": (
        "make {named} {wanted}",
        "turn {named} {wanted}",
        "change the color of {named} to {wanted}",
        "change the colour of {named} to {wanted}",
        "change {named} to {wanted}",
        "change the color of {named} into {wanted}",
        "turn the color of {named} to {wanted}",
        "make the color of {named} {wanted}",
        "paint {named} {wanted}",
        "color {named} {wanted}",
        "make {named} {wanted} and keep everything the same",
    ),
    "background": (
        "change the background to {wanted}",
        "make the background {wanted}",
        "turn the background {wanted}",
        "change the color of the background to {wanted}",
        "change the background color to {wanted}",
        "make the color of the background {wanted}",
        "change the background to a {wanted} one",
        "change the background to a {wanted} background",
        "replace the background with a {wanted} background",
        "replace the background with {wanted}",
        "paint the background {wanted}",
        "turn the background into {wanted}",
        "put it on a {wanted} background",
    ),
    "replace": (
        "replace {named} with {wanted}",
        "turn {named} into {wanted}",
        "change {named} into {wanted}",
        "change {named} to {wanted}",
        "make {named} {wanted}",
        "make {named} into {wanted}",
        "replace {named} by {wanted}",
        "remove {named} and add {wanted}",
    ),
    "remove": (
        "remove {gone}",
        "delete {gone}",
        "remove {gone} from the picture",
        "delete {gone} from the image",
        "remove {gone} from the background",
        "make it a picture without {gone}",
        "the same picture without {gone}",
    ),
    "striped": (
        "make {named} {wanted:striped}",
        "turn {named} {wanted:striped}",
        "change the style of {named} to {wanted:striped}",
        "change {named} to {wanted:striped}",
        "add {wanted:stripes} to {named}",
        "paint {wanted:stripes} on {named}",
        "draw {named} with {wanted:stripes}",
    ),
    "outlined": (
        "make {named} {wanted:outlined}",
        "turn {named} {wanted:outlined}",
        "change the style of {named} to {wanted:outlined}",
        "change {named} to {wanted:outlined}",
        "add an {wanted:outline} to {named}",
        "draw an {wanted:outline} to {named}",
        "draw {named} with an {wanted:outline}",
    ),
    "flat": (
        "make {named} {wanted:flat}",
        "turn {named} {wanted:flat}",
        "make {named} {wanted:plain}",
        "change the style of {named} to {wanted:flat}",
        "change {named} to {wanted:flat}",
        "remove the {gone} from {named}",
        "draw {named} without {gone}",
    ),
    "large": (
        "make {named} {wanted:bigger}",
        "make {named} {wanted:larger}",
        "make {named} {wanted:large}",
        "make {named} {wanted:big}",
        "turn {named} {wanted:large}",
        "change {named} to {wanted:large}",
        "make {named} a {wanted:bigger} one",
        "replace {named} with a {wanted:larger} one",
    ),
    "small": (
        "make {named} {wanted:smaller}",
        "make {named} {wanted:small}",
        "make {named} {wanted:little}",
        "make {named} {wanted:tiny}",
        "turn {named} {wanted:small}",
        "change {named} to {wanted:small}",
        "make {named} a {wanted:smaller} one",
        "replace {named} with a {wanted:smaller} one",
    ),
    "add": (
        "add {wanted} {there}",
        "put {wanted} {there}",
        "draw {wanted} {there}",
        "paint {wanted} {there}",
        "{there}, add {wanted}",
        "add {wanted} to the picture {there}",
        "{there} add {wanted}",
        "keep everything and add {wanted} {there}",
    ),
    "dot": (
        "add a {wanted:dot} to {named}",
        "put a {wanted:dot} on {named}",
        "put a {wanted:dot} in {named}",
        "draw a {wanted:dot} on {named}",
        "draw a {wanted:dot} in the middle of {named}",
        "make {named} one with a {wanted:dot}",
        "paint a {wanted:dot} in the center of {named}",
    ),
    "no dot": (
        "remove the {gone:dot} from {named}",
        "delete the {gone:dot} from {named}",
        "remove the {gone:dot} of {named}",
        "remove the {gone:dot} on {named}",
        "remove the {gone:dot} in {named}",
        "draw {named} without the {gone:dot}",
        "make {named} one without a {gone:dot}",
    ),
    "the dot": ("remove the {gone:dot}", "delete the {gone:dot}", "the same picture without the {gone:dot}"),
    "keep": (
        "{kept:keep everything}",
        "{kept:keep everything} as it is",
        "{kept:keep everything} the same",
        "{kept:keep all} as it is",
        "{kept:keep} the picture as it is",
        "{kept:keep} the picture the same",
        "{kept:the same} picture",
        "make {kept:no change}",
    ),
    "object": (
        "the first picture with the {wanted:object} of the {wanted:second}",
        "the first image with the {wanted:object} of the {wanted:second} image",
        "the first picture with the {wanted:object} from the {wanted:second} picture",
        "put the {wanted:object} of the {wanted:second} picture into the first",
        "put the {wanted:object} from the {wanted:second} image into the first image",
        "replace the {named:object} of the first picture with the {wanted:object} of the {wanted:second}",
        "replace {named} with the {wanted:object} of the {wanted:second} picture",
        "change {named} into the {wanted:object} of the {wanted:second} image",
    ),
    "behind": (
        "the first picture with the {wanted:background} of the {wanted:second}",
        "the first image with the {wanted:background} from the {wanted:second} image",
        "put the {named:object} of the first picture on the {wanted:background} of the {wanted:second}",
        "replace the background with the {wanted:background} of the {wanted:second} picture",
    ),
    "join": (
        "add the {wanted:object} of the {wanted:second} picture {there}",
        "add the {wanted:object} from the {wanted:second} image to the first {there}",
        "put the {wanted:object} of the {wanted:second} picture {there}",
        "the first picture with the {wanted:object} of the {wanted:second} {there}",
    ),
    "bring": (
        "the {wanted:object} of the picture",
        "put the {wanted:object} {there}",
        "the same {wanted:object} {there}",
        "put the {wanted:object} {there}, on a {wanted} background",
        "the {wanted:object} of the picture {there}, on a {wanted} background",
        "put {named} {there}, on a {wanted} background",
        "put {named} {there}",
        "draw {named} {there}, on a {wanted} background",
    ),
}
SIMPLE_KINDS = ("recolour", "background", "replace", "remove", "style", "size", "add", "dot", "keep")
COMBINED = ("object", "behind", "join", "bring")


@dataclass(frozen=True)
class Edit:
    """One change. `index`: which object, in the scene that has it (None: the background, or everything)."""

    kind: str
    source: Scene
    target: Scene
    index: int | None = None

    @property
    def held_out(self) -> bool:
        return any(thing.pair in HELD_OUT for thing in (*self.source.things, *self.target.things))


@dataclass(frozen=True)
class Instruction:
    """Words, and for each T5 token its role (1 + index in ROLES; 0 where it says nothing by itself)."""

    text: str
    roles: list[int]


# --- edits -----------------------------------------------------------------------------------------------------------


def sample_edit(kind: str, source: Scene, rng: np.random.Generator, held_out: bool = False) -> Edit | None:
    """A random edit of that kind, None where the scene allows none. Held-out pairs come up only when asked for."""
    for _ in range(ATTEMPTS):
        index = int(rng.integers(len(source.things))) if source.things else None
        edit = _EDITS[kind](source, index, rng)
        if edit is not None and _drawable(edit.target) and (held_out or not edit.held_out):
            return edit
    return None


def reverse(edit: Edit) -> Edit:
    """The edit that undoes it."""
    kind = {"add": "remove", "remove": "add"}.get(edit.kind, edit.kind)
    return Edit(kind, edit.target, edit.source, edit.index)


def _drawable(scene: Scene) -> bool:
    """Whether the world draws it so, and no object touches another."""
    whole = all(legible(thing, scene.background) == thing for thing in scene.things)
    seen = all(thing.color != scene.background for thing in scene.things)
    return whole and seen and (len(scene.things) < 2 or _apart(*scene.things))


def _apart(first: Thing, second: Thing) -> bool:
    a, b = box(first, 0.01), box(second, 0.01)
    return a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def _changed(kind: str, source: Scene, index: int | None, **values: object) -> Edit | None:
    """One object with other values; None where it has them already."""
    if index is None:
        return None
    thing = replace(source.things[index], **values)  # type: ignore[arg-type]
    if thing == source.things[index]:
        return None
    things = (*source.things[:index], thing, *source.things[index + 1 :])
    return Edit(kind, source, replace(source, things=things), index)


def _choice(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return str(choices[int(rng.integers(len(choices)))])


def _recolour(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    return _changed("recolour", source, index, color=_choice(rng, list(COLORS)))


def _replace(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    """Another shape; in three of ten edits another colour too."""
    if index is None:
        return None
    shape = _choice(rng, SHAPES)
    if shape == source.things[index].shape:
        return None
    recolored = {"color": _choice(rng, list(COLORS))} if rng.random() < 0.3 else {}
    return _changed("replace", source, index, shape=shape, **recolored)


def _style(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    return _changed("style", source, index, style=_choice(rng, STYLES))


def _dot(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    return None if index is None else _changed("dot", source, index, dot=not source.things[index].dot)


def _size(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    if index is None:
        return None
    radii = RADIUS_PAIRED if len(source.things) == 2 else RADIUS_ALONE
    thing = source.things[index]
    size = "small" if thing.size == "large" else "large"
    return _changed("size", source, index, size=size, radius=thing.radius * radii[size] / radii[thing.size])


def _background(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    background = _choice(rng, list(BACKGROUNDS))
    if background == source.background:
        return None
    return Edit("background", source, replace(source, background=background))


def _remove(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    if index is None:
        return None
    return Edit("remove", source, replace(source, things=_without(source, index)), index)


def _without(scene: Scene, index: int) -> tuple[Thing, ...]:
    return scene.things[:index] + scene.things[index + 1 :]


def _add(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    """A second object, opposite the first; around one in the center anywhere."""
    if len(source.things) != 1:
        return None
    place = OPPOSITE.get(source.things[0].place) or _choice(rng, list(OPPOSITE))
    pairs = "held-out" if rng.random() < 0.15 else "seen"
    thing = sample_thing(rng, SceneKind(pairs=pairs), source.background, place, paired=True)
    return _joined("add", source, thing)


def _joined(kind: str, source: Scene, thing: Thing) -> Edit:
    """One more object, in the order of two: left and top come first."""
    first = thing.place in ("left", "top")
    things = (thing, *source.things) if first else (*source.things, thing)
    return Edit(kind, source, replace(source, things=things), 0 if first else len(source.things))


def _keep(source: Scene, index: int | None, rng: np.random.Generator) -> Edit | None:
    return Edit("keep", source, source)


_EDITS: dict[str, Callable[[Scene, int | None, np.random.Generator], Edit | None]] = {
    "recolour": _recolour,
    "background": _background,
    "replace": _replace,
    "remove": _remove,
    "style": _style,
    "size": _size,
    "add": _add,
    "dot": _dot,
    "keep": _keep,
}


def combine(kind: str, first: Scene, second: Scene, rng: np.random.Generator) -> Edit | None:
    """What becomes of `first`, a scene of one object, with something of `second`, another one (`bring`: of `first`)."""
    here, other = first.things[0], second.things[0]
    look = {name: getattr(other, name) for name in LOOK}
    if kind == "object":
        edit = _changed("object", first, 0, **look)
    elif kind == "behind":
        edit = Edit("behind", first, replace(first, background=second.background))
    elif kind == "join":
        place = OPPOSITE.get(here.place) or _choice(rng, list(OPPOSITE))
        thing = sample_thing(rng, SceneKind(), first.background, place, paired=True)
        edit = _joined("join", first, replace(thing, **look))
    else:
        same = {name: getattr(here, name) for name in LOOK}
        edit = Edit("bring", first, replace(second, things=(replace(other, **same),)), 0)
    if edit is None or edit.source == edit.target or edit.held_out or not _drawable(edit.target):
        return None
    return edit


# --- words -----------------------------------------------------------------------------------------------------------


def instruct(edit: Edit, rng: np.random.Generator) -> Instruction:
    """One of the many wordings of an edit."""
    while True:
        wordings = WORDINGS[_wording(edit, rng)]
        chosen = wordings[:3] if rng.random() < PLAIN else wordings
        told = _filled(_choice(rng, chosen), edit, rng)
        if len(told.roles) <= LONGEST:
            return told


def _wording(edit: Edit, rng: np.random.Generator) -> str:
    if edit.kind not in ("style", "size", "dot"):
        return edit.kind
    thing = edit.target.things[edit.index or 0]
    if edit.kind != "dot":
        return thing.style if edit.kind == "style" else thing.size
    if thing.dot:
        return "dot"
    dots = sum(one.dot for one in edit.source.things)
    return "the dot" if dots == 1 and rng.random() < 0.5 else "no dot"


def _filled(wording: str, edit: Edit, rng: np.random.Generator) -> Instruction:
    text, roles = "", []
    for part in re.split(r"({[^}]*})", wording):
        role, words = "", part
        if part.startswith("{"):
            role, _, words = part[1:-1].partition(":")
            words = words or _words(role, edit, rng)
        text += words
        told = pieces(words)
        roles += [1 + ROLES.index(role) if role and _telling(word) else 0 for word in told]
    return Instruction(" ".join(text.split()), roles)


def _telling(word: str) -> bool:
    """Whether a word in a place for words says something."""
    return word not in ("the", "a", "an", "on", "at", "in", "with", "of", "to")


def _words(role: str, edit: Edit, rng: np.random.Generator) -> str:
    if role == "wanted":
        return _wanted(edit, rng)
    if role == "there":
        thing = edit.target.things[edit.index or 0]
        others = _without(edit.target, edit.index or 0)
        return _there(thing, others, rng)
    if role == "gone" and edit.kind == "style":
        stripes = edit.source.things[edit.index or 0].style == "striped"
        return "stripes" if stripes else "outline"
    return the_object(edit.source, edit.index or 0, rng) if edit.source.things else "it"


def _wanted(edit: Edit, rng: np.random.Generator) -> str:
    if edit.index is None or edit.kind == "bring":
        return edit.target.background
    thing = edit.target.things[edit.index]
    if edit.kind == "recolour":
        return thing.color
    if edit.kind == "add":
        return phrase(thing, rng, look_named=1.0)  # what nobody asks for is not there
    recolored = thing.color != edit.source.things[edit.index].color
    return with_article(f"{thing.color} {thing.shape}" if recolored else thing.shape, rng)


def _there(thing: Thing, others: tuple[Thing, ...], rng: np.random.Generator) -> str:
    """Its place, or where it stands as seen from the other object."""
    if others and OPPOSITE.get(thing.place) == others[0].place and rng.random() < 0.2:
        forward, backward = RELATIONS["left" if thing.place in ("left", "right") else "top"]
        words = forward if thing.place in ("left", "top") else backward
        return f"{words} the {others[0].shape}"
    return _choice(rng, PLACES[thing.place])


def the_object(scene: Scene, index: int, rng: np.random.Generator) -> str:
    """Words that mean this object and no other: "the circle", "the red circle", "the circle on the left"."""
    thing, others = scene.things[index], _without(scene, index)
    if not others and rng.random() < 0.12:
        return _choice(rng, ("it", "the object", "the object"))
    shape_alone = all(other.shape != thing.shape for other in others)
    pair_alone = all(other.pair != thing.pair for other in others)
    if not pair_alone or (thing.place != "center" and rng.random() < 0.06):
        color = f"{thing.color} " if not shape_alone or rng.random() < 0.3 else ""
        return f"the {color}{thing.shape} {PLACES[thing.place][0]}"
    if shape_alone and rng.random() < 0.7:
        return f"the {thing.shape}"
    more = [thing.size, thing.style] if rng.random() < 0.1 else []
    return " ".join(["the", *(word for word in more if word != "flat"), thing.color, thing.shape])


if __name__ == "__main__":
    generator = np.random.default_rng()
    for name in SIMPLE_KINDS * 3:
        made = sample_edit(name, sample_scene(generator), generator)
        if made is not None:
            print(f"{name:10} {instruct(made, generator).text}")
