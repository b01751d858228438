"""Make more cases with diffusers: other sizes, seeds, steps, strengths and prompts, on the models of tests/data.

.venv/bin/python -m pip install ".[parity]"
.venv/bin/python tests/parity/make_cases.py /tmp/cases --count 24 --seed 7
.venv/bin/python tools/parity.py /tmp/cases --out /tmp/out
"""

import argparse
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxPriorReduxPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.numpy import save_file

from mflux.images.sizes import of_area

MODELS = Path(__file__).parents[1] / "data" / "oracle" / "models"
ADAPTER = MODELS.parent / "cases" / "ip-adapter" / "ip_adapter.safetensors"
WORDS = ("a frozen,", "silver", "Fox", "isn't", "drawing", "47", "old", "lanterns;", "it's", "(poster)", "Ünïcode", "!")
SIDES = (16, 32, 48, 64, 80, 100)
TEXT_TOKENS = 512  # of the prior, always
LATENT_TOLERANCE, PIXEL_TOLERANCE = 1e-4, 1.0


def picture(chance: random.Random, height: int, width: int, mode: str) -> Image.Image:
    """A smooth random picture, or a mask with a hard or soft blob."""
    generator = np.random.default_rng(chance.getrandbits(32))
    coarse = generator.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    if mode == "RGB":
        return image
    grey = image.convert("L")
    return grey if chance.random() < 0.3 else grey.point(lambda value: 255 * (value > 120))


def common(chance: random.Random) -> dict[str, Any]:
    return {
        "prompt": " ".join(chance.choices(WORDS, k=chance.randint(0, 12))),
        "height": chance.choice(SIDES),
        "width": chance.choice(SIDES),
        "num_inference_steps": chance.randint(1, 5),
        "guidance": chance.choice((0.0, 1.0, 3.5, 30.0)),
        "max_sequence_length": chance.choice((16, 33, 64)),
    }


def floored(args: dict[str, Any]) -> tuple[int, int]:
    return args["height"] // 16 * 16, args["width"] // 16 * 16


