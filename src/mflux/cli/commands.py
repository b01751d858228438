"""The commands, as one table."""

from typing import Any

from mflux.cli.options import SHARED, Command, Option, Values, real
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


def kontext_conditions(values: Values) -> tuple[Any, ...]:
    if "images" not in values:
        raise UsageError("`--image-path` is missing", "give the picture to edit, and perhaps more to take from")
    from mflux import conditions

    return (conditions.Kontext(values["images"], fit=values.get("fit", "preferred")),)


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
)
BY_NAME = {command.name: command for command in COMMANDS}
