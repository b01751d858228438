"""ControlNet: a second network reads a map and adds to the image stream after each block.

Source: diffusers' FluxControlNetPipeline.  Unlike diffusers: the start noise of a seed is the same with and without
one, it is not evaluated where its strength is 0 or its window closed, and several may have different depths in any
order (diffusers drops the others' single-block residuals where the first has none).
"""

from dataclasses import dataclass, field, replace

import mlx.core as mx

from mflux.conditions.maps import MapSource, encode_map
from mflux.engine.denoise import At
from mflux.engine.network import Network
from mflux.engine.request import check_number, short
from mflux.engine.slots import PICTURE, Branch, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.errors import UsageError
from mflux.images.picture import PictureSource
from mflux.models.controlnet import ControlNetConfig, FluxControlNet, residual_of
from mflux.models.transformer import Residuals, TransformerConfig
from mflux.weights.kinds import KINDS, NetworkKind, read_config
from mflux.weights.resolve import Side, default_side, find_side

KINDS["controlnet"] = NetworkKind(ControlNetConfig, FluxControlNet)
# Of union models, in the order of their embedding.  Source: FLUX.1-dev-ControlNet-Union.
MODES = ("canny", "tile", "depth", "blur", "pose", "gray", "low-quality")
FROM_PICTURES = ("canny", "depth", "tile", "low-quality")  # maps of these modes can be made from a picture
MODEL = "ControlNet.model"  # in messages, where `model` alone is the transformer's
DEFAULT_GUIDANCE = 3.5  # where the ControlNet takes guidance and the model, schnell, has none


@dataclass(frozen=True)
class ControlNet(Condition):
    """Steer by a map with a ControlNet beside any 64-channel model; several may be given.

    image: the map: path, PIL image or uint8 array.  model: hub id or folder; the default
    is the edge ControlNet of the model's family.  strength: 0..2, 0 is off.  mode: which kind of map, for union
    ControlNets: a name of MODES or its number.  start, end: the part of the steps in which it works, 0 <= start < end
    <= 1.  source: a picture to make the map from, in place of `image`: its edges, with the mode `depth` its depth, with
    `tile` or `low-quality` itself.  canny_low, canny_high: thresholds of the edges.  depth_model: hub id or folder of
    another Depth Pro.  fit: as in Control.  Raises UsageError where ControlNet and model differ in width.
    """

    image: PictureSource | None = field(default=None, metadata=PICTURE)
    model: str = ""
    strength: float = 0.4
    mode: str | int | None = None
    start: float = 0.0
    end: float = 1.0
    source: PictureSource | None = field(default=None, metadata=PICTURE)
    canny_low: float = 100.0  # mflux's own
    canny_high: float = 200.0
    depth_model: str = ""
    fit: str = "stretch"

    @property
    def map(self) -> MapSource:
        """Where its map comes from."""
        kind = "canny" if self.mode is None else mode_name(self.mode)
        thresholds = self.canny_low, self.canny_high
        return MapSource(self.image, self.source, kind, *thresholds, self.depth_model, self.fit)

    def plan(self, draft: Draft) -> Draft:
        check_number("strength", self.strength, 0, 2)
        check_number("start", self.start, 0, 1)
        check_number("end", self.end, 0, 1)
        if self.start >= self.end:
            problem = f"the window from {self.start:g} to {self.end:g} holds no step"
            raise UsageError(problem, "give a `start` below `end`, both from 0 to 1", "start")
        if self.source is not None and self.map.kind not in FROM_PICTURES:
            problem = f"a map of the mode `{self.mode}` cannot be made from a picture here"
            raise UsageError(problem, "make the map elsewhere and give it as `image`", "mode")
        sized = self.map.plan(draft)
        if self.strength == 0:
            return replace(sized, encodes=draft.encodes)
        draft = sized
        if not any(in_window(step, draft.steps, self.start, self.end) for step in range(draft.steps)):
            draft = draft.noted(f"no step of {draft.steps} lies between {self.start:g} and {self.end:g}: no ControlNet")
        side = self._side(draft.row.family)
        config: ControlNetConfig = read_config(side.kind, side.place)
        check_fit(side, config, draft.transformer)
        mode = mode_number(self.mode, config.num_mode)
        if mode is None and self.mode is not None and self.source is None:
            draft = draft.noted(f"`{side.place.name}` reads one kind of map: the mode `{self.mode}` is not used")
        return draft.beside(side)

    def _side(self, family: str) -> Side:
        if self.model:
            return find_side("controlnet", self.model, MODEL, stays=True)
        return default_side("controlnet", "controlnet", family, MODEL, stays=True)

    def prepare(self, stage: Stage) -> Prepared:
        if self.strength == 0:
            return Prepared()
        made = self.map.make(stage)
        control = encode_map(made, stage, "control")
        network = stage.network(self._side(stage.plan.row.family))
        mode = mode_number(self.mode, network.config.num_mode)
        artifacts = self.map.artifacts(made)
        window = self.start, self.end

        def bind(run: Run) -> Hooks:
            steering = Steering(network, control, mode, self.strength, window, run)
            return Hooks(residuals=[steering], artifacts=[lambda index, pixels: artifacts])

        return Prepared(bind=bind)


