"""Image-to-image: start from a picture with noise in it, at a later step.  Source: SDEdit, arXiv 2108.01073."""

from dataclasses import dataclass, field, replace

import mlx.core as mx

from mflux.engine.denoise import At, Step
from mflux.engine.latents import pack_latents
from mflux.engine.request import CELL
from mflux.engine.slots import PICTURE, Condition, Draft, Hooks, Prepared, Run, Stage
from mflux.images.picture import Picture, PictureSource, open_picture, to_pixels
from mflux.images.sizes import floor_to_cell

DEFAULT_IMAGE_STRENGTH = 0.4  # mflux's README


@dataclass(frozen=True)
class ImageToImage(Condition):
    """Draw a variation of a picture.

    image: path, PIL image or uint8 array, stretched to the run's size (its own size, floored to 16, if none is given).
    image_strength [0, 1): higher stays closer; starts at step max(1, floor(N s)), 0 is pure noise.
    strength (0, 1]: diffusers' rule instead, the share of steps that run.  Neither: image_strength 0.4.
    """

    image: PictureSource = field(metadata=PICTURE)
    image_strength: float | None = None
    strength: float | None = None

    def plan(self, draft: Draft) -> Draft:
        draft = sized_like(draft, open_picture(self.image, "image"))
        return draft.starting_at(self.image_strength, self.strength, DEFAULT_IMAGE_STRENGTH, "ImageToImage")

    def prepare(self, stage: Stage) -> Prepared:
        if starts_from_noise(stage.plan.first, stage.plan.sigmas):
            return Prepared()
        clean = clean_latents(self.image, stage)
        return Prepared(bind=lambda run: Hooks(start=start_from(clean, run)))


def sized_like(draft: Draft, picture: Picture) -> Draft:
    """With a picture's own size, floored to 16, unless there is another; it will go through the VAE's encoder."""
    own = floor_to_cell(picture.height), floor_to_cell(picture.width)
    draft = draft.sized(*(draft.asked(picture.height, picture.width) or own))
    return replace(draft, encodes=max(draft.encodes, 1))


def stretched(draft: Draft, picture: Picture) -> str:
    """What happens to a picture of another aspect than the draft's size, which is floored to 16; empty for the same."""
    assert draft.height and draft.width
    if -CELL * picture.height < draft.width * picture.height - draft.height * picture.width < CELL * picture.width:
        return ""
    return f"{picture.width} x {picture.height} px would be stretched to {draft.width} x {draft.height} px"


def clean_latents(image: PictureSource, stage: Stage) -> mx.array:
    """Tokens (1, S, 64) of a picture, stretched to the run's size."""
    picture = open_picture(image, "image").resized(stage.plan.height, stage.plan.width)
    return pack_latents(stage.encode(mx.array(to_pixels(picture.rgb)), "image"))


def starts_from_noise(first: int, sigmas: tuple[float, ...]) -> bool:
    """True where the first latents are all noise, so that the picture does not matter to them."""
    return sigmas[first] == 1.0


def start_from(clean: mx.array, run: Run):  # type: ignore[no-untyped-def]
    """One step: the clean tokens with the noise of the first level that runs."""
    sigma = run.plan.sigmas[run.plan.first]
    yield Step(At(run.plan.first, 1.0, sigma), noised(clean, run.noise, sigma))


def noised(clean: mx.array, noise: mx.array, sigma: float) -> mx.array:
    """The rectified-flow interpolation at noise level sigma.  clean: (1 or B, S, 64), noise: (B, S, 64)."""
    return sigma * noise + (1 - sigma) * clean
