"""Train the VAE: `.venv/bin/python tools/tiny/train_vae.py --minutes 8`.

Crops of 64 px for the first half (three times as many pictures a second), then whole pictures, then the decoder alone
against latents that carry noise, as the transformer's will. The encoder's log-variance is fixed at its lower bound:
sampling the posterior equals its mode, and image-to-image is deterministic.
`--refine .tiny/vae` goes on with the decoder of a finished VAE, on latents that are encoded once: they, and what was
trained on them, stay valid. Pictures that it finds hard (small stars, thin stripes) then come more often, and with
`--drawn` pictures as a transformer draws them, whose errors hang together (`drawn.py`).
Leaves the finished AutoencoderKL in .tiny/vae (diffusers layout).
"""

from __future__ import annotations

import argparse
import copy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from clock import CHECKPOINT_SECONDS, WORK, Clock, decay, load_checkpoint, log, mixed, parsed, save_checkpoint
from confetti import confetti, figures
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from muon import Muon
from world import SIDE, SceneKind, depth_map, draw, edge_map, sample_scene

LEVELS = (16, 32, 48, 48)
LATENT_CHANNELS = 16
LOWEST_LOGVAR = -30.0
LEARNING_RATE = 2e-3
CROPS_UNTIL, DECODER_FROM = 0.5, 0.78  # shares of the time
CROP, CROP_BATCH, WHOLE_BATCH = 64, 16, 8
LATENT_NOISE = 0.2
EDGE, EDGE_WEIGHT = 0.25, 3.0  # of the range from black to white; small shapes and thin lines are all edges
VAE_FOLDER = WORK / "vae"


def build_vae() -> AutoencoderKL:
    levels = len(LEVELS)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=LEVELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


# --- pictures --------------------------------------------------------------------------------------------------------


def vae_picture(rng: np.random.Generator, drawn: bool) -> Image.Image:
    """A scene (half), figures or confetti; unless `drawn`, also what is only encoded: gray holes, edges, depths."""
    choice = rng.random() * (0.8 if drawn else 1.0)
    if choice < 0.2:
        return figures(rng)
    if choice < 0.3:
        return confetti(rng)
    scene = sample_scene(rng, SceneKind(styled=0.4, dotted=0.3))
    if choice < 0.8:
        return draw(scene)
    if choice < 0.86:
        return depth_map(scene)
    if choice < 0.93:
        return edge_map(draw(scene))
    picture = draw(scene)
    left, top = rng.integers(0, SIDE - 24, 2)
    width, height = rng.integers(24, SIDE, 2)
    ImageDraw.Draw(picture).rectangle((left, top, left + width, top + height), fill=(128, 128, 128))
    return picture


def _pictures(seed: int, count: int, drawn: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(vae_picture(rng, drawn)) for _ in range(count)])


