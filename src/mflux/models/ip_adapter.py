"""IP-Adapter for FLUX.1: each joint block's image tokens also attend to a picture's few tokens.

Source: IP-Adapter, arXiv 2308.06721, in XLabs' form for FLUX.1: keys without norm or position, queries before rope, the
result added after the feed-forward; single blocks are untouched.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mflux.models.layers import attention, merge_heads, split_heads


@dataclass(frozen=True)
class IPAdapterConfig:
    """Sizes of an adapter, which follow from its tensors."""

    image_width: int = 768  # of a picture's vector
    tokens: int = 4  # that one picture becomes
    token_width: int = 4096
    width: int = 3072  # of the transformer
    blocks: int = 19


class ImageProjection(nn.Module):
    """A picture's vector to tokens."""

    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.proj = nn.Linear(config.image_width, config.tokens * config.token_width)
        self.norm = nn.LayerNorm(config.token_width, eps=1e-5)


class BlockProjection(nn.Module):
    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.to_k_ip, self.to_v_ip = (nn.Linear(config.token_width, config.width) for _ in range(2))


class IPAdapterNetwork(nn.Module):
    """The projections of an adapter."""

    def __init__(self, config: IPAdapterConfig):
        super().__init__()
        self.config = config
        self.image_proj = ImageProjection(config)
        self.blocks = [BlockProjection(config) for _ in range(config.blocks)]

    def keys_and_values(self, embeds: mx.array, heads: int) -> list[tuple[mx.array, mx.array]]:
        """What the image tokens of each block attend to, (1, heads, n * tokens, width / heads) each.

        embeds: (n, image_width), the vectors of n pictures.
        """
        dtype = self.image_proj.norm.weight.dtype
        tokens = self.image_proj.proj(embeds.astype(dtype)).reshape(1, -1, self.config.token_width)
        tokens = self.image_proj.norm(tokens)
        return [
            (split_heads(block.to_k_ip(tokens), heads), split_heads(block.to_v_ip(tokens), heads))
            for block in self.blocks
        ]


def attend_to(queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
    """What queries (B, heads, S, d) find in keys and values (1, heads, T, d): (B, S, heads * d)."""
    wide = (queries.shape[0], *keys.shape[1:])
    keys, values = (mx.broadcast_to(each, wide).astype(queries.dtype) for each in (keys, values))
    return merge_heads(attention(queries, keys, values, queries.shape[-1] ** -0.5))
