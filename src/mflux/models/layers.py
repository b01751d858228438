"""Layers that the networks share.

Unusual here: on the CPU, MLX evaluates exp, tanh and sigmoid one element at a time, about 50 times slower than a
multiplication, and they dominate FLUX's blocks.  `exp2` builds the exponential from multiplications, additions and bit
shifts, which run at vector speed, to 2e-7; the activations, softmax and attention below use it there.  On a GPU they
are MLX's own functions.
"""

import math
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from mflux.runtime import on_cpu

LOG2_E = math.log2(math.e)
ROUNDING = 12582912.0  # 1.5 * 2^23: adding it leaves the nearest integer in a float32's low bits
# 2^f on [-0.5, 0.5], minimax in relative error (Lawson's iteration in float64), highest power first; error 7.5e-8.
EXP2_POLYNOMIAL = (1.32764602e-3, 9.67554152e-3, 5.55071331e-2, 2.40221197e-1, 6.93146967e-1, 1.00000007)
CHUNK = 1 << 18  # numbers per piece of a long chain of CPU operations: 1 MB, so that each stays in the cache
MAX_PIECES = 256  # beyond it pieces grow: every one is some 25 nodes of a step's graph
CONVOLUTION_CHUNK = 1 << 23  # numbers of a strip's neighbours on the CPU: 32 MB
GROUP_SIZE = 64  # columns of a quantized weight that share a scale
Packed = tuple[mx.array, mx.array, mx.array]  # a quantized weight, its scales, its biases
DEQUANTIZE_FROM_ROWS = 16  # below this many rows MLX's quantized matmul wins on the CPU


@mx.custom_function
def _exp2_float32(x: mx.array) -> mx.array:
    x = mx.clip(x, -126.0, 126.0)
    shifted = x + ROUNDING
    fraction = x - (shifted - ROUNDING)
    power = EXP2_POLYNOMIAL[0] * fraction + EXP2_POLYNOMIAL[1]
    for coefficient in EXP2_POLYNOMIAL[2:]:
        power = power * fraction + coefficient
    exponent = mx.left_shift(mx.view(shifted, mx.int32), 23) + 0x3F800000
    return power * mx.view(exponent, mx.float32)


@_exp2_float32.vjp
def _exp2_gradient(primal, cotangent, output):  # type: ignore[no-untyped-def]
    return cotangent * output * math.log(2)


def exp2(x: mx.array) -> mx.array:
    """2^x for x within +-126 (clamped there), to 2e-7 relative, at the speed of multiplications on a CPU."""
    power: mx.array = _exp2_float32(x.astype(mx.float32))  # type: ignore[assignment]
    return power.astype(x.dtype)


def _by_device(cheap: Callable[[mx.array], mx.array], own: Callable[[mx.array], mx.array]) -> Callable:
    """A function of one array: `cheap` in float32, piece by piece, on the CPU; MLX's `own` on a GPU."""

    def function(x: mx.array) -> mx.array:
        if not on_cpu():
            return own(x)
        wide = x.astype(mx.float32)
        if x.size <= CHUNK:
            return cheap(wide).astype(x.dtype)
        step = piece_size(x.size)
        pieces = mx.split(wide.reshape(-1), range(step, x.size, step))
        return mx.concatenate([cheap(piece) for piece in pieces]).reshape(x.shape).astype(x.dtype)

    return function


def piece_size(total: int) -> int:
    """How many of `total` numbers go through a chain of CPU operations at a time."""
    return max(CHUNK, math.ceil(total / MAX_PIECES))


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
    wide = x.astype(mx.float32)
    power = exp2((wide - mx.stop_gradient(wide.max(axis=-1, keepdims=True))) * LOG2_E)
    return (power / power.sum(axis=-1, keepdims=True)).astype(x.dtype)


def attention(
    queries: mx.array, keys: mx.array, values: mx.array, scale: float, bias: mx.array | None = None
) -> mx.array:
    """Softmax attention.  queries: (B, heads, N, d), keys and values: (B, heads, M, d), bias: broadcast to
    (B, heads, N, M) and added to the scores.  Returns (B, heads, N, d).

    On the CPU heads and rows go piece by piece, see `piece_size`.
    """
    if not on_cpu():
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=bias)
    batch, heads, rows, columns = *queries.shape[:3], keys.shape[2]
    piece = piece_size(batch * heads * rows * columns)
    head_step = max(1, min(heads, piece // (batch * rows * columns)))
    row_step = rows if head_step > 1 else max(1, min(rows, piece // (batch * columns)))

    def part(head: int, row: int) -> mx.array:
        heads_part, rows_part = slice(head, head + head_step), slice(row, row + row_step)
        some = queries[:, heads_part, rows_part] * (scale * LOG2_E)
        scores = some @ keys[:, heads_part].swapaxes(-1, -2)
        if bias is not None:
            wide = mx.broadcast_to(bias, (bias.shape[0], heads, rows, columns))
            scores = scores + wide[:, heads_part, rows_part] * LOG2_E
        power = exp2(scores - mx.stop_gradient(scores.max(axis=-1, keepdims=True)))
        return (power @ values[:, heads_part]) / power.sum(axis=-1, keepdims=True)

    strips = [[part(head, row) for row in range(0, rows, row_step)] for head in range(0, heads, head_step)]
    return joined([joined(strip, axis=2) for strip in strips], axis=1)


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
        batch, height, width, channels = x.shape

        def group_mean(values: mx.array) -> mx.array:
            """Mean over pixels and the channels of a group, back at one number a channel: (B, 1, 1, C)."""
            columns = values.reshape(batch, height * width, channels).sum(axis=1)
            means = columns.reshape(batch, self.groups, -1).mean(axis=-1, keepdims=True) / (height * width)
            wide = mx.broadcast_to(means, (batch, self.groups, channels // self.groups))
            return wide.reshape(batch, 1, 1, channels)

        centred = x.astype(mx.float32)
        centred = centred - group_mean(centred)
        scale = mx.rsqrt(group_mean(mx.square(centred)) + self.eps) * self.weight
        return (centred * scale + self.bias).astype(x.dtype)


class Convolution(nn.Conv2d):
    """A 3 x 3 convolution of (B, H, W, C) that keeps the size.

    On the CPU, MLX copies the nine neighbours of every pixel before it multiplies.  Here the three of a row are copied,
    strip by strip, and the three rows are products of their own that read them in place.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__(inputs, outputs, kernel_size=3, padding=1, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        if not on_cpu():
            return super().__call__(x)
        height, row = x.shape[1], x.shape[0] * x.shape[2] * x.shape[3] * 3
        step = max(1, CONVOLUTION_CHUNK // row)
        padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        out = joined([self._rows(padded[:, top : top + step + 2]) for top in range(0, height, step)], axis=1)
        return out + self.bias if "bias" in self else out

    def _rows(self, padded: mx.array) -> mx.array:
        """(B, H + 2, W + 2, C) -> (B, H, W, outputs)."""
        batch, height, width = padded.shape[0], padded.shape[1] - 2, padded.shape[2] - 2
        beside = mx.concatenate([padded[:, :, column : column + width] for column in range(3)], axis=-1)
        weights = self.weight.reshape(self.weight.shape[0], 3, -1)
        products = [
            beside[:, row : row + height].reshape(batch, height * width, -1) @ weights[:, row].T for row in range(3)
        ]
        return sum(products[1:], products[0]).reshape(batch, height, width, -1)


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
