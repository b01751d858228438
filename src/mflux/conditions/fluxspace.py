"""FluxSpace: bring an attribute into a picture by what its word adds to the joint blocks' attention.

Source: arXiv 2412.09611 and its published code.  One pass carries the edits' texts and the empty text beside the
prompt; the image's queries, keys and values are computed once.  Unlike the published code: masks are normalised for
each picture, an even one selects everything instead of dividing by zero, and several edits, or one minus another, go
together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from PIL import Image, ImageDraw

from mflux.conditions.concepts import MapMean
from mflux.conditions.window import Place, check_window, steps_in
from mflux.engine.denoise import At
from mflux.engine.network import Network
from mflux.engine.request import CELL, check_choice, check_number, short
from mflux.engine.slots import Condition, Draft, EncodedText, Hooks, Plan, Prepared, Run, Stage, no_hooks
from mflux.errors import UsageError
from mflux.images.heatmap import enlarged
from mflux.models.layers import attention
from mflux.models.transformer import QKV, EditAttention, JointView, StreamModulation, beside

MASKS = ("hard", "soft")
WORDS = ("first", "words")
MAX_FINE = 1000
STEEPNESS = 10  # of the sigmoid that turns attention into a mask
TINY = 1e-10
FLAT = 1e-8  # attention that varies less than this tells nothing
NOT_SEEN = -1e9
LABEL = 18  # px of the line under each picture of a strip


class Edit(NamedTuple):
    """One attribute.  prompt: its word; fine, coarse: its own scales; minus: what is taken away from its direction."""

    prompt: str
    fine: float | None = None
    coarse: float | None = None
    minus: str = ""


@dataclass(frozen=True)
class FluxSpace(Condition):
    """Edit while drawing: the same seed with and without is the same picture but for the attribute.

    edits: words, or Edits with scales of their own.  lambda_fine: any number, 2..10 are usual; how far the attention's
    output moves.  lambda_coarse -1..1: how far the pooled text moves, which changes the whole look.  mask_threshold
    0..1: only places that look at the word this much; 0 is everywhere.  start, stop: the steps that edit, whole numbers
    or shares of the run; stop is not among them.  keep_norm: the moved output keeps each token's length.
    mask `hard` or `soft`; mask_words: the mask looks at the `first` token of the prompt, or at all its `words`.
    """

    reads_heads = True

    edits: str | Sequence[str | Edit]
    lambda_fine: float = 5.0
    lambda_coarse: float = 0.0
    mask_threshold: float = 0.5
    start: Place = 0.11
    stop: Place | None = None
    keep_norm: bool = True
    mask: str = "hard"
    mask_words: str = "first"

    def __post_init__(self) -> None:
        listed = [self.edits] if isinstance(self.edits, str | Edit) else self.edits
        edits = tuple(Edit(*each) if isinstance(each, tuple | list) else Edit(each) for each in listed)
        object.__setattr__(self, "edits", edits)

    @property
    def own(self) -> list[Edit]:
        return [each for each in self.edits if isinstance(each, Edit)]

    @property
    def scaled(self) -> list[Edit]:
        """The edits, each with its scales."""
        return [
            each._replace(
                fine=self.lambda_fine if each.fine is None else each.fine,
                coarse=self.lambda_coarse if each.coarse is None else each.coarse,
            )
            for each in self.own
        ]

    def plan(self, draft: Draft) -> Draft:
        check_choice("mask", self.mask, MASKS)
        check_choice("mask_words", self.mask_words, WORDS)
        check_number("mask_threshold", self.mask_threshold, 0, 1)
        if not self.edits:
            raise UsageError("there is no edit", "say what to bring in", "edits")
        for each in self.scaled:
            if not isinstance(each.prompt, str) or not each.prompt.strip() or not isinstance(each.minus, str):
                problem = f"{short(each.prompt)} is no text to edit with"
                raise UsageError(problem, "say what to bring in, best in one word", "edits")
            check_number("lambda_fine", each.fine, -MAX_FINE, MAX_FINE)
            check_number("lambda_coarse", each.coarse, -1, 1)
        draft = check_window(draft.editing("FluxSpace"), self.start, self.stop, "FluxSpace", ("start", "stop"))
        if not draft.transformer.guidance_embeds:
            draft = draft.noted("FluxSpace was made for models with guidance; this one has none")
        pairs = [text for each in self.scaled for text in (each.prompt, each.minus) if text]
        return draft.encoding("", *pairs)

    def draw_sweep(self, flux: Any, plan: Plan, name: str, values: Sequence[float], on_step: Any) -> Iterator[Any]:
        """For each seed of a plan one strip of pictures, `name` taking these values; the last one's metadata.

        Raises UsageError for a value out of range before the first picture.
        """
        if name not in {each.name for each in fields(self)}:
            raise UsageError(f"`{name}` is nothing that an edit has", "sweep one of its own numbers", "sweep")
        scale = {"lambda_fine": "fine", "lambda_coarse": "coarse"}.get(name)
        plans = []
        for value in values:
            own: dict[str, Any] = {scale: None} if scale else {}  # the swept number counts for every edit
            settings: dict[str, Any] = {name: value, "edits": [each._replace(**own) for each in self.own]}
            swept = replace(self, **settings)
            others = tuple(swept if each is self else each for each in plan.request.conditions)
            plans.append(flux.planned(replace(plan.request, conditions=others)))
        for drawn in zip(*(flux.draw(each, on_step=on_step) for each in plans), strict=True):
            labels = [f"{name} {value:g}" for value in values]
            told = {**drawn[-1].timing, "sweep": f"{name}={','.join(f'{value:g}' for value in values)}"}
            yield replace(drawn[-1], image=strip([each.image for each in drawn], labels), timing=told)

    def prepare(self, stage: Stage) -> Prepared:
        steps = steps_in(self.start, self.stop, len(stage.plan.sigmas) - 1)
        null = stage.text("")
        pairs = [(stage.text(each.prompt), stage.text(each.minus) if each.minus else None) for each in self.scaled]
        edits = [FineEdit(each.fine or 0.0, *pair) for each, pair in zip(self.scaled, pairs, strict=True) if each.fine]
        coarse = [(each.coarse or 0.0, *pair) for each, pair in zip(self.scaled, pairs, strict=True) if each.coarse]

        def bind(run: Run) -> Hooks:
            levels = [run.plan.sigmas[step] for step in steps if step >= run.plan.first]
            if not levels:
                return Hooks()
            network: Network = run.network()
            tables = [
                network.modulate_text(replace(branch, pooled=moved_pooled(branch.pooled, coarse)), levels)
                for branch in run.branches
                if coarse
            ]
            seen = [MapMean() for _ in edits]

            def text_modulation(at: At, branch: int) -> list[StreamModulation] | None:
                return tables[branch][at.sigma] if at.index in steps else None

            def edit_attention(at: At, branch: int) -> EditAttention | None:
                told = seen if branch == 0 else ()
                return self.edited(network, null, edits, told) if at.index in steps else None

            return Hooks(
                text_modulation=text_modulation if coarse else None,
                edit_attention=edit_attention if edits else None,
                keep=[lambda: [total for mask in seen for total in mask.total]],
                artifacts=[lambda index, pixels: mask_pictures(seen, index, *pixels.shape[:2])],
            )

        return Prepared(bind=bind if edits or coarse else no_hooks)

    def edited(
        self, network: Network, null: EncodedText, edits: Sequence["FineEdit"], seen: Sequence[MapMean]
    ) -> EditAttention:
        """What one pass does in its joint blocks; the side texts travel from block to block in here."""
        texts = [null, *(text for each in edits for text in (each.plus, each.minus) if text)]
        embedded = [network.transformer.context_embedder(text.states.astype(network.dtype)) for text in texts]
        streams: list[mx.array] = []

        def edit(view: JointView, image_out: mx.array) -> mx.array:
            batch, tokens = image_out.shape[0], view.target_tokens
            sides = [
                beside(view, network.widened(stream, batch), view.text_modulation, image_reads=True)
                for stream in streams or embedded
            ]
            streams[:] = [side.after for side in sides]
            null_out, *outs = (view.block.attn.to_out[0](side.image_attended) for side in sides)
            moves = iter(zip(outs, sides[1:], strict=True))
            change = mx.zeros_like(null_out, mx.float32)
            for number, each in enumerate(edits):
                out, side = next(moves)
                move = direction(out, null_out)
                if each.minus:
                    move = move - direction(next(moves)[0], null_out)
                chosen = self.mask_of(view.image.queries[:, :, :tokens], side.qkv, each.plus.count)
                if seen:
                    seen[number].add(chosen)
                change = change + each.scale * chosen[..., None] * move
            drawn = moved(image_out[:, :tokens], change, self.keep_norm)
            return mx.concatenate([drawn, image_out[:, tokens:]], axis=1)

        return edit

    def mask_of(self, queries: mx.array, text: QKV, count: int) -> mx.array:
        """Where the edit works, (B, S) from 0 to 1.  queries: the image's (B, heads, S, d); count: its words."""
        if self.mask_threshold <= 0 and self.mask == "hard":
            return mx.ones((queries.shape[0], queries.shape[2]))
        return self.selected(attention_to(queries, text.keys, self.mask_words, count))

    def selected(self, looks: mx.array) -> mx.array:
        """The mask of attention weights (B, S), each picture by its own lowest and highest one."""
        low, high = looks.min(axis=1, keepdims=True), looks.max(axis=1, keepdims=True)
        weights = mx.sigmoid(STEEPNESS * ((looks - low) / mx.maximum(high - low, FLAT) - 0.5))
        if self.mask == "hard":
            weights = (weights >= self.mask_threshold).astype(mx.float32)
        # Where all places look alike there is nothing to choose from.
        return mx.where(high - low < FLAT, mx.ones_like(weights), weights)


