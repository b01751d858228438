"""Train the small Depth Pro: `.venv/bin/python tools/tiny/train_depth.py --minutes 12`.

It learns the world's nearness (background 0.2, small objects 0.6, large ones 0.9) from pictures, as transformers' own
DepthProForDepthEstimation; pictures that it finds hard (green on black, white on yellow) come more often. A cut run
goes on from .tiny/depth_pro.pt; the running average is written to src/mflux/tiny/control/depth_pro (bfloat16).
`evaluate_control.py depth-pro` measures it.
"""

from __future__ import annotations

import argparse
import copy

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from clock import CHECKPOINT_SECONDS, WORK, Clock, decay, load_checkpoint, log, mixed, save_checkpoint
from evaluate import SHIPPED
from torch import Tensor
from train_vae import follow
from transformers import DepthProConfig, DepthProForDepthEstimation
from world import SIDE, SceneKind, depth_map, draw, sample_scene

CHECKPOINT = WORK / "depth_pro.pt"
TARGET = SHIPPED / "control" / "depth_pro"
PATCH, WIDTH, LAYERS = 32, 48, 3  # px of a patch; of a picture at 128, 64 and 32 px: 16 + 4 + 1 patches
FUSION_WIDTH = 32
LEARNING_RATE, BATCH = 1.5e-3, 16
EASIEST = 1e-3  # what an error of zero counts where pictures are chosen


def build() -> DepthProForDepthEstimation:
    encoder = {
        "model_type": "dinov2",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "mlp_ratio": 2,
        "image_size": PATCH,
        "patch_size": 8,
    }
    network = DepthProForDepthEstimation(
        DepthProConfig(
            fusion_hidden_size=FUSION_WIDTH,
            patch_size=PATCH,
            intermediate_hook_ids=[LAYERS - 1, 0],
            intermediate_feature_dims=[WIDTH, WIDTH],
            scaled_images_feature_dims=[WIDTH, WIDTH, WIDTH],
            scaled_images_overlap_ratios=[0.0, 0.0, 0.0],  # their tokens are too few for one to be cut off
            merge_padding_value=0,
            use_fov_model=False,
            image_model_config=encoder,
            patch_model_config=encoder,
            fov_model_config=encoder,
        )
    )
    # Its first answers are 500 times too large, and the first update would end them in a dead ReLU.
    last = network.head.layers[-2]
    with torch.no_grad():
        last.weight.mul_(0.002)
        last.bias.fill_(0.3)
    return network


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, SIDE, SIDE) and their nearness (count, SIDE, SIDE), uint8."""
    rng = np.random.default_rng(seed)
    some = [sample_scene(rng, SceneKind(two_objects=0.7)) for _ in range(count)]
    pictures = torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in some])).permute(0, 3, 1, 2)
    return pictures, torch.from_numpy(np.stack([np.asarray(depth_map(scene))[..., 0] for scene in some]))


def nearness(network: DepthProForDepthEstimation, pictures: Tensor) -> Tensor:
    """(B, SIDE, SIDE) of pictures (B, 3, SIDE, SIDE) uint8: inverse depth."""
    found = network(pixel_values=pictures.float() / 127.5 - 1).predicted_depth
    return F.interpolate(found[:, None].float(), (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]


def train(minutes: float, pictures: Tensor, maps: Tensor) -> DepthProForDepthEstimation:
    network = build()
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0)
    step, spent = 0, 0.0
    state = load_checkpoint(CHECKPOINT)
    if state is not None:
        network.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]

    def save() -> None:
        parts = {"network": network, "average": average, "optimizer": optimizer}
        state = {name: part.state_dict() for name, part in parts.items()}
        save_checkpoint(CHECKPOINT, state | {"step": step, "spent": clock.spent})

    clock = Clock(minutes, spent)
    saved = clock.spent
    hardness = torch.full((len(pictures),), 0.05)
    while not clock.over:
        rows = torch.multinomial(hardness, BATCH)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * decay(clock.share, 0.3) * min(1.0, (step + 1) / 100)
        with mixed():
            found = nearness(network, pictures[rows])
        error = found - maps[rows].float() / 255
        hardness[rows] = error.detach().abs().mean(dim=(1, 2)) + EASIEST
        loss = error.abs().mean() + 0.3 * (error.diff(dim=1).abs().mean() + error.diff(dim=2).abs().mean())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        step += 1
        follow(average, network, step, keep=0.99)
        if step % 50 == 0:
            log("depth_pro", step=step, spent=round(clock.spent), loss=round(loss.item(), 4))
        if clock.spent - saved > CHECKPOINT_SECONDS:
            saved = clock.spent
            save()
    save()
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--pictures", type=int, default=4000)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    network = train(options.minutes, *scenes(options.pictures))
    network.to(torch.bfloat16).save_pretrained(TARGET)


if __name__ == "__main__":
    main()