class Steering:
    """What a ControlNet adds during one run: called once a step, for all branches."""

    def __init__(
        self,
        network: FluxControlNet,
        control: mx.array,
        mode: int | None,
        strength: float,
        window: tuple[float, float],
        run: Run,
    ):
        plan = run.plan
        self.network, self.mode, self.strength = network, mode, strength
        self.blocks = {"joint": plan.transformer.num_layers, "single": plan.transformer.num_single_layers}
        self.steps = [plan.first + i for i in range(plan.steps) if in_window(i, plan.steps, *window)]
        self.context = Network(network, *plan.seen, replace(run.inputs, channels=None, tokens=()))
        self.control = control
        asked = run.branches[0].guidance if run.branches[0].guidance is not None else DEFAULT_GUIDANCE
        guidance = asked if network.config.guidance_embeds else None
        self.branch: Branch = replace(run.branches[0], guidance=guidance)  # Unlike CFG's: the prompt's alone
        if self.steps:
            self.context.tabulate(self.branch, tuple(plan.sigmas[step] for step in self.steps))

    def __call__(self, latents: mx.array, at: At, cells: mx.array | None = None) -> Residuals | None:
        if at.index not in self.steps:
            return None
        context, batch = self.context, latents.shape[0]
        text = context.text(self.branch, batch)
        rope = context.rope(text.shape[1] + (self.mode is not None))
        control = context.widened(self.control if cells is None else self.control[:, cells], batch)
        table = context.table(self.branch, at.sigma)
        found = self.network(latents.astype(context.dtype), control, text, table, rope, self.mode)
        residuals = {"joint": found.joint, "single": found.single}

        def add(kind: str, index: int, image: mx.array) -> mx.array | None:
            residual = residual_of(residuals[kind], index, self.blocks[kind])
            if residual is None:
                return None
            references = image.shape[1] - residual.shape[1]  # tokens that follow the drawn ones
            return mx.pad(self.strength * residual, [(0, 0), (0, references), (0, 0)]).astype(image.dtype)

        return add


def in_window(step: int, steps: int, start: float, end: float) -> bool:
    """Whether step 0..steps - 1 of those that run is inside.  Source: diffusers, floats and all."""
    return step / steps >= start and (step + 1) / steps <= end


def mode_name(mode: str | int) -> str:
    """The name of a mode that may be a number."""
    number = int(mode) if str(mode).isdecimal() else -1
    return MODES[number] if 0 <= number < len(MODES) else str(mode)


def mode_number(mode: str | int | None, modes: int) -> int | None:
    """The embedding's row for a mode; None for a ControlNet without modes.  Raises UsageError for one it lacks."""
    if not modes:
        return None
    names = [*MODES[:modes], *map(str, range(len(MODES), modes))]
    known = ", ".join(f"`{name}` ({number})" for number, name in enumerate(names))
    if mode is None:
        raise UsageError("this ControlNet reads several kinds of maps", f"say which: {known}", "mode")
    number = names.index(str(mode)) if str(mode) in names else mode
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < modes:
        raise UsageError(f"{short(mode)} is no mode of this ControlNet", f"choose one of {known}", "mode")
    return number


def check_fit(side: Side, config: ControlNetConfig, transformer: TransformerConfig) -> None:
    """Refuse a ControlNet that was made for another model."""
    if config.conditioning_embedding_channels:
        problem = f"`{side.place}` reads pixels through an encoder of its own, which is not supported"
        raise UsageError(problem, "use a ControlNet that reads latents, for example InstantX's or Shakker-Labs'", MODEL)
    for name in ("width", "joint_attention_dim", "pooled_projection_dim"):
        own, theirs = getattr(config, name), getattr(transformer, name)
        if own != theirs:
            problem = f"`{side.place}` has {name} {own}, but the transformer {theirs}"
            raise UsageError(problem, "use a ControlNet that was made for this model", MODEL)
