"""What makes the base's joint blocks worth looking into: FluxSpace edits there, concept attention reads there.

FLUX.1 draws what 19 joint blocks have read; `tiny` has three, and its single blocks read the words once more, so that
an edit of the joint blocks was told otherwise later and a word's state did not look like its object. The stage `inside`
goes on with the base: in half of the pictures the single blocks hear the caption without its styles and dots, which the
joint blocks have heard; and in scenes of two objects each token's attention is to be most like that of its own words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from batches import Batch, scene_batch
from captions import PLACES
from copying import HEAD_WIDTH
from diffusers.models.embeddings import apply_rotary_emb
from latents import Latents, token_ids
from networks import Networks, image_ids
from torch import Tensor
from vocabulary import CLIP_FOLDER, load_clip, t5_ids_of
from world import BACKGROUNDS, COLORS, SHAPES, SIDE

UNTOLD = 0.5  # share of the pictures whose single blocks hear no styles and dots
ATTRIBUTES = ("striped", "outlined", "with a dot")
COVERED = 127  # of 255: a token is its object's from here on, as `evaluate_inside.py` counts
READ = (1, 2)  # joint blocks: those that `Concepts` reads
BACKGROUND = 2  # after the two objects


# --- words -----------------------------------------------------------------------------------------------------------


@cache
def _clip_words() -> list[list[int]]:
    clip = load_clip(CLIP_FOLDER)
    return [clip(words, add_special_tokens=False).input_ids for words in ATTRIBUTES]


def plain_ids(t5_ids: Tensor, clip_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The captions (B, T) without their styles and dots."""
    t5_words = [t5_ids_of(words.split()) for words in ATTRIBUTES]
    return without(t5_ids, t5_words, 0), without(clip_ids, _clip_words(), int(clip_ids[0, -1]))


def without(ids: Tensor, words: list[list[int]], pad: int) -> Tensor:
    """ids (B, T) with these runs of ids taken out, filled up at the end."""
    gone = torch.zeros_like(ids, dtype=torch.bool)
    for run in words:
        starts = torch.stack([ids.roll(-place, dims=1) == token for place, token in enumerate(run)]).all(dim=0)
        for place in range(len(run)):
            gone |= starts.roll(place, dims=1)
    order = gone.int().argsort(dim=1, stable=True)
    return ids.masked_fill(gone, pad).gather(1, order)


def leave_untold(batch: Batch) -> None:
    """What the single blocks hear: in some pictures less than the joint blocks."""
    plain, own = plain_ids(batch.t5_ids, batch.clip_ids), (batch.t5_ids, batch.clip_ids)
    untold = (torch.rand(len(batch.clean)) < UNTOLD)[:, None]
    batch.later = torch.where(untold, plain[0], own[0]), torch.where(untold, plain[1], own[1])


# --- concepts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Scenes of two objects in different colours: rows (N,), colours, shapes and places (N, 2), backgrounds (N,)."""

    rows: Tensor
    colors: Tensor
    shapes: Tensor
    places: Tensor
    backgrounds: Tensor


def find_pairs(data: Latents) -> Pairs:
    found, side, names = [], SIDE // 16, list(PLACES)
    for row, (shapes, colors) in enumerate(zip(data.shapes.numpy(), data.colors.numpy(), strict=True)):
        cells = np.flatnonzero(shapes)
        kinds, which = np.unique(np.stack([colors[cells], shapes[cells]]), axis=1, return_inverse=True)
        if kinds.shape[1] != 2 or kinds[0, 0] == kinds[0, 1]:
            continue
        behind = colors[shapes == 0]
        middles = [np.divmod(cells[which.ravel() == k], side) for k in (0, 1)]
        (y0, x0), (y1, x1) = ([float(axis.mean()) for axis in middle] for middle in middles)
        wide = abs(x0 - x1) > abs(y0 - y1)
        first = (x0 < x1) if wide else (y0 < y1)
        two = ("left", "right") if wide else ("top", "bottom")
        places = [names.index(name) for name in (two if first else two[::-1])]
        found.append([row, *(kinds[0] - 1), *(kinds[1] - 1), *places, behind[0] - 1 - len(COLORS)])
    table = torch.tensor(np.array(found)).long()
    return Pairs(table[:, 0], table[:, 1:3], table[:, 3:5], table[:, 5:7], table[:, 7])


