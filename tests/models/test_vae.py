"""The autoencoder in tiles: seams, memory's shape, and when it is left alone."""

import mlx.core as mx
import numpy as np
import pytest

import mflux  # noqa: F401
from mflux.models import layers
from mflux.models.vae import Vae, VaeConfig, cross_fade, in_tiles


def test_a_pixelwise_function_in_tiles_is_the_whole():
    x = mx.random.normal((1, 45, 70, 3), key=mx.random.key(0))
    assert float(mx.abs(in_tiles(lambda tile: 2 * tile, x, 16, 1) - 2 * x).max()) < 1e-6


def test_sides_change_by_the_ratio():
    def double(tile):
        return mx.repeat(mx.repeat(tile, 2, axis=1), 2, axis=2)

    x = mx.random.normal((1, 21, 40, 1), key=mx.random.key(0))
    assert float(mx.abs(in_tiles(double, x, 8, 2) - double(x)).max()) < 1e-6


def test_small_pictures_are_not_cut():
    calls = []
    in_tiles(lambda tile: calls.append(tile.shape) or tile, mx.zeros((1, 16, 16, 1)), 16, 1)
    assert calls == [(1, 16, 16, 1)]


def test_seams_fade_instead_of_stepping():
    """Tiles of clashing brightness: the largest step between neighbours is a fraction of the clash."""
    calls = []

    def bright_or_dark(tile):
        calls.append(1)
        return mx.full(tile.shape, float(len(calls) % 2))

    out = np.array(in_tiles(bright_or_dark, mx.zeros((1, 16, 104, 1)), 32, 1))[0, 0, :, 0]
    assert len(calls) > 2
    assert np.abs(np.diff(out)).max() <= 1 / 8 + 1e-6


def test_the_fade_starts_with_the_tile_before():
    before, after = mx.zeros((1, 8, 8, 1)), mx.ones((1, 8, 8, 1))
    faded = np.array(cross_fade(before, after, 4, axis=2))[0, 0, :, 0]
    assert np.allclose(faded, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1])


@pytest.fixture(params=[1 << 16, 200, 10])
def strips(request, monkeypatch):
    """Strips of so many numbers, down to a row."""
    for name, value in {"STRIP": request.param, "STRIP_ROWS": 1, "STRIP_PIXELS": 1}.items():
        monkeypatch.setattr(layers, name, value)


def example() -> tuple[layers.Convolution, mx.array]:
    ours = layers.Convolution(4, 5)
    ours.bias = mx.random.normal((5,), key=mx.random.key(1))
    return ours, mx.random.normal((2, 9, 11, 4), key=mx.random.key(0))


@pytest.mark.parametrize("few", [1, 100], ids=["shared products", "three rows"])
def test_a_convolution_in_strips_is_the_whole(strips, few, monkeypatch):
    monkeypatch.setattr(layers, "MINIMAL_FROM_CHANNELS", few)
    ours, x = example()
    wanted = mx.conv2d(mx.exp(x), ours.weight, padding=1) + ours.bias
    assert float(mx.abs(ours(x, before=mx.exp) - wanted).max()) < 1e-5


def test_a_convolution_of_doubled_pixels_reads_each_once(strips):
    ours, x = example()
    doubled = mx.repeat(mx.repeat(x, 2, axis=1), 2, axis=2)
    wanted = mx.conv2d(doubled, ours.weight, padding=1) + ours.bias
    assert float(mx.abs(ours.of_doubled(x) - wanted).max()) < 1e-5


@pytest.mark.parametrize("size", [(9, 11), (10, 6)])
def test_a_halving_convolution_goes_on_by_zeros_below_and_beside(strips, size):
    ours, _ = example()
    x = mx.random.normal((2, *size, 4), key=mx.random.key(2))
    wanted = mx.conv2d(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]), ours.weight, stride=2) + ours.bias
    assert ours.halved(x).shape == wanted.shape
    assert float(mx.abs(ours.halved(x) - wanted).max()) < 1e-5


def test_pictures_of_a_batch_are_those_decoded_alone():
    mx.random.seed(0)
    vae = Vae(VaeConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=2))
    latents = mx.random.normal((3, 16, 8, 12))
    alone = mx.concatenate([vae.decode(latents[index : index + 1]) for index in range(3)])
    assert float(mx.abs(vae.decode(latents) - alone).max()) < 1e-5


def test_tiles_of_a_size_are_close_to_the_whole_picture():
    """Each tile has statistics of its own: on noise they are nearly those of the whole."""
    mx.random.seed(0)
    vae = Vae(VaeConfig(block_out_channels=(8, 8, 8, 8), norm_num_groups=2))
    latents = mx.random.normal((1, 16, 24, 48))
    whole, same, tiles = (np.array(vae.decode(latents, tile)) for tile in (0, 384, 128))
    assert np.array_equal(same, whole)
    assert 0 < np.abs(tiles - whole).mean() < 0.2 * np.abs(whole).mean()
