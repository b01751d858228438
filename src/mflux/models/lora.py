"""Adapters beside the Linears of a network: low-rank, Kronecker, Hadamard, with or without DoRA's magnitude.

An adapted layer computes y = W x + b + sum of scale * delta x, so quantized weights stay as they are and adapters can
be attached, rescaled and detached without touching them.  An adapter may read fewer or more input channels than W: what
W lacks are zero columns (Control LoRAs widen `x_embedder` so).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

Factors = dict[str, mx.array]  # `<layer>.lora_A` and so on: what the TrainedLinears of a network learn


@dataclass(frozen=True)
class LowRank:
    """delta = b a.  a: (r, in), b: (out, r).  Source: LoRA, arXiv 2106.09685."""

    a: mx.array
    b: mx.array

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]

    def delta(self) -> mx.array:
        return self.b @ self.a

    def __call__(self, x: mx.array) -> mx.array:
        return (x @ self.a.T) @ self.b.T

    def rows(self, index: mx.array) -> "LowRank":
        return LowRank(self.a, self.b[index])


@dataclass(frozen=True)
class Dense:
    """delta as rows of a product that is formed when it is needed: Kronecker or Hadamard.  index: rows of it."""

    factors: tuple[mx.array, ...]
    kind: str  # `kron`: (w1, w2); `hadamard`: (w1_a, w1_b, w2_a, w2_b)
    index: mx.array

    @property
    def shape(self) -> tuple[int, int]:
        one, two = self.factors[:2]
        return self.index.size, one.shape[1] * two.shape[1] if self.kind == "kron" else two.shape[1]

    def delta(self) -> mx.array:
        if self.kind == "kron":
            return mx.kron(*self.factors)[self.index]
        w1_a, w1_b, w2_a, w2_b = self.factors
        return (w1_a[self.index] @ w1_b) * (w2_a[self.index] @ w2_b)

    def __call__(self, x: mx.array) -> mx.array:
        if self.kind != "kron":
            return x @ self.delta().T
        w1, w2 = self.factors  # (w1 x w2) x = w1 X w2^T with x folded to X: never formed
        folded = x.reshape(*x.shape[:-1], w1.shape[1], w2.shape[1])
        out = (w1 @ folded) @ w2.T
        return out.reshape(*x.shape[:-1], -1)[..., self.index]

    def rows(self, index: mx.array) -> "Dense":
        return Dense(self.factors, self.kind, self.index[index])


@dataclass(frozen=True)
class Adapter:
    """What one file adds to one Linear.  scale: alpha / rank times what the user asked for.

    bias: (out,), added times `scale`.  magnitude: (out,), DoRA's (arXiv 2402.09353): with V = W + scale * delta, the
    layer becomes magnitude * V / (length of each row of V).
    """

    change: LowRank | Dense
    scale: float
    bias: mx.array | None = None
    magnitude: mx.array | None = None


class AdaptedLinear(nn.Module):
    """A Linear, quantized or not, with adapters beside it."""

    def __init__(self, base: nn.Module, adapters: Sequence[Adapter]):
        super().__init__()
        self.base = base
        self._adapters = list(adapters)
        self._factors = [self._row_factors(adapter) for adapter in self._adapters]

    def __call__(self, x: mx.array) -> mx.array:
        plain = self.base(x[..., : input_width(self.base)])
        out = plain
        for adapter, factor in zip(self._adapters, self._factors, strict=True):
            out = out + addition(self.base, plain, x, adapter, factor)
            if adapter.bias is not None:
                out = out + adapter.scale * adapter.bias
        return out.astype(plain.dtype)

    def weight(self) -> mx.array:
        """The weight with all adapters in it, float32 (out, in)."""
        base = dense_weight(self.base)
        total = padded(base, max(base.shape[1], *(adapter.change.shape[1] for adapter in self._adapters)))
        for adapter, factor in zip(self._adapters, self._factors, strict=True):
            added = padded(adapter.scale * adapter.change.delta(), total.shape[1])
            wide = padded(base, total.shape[1])
            total = total + (added if factor is None else factor[:, None] * (wide + added) - wide)
        return total

    def bias(self) -> mx.array | None:
        """The bias with all adapters in it."""
        additions = [each.scale * each.bias for each in self._adapters if each.bias is not None]
        own = self.base.bias if "bias" in self.base else None
        return sum(additions, own if own is not None else mx.array(0.0)) if additions else own

    def _row_factors(self, adapter: Adapter) -> mx.array | None:
        if adapter.magnitude is None:
            return None
        factor = adapter.magnitude / row_lengths(self.base, adapter)
        mx.eval(factor)
        return factor


class TrainedLinear(nn.Module):
    """A Linear with an adapter in training, whose factors are its only parameters that learn.

    factors: `lora_A` (r, in) and `lora_B` (out, r), for DoRA also `lora_magnitude_vector` (out,); or, for LoKr,
    `lokr_w1`, `lokr_w2_a` and `lokr_w2_b`.  They stay in float32 and are cast in each call, so that the network keeps
    its own type.  The lengths of DoRA's rows count as constants, as in peft.  dropout: where `drop_by` gave a key, that
    share of the adapter's inputs are zeros, and the others are larger to make up for it.
    """

    def __init__(self, base: nn.Module, factors: Mapping[str, mx.array], scale: float, dropout: float = 0.0):
        super().__init__()
        self.base, self._scale, self._names, self.dropout = base, scale, tuple(factors), dropout
        self._key: mx.array | None = None
        self.put(factors)

    def drop_by(self, key: mx.array | None) -> None:
        self._key = key

    @property
    def factors(self) -> dict[str, mx.array]:
        return {name: self[name] for name in self._names}

    def put(self, factors: Mapping[str, mx.array]) -> None:
        for name in self._names:
            self[name] = factors[name]

    def adapter(self, dtype: mx.Dtype) -> Adapter:
        factors = {name: value.astype(dtype) for name, value in self.factors.items()}
        if "lokr_w1" in factors:
            second = factors["lokr_w2_a"] @ factors["lokr_w2_b"]
            rows = factors["lokr_w1"].shape[0] * second.shape[0]
            return Adapter(Dense((factors["lokr_w1"], second), "kron", mx.arange(rows)), self._scale)
        change = LowRank(factors["lora_A"], factors["lora_B"])
        return Adapter(change, self._scale, magnitude=factors.get("lora_magnitude_vector"))

    def __call__(self, x: mx.array) -> mx.array:
        plain, adapter, factor = self.base(x), self.adapter(x.dtype), None
        if adapter.magnitude is not None:
            factor = adapter.magnitude / mx.stop_gradient(row_lengths(self.base, adapter)).astype(x.dtype)
        return plain + addition(self.base, plain, self._seen(x), adapter, factor)

    def _seen(self, x: mx.array) -> mx.array:
        if self._key is None:
            return x
        return x * mx.random.bernoulli(1 - self.dropout, x.shape, self._key).astype(x.dtype) / (1 - self.dropout)


def addition(base: nn.Module, plain: mx.array, x: mx.array, adapter: Adapter, factor: mx.array | None) -> mx.array:
    """What an adapter adds to a Linear's output `plain`; factor: (out,), DoRA's of each row."""
    added = adapter.scale * adapter.change(x[..., : adapter.change.shape[1]])
    if factor is None:
        return added
    unbiased = plain - base.bias if "bias" in base else plain
    return factor * (unbiased + added) - unbiased


def row_lengths(base: nn.Module, adapter: Adapter) -> mx.array:
    """Length of each row of the changed weight (out,), float32."""
    weight = dense_weight(base)
    return mx.linalg.norm(weight + padded(adapter.scale * adapter.change.delta(), weight.shape[1]), axis=1)


def input_width(linear: nn.Module) -> int:
    if isinstance(linear, nn.QuantizedLinear):
        return linear.weight.shape[1] * 32 // linear.bits
    return linear.weight.shape[1]


def dense_weight(linear: nn.Module) -> mx.array:
    """The weight in float32, unpacked if it is quantized."""
    if isinstance(linear, nn.QuantizedLinear):
        weight = mx.dequantize(linear.weight, linear.scales, linear.biases, linear.group_size, linear.bits)
        return weight.astype(mx.float32)
    return linear.weight.astype(mx.float32)


def padded(weight: mx.array, width: int) -> mx.array:
    """(out, in) with zero columns up to `width`."""
    return weight if weight.shape[1] >= width else mx.pad(weight, [(0, 0), (0, width - weight.shape[1])])
