"""Are the networks, at FLUX.1's own sizes, the published ones?  Nothing is evaluated, so this costs no memory."""

import math

import pytest

import mflux  # noqa: F401
from mflux.models.clip_vision import ClipVisionConfig, ClipVisionEncoder
from mflux.models.controlnet import ControlNetConfig, FluxControlNet
from mflux.models.depth_pro import DepthPro, DepthProConfig
from mflux.models.text_clip import ClipConfig, ClipTextEncoder
from mflux.models.text_t5 import T5Config, T5Encoder
from mflux.models.transformer import FluxTransformer, TransformerConfig
from mflux.models.vae import Vae, VaeConfig
from mflux.weights.load import expected_shapes

GUIDED = {"guidance_embeds": True}
UNION = {"guidance_embeds": True, "num_mode": 10}
# Tensors (where it is known) and parameters of the published checkpoints.
COUNTS = [
    (lambda: FluxTransformer(TransformerConfig(guidance_embeds=True)), 1160, 11_901_408_320),
    (lambda: Vae(VaeConfig()), 244, 83_819_683),
    (lambda: T5Encoder(T5Config()), 219, 4_762_310_656),
    (lambda: ClipTextEncoder(ClipConfig()), 196, 123_060_480),
    # Two bytes a parameter are the files of InstantX' canny and jasperai's upscaler, of Union-Pro, and Union-Pro-2.0.
    (lambda: FluxControlNet(ControlNetConfig(num_layers=5, num_single_layers=0, **GUIDED)), None, 1_791_605_248),
    (lambda: FluxControlNet(ControlNetConfig(num_layers=5, num_single_layers=10, **UNION)), None, 3_301_956_608),
    (lambda: FluxControlNet(ControlNetConfig(num_layers=6, num_single_layers=0, **GUIDED)), None, 2_140_876_800),
    (lambda: ClipVisionEncoder(ClipVisionConfig()), None, 303_966_208),
    (lambda: DepthPro(DepthProConfig(), field_of_view=True), None, 951_991_330),
]
NAMES = ["transformer", "vae", "t5", "clip", "controlnet", "union-pro", "union-pro-2.0", "clip vision", "depth pro"]
SHAPES = {
    "x_embedder.weight": (3072, 384),
    "transformer_blocks.18.ff_context.net.0.proj.weight": (12288, 3072),
    "transformer_blocks.0.attn.norm_added_k.weight": (128,),
    "single_transformer_blocks.37.proj_out.weight": (3072, 15360),
    "norm_out.linear.bias": (6144,),
    "proj_out.weight": (64, 3072),
}


@pytest.mark.parametrize(("build", "tensors", "parameters"), COUNTS, ids=NAMES)
def test_a_network_has_the_published_tensors_and_parameters(build, tensors, parameters):
    shapes = expected_shapes(build())
    assert sum(map(math.prod, shapes.values())) == parameters
    assert tensors in (None, len(shapes))


def test_a_fill_transformer_has_the_published_shapes():
    shapes = expected_shapes(FluxTransformer(TransformerConfig(in_channels=384)))
    assert SHAPES.items() <= shapes.items()
    assert not any("guidance_embedder" in name for name in shapes)
