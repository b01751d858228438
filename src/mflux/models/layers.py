"""Layers that the networks share.

Unusual here: on the CPU, MLX evaluates exp, tanh and sigmoid one element at a time, about 50 times slower than a
multiplication, and they dominate FLUX's blocks.  `exp2` builds the exponential from multiplications, additions and bit
shifts, which run at vector speed, to 2e-7; the activations, softmax and attention below use it there.  On a GPU they
are MLX's own functions.
"""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import cache, partial
from itertools import pairwise, product
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mflux.runtime import cores, on_cpu

LOG2_E = math.log2(math.e)
# 1.5 * 2^23 + 127: adding it leaves the nearest integer in a float32's low bits, with the bias of an exponent.
ROUNDING = 12583039.0
# 2^f on [-0.5, 0.5], minimax in relative error (Lawson's iteration in float64), highest power first; error 7.5e-8.
EXP2_POLYNOMIAL = (1.32764602e-3, 9.67554152e-3, 5.55071331e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007)
MONIC = tuple(coefficient / EXP2_POLYNOMIAL[0] for coefficient in EXP2_POLYNOMIAL)
CHUNK = 1 << 18  # numbers per piece of a long chain of CPU operations: 1 MB, so that each stays in the cache
PRODUCT = 1 << 22  # numbers: attention scores of one product
SUMS = 16  # columns: as wide as a product with one more is quick
MAX_PIECES = 256  # beyond it pieces grow: every one is some 25 nodes of a step's graph
STRIP, STRIP_ROWS, STRIP_PIXELS = 1 << 16, 8, 2048  # of a picture at least so much goes through a chain together
LONE_STRIP = 1 << 20  # numbers, where there is one core for them
MINIMAL_TAPS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))  # three taps as four factors, along one axis
MINIMAL_FROM_CHANNELS = 128  # of fewer, the sums before and after the products cost more than they save
GROUP_SIZE = 64  # columns of a quantized weight that share a scale
Piece = TypeVar("Piece")
Packed = tuple[mx.array, mx.array, mx.array]  # a quantized weight, its scales, its biases
DEQUANTIZE_FROM_ROWS = 16  # below this many rows MLX's quantized matmul wins on the CPU


@mx.custom_function
def _exp2_float32(x: mx.array) -> mx.array:
    x = mx.clip(x, -126.0, 126.0)
    shifted = x + ROUNDING
    fraction = x - (shifted - ROUNDING)
    return _power(EXP2_POLYNOMIAL[0] * fraction + EXP2_POLYNOMIAL[1], fraction, shifted, EXP2_POLYNOMIAL[2:])


@mx.custom_function
def _row_powers(scores: mx.array) -> mx.array:
    """2^(scores - the largest of their row), times a number of each row below 2: a softmax before it divides.

    The largest is rounded, so that one addition both subtracts it and rounds; the polynomial is divided by its first
    coefficient, 2^-10 but for a factor of 0.74, so that it has one multiplication less.
    """
    largest = mx.round(scores.max(axis=-1, keepdims=True)) + 10.0
    scores = mx.maximum(scores, largest - 126.0)
    shift = ROUNDING - largest
    shifted = scores + shift
    fraction = scores - (shifted - shift)
    return _power(fraction + MONIC[1], fraction, shifted, MONIC[2:])


def _power(power: mx.array, fraction: mx.array, shifted: mx.array, coefficients: Iterable[float]) -> mx.array:
    """Horner's rule from `power` on, times 2 to the integer that rounding left in `shifted`."""
    for coefficient in coefficients:
        power = power * fraction + coefficient
    return power * mx.view(mx.left_shift(mx.view(shifted, mx.int32), 23), mx.float32)


def _gradient(primal, cotangent, output):  # type: ignore[no-untyped-def]
    return cotangent * output * math.log(2)


_exp2_float32.vjp(_gradient)
_row_powers.vjp(_gradient)


