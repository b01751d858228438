"""Pictures from paths, PIL images or arrays, of any mode: orientation applied, alpha and colour profile kept."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from mflux.engine.request import MAX_SIDE
from mflux.errors import UsageError
from mflux.paths import expand

MOVING = ("GIF", "PNG", "WEBP")  # other formats hold previews or pages besides the picture
PictureSource = str | os.PathLike[str] | Image.Image | np.ndarray
Image.MAX_IMAGE_PIXELS = None  # sides are checked here before a picture is decoded


@dataclass(frozen=True)
class Picture:
    """A decoded picture.  pixels: (H, W, 3) or, with transparency, (H, W, 4) uint8."""

    pixels: np.ndarray
    icc: bytes | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def rgb(self) -> np.ndarray:
        """(H, W, 3) uint8, transparency laid on white."""
        if self.pixels.shape[2] == 3:
            return self.pixels
        alpha = self.pixels[..., 3:].astype(np.uint16)
        return ((self.pixels[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)

    def resized(self, height: int, width: int) -> "Picture":
        """Stretched to a size by Lanczos; the same size is left alone, byte for byte."""
        if (height, width) == (self.height, self.width):
            return self
        image = Image.fromarray(self.pixels).resize((width, height), Image.Resampling.LANCZOS)
        return Picture(np.asarray(image), self.icc)


def open_picture(source: PictureSource, field: str) -> Picture:
    """Decode a picture whole.  Raises UsageError, naming `field`, where there is none or it is damaged."""
    image = load(source, field)
    icc = image.info.get("icc_profile")
    fits = isinstance(icc, bytes) and icc[16:20] == b"RGB "  # of a grey or CMYK source it would be wrong for the result
    return Picture(np.asarray(plain(image)), icc if fits else None)


def several(sources: PictureSource | Sequence[PictureSource]) -> tuple[PictureSource, ...]:
    """A picture, or a list of them, as a tuple."""
    return tuple(sources) if isinstance(sources, Sequence) and not isinstance(sources, str) else (sources,)  # type: ignore[arg-type]


def open_pictures(sources: Sequence[PictureSource], field: str) -> list[Picture]:
    return [open_picture(source, field) for source in sources]


def open_grey(source: PictureSource, field: str) -> Image.Image:
    """A mask as an 8-bit grey image; transparent means black."""
    image = load(source, field)
    if image.mode in ("L", "1"):
        return image.convert("L")
    image = plain(image)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L")


def load(source: PictureSource, field: str) -> Image.Image:
    """A PIL image with its EXIF orientation applied, every pixel decoded."""
    if isinstance(source, np.ndarray):
        return from_array(source, field)
    if isinstance(source, Image.Image):
        return decoded(source, "the picture", field)
    if not isinstance(source, str | os.PathLike):
        raise UsageError(f"{type(source).__name__} is no picture", "give a path, a PIL image or a uint8 array", field)
    path = expand(source, field)
    try:
        with Image.open(path) as image:
            return decoded(image, f"`{path}`", field)
    except FileNotFoundError:
        raise UsageError(f"there is no file `{path}`", "check the path", field) from None
    except IsADirectoryError:
        raise UsageError(f"`{path}` is a folder", "give a picture file", field) from None
    except UsageError:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise unreadable(f"`{path}`", error, field) from None


def decoded(image: Image.Image, name: str, field: str) -> Image.Image:
    """Every pixel decoded, upright; sides are checked before that."""
    if min(image.size) < 1 or max(image.size) > MAX_SIDE:
        problem = f"{name} is {image.width} x {image.height} px"
        raise UsageError(problem, f"sides up to {MAX_SIDE} px", field)
    if image.format in MOVING and getattr(image, "is_animated", False):
        frames = getattr(image, "n_frames", 2)
        raise UsageError(f"{name} moves: it has {frames} frames", "save one of them as a picture of its own", field)
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's decoders raise many kinds, SyntaxError and struct.error among them
        raise unreadable(name, error, field) from None


def unreadable(name: str, error: Exception, field: str) -> UsageError:
    problem = f"{name} cannot be read as a picture ({error})"
    return UsageError(problem, "it may be damaged or of another format; PNG, JPEG and WebP work", field)


def from_array(array: np.ndarray, field: str) -> Image.Image:
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or not array.size:
        raise UsageError(
            f"an array of {array.dtype} {array.shape} is no picture",
            "give uint8 values of shape (H, W), (H, W, 3) or (H, W, 4)",
            field,
        )
    return Image.fromarray(array[..., 0] if channels == 1 and array.ndim == 3 else array)


def plain(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where the picture has transparency."""
    if image.mode in ("RGB", "RGBA"):
        return image
    if image.mode.startswith(("I", "F")):  # grey of 16 bits; 32-bit integers and floats come as 8 or 16 bits
        values = np.asarray(image, np.float64)
        deep = image.mode.startswith("I;16") or values.max() > 255
        image = Image.fromarray(np.clip(values / (257 if deep else 1) + 0.5, 0, 255).astype(np.uint8))
    transparent = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def describe(source: PictureSource | list[PictureSource], field: str) -> Any:
    """How metadata names a picture: path and sha256 of the file, or the sha256 of the pixels."""
    if isinstance(source, list | tuple):
        return [describe(each, field) for each in source]
    if isinstance(source, str | os.PathLike):
        path = expand(source, field)
        return {"path": str(path.absolute()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return {"sha256": hashlib.sha256(open_picture(source, field).pixels.tobytes()).hexdigest()}


def described(value: Any, field: str) -> Any:
    """The path of a picture that `describe` named, its content checked.  Raises UsageError where it is not the same."""
    if isinstance(value, list):
        return [described(each, field) for each in value]
    if not isinstance(value, dict):
        return value
    if "path" not in value:
        raise UsageError("the picture was given in memory and is not in the metadata", "give it again", field)
    path = Path(value["path"])
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", "the picture was moved; give it again", field)
    if hashlib.sha256(path.read_bytes()).hexdigest() != value.get("sha256"):
        raise UsageError(f"`{path}` has changed since", "give the picture again", field)
    return str(path)


def to_pixels(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [-1, 1]."""
    return np.ascontiguousarray((rgb.astype(np.float32) / np.float32(255) * 2 - 1).transpose(2, 0, 1))[None]


def from_pixels(pixels: np.ndarray) -> np.ndarray:
    """(B, 3, H, W) floats, clamped to [-1, 1] -> (B, H, W, 3) uint8, rounded half to even."""
    unit = np.clip(pixels.astype(np.float32) * np.float32(0.5) + np.float32(0.5), 0, 1)
    return np.rint(unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
