"""What is said about a scene: the caption grammar of `tiny`, with all its variants.

`.venv/bin/python tools/tiny/captions.py` prints a few. Nothing here names a thing that the picture does not show; a
caption may leave a size, a place, a style, a dot or the background unnamed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from world import COLORS, RADIUS_ALONE, SHAPES, STYLES, Scene, Thing, sample_scene

LONGEST = 22  # T5 tokens without the end token
PLACES = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "center": ("in the center", "in the middle"),
}
DESCRIBING = {*COLORS, *SHAPES, *STYLES, *RADIUS_ALONE, "dot"}
RELATIONS = {"left": ("to the left of", "to the right of"), "top": ("above", "below")}
PREPOSITIONS = ("on", "on", "on", "with", "against")


@dataclass(frozen=True)
class Caption:
    """`placed`: the words say where each object stands."""

    text: str
    placed: bool


def caption(scene: Scene, rng: np.random.Generator) -> Caption:
    """One of the many captions of a scene, never longer than LONGEST tokens."""
    while True:
        subject, placed = _alone(scene.things[0], rng) if len(scene.things) == 1 else _together(scene.things, rng)
        text = _with_background(subject, scene.background, rng)
        if rng.random() < 0.04:
            text += "."
        if tokens(text) <= LONGEST:
            return Caption(text, placed)


def phrase(thing: Thing, rng: np.random.Generator, size_named: float = 0.85, look_named: float = 0.85) -> str:
    """One object: a [large|small] [style] <colour> <shape> [with a dot]."""
    words = []
    if rng.random() < size_named:
        words.append(thing.size)
    if rng.random() < (0.05 if thing.style == "flat" else look_named):
        words.append(thing.style)
    words += [thing.color, thing.shape]
    if thing.dot and rng.random() < look_named:
        words.append("with a dot")
    return with_article(" ".join(words), rng)


def with_article(words: str, rng: np.random.Generator) -> str:
    """Mostly as in a grammar book; sometimes "a orange circle", as people type it."""
    vowel = words[0] in "aeiou" and rng.random() < 0.7
    return ("an " if vowel else "a ") + words


def pieces(text: str) -> list[str]:
    """The T5 tokens of a caption: each word of the world is one piece, and so is each mark."""
    return re.findall(r"\w+|[^\w\s]", text)


def tokens(text: str) -> int:
    return len(pieces(text))


def place_labels(told: Caption, scene: Scene) -> list[int]:
    """For each token the place (1 + index in PLACES) of the object that it describes; 0 where there is none to tell."""
    words = pieces(told.text)
    if not told.placed:
        return [0] * len(words)
    if len(scene.things) == 1:
        first = second = scene.things[0].place
        middle = len(words)
    else:
        middle, first = _where_the_first_ends(words)
        second = next(thing.place for thing in scene.things if thing.place != first)
    return [_label(words, i, first if i < middle else second) for i in range(len(words))]


def _where_the_first_ends(words: list[str]) -> tuple[int, str]:
    """Index of the word between two objects, and the place of the first one named."""
    for i, word in enumerate(words):
        if word == "and":
            return i, next(name for name in ("left", "right", "top", "bottom") if name in words[:i])
        if word in ("above", "below"):
            return i, "top" if word == "above" else "bottom"
        if word == "of" and words[i - 1] in ("left", "right"):
            return i, words[i - 1]
    raise ValueError(f"no second object in {words}")


def _label(words: list[str], index: int, place: str) -> int:
    word, after = words[index], words[index + 1] if index + 1 < len(words) else ""
    describes = word in DESCRIBING and after not in ("background", "image")
    return 1 + list(PLACES).index(place) if describes else 0


def _pick(rng: np.random.Generator, *choices: str) -> str:
    return choices[int(rng.integers(len(choices)))]


def _alone(thing: Thing, rng: np.random.Generator) -> tuple[str, bool]:
    words = phrase(thing, rng)
    if rng.random() < 0.15:
        return words, False
    place = _pick(rng, *PLACES[thing.place])
    return (f"{place}, {words}" if rng.random() < 0.04 else f"{words} {place}"), True


def _together(things: tuple[Thing, ...], rng: np.random.Generator) -> tuple[str, bool]:
    first, second = (phrase(thing, rng, size_named=0.75) for thing in things)
    if rng.random() < 0.04:
        return (f"{first} and {second}" if rng.random() < 0.5 else f"{second} and {first}"), False
    if rng.random() < 0.35:
        forward, backward = RELATIONS[things[0].place]
        return (f"{first} {forward} {second}" if rng.random() < 0.5 else f"{second} {backward} {first}"), True
    here, there = (f"{words} {PLACES[thing.place][0]}" for words, thing in zip((first, second), things, strict=True))
    return (f"{here} and {there}" if rng.random() < 0.6 else f"{there} and {here}"), True


def _with_background(subject: str, background: str, rng: np.random.Generator) -> str:
    comma = _pick(rng, ", ", ", ", " ")
    preposition = _pick(rng, *PREPOSITIONS)
    draw = rng.random()
    if draw < 0.06:
        return subject
    if draw < 0.60:
        start = _pick(rng, "a picture of ", "an image of ") if rng.random() < 0.12 else ""
        return f"{start}{subject}{comma}{preposition} a {background} background"
    if draw < 0.70:
        return f"{subject}, {background} background"
    if draw < 0.78:
        return f"on a {background} background, {subject}"
    if draw < 0.86:
        return f"{background} background, {subject}"
    if draw < 0.93:
        return f"a {background} background with {subject}"
    return f"a {background} image with {subject}"


if __name__ == "__main__":
    generator = np.random.default_rng()
    for _ in range(20):
        print(caption(sample_scene(generator), generator))
