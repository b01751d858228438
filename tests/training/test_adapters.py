"""Adapters in training keep the network's own type and weights."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mflux.models.lora import TrainedLinear
from mflux.training.adapters import attach, drawn, factors_of
from mflux.training.loss import clipped, put_factors, tree_sum
from mflux.training.spec import Target
from mflux.weights.load import quantize_module

KINDS = ("lora", "dora", "lokr")
RANK, SCALE = 4, 1.5


def layer_of(base, kind):
    return TrainedLinear(base, drawn(base, Target("layer", RANK, SCALE, kind), 0), SCALE)


def gradients(layer, x):
    def loss(factors):
        layer.put(factors)
        return mx.square(layer(x).astype(mx.float32) - 1).mean()

    factors = {name: value + 0.01 for name, value in layer.factors.items()}
    found = mx.grad(loss)(factors)
    layer.put(factors)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_half_precision_network_stays_one(kind):
    base = nn.Linear(64, 128)
    base.set_dtype(mx.bfloat16)
    layer, x = layer_of(base, kind), mx.random.normal((1, 5, 64), key=mx.random.key(0)).astype(mx.bfloat16)
    assert layer(x).dtype == mx.bfloat16, "one float32 would make the rest of the network float32"
    found = gradients(layer, x)
    assert {value.dtype for value in (*layer.factors.values(), *found.values())} == {mx.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_layer_is_trained_through_and_never_touched(kind):
    base = nn.Linear(128, 64)
    packed = quantize_module(base, 8)
    before = {name: mx.array(value) for name, value in packed.parameters().items()}
    x = mx.random.normal((1, 32, 128), key=mx.random.key(0))
    own, wanted = gradients(layer_of(packed, kind), x), gradients(layer_of(base, kind), x)
    for name, value in wanted.items():
        cosine = (value * own[name]).sum() / mx.sqrt(mx.square(value).sum() * mx.square(own[name]).sum())
        assert cosine.item() > 0.98
    assert all(mx.array_equal(value, packed[name]) for name, value in before.items())


def test_only_factors_are_trainable():
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    layers = attach(network, [Target("layers.1", 2, 1.0)], 0)
    assert set(factors_of(layers)) == {"layers.1.lora_A", "layers.1.lora_B"}
    put_factors(layers, {name: value + 1 for name, value in factors_of(layers).items()})
    assert layers["layers.1"].lora_B.min().item() == 1


@pytest.mark.parametrize("count", range(1, 10))
def test_a_sum_is_that_of_its_halves(count):
    parts = [{"x": mx.array(np.random.default_rng(n).standard_normal(50).astype(np.float32))} for n in range(count)]
    whole = tree_sum(parts, lambda part: part)["x"]
    np.testing.assert_allclose(whole, np.sum([part["x"] for part in parts], axis=0), atol=1e-5)
    if count > 1:
        halves = [tree_sum(some, lambda part: part)["x"] for some in (parts[: count // 2], parts[count // 2 :])]
        assert mx.array_equal(halves[0] + halves[1], whole)


def test_the_norm_does_not_depend_on_how_an_array_lies_in_memory():
    array = mx.random.normal((300, 70), key=mx.random.key(0))
    turned = mx.contiguous(array.T).T
    assert clipped({"x": array}, 1.0)[1].item() == clipped({"x": turned}, 1.0)[1].item()
    assert clipped({"x": array}, None)[0]["x"] is array
