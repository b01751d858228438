"""Edits and instructions: what training may see, and what the words say."""

from __future__ import annotations

import numpy as np
import pytest

from captions import pieces
from confetti import around
from edits import COMBINED, SIMPLE_KINDS, combine, instruct, reverse, sample_edit, the_object
from evaluate_kontext import KINDS, answer, tasks
from groups import random_group, repainted, reshaped
from world import COLORS, HELD_OUT, SHAPES, SceneKind, coverage, draw, sample_scene


def edits_of(kind, count=60, seed=1):
    rng = np.random.default_rng(seed)
    alone = SceneKind(two_objects=0)
    while count:
        if kind in COMBINED:
            edit = combine(kind, sample_scene(rng, alone), sample_scene(rng, alone), rng)
        else:
            edit = sample_edit(kind, sample_scene(rng), rng)
        if edit is not None:
            count -= 1
            yield edit, instruct(edit, rng)


def test_training_pairs_hold_no_held_out_pair_and_never_say_crescent():
    rng = np.random.default_rng(2)
    groups = [random_group(rng) for _ in range(150)]
    assert not [group for group in groups for scene in group.scenes if held_out(scene)]
    assert not any("crescent" in text for group in groups for told in group.told for text, _ in told)


def held_out(scene):
    return {(color, SHAPES[(5 * i + 1) % 6]) for i, color in enumerate(COLORS)} & {one.pair for one in scene.things}


@pytest.mark.parametrize("kind", [*SIMPLE_KINDS, *COMBINED])
def test_an_instruction_has_a_role_for_each_token_and_fits(kind):
    for _, told in edits_of(kind):
        assert len(told.roles) == len(pieces(told.text)) <= 30
        assert any(told.roles)


@pytest.mark.parametrize("kind", ["recolour", "background"])
def test_an_instruction_names_the_new_colour(kind):
    for edit, told in edits_of(kind):
        wanted = edit.target.background if edit.index is None else edit.target.things[edit.index].color
        assert wanted in told.text.split()


def test_the_words_for_an_object_mean_no_other():
    rng = np.random.default_rng(3)
    for _ in range(300):
        first, second = (scene := sample_scene(rng, SceneKind(two_objects=1))).things
        assert the_object(scene, 0, rng) != the_object(scene, 1, rng)
        if first.shape == second.shape:
            words = the_object(scene, 0, rng).split()
            assert first.color in words or first.place in words


@pytest.mark.parametrize("kind", SIMPLE_KINDS)
def test_the_reverse_leads_back(kind):
    for edit, _ in edits_of(kind, 20):
        back = reverse(edit)
        assert (back.source, back.target) == (edit.target, edit.source)
        assert reverse(back) == edit


@pytest.mark.parametrize("held_out_only", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_accepts_the_wanted_picture_and_no_other(kind, held_out_only):
    """The source itself is done only when everything is to be kept; a picture of another scene keeps nothing."""
    made = tasks(kind, 12, held_out_only)
    for task, other in zip(made, made[1:] + made[:1], strict=True):
        wanted, source = np.asarray(draw(task.edit.target)), np.asarray(draw(task.edit.source))
        assert answer(wanted, task.edit) == {"done": True, "kept": True, "both": True}
        assert answer(source, task.edit)["done"] == (kind == "keep")
        assert not answer(np.asarray(draw(other.edit.target)), task.edit)["both"]


def test_a_repainted_group_names_no_colour_of_its_objects_and_has_no_pair_held_out():
    rng = np.random.default_rng(7)
    told = 0
    for _ in range(40):
        group = random_group(rng)
        palette = repainted(group, rng)
        things = {thing for scene in group.scenes for thing in scene.things}
        assert set(palette) == {thing.color for thing in things}
        for thing in things:
            nearest = min(COLORS, key=lambda name: np.square(np.subtract(palette[thing.color], COLORS[name])).sum())
            assert (nearest, thing.shape) not in HELD_OUT
        assert len(group.told) == len(group.pairs)
        told += len(group.told)
        assert not any(set(words.split()) & set(palette) for some in group.told for words, _ in some)
    assert told > 40


def test_no_instruction_of_a_group_names_a_figure_or_asks_for_one():
    rng, told = np.random.default_rng(9), 0
    for _ in range(60):
        group = random_group(rng)
        outlines = reshaped(group, rng, figures=True)
        for (source, _, target), some in zip(group.pairs, group.told, strict=True):
            before, after = ([thing.shape for thing in group.scenes[index].things] for index in (source, target))
            assert all(after.count(shape) <= before.count(shape) for shape in outlines)
            told += len(some)
            assert not any(set(words.split()) & set(outlines) for words, _ in some)
    assert told > 200


def test_pieces_lie_around_the_objects_of_all_scenes_of_a_group():
    rng, laid = np.random.default_rng(8), 0
    for _ in range(20):
        scenes = random_group(rng).scenes
        layer = np.asarray(around(scenes, rng))[..., 3] > 0
        laid += layer.any()
        for scene in scenes:
            assert not any((layer & (np.asarray(coverage(thing)) > 0)).any() for thing in scene.things)
    assert laid > 10
