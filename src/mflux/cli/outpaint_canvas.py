"""`mflux-outpaint-canvas`: a picture with room around it, and the mask of that room."""

from dataclasses import dataclass

from mflux.cli.options import Values
from mflux.errors import UsageError
from mflux.paths import check_output, expand


@dataclass(frozen=True)
class OutpaintCanvas:
    """image: the picture; outpaint: top, right, bottom, left."""

    image: str | None = None
    outpaint: str | None = None


def run(values: Values) -> None:
    """Write both beside the picture and print their paths."""
    wish = OutpaintCanvas(**values)
    if wish.image is None:
        raise UsageError("there is no picture", "name its file")
    if wish.outpaint is None:
        hint = "say how much room to put around it, for example `--image-outpaint-padding 0,25%,0,25%`"
        raise UsageError("`--image-outpaint-padding` is missing", hint)
    path = expand(wish.image, "image")
    targets = [check_output(path.with_name(f"{path.stem}_outpaint{end}.png")) for end in ("", "_mask")]

    from PIL import Image

    from mflux.images.masks import outpainted
    from mflux.images.metadata import save_picture
    from mflux.images.picture import open_picture

    canvas, mask = outpainted(open_picture(wish.image, "image"), None, wish.outpaint)
    for pixels, icc, target in zip((canvas.pixels, mask), (canvas.icc, None), targets, strict=True):
        print(save_picture(Image.fromarray(pixels), target, None, False, icc))
