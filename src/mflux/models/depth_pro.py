"""Depth Pro: inverse depth of one picture, from overlapping patches at three resolutions.

Inside, arrays are channel-last and hold one picture; patches are the batch.  Module names are those of transformers'
DepthProForDepthEstimation.  Convolutions that double a side are matrix products: their windows do not overlap.
Source: Depth Pro, arXiv 2410.02073; its vision transformers are DINOv2's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mflux.models.layers import Convolution, attention, merge_heads, split_heads

PIXEL_CHANNELS, HEAD_CHANNELS = 3, 32


@dataclass(frozen=True)
class VitConfig:
    """Sizes of a vision transformer; field names are those of DINOv2's config.json."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    mlp_ratio: int = 4
    image_size: int = 384
    patch_size: int = 16
    layer_norm_eps: float = 1e-6

    @property
    def side(self) -> int:
        """Tokens along one side of the picture."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class DepthProConfig:
    """Sizes of Depth Pro; field names are those of its config.json."""

    patch_model_config: VitConfig = VitConfig()
    image_model_config: VitConfig = VitConfig()
    fov_model_config: VitConfig = VitConfig()
    patch_size: int = 384  # px of a patch
    scaled_images_ratios: tuple[float, ...] = (0.25, 0.5, 1.0)
    scaled_images_overlap_ratios: tuple[float, ...] = (0.0, 0.5, 0.25)
    scaled_images_feature_dims: tuple[int, ...] = (1024, 1024, 512)
    intermediate_hook_ids: tuple[int, ...] = (11, 5)
    intermediate_feature_dims: tuple[int, ...] = (256, 256)
    merge_padding_value: int = 3  # tokens cut from inner edges of patches at the coarsest level
    fusion_hidden_size: int = 256
    num_fov_head_layers: int = 2
    use_bias_in_fusion_residual: bool = True

    @property
    def image_size(self) -> int:
        """Sides of the square picture that the network sees, px."""
        return round(self.patch_size / min(self.scaled_images_ratios))

    @property
    def problem(self) -> str:
        """What contradicts itself in these sizes, or nothing."""
        vits = (self.patch_model_config, self.image_model_config, self.fov_model_config)
        if any(vit.image_size != self.patch_size or vit.image_size % vit.patch_size for vit in vits):
            return f"`patch_size` {self.patch_size} is not the `image_size` of every encoder, cut into whole patches"
        if any(vit.hidden_size % vit.num_attention_heads for vit in vits):
            return "`num_attention_heads` does not divide `hidden_size`"
        if min(self.scaled_images_ratios) <= 0 or max(self.scaled_images_overlap_ratios) >= 1:
            return "`scaled_images_ratios` or `scaled_images_overlap_ratios` make no patches"
        if max(self.intermediate_hook_ids) >= self.patch_model_config.num_hidden_layers:
            return f"`intermediate_hook_ids` {self.intermediate_hook_ids} are beyond the patch encoder's layers"
        return ""


class VitAttention(nn.Module):
    """Projections of a block; the output's is in another module, as in the files."""

    def __init__(self, config: VitConfig):
        super().__init__()
        size = config.hidden_size
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))


class VitOutput(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)


