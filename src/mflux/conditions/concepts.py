"""Concept attention: where in a picture a word is, read from the joint blocks; the picture itself does not change.

Source: ConceptAttention, arXiv 2502.04320.  Each concept is the first token of its T5 encoding, passes through the
text's weights with a pooled vector of zeros, and reads the drawn tokens and the other concepts; nothing reads it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.conditions.image_to_image import clean_latents, noised, sized_like, start_from, stretched
from mflux.engine.denoise import At
from mflux.engine.latents import step_noise
from mflux.engine.network import Network
from mflux.engine.request import CELL, check_choice, check_number, short
from mflux.engine.slots import PICTURE, Branch, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.errors import UsageError
from mflux.images.heatmap import heat_picture, segmented
from mflux.images.picture import PictureSource, open_picture
from mflux.models.layers import merge_heads
from mflux.models.transformer import QKV, JointView, beside

SPACES = ("output", "cross")
MAX_SAMPLES = 8
DEEP = 0.79  # share of the joint blocks above which maps are clear


@dataclass(frozen=True)
class Concepts(Condition):
    """Maps of where each concept is, beside the picture.

    names, background: words; each place's shares of all of them add up to 1, and only `names` get pictures.  layers:
    joint blocks (default: from 0.79 of them on, at least two); steps: of the run (default: all).  space: compare
    attention `output`s (paper) or queries with keys (`cross`).  image: look into this picture instead of a drawn one,
    through noise of the level `noise_level`, above 0 to 1, `samples` times (1..8), or of the levels of `steps`.
    Artifacts: heatmap and overlay (numbered where there are several names), segmentation, and maps, an array
    (H/16, W/16) for each word.
    """

    reads_heads = True

    names: str | Sequence[str]
    background: str | Sequence[str] = ()
    layers: Sequence[int] | None = None
    steps: Sequence[int] | None = None
    space: str = "output"
    image: PictureSource | None = field(default=None, metadata=PICTURE)
    noise_level: float | None = None  # 0.5
    samples: int = 1

    def __post_init__(self) -> None:
        for name in ("names", "background"):
            words = getattr(self, name)
            object.__setattr__(self, name, (words,) if isinstance(words, str) else tuple(words))
        for name in ("layers", "steps"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def words(self) -> tuple[str, ...]:
        return (*self.names, *self.background)

    def plan(self, draft: Draft) -> Draft:
        check_choice("space", self.space, SPACES)
        for name in ("names", "background"):
            for word in getattr(self, name):
                if not isinstance(word, str) or not word.strip():
                    raise UsageError(f"{short(word)} is no concept", "give a word", name)
        if not self.names:
            raise UsageError("there is no concept", "give one word or more", "names")
        if len(self.words) == 1:
            draft = draft.noted("a single concept is everywhere: give others, or a background, to compare it with")
        check_places("layers", self.layers, 0, draft.transformer.num_layers, "joint blocks")
        check_places("steps", self.steps, draft.first, draft.steps, "steps")
        if self.image is not None:
            draft = self._looking(draft, self.image)
        return draft.whole("Concepts").encoding(*self.words)

    def _looking(self, draft: Draft, image: PictureSource) -> Draft:
        """Steps from the noised picture, the last of which results in the picture."""
        config, levels = draft.request.config, (0.5 if self.noise_level is None else self.noise_level,) * self.samples
        check_number("noise_level", levels[0], 0, 1, above=True)
        check_number("samples", self.samples, 1, MAX_SAMPLES, whole=True)
        if self.steps is not None and (self.noise_level is not None or self.samples > 1):
            raise UsageError("`steps` says which noise to look through", "leave one of the two out", "noise_level")
        if self.steps is None and (config.num_inference_steps or config.sigmas):
            draft = draft.noted("a picture is looked into through one noise level: its steps are not run")
        if config.true_cfg > 1:
            draft = draft.noted("a picture that is only looked into has no use for true CFG")
        if draft.inverted_by:
            problem = f"Concepts and {draft.inverted_by} both make the first latents"
            raise UsageError(problem, "leave `image` out: the concepts of the edited picture are shown", "image")
        draft = sized_like(draft, picture := open_picture(image, "image")).starting(0, "Concepts")
        if note := stretched(draft, picture):
            draft = draft.noted(note)

        def looked_through(schedule: Sequence[float]) -> Sequence[float]:
            return (*(levels if self.steps is None else [schedule[step] for step in sorted({*self.steps})]), 0.0)

        return replace(draft, levels=looked_through)

    def prepare(self, stage: Stage) -> Prepared:
        plan = stage.plan
        first_tokens = mx.concatenate([stage.text(word).states[:, :1] for word in self.words], axis=1)
        pooled = mx.zeros_like(stage.text(self.words[0]).pooled)
        steps = range(len(plan.sigmas) - 1) if self.steps is None or self.image is not None else self.steps
        clean = None if self.image is None else clean_latents(self.image, stage)

        def bind(run: Run) -> Hooks:
            network: Network = run.network()
            levels = [plan.sigmas[step] for step in steps if step >= plan.first]
            asked = Branch(first_tokens, pooled, plan.guidance)
            table = network.modulate_text(asked, levels)
            maps = MapMean()

            def watch(at: At, branch: int) -> Callable[[JointView], None] | None:
                if at.index not in steps or branch != 0:
                    return None
                return self.reading(network, asked, table[at.sigma], maps)

            looking = Hooks() if clean is None else noising(clean, run)
            return replace(
                looking,
                watch_attention=[watch],
                keep=[lambda: maps.total],
                artifacts=[lambda index, pixels: self.pictures(maps.mean(index), pixels)],
            )

        return Prepared(bind=bind)

    def reading(self, network: Network, asked: Branch, table: Any, maps: "MapMean") -> Callable[[JointView], None]:
        """What one pass reads in its joint blocks; the concepts travel from block to block in here."""
        streams = [network.transformer.context_embedder(asked.text.astype(network.dtype))]
        layers = concept_layers(network.transformer.config.num_layers) if self.layers is None else self.layers

        def watch(view: JointView) -> None:
            if view.index > max(layers):
                return
            drawn = view.target_tokens
            text = view.rope.shape[2] - view.image.keys.shape[2]
            image = QKV(*(each[:, :, :drawn] for each in view.image))
            own = replace(view, image=image, rope=view.rope[:, :, : text + drawn])  # references are not read
            concepts = network.widened(streams[0], view.image_attended.shape[0])
            side = beside(own, concepts, table[view.index], image_reads=False)
            streams[0] = side.after
            if view.index in layers:
                if self.space == "output":
                    maps.add(shares(view.image_attended[:, :drawn], side.attended))
                else:
                    size = side.qkv.keys.shape[-1]
                    maps.add(shares(merge_heads(own.image.queries), merge_heads(side.qkv.keys) * size**-0.5))

        return watch

    def pictures(self, maps: np.ndarray, pixels: np.ndarray) -> dict[str, Any]:
        """Artifacts of maps (S, concepts) of a picture (H, W, 3)."""
        height, width = pixels.shape[:2]
        grid = maps.reshape(height // CELL, width // CELL, -1)
        made: dict[str, Any] = {"maps": {name: grid[..., k] for k, name in enumerate(self.words)}}
        for k in range(len(self.names)):
            ending = f"_{k + 1:02d}" if len(self.names) > 1 else ""
            made[f"heatmap{ending}"] = heat_picture(grid[..., k], height, width)
            made[f"overlay{ending}"] = Image.blend(Image.fromarray(pixels), made[f"heatmap{ending}"], 0.5)
        made["segmentation"] = segmented(grid.argmax(axis=-1), len(self.words), height, width)
        return made


class MapMean:
    """The mean over blocks and steps of maps (B, S) or (B, S, n), without keeping them."""

    def __init__(self) -> None:
        self.total: list[mx.array] = []
        self.count = 0

    def add(self, each: mx.array) -> None:
        self.total = [self.total[0] + each] if self.total else [each]
        self.count += 1

    def mean(self, index: int) -> np.ndarray:
        return np.array(self.total[0][index]) / self.count


def shares(image: mx.array, concepts: mx.array) -> mx.array:
    """How much of each place (B, S, D) is each concept (B, n, D): softmax over the concepts, (B, S, n), float32."""
    return mx.softmax(image.astype(mx.float32) @ concepts.astype(mx.float32).swapaxes(-1, -2), axis=-1)


def concept_layers(blocks: int) -> tuple[int, ...]:
    """The joint blocks whose maps are clear, at least two."""
    return tuple(range(min(int(DEEP * blocks), max(0, blocks - 2)), blocks))


def noising(clean: mx.array, run: Run) -> Hooks:
    """Each step begins at the clean tokens (1, S, 64) with noise of their own."""

    def renoised(latents: mx.array, at: At) -> mx.array:
        return noised(clean, step_noise(run.seeds, at.index, latents.shape[1:]), at.sigma_next)

    return Hooks(start=start_from(clean, run), after_step=[renoised])


def check_places(name: str, places: Any, first: int, count: int, what: str) -> None:
    """Refuse what names no layer or step: MLX does not check, and would read foreign memory."""
    for place in places or ():
        check_number(name, place, first, count - 1, whole=True)
    if places is not None and not places:
        raise UsageError(f"there are no {what}", f"give some from {first} to {count - 1}, or leave it out", name)
