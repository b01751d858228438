"""Train the VAE: `.venv/bin/python tools/tiny/train_vae.py --minutes 8`.

Crops of 64 px for the first half (three times as many pictures a second), then whole pictures, then the decoder alone
against latents that carry noise, as the transformer's will. The encoder's log-variance is fixed at its lower bound:
sampling the posterior equals its mode, and image-to-image is deterministic.
`--refine .tiny/vae` goes on with the decoder of a finished VAE: its latents, and what was trained on them, stay valid.
Leaves the finished AutoencoderKL in .tiny/vae (diffusers layout).
"""

from __future__ import annotations

import argparse
import copy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from clock import CHECKPOINT_SECONDS, WORK, Clock, decay, load_checkpoint, log, save_checkpoint
from diffusers import AutoencoderKL
from PIL import Image, ImageDraw
from world import SIDE, SceneKind, depth_map, draw, edge_map, sample_scene

LEVELS = (16, 32, 48, 48)
LATENT_CHANNELS = 16
LOWEST_LOGVAR = -30.0
LEARNING_RATE, REFINING_RATE = 2e-3, 1e-3
CROPS_UNTIL, DECODER_FROM = 0.5, 0.78  # shares of the time
CROP, CROP_BATCH, WHOLE_BATCH = 64, 16, 8
LATENT_NOISE = 0.2
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


def vae_picture(rng: np.random.Generator) -> Image.Image:
    """A scene (70 %), one with a gray hole, its edges or its depth (10 % each): what Fill and Control must encode."""
    scene = sample_scene(rng, SceneKind(styled=0.4, dotted=0.3))
    choice = rng.random()
    if choice < 0.7:
        return draw(scene)
    if choice < 0.8:
        return depth_map(scene)
    if choice < 0.9:
        return edge_map(draw(scene))
    picture = draw(scene)
    left, top = rng.integers(0, SIDE - 24, 2)
    width, height = rng.integers(24, SIDE, 2)
    ImageDraw.Draw(picture).rectangle((left, top, left + width, top + height), fill=(128, 128, 128))
    return picture


def _pictures(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([np.asarray(vae_picture(rng)) for _ in range(count)])


def draw_pictures(count: int, seed: int = 0, processes: int = 2) -> torch.Tensor:
    """(count, 3, SIDE, SIDE) uint8, channels last in memory; scenes, holes, edges and depths."""
    with ProcessPoolExecutor(processes) as pool:
        parts = pool.map(_pictures, range(seed, seed + processes), [count // processes] * processes)
        return torch.from_numpy(np.concatenate(list(parts))).permute(0, 3, 1, 2)


def batch_of(pictures: torch.Tensor, size: int, crop: int) -> torch.Tensor:
    """`size` random crops in [-1, 1]."""
    rows = torch.randint(len(pictures), (size,))
    top, left = torch.randint(0, SIDE - crop + 1, (2,)).tolist()
    chosen = pictures[rows, :, top : top + crop, left : left + crop]
    return (chosen.float() / 127.5 - 1.0).contiguous(memory_format=torch.channels_last)


# --- the loss --------------------------------------------------------------------------------------------------------


def reconstruction_loss(drawn: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Squared + 0.1 absolute + 0.2 difference of the neighbouring pixels' differences."""
    error = (drawn - real).float()
    steps = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.square().mean() + 0.1 * error.abs().mean() + 0.2 * steps


def noisy(latents: torch.Tensor) -> torch.Tensor:
    """Latents with noise of 0..LATENT_NOISE of their own deviation, one level a picture."""
    deviation = latents.detach().std(dim=(0, 2, 3), keepdim=True)
    level = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1)
    return latents + level * deviation * torch.randn_like(latents)


class Autoencode(torch.nn.Module):
    """Picture in, loss out."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pictures: torch.Tensor, train_encoder: bool) -> torch.Tensor:
        with torch.set_grad_enabled(train_encoder and torch.is_grad_enabled()):
            latents = self.vae.encoder(pictures)[:, :LATENT_CHANNELS].float()
        drawn = self.vae.decoder(noisy(latents))
        return reconstruction_loss(drawn, pictures) + 1e-5 * latents.square().mean()


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
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        self.step, self.spent = 0, 0.0
        if refine is not None:
            self.freeze_encoder()
        state = load_checkpoint(self.file)
        if state is not None:
            self.vae.load_state_dict(state["vae"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]

    @property
    def trains_encoder(self) -> bool:
        return self.vae.encoder.conv_in.weight.requires_grad

    def freeze_encoder(self) -> None:
        """From here on the encoder is the average's, which is the one that ships."""
        self.vae.encoder.load_state_dict(self.average.encoder.state_dict())
        self.vae.encoder.requires_grad_(False)

    def update(self, pictures: torch.Tensor, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.objective(pictures, self.trains_encoder)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.vae.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.average, self.vae, self.step)
        return loss.item()

    def save(self, spent: float) -> None:
        state = {"vae": self.vae.state_dict(), "average": self.average.state_dict()}
        state |= {"optimizer": self.optimizer.state_dict(), "step": self.step, "spent": spent}
        save_checkpoint(self.file, state)


def train(minutes: float, pictures: torch.Tensor, refine: Path | None = None) -> AutoencoderKL:
    trainer = VaeTrainer(refine)
    clock = Clock(minutes, trainer.spent)
    saved = clock.spent
    while not clock.over:
        share = clock.share
        if share >= DECODER_FROM and trainer.trains_encoder:
            trainer.freeze_encoder()
        crops = share < CROPS_UNTIL and refine is None
        batch = batch_of(pictures, CROP_BATCH, CROP) if crops else batch_of(pictures, WHOLE_BATCH, SIDE)
        rate = (LEARNING_RATE if refine is None else REFINING_RATE) * decay(share, flat=0.3)
        loss = trainer.update(batch, rate * min(1.0, (trainer.step + 1) / 100))
        if trainer.step % 100 == 0:
            log("vae", step=trainer.step, spent=round(clock.spent), loss=round(loss, 5))
        if clock.spent - saved > CHECKPOINT_SECONDS:
            saved = clock.spent
            trainer.save(saved)
    trainer.save(clock.spent)
    return trainer.average


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
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    vae = train(options.minutes, draw_pictures(options.pictures), options.refine)
    measured = draw_pictures(512, seed=1000)
    if options.refine is None:
        finish(vae, measured)
    report(vae, measured)
    vae.save_pretrained(VAE_FOLDER)


if __name__ == "__main__":
    main()
