"""Encode the training scenes once: `.venv/bin/python tools/tiny/latents.py --scenes 24000`.

Training never runs the VAE. Kept in .tiny/latents.pt for each scene: packed latents (float16), four captions as token
ids, and what each image token shows (labels for the training-only head and for the loss's weights).
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captions import caption, place_labels
from clock import WORK, log, mixed, parsed
from diffusers import AutoencoderKL
from train_vae import VAE_FOLDER
from vocabulary import CLIP_FOLDER, T5_FOLDER, load_clip, load_t5
from world import BACKGROUNDS, COLORS, SHAPES, SIDE, Scene, coverage, draw, sample_scene

CAPTIONS_PER_SCENE = 4
LATENTS_FILE = WORK / "latents.pt"
TOKENS = (SIDE // 16) ** 2
UNLABELLED = 255  # a colour or a shape without a name
FIRST_SEED, PART = 10_000, 500  # each part of the scenes has a seed of its own
T5_LENGTH, CLIP_LENGTH = 32, 32  # longest caption: 23 and 25; CLIP's padding never reaches its pooled output


@dataclass
class Latents:
    """Everything that training reads. N scenes, 64 tokens each.

    latents (N, 64, 64) float16 · t5_ids (N, 4, 32) uint8 · clip_ids (N, 4, 32) int16 · placed (N, 4) bool: the caption
    says where · shapes (N, 64) uint8: what a token shows, 0 = background · colors (N, 64) uint8: 1 + the object's
    colour, or 9 + the background · fine (N, 64, 16) uint8: how much of each 4 x 4 px the objects cover, of 255 ·
    places (N, 4, 32) uint8: for each T5 token the place of the object it describes (`captions.place_labels`).
    """

    latents: torch.Tensor
    t5_ids: torch.Tensor
    clip_ids: torch.Tensor
    placed: torch.Tensor
    shapes: torch.Tensor
    colors: torch.Tensor
    fine: torch.Tensor
    places: torch.Tensor


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) -> (B, h/2 * w/2, C * 4), channel = c * 4 + dy * 2 + dx, as FLUX does."""
    batch, channels, height, width = latents.shape
    split = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, height // 2 * width // 2, channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `pack`, for a picture of height x width pixels."""
    rows, columns = height // 16, width // 16
    split = tokens.reshape(len(tokens), rows, columns, -1, 2, 2)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * 2, columns * 2)


class Codec:
    """The VAE between pictures (B, H, W, 3) uint8 and packed, scaled latents (B, tokens, 64)."""

    def __init__(self, folder: Path = VAE_FOLDER) -> None:
        self.vae = AutoencoderKL.from_pretrained(folder).eval().to(memory_format=torch.channels_last)
        self.shift, self.scale = self.vae.config.shift_factor, self.vae.config.scaling_factor

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        return self.encode_floats(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0)

    @torch.no_grad()
    def encode_floats(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, H, W) in [-1, 1]."""
        mean = self.vae.encode(pictures.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
        return pack((mean - self.shift) * self.scale)

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, height: int = SIDE, width: int = SIDE) -> np.ndarray:
        drawn = self.vae.decode(self.raw(tokens, height, width)).sample
        return ((drawn.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def raw(self, tokens: torch.Tensor, height: int = SIDE, width: int = SIDE) -> torch.Tensor:
        """The encoder's own numbers, (B, 16, height / 8, width / 8)."""
        return unpack(tokens.float(), height, width) / self.scale + self.shift


# --- one scene -------------------------------------------------------------------------------------------------------


def token_labels(scene: Scene) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shapes (64,), colors (64,) and fine coverage (64, 16) of a scene's tokens."""
    shapes = np.zeros(TOKENS, np.uint8)
    colors = np.full(TOKENS, 1 + len(COLORS) + list(BACKGROUNDS).index(scene.background), np.uint8)
    fine = np.zeros((TOKENS, 16), np.uint8)
    side = SIDE // 16
    for thing in scene.things:
        small = np.asarray(coverage(thing).reduce(4))
        cells = small.reshape(side, 4, side, 4).transpose(0, 2, 1, 3).reshape(TOKENS, 16)
        fine = np.maximum(fine, cells)
        here = cells.astype(np.float32).mean(axis=1) > 0.05 * 255
        shapes[here] = 1 + SHAPES.index(thing.shape)
        colors[here] = 1 + list(COLORS).index(thing.color)
    return shapes, colors, fine


