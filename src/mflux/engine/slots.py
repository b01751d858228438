"""The slots that a condition can fill, before a run and during it.

A condition (image-to-image, Fill, ...) is a frozen dataclass of what the user said, in one file of `conditions/`.  It
acts at three moments, each of which does nothing by default:

plan     Draft -> Draft       no arrays, no weights: sizes, first step, channels, every refusal
prepare  Stage -> Prepared    encoded texts and the VAE are there: seed-free arrays, and how to finish the picture
bind     Run -> Hooks         made by `prepare`, called anew for each run: functions, with their state in a closure
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import mlx.core as mx
import numpy as np

from mflux.engine.denoise import At, Step
from mflux.engine.latents import TOKEN_CHANNELS
from mflux.engine.request import CELL, Config, Request, check_number
from mflux.engine.schedule import image_strength_start, strength_start
from mflux.errors import UsageError
from mflux.images.picture import describe, described, load, several
from mflux.images.sizes import floor_to_cell
from mflux.models.transformer import EditAttention, JointView, Residuals, StreamModulation, TransformerConfig
from mflux.weights.catalog import TASK_CHANNELS, Row
from mflux.weights.resolve import Side

# Names of conditions and how to find their classes: conditions import the engine, so the engine asks by name only.
ROOMS: list[tuple[frozenset[str], Callable[[str], type["Condition"]]]] = []
COMMANDS_OF = {"fill": "`mflux-generate-fill`", "depth": "`mflux-generate-depth` or `mflux-generate-canny`"}
# Metadata of a field that holds a picture: a path, a PIL image or a uint8 array.  `named`: its name in messages, where
# that is another than the field's.
PICTURE = {"picture": True}
DERIVED = {"derived": True}  # metadata of a field that follows from the others and stays out of the request's JSON


def no_part(name: str, hint: str) -> Any:
    raise UsageError(f"there is no `{name}`", hint, "model")


@dataclass(frozen=True)
class Draft:
    """A plan in the making.  Conditions return changed copies; all refusals happen here, before weights are read."""

    request: Request
    row: Row
    transformer: TransformerConfig
    steps: int
    part: Callable[[str, str], Any] = no_part  # name, hint -> sizes of a network that only some models have
    height: int | None = None  # px, multiples of 16; None: not decided yet
    width: int | None = None
    own_size: bool = False  # the canvas is a source's own size, padded; nobody asked for another
    first: int = 0  # the first step that runs
    tile: tuple[int, int] | None = None  # height and width of the tiles that are drawn, px; None: all at once
    channels: int = TOKEN_CHANNELS  # per image token at the network's input
    channels_by: str = ""  # the condition that adds channels
    channels_model: str = "dev"  # an alias whose network takes so many
    start_by: str = ""  # the condition that makes the first latents
    inverted_by: str = ""  # the condition whose picture's own noise is in place of the seed's
    start_steps: int = 0  # network calls that this takes
    whole_by: str = ""  # a condition that cannot be drawn in tiles
    edit_by: str = ""  # the condition that replaces the attention's output
    encodes: int = 0  # pictures go through the VAE's encoder; tokens of the largest, where it may be above the canvas
    references_by: str = ""  # the condition that has reference pictures
    extra_tokens: int = 0  # reference and text tokens beyond the usual, for the memory forecast
    levels: Callable[[Sequence[float]], Sequence[float]] | None = None  # noise levels of the run from the schedule's
    sides: tuple[Side, ...] = ()  # networks beside the model's own
    prompt: str | None = None  # in place of the request's
    texts: tuple[str, ...] = ()  # to encode besides the prompt
    loras: tuple[str, ...] = ()  # that methods have of their own; the user's come after them
    notes: tuple[str, ...] = ()

    def asked(self, height: int, width: int) -> tuple[int, int] | None:
        """The size to stretch a source of height x width to, multiples of 16; None where nobody asked for one."""
        if self.height and self.width:
            return self.height, self.width
        config = self.request.config
        if not (config.height or config.width):
            return None
        return floor_to_cell(config.height or height), floor_to_cell(config.width or width)

    def sized(self, height: int, width: int, own_size: bool = False) -> "Draft":
        """With a size, unless one is there."""
        return self if self.height else replace(self, height=height, width=width, own_size=own_size)

    def beside(self, side: Side) -> "Draft":
        return self if side in self.sides else replace(self, sides=(*self.sides, side))

    def noted(self, note: str) -> "Draft":
        return self if note in self.notes else replace(self, notes=(*self.notes, note))

    def meant_for(self, task: str) -> "Draft":
        """With a note where the model is known to be of another kind that takes the same channels."""
        if self.row.task == task or self.request.model not in self.row.names:
            return self
        return self.noted(f"`{self.request.model}` was not trained for this: `{task}` is, or weights like it")

    def widened(self, extra: int, who: str, model: str) -> "Draft":
        """With `extra` more input channels, as `model` has them; at most one condition can add any."""
        if self.channels_by:
            raise UsageError(f"{who} and {self.channels_by} both need the network's extra channels", "use one of them")
        return replace(self, channels=self.channels + extra, channels_by=who, channels_model=model)

    def adapted(self, lora: str) -> "Draft":
        """With a LoRA that belongs to the method: a path, or a file of the hub."""
        return replace(self, loras=(*self.loras, lora))

    def encoding(self, *texts: str) -> "Draft":
        """With texts to encode besides the prompt."""
        return replace(self, texts=(*self.texts, *texts))

    def prompted(self, text: str, who: str) -> "Draft":
        """With a text in place of the request's prompt."""
        if self.prompt is not None:
            raise UsageError(f"{who} and another condition both write the prompt", "use one of them")
        return replace(self, prompt=text)

    def referring(self, sizes: Sequence[tuple[int, int]], who: str) -> "Draft":
        """With reference pictures of these heights and widths as extra tokens; at most one condition can have any."""
        if self.references_by:
            raise UsageError(f"{who} and {self.references_by} both have references", "give all of them to one")
        counts = [height * width // CELL**2 for height, width in sizes]
        extra, largest = self.extra_tokens + sum(counts), max([self.encodes, *counts])
        model = self.channels_model if self.channels_by else "kontext"
        return replace(self, references_by=who, extra_tokens=extra, encodes=largest, channels_model=model)

    def starting_at(self, image_strength: float | None, strength: float | None, default: float, who: str) -> "Draft":
        """With start latents from the step that a strength of either kind means; `default` is an image_strength."""
        if image_strength is not None and strength is not None:
            raise UsageError("`image_strength` and `strength` say the same thing in two ways", "give one", "strength")
        if strength is not None:
            check_number("strength", strength, 0, 1, above=True)
            return self.starting(strength_start(self.steps, strength), who)
        wish = default if image_strength is None else image_strength
        check_number("image_strength", wish, 0, 1, below=True)
        return self.starting(image_strength_start(self.steps, wish), who)

    def starting(self, first: int, who: str) -> "Draft":
        """With start latents made by `who`, from step `first` on; at most one condition can make them."""
        if self.start_by or (self.inverted_by and first):
            others = self.start_by or self.inverted_by
            raise UsageError(f"{who} and {others} both make the first latents", "use one of them")
        if first >= self.steps:
            raise UsageError(
                f"{self.steps} steps with this strength leave no step to draw",
                "use more steps, or a strength that changes the picture more",
                "num_inference_steps",
            )
        return replace(self, first=first or self.first, start_by=who)

    def inverting(self, first: int, who: str) -> "Draft":
        """With a picture's own noise from step `first` on: it goes with what would begin at pure noise."""
        if self.inverted_by or self.first or self.levels:
            others = self.inverted_by or self.start_by
            raise UsageError(f"{who} and {others} both make the first latents", "use one of them")
        return replace(self.whole(who), first=first, inverted_by=who, start_steps=self.steps - first)

    def editing(self, who: str) -> "Draft":
        """With an attention output replaced by `who`; at most one condition can do that."""
        if self.edit_by:
            raise UsageError(f"{who} and {self.edit_by} both edit inside the attention", "give all edits to one")
        return replace(self.whole(who), edit_by=who)

    def whole(self, who: str) -> "Draft":
        """With a condition that has to see all of the picture at once."""
        return replace(self, whole_by=who)


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a request, derived before any weight is read."""

    request: Request
    row: Row
    transformer: TransformerConfig
    height: int
    width: int
    own_size: bool
    tile: tuple[int, int] | None
    sigmas: tuple[float, ...]
    first: int
    start_steps: int
    guidance: float | None
    true_cfg: float
    text_tokens: int
    encodes: int
    vae_tile: int  # px, 0: the autoencoder sees the whole picture
    extra_tokens: int
    sides: tuple[Side, ...]
    prompt: str
    texts: tuple[str, ...]
    loras: tuple[Path, ...]
    memory_bytes: int
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1 - self.first

    @property
    def total(self) -> int:
        """How many steps there are to wait for: those of an inversion too."""
        return self.start_steps + self.steps

    @property
    def tokens(self) -> int:
        return self.height * self.width // CELL**2

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width that the network sees at once, px."""
        return self.tile or (self.height, self.width)


@dataclass(frozen=True)
class Inputs:
    """Seed-free arrays of a run, batch 1; the network widens them.  Training uses only these."""

    channels: mx.array | None = None  # (1, S, C): concatenated to the image tokens' channels
    tokens: Sequence[tuple[mx.array, np.ndarray]] = ()  # reference tokens (1, R, 64) with their ids (R, 3)
    text: Sequence[mx.array] = ()  # (1, T, width): appended to the text tokens
    prompt_scale: float = 1.0  # times the prompt's own tokens
    pooled_scale: float = 1.0  # times its pooled vector


@dataclass(frozen=True)
class EncodedText:
    """A text as the network reads it.  count: how many of its T5 tokens are the text's own, without its end token."""

    states: mx.array  # (1, T, width)
    pooled: mx.array  # (1, P)
    count: int


@dataclass(frozen=True)
class Branch:
    """One text that the network is asked about: states (1, T, width), pooled (1, P), distilled guidance or None."""

    text: mx.array
    pooled: mx.array
    guidance: float | None


# (latents, at, cells) -> what is added after each block in this step, for all branches; None: nothing.  cells: which
# of the picture's tokens the latents are; None: all.
StepResiduals = Callable[[mx.array, At, mx.array | None], Residuals | None]


@dataclass(frozen=True)
class Hooks:
    """What a condition does during one run.  `merge` puts those of several conditions together.

    The three about attention are asked before each pass (step; 0 for the prompt's, 1 for the negative one of true CFG)
    and answer with what works inside its blocks, or None for the plain pass: what a pass carries from block to block
    lives in the answer.
    """

    start: Iterator[Step] | None = None  # its last step is the run's first latents
    tokens: Sequence[tuple[mx.array, np.ndarray]] = ()  # like those of Inputs, but of this run: (B, R, 64)
    text_modulation: Callable[[At, int], list[StreamModulation] | None] | None = None  # of the joint blocks
    edit_attention: Callable[[At, int], EditAttention | None] | None = None
    watch_attention: Sequence[Callable[[At, int], Callable[[JointView], None] | None]] = ()
    residuals: Sequence[StepResiduals] = ()
    steer: Sequence[Callable[[mx.array, mx.array, At], mx.array]] = ()  # (velocity, x, at) -> velocity
    after_step: Sequence[Callable[[mx.array, At], mx.array]] = ()  # (x, at) -> x at noise level at.sigma_next
    keep: Sequence[Callable[[], Sequence[mx.array]]] = ()  # arrays to evaluate with each step
    artifacts: Sequence[Callable[[int, np.ndarray], Mapping[str, Any]]] = ()  # (place in the run, its pixels) -> named


@dataclass(frozen=True)
class Stage:
    """What a condition can use to prepare."""

    plan: Plan
    encode: Callable[[mx.array, str], mx.array]  # pixels (1, 3, H, W) and their role -> latents (B, 16, H/8, W/8)
    network: Callable[[Any], Any]  # a loaded network: a Side of the plan, or a part of the model by its name
    text: Callable[[str], EncodedText]  # one of the plan's texts


@dataclass(frozen=True)
class Run:
    """One run: some seeds drawn together."""

    plan: Plan
    noise: mx.array  # (B, S, 64)
    branches: tuple[Branch, ...]  # the prompt's; with true CFG also the negative one
    inputs: Inputs  # of all conditions together
    latents_of: Callable[[Request], mx.array]  # what another request ends in, (B, S, 64), drawn from the same noise
    seeds: tuple[int, ...]
    network: Callable[[], Any]  # the run's Network; it is loaded by the first call
    begun: Callable[[], mx.array]  # once steps run: the latents that they began with


def no_hooks(run: Run) -> Hooks:
    return Hooks()


def no_finish(pixels: np.ndarray) -> np.ndarray:
    return pixels


@dataclass(frozen=True)
class Prepared:
    """A condition's arrays, its functions of a run, and what it does to the finished picture (H, W, 3) uint8."""

    inputs: Inputs = Inputs()
    bind: Callable[[Run], Hooks] = no_hooks
    finish: Callable[[np.ndarray], np.ndarray] = no_finish
    icc: bytes | None = None
    keeps_canvas: bool = False  # the drawn picture before `finish` is an artifact, `full`


@dataclass(frozen=True)
class Condition:
    """One editing or steering method, as the user asked for it.

    reads_heads: it looks into the blocks, where split weights show each process its own heads only.
    """

    reads_heads: ClassVar[bool] = False

    def plan(self, draft: Draft) -> Draft:
        return draft

    def prepare(self, stage: Stage) -> Prepared:
        return Prepared()

    def check_pictures(self) -> None:
        """Decode all pictures, before a model is looked for.  Raises UsageError, naming the field."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.metadata.get("picture") and value is not None:
                for source in several(value):
                    load(source, each.metadata.get("named", each.name))

    def to_json(self) -> dict[str, Any]:
        """Class name and the fields that differ from their defaults; pictures as path and sha256."""
        values = {"condition": type(self).__name__}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.metadata.get("derived"):
                continue
            if each.metadata.get("picture") and value is not None:
                values[each.name] = describe(value, each.name)
            elif value != each.default:
                values[each.name] = value
        return values


def condition_class(name: str) -> type[Condition]:
    """The class of a condition.  Raises UsageError for one that is unknown."""
    for names, find in ROOMS:
        if name in names:
            return find(name)
    known = sorted(each for names, _ in ROOMS for each in names)
    raise UsageError(f"unknown condition `{name}`", f"known: {', '.join(known)}")


def condition_from_json(value: Mapping[str, Any]) -> Condition:
    """The condition that `to_json` described.  Raises UsageError for one that is unknown or whose pictures changed."""
    rest = {**value}
    kind = condition_class(rest.pop("condition"))
    pictures = {each.name for each in fields(kind) if each.metadata.get("picture")}
    return kind(**{key: described(each, key) if key in pictures else each for key, each in rest.items()})


def request_from_json(value: Mapping[str, Any]) -> Request:
    """The request that `to_json` wrote.  Raises UsageError where a key or value is wrong."""
    try:
        rest = {**value}
        conditions = tuple(condition_from_json(each) for each in rest.pop("conditions", []))
        config = Config(**rest.pop("config", {}))
        rest["loras"] = tuple((path, scale) for path, scale in rest.pop("loras", []))
        return Request(config=config, seeds=tuple(rest.pop("seeds")), conditions=conditions, **rest)
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"this is no request of mflux ({error})", "was the metadata edited by hand?") from None


def merge(all_hooks: Sequence[Hooks]) -> Hooks:
    """The hooks of one run, in the order of the conditions.  The plan has refused clashes already."""
    together: dict[str, Any] = {}
    for each in fields(Hooks):
        given = [getattr(hooks, each.name) for hooks in all_hooks]
        if each.default is None:  # at most one condition has it
            together[each.name] = next(filter(None, given), None)
        else:
            together[each.name] = [item for items in given for item in items]
    return Hooks(**together)


def artifacts_of(hooks: Hooks, index: int, pixels: np.ndarray) -> dict[str, Any]:
    """Artifacts of one picture by name; those whose name is taken become `name_2`, `name_3`, ..."""
    found: dict[str, Any] = {}
    for name, value in (item for made in hooks.artifacts for item in made(index, pixels).items()):
        count = sum(key == name or key.rpartition("_")[0] == name for key in found)
        found[f"{name}_{count + 1}" if count else name] = value
    return found


def check_tiles(draft: Draft) -> None:
    """Refuse tiles for what has to see the whole picture."""
    if draft.tile and draft.whole_by:
        problem = f"{draft.whole_by} needs the whole picture at once, but one of this size is drawn in tiles"
        raise UsageError(problem, "give a smaller `height` and `width`")


def check_channels(draft: Draft) -> None:
    """Refuse a transformer whose input is not what the conditions give it."""
    if draft.channels == draft.transformer.in_channels:
        return
    task = next((task for task, n in TASK_CHANNELS.items() if n == draft.transformer.in_channels), "")
    needs = f"{draft.channels_by} needs" if draft.channels_by else "a plain picture needs"
    hint = f"use a checkpoint for it, for example `--model {draft.channels_model}`"
    if task in COMMANDS_OF:
        hint = f"draw with {COMMANDS_OF[task]}, or use another model here, for example `--model {draft.channels_model}`"
    elif draft.channels_by == "Fill":
        hint += ", or repaint with `mflux-generate --mask-path`"
    raise UsageError(
        f"`{draft.request.model}` takes {draft.transformer.in_channels} channels per token, "
        f"but {needs} {draft.channels}",
        hint,
        "model",
    )
