"""Latents: noise of a seed, tokens and their positions, tiles of them.

A picture that is too large for the network at once is cut into tiles in every step and blended in every step.  The
tiles of one picture have one size, so that positions and modulations are the same for all of them.  Source:
MultiDiffusion, arXiv 2302.08113, with weights that fall towards a tile's edges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import mlx.core as mx
import numpy as np

LATENT_CHANNELS = 16
PATCH = 2
TOKEN_CHANNELS = LATENT_CHANNELS * PATCH * PATCH
LATENT_PIXELS = 8
TOKEN_PIXELS = LATENT_PIXELS * PATCH
COLOUR_PATCHES = (2, 4, 8, 16)  # patches a side of the pictures that colours are fitted to
OVERLAP = 0.25  # of a tile's side, at least
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


def step_noise(seeds: Sequence[int], step: int, shape: Sequence[int]) -> mx.array:
    """Fresh noise for a step 0.. of each seed, (B, *shape) float32: from a key of seed and step alone."""
    keys = [mx.random.split(mx.random.key(seed), step + 2)[-1] for seed in seeds]
    return mx.stack([mx.random.normal(shape, key=key) for key in keys])


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


def fit_colours(encode: Callable[[np.ndarray], mx.array]) -> np.ndarray:
    """The linear map (17, 3) from a latent cell's channels and 1 to its mean colour, by least squares.

    encode: pixels (1, 3, H, W), -1 to 1, to latents (1, 16, H/8, W/8).  Fitted to patches of random colours, so that
    it holds for every autoencoder; the built-in model's previews are off by about 25 of 255.
    """
    random, cells, colours = np.random.default_rng(0), [], []
    side = 2 * max(COLOUR_PATCHES)  # cells
    for patches in COLOUR_PATCHES:
        patch = random.uniform(-1, 1, (patches, patches, 3))
        colour = np.repeat(np.repeat(patch, side // patches, 0), side // patches, 1)  # of each cell
        pixels = np.repeat(np.repeat(colour, LATENT_PIXELS, 0), LATENT_PIXELS, 1).astype(np.float32)
        latents = np.array(encode(pixels.transpose(2, 0, 1)[None]).astype(mx.float32))[0]
        cells.append(latents.reshape(len(latents), -1).T)
        colours.append(colour.reshape(-1, 3))
    known = np.concatenate(cells)
    return np.linalg.lstsq(np.c_[known, np.ones(len(known))], np.concatenate(colours), rcond=None)[0]


@dataclass(frozen=True)
class Tile:
    """Some tokens of a picture, row by row: their indexes (n,), and how much each counts there, (n, 1)."""

    cells: mx.array
    weight: mx.array


def cut(height: int, width: int, tile: tuple[int, int]) -> list[Tile]:
    """Tiles of a picture whose sides are multiples of 16; the weights of each token add up to 1.

    tile: height and width of a tile, px, multiples of 16.
    """
    rows, columns, tile_rows, tile_columns = (side // TOKEN_PIXELS for side in (height, width, *tile))
    grid = np.arange(rows * columns).reshape(rows, columns)
    total, parts = np.zeros(rows * columns), []
    for top, left in product(starts(rows, tile_rows), starts(columns, tile_columns)):
        cells = grid[top : top + tile_rows, left : left + tile_columns].ravel()
        share = np.outer(fading(top, tile_rows, rows), fading(left, tile_columns, columns)).ravel()
        total[cells] += share
        parts.append((cells, share))
    return [
        Tile(mx.array(cells), mx.array((share / total[cells]).astype(np.float32)[:, None])) for cells, share in parts
    ]


def starts(length: int, tile: int) -> list[int]:
    """Where tiles begin, evenly spaced, so that neighbours share at least OVERLAP of their side."""
    if tile >= length:
        return [0]
    stride = max(1, int(tile * (1 - OVERLAP)))
    count = 1 + -(-(length - tile) // stride)
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def fading(start: int, tile: int, length: int) -> np.ndarray:
    """How much a tile counts along one side: 1, falling over OVERLAP towards the ends where another one goes on."""
    up = np.arange(1, tile + 1) / (max(1, int(tile * OVERLAP)) + 1)
    rise = up if start > 0 else np.ones(tile)
    fall = up[::-1] if start + tile < length else np.ones(tile)
    return np.minimum(np.minimum(rise, fall), 1.0)


def blended(function: Callable[[mx.array, mx.array], mx.array], latents: mx.array, tiles: Sequence[Tile]) -> mx.array:
    """`function` of each tile's latents (B, n, C) and cells, put together: (B, S, C).  One tile in memory at a time."""
    total = mx.zeros(latents.shape)
    for tile in tiles:
        total = total.at[:, tile.cells].add(tile.weight * function(latents[:, tile.cells], tile.cells))
        mx.eval(total)
    return total