def draw_pictures(count: int, seed: int = 0, processes: int = 2, drawn: bool = False) -> torch.Tensor:
    """(count, 3, SIDE, SIDE) uint8, channels last in memory; `drawn` as in `vae_picture`."""
    share = [count // processes] * processes
    with ProcessPoolExecutor(processes) as pool:
        parts = pool.map(_pictures, range(seed, seed + processes), share, [drawn] * processes)
        return torch.from_numpy(np.concatenate(list(parts))).permute(0, 3, 1, 2)


def batch_of(pictures: torch.Tensor, rows: torch.Tensor, crop: int) -> torch.Tensor:
    """Crops of some pictures in [-1, 1], all at one random place."""
    top, left = torch.randint(0, SIDE - crop + 1, (2,)).tolist()
    chosen = pictures[rows, :, top : top + crop, left : left + crop]
    return (chosen.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


# --- the loss --------------------------------------------------------------------------------------------------------


def reconstruction_loss(drawn: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Squared + 0.1 absolute + 0.2 difference of the neighbouring pixels' differences, near edges four times: (B,)."""
    error, each = (drawn - real).float(), (1, 2, 3)
    steps = error.diff(dim=2).abs().mean(dim=each) + error.diff(dim=3).abs().mean(dim=each)
    weight = 1 + EDGE_WEIGHT * near_edges(real)
    return (weight * (error.square() + 0.1 * error.abs())).mean(dim=each) + 0.2 * steps


def near_edges(real: torch.Tensor) -> torch.Tensor:
    """1 within three pixels of an edge, else 0: (B, 3, H, W) in [-1, 1] -> (B, 1, H, W)."""
    lightest, darkest = F.max_pool2d(real, 7, stride=1, padding=3), -F.max_pool2d(-real, 7, stride=1, padding=3)
    return ((lightest - darkest).amax(dim=1, keepdim=True) > 2 * EDGE).to(real.dtype)


def noisy(latents: torch.Tensor) -> torch.Tensor:
    """Latents with noise of 0..LATENT_NOISE of their own deviation, one level a picture."""
    deviation = latents.detach().std(dim=(0, 2, 3), keepdim=True)
    level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1)
    return latents + level * deviation * torch.randn_like(latents)


class Autoencode(torch.nn.Module):
    """Pictures in, their losses (B,) out; their latents, where they are known, spare the encoder."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor, latents: torch.Tensor | None, train_encoder: bool) -> torch.Tensor:
        if latents is None:
            with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
                latents = self.vae.encoder(pictures)[:, :LATENT_CHANNELS].float()
        drawn = self.vae.decoder(noisy(latents))
        return reconstruction_loss(drawn, pictures) + 1e-5 * latents.square().mean(dim=(1, 2, 3))


# --- training --------------------------------------------------------------------------------------------------------


class VaeTrainer:
    """The VAE, its running average and progress; `refine` starts from a finished VAE and trains its decoder alone."""

    def __init__(self, refine: Path | None) -> None:
        self.file = WORK / ("vae.pt" if refine is None else "vae-refined.pt")
        self.vae = build_vae() if refine is None else AutoencoderKL.from_pretrained(refine)
        self.vae.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.vae).eval()
        self.objective = Autoencode(
            self.vae
        )  # eager: compiled, it was hardly faster and did not learn (torch 2.13, CPU)
        matrices = [p for p in self.vae.parameters() if p.ndim > 1]
        others = [p for p in self.vae.parameters() if p.ndim == 1]
        adam = torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.optimizers = [Muon(matrices, lr=LEARNING_RATE), adam]
        self.step, self.spent = 0, 0.0
        if refine is not None:
            self.freeze_encoder()
        state = load_checkpoint(self.file)
        if state is not None:
            self.vae.load_state_dict(state["vae"])
            self.average.load_state_dict(state["average"])
            for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(stored)
            self.step, self.spent = state["step"], state["spent"]

    @property
    def trains_encoder(self) -> bool:
        return self.vae.encoder.conv_in.weight.requires_grad

    def freeze_encoder(self) -> None:
        """From here on the encoder is the average's, which is the one that ships."""
        self.vae.encoder.load_state_dict(self.average.encoder.state_dict())
        self.vae.encoder.requires_grad_(False)

    def update(self, pictures: torch.Tensor, latents: torch.Tensor | None, rate: float) -> torch.Tensor:
        with mixed():
            losses = self.objective(pictures, latents, self.trains_encoder)
        self.vae.zero_grad(set_to_none=True)
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.step += 1
        follow(self.average, self.vae, self.step)
        return losses.detach()

    def save(self, spent: float) -> None:
        state = {"vae": self.vae.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}
        state |= {"step": self.step, "spent": spent}
        save_checkpoint(self.file, state)


def train(minutes: float, pictures: torch.Tensor, refine: Path | None, drawn: Path | None) -> AutoencoderKL:
    trainer = VaeTrainer(refine)
    known = None if refine is None else encoded(trainer.vae, pictures)
    if known is not None and drawn is not None:
        shown = torch.load(drawn, weights_only=True)
        pictures = torch.cat([pictures, shown["pictures"]])
        known = torch.cat([known, shown["latents"]])
    clock = Clock(minutes, trainer.spent)
    saved = clock.spent
    hardness = torch.ones(len(pictures)) if known is None else first_losses(trainer.objective, pictures, known)
    while not clock.over:
        share = clock.share
        if share >= DECODER_FROM and trainer.trains_encoder:
            trainer.freeze_encoder()
        crops = share < CROPS_UNTIL and refine is None
        rows = torch.multinomial(hardness, CROP_BATCH if crops else WHOLE_BATCH)
        batch = batch_of(pictures, rows, CROP if crops else SIDE)
        rate = LEARNING_RATE * decay(share, flat=0.3) * min(1.0, (trainer.step + 1) / 100)
        losses = trainer.update(batch, None if known is None else known[rows].float(), rate)
        if known is not None:
            hardness[rows] = losses
        if trainer.step % 100 == 0:
            log("vae", step=trainer.step, spent=round(clock.spent), loss=round(losses.mean().item(), 5))
        if clock.spent - saved > CHECKPOINT_SECONDS:
            saved = clock.spent
            trainer.save(saved)
    trainer.save(clock.spent)
    return trainer.average


@torch.no_grad()
def encoded(vae: AutoencoderKL, pictures: torch.Tensor, part: int = 50) -> torch.Tensor:
    """Latents of all pictures, (N, 16, 16, 16) float16."""
    floats = (some.float() / 127.5 - 1.0 for some in pictures.split(part))
    with mixed():
        parts = [vae.encoder(some)[:, :LATENT_CHANNELS].half() for some in floats]
    return torch.cat(parts)


@torch.no_grad()
def first_losses(objective: Autoencode, pictures: torch.Tensor, known: torch.Tensor, part: int = 50) -> torch.Tensor:
    """What the decoder finds hard before it goes on, (N,)."""
    pairs = zip(pictures.split(part), known.split(part), strict=True)
    with mixed():
        return torch.cat([objective(some.float() / 127.5 - 1, z.float(), False) for some, z in pairs])


@torch.no_grad()
def follow(average: torch.nn.Module, model: torch.nn.Module, step: int, keep: float = 0.998) -> None:
    """Move the running average towards the model; quickly at first."""
    weight = 1.0 - min(keep, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight)


@torch.no_grad()
def finish(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Measure the latents, write their mean and deviation into the config, and pin the log-variance."""
    head = vae.encoder.conv_out
    head.weight[LATENT_CHANNELS:].zero_()
    head.bias[LATENT_CHANNELS:].fill_(LOWEST_LOGVAR)
    real = pictures.float() / 127.5 - 1.0
    latents = torch.cat([vae.encode(part).latent_dist.mode() for part in real.split(64)])
    shift, scale = latents.mean().item(), 1.0 / latents.std().item()
    vae.register_to_config(shift_factor=round(shift, 6), scaling_factor=round(scale, 6))


@torch.no_grad()
def report(vae: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Log the round trip's mean PSNR over pictures."""
    real = pictures.float() / 127.5 - 1.0
    drawn = torch.cat([vae.decode(vae.encode(part).latent_dist.mode()).sample for part in real.split(64)])
    psnr = 10 * torch.log10(4.0 / (drawn.clamp(-1, 1) - real).square().mean(dim=(1, 2, 3)))
    log("vae", psnr=round(psnr.mean().item(), 2), shift=vae.config.shift_factor, scale=vae.config.scaling_factor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--refine", type=Path, metavar="FOLDER", help="a finished VAE whose decoder is to get better")
    parser.add_argument("--drawn", type=Path, metavar="FILE", help="what `drawn.py` wrote")
    options = parsed(parser)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    processes = options.threads or 2
    pictures = draw_pictures(options.pictures, 0, processes, options.refine is not None)
    vae = train(options.minutes, pictures, options.refine, options.drawn)
    measured = draw_pictures(512, 1000, processes)
    if options.refine is None:
        finish(vae, measured)
    report(vae, measured)
    vae.save_pretrained(VAE_FOLDER)


if __name__ == "__main__":
    main()
