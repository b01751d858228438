"""`mflux-save-depth`: a picture's depth map, without drawing anything."""

from dataclasses import dataclass

from mflux.cli.options import Values
from mflux.engine.request import check_choice
from mflux.errors import UsageError
from mflux.paths import check_output, expand
from mflux.weights.catalog import BITS

ROLE = ("depth_pro", "depth estimator")


@dataclass(frozen=True)
class SaveDepth:
    """image: the picture; output: where the map goes; model: Depth Pro's hub id or folder; quantize: bits a weight."""

    image: str | None = None
    output: str | None = None
    model: str = ""
    quantize: int | None = None


def run(values: Values) -> None:
    """Write the map and print its path."""
    wish = SaveDepth(**values)
    if wish.image is None:
        raise UsageError("`--image-path` is missing", "give the picture whose depth to estimate")
    if wish.quantize is not None:
        check_choice("quantize", wish.quantize, BITS)
    picture_path = expand(wish.image, "image")
    target = check_output(wish.output or picture_path.with_name(f"{picture_path.stem}_depth.png"))

    from PIL import Image

    from mflux.conditions.depth import depth_map
    from mflux.images.metadata import save_picture
    from mflux.images.picture import open_picture
    from mflux.weights.load import load_network
    from mflux.weights.resolve import default_side, find_side

    picture = open_picture(wish.image, "image")
    if wish.model in ("", "tiny"):
        side = default_side(*ROLE, wish.model or "dev", "model")
    else:
        side = find_side("depth_pro", wish.model, "model")
    network = load_network(side.kind, side.place, None, wish.quantize)
    print(save_picture(Image.fromarray(depth_map(network, picture.rgb)), target, None, False, None))