class VitSelfAttention(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.attention = VitAttention(config)
        self.output = VitOutput(config)
        self.heads = config.num_attention_heads

    def __call__(self, x: mx.array) -> mx.array:
        linears = (self.attention.query, self.attention.key, self.attention.value)
        q, k, v = (split_heads(linear(x), self.heads) for linear in linears)
        return self.output.dense(merge_heads(attention(q, k, v, q.shape[-1] ** -0.5)))


class VitFeedForward(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.fc2 = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        return self.fc2(nn.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.lambda1 = mx.ones((size,))

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.lambda1


class VitBlock(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VitSelfAttention(config)
        self.layer_scale1 = LayerScale(config.hidden_size)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VitFeedForward(config)
        self.layer_scale2 = LayerScale(config.hidden_size)

    def __call__(self, x: mx.array) -> mx.array:
        x = x + self.layer_scale1(self.attention(self.norm1(x)))
        return x + self.layer_scale2(self.mlp(self.norm2(x)))


class VitPatches(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.projection = nn.Conv2d(PIXEL_CHANNELS, config.hidden_size, config.patch_size, stride=config.patch_size)


class VitEmbeddings(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.cls_token = mx.zeros((1, 1, config.hidden_size))
        self.position_embeddings = mx.zeros((1, config.side**2 + 1, config.hidden_size))
        self.patch_embeddings = VitPatches(config)

    def __call__(self, pixels: mx.array) -> mx.array:
        tokens = self.patch_embeddings.projection(pixels).reshape(pixels.shape[0], -1, self.cls_token.shape[-1])
        start = mx.broadcast_to(self.cls_token, (pixels.shape[0], 1, tokens.shape[-1]))
        return mx.concatenate([start, tokens], axis=1) + self.position_embeddings


class VitLayers(nn.Module):
    def __init__(self, config: VitConfig):
        super().__init__()
        self.layer = [VitBlock(config) for _ in range(config.num_hidden_layers)]


class Vit(nn.Module):
    """DINOv2's vision transformer at its own size."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.config = config
        self.embeddings = VitEmbeddings(config)
        self.encoder = VitLayers(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def __call__(self, pixels: mx.array, hooks: Sequence[int] = ()) -> list[mx.array]:
        """Tokens (n, side^2 + 1, size) of pixels (n, H, W, 3), normed; then those after the blocks of `hooks`."""
        x = self.embeddings(pixels)
        seen = {}
        for index, block in enumerate(self.encoder.layer):
            x = block(x)
            if index in hooks:
                seen[index] = x
        return [self.layernorm(x), *(seen[index] for index in hooks)]


class Encoder(nn.Module):
    """A vision transformer under the name that the files give it."""

    def __init__(self, config: VitConfig):
        super().__init__()
        self.model = Vit(config)


class Deconvolution(nn.Module):
    """A transposed convolution of (B, H, W, C) with windows of 2 x 2 side by side: both sides double."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__()
        self.weight = mx.zeros((inputs, 2, 2, outputs))
        if bias:
            self.bias = mx.zeros((outputs,))

    def __call__(self, x: mx.array) -> mx.array:
        batch, height, width, inputs = x.shape
        blocks = (x @ self.weight.reshape(inputs, -1)).reshape(batch, height, width, 2, 2, -1)
        out = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)
        return out + self.bias if "bias" in self else out


class Chain(nn.Module):
    """Layers one after another, under the name `layers`."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = list(layers)

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.layers:
            x = layer(x)
        return x


def upsampler(inputs: int, middle: int, outputs: int, times: int) -> Chain:
    """A projection, then `times` doublings of both sides."""
    doublings = [Deconvolution(middle if i == 0 else outputs, outputs) for i in range(times)]
    return Chain([nn.Conv2d(inputs, middle, 1, bias=False), *doublings])


class FeatureUpsample(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        width, image_width = config.patch_model_config.hidden_size, config.image_model_config.hidden_size
        self.image_block = Chain([Deconvolution(image_width, config.scaled_images_feature_dims[0], bias=True)])
        self.scaled_images = [upsampler(width, size, size, 1) for size in config.scaled_images_feature_dims]
        self.intermediate = [
            upsampler(width, size if i else config.fusion_hidden_size, size, 2 + i)
            for i, size in enumerate(config.intermediate_feature_dims)
        ]


class FeatureProjection(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        sizes = [*config.scaled_images_feature_dims, *config.intermediate_feature_dims]
        self.projections: list[nn.Module] = [Convolution(size, config.fusion_hidden_size, bias=False) for size in sizes]
        if sizes[-1] == config.fusion_hidden_size:
            self.projections[-1] = nn.Identity()


class Neck(nn.Module):
    """Encoder features to fusion features: the whole picture and the coarsest level joined, all of one width."""

    def __init__(self, config: DepthProConfig):
        super().__init__()
        self.feature_upsample = FeatureUpsample(config)
        width = config.scaled_images_feature_dims[0]
        self.fuse_image_with_low_res = nn.Conv2d(2 * width, width, 1)
        self.feature_projection = FeatureProjection(config)

    def __call__(self, image: mx.array, features: Sequence[mx.array]) -> list[mx.array]:
        """image: of the whole picture; features: the scaled ones, coarse to fine, then the intermediate ones."""
        up = self.feature_upsample
        blocks = [*up.scaled_images, *up.intermediate]
        coarse, *finer = (block(each) for block, each in zip(blocks, features, strict=True))
        whole = self.fuse_image_with_low_res(mx.concatenate([coarse, up.image_block(image)], axis=-1))
        pairs = zip(self.feature_projection.projections, [whole, *finer], strict=True)
        return [projection(each) for projection, each in pairs]


class ResidualUnit(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        width, bias = config.fusion_hidden_size, config.use_bias_in_fusion_residual
        self.convolution1, self.convolution2 = (Convolution(width, width, bias=bias) for _ in range(2))

    def __call__(self, x: mx.array) -> mx.array:
        return x + self.convolution2(nn.relu(self.convolution1(nn.relu(x))))


class FusionLayer(nn.Module):
    def __init__(self, config: DepthProConfig, doubles: bool):
        super().__init__()
        self.residual_layer1, self.residual_layer2 = ResidualUnit(config), ResidualUnit(config)
        if doubles:
            self.deconv = Deconvolution(config.fusion_hidden_size, config.fusion_hidden_size)
        self.projection = nn.Conv2d(config.fusion_hidden_size, config.fusion_hidden_size, 1)

    def __call__(self, x: mx.array, finer: mx.array | None = None) -> mx.array:
        x = self.residual_layer2(x if finer is None else x + self.residual_layer1(finer))
        return self.projection(self.deconv(x) if "deconv" in self else x)


class FusionStage(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        count = len(config.intermediate_hook_ids) + len(config.scaled_images_ratios)
        self.intermediate = [FusionLayer(config, doubles=True) for _ in range(count - 1)]
        self.final = FusionLayer(config, doubles=False)

    def __call__(self, features: Sequence[mx.array]) -> mx.array:
        """Features from coarse to fine."""
        first, *rest = [*self.intermediate, self.final]
        x = first(features[0])
        for layer, finer in zip(rest, features[1:], strict=True):
            x = layer(x, finer)
        return x


class FovEncoder(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        self.model = Vit(config.fov_model_config)
        self.neck = nn.Linear(config.fov_model_config.hidden_size, config.fusion_hidden_size // 2)


class FovModel(nn.Module):
    """The picture's field of view in degrees, from a third look at it and the fused features."""

    def __init__(self, config: DepthProConfig):
        super().__init__()
        width, count = config.fusion_hidden_size, config.num_fov_head_layers
        sizes = [math.ceil(width / 2 ** (i + 1)) for i in range(count + 1)]
        self.side = config.image_model_config.side
        self.fov_encoder = FovEncoder(config)
        self.conv = nn.Conv2d(width, width // 2, 3, stride=2, padding=1)
        steps = [
            layer
            for inputs, outputs in pairwise(sizes)
            for layer in (nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU())
        ]
        self.head = Chain([*steps, nn.Conv2d(sizes[-1], 1, int((self.side - 1) / 2**count + 1))])

    def __call__(self, pixels: mx.array, coarsest: mx.array) -> mx.array:
        size = self.fov_encoder.model.config.image_size
        (tokens,) = self.fov_encoder.model(resize_bilinear(pixels, size, size))
        features = grids(self.fov_encoder.neck(tokens)) + nn.relu(self.conv(coarsest))
        return self.head(resize_bilinear(features, self.side, self.side)).reshape(-1)


class Encoders(nn.Module):
    """One transformer for patches at three resolutions, one for the whole picture."""

    def __init__(self, config: DepthProConfig):
        super().__init__()
        self.config = config
        self.patch_encoder = Encoder(config.patch_model_config)
        self.image_encoder = Encoder(config.image_model_config)

    def __call__(self, pixels: mx.array) -> tuple[mx.array, list[mx.array]]:
        """Features of the whole picture; those of the patches, coarse to fine, then the intermediate ones."""
        config, side = self.config, self.config.image_model_config.side
        size = config.image_model_config.image_size
        (whole,) = self.image_encoder.model(resize_bilinear(pixels, size, size))
        levels = []
        for ratio, overlap in zip(config.scaled_images_ratios, config.scaled_images_overlap_ratios, strict=True):
            scaled = round(pixels.shape[1] * ratio)
            levels.append(split_patches(resize_bilinear(pixels, scaled, scaled), config.patch_size, overlap))
        counts = np.cumsum([len(level) for level in levels])
        last, *hooked = self.patch_encoder.model(mx.concatenate(levels), config.intermediate_hook_ids)
        scales = list(zip(mx.split(last, [int(n) for n in counts[:-1]]), config.scaled_images_ratios, strict=True))
        fine = [(tokens[int(counts[-2]) :], config.scaled_images_ratios[-1]) for tokens in hooked]
        merged = []
        for index, (tokens, ratio) in enumerate([*scales, *fine]):
            wanted = side * 2 ** min(index, len(scales) - 1)
            joined = merge_patches(grids(tokens), int(config.merge_padding_value / ratio))
            merged.append(resize_bilinear(joined, wanted, wanted))
        return grids(whole), merged


class DepthBackbone(nn.Module):
    def __init__(self, config: DepthProConfig):
        super().__init__()
        self.encoder = Encoders(config)
        self.neck = Neck(config)


class Depth(NamedTuple):
    """canonical: inverse depth (H, W), larger is nearer, for a picture as wide as its focal length; field_of_view: (1,)
    degrees, None where the network was built without it."""

    canonical: mx.array
    field_of_view: mx.array | None


class DepthPro(nn.Module):
    """Depth Pro.  field_of_view: also its head for that, which metric depth needs and a control map does not."""

    def __init__(self, config: DepthProConfig, field_of_view: bool = False):
        super().__init__()
        self.config = config
        self.depth_pro = DepthBackbone(config)
        self.fusion_stage = FusionStage(config)
        width = config.fusion_hidden_size
        self.head = Chain(
            [
                Convolution(width, width // 2),
                Deconvolution(width // 2, width // 2, bias=True),
                Convolution(width // 2, HEAD_CHANNELS),
                nn.ReLU(),
                nn.Conv2d(HEAD_CHANNELS, 1, 1),
                nn.ReLU(),
            ]
        )
        if field_of_view:
            self.fov_model = FovModel(config)

    def __call__(self, pixels: mx.array) -> Depth:
        """pixels: (1, 3, H, W) in [-1, 1], of any size."""
        size = self.config.image_size
        dtype = self.fusion_stage.final.projection.weight.dtype
        image = resize_bilinear(pixels.transpose(0, 2, 3, 1), size, size).astype(dtype)
        features = self.depth_pro.neck(*self.depth_pro.encoder(image))
        canonical = self.head(self.fusion_stage(features))[0, :, :, 0]
        return Depth(canonical, self.fov_model(image, features[0]) if "fov_model" in self else None)


def resize_bilinear(x: mx.array, height: int, width: int) -> mx.array:
    """(B, H, W, C) at another size: half-pixel centres, two neighbours a side also when it shrinks.

    The same size is left alone.  Source: torch's interpolate with align_corners=False.
    """
    for axis, size in ((1, height), (2, width)):
        if x.shape[axis] == size:
            continue
        centres = np.maximum((np.arange(size) + 0.5) * (x.shape[axis] / size) - 0.5, 0)
        before = centres.astype(int)
        after = np.minimum(before + 1, x.shape[axis] - 1)
        share = mx.array((centres - before).astype(np.float32)).reshape([-1 if i == axis else 1 for i in range(4)])
        take = partial(mx.take, x, axis=axis)
        x = (take(mx.array(before)) * (1 - share) + take(mx.array(after)) * share).astype(x.dtype)
    return x


def split_patches(x: mx.array, size: int, overlap: float) -> mx.array:
    """Square patches of (1, H, W, C), row by row, neighbours sharing `overlap` of their side: (n, size, size, C)."""
    stride = int(size * (1 - overlap))
    starts = range(0, x.shape[1] - size + 1, stride)
    return mx.concatenate([x[:, top : top + size, left : left + size] for top, left in product(starts, starts)])


def grids(tokens: mx.array) -> mx.array:
    """Tokens (n, 1 + side^2, C) without the class token, as (n, side, side, C)."""
    side = math.isqrt(tokens.shape[1] - 1)
    return tokens[:, -(side**2) :].reshape(tokens.shape[0], side, side, -1)


def merge_patches(patches: mx.array, padding: int) -> mx.array:
    """One map (1, H, W, C) from n x n overlapping ones (n^2, side, side, C): `padding` is cut at each inner edge."""
    count, side = math.isqrt(patches.shape[0]), patches.shape[1]
    if count == 1:
        return patches
    padding = min(side // 4, padding)

    def inner(index: int) -> slice:
        return slice(padding if index else 0, side - (padding if index < count - 1 else 0))

    rows = [
        mx.concatenate([patches[row * count + i, inner(row), inner(i)] for i in range(count)], axis=1)
        for row in range(count)
    ]
    return mx.concatenate(rows, axis=0)[None]
