"""What a user asks for is checked on arrival, whatever its type."""

import json
import subprocess
import sys

import numpy as np
import pytest

from mflux import Config, UsageError
from mflux.engine.request import Request, check_number, check_seed
from mflux.engine.slots import request_from_json

EDGES = {
    "num_inference_steps": (1, 1000),
    "height": (16, 16384),
    "width": (16, 16384),
    "guidance": (0, 100),
    "true_cfg": (1, 20),
    "max_sequence_length": (1, 512),
}
NOT_NUMBERS = [float("nan"), float("inf"), float("-inf"), "8", True, [8], {}, 8j, 10**400, -(10**400), b"8"]


@pytest.mark.parametrize("name", EDGES)
def test_both_ends_of_a_range_are_inside(name):
    for value in EDGES[name]:
        assert getattr(Config(**{name: value}), name) == value


@pytest.mark.parametrize("name", EDGES)
def test_beyond_either_end_is_refused_with_the_range(name):
    low, high = EDGES[name]
    for value in (low - 1, high + 1):
        with pytest.raises(UsageError, match=f"{value} is out of range") as error:
            Config(**{name: value})
        assert error.value.field == name and error.value.exit_code == 2
        assert f"from {low} to {high}" in error.value.hint


@pytest.mark.parametrize("name", [*EDGES, "image_strength"])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=lambda value: repr(value)[:8])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(UsageError) as error:
        Config(**{name: value})
    assert error.value.field == name and len(error.value.problem) < 600


@pytest.mark.parametrize("value", [16.0, 64.5])
def test_a_side_is_a_whole_number(value):
    with pytest.raises(UsageError, match="is not a whole number"):
        Config(height=value)


def test_numpy_s_numbers_are_numbers():
    config = Config(height=np.int64(64), width=np.int32(48), guidance=np.float32(3.5), sigmas=np.linspace(1, 0.5, 3))
    assert json.loads(json.dumps(config.to_json())) == {
        "height": 64,
        "width": 48,
        "guidance": 3.5,
        "sigmas": [1.0, 0.75, 0.5],
    }
    assert Config(sigmas=np.linspace(1, 0.5, 3, dtype=np.float32)).sigmas == (1.0, 0.75, 0.5)


@pytest.mark.parametrize(
    "sigmas", [[], [1.1], [0.0], [-0.5], [0.5, 0.5], [0.25, 0.5], [float("nan")], ["1"], 5, "abc", [None], [[1.0]]]
)
def test_levels_that_do_not_descend_from_one_to_above_nothing_are_refused(sigmas):
    with pytest.raises(UsageError) as error:
        Config(sigmas=sigmas)
    assert error.value.field == "sigmas"


@pytest.mark.parametrize(("name", "value"), [("noise", "numpy"), ("noise", None), ("precision", "int8")])
def test_an_unknown_choice_is_refused_with_the_known(name, value):
    with pytest.raises(UsageError, match="is unknown") as error:
        Config(**{name: value})
    assert error.value.hint.startswith("choose one of `")


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1])
def test_every_64_bit_seed_is_a_seed(seed):
    assert check_seed(seed) == seed


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", True, None, float("nan"), 10**400])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(UsageError) as error:
        check_seed(seed)
    assert error.value.field == "seed"


@pytest.mark.parametrize(
    ("value", "ends", "fits"),
    [
        (0, {}, True),
        (1, {}, True),
        (1, {"below": True}, False),
        (0, {"above": True}, False),
        (0, {"below": True}, True),
    ],
)
def test_an_open_end_leaves_its_number_out(value, ends, fits):
    if fits:
        check_number("strength", value, 0, 1, **ends)
    else:
        with pytest.raises(UsageError, match="out of range"):
            check_number("strength", value, 0, 1, **ends)


@pytest.mark.parametrize("values", [{"prompt": None}, {"prompt": 5}, {"prompt": b"x"}, {"negative_prompt": 5}])
def test_a_prompt_that_is_no_text_is_refused(values):
    with pytest.raises(UsageError, match="is not a text"):
        Request(**{"model": "dev", "prompt": "x", "seeds": (1,), **values})


def test_a_request_without_a_seed_is_refused():
    with pytest.raises(UsageError, match="no seed was given"):
        Request("dev", "x", ())


def test_a_request_survives_json():
    config = Config(num_inference_steps=3, height=64, sigmas=[1.0, 0.5, 0.25], true_cfg=2.0, noise="torch")
    request = Request("dev", "Füchslein \udcff", (1, 2**64 - 1), config, negative_prompt="", quantize=4)
    assert request_from_json(json.loads(json.dumps(request.to_json()))) == request


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"model": "dev"},
        {"model": "dev", "prompt": "x", "seeds": 5},
        {"model": "dev", "prompt": "x", "seeds": ["1"]},
        {"model": "dev", "prompt": "x", "seeds": [1], "config": {"sharpness": 3}},
        {"model": "dev", "prompt": "x", "seeds": [1], "config": []},
        {"model": "dev", "prompt": "x", "seeds": [1], "config": {"height": "64"}},
        {"model": "dev", "prompt": "x", "seeds": [1], "conditions": [{"condition": "NoSuch"}]},
        {"model": "dev", "prompt": "x", "seeds": [1], "conditions": [{}]},
        {"model": "dev", "prompt": "x", "seeds": [1], "conditions": [{"condition": []}]},
        {"model": "dev", "prompt": "x", "seeds": [1], "conditions": "Fill"},
        {"model": "dev", "prompt": "x", "seeds": [1], "surprise": 1},
        [],
        "dev",
        None,
    ],
    ids=str,
)
def test_json_that_is_no_request_is_refused(value):
    with pytest.raises(UsageError):
        request_from_json(value)


def test_checking_words_imports_neither_mlx_nor_numpy():
    code = "import sys, mflux; mflux.Config(height=64); print({'mlx.core', 'numpy', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
