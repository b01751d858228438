"""What one training step sees: scenes, captions, weights, times and guidance, all at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from latents import TOKENS, Latents
from torch import Tensor
from vocabulary import SPECIAL_T5, t5_ids_of
from world import COLORS, HELD_OUT, SHAPES

GUIDANCE_LOW, GUIDANCE_HIGH = 1.0, 60.0
PAD_LENGTHS, PAD_SHARES = (32, 24, 48, 64, 128), (0.86, 0.05, 0.04, 0.03, 0.02)
DROPPED, HIDDEN = 0.1, 0.35
UNKNOWN = SPECIAL_T5.index("<unk>")
TWO_REFERENCES = 0.22  # share of kontext's batches
SILENT = 0.8  # share of redux' pictures without a caption
STRENGTH_LOW = 0.4  # of ControlNets, whose commands' default it is
TIME_MEAN = 0.4


@dataclass
class Batch:
    """B pictures: clean (B, 64, 64), extra (B, 64, 0 or 320), ids (B, T), what tokens show, loss weights (B, 64).

    `references` (B, 64 n, 64): n clean pictures beside each; then the labels cover all their tokens too. `pictures`
    (B, 3, side, side) in [-1, 1]: what redux sees. `control` (B, 64, 64): what a ControlNet sees, and how strongly it
    works, a number. `later`: T5 and CLIP ids that the single blocks hear; `concepts`: of the first pictures words
    (n, 3, WIDTH) and whose each token is (n, 64), as in `inside.py`. `known` (B, T) bool: what sampling puts back.
    """

    clean: Tensor
    extra: Tensor
    t5_ids: Tensor
    clip_ids: Tensor
    shapes: Tensor
    colors: Tensor
    fine: Tensor
    weights: Tensor
    references: Tensor | None = None
    pictures: Tensor | None = None
    control: tuple[Tensor, Tensor] | None = None
    later: tuple[Tensor, Tensor] | None = None
    concepts: tuple[Tensor, Tensor] | None = None
    known: Tensor | None = None


def draw_batch(data: Latents, size: int) -> Batch:
    """Random scenes, each under a random one of its captions."""
    rows = torch.randint(len(data.latents), (size,))
    return scene_batch(data, rows, torch.randint(data.t5_ids.shape[1], (size,)))


def scene_batch(data: Latents, rows: Tensor, told: Tensor) -> Batch:
    """Scenes by their rows, each under the caption of that number."""
    shapes = data.shapes[rows].long()
    weights = object_weights(shapes > 0, data.placed[rows, told])
    clean = data.latents[rows].float()
    return Batch(
        clean,
        clean[..., :0],
        data.t5_ids[rows, told].long(),
        data.clip_ids[rows, told].long(),
        shapes,
        data.colors[rows].long(),
        data.fine[rows].float() / 255,
        weights,
    )


def fill_batch(data: dict[str, Tensor], size: int, channels: int) -> Batch:
    """Random scenes or canvases with their holes; tokens in the hole count four times, in a canvas the object's eight.

    `channels`: 320 of masked picture and mask, or 0 (in-context, which sees the canvas itself): then the object in the
    hole counts four times, and nothing outside.
    """
    rows = torch.randint(len(data["clean"]), (size,))
    told = torch.randint(data["t5_ids"].shape[1], (size,))
    mask, shapes = data["mask"][rows].float(), data["shapes"][rows].long()
    inside = mask.mean(dim=2)
    outside, hole, objects = (1.0, 3.0, 7.0 if mask.shape[1] > TOKENS else 3.0) if channels else (0.0, 1.0, 4.0)
    return Batch(
        data["clean"][rows].float(),
        torch.cat([data["masked"][rows].float(), mask], dim=2)[..., :channels],
        data["t5_ids"][rows, told].long(),
        data["clip_ids"][rows, told].long(),
        shapes,
        data["colors"][rows].long(),
        data["fine"][rows].float() / 255,
        outside + inside * torch.where(shapes > 0, objects, hole),
        known=None if channels else inside == 0,
    )


def redux_batch(data: Latents, pictures: Tensor, size: int, empty: tuple[Tensor, Tensor]) -> Batch:
    """The first scenes of `data` with the `pictures` (N, 3, side, side) uint8 of them, four of five without words."""
    rows = torch.randint(len(pictures), (size,))
    told = torch.randint(data.t5_ids.shape[1], (size,))
    batch = scene_batch(data, rows, told)
    silent = torch.rand(size) < SILENT
    batch.t5_ids[silent], batch.clip_ids[silent] = empty
    batch.weights = object_weights(batch.shapes > 0, torch.ones(size, dtype=torch.bool))
    batch.pictures = pictures[rows].float() / 127.5 - 1
    return batch


def control_batch(
    data: Latents, maps: list[Tensor], size: int, beside: bool, wordless: float, empty: tuple[Tensor, Tensor]
) -> Batch:
    """The first scenes of `data` with a map of each, of one of the kinds `maps` (N, 64, 64).

    beside: the map is more channels of the picture's tokens, else a ControlNet reads it. wordless: share of scenes
    without a caption.
    """
    rows = torch.randint(len(maps[0]), (size,))
    batch = scene_batch(data, rows, torch.randint(data.t5_ids.shape[1], (size,)))
    shown = torch.stack(maps)[torch.randint(len(maps), (size,)), rows].float()
    batch.weights = object_weights(batch.shapes > 0, torch.ones(size, dtype=torch.bool))
    silent = torch.rand(size) < wordless
    batch.t5_ids[silent], batch.clip_ids[silent] = empty
    if beside:
        batch.extra = shown
    else:
        batch.control = shown, torch.empty(()).uniform_(STRENGTH_LOW, 1)
    return batch


def kontext_batch(data: dict[str, Tensor], size: int) -> Batch:
    """Random pairs under one of their instructions; all of them have one reference, or all have two."""
    two = bool(torch.rand(()) < TWO_REFERENCES)
    usable = ((data["rows"][:, 1] >= 0) == two).nonzero()[:, 0]
    chosen = usable[torch.randint(len(usable), (size,))]
    told = torch.randint(data["t5_ids"].shape[1], (size,))
    source, second, target = data["rows"][chosen].long().unbind(dim=1)
    pictures = torch.stack([target, source, second] if two else [target, source], dim=1)
    shown = data["latents"][pictures].float().flatten(1, 2)
    return Batch(
        shown[:, :TOKENS],
        shown[:, :TOKENS, :0],
        data["t5_ids"][chosen, told].long(),
        data["clip_ids"][chosen, told].long(),
        data["shapes"][pictures].long().flatten(1, 2),
        data["colors"][pictures].long().flatten(1, 2),
        data["fine"][pictures].float().flatten(1, 2) / 255,
        change_weights(data["changed"][chosen], data["shapes"][target] > 0),
        shown[:, TOKENS:],
    )


def draw_texts(t5_ids: Tensor, labels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Words without their pictures: T5 ids and labels (size, 32) out of (N, wordings, 32)."""
    rows, told = torch.randint(len(t5_ids), (size,)), torch.randint(t5_ids.shape[1], (size,))
    return t5_ids[rows, told].long(), labels[rows, told].long()


