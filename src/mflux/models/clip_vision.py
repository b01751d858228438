"""CLIP's picture encoder with its projection: one vector for a picture, beside CLIP's vectors for texts.

Its layers are those of the text encoder, without a mask.  Module names are those of transformers'
CLIPVisionModelWithProjection files.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mflux.models.layers import ClipLayers, LayerSizes

COLORS = 3


@dataclass(frozen=True)
class ClipVisionConfig(LayerSizes):
    """Sizes of CLIP's picture tower; field names are those of its config.json."""

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    projection_dim: int = 768
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"


class ClipVisionEmbeddings(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        patch = config.patch_size
        self.class_embedding = mx.zeros((config.hidden_size,))
        self.patch_embedding = nn.Conv2d(COLORS, config.hidden_size, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding((config.image_size // patch) ** 2 + 1, config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels.astype(self.class_embedding.dtype)).flatten(1, 2)
        start = mx.broadcast_to(self.class_embedding, (patches.shape[0], 1, patches.shape[2]))
        tokens = mx.concatenate([start, patches], axis=1)
        return tokens + self.position_embedding(mx.arange(tokens.shape[1]))


class ClipVisionModel(nn.Module):
    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.embeddings = ClipVisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)  # so spelled in the files
        self.encoder = ClipLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ClipVisionEncoder(nn.Module):
    """CLIP ViT-L/14's picture tower."""

    def __init__(self, config: ClipVisionConfig):
        super().__init__()
        self.config = config
        self.vision_model = ClipVisionModel(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, pixels: mx.array) -> mx.array:
        """pixels: (B, 3, image_size, image_size), normalised as CLIP wants it.  Returns (B, projection_dim): the class
        token's state after the last norm, projected, of any length.  Source: transformers, `image_embeds`."""
        model = self.vision_model
        x = model.pre_layrnorm(model.embeddings(pixels.transpose(0, 2, 3, 1)))
        return self.visual_projection(model.post_layernorm(model.encoder(x)[:, 0]))
