"""FLUX.1's autoencoder: pictures (B, 3, H, W) in [-1, 1] to latents (B, 16, H/8, W/8) and back.

Inside, arrays are channel-last, as MLX's convolutions want them; only `encode` and `decode` transpose.  Module names
are those of diffusers' AutoencoderKL.  Tiles overlap by a quarter and cross-fade (diffusers' rule and sizes); group
norm statistics are per tile, so a tiled picture is close to the whole one, not equal.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from mflux.models.layers import Convolution, GroupNorm, PointwiseConvolution, attention, joined, silu, spread
from mflux.runtime import cores, on_cpu, one_thread_a_product

OVERLAP = 0.25
SMALL = 256 * 256  # px of a picture whose strips are too short to share
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of an autoencoder; field names are those of diffusers' config.json."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    sample_size: int = 1024
    scaling_factor: float = 0.3611  # FLUX.1 ae, config.json
    shift_factor: float = 0.1159  # FLUX.1 ae, config.json
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)


class Posterior(NamedTuple):
    """The encoder's normal distribution over unscaled latents, (B, 16, h, w) each."""

    mean: mx.array
    logvar: mx.array


def activated(norm: GroupNorm, convolution: Convolution, x: mx.array) -> mx.array:
    """convolution(silu(norm(x))), on a CPU strip by strip."""
    scale, shift = norm.affine(x)
    return convolution(x, lambda part: silu(part.astype(mx.float32) * scale + shift).astype(x.dtype))


class ResnetBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, inputs)
        self.conv1 = Convolution(inputs, outputs)
        self.norm2 = GroupNorm(groups, outputs)
        self.conv2 = Convolution(outputs, outputs)
        if inputs != outputs:
            self.conv_shortcut = PointwiseConvolution(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        out = activated(self.norm2, self.conv2, activated(self.norm1, self.conv1, x))
        return out + (self.conv_shortcut(x) if "conv_shortcut" in self else x)


class PixelAttention(nn.Module):
    """Self-attention over all positions, one head."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = [nn.Linear(channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        flat = self.group_norm(x).reshape(x.shape[0], 1, -1, x.shape[-1])
        out = attention(self.to_q(flat), self.to_k(flat), self.to_v(flat), x.shape[-1] ** -0.5)
        return x + self.to_out[0](out).reshape(x.shape)


class Downsampler(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Convolution(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv.halved(x)


class Upsampler(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Convolution(channels, channels)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv.of_doubled(x)


class Level(nn.Module):
    """Resnets of one resolution, then a change of resolution (except at the last level)."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, change: type[nn.Module] | None):
        super().__init__()
        self.resnets = [ResnetBlock(inputs if i == 0 else outputs, outputs, groups) for i in range(layers)]
        if change is Downsampler:
            self.downsamplers = [Downsampler(outputs)]
        elif change is Upsampler:
            self.upsamplers = [Upsampler(outputs)]

    def __call__(self, x: mx.array) -> mx.array:
        for resnet in self.resnets:
            x = resnet(x)
        for change in self.get("downsamplers", []) + self.get("upsamplers", []):
            x = change(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.resnets = [ResnetBlock(channels, channels, groups) for _ in range(2)]
        self.attentions = [PixelAttention(channels, groups)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


def levels(widths: list[int], first: int, layers: int, groups: int, change: type[nn.Module]) -> list[Level]:
    inputs = [first, *widths[:-1]]
    last = len(widths) - 1
    return [Level(inputs[i], width, layers, groups, change if i < last else None) for i, width in enumerate(widths)]


class Encoder(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        widths, groups = list(config.block_out_channels), config.norm_num_groups
        self.conv_in = Convolution(config.in_channels, widths[0])
        self.down_blocks = levels(widths, widths[0], config.layers_per_block, groups, Downsampler)
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Convolution(widths[-1], 2 * config.latent_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return activated(self.conv_norm_out, self.conv_out, self.mid_block(x))


class Decoder(nn.Module):
    def __init__(self, config: VaeConfig):
        super().__init__()
        widths, groups = list(reversed(config.block_out_channels)), config.norm_num_groups
        self.conv_in = Convolution(config.latent_channels, widths[0])
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = levels(widths, widths[0], config.layers_per_block + 1, groups, Upsampler)
        self.conv_norm_out = GroupNorm(groups, widths[-1])
        self.conv_out = Convolution(widths[-1], config.out_channels)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return activated(self.conv_norm_out, self.conv_out, x)


class Vae(nn.Module):
    """Encoder and decoder with FLUX's scaling of latents."""

    def __init__(self, config: VaeConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = PointwiseConvolution(2 * config.latent_channels, 2 * config.latent_channels)
        if config.use_post_quant_conv:
            self.post_quant_conv = PointwiseConvolution(config.latent_channels, config.latent_channels)

    def posterior(self, pixels: mx.array, tile: int = 0) -> Posterior:
        """The distribution over raw latents of pixels (B, 3, H, W) in [-1, 1], sides multiples of 8.

        tile: px of the tiles that it is seen in, 0: whole.
        """
        image = pixels.transpose(0, 2, 3, 1)
        moments = evaluated(self._encode, image, tile or max(image.shape), 1 / self.config.downscale)
        mean, logvar = mx.split(moments.transpose(0, 3, 1, 2), 2, axis=1)
        return Posterior(mean, mx.clip(logvar, *LOGVAR_RANGE))

    def encode(self, pixels: mx.array, noise: mx.array | None = None, tile: int = 0) -> mx.array:
        """Scaled latents (B, 16, H/8, W/8), float32: the posterior's mode, or its sample for the given normal noise."""
        mean, logvar = self.posterior(pixels.astype(self.dtype), tile)
        raw = mean if noise is None else mean + mx.exp(logvar / 2) * noise
        return (raw.astype(mx.float32) - self.config.shift_factor) * self.config.scaling_factor

    def decode(self, latents: mx.array, tile: int = 0) -> mx.array:
        """Pixels (B, 3, H, W), about [-1, 1] but not clamped, of scaled latents (B, 16, h, w), in tiles as above."""
        raw = latents / self.config.scaling_factor + self.config.shift_factor
        image = raw.astype(self.dtype).transpose(0, 2, 3, 1)
        side = tile // self.config.downscale or max(image.shape)
        pixels = evaluated(self._decode, image, side, self.config.downscale)
        return pixels.transpose(0, 3, 1, 2)

    @property
    def dtype(self) -> mx.Dtype:
        return self.decoder.conv_in.weight.dtype

    def _encode(self, image: mx.array) -> mx.array:
        moments = self.encoder(image)
        return self.quant_conv(moments) if "quant_conv" in self else moments

    def _decode(self, latents: mx.array) -> mx.array:
        return self.decoder(self.post_quant_conv(latents) if "post_quant_conv" in self else latents)


def evaluated(function: Callable[[mx.array], mx.array], x: mx.array, tile: int, ratio: float) -> mx.array:
    """`in_tiles`, picture by picture and computed at once: memory does not grow with the batch.

    On a CPU the strips of a picture share the cores, not the products; small pictures are a core's own.
    """
    pixels = x.shape[1] * x.shape[2] * max(1, ratio) ** 2
    together = cores() if on_cpu() and pixels <= SMALL else 1
    pictures, out = mx.split(x, x.shape[0]), list[mx.array]()
    with one_thread_a_product():
        for first in range(0, len(pictures), together):
            some = pictures[first : first + together]
            out += spread(partial(in_tiles, function, tile=tile, ratio=ratio), some)
            mx.eval(out)
    return joined(out, axis=0)


def in_tiles(function: Callable[[mx.array], mx.array], x: mx.array, tile: int, ratio: float) -> mx.array:
    """Apply `function` to overlapping tiles of (B, H, W, C) and cross-fade; it changes sides by `ratio`.

    Source: diffusers' AutoencoderKL.tiled_encode and tiled_decode.
    """
    height, width = x.shape[1:3]
    if height <= tile and width <= tile:
        return function(x)
    stride = int(tile * (1 - OVERLAP))
    tile_out = int(tile * ratio)
    fade = int(tile_out * OVERLAP)
    keep = tile_out - fade
    above: list[mx.array] = []
    rows = []
    for top in range(0, height, stride):
        row: list[mx.array] = []
        for left in range(0, width, stride):
            out = function(x[:, top : top + tile, left : left + tile])
            if above:
                out = cross_fade(above[len(row)], out, fade, axis=1)
            if row:
                out = cross_fade(row[-1], out, fade, axis=2)
            mx.eval(out)  # one tile's activations at a time
            row.append(out)
        rows.append(mx.concatenate([out[:, :keep, :keep] for out in row], axis=2))
        above = row
    return mx.concatenate(rows, axis=1)


def cross_fade(before: mx.array, after: mx.array, length: int, axis: int) -> mx.array:
    """`after` with its first `length` rows (axis 1) or columns (axis 2) faded in from the last ones of `before`."""
    length = min(before.shape[axis], after.shape[axis], length)
    shape = [1, 1, 1, 1]
    shape[axis] = length
    weight = (mx.arange(length) / length).astype(after.dtype).reshape(shape)
    end = mx.split(before, [before.shape[axis] - length], axis=axis)[1]
    start, rest = mx.split(after, [length], axis=axis)
    return mx.concatenate([end * (1 - weight) + start * weight, rest], axis=axis)
