"""Ship a stage's weights: `.venv/bin/python tools/tiny/export.py distill` (or `fill-distill`) writes src/mflux/tiny/.

diffusers layout, bfloat16. `base` and `distill` both become `base/` (the second replaces the first); the stages of a
variant ship what it does not share with the base: `fill/` its transformer, `kontext/` its text encoders too, `redux/`
its picture encoder and embedder, the panels' stages an adapter (`ic-edit/` text encoders too). Two are no stages:
`schnell` is the shipped base with its guidance built in, `vae` the VAE alone, for a decoder that was made better.
`inside` goes half of its way outside the joint blocks, so that pairs never seen stay as well drawn as they were;
`--share` lets all of fill, kontext or panels go so much of it, which mostly draws better than either end. A base that
draws worse than the shipped one is refused (64 pictures of three sets; `--force` skips the comparison).
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from clock import WORK, load_checkpoint, log
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from evaluate import SETS, SHIPPED, evaluate
from latents import Codec
from networks import PARTS, REDUX_PARTS, REDUX_SIDE, TEXT_PARTS, Networks
from safetensors.torch import load_file, save_file
from sampler import TorchPainter
from train import STAGES, Stage, new_networks
from train_vae import VAE_FOLDER
from transformers import SiglipImageProcessor
from vocabulary import CLIP_FOLDER, T5_FOLDER

VARIANT_PARTS = {"fill": ("transformer",), "kontext": PARTS, "redux": REDUX_PARTS, "control": ("transformer",)}
VARIANT_PARTS |= {"controlnet": ("controlnet",), "upscaler": ("controlnet",)}
PREFIXES = {"text_encoder": "text_model.", "image_encoder": "vision_model."}  # of every released file's names
INDEX = {
    "_class_name": "FluxPipeline",
    "_diffusers_version": "0.30.0.dev0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}


def trained(stage: str) -> Networks:
    """The running average of a stage's checkpoint, rounded to bfloat16 as it will ship."""
    state = load_checkpoint(WORK / f"{stage}.pt")
    if state is None:
        raise SystemExit(f"error: no checkpoint of the stage `{stage}`")
    networks = new_networks(STAGES[stage])
    networks.add(STAGES[stage].added)
    networks.load_state_dict(state["average"])
    return networks.to(torch.bfloat16).float().eval()


def quality(networks: Networks, guidance: float, count: int = 64) -> float:
    """Mean share of right shapes and colours, in per cent, alone and in pairs."""
    paint = TorchPainter(networks, Codec(), guidance=guidance)
    found = [evaluate(paint, chosen, count) for chosen in SETS if chosen.name in ("seen", "held-out", "two")]
    return float(np.mean([one[name] for one in found for name in ("shape", "color", "background")]))


def write_networks(networks: Networks, folder: Path, parts: tuple[str, ...]) -> None:
    ready = networks.to(torch.bfloat16)
    for part in parts:
        getattr(ready, part).save_pretrained(folder / part)
    for part in set(parts) & set(PREFIXES):
        _name_as_released(folder / part / "model.safetensors", PREFIXES[part])


