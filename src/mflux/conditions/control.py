"""Control: a network with 128 input channels sees a depth or edge map beside the noisy latents.

Source: FLUX.1-Depth-dev and FLUX.1-Canny-dev; channel order of diffusers' FluxControlPipeline.
"""

from dataclasses import dataclass, field

from mflux.conditions.maps import MapSource, encode_map
from mflux.engine.latents import TOKEN_CHANNELS
from mflux.engine.request import check_choice
from mflux.engine.slots import PICTURE, Condition, Draft, Hooks, Inputs, Prepared, Stage, check_channels
from mflux.images.picture import PictureSource

KINDS = ("depth", "canny")


@dataclass(frozen=True)
class Control(Condition):
    """Draw after a depth map (near is bright) or a map of edges, with a checkpoint made for it.

    image: the map: path, PIL image or uint8 array.  source: a picture to make the map
    from, in its place.  kind: `depth` or `canny`.  canny_low, canny_high: thresholds of the edges, 0..3000.
    depth_model: hub id or folder of another Depth Pro.  fit: how the map is brought to an asked size: `stretch`, `crop`
    or `pad`; without a size the run has the picture's proportions.
    """

    image: PictureSource | None = field(default=None, metadata=PICTURE)
    kind: str = "depth"
    source: PictureSource | None = field(default=None, metadata=PICTURE)
    canny_low: float = 50.0  # Black Forest Labs' own, on RGB
    canny_high: float = 200.0
    depth_model: str = ""
    fit: str = "stretch"

    @property
    def _map(self) -> MapSource:
        thresholds = self.canny_low, self.canny_high
        return MapSource(self.image, self.source, self.kind, *thresholds, self.depth_model, self.fit)

    def plan(self, draft: Draft) -> Draft:
        check_choice("kind", self.kind, KINDS)
        draft = draft.widened(TOKEN_CHANNELS, "Control", self.kind)
        check_channels(draft)  # before an estimator of depth is looked for
        return self._map.plan(draft)

    def prepare(self, stage: Stage) -> Prepared:
        made = self._map.make(stage)
        artifacts = self._map.artifacts(made)
        inputs = Inputs(channels=encode_map(made, stage, "control"))
        return Prepared(inputs, bind=lambda run: Hooks(artifacts=[lambda index, pixels: artifacts]))