def swap_word(t5_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The captions (B, T) with the colour or the shape of one object replaced, and where (B, T) bool.

    Colour and shape stand next to each other. A caption stays as it is where its new pair would be one of those held
    out from training.
    """
    colors, shapes = torch.tensor(t5_ids_of(COLORS)), torch.tensor(t5_ids_of(SHAPES))
    held_out = torch.tensor([[(color, shape) in HELD_OUT for shape in SHAPES] for color in COLORS])
    objects = torch.isin(t5_ids[:, :-1], colors) & torch.isin(t5_ids[:, 1:], shapes)
    rows, first = torch.arange(len(t5_ids)), (objects * torch.rand(objects.shape)).argmax(dim=1)
    color = (t5_ids[rows, first, None] == colors).int().argmax(dim=1)
    shape = (t5_ids[rows, first + 1, None] == shapes).int().argmax(dim=1)
    which = torch.randint(2, (len(rows),))  # 0: another colour, 1: another shape
    color = torch.where(which == 0, torch.randint(len(colors), (len(rows),)), color)
    shape = torch.where(which == 1, torch.randint(len(shapes), (len(rows),)), shape)
    where = torch.zeros_like(t5_ids, dtype=torch.bool)
    where[rows, first + which] = objects.any(dim=1) & ~held_out[color, shape]
    swapped = torch.where(which == 0, colors[color], shapes[shape])
    return torch.where(where, swapped[:, None], t5_ids), where


def object_weights(objects: Tensor, placed: Tensor) -> Tensor:
    """3 to 5 for tokens at objects (small objects more), 1 elsewhere and where the caption does not say where.

    objects (B, 64) bool, placed (B,) bool -> (B, 64).
    """
    near = F.max_pool2d(objects.float().view(-1, 1, 8, 8), 3, stride=1, padding=1).flatten(1)
    strength = (72 / near.sum(dim=1, keepdim=True).clamp(min=1)).clamp(2, 4)
    return 1 + near * strength * placed[:, None]


def change_weights(changed: Tensor, objects: Tensor) -> Tensor:
    """2 to 5 for tokens that an edit changes and their neighbours (small changes more), 3 for other objects, else 1.

    (B, 64) bool both -> (B, 64).
    """
    near = F.max_pool2d(changed.float().view(-1, 1, 8, 8), 3, stride=1, padding=1).flatten(1)
    weights = 1 + near * (72 / near.sum(dim=1, keepdim=True).clamp(min=1)).clamp(1, 4)
    return torch.maximum(weights, torch.where(objects, 3.0, 1.0))


def drop_captions(batch: Batch, empty: tuple[Tensor, Tensor], hiding: bool) -> None:
    """Both texts become "" in some rows, so that true CFG and negative prompts work.

    hiding: in others the colours of the objects are hidden: what a shape's word means has to be learnt without the word
    beside it, or a pair that is new is not drawn as what it says. Shapes are not hidden: which shapes a colour comes
    with tells that the pairs held out are none. Not in instructions: they mostly say one of the two, and the reference
    shows the other.
    """
    hidden = torch.rand(len(batch.clean)) < (HIDDEN if hiding and batch.references is None else 0.0)
    colors, shapes = (torch.isin(batch.t5_ids, torch.tensor(t5_ids_of(kind))) for kind in (COLORS, SHAPES))
    described = colors & shapes.roll(-1, dims=1)  # a colour before its shape, not a background's
    batch.t5_ids = torch.where(hidden[:, None] & described, UNKNOWN, batch.t5_ids)
    batch.clip_ids[hidden] = empty[1]
    dropped = torch.rand(len(batch.clean)) < DROPPED
    batch.t5_ids[dropped], batch.clip_ids[dropped] = empty
    batch.weights[dropped] = batch.weights[dropped].clamp(max=1.0)


def repad(ids: Tensor, length: int) -> Tensor:
    """T5 ids with another number of pads (0); FLUX never masks them, so each length must be met in training."""
    return ids[:, :length] if length <= ids.shape[1] else F.pad(ids, (0, length - ids.shape[1]))


def random_times(size: int, noisy: float) -> Tensor:
    """Mostly in the middle; a share near pure noise, where the words alone decide and two of eight steps are made."""
    middle = torch.sigmoid(torch.randn(size) + TIME_MEAN)
    return torch.where(torch.rand(size) < noisy, 1 - 0.15 * torch.rand(size), middle)


def noise_levels(times: Tensor, batch: Batch) -> Tensor:
    """The time of each token (B, T, 1).

    In half of the pictures known tokens are ahead of the rest. At one noise level a picture shows what it is as well as
    its neighbour does, and nobody has to look there.
    """
    levels = times[:, None].expand(batch.weights.shape)
    if batch.known is not None:
        ahead = torch.where(torch.rand_like(times) < 0.5, 1.0, torch.rand_like(times))
        levels = torch.where(batch.known, levels * ahead[:, None], levels)
    return levels[..., None]


def random_guidance(size: int, high: float = GUIDANCE_HIGH) -> Tensor:
    """Log-uniform from 1, which is off, up to `high`."""
    ratio = torch.tensor(high / GUIDANCE_LOW)
    return GUIDANCE_LOW * torch.exp(torch.rand(size) * ratio.log())


def random_length() -> int:
    return PAD_LENGTHS[int(torch.multinomial(torch.tensor(PAD_SHARES), 1))]