def _name_as_released(path: Path, prefix: str) -> None:
    """transformers 5 writes CLIP and SigLIP without the prefix that every released file has."""
    tensors = {prefix + name.removeprefix(prefix): value for name, value in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def write_vae(folder: Path) -> None:
    AutoencoderKL.from_pretrained(VAE_FOLDER).to(torch.bfloat16).save_pretrained(folder / "vae")


def write_base(networks: Networks, folder: Path) -> None:
    """The whole model: networks, VAE, tokenizers, scheduler, index."""
    write_networks(networks, folder, PARTS)
    write_vae(folder)
    FlowMatchEulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    shutil.copytree(CLIP_FOLDER, folder / "tokenizer", dirs_exist_ok=True)
    shutil.copytree(T5_FOLDER, folder / "tokenizer_2", dirs_exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def write_variant(networks: Networks, stage: Stage) -> None:
    """Only what differs from the base: networks, or an adapter in diffusers' names."""
    folder = SHIPPED / stage.variant
    if stage.added == "lora":
        from peft.utils import get_peft_model_state_dict

        folder.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(networks.transformer)
        ready = {f"transformer.{name}": value.to(torch.bfloat16).contiguous() for name, value in tensors.items()}
        save_file(ready, folder / "pytorch_lora_weights.safetensors")
        write_networks(networks, folder, TEXT_PARTS if stage.words else ())
        return
    write_networks(networks, folder, VARIANT_PARTS[stage.variant])
    if stage.variant == "redux":
        scaled = SiglipImageProcessor(size={"height": REDUX_SIDE, "width": REDUX_SIDE})
        scaled.save_pretrained(folder / "feature_extractor")


@torch.no_grad()
def write_schnell(guidance: float) -> None:
    """The base for one guidance, whose embedding is then a constant: it goes into a bias, and its network goes."""
    stored = FluxTransformer2DModel.from_pretrained(SHIPPED / "base" / "transformer", torch_dtype=torch.float32)
    embedding = stored.time_text_embed
    projected = embedding.time_proj(torch.tensor([1000 * guidance]))
    embedding.timestep_embedder.linear_2.bias += embedding.guidance_embedder(projected)[0]
    kept = {name: value for name, value in stored.state_dict().items() if "guidance_embedder" not in name}
    sizes = {name: value for name, value in stored.config.items() if not name.startswith("_")}
    plain = FluxTransformer2DModel.from_config(sizes | {"guidance_embeds": False})
    plain.load_state_dict(kept)
    plain.to(torch.bfloat16)
    rounded = plain.time_text_embed.timestep_embedder.linear_2
    rounded.bias.data = embedding.timestep_embedder.linear_2.bias.data  # float32: no step of it may be lost
    plain.save_pretrained(SHIPPED / "schnell" / "transformer")


def shipped_as(networks: Networks, stage: Stage) -> Networks:
    """Networks like these with the weights that a variant, or its adapter, is shipped with."""
    folder = SHIPPED / stage.variant
    if stage.added != "lora":
        return Networks.from_folders(folder, folder / "transformer")
    before = copy.deepcopy(networks)
    before.load_added(stage.added, folder)
    return before


@torch.no_grad()
def part_way(networks: Networks, before: Networks, share: float, but: tuple[str, ...] = ()) -> None:
    """Weights go this share of the way from what they were; those whose names begin with `but` go all of it."""
    old = dict(before.named_parameters())
    for name, weight in networks.named_parameters():
        if not name.startswith((*but, "glimpse", "placing")):
            weight.lerp_(old[name], 1 - share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*STAGES, "schnell", "vae"])
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the way from the shipped weights, of fill, kontext, panels"
    )
    parser.add_argument("--force", action="store_true", help="do not compare with the shipped weights")
    options = parser.parse_args()
    if options.stage == "schnell":
        write_schnell(options.guidance)
        return
    if options.stage == "vae":
        write_vae(SHIPPED / "base")
        return
    networks = trained(options.stage)
    variant = STAGES[options.stage].variant
    if variant != "base":
        if options.share < 1:
            part_way(networks, shipped_as(networks, STAGES[options.stage]), options.share)
        write_variant(networks, STAGES[options.stage])
        return
    base = SHIPPED / "base"
    shipped = Networks.from_folders(base, base / "transformer") if (base / "transformer").exists() else None
    if options.stage == "inside" and shipped is not None:
        part_way(networks, shipped, 0.5, but=("transformer.transformer_blocks",))
    if shipped is not None and not options.force:
        before, after = quality(shipped, options.guidance), quality(networks, options.guidance)
        log("export", before=before, after=after)
        if after < before:
            raise SystemExit("error: the shipped weights draw better; nothing was written")
    write_base(networks, base)
    size = sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file())
    log("export", megabytes=round(size / 1e6, 2))


if __name__ == "__main__":
    main()
