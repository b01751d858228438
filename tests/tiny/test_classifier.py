"""The classifier is right on everything that the world can draw."""

from __future__ import annotations

import numpy as np
import pytest

from classifier import read, score
from evaluate import SETS, scenes_of
from world import draw


@pytest.mark.parametrize("chosen", SETS, ids=lambda chosen: chosen.name)
def test_ground_truth_scores_one_hundred_per_cent(chosen):
    for scene in scenes_of(chosen, 48):
        stacked = len(scene.things) == 2 and scene.things[0].place == "top"
        answers = score(read(draw(scene), len(scene.things), stacked), scene)
        assert set(answers.values()) == {1.0}, (scene, answers)


def test_an_empty_picture_has_no_object():
    reading = read(np.full((128, 128, 3), 250, np.uint8))
    assert reading.background == "white"
    assert reading.things == (None,)
