"""The commands, as one table."""

from typing import Any

from mflux.cli.options import SHARED, Command, Option, Values, real, whole
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


PICTURE_AND_MASK = "give the picture and a mask of its size, white where to paint"
MASKED_EDIT = ("strength", "grow", "feather", "crop", "composite", "fit", "reference_and_source")


def fill_conditions(values: Values) -> tuple[Any, ...]:
    needed(values, PICTURE_AND_MASK, image="--image-path", mask="--masked-image-path")
    from mflux import conditions

    return (conditions.Fill(values["image"], values["mask"], composite=not values.get("composite", False)),)


def kontext_conditions(values: Values) -> tuple[Any, ...]:
    needed(values, "give the picture to edit, and perhaps more to take from", images="--image-path")
    from mflux import conditions

    return (conditions.Kontext(**given(values, "images", "fit")),)


def masked_edit_conditions(values: Values) -> tuple[Any, ...]:
    needed(values, PICTURE_AND_MASK, image="--image-path", mask="--mask-path")
    if "feather" in values and values.get("composite", "pixel") != "pixel":
        raise UsageError("only `--composite pixel` has an edge to feather", "leave one of the two out", "feather")
    if "fit" in values and "reference" not in values:
        raise UsageError("there is no reference for it", "give `--reference-image` too", "fit")
    from mflux import conditions

    return (conditions.MaskedEdit(**given(values, "image", "mask", "reference", *MASKED_EDIT)),)


def redux_conditions(values: Values) -> tuple[Any, ...]:
    needed(values, "give one picture or more to draw like", images="--redux-image-paths")
    from mflux import conditions

    return (conditions.Redux(**given(values, "images", "strengths", "combine")),)


def needed(values: Values, hint: str, **flags: str) -> None:
    """Refuse where a flag that fills one of these fields is not given."""
    for name, flag in flags.items():
        if name not in values:
            raise UsageError(f"`{flag}` is missing", hint)


def given(values: Values, *names: str) -> dict[str, Any]:
    """The values of these fields, where their flags are given."""
    return {name: values[name] for name in names if name in values}


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
        "mflux-generate-kontext",
        "Do with a picture what the prompt tells, with a Kontext model.",
        "kontext",
        (
            *SHARED,
            Option("--image-path", "Kontext.images", "the picture, or several to take from", {"nargs": "+"}),
            Option("--turns", "Run.turns", "a text file of instructions, one a line, each on the result before"),
            Option(
                "--fit",
                "Kontext.fit",
                "size of the pictures: preferred (default), own, or the drawn one's by stretch, crop or pad",
            ),
        ),
        kontext_conditions,
        default_model="kontext",
    ),
    Command(
        "mflux-generate-masked-edit",
        "Do what the prompt tells inside a mask, with a Kontext model; every byte outside stays.",
        "kontext",
        (
            *SHARED,
            Option("--image-path", "MaskedEdit.image", "the picture"),
            Option("--mask-path --masked-image-path", "MaskedEdit.mask", "its mask: white is changed, black is kept"),
            Option("--reference-image", "MaskedEdit.reference", "a picture to take from"),
            Option(
                "--reference-and-source",
                "MaskedEdit.reference_and_source",
                "show the network the picture beside the reference, not the reference alone",
                {"action": "store_true"},
            ),
            Option("--fit", "MaskedEdit.fit", "size of the reference: preferred (default), own, stretch, crop or pad"),
            Option(
                "--strength",
                "MaskedEdit.strength",
                "above 0 to 1: share of the steps that run; lower stays closer (default 1)",
                {"type": real},
            ),
            Option(
                "--padding-mask-crop",
                "MaskedEdit.crop",
                "work on the mask's surroundings only, with so many px around it, 0 to 512",
                {"type": whole},
            ),
            Option("--mask-grow", "MaskedEdit.grow", "widen the mask by so many px, 0 to 256", {"type": whole}),
            Option(
                "--feather",
                "MaskedEdit.feather",
                "px inside the mask over which new turns into old, 0 to 256 (default 8)",
                {"type": whole},
            ),
            Option(
                "--composite",
                "MaskedEdit.composite",
                "keep what is outside: its pixels (pixel, default), its latents (latent), or nothing (none)",
            ),
        ),
        masked_edit_conditions,
        default_model="kontext",
    ),
    Command(
        "mflux-generate-redux",
        "Draw something like one or more pictures, with a prompt or without.",
        "redux",
        (
            *SHARED,
            Option("--redux-image-paths", "Redux.images", "the pictures", {"nargs": "+"}),
            Option(
                "--redux-image-strengths",
                "Redux.strengths",
                "how much each counts, 0 (not at all) to 2 (default 1)",
                {"type": real, "nargs": "+"},
            ),
            Option(
                "--redux-combine", "Redux.combine", "one after another (concat, default) or added up (sum, diffusers)"
            ),
        ),
        redux_conditions,
        default_model="redux",
        needs_prompt=False,
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}
