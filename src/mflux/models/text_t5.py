"""T5 v1.1's encoder: its states are FLUX.1's text tokens.

No mask: padding attends and is attended to, so the padded length is part of the result.  Attention scores are not
scaled.  Module names are those of transformers' T5EncoderModel files.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mflux.models.layers import RMSNorm, attention, gelu_tanh, merge_heads, split_heads


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder; field names are those of its config.json."""

    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6


def relative_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query, key) pair: (length, length) int32, key minus query, both directions.

    Half of the buckets for each direction; half of those exact, the rest logarithmic up to max_distance (in float32).
    Source: transformers' T5Attention._relative_position_bucket.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    near = np.abs(distance)
    ratio = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        np.log(max_distance / exact)
    )
    far = np.minimum(exact + (ratio * np.float32(half - exact)).astype(np.int32), half - 1)
    return (np.where(distance > 0, half, 0) + np.where(near < exact, near, far)).astype(np.int32)


class T5SelfAttention(nn.Module):
    def __init__(self, config: T5Config, with_bias: bool):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        if with_bias:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, config.num_heads)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        q, k, v = (split_heads(linear(x), self.heads) for linear in (self.q, self.k, self.v))
        return self.o(merge_heads(attention(q, k, v, 1.0, bias)))


class T5AttentionLayer(nn.Module):
    def __init__(self, config: T5Config, with_bias: bool):
        super().__init__()
        self.SelfAttention = T5SelfAttention(config, with_bias)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class T5GatedFeedForward(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class T5FeedForwardLayer(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.DenseReluDense = T5GatedFeedForward(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class T5Block(nn.Module):
    def __init__(self, config: T5Config, with_bias: bool):
        super().__init__()
        self.layer = [T5AttentionLayer(config, with_bias), T5FeedForwardLayer(config)]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        attending, feeding = self.layer
        x = x + attending.SelfAttention(attending.layer_norm(x), bias)
        return x + feeding.DenseReluDense(feeding.layer_norm(x))


class T5Stack(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.block = [T5Block(config, with_bias=index == 0) for index in range(config.num_layers)]
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)


class T5Encoder(nn.Module):
    """T5 v1.1's encoder stack."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    def __call__(self, ids: mx.array) -> mx.array:
        """ids: (B, T) int32, padded.  Returns the states after the final norm, (B, T, d_model)."""
        config, blocks = self.config, self.encoder.block
        buckets = relative_buckets(
            ids.shape[1], config.relative_attention_num_buckets, config.relative_attention_max_distance
        )
        table = blocks[0].layer[0].SelfAttention.relative_attention_bias
        bias = table(mx.array(buckets)).transpose(2, 0, 1)[None]
        x = self.shared(ids)
        for block in blocks:
            x = block(x, bias)
        return self.encoder.final_layer_norm(x)