def exp2(x: mx.array) -> mx.array:
    """2^x for x within +-126 (clamped there), to 2e-7 relative, at the speed of multiplications on a CPU."""
    power: mx.array = _exp2_float32(x.astype(mx.float32))  # type: ignore[assignment]
    return power.astype(x.dtype)


def row_powers(scores: mx.array) -> mx.array:
    """Softmax over the last axis of scores in powers of two, but for its division, in float32 inside."""
    powers: mx.array = _row_powers(scores.astype(mx.float32))  # type: ignore[assignment]
    return powers.astype(scores.dtype)


def _by_device(
    cheap: Callable[[mx.array], mx.array], own: Callable[[mx.array], mx.array]
) -> Callable[[mx.array], mx.array]:
    """A function of one array: `cheap` in float32, piece by piece, on the CPU; MLX's `own` on a GPU."""

    def function(x: mx.array) -> mx.array:
        if not on_cpu():
            return own(x)
        wide = x.astype(mx.float32)
        if x.size <= CHUNK:
            return cheap(wide).astype(x.dtype)
        step = piece_size(x.size)
        pieces = mx.split(wide.reshape(-1), range(step, x.size, step))
        return mx.concatenate(spread(cheap, pieces)).reshape(x.shape).astype(x.dtype)

    return function


def spread(function: Callable[[Piece], mx.array], pieces: Iterable[Piece]) -> list[mx.array]:
    """`function` of each piece, on all cores of a CPU: MLX runs the operations of a stream on one.

    What a piece spreads itself stays on its core, unless it is the only one.
    """
    pieces, out = list(pieces), list[mx.array]()
    if _spreading or len(pieces) == 1:
        return [function(piece) for piece in pieces]
    _spreading.append(True)
    try:
        for number, piece in enumerate(pieces):
            place = number % cores()
            with mx.stream(more_streams()[place - 1]) if place else nullcontext():
                out.append(function(piece))
    finally:
        _spreading.pop()
    return out


_spreading: list[bool] = []  # not empty inside of `spread`


@cache
def more_streams() -> list[mx.ThreadLocalStream]:
    return [mx.new_thread_local_stream(mx.cpu) for _ in range(cores() - 1)]


def piece_size(total: int) -> int:
    """How many of `total` numbers go through a chain of CPU operations at a time: as many pieces for each core."""
    rounds = math.ceil(min(MAX_PIECES, total / CHUNK) / cores())
    return math.ceil(total / (rounds * cores()))


GELU_SLOPE = math.sqrt(2 / math.pi)
exp = _by_device(lambda x: exp2(x * LOG2_E), mx.exp)
sigmoid = _by_device(lambda x: 1.0 / (1.0 + exp2(x * -LOG2_E)), mx.sigmoid)
tanh = _by_device(lambda x: 2.0 / (1.0 + exp2(x * (-2 * LOG2_E))) - 1.0, mx.tanh)
silu = _by_device(lambda x: x / (1.0 + exp2(x * -LOG2_E)), nn.silu)
quick_gelu = _by_device(lambda x: x / (1.0 + exp2(x * (-1.702 * LOG2_E))), lambda x: x * mx.sigmoid(1.702 * x))
# 0.5 x (1 + tanh(s (x + 0.044715 x^3))) written as x * sigmoid(2 s (x + 0.044715 x^3)): one exponential, no tanh.
gelu_tanh = _by_device(
    lambda x: x / (1.0 + exp2(x * (x * x * (-2 * LOG2_E * GELU_SLOPE * 0.044715) - 2 * LOG2_E * GELU_SLOPE))),
    nn.gelu_approx,
)


