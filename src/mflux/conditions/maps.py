"""Control maps: given as they are, or made from a picture; stretched to the run's size."""

from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.conditions.depth import depth_map
from mflux.engine.latents import pack_latents
from mflux.engine.request import check_choice, check_number
from mflux.engine.slots import Draft, Stage
from mflux.errors import UsageError
from mflux.images.canny import canny
from mflux.images.picture import Picture, PictureSource, open_picture, to_pixels
from mflux.images.sizes import fit, of_area
from mflux.weights.resolve import Side, default_side, find_side

FITS = ("stretch", "crop", "pad")
MADE = ("canny", "depth")  # kinds that are made from a picture
MAX_GRADIENT = 3000  # |dx| + |dy| of 8-bit pixels stays below 2041


@dataclass(frozen=True)
class MapSource:
    """Where a control map comes from: `image`, a map, or `source`, a picture to make one of `kind` from.

    kind: `canny` or `depth`; anything else takes the picture as it is.  depth_model: hub id or folder of Depth Pro.
    fit: how it is brought to the run's size: by `stretch`, `crop` (proportions kept, the overflow cut) or `pad` (the
    borders filled by the outermost rows or columns).
    """

    image: PictureSource | None
    source: PictureSource | None
    kind: str
    canny_low: float
    canny_high: float
    depth_model: str = ""
    fit: str = "stretch"

    def open(self) -> Picture:
        """The picture.  Raises UsageError unless exactly one is given."""
        if (self.image is None) == (self.source is None):
            problem = "both `image` and `source` are given" if self.image is not None else "there is no control image"
            raise UsageError(problem, "give `image`, a map, or `source`, a picture to make the map from")
        if self.source is not None:
            return open_picture(self.source, "source")
        assert self.image is not None
        return open_picture(self.image, "image")

    def plan(self, draft: Draft) -> Draft:
        """Check the picture; without an asked size the run gets its proportions, at the model's own number of px."""
        picture = self.open()
        check_choice("fit", self.fit, FITS)
        for name in ("canny_low", "canny_high"):
            check_number(name, getattr(self, name), 0, MAX_GRADIENT)
        if self._finds_depth:
            draft = draft.beside(self._estimator(draft.row.family))
        own = of_area(draft.row.side**2, picture.height, picture.width)
        return replace(draft.sized(*(draft.asked(*own) or own)), encodes=max(draft.encodes, 1))

    def make(self, stage: Stage) -> np.ndarray:
        """The map at the run's size, (H, W, 3) uint8."""
        picture, size = self.open(), (stage.plan.height, stage.plan.width)
        if self._finds_depth:
            depth = depth_map(stage.network(self._estimator(stage.plan.row.family)), picture.rgb)
            return self._sized(Picture(np.repeat(depth[..., None], 3, axis=2)), *size)
        rgb = self._sized(picture, *size)
        if self.source is None or self.kind != "canny":
            return rgb
        return np.repeat(canny(rgb, self.canny_low, self.canny_high)[..., None], 3, axis=2)

    def artifacts(self, made: np.ndarray) -> dict[str, Image.Image]:
        """The map for who wants to keep it, where it was made here."""
        return {} if self.source is None or self.kind not in MADE else {self.kind: Image.fromarray(made)}

    def _sized(self, picture: Picture, height: int, width: int) -> np.ndarray:
        if self.fit == "stretch":
            return picture.resized(height, width).rgb
        return np.asarray(fit(Image.fromarray(picture.rgb), height, width, cover=self.fit == "crop"))

    @property
    def _finds_depth(self) -> bool:
        return self.source is not None and self.kind == "depth"

    def _estimator(self, family: str) -> Side:
        if self.depth_model:
            return find_side("depth_pro", self.depth_model, "depth_model")
        return default_side("depth_pro", "depth estimator", family, "depth_model")


def encode_map(made: np.ndarray, stage: Stage, role: str) -> mx.array:
    """A map (H, W, 3) uint8 as tokens (1, S, 64)."""
    return pack_latents(stage.encode(mx.array(to_pixels(made)), role))