class FineEdit(NamedTuple):
    """A fine edit with its texts encoded."""

    scale: float
    plus: EncodedText
    minus: EncodedText | None


def mask_pictures(masks: Sequence[MapMean], index: int, height: int, width: int) -> dict[str, Image.Image]:
    """Grey pictures `mask_01`, ... of where each edit worked in one picture of the run."""
    made = {}
    for number, mask in enumerate(masks, 1):
        if mask.count:
            grid = mask.mean(index).reshape(height // CELL, width // CELL)
            grey = np.rint(255 * grid).astype(np.uint8)
            made[f"mask_{number:02d}"] = Image.fromarray(enlarged(grey, height, width))
    return made


def strip(images: Sequence[Image.Image], labels: Sequence[str]) -> Image.Image:
    """Pictures of one size side by side, a line of text under each."""
    width, height = images[0].size
    sheet = Image.new("RGB", (width * len(images), height + LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        sheet.paste(image, (place * width, 0))
        pen.text((place * width + 4, height + 3), label, fill="black")
    return sheet


def direction(out: mx.array, null_out: mx.array) -> mx.array:
    """The part of `out` (B, S, D) that stands at right angles to `null_out`, token by token, float32.  Equation 5."""
    e, u = out.astype(mx.float32), null_out.astype(mx.float32)
    along = (e * u).sum(axis=-1, keepdims=True) / ((u * u).sum(axis=-1, keepdims=True) + TINY)
    return e - along * u


def moved(base: mx.array, change: mx.array, keep_norm: bool) -> mx.array:
    """base + change (B, S, D), in base's dtype; keep_norm: each token as long as before (code, not paper)."""
    wide = base.astype(mx.float32)
    out = wide + change
    if keep_norm:
        lengths = [mx.linalg.norm(each, axis=-1, keepdims=True) for each in (wide, out)]
        out = out * (lengths[0] / mx.maximum(lengths[1], TINY))
    return out.astype(base.dtype)


def moved_pooled(pooled: mx.array, edits: Sequence[tuple[float, EncodedText, EncodedText | None]]) -> mx.array:
    """The pooled text (1, P) moved towards each edit's part at right angles to it.  Equations 9 and 10."""
    own = pooled.astype(mx.float32)
    total = (1 - sum(scale for scale, _, _ in edits)) * own
    for scale, plus, minus in edits:
        total = total + scale * direction(plus.pooled, own)
        if minus:
            total = total - scale * direction(minus.pooled, own)
    return total.astype(pooled.dtype)


def attention_to(queries: mx.array, keys: mx.array, words: str, count: int) -> mx.array:
    """How much each place of the image looks at an edit's text, mean of the heads, (B, S); no positions.  Equation 8.

    queries: (B, heads, S, d), keys: (B, heads, T, d).  words: `first` token, or the mean of all `count` words'; then
    padding is not seen.
    """
    batch, heads, length, size = keys.shape
    chosen = np.zeros((1, 1, length, 1), np.float32)
    many = max(1, count) if words == "words" else 1
    chosen[:, :, :many] = 1 / many
    hidden = np.where(np.arange(length) > count, NOT_SEEN, 0).astype(np.float32)
    bias = mx.array(hidden)[None, None, None] if words == "words" else None
    values = mx.broadcast_to(mx.array(chosen), (batch, heads, length, 1)).astype(keys.dtype)
    looks = attention(queries, keys, values, scale=size**-0.5, bias=bias)
    return looks[..., 0].astype(mx.float32).mean(axis=1)