def softmax(x: mx.array) -> mx.array:
    """Softmax over the last axis, in float32 inside."""
    if not on_cpu():
        return mx.softmax(x, axis=-1, precise=True)
    powers = row_powers(x.astype(mx.float32) * LOG2_E)
    return (powers / powers.sum(axis=-1, keepdims=True)).astype(x.dtype)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, bias: mx.array | None = None
) -> mx.array:
    """Softmax attention.  queries: (B, heads, N, d), keys and values: (B, heads, M, d), bias: broadcast to
    (B, heads, N, M) and added to the scores.  Returns (B, heads, N, d).

    On the CPU heads and rows go piece by piece.
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=bias)
    batch, heads, rows, columns = *queries.shape[:3], keys.shape[2]
    if rows * columns <= CHUNK:  # each core takes heads of its own
        piece = piece_size(batch * heads * rows * columns)
        head_step, row_step, strips = max(1, min(heads, piece // (batch * rows * columns))), rows, 1
    else:  # the products are BLAS' to share; between them each core takes a strip
        head_step, row_step, strips = 1, max(1, min(rows, PRODUCT // (batch * columns))), cores()
    size = values.shape[-1]
    ones = mx.ones((*values.shape[:3], SUMS), values.dtype)
    values = mx.concatenate([values, ones], axis=-1)  # the sum of a row comes out beside it, quicker than from `sum`

    def part(place: tuple[int, int]) -> mx.array:
        head, row = place
        heads_part, rows_part = slice(head, head + head_step), slice(row, row + row_step)
        some = queries[:, heads_part, rows_part] * (scale * LOG2_E)
        scores = some @ keys[:, heads_part].swapaxes(-1, -2)
        if bias is not None:
            wide = mx.broadcast_to(bias, (bias.shape[0], heads, rows, columns))
            scores = scores + wide[:, heads_part, rows_part] * LOG2_E
        step = math.ceil(scores.shape[2] / strips)
        powers = spread(row_powers, mx.split(scores, range(step, scores.shape[2], step), axis=2))
        weighed = [some @ values[:, heads_part] for some in powers]
        return joined([some[..., :size] / some[..., size : size + 1] for some in weighed], axis=2)

    in_rows = range(0, rows, row_step)
    places = list(product(range(0, heads, head_step), in_rows))
    parts = spread(part, places) if strips == 1 else [part(place) for place in places]
    bands = [parts[first : first + len(in_rows)] for first in range(0, len(parts), len(in_rows))]
    return joined([joined(band, axis=2) for band in bands], axis=1)


def joined(parts: list[mx.array], axis: int) -> mx.array:
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=axis)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def merge_heads(x: mx.array) -> mx.array:
    """(B, heads, N, d) -> (B, N, heads * d)."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": nn.gelu, "gelu_new": gelu_tanh, "gelu_pytorch_tanh": gelu_tanh}


