"""Depth maps from pictures: 0 is the farthest point of the picture, 1 the nearest.

FLUX.1-Depth-dev wants relative inverse depth, so neither the field of view nor metres matter here.
"""

import mlx.core as mx
import numpy as np

from mflux.images.picture import to_pixels
from mflux.models.depth_pro import DepthPro, DepthProConfig, resize_bilinear
from mflux.weights.kinds import KINDS, NetworkKind

UNUSED = r".*\.mask_token|fov_model\..*"  # of its files: for training, and for metres
KINDS["depth_pro"] = NetworkKind(DepthProConfig, DepthPro, UNUSED)


def depth_map(network: DepthPro, rgb: np.ndarray) -> np.ndarray:
    """The map of a picture (H, W, 3) uint8, as (H, W) uint8: near is bright."""
    inverse = network(mx.array(to_pixels(rgb))).canonical.astype(mx.float32)
    sized = resize_bilinear(inverse[None, :, :, None], *rgb.shape[:2])[0, :, :, 0]
    return np.rint(normalised(np.array(sized)) * 255).astype(np.uint8)


def normalised(values: np.ndarray) -> np.ndarray:
    """Values brought to 0..1; all 0 where they are all the same."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else np.zeros_like(values)
