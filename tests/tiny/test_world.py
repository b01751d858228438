"""The drawn world: what training may see, and what it shows."""

from __future__ import annotations

import numpy as np
import pytest

from captions import LONGEST, caption, tokens
from world import BACKGROUNDS, COLORS, HELD_OUT, SHAPES, SIDE, SceneKind, box, coverage, draw, sample_scene


def test_the_eight_held_out_pairs_are_those_of_the_contract():
    expected = {(color, SHAPES[(5 * i + 1) % 6]) for i, color in enumerate(COLORS)}
    assert expected == HELD_OUT
    assert len(HELD_OUT) == 8
    assert ("red", "square") in HELD_OUT


def test_no_training_scene_holds_a_held_out_pair():
    rng = np.random.default_rng(1)
    pairs = {thing.pair for _ in range(3000) for thing in sample_scene(rng).things}
    assert not pairs & HELD_OUT
    assert len(pairs) == len(COLORS) * len(SHAPES) - len(HELD_OUT)


def test_held_out_scenes_hold_nothing_else():
    rng = np.random.default_rng(2)
    kind = SceneKind(pairs="held-out")
    assert {thing.pair for _ in range(500) for thing in sample_scene(rng, kind).things} == HELD_OUT


def test_an_object_never_has_its_background_s_colour():
    rng = np.random.default_rng(3)
    scenes = [sample_scene(rng) for _ in range(1000)]
    assert all(thing.color != scene.background for scene in scenes for thing in scene.things)


def test_a_scene_is_drawn_on_its_background():
    rng = np.random.default_rng(4)
    for _ in range(20):
        scene = sample_scene(rng)
        pixels = np.asarray(draw(scene))
        assert pixels.shape == (SIDE, SIDE, 3)
        covered = sum(np.asarray(coverage(thing)).astype(int) for thing in scene.things)
        assert (pixels[covered == 0] == BACKGROUNDS[scene.background]).all()


def test_coverage_lies_inside_the_box():
    rng = np.random.default_rng(5)
    for _ in range(20):
        thing = sample_scene(rng).things[0]
        left, top, right, bottom = (edge * SIDE for edge in box(thing))
        rows, columns = np.nonzero(np.asarray(coverage(thing)))
        assert columns.min() >= left - 1 and columns.max() <= right + 1
        assert rows.min() >= top - 1 and rows.max() <= bottom + 1


@pytest.mark.parametrize("size", [(96, 192), (192, 96)])
def test_other_sizes_keep_shapes_round(size: tuple[int, int]):
    rng = np.random.default_rng(6)
    scene = sample_scene(rng, SceneKind(two_objects=0))
    covered = np.asarray(coverage(scene.things[0], *size)) > 127
    assert covered.shape == (size[1], size[0])
    assert covered.any()


def test_captions_stay_below_the_longest_and_never_name_what_is_not_there():
    rng = np.random.default_rng(7)
    for _ in range(2000):
        scene = sample_scene(rng)
        text = caption(scene, rng).text
        words = set(text.replace(",", " ").replace(".", " ").split())
        assert tokens(text) <= LONGEST
        assert words & set(SHAPES) == {thing.shape for thing in scene.things}
        assert words & set(COLORS) <= {scene.background, *(thing.color for thing in scene.things)}
        assert "dot" not in words or any(thing.dot for thing in scene.things)
        assert "crescent" not in words
