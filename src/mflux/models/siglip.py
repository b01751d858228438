"""SigLIP's picture encoder, and Redux' projector from its states to tokens beside the text.

FLUX.1 uses the states of all patches; SigLIP's pooling head is not built.  Its layers are CLIP's.  Module names are
those of transformers' SiglipVisionModel and diffusers' ReduxImageEncoder.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mflux.models.layers import ClipLayers, LayerSizes, silu

COLORS = 3


@dataclass(frozen=True)
class SiglipConfig(LayerSizes):
    """Sizes of SigLIP's picture tower; field names are those of its config.json."""

    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    image_size: int = 384
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"

    @property
    def tokens(self) -> int:
        """States of one picture: whole patches, row by row."""
        return (self.image_size // self.patch_size) ** 2


class SiglipEmbeddings(nn.Module):
    def __init__(self, config: SiglipConfig):
        super().__init__()
        patch = config.patch_size
        self.patch_embedding = nn.Conv2d(COLORS, config.hidden_size, kernel_size=patch, stride=patch)
        self.position_embedding = nn.Embedding(config.tokens, config.hidden_size)

    def __call__(self, pixels: mx.array) -> mx.array:
        patches = self.patch_embedding(pixels.astype(self.patch_embedding.bias.dtype))
        return patches.flatten(1, 2) + self.position_embedding(mx.arange(patches.shape[1] * patches.shape[2]))


class SiglipVisionModel(nn.Module):
    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.embeddings = SiglipEmbeddings(config)
        self.encoder = ClipLayers(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class SiglipEncoder(nn.Module):
    """SigLIP so400m's picture tower."""

    def __init__(self, config: SiglipConfig):
        super().__init__()
        self.config = config
        self.vision_model = SiglipVisionModel(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        """pixels: (B, 3, image_size, image_size) in [-1, 1].  Returns the states after the last norm, (B, tokens, D).

        Source: transformers' SiglipVisionModel, `last_hidden_state`.
        """
        model = self.vision_model
        return model.post_layernorm(model.encoder(model.embeddings(pixels.transpose(0, 2, 3, 1))))


@dataclass(frozen=True)
class ReduxConfig:
    """Sizes of Redux' projector: SigLIP's width, and that of the transformer's text tokens."""

    redux_dim: int = 1152
    txt_in_features: int = 4096


class ReduxEmbedder(nn.Module):
    """From SigLIP's states to text tokens: two layers with three times the text's width between them."""

    def __init__(self, config: ReduxConfig):
        super().__init__()
        self.config = config
        self.redux_up = nn.Linear(config.redux_dim, 3 * config.txt_in_features)
        self.redux_down = nn.Linear(3 * config.txt_in_features, config.txt_in_features)

    def __call__(self, states: mx.array) -> mx.array:
        """(B, N, redux_dim) -> (B, N, txt_in_features).  Source: diffusers' ReduxImageEncoder."""
        return self.redux_down(silu(self.redux_up(states)))
