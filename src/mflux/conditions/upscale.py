"""Upscale: a ControlNet that reads the enlarged picture draws it anew with detail; large targets in tiles.

Source: jasperai's Flux.1-dev-Controlnet-Upscaler.  Unlike mflux 0.24: with the model's guidance and shifted noise
levels, as it was trained; tiles overlap and are blended in every step, so that no seam is left.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from mflux.conditions.controlnet import Steering, check_fit, mode_number
from mflux.conditions.maps import encode_map
from mflux.engine.request import check_number
from mflux.engine.slots import PICTURE, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.images.picture import PictureSource, open_picture
from mflux.images.sizes import floor_to_cell
from mflux.weights.kinds import read_config
from mflux.weights.resolve import Side, default_side, find_side

MODEL = "Upscale.model"  # in messages, where `model` alone is the transformer's
MAX_SCALE = 16
TILES_ABOVE = 2  # megapixels, counted as the model's own size: beyond it, tiles of that size


@dataclass(frozen=True)
class Upscale(Condition):
    """Enlarge a picture.

    image: path, PIL image or uint8 array, enlarged (bicubic) to the run's size: the asked one, else its own times
    `scale`, 1..16, floored to multiples of 16.  strength: 0..2, how closely the picture is followed, 0 is off.
    model: hub id or folder of another upscaling ControlNet.
    """

    image: PictureSource = field(metadata=PICTURE)
    strength: float = 0.4
    scale: float = 1.0
    model: str = ""

    def plan(self, draft: Draft) -> Draft:
        check_number("strength", self.strength, 0, 2)
        check_number("scale", self.scale, 1, MAX_SCALE)
        picture = open_picture(self.image, "image")
        own = floor_to_cell(round(picture.height * self.scale)), floor_to_cell(round(picture.width * self.scale))
        draft = draft.sized(*(draft.asked(*own) or own))
        height, width, side = draft.height or own[0], draft.width or own[1], draft.row.side
        if height <= picture.height and width <= picture.width:
            draft = draft.noted("the picture is not enlarged: `scale`, or `height` and `width`, say by how much")
        if self.strength == 0:
            return draft
        if height * width > TILES_ABOVE * side**2:
            draft = replace(draft, tile=(min(height, side), min(width, side)))
        upscaler = self._upscaler(draft.row.family)
        check_fit(upscaler, read_config(upscaler.kind, upscaler.place), draft.transformer)
        return replace(draft.beside(upscaler), encodes=max(draft.encodes, 1))

    def _upscaler(self, family: str) -> Side:
        if self.model:
            return find_side("controlnet", self.model, MODEL, stays=True)
        return default_side("controlnet", "upscaler", family, MODEL, stays=True)

    def prepare(self, stage: Stage) -> Prepared:
        if self.strength == 0:
            return Prepared()
        size = stage.plan.width, stage.plan.height
        picture = Image.fromarray(open_picture(self.image, "image").rgb)
        enlarged = np.asarray(picture.resize(size, Image.Resampling.BICUBIC))
        control = encode_map(enlarged, stage, "control")
        network = stage.network(self._upscaler(stage.plan.row.family))
        mode = mode_number("tile", network.config.num_mode)

        def bind(run: Run) -> Hooks:
            return Hooks(residuals=[Steering(network, control, mode, self.strength, (0.0, 1.0), run)])

        return Prepared(bind=bind)
