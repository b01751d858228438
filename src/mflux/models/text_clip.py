"""CLIP's text encoder: FLUX.1 uses only the state of the end token, as its pooled text vector.

Attention is causal and padding follows the end token, so padding never changes the result.  Module names are those of
transformers' CLIPTextModel files.
"""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mflux.models.layers import ClipLayers, LayerSizes

LEGACY_EOS = 2  # what the published configs say, whatever the tokenizer's end token is: then the largest id counts


@dataclass(frozen=True)
class ClipConfig(LayerSizes):
    """Sizes of CLIP's text encoder; field names are those of its config.json."""

    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"
    eos_token_id: int = LEGACY_EOS


class ClipEmbeddings(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: mx.array) -> mx.array:
        return self.token_embedding(ids) + self.position_embedding(mx.arange(ids.shape[1]))


class ClipTextModel(nn.Module):
    def __init__(self, config: ClipConfig):
        super().__init__()
        self.embeddings = ClipEmbeddings(config)
        self.encoder = ClipLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class ClipTextEncoder(nn.Module):
    """CLIP-L's text tower."""

    def __init__(self, config: ClipConfig):
        super().__init__()
        self.config = config
        self.text_model = ClipTextModel(config)

    def __call__(self, ids: mx.array) -> tuple[mx.array, mx.array]:
        """ids: (B, 77) int32.  Returns all states after the final norm (B, 77, P) and the pooled vector (B, P).

        Source: transformers' CLIPTextModel: the first `eos_token_id`, or where that is 2 the largest id.
        """
        model = self.text_model
        x = model.embeddings(ids)
        mask = nn.MultiHeadAttention.create_additive_causal_mask(ids.shape[1], x.dtype)[None, None]
        states = model.final_layer_norm(model.encoder(x, mask))
        legacy = self.config.eos_token_id == LEGACY_EOS
        ends = mx.argmax(ids if legacy else ids == self.config.eos_token_id, axis=-1)
        return states, states[mx.arange(ids.shape[0]), ends]