class LayerSizes:
    """What a config says about the layers of CLIP's towers, and SigLIP's."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    layer_norm_eps: float
    hidden_act: str


class ClipAttention(nn.Module):
    def __init__(self, config: LayerSizes):
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        q, k, v = (split_heads(linear(x), self.heads) for linear in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(merge_heads(attention(q, k, v, q.shape[-1] ** -0.5, mask)))


class ClipFeedForward(nn.Module):
    def __init__(self, config: LayerSizes):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = ACTIVATIONS[config.hidden_act]

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(self.activation(self.fc1(x)))


class ClipLayer(nn.Module):
    def __init__(self, config: LayerSizes):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = ClipAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ClipFeedForward(config)

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        return x + self.mlp(self.layer_norm2(x))


class ClipLayers(nn.Module):
    """A stack of pre-norm layers, under the names of transformers' files."""

    def __init__(self, config: LayerSizes):
        super().__init__()
        self.layers = [ClipLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: mx.array, mask: mx.array | None = None) -> mx.array:
        for layer in self.layers:
            x = layer(x, mask)
        return x


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a weight, in float32 inside."""

    def __init__(self, size: int, eps: float = 1e-6):
        super().__init__()
        self.weight = mx.ones((size,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, self.weight, self.eps)


class GroupNorm(nn.Module):
    """Group norm of (B, H, W, C) as torch computes it; statistics in float32."""

    def __init__(self, groups: int, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight = mx.ones((channels,))
        self.bias = mx.zeros((channels,))
        self.groups, self.eps = groups, eps

    def __call__(self, x: mx.array) -> mx.array:
        scale, shift = self.affine(x)
        return (x.astype(mx.float32) * scale + shift).astype(x.dtype)

    def affine(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """(B, 1, 1, C) each: the norm of x is x * scale + shift."""
        batch, channels = x.shape[0], x.shape[3]
        strips = strips_of(x) if on_cpu() else [x]
        counts = mx.array([strip.shape[1] * strip.shape[2] for strip in strips])[:, None, None]
        sums = mx.stack(spread(moments_of_pixels, strips))  # (strips, 2, B, C)
        means, squares = sums[:, 0], sums[:, 1]
        pixels = x.shape[1] * x.shape[2]

        def over_groups(columns: mx.array) -> mx.array:
            """Mean over a group of (B, C), back at one number a channel."""
            grouped = columns.reshape(batch, self.groups, -1)
            return mx.broadcast_to(grouped.mean(axis=-1, keepdims=True), grouped.shape).reshape(batch, channels)

        mean = over_groups((means * counts).sum(axis=0)) / pixels
        variance = over_groups((squares + counts * mx.square(means - mean)).sum(axis=0)) / pixels
        scale = mx.rsqrt(variance + self.eps) * self.weight
        shape = (batch, 1, 1, channels)
        return scale.reshape(shape), (self.bias - mean * scale).reshape(shape)


def moments_of_pixels(x: mx.array) -> mx.array:
    """(B, H, W, C) -> (2, B, C), float32: the mean over pixels, and the sum of squared distances from it."""
    columns = x.astype(mx.float32).reshape(x.shape[0], -1, x.shape[3])
    mean = columns.sum(axis=1, keepdims=True) / columns.shape[1]
    return mx.stack([mean[:, 0], mx.square(columns - mean).sum(axis=1)])


def strips_of(x: mx.array) -> list[mx.array]:
    """Rows of (B, H, W, C), a few at a time."""
    step = strip_rows(x)
    return [x[:, top : top + step] for top in range(0, x.shape[1], step)]


def strip_rows(x: mx.array) -> int:
    """How many rows of (B, H, W, C) go through a chain of CPU operations at a time."""
    numbers = LONE_STRIP if _spreading or cores() == 1 else STRIP
    return max(STRIP_ROWS, STRIP_PIXELS // x.shape[2], numbers * x.shape[1] // x.size)


class PointwiseConvolution(nn.Conv2d):
    """A 1 x 1 convolution of (B, H, W, C): one product."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, kernel_size=1)

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self.weight.reshape(self.weight.shape[0], -1).T + self.bias


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution of (B, H, W, C) that keeps the size.

    On the CPU, MLX copies the nine neighbours of every pixel before it multiplies.  Here a picture goes strip by strip.
    Of many channels, four pixels share 16 products in place of 36, see `minimal_products`.  Of few, the three
    neighbours of a row are copied, and the three rows are products of their own that read them in place.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, kernel_size=3, padding=1, bias=bias)

    def __call__(self, x: mx.array, before: Callable[[mx.array], mx.array] | None = None) -> mx.array:
        """The convolution of x, or of `before(x)`: a function of each number alone, computed strip by strip too."""
        if not on_cpu():
            return super().__call__(before(x) if before else x)
        if self.weight.dtype == mx.float32 and min(self.weight.shape[0], self.weight.shape[3]) >= MINIMAL_FROM_CHANNELS:
            bias = self.bias if "bias" in self else mx.zeros(self.weight.shape[:1])
            return in_strips(partial(minimal_products, minimal_factors(self.weight), bias), x, before)
        factors = as_factors(self.weight, 3)

        def rows(padded: mx.array) -> mx.array:
            height, width = padded.shape[1] - 2, padded.shape[2] - 2
            beside = mx.concatenate([padded[:, :, column : column + width] for column in range(3)], axis=-1)
            return self._products([beside[:, row : row + height] for row in range(3)], factors)

        return in_strips(rows, x, before)

    def of_doubled(self, x: mx.array) -> mx.array:
        """The convolution of x with each pixel repeated as 2 x 2.

        Of nine neighbours there only four are different pixels: each parity of rows and columns is a convolution of
        2 x 2, whose weights are sums.
        """
        if not on_cpu():
            return super().__call__(mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2))
        factors = [[as_factors(both, 2) for both in halve(half, axis=2)] for half in halve(self.weight, axis=1)]

        def rows(padded: mx.array) -> mx.array:
            batch, height, width = padded.shape[0], padded.shape[1] - 2, padded.shape[2] - 2
            parts = [padded[:, :, column : column + width] for column in range(3)]
            beside = [mx.concatenate(parts[parity : parity + 2], axis=-1) for parity in (0, 1)]
            out = [
                self._products([beside[right][:, row : row + height] for row in (down, down + 1)], factors[down][right])
                for down in (0, 1)
                for right in (0, 1)
            ]
            grid = mx.stack(out, axis=3).reshape(batch, height, width, 2, 2, -1)
            return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)

        return in_strips(rows, x)

    def halved(self, x: mx.array) -> mx.array:
        """Every other output of the convolution, from a picture that goes on by one row and one column of zeros."""
        if not on_cpu():
            return mx.conv2d(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), self.weight, stride=2) + self.bias
        factors = as_factors(self.weight, 3)
        height, width, step = x.shape[1] // 2, x.shape[2] // 2, max(STRIP_ROWS, strip_rows(x) // 2)

        def strip(top: int) -> mx.array:
            count = min(step, height - top)
            part = x[:, 2 * top : 2 * (top + count) + 1]
            padded = mx.pad(part, [(0, 0), (0, 2 * count + 1 - part.shape[1]), (0, 1), (0, 0)])
            beside = mx.concatenate([padded[:, :, column : column + 2 * width : 2] for column in range(3)], axis=-1)
            return self._products([beside[:, row : row + 2 * count : 2] for row in range(3)], factors)

        return joined(spread(strip, range(0, height, step)), axis=1)

    def _products(self, rows: list[mx.array], factors: list[mx.array]) -> mx.array:
        """Sum of rows[k] (B, H, W, K) @ factors[k] (K, outputs), and the bias: (B, H, W, outputs)."""
        out, *others = [each.reshape(-1, each.shape[-1]) for each in rows]
        out = out @ factors[0]
        out = out + self.bias if "bias" in self else out
        for other, factor in zip(others, factors[1:], strict=True):
            out = mx.addmm(out, other, factor)
        return out.reshape(*rows[0].shape[:3], -1)


