"""The commands, as one table."""

from typing import Any

from mflux.cli.options import LORAS, SHARED, Command, Option, Values, real, whole
from mflux.engine.request import QUANTIZE
from mflux.errors import UsageError


def generate_conditions(values: Values) -> tuple[Any, ...]:
    image, mask, strength = values.get("image"), values.get("mask"), values.get("image_strength")
    if image is None:
        for name, given in (("mask", mask), ("image_strength", strength)):
            if given is not None:
                raise UsageError("there is no image for it", "give `--image-path` too", name)
        return ()
    from mflux import conditions

    if mask is not None:
        return (conditions.Inpaint(image, mask, image_strength=strength),)
    return (conditions.ImageToImage(image, image_strength=strength),)


def fill_conditions(values: Values) -> tuple[Any, ...]:
    for name, what in (("image", "`--image-path`"), ("mask", "`--masked-image-path`")):
        if name not in values:
            raise UsageError(f"{what} is missing", "give the picture and a mask of its size, white where to paint")
    from mflux import conditions

    return (conditions.Fill(values["image"], values["mask"], composite=not values.get("composite", False)),)


def save(values: Values) -> None:
    from mflux.cli.save import save_model

    save_model(values)


def info(values: Values) -> None:
    from mflux.cli.inspect import info

    info(**values)


def check(values: Values) -> None:
    from mflux.cli.inspect import check

    check(**values)


def lora_library(values: Values) -> None:
    from mflux.cli.inspect import lora_library

    lora_library(**values)


COMMANDS = (
    Command(
        "mflux-generate",
        "Draw pictures from a prompt, or from a prompt and a picture.",
        "base",
        (
            *SHARED,
            Option("--image-path", "ImageToImage.image Inpaint.image", "start from this picture"),
            Option(
                "--image-strength",
                "ImageToImage.image_strength Inpaint.image_strength",
                "0 to below 1; higher stays closer to the picture (default 0.4; with a mask: 0)",
                {"type": real},
            ),
            Option("--mask-path", "Inpaint.mask", "repaint only where this picture is white"),
        ),
        generate_conditions,
    ),
    Command(
        "mflux-generate-fill",
        "Repaint the white part of a mask with a Fill model; every other byte stays.",
        "fill",
        (
            *SHARED,
            Option("--image-path", "Fill.image", "the picture"),
            Option("--masked-image-path --mask-path", "Fill.mask", "its mask: white is painted, black is kept"),
            Option(
                "--no-composite",
                "Fill.composite",
                "do not put the picture's own pixels back outside the mask",
                {"action": "store_true"},
            ),
        ),
        fill_conditions,
        default_model="fill",
    ),
    Command(
        "mflux-save",
        "Save a model, quantized or not, with LoRAs in it or not, for mflux or for diffusers.",
        "base",
        (
            Option("--model -m", "Run.model", "alias (dev, schnell, tiny, ...), hub id, folder, or single file"),
            Option("--path", "Saving.target", "the new folder"),
            Option("--base-model", "Flux1.base_model", "alias of the family that a third-party model belongs to"),
            Option(
                "--quantize -q", "Flux1.quantize", f"bits a weight: {', '.join(map(str, QUANTIZE))}", {"type": whole}
            ),
            Option("--layout", "Saving.layout", "whose folder layout: mflux (default) or diffusers (whole weights)"),
            *LORAS,
        ),
        run=save,
    ),
    Command(
        "mflux-info",
        "Say what a picture, checkpoint, LoRA or model folder holds.",
        "base",
        (Option("FILE", "info.file", "a picture, a .safetensors or .gguf file, or a folder"),),
        run=info,
    ),
    Command(
        "mflux-check",
        "Compare a saved model with its manifest, byte by byte; without one, check its tensors.",
        "base",
        (Option("MODEL", "check.model", "a folder, alias or hub id"),),
        run=check,
    ),
    Command(
        "mflux-lora-library",
        "List the LoRAs that can be named: the files below the folders in LORA_LIBRARY_PATH.",
        "base",
        (
            Option("ACTION", "lora_library.action", "list", {"nargs": "?", "default": "list", "choices": ("list",)}),
            Option("--paths", "lora_library.paths", "folders in place of LORA_LIBRARY_PATH", {"nargs": "+"}),
        ),
        run=lora_library,
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}
