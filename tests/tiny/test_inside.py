"""What the stage `inside` learns from: captions without styles and dots, and whose each token is."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity extra is not installed")
pytest.importorskip("diffusers", reason="the parity extra is not installed")
pytest.importorskip("peft", reason="the parity extra is not installed")

from captions import PLACES  # noqa: E402
from inside import find_pairs, without  # noqa: E402
from latents import Latents, token_labels  # noqa: E402
from world import BACKGROUNDS, COLORS, SHAPES, SceneKind, sample_scene  # noqa: E402


def test_runs_of_ids_are_taken_out_and_the_rest_moves_up():
    ids = torch.tensor([[5, 1, 2, 3, 9, 0], [1, 2, 4, 5, 2, 3]])
    assert without(ids, [[1, 2, 3], [4]], 0).tolist() == [[5, 9, 0, 0, 0, 0], [1, 2, 5, 2, 3, 0]]


def test_two_objects_are_told_apart_by_their_tokens():
    rng = np.random.default_rng(4)
    scenes = [sample_scene(rng, SceneKind(two_objects=0.7)) for _ in range(60)]
    labels = [torch.from_numpy(np.stack(part)) for part in zip(*map(token_labels, scenes), strict=True)]
    none = torch.zeros(len(scenes))
    pairs = find_pairs(Latents(none, none, none, none, *labels, none))
    wanted = [i for i, scene in enumerate(scenes) if len({thing.color for thing in scene.things}) == 2]
    assert pairs.rows.tolist() == wanted
    for k, row in enumerate(wanted):
        found = {
            (list(COLORS)[color], SHAPES[shape], list(PLACES)[place])
            for color, shape, place in zip(pairs.colors[k], pairs.shapes[k], pairs.places[k], strict=True)
        }
        assert found == {(thing.color, thing.shape, thing.place) for thing in scenes[row].things}
        assert list(BACKGROUNDS)[pairs.backgrounds[k]] == scenes[row].background