Told = tuple[str, bool, list[int]]  # words, whether they say where, the place of what each token describes


def scenes_of_part(seed: int, count: int) -> tuple[list[Scene], np.random.Generator]:
    """The scenes of one part, and the generator that goes on to tell them."""
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)], rng


def _scenes(seed: int, count: int) -> tuple[np.ndarray, list[list[Told]], list[np.ndarray]]:
    """Pictures, captions and labels of `count` scenes."""
    scenes, rng = scenes_of_part(seed, count)
    told = [[caption(scene, rng) for _ in range(CAPTIONS_PER_SCENE)] for scene in scenes]
    labels = [np.stack(parts) for parts in zip(*(token_labels(scene) for scene in scenes), strict=True)]
    pictures = np.stack([np.asarray(draw(scene)) for scene in scenes])
    pairs = zip(scenes, told, strict=True)
    return (
        pictures,
        [[(one.text, one.placed, place_labels(one, scene)) for one in four] for scene, four in pairs],
        labels,
    )


def token_ids(
    texts: list[str], t5_length: int = T5_LENGTH, clip_length: int = CLIP_LENGTH
) -> tuple[torch.Tensor, torch.Tensor]:
    """T5 ids (N, t5_length) padded with 0, CLIP ids (N, clip_length) padded with the end token."""
    t5, clip = load_t5(T5_FOLDER), load_clip(CLIP_FOLDER)
    t5.enable_padding(length=t5_length, pad_id=0, pad_token="<pad>")
    t5.enable_truncation(t5_length)
    first = torch.tensor([encoding.ids for encoding in t5.encode_batch(texts)])
    second = clip(texts, padding="max_length", truncation=True, max_length=clip_length).input_ids
    return first, torch.tensor(second)


# --- all scenes ------------------------------------------------------------------------------------------------------


def encode_scenes(count: int, seed: int = FIRST_SEED, part: int = PART) -> Latents:
    codec, latents, told, labels = Codec(), [], [], []
    seeds = range(seed, seed + count // part)
    with ProcessPoolExecutor(1) as pool:
        for pictures, captions, parts in pool.map(_scenes, seeds, [part] * len(seeds)):
            floats = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0
            with mixed():
                latents += [codec.encode_floats(some).half() for some in floats.split(50)]
            told += captions
            labels.append(parts)
    t5_ids, clip_ids = token_ids([text for four in told for text, _, _ in four])
    shapes, colors, fine = (torch.from_numpy(np.concatenate(column)) for column in zip(*labels, strict=True))
    return Latents(
        torch.cat(latents),
        t5_ids.to(torch.uint8).view(-1, CAPTIONS_PER_SCENE, T5_LENGTH),
        clip_ids.to(torch.int16).view(-1, CAPTIONS_PER_SCENE, CLIP_LENGTH),
        torch.tensor([[placed for _, placed, _ in four] for four in told]),
        shapes,
        colors,
        fine,
        torch.tensor([[padded_labels(places) for _, _, places in four] for four in told], dtype=torch.uint8),
    )


def padded_labels(places: list[int]) -> list[int]:
    return places + [0] * (T5_LENGTH - len(places))


def save(latents: Latents, path: Path = LATENTS_FILE) -> None:
    torch.save(vars(latents), path)


def load(path: Path = LATENTS_FILE) -> Latents:
    return Latents(**torch.load(path, weights_only=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=FIRST_SEED)
    parser.add_argument("--out", type=Path, default=LATENTS_FILE)
    options = parsed(parser)
    encoded = encode_scenes(options.scenes, options.seed)
    save(encoded, options.out)
    spread = encoded.latents.float().std().item()
    log(
        "latents",
        scenes=len(encoded.latents),
        deviation=round(spread, 4),
        longest=int((encoded.t5_ids > 0).sum(-1).max()),
    )


if __name__ == "__main__":
    main()
