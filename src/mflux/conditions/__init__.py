"""Editing and steering methods, one file each."""

from mflux.conditions.fill import Fill
from mflux.conditions.image_to_image import ImageToImage
from mflux.conditions.inpaint import Inpaint

__all__ = ["Fill", "ImageToImage", "Inpaint"]
