"""Latents: noise of a seed, tokens and their positions."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

LATENT_CHANNELS = 16
PATCH = 2
TOKEN_CHANNELS = LATENT_CHANNELS * PATCH * PATCH
LATENT_PIXELS = 8
TOKEN_PIXELS = LATENT_PIXELS * PATCH
TORCH_BLOCK = 16  # torch's CPU generator makes normal numbers in blocks of 16


def pack_latents(latents: mx.array) -> mx.array:
    """Fold 2x2 latent patches into tokens.

    latents: (B, C, H/8, W/8), H and W multiples of 16.  Returns (B, H*W/256, 4 C), row-major, channel then row then
    column inside a token.  Raises ValueError if a side is odd.  Source: FLUX.1, same order as diffusers' FluxPipeline.
    """
    batch, channels, height, width = latents.shape
    if height % PATCH or width % PATCH:
        raise ValueError(f"latents of {height} x {width} cells cannot be cut into 2 x 2 patches")
    patches = latents.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return patches.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpack_latents(tokens: mx.array, height: int, width: int) -> mx.array:
    """The inverse of pack_latents.  height, width: of the picture in px.  Returns (B, C, H/8, W/8)."""
    rows, columns = height // TOKEN_PIXELS, width // TOKEN_PIXELS
    channels = tokens.shape[-1] // (PATCH * PATCH)
    patches = tokens.reshape(tokens.shape[0], rows, columns, channels, PATCH, PATCH)
    return patches.transpose(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], channels, rows * PATCH, columns * PATCH)


def grid_ids(height: int, width: int, first: int = 0) -> np.ndarray:
    """Ids (tokens, 3) of a picture's tokens: (first, row, column); first is 0 for the drawn one, 1.. for references."""
    rows, columns = np.mgrid[: height // TOKEN_PIXELS, : width // TOKEN_PIXELS]
    return np.stack([np.full(rows.size, first), rows.ravel(), columns.ravel()], axis=-1)


def noise(kind: str, seeds: Sequence[int], height: int, width: int) -> mx.array:
    """Start noise of each seed, (B, tokens, 64) float32: the same in any batch and on any machine."""
    draw = torch_noise if kind == "torch" else mflux_noise
    return mx.concatenate([draw(seed, height, width) for seed in seeds], axis=0)


def mflux_noise(seed: int, height: int, width: int) -> mx.array:
    """mflux's own draw, in packed shape, so that its users' seeds keep their composition."""
    tokens = height * width // TOKEN_PIXELS**2
    return mx.random.normal((1, tokens, TOKEN_CHANNELS), key=mx.random.key(seed))


def torch_noise(seed: int, height: int, width: int) -> mx.array:
    """What torch's CPU generator draws first for this seed in (1, 16, H/8, W/8), packed; agrees to 1e-6."""
    shape = (1, LATENT_CHANNELS, height // LATENT_PIXELS, width // LATENT_PIXELS)
    return pack_latents(mx.array(torch_normal(seed, int(np.prod(shape))).reshape(shape)))


def torch_normal(seed: int, count: int) -> np.ndarray:
    """The first `count` >= 16 normal numbers of torch's CPU generator, float32, without torch.

    MT19937 of the seed's low 32 bits, 24-bit uniforms, Box-Muller in blocks of 16; a tail that fills no block makes
    the last 16 numbers be drawn anew.  Source: ATen's normal_fill.
    """
    generator = np.random.RandomState(seed & 0xFFFFFFFF)
    uniform = (generator.randint(0, 2**32, count, np.uint32) & 0xFFFFFF).astype(np.float32) / np.float32(2**24)

    def box_muller(values: np.ndarray) -> np.ndarray:
        """Angles and radii are rounded to float32 as torch rounds them; that moves large numbers by 1e-6."""
        pairs = values.reshape(-1, 2, TORCH_BLOCK // 2)
        radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
        angle = (np.float32(2 * np.pi) * pairs[:, 1]).astype(np.float64)
        normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return normal.reshape(-1).astype(np.float32)

    whole = count - count % TORCH_BLOCK
    normal = np.concatenate([box_muller(uniform[:whole]), uniform[whole:]])
    if whole < count:
        tail = generator.randint(0, 2**32, TORCH_BLOCK, np.uint32) & 0xFFFFFF
        normal[-TORCH_BLOCK:] = box_muller(tail.astype(np.float32) / np.float32(2**24))
    return normal