class Words:
    """First T5 states of what concepts are called: "red circle on the left", "red circle", "red", "blue"."""

    def __init__(self, networks: Networks) -> None:
        colors, backgrounds, places = list(COLORS), list(BACKGROUNDS), [words[0] for words in PLACES.values()]
        texts = [f"{color} {shape} {place}" for color in colors for shape in SHAPES for place in places]
        texts += [f"{color} {shape}" for color in colors for shape in SHAPES] + colors + backgrounds
        with torch.no_grad():
            first = networks.text_encoder_2(input_ids=token_ids(texts)[0]).last_hidden_state[:, 0]
        sizes = len(colors) * len(SHAPES) * len(places), len(colors) * len(SHAPES), len(colors), len(backgrounds)
        self.placed, self.pairs, self.colors, self.backgrounds = first.split(sizes)

    def of(self, pairs: Pairs, chosen: Tensor) -> Tensor:
        """Concepts (B, 3, W) of some scenes: both objects and the background; half of them say where."""
        color, shape, place = (part[chosen] for part in (pairs.colors, pairs.shapes, pairs.places))
        pair = color * len(SHAPES) + shape
        ways = torch.stack([self.placed[pair * len(PLACES) + place], self.pairs[pair], self.colors[color]])
        way = torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), len(chosen), replacement=True)
        objects = ways[way, torch.arange(len(chosen))]
        return torch.cat([objects, self.backgrounds[pairs.backgrounds[chosen], None]], dim=1)


def inside_batch(data: Latents, pairs: Pairs, words: Words, size: int) -> Batch:
    """Random scenes, the first half of them of two objects, with concepts and whose each token is."""
    chosen = torch.randint(len(pairs.rows), (size // 2,))
    rows = torch.cat([pairs.rows[chosen], torch.randint(len(data.latents), (size - len(chosen),))])
    batch = scene_batch(data, rows, torch.randint(data.t5_ids.shape[1], (size,)))
    covered = data.fine[pairs.rows[chosen]].float().mean(dim=2) > COVERED
    own = data.colors[pairs.rows[chosen]].long()
    second = own == 1 + pairs.colors[chosen, 1:]
    batch.concepts = words.of(pairs, chosen), torch.where(covered, second.long(), BACKGROUND)
    return batch


def concept_loss(
    networks: Networks, seen: list[tuple[Tensor, Tensor]], told: tuple[Tensor, ...], batch: Batch
) -> Tensor:
    """How badly each token's attention tells whose it is, as `Concepts` compares them (output space).

    seen: what each joint block was given, image and text; told: times, guidance and the pooled text.
    """
    assert batch.concepts is not None
    states, owners = batch.concepts
    count, net = len(states), networks.transformer
    time, guidance, pooled = (part[:count] for part in told)
    condition = net.time_text_embed(time * 1000, guidance * 1000, pooled)
    own = net.time_text_embed(time * 1000, guidance * 1000, torch.zeros_like(pooled))
    stream, total = net.context_embedder(states), condition.new_zeros(())
    rope = net.pos_embed(image_ids(SIDE // 16, SIDE // 16))
    for index, (block, (image, text)) in enumerate(zip(net.transformer_blocks, seen, strict=True)):
        attention = block.attn
        queries, keys, values = _heads(attention, block.norm1(image[:count], emb=condition)[0])
        _, text_keys, text_values = _text_heads(attention, block.norm1_context(text[:count], emb=condition)[0])
        normed, gate, shift, scale, gate_feed = block.norm1_context(stream, emb=own)
        own_queries, own_keys, own_values = _text_heads(attention, normed)
        queries, keys = (apply_rotary_emb(part, rope, sequence_dim=2) for part in (queries, keys))
        seeing = _attend(queries, torch.cat([text_keys, keys], 2), torch.cat([text_values, values], 2))
        said = _attend(own_queries, torch.cat([keys, own_keys], 2), torch.cat([values, own_values], 2))
        stream = stream + gate[:, None] * attention.to_add_out(said)
        fed = block.norm2_context(stream) * (1 + scale[:, None]) + shift[:, None]
        stream = stream + gate_feed[:, None] * block.ff_context(fed)
        if index in READ:
            alike = seeing.float() @ said.float().transpose(1, 2)
            total = total + F.cross_entropy(alike.flatten(0, 1), owners.flatten()) / len(READ)
    return total


def _heads(attention: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (_split(linear(x)) for linear in (attention.to_q, attention.to_k, attention.to_v))
    return attention.norm_q(q), attention.norm_k(k), v


def _text_heads(attention: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    linears = attention.add_q_proj, attention.add_k_proj, attention.add_v_proj
    q, k, v = (_split(linear(x)) for linear in linears)
    return attention.norm_added_q(q), attention.norm_added_k(k), v


def _split(x: Tensor) -> Tensor:
    return x.unflatten(2, (-1, HEAD_WIDTH)).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v).transpose(1, 2).flatten(2)
