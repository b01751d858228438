"""Are the cheap CPU functions the functions they stand for, with their gradients?"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

import mflux  # noqa: F401
from mflux.models import layers

WIDE = mx.array(np.concatenate([np.linspace(-30, 30, 9001), [-200, 200, 0.0]]).astype(np.float32))
PAIRS = [
    (layers.exp, mx.exp, 3e-7),  # relative; measured 2.4e-7
    (layers.sigmoid, mx.sigmoid, 3e-7),
    (layers.tanh, mx.tanh, 3e-7),
    (layers.silu, nn.silu, 3e-7),
    (layers.gelu_tanh, nn.gelu_approx, 6e-7),
    (layers.quick_gelu, lambda x: x * mx.sigmoid(1.702 * x), 3e-7),
]


@pytest.mark.parametrize(("cheap", "exact", "tolerance"), PAIRS)
def test_the_cheap_function_is_the_exact_one(cheap, exact, tolerance):
    x = mx.clip(WIDE, -80, 80)
    wanted = exact(x)
    size = mx.abs(wanted) if exact is mx.exp else mx.maximum(mx.abs(wanted), 1)
    assert float((mx.abs(cheap(x) - wanted) / size).max()) <= tolerance


@pytest.mark.parametrize(("cheap", "exact", "tolerance"), PAIRS)
def test_its_gradient_is_the_exact_one_s(cheap, exact, tolerance):
    x = mx.clip(WIDE, -15, 15)
    ours, theirs = (mx.grad(lambda x, f=f: f(x).sum())(x) for f in (cheap, exact))
    assert float((mx.abs(ours - theirs) / (1 + mx.abs(theirs))).max()) <= 2e-6


@pytest.mark.parametrize("cheap", [cheap for cheap, _, _ in PAIRS[1:]])
def test_extreme_inputs_give_no_nan(cheap):
    assert not mx.isnan(cheap(mx.array([-1e30, -500.0, 500.0, 1e30]))).any()


def test_pieces_make_the_whole():
    x = mx.random.normal((3, layers.CHUNK // 2 + 7), key=mx.random.key(1))
    rows = mx.stack([layers.silu(row) for row in x])
    assert x.size > layers.CHUNK
    assert mx.array_equal(layers.silu(x), rows)
    slope = mx.grad(lambda x: layers.silu(x).sum())
    assert mx.array_equal(slope(x), mx.stack([slope(row) for row in x]))


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_no_function_changes_the_dtype(dtype):
    x = mx.ones((2, 8), dtype)
    assert {layers.silu(x).dtype, layers.gelu_tanh(x).dtype, layers.softmax(x).dtype} == {dtype}


def test_softmax_rows_add_up_to_one_and_shift_freely():
    x = mx.random.normal((5, 33), key=mx.random.key(0)) * 20
    assert float(mx.abs(layers.softmax(x).sum(axis=-1) - 1).max()) < 1e-6
    assert float(mx.abs(layers.softmax(x + 500) - layers.softmax(x)).max()) < 1e-4
    assert float(mx.abs(layers.softmax(x) - mx.softmax(x, axis=-1)).max()) < 1e-6


def test_softmax_of_masked_and_of_long_half_precision_rows():
    masked = mx.where(mx.arange(40) == 3, 17.3, -1e9)[None]
    assert float(mx.abs(layers.softmax(masked) - (mx.arange(40) == 3)).max()) < 1e-34
    even = layers.softmax(mx.full((1, 4096), 300.0, mx.float16))
    assert mx.array_equal(even, mx.full((1, 4096), 1 / 4096, mx.float16))


@pytest.mark.parametrize(("chunk", "largest"), [(1 << 18, 1 << 24), (4000, 1 << 24), (300, 1 << 24), (300, 500)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_is_the_textbook_s_however_it_is_cut(monkeypatch, chunk, largest, with_bias):
    monkeypatch.setattr(layers, "CHUNK", chunk)
    monkeypatch.setattr(layers, "PRODUCT", largest)
    monkeypatch.setattr(layers, "MAX_PIECES", 10**9)
    q, k, v = (mx.random.normal((2, 3, n, 8), key=mx.random.key(i)) for i, n in enumerate((20, 31, 31)))
    bias = mx.random.normal((1, 3, 20, 31), key=mx.random.key(9)) if with_bias else None
    scores = q @ k.swapaxes(-1, -2) * 0.3 + (bias if with_bias else 0)
    wanted = mx.softmax(scores, axis=-1) @ v
    assert float(mx.abs(layers.attention(q, k, v, 0.3, bias) - wanted).max()) < 2e-6


def test_group_norm_is_exact_also_far_from_zero():
    x = np.random.default_rng(2).standard_normal((2, 5, 7, 12)) * 3 + 100
    norm = layers.GroupNorm(4, 12)
    norm.weight, norm.bias = (mx.random.normal((12,), key=mx.random.key(i)) for i in (3, 4))
    groups = x.astype(np.float32).astype(np.float64).reshape(2, 35, 4, 3)
    mean, variance = groups.mean(axis=(1, 3), keepdims=True), groups.var(axis=(1, 3), keepdims=True)
    wanted = ((groups - mean) / np.sqrt(variance + 1e-6)).reshape(x.shape) * np.array(norm.weight) + np.array(norm.bias)
    assert np.abs(np.array(norm(mx.array(x.astype(np.float32)))) - wanted).max() < 3e-5


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 8])
@pytest.mark.parametrize("rows", [1, 64])
def test_a_quantized_linear_multiplies_by_its_unpacked_weight(bits, rows):
    linear = nn.Linear(128, 96)
    packed = layers.QuantizedLinear(tuple(mx.quantize(linear.weight, 64, bits)), bits, linear.bias)
    weight = mx.dequantize(packed.weight, packed.scales, packed.biases, 64, bits)
    x = mx.random.normal((1, rows, 128), key=mx.random.key(5))
    assert float(mx.abs(packed(x) - (x @ weight.T + linear.bias)).max()) < 1e-5
    assert float(mx.abs(weight - linear.weight).max()) < 0.2 / 2**bits