def halve(weight: mx.array, axis: int) -> tuple[mx.array, mx.array]:
    """What three taps over pixels that are repeated come to: two taps for even places, two for odd ones."""
    first, second, third = mx.split(weight, 3, axis=axis)
    return mx.concatenate([first, second + third], axis=axis), mx.concatenate([first + second, third], axis=axis)


def as_factors(weight: mx.array, taps: int) -> list[mx.array]:
    """(outputs, taps, columns, C) as `taps` factors (columns * C, outputs)."""
    return [each.reshape(weight.shape[0], -1).T for each in mx.split(weight, taps, axis=1)]


def minimal_factors(weight: mx.array) -> mx.array:
    """(outputs, 3, 3, C) as what `minimal_products` multiplies by, (4, 4, outputs, C)."""
    taps = weight.transpose(1, 2, 0, 3).reshape(9, -1)
    factors = mx.array(np.kron(MINIMAL_TAPS, MINIMAL_TAPS), mx.float32) @ taps
    return factors.reshape(4, 4, weight.shape[0], -1)


def minimal_products(factors: mx.array, bias: mx.array, padded: mx.array) -> mx.array:
    """A 3 x 3 convolution of (B, H + 2, W + 2, C) with 16 products for each 2 x 2 outputs: (B, H, W, outputs).

    Its rounding errors are those of float32, a few times.  Source: Lavin and Gray, "Fast Algorithms for Convolutional
    Neural Networks" (2015), F(2 x 2, 3 x 3).
    """
    batch, channels = padded.shape[0], padded.shape[3]
    height, width = padded.shape[1] - 2, padded.shape[2] - 2
    more_rows, more_columns = height % 2, width % 2
    padded = mx.pad(padded, [(0, 0), (0, more_rows), (0, more_columns), (0, 0)])
    columns = []
    for column, part in enumerate(four_sums(padded, axis=2)):
        tiles = [tile.reshape(-1, channels) for tile in four_sums(part, axis=1)]
        products = [tile @ factors[row, column].T for row, tile in enumerate(tiles)]
        products[1] = products[1] + bias if column == 1 else products[1]  # once in each of the four outputs
        columns.append(two_sums(*products))
    grid = mx.stack([each for row in zip(*columns, strict=True) for each in two_sums(*row)])
    rows, across = height + more_rows, width + more_columns
    grid = grid.reshape(2, 2, batch, rows // 2, across // 2, -1).transpose(2, 3, 0, 4, 1, 5)
    return grid.reshape(batch, rows, across, -1)[:, :height, :width]


def four_sums(x: mx.array, axis: int) -> list[mx.array]:
    """Of every four places along an axis, two apart, what the factors multiply: 2 n + 2 places -> four arrays of n."""
    many, before = x.shape[axis] - 2, (slice(None),) * axis
    a, b, c, d = (x[(*before, slice(first, first + many, 2))] for first in range(4))
    return [a - c, b + c, c - b, b - d]


def two_sums(a: mx.array, b: mx.array, c: mx.array, d: mx.array) -> tuple[mx.array, mx.array]:
    """Two neighbouring outputs of what became of `four_sums`."""
    return a + b + c, b - c - d


def in_strips(
    function: Callable[[mx.array], mx.array], x: mx.array, before: Callable[[mx.array], mx.array] | None = None
) -> mx.array:
    """`function` of strips of rows of `before(x)`, with one pixel more on each side: zero outside the picture."""
    height, step = x.shape[1], strip_rows(x)

    def strip(rows: tuple[int, int]) -> mx.array:
        first, last = max(0, rows[0] - 1), min(height, rows[1] + 1)
        part = before(x[:, first:last]) if before else x[:, first:last]
        return function(mx.pad(part, [(0, 0), (first - rows[0] + 1, rows[1] + 1 - last), (1, 1), (0, 0)]))

    return joined(spread(strip, pairwise([*range(0, height, step), height])), axis=1)


class QuantizedLinear(nn.QuantizedLinear):
    """A Linear of packed weights; their scales may be of another float type than the activations.

    Where that is faster, for many rows on a CPU, the weight is unpacked and multiplied by BLAS.
    """

    def __init__(self, packed: Packed, bits: int, bias: mx.array | None):
        nn.Module.__init__(self)
        self.weight, self.scales, self.biases = packed
        self.group_size, self.bits, self.mode = GROUP_SIZE, bits, "affine"
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        scales, biases = self.scales.astype(x.dtype), self["biases"].astype(x.dtype)
        if not on_cpu() or x.size // x.shape[-1] < DEQUANTIZE_FROM_ROWS:
            out = mx.quantized_matmul(x, self.weight, scales, biases, True, self.group_size, self.bits)
        else:
            out = x @ mx.dequantize(self.weight, scales, biases, self.group_size, self.bits).T
        return out + self.bias if "bias" in self else out


class QuantizedEmbedding(nn.QuantizedEmbedding):
    """An Embedding of packed weights that gives its rows in `dtype`."""

    def __init__(self, packed: Packed, bits: int, dtype: mx.Dtype):
        nn.Module.__init__(self)
        self.weight, self.scales, self.biases = packed
        self.group_size, self.bits, self.mode, self._dtype = GROUP_SIZE, bits, "affine", dtype

    def __call__(self, ids: mx.array) -> mx.array:
        scales, biases = (each[ids].astype(self._dtype) for each in (self["scales"], self["biases"]))
        return mx.dequantize(self.weight[ids], scales, biases, self.group_size, self.bits)
