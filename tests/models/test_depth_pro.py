"""Depth Pro beyond parity: which pixels a patch sees, how patches are put together, sizes, the half-pixel rule."""

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import mflux  # noqa: F401
from mflux.models.depth_pro import (
    Deconvolution,
    DepthPro,
    DepthProConfig,
    VitConfig,
    merge_patches,
    resize_bilinear,
    split_patches,
)

REAL = DepthProConfig()


def small(patch_size: int, padding: int) -> DepthProConfig:
    """A Depth Pro of patches of 48 px, with tokens of `patch_size` px.  padding: tokens cut where patches merge."""
    vit = VitConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=48, patch_size=patch_size
    )
    return DepthProConfig(
        patch_model_config=vit,
        image_model_config=vit,
        fov_model_config=vit,
        patch_size=48,
        scaled_images_feature_dims=(16, 12, 10),
        intermediate_feature_dims=(8, 8),
        intermediate_hook_ids=(1, 0),
        merge_padding_value=padding,
        fusion_hidden_size=8,
    )


def coordinates(side: int) -> mx.array:
    """A picture (1, side, side, 2) whose values are the row and column of each pixel."""
    rows, columns = np.mgrid[:side, :side]
    return mx.array(np.stack([rows, columns], axis=-1)[None].astype(np.float32))


@pytest.mark.parametrize(
    ("ratio", "overlap", "count", "stride"), [(1.0, 0.25, 5, 288), (0.5, 0.5, 3, 192), (0.25, 0.0, 1, 384)]
)
def test_patches_of_each_level_cover_the_pixels_that_the_paper_says(ratio, overlap, count, stride):
    patches = np.array(split_patches(coordinates(int(1536 * ratio)), 384, overlap))
    assert patches.shape == (count**2, 384, 384, 2)
    for row in range(count):
        for column in range(count):
            patch = patches[row * count + column]
            assert tuple(patch[0, 0]) == (row * stride, column * stride)
            assert tuple(patch[-1, -1]) == (row * stride + 383, column * stride + 383)


def test_the_real_model_sees_35_patches():
    pairs = zip(REAL.scaled_images_ratios, REAL.scaled_images_overlap_ratios, strict=True)
    counts = [
        len(split_patches(mx.zeros((1, int(1536 * ratio), int(1536 * ratio), 1)), 384, overlap))
        for ratio, overlap in pairs
    ]
    assert REAL.image_size == 1536 and counts == [1, 9, 25]


@pytest.mark.parametrize(
    ("side", "overlap", "padding", "merged"), [(384, 0.25, 3, 96), (192, 0.5, 6, 48), (96, 0.0, 12, 24)]
)
def test_patches_of_a_coordinate_map_merge_without_seams(side, overlap, padding, merged):
    """Feature maps of 24 x 24 a patch, here cut out of one map of tokens as the patches are cut out of the picture."""
    whole = coordinates(side // 4)
    again = np.array(merge_patches(split_patches(whole, 24, overlap), padding))
    assert again.shape == (1, merged, merged, 2)
    assert np.array_equal(again, np.array(whole))


def test_bilinear_resizing_is_the_half_pixel_rule_on_two_by_two_pixels():
    x = mx.array([[[[0.0], [1.0]], [[2.0], [3.0]]]])
    wide = np.array(resize_bilinear(x, 2, 4))[0, :, :, 0]
    assert np.allclose(wide, [[0, 0.25, 0.75, 1], [2, 2.25, 2.75, 3]])
    both = np.array(resize_bilinear(x, 4, 4))[0, :, :, 0]
    assert np.allclose(both[:, 0], [0, 0.5, 1.5, 2]) and np.allclose(np.diff(both, axis=1), np.diff(wide, axis=1)[:1])
    assert np.allclose(np.array(resize_bilinear(x, 1, 1)), 1.5)


def test_shrinking_takes_two_neighbours_and_no_more():
    line = mx.array(np.arange(8, dtype=np.float32).reshape(1, 1, 8, 1) ** 2)
    assert np.allclose(np.array(resize_bilinear(line, 1, 2)).ravel(), [(1 + 4) / 2, (25 + 36) / 2])


def test_the_same_size_is_left_alone():
    x = mx.random.normal((1, 5, 7, 2))
    assert resize_bilinear(x, 5, 7) is x


def test_a_deconvolution_puts_each_weight_where_torch_does():
    layer = Deconvolution(1, 1, bias=True)
    layer.update({"weight": mx.array([[[[1.0], [2.0]], [[3.0], [4.0]]]]), "bias": mx.array([0.5])})
    out = np.array(layer(mx.array([[[[1.0], [10.0]]]])))[0, :, :, 0]
    assert np.array_equal(out, [[1.5, 2.5, 10.5, 20.5], [3.5, 4.5, 30.5, 40.5]])


@pytest.mark.parametrize("size", [(40, 56), (200, 30), (1, 1)])
@pytest.mark.parametrize("field_of_view", [False, True])
@pytest.mark.parametrize(("patch_size", "padding", "side"), [(6, 1, 512), (16, 0, 192)])
def test_a_small_network_runs_end_to_end_on_pictures_of_any_size(size, field_of_view, patch_size, padding, side):
    config = small(patch_size, padding)
    network = DepthPro(config, field_of_view)
    keys = iter(range(10_000))
    network.update(
        tree_map(lambda a: 0.15 * mx.random.normal(a.shape, key=mx.random.key(next(keys))), network.parameters())
    )
    found = network(mx.random.normal((1, 3, *size), key=mx.random.key(0)))
    assert config.image_size == 192 and found.canonical.shape == (side, side)  # 64 px a token of a side
    assert (found.field_of_view is None) != field_of_view
    assert found.field_of_view is None or found.field_of_view.shape == (1,)
    assert bool(mx.isfinite(found.canonical).all()) and float(found.canonical.min()) >= 0
