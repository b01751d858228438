"""Kontext: reference pictures as extra tokens behind the drawn ones, told apart by the first coordinate of their ids.

Source: FLUX.1 Kontext, arXiv 2506.15742; sizes of diffusers' FluxKontextPipeline.  Unlike diffusers: an asked size is
drawn as it is (`max_area` scales it), without one the first picture's proportion counts, a list of pictures is several
references (id 1, 2, ...), and instructions can be chained without decoding in between (`turns`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx
import numpy as np
from PIL import Image

from mflux.engine.latents import grid_ids, pack_latents
from mflux.engine.request import MAX_SIDE, Config, Request, check_choice, check_number, short
from mflux.engine.slots import DERIVED, PICTURE, Condition, Draft, Hooks, Inputs, Prepared, Run, Stage
from mflux.errors import UsageError
from mflux.images.picture import Picture, PictureSource, open_pictures, several, to_pixels
from mflux.images.sizes import fit, floor_to_cell, of_area, preferred
from mflux.weights.catalog import Row

FITS = ("preferred", "own", "stretch", "crop", "pad")
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Kontext(Condition):
    """Do what the prompt tells with a picture, or with several.

    images: one picture or a list; none at all is the plain model.  max_area: scale the size to so many px.  fit: how
    references are sized: to the `preferred` size of the nearest proportion, their `own` size floored to 16, or that of
    the drawn picture by `stretch`, `crop` or `pad`.  turns: instructions carried out before the prompt, each on the
    latents of the one before, which take the first picture's place.  latents: what those turns end in (B or S first),
    where that is known already; otherwise they are drawn again.
    """

    images: PictureSource | Sequence[PictureSource] = field(metadata=PICTURE)
    max_area: int | None = None
    fit: str = "preferred"
    turns: Sequence[str] = ()
    latents: Any = field(default=None, metadata=DERIVED)

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", several(self.images))
        if not isinstance(self.turns, str):
            object.__setattr__(self, "turns", tuple(self.turns))

    def plan(self, draft: Draft) -> Draft:
        check_choice("fit", self.fit, FITS)
        pictures = open_pictures(self.images, "images")  # type: ignore[arg-type]
        if isinstance(self.turns, str) or not all(isinstance(turn, str) and turn.strip() for turn in self.turns):
            raise UsageError(
                f"{short(self.turns)} is no list of instructions", "give texts, none of them empty", "turns"
            )
        if self.turns and not pictures:
            raise UsageError("there is no picture to begin the turns with", "give a picture", "images")
        draft = self._sized(draft.meant_for("kontext") if pictures else draft, pictures)
        assert draft.height and draft.width
        sizes = [reference_size(picture, self.fit, (draft.height, draft.width), draft.row) for picture in pictures]
        return replace(draft.referring(sizes, "Kontext"), texts=(*draft.texts, *self.turns))

    def prepare(self, stage: Stage) -> Prepared:
        plan = stage.plan
        pictures = open_pictures(self.images, "images")  # type: ignore[arg-type]
        first = 1 if self.turns else 0
        references = [
            reference_tokens(stage, picture, self.fit, number)
            for number, picture in enumerate(pictures[first:], first + 1)
        ]

        def bind(run: Run) -> Hooks:
            if not self.turns:
                return Hooks()
            known = self.latents is not None
            latents = mx.array(self.latents) if known else run.latents_of(self.turn_before(plan.request))
            latents = latents.reshape(-1, *latents.shape[-2:])
            return Hooks(tokens=[(latents, grid_ids(plan.height, plan.width, 1))])

        return Prepared(Inputs(tokens=references), bind)

    @classmethod
    def draw_turns(
        cls, flux: Any, seed: int, turns: Sequence[str], config: Config, conditions: Sequence[Condition], **rest: Any
    ) -> Iterator[Any]:
        """Carry out instructions one after another, each on the latents of the one before: a GeneratedImage for each.

        flux: Flux1.  conditions: one Kontext among them.  rest: as for Flux1.generate_image.  Each picture's request
        draws it again, with the turns before it.
        """
        on_step, latents = rest.pop("on_step", None), None
        for index, turn in enumerate(turns):
            chained = [
                replace(each, turns=turns[:index], latents=latents) if isinstance(each, cls) else each
                for each in conditions
            ]
            (picture,) = flux.draw(flux.plan(seed, turn, config, conditions=chained, **rest), on_step=on_step)
            latents = picture.artifacts["latents"]
            yield picture

    def turn_before(self, request: Request) -> Request:
        """The request of the turn whose result is the first reference of this one."""
        earlier = replace(self, turns=self.turns[:-1])
        conditions = tuple(earlier if each is self else each for each in request.conditions)
        return replace(request, prompt=self.turns[-1], prompt_2=None, conditions=conditions)

    def _sized(self, draft: Draft, pictures: Sequence[Picture]) -> Draft:
        wish = draft.row.side, draft.row.side
        if pictures:
            wish = preferred(draft.row.sizes, pictures[0].height, pictures[0].width)
        if self.max_area is None:
            return draft.sized(*(draft.asked(*wish) or wish))
        check_number("max_area", self.max_area, 1, MAX_SIDE**2, whole=True)
        config = draft.request.config
        return draft.sized(*of_area(self.max_area, config.height or wish[0], config.width or wish[1]))


def reference_size(picture: Picture, how: str, canvas: Size, row: Row) -> Size:
    """Height and width of a reference, multiples of 16; canvas: those of the drawn picture."""
    if how == "preferred":
        return preferred(row.sizes, picture.height, picture.width)
    return (floor_to_cell(picture.height), floor_to_cell(picture.width)) if how == "own" else canvas


def reference_tokens(stage: Stage, picture: Picture, how: str, number: int) -> tuple[mx.array, np.ndarray]:
    """Tokens (1, R, 64) of the reference `number` (1, 2, ...), and their ids (R, 3)."""
    height, width = reference_size(picture, how, (stage.plan.height, stage.plan.width), stage.plan.row)
    rgb = picture.resized(height, width).rgb
    if how in ("crop", "pad"):
        rgb = np.asarray(fit(Image.fromarray(picture.rgb), height, width, cover=how == "crop"))
    latents = stage.encode(mx.array(to_pixels(rgb)), "reference")
    return pack_latents(latents), grid_ids(height, width, number)