def noises(chance: random.Random, args: dict[str, Any], packed: bool) -> torch.Tensor:
    height, width = floored(args)
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    shape = (1, height * width // 256, 64) if packed else (1, 16, height // 8, width // 8)
    return torch.randn(shape, generator=generator)


def call(pipeline: Any, args: dict[str, Any], **rest: Any) -> dict[str, np.ndarray]:
    """Run a pipeline; its packed latents and its pictures."""
    words = {name: value for name, value in args.items() if name not in ("guidance", "posterior")}
    kept: dict[str, torch.Tensor] = {}

    def keep(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        kept["latents"] = values["latents"]
        return values

    images = pipeline(**words, guidance_scale=args["guidance"], callback_on_step_end=keep, **rest).images
    return {"latents": kept["latents"].numpy(), "image": np.stack([np.asarray(image) for image in images])}


def text_to_image(chance: random.Random, folder: Path) -> dict[str, Any]:
    args = common(chance)
    model = chance.choice(("dev", "schnell"))
    args |= maybe_negative(chance)
    latents = noises(chance, args, packed=True)
    save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
    out = call(FluxPipeline.from_pretrained(MODELS / model), args, latents=latents)
    return spec("text-to-image", model, args, {"latents": "inputs.safetensors"}, out, folder)


def with_picture(kind: str, pipeline_class: Any, chance: random.Random, folder: Path) -> dict[str, Any]:
    """Image-to-image, inpainting and fill: a picture, perhaps a mask, and noise in place of the pipeline's draw."""
    args = common(chance) | {"posterior": "mode"}
    model = "fill" if kind == "fill" else chance.choice(("dev", "schnell"))
    inputs, rest = {"image": "image.png"}, {}
    image = picture(chance, chance.randint(20, 120), chance.randint(20, 120), "RGB")
    image.save(folder / "image.png")
    if kind != "image-to-image":
        mask = picture(chance, image.height, image.width, "L")
        mask.save(folder / "mask.png")
        inputs["mask"], rest["mask_image"] = "mask.png", mask
    if kind == "fill":
        latents = noises(chance, args, packed=True)
        save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
        inputs["latents"], rest["latents"] = "inputs.safetensors", latents
    else:
        args["strength"] = chance.choice((0.6, 0.75, 1.0))
        noise = noises(chance, args, packed=False)
        save_file({"noise": noise.numpy()}, folder / "inputs.safetensors")
        inputs["noise"] = "inputs.safetensors"
        import diffusers.pipelines.flux.pipeline_flux_img2img as first
        import diffusers.pipelines.flux.pipeline_flux_inpaint as second

        for module in (first, second):
            module.randn_tensor = lambda *_, **__: noise
    out = call(pipeline_class.from_pretrained(MODELS / model), args, image=image, **rest)
    return spec(kind, model, args, inputs, out, folder)


def kontext(chance: random.Random, folder: Path) -> dict[str, Any]:
    """A reference of any size, or none, beside a size that is brought to an area."""
    args = common(chance) | {"max_area": chance.randint(1000, 6000), "_auto_resize": False}
    args |= maybe_negative(chance)
    height, width = of_area(args["max_area"], args["height"], args["width"])
    inputs, rest = {"latents": "inputs.safetensors"}, {}
    if chance.random() < 0.8:
        rest["image"] = picture(chance, chance.randint(16, 120), chance.randint(16, 120), "RGB")
        rest["image"].save(folder / "image.png")
        inputs["image"] = "image.png"
    latents = noises(chance, {"height": height, "width": width}, packed=True)
    save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
    out = call(FluxKontextPipeline.from_pretrained(MODELS / "kontext"), args, latents=latents, **rest)
    return spec("kontext", "kontext", args, inputs, out, folder)


def kontext_inpaint(chance: random.Random, folder: Path) -> dict[str, Any]:
    """A picture with a mask, perhaps a reference; what is drawn has the picture's size."""
    image = picture(chance, chance.randint(32, 100), chance.randint(32, 100), "RGB")
    files = {"image": image, "mask": picture(chance, image.height, image.width, "L")}
    if chance.random() < 0.5:
        files["reference"] = picture(chance, chance.randint(16, 100), chance.randint(16, 100), "RGB")
    for name, each in files.items():
        each.save(folder / f"{name}.png")
    size = {"height": image.height, "width": image.width}
    args = common(chance) | size | {"posterior": "mode", "_auto_resize": False} | maybe_negative(chance)
    args |= {"strength": chance.choice((0.5, 0.75, 1.0)), "num_inference_steps": chance.randint(2, 5)}
    noise = noises(chance, args, packed=False)
    save_file({"noise": noise.numpy()}, folder / "inputs.safetensors")
    import diffusers.pipelines.flux.pipeline_flux_kontext_inpaint as module

    module.randn_tensor = lambda *_, **__: noise
    rest = {"image": image, "mask_image": files["mask"], "image_reference": files.get("reference")}
    out = call(FluxKontextInpaintPipeline.from_pretrained(MODELS / "kontext"), args, **rest)
    inputs = {"noise": "inputs.safetensors"} | {name: f"{name}.png" for name in files}
    return spec("kontext-inpaint", "kontext", args, inputs, out, folder)


def redux(chance: random.Random, folder: Path) -> dict[str, Any]:
    """One or two pictures, with texts and scales or without; dev's text encoders serve both pipelines."""
    images = [
        picture(chance, chance.randint(20, 120), chance.randint(20, 120), "RGB") for _ in range(chance.choice((1, 2)))
    ]
    names = [f"image-{index}.png" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        image.save(folder / name)
    args = common(chance)
    del args["max_sequence_length"]
    args["prompt"] = chance.choice((args["prompt"], None))
    for name in ("prompt_embeds_scale", "pooled_prompt_embeds_scale"):
        args[name] = [chance.choice((0.25, 0.8, 1.0, 1.5)) for _ in images]
    latents = noises(chance, args, packed=True)
    save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
    base = FluxPipeline.from_pretrained(MODELS / "dev")
    parts = {name: getattr(base, name) for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    prior = FluxPriorReduxPipeline.from_pretrained(MODELS / "redux", **parts)
    scales = {name: args[name] for name in ("prompt_embeds_scale", "pooled_prompt_embeds_scale")}
    given = prior(images, prompt=[args["prompt"] or ""] * len(images), **scales)
    seen = 0.0 if args["prompt"] is None else 1.0
    given.prompt_embeds[:, :TEXT_TOKENS] *= seen  # what a prior without text encoders gives
    words = {name: args[name] for name in ("height", "width", "num_inference_steps", "guidance")}
    embeds = {"prompt_embeds": given.prompt_embeds, "pooled_prompt_embeds": given.pooled_prompt_embeds * seen}
    out = call(base, words, latents=latents, **embeds)
    inputs = {"latents": "inputs.safetensors", "image": names}
    return spec("redux", "dev", args | {"redux": "redux"}, inputs, out, folder)


def control(chance: random.Random, folder: Path) -> dict[str, Any]:
    """A map of any size, stretched."""
    args = common(chance) | {"posterior": "mode"}
    image = picture(chance, chance.randint(20, 120), chance.randint(20, 120), "RGB")
    image.save(folder / "control_image.png")
    latents = noises(chance, args, packed=True)
    save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
    out = call(FluxControlPipeline.from_pretrained(MODELS / "control"), args, control_image=image, latents=latents)
    inputs = {"latents": "inputs.safetensors", "control_image": "control_image.png"}
    return spec("control", "control", args, inputs, out, folder)


def controlnet(chance: random.Random, folder: Path) -> dict[str, Any]:
    """One to three ControlNets, with modes and windows of their own.  Their maps have the size that is drawn: diffusers
    takes the size of the maps."""
    args = common(chance) | {"posterior": "mode"} | maybe_negative(chance)
    args["height"], args["width"] = floored(args)
    # The one with single blocks first: behind one without, diffusers drops its single-block residuals.
    names = sorted(chance.choice(("controlnet", "controlnet-union")) for _ in range(chance.choice((1, 1, 2, 3))))
    starts = [chance.choice((0.0, 0.2, 0.5)) for _ in names]
    ends = [chance.choice((0.6, 0.8, 1.0)) for _ in names]
    modes = [chance.randrange(5) if name == "controlnet-union" else None for name in names]
    # diffusers hands a mode to every net of several; those without modes ignore it, but not None.
    modes = modes if len(names) == 1 else [0 if mode is None else mode for mode in modes]
    images = [picture(chance, args["height"], args["width"], "RGB") for _ in names]
    files = [f"control_image-{index}.png" for index in range(len(names))]
    for file, image in zip(files, images, strict=True):
        image.save(folder / file)
    latents = noises(chance, args, packed=True)
    save_file({"latents": latents.numpy()}, folder / "inputs.safetensors")
    nets = [FluxControlNetModel.from_pretrained(MODELS / name) for name in names]
    pipeline = FluxControlNetPipeline.from_pretrained(MODELS / "dev", controlnet=nets if len(nets) > 1 else nets[0])
    values = {"controlnet_conditioning_scale": [chance.choice((0.3, 0.7, 1.2)) for _ in names]}
    values |= {"control_guidance_start": starts, "control_guidance_end": ends, "control_mode": modes}
    if len(names) == 1:
        values = {name: each[0] for name, each in values.items()}
    out = call(pipeline, args | values, control_image=images if len(nets) > 1 else images[0], latents=latents)
    inputs = {"latents": "inputs.safetensors", "control_image": files}
    return spec("controlnet", "dev", args | values | {"controlnet": names}, inputs, out, folder)


def ip_adapter(chance: random.Random, folder: Path) -> dict[str, Any]:
    """Vectors of one to three pictures, a scale for all blocks or one for each."""
    args = common(chance) | maybe_negative(chance)
    shutil.copyfile(ADAPTER, folder / ADAPTER.name)
    generator = torch.Generator().manual_seed(chance.getrandbits(32))
    embeds, negative = (torch.randn((1, chance.randint(1, 3), 24), generator=generator) for _ in range(2))
    latents = noises(chance, args, packed=True)
    tensors = {"latents": latents, "ip_embeds": embeds, "negative_ip_embeds": negative}
    save_file({name: tensor.numpy() for name, tensor in tensors.items()}, folder / "inputs.safetensors")
    pipeline = FluxPipeline.from_pretrained(MODELS / "dev")
    pipeline.load_ip_adapter(folder, weight_name=ADAPTER.name, image_encoder_pretrained_model_name_or_path=None)
    scale = chance.choice((0.5, 1.0, [0.9, 0.2]))
    pipeline.set_ip_adapter_scale([scale] if isinstance(scale, list) else scale)
    seen = {"ip_adapter_image_embeds": [embeds], "negative_ip_adapter_image_embeds": [negative]}
    out = call(pipeline, args, latents=latents, **seen)
    inputs = dict.fromkeys(tensors, "inputs.safetensors") | {"ip_adapter": ADAPTER.name}
    return spec("ip-adapter", "dev", args | {"ip_adapter_scale": scale}, inputs, out, folder)


def maybe_negative(chance: random.Random) -> dict[str, Any]:
    if chance.random() < 0.6:
        return {}
    return {"negative_prompt": " ".join(chance.choices(WORDS, k=3)), "true_cfg_scale": chance.choice((1.5, 4.0))}


def spec(
    kind: str, model: str, args: dict[str, Any], inputs: dict[str, Any], out: dict[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    save_file({name: np.ascontiguousarray(value) for name, value in out.items()}, folder / "expected.safetensors")
    expected = {"latents": LATENT_TOLERANCE, "image": PIXEL_TOLERANCE}
    return {"case": folder.name, "pipeline": kind, "model": model, "args": args, "inputs": inputs, "expected": expected}


MAKERS: dict[str, Callable[[random.Random, Path], dict[str, Any]]] = {
    "text-to-image": text_to_image,
    "image-to-image": lambda chance, folder: with_picture("image-to-image", FluxImg2ImgPipeline, chance, folder),
    "inpaint": lambda chance, folder: with_picture("inpaint", FluxInpaintPipeline, chance, folder),
    "kontext": kontext,
    "kontext-inpaint": kontext_inpaint,
    "redux": redux,
    "control": control,
    "controlnet": controlnet,
    "ip-adapter": ip_adapter,
    "fill": lambda chance, folder: with_picture("fill", FluxFillPipeline, chance, folder),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
    shutil.copytree(MODELS, options.folder / "models", dirs_exist_ok=True)
    chance = random.Random(options.seed)
    for index in range(options.count):
        kind = list(MAKERS)[index % len(MAKERS)]
        folder = options.folder / "cases" / f"{kind}-{index:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.json").write_text(json.dumps(MAKERS[kind](chance, folder), indent=1) + "\n")


if __name__ == "__main__":
    main()
