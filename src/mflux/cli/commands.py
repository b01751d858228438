"""The commands, as one table."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from mflux.cli.options import LORAS, PLACE, REAL, SHARED, SWITCH, WHOLE, Command, Option, Values, quantize, real
from mflux.errors import UsageError

PICTURE_AND_MASK = "give the picture and a mask of its size, white where to paint"
EACH_OWN = ("ControlNet.model", "strength", "mode", "start", "end")  # lists, paired with the control images
MAPS = ("heatmap", "overlay", "segmentation", "maps")


# --- from values to conditions ----------------------------------------------------------------------------------------


def fields_of(command: Command, owner: str, values: Values) -> dict[str, Any]:
    """The values of the flags that fill fields of a class, by field."""
    told = [option for option in command.options if option.name in values]
    reads = [(option.name, *each.split(".")) for option in told for each in option.reads.split()]
    return {field: values[name] for name, reader, field in reads if reader == owner}


def condition(command: Command, name: str, values: Values, **more: Any) -> Any:
    """The condition of this class that the flags describe; `more`: fields without a flag."""
    from mflux import conditions

    return getattr(conditions, name)(**fields_of(command, name, values), **more)


def needed(command: Command, values: Values, hint: str, *names: str) -> None:
    """Refuse where a flag that fills one of these fields is not given."""
    for name in names:
        if name not in values:
            raise UsageError(f"`{command.flag_of(name)}` is missing", hint)


def one(owner: str, hint: str, *names: str) -> Callable[[Command, Values], tuple[Any, ...]]:
    """For a command of one condition.  hint: what to give where one of `names` is missing."""

    def make(command: Command, values: Values) -> tuple[Any, ...]:
        needed(command, values, hint, *names)
        return (condition(command, owner, values),)

    return make


def generate_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    found = start_conditions(command, values)
    if not any(name.startswith("IPAdapter.") for name in values):
        return found
    needed(command, values, "give the adapter's file and a picture for it", "IPAdapter.file", "IPAdapter.image")
    return (*found, condition(command, "IPAdapter", values))


def start_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    """Image-to-image or inpainting, where a picture is given."""
    image, mask, strength = values.get("image"), values.get("mask"), values.get("image_strength")
    if short := values.get("start_image"):
        if image is not None or len(short) > 2 or (len(short) == 2 and strength is not None):
            hint = "give `--image PATH STRENGTH`, or `--image-path PATH --image-strength STRENGTH`"
            raise UsageError("the picture or its strength is given twice", hint, "start_image")
        image = short[0]
        strength = strength_of(short[1]) if len(short) == 2 else strength
    if image is None:
        for name, given in (("mask", mask), ("image_strength", strength)):
            if given is not None:
                raise UsageError("there is no image for it", "give `--image-path` too", name)
        return ()
    name = "ImageToImage" if mask is None else "Inpaint"
    return (condition(command, name, {**values, "image": image, "image_strength": strength}),)


def strength_of(text: str) -> float:
    try:
        return real(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(str(error), "give `--image PATH STRENGTH`", "start_image") from None


def fill_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    if "edit_mode" in values or "outpaint" in values:
        needed(command, values, "give the picture", "image")
    else:
        needed(command, values, PICTURE_AND_MASK, "image", "mask")
    if "edit_mode" in values and "composite" in values:
        raise UsageError("an edit mode keeps no pixels anyway", "leave one of the two out", "composite")
    return (condition(command, "Fill", values),)


def masked_edit_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    needed(command, values, PICTURE_AND_MASK, "image", "mask")
    if "feather" in values and values.get("composite", "pixel") != "pixel":
        raise UsageError("only `--composite pixel` has an edge to feather", "leave one of the two out", "feather")
    if "fit" in values and "reference" not in values:
        raise UsageError("there is no reference for it", "give `--reference-image` too", "fit")
    return (condition(command, "MaskedEdit", values),)


def concept_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    return (*start_conditions(command, values), concepts_of(command, values))


def concept_from_image_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    needed(command, values, "give the picture to look into", "image")
    return (concepts_of(command, values),)


def concepts_of(command: Command, values: Values) -> Any:
    needed(command, values, "say what to look for: `--concepts circle star`", "names")
    return condition(command, "Concepts", {"background": ["background"], **values})


def fluxspace_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    needed(command, values, "say what to bring in, best in one word: `--edit-prompt striped`", "edits")
    edits = [edit_of(words) if all(isinstance(word, str) for word in words) else words for words in values["edits"]]
    inverts = fields_of(command, "RFInversion", values)
    if inverts:
        needed(command, values, "give the picture to edit, or leave out what belongs to its inversion", "image")
    edit = condition(command, "FluxSpace", {**values, "edits": edits})
    return (edit, condition(command, "RFInversion", values)) if inverts else (edit,)


def edit_of(words: Sequence[str]) -> tuple[Any, ...]:
    """A text, one or two numbers and another text, as the fields of an Edit."""
    numbers = [number for number in map(as_number, words) if number is not None]
    texts = [word for word in words if as_number(word) is None]
    if len(texts) not in (1, 2) or len(numbers) > 2:
        hint = "give a text, and perhaps its fine and coarse scale and a text to take away: `glasses 5 0.5 older`"
        raise UsageError(f"`{' '.join(words)[:60]}` is no edit", hint, "edits")
    return (texts[0], *numbers, *[None] * (2 - len(numbers)), *texts[1:])


def as_number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def control_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    """For a model that reads one kind of map, which is the command's task."""
    if ("image" in values) == ("source" in values):
        problem = "both kinds of control image are given" if "image" in values else "there is no control image"
        own_map = command.flag_of("image")
        raise UsageError(problem, f"give `--image-path`, a picture to make the map from, or `{own_map}`, a map")
    check_making(values, {command.task} if "source" in values else set(), "--image-path")
    return (condition(command, "Control", values, kind=command.task),)


def controlnet_conditions(command: Command, values: Values) -> tuple[Any, ...]:
    """One ControlNet a picture: those to make a map from, then the maps.  Other lists are paired with them in order."""
    pictures = [(name, picture) for name in ("source", "image") for picture in values.get(name, ())]
    if not pictures:
        hint = "give `--controlnet-image-path`, a picture whose edges to use, or `--control-map`, a map"
        raise UsageError("there is no control image", hint)
    for name in EACH_OWN:
        if len(values.get(name, ())) not in (0, 1, len(pictures)):
            problem = f"{len(values[name])} values for {len(pictures)} control images"
            raise UsageError(problem, "give one for all, or one for each", name)
    shared = {name: value for name, value in values.items() if name not in ("source", "image")}
    found = []
    for index, (name, picture) in enumerate(pictures):
        own = {key: values[key][min(index, len(values[key]) - 1)] for key in EACH_OWN if key in values}
        found.append(condition(command, "ControlNet", {**shared, **own, name: picture}))
    check_making(values, {each.map.kind for each in found if each.source is not None}, "--controlnet-image-path")
    return tuple(found)


def check_making(values: Values, kinds: set[str], picture: str) -> None:
    """Refuse flags about making a map where none of that kind is made; picture: the flag of what one is made from."""
    needs = {"canny_low": {"canny"}, "canny_high": {"canny"}, "depth_model": {"depth"}}
    needs["side_files"] = set(values.get("side_files", ()))
    for name, makers in needs.items():
        if name in values and not makers & kinds:
            problem = f"no {' or '.join(makers)} map is made" if kinds else "the map is yours already"
            raise UsageError(problem, f"leave it out, or give `{picture}` to have one made", name)


# --- flags that several commands have ---------------------------------------------------------------------------------


def side_file(flag: str, artifact: str, what: str) -> Option:
    """A flag that also writes a picture which the run makes besides."""
    words = f"also write {what} as <name>_{artifact}.png"
    return Option(flag, "Run.side_files", words, {"action": "append_const", "const": artifact})


def fit(owner: str, what: str = "the map") -> Option:
    return Option("--fit", f"{owner}.fit", f"how {what} is brought to an asked size: stretch (default), crop or pad")


def depth_model(owner: str) -> Option:
    return Option("--depth-model", f"{owner}.depth_model", "hub id or folder of another Depth Pro")


def thresholds(owner: str, low: int, high: int) -> tuple[Option, ...]:
    """The flags of edges found in a picture."""
    return (
        Option("--canny-low", f"{owner}.canny_low", f"gradient from which an edge goes on (default {low})", REAL),
        Option("--canny-high", f"{owner}.canny_high", f"gradient that starts an edge (default {high})", REAL),
    )


FULL_IMAGE = side_file("--save-full-image", "full", "both panels")
START = (
    Option("--image-path", "ImageToImage.image Inpaint.image", "start from this picture"),
    Option("--image", "Run.start_image", "the same, and perhaps its strength behind it", {"nargs": "+"}),
    Option(
        "--image-strength",
        "ImageToImage.image_strength Inpaint.image_strength",
        "0 to below 1; higher stays closer to the picture (default 0.4; with a mask: 0)",
        REAL,
    ),
    Option("--mask-path", "Inpaint.mask", "repaint only where this picture is white"),
)
INVERSION = (
    Option("--image-path", "RFInversion.image", "the picture to edit"),
    Option(
        "--gamma",
        "RFInversion.gamma",
        "how far the inversion is pulled to the seed's noise, 0 to 1 (default 0.5); more is easier to edit",
        REAL,
    ),
    Option("--eta", "RFInversion.eta", "how far the drawing is pulled to the picture, 0 to 1 (default 0.9)", REAL),
    Option("--eta-start", "RFInversion.eta_start", "first step that pulls, or a share of the steps", PLACE),
    Option("--eta-stop", "RFInversion.eta_stop", "the step that pulls no more, or a share (default 0.214)", PLACE),
    Option("--eta-schedule", "RFInversion.eta_schedule", "constant (default), decay, rise or fall"),
    Option("--eta-power", "RFInversion.eta_power", "of decay: 0 (constant) to 10 (default 1)", REAL),
)
CONCEPTS = (
    Option("--concepts --concept", "Concepts.names", "what to look for", {"nargs": "+"}),
    Option(
        "--background-concepts",
        "Concepts.background",
        "what else there is to compare with (default: background)",
        {"nargs": "*"},
    ),
    Option(
        "--heatmap-layer-indices",
        "Concepts.layers",
        "joint blocks to read (default: the last fifth)",
        {**WHOLE, "nargs": "+"},
    ),
    Option(
        "--heatmap-timesteps",
        "Concepts.steps",
        "steps to read (default: all; of a picture that exists: one noise level)",
        {**WHOLE, "nargs": "+"},
    ),
    Option("--space", "Concepts.space", "compare attention outputs (output, default) or queries with keys (cross)"),
)
OPTIONAL: dict[str, Any] = {"nargs": "?", "default": argparse.SUPPRESS}  # whether it is missing the command says
COMMANDS = (
    Command(
        "mflux-generate",
        "Draw pictures from a prompt, or from a prompt and a picture.",
        "base",
        (
            *SHARED,
            *START,
            Option("--ip-adapter", "IPAdapter.file", "an IP-Adapter's safetensors file, or hub id", qualified=True),
            Option("--ip-adapter-image", "IPAdapter.image", "the picture that it looks at", qualified=True),
            Option("--ip-adapter-scale", "IPAdapter.scale", "0 to 2 (default 1)", REAL, qualified=True),
            Option(
                "--ip-adapter-encoder",
                "IPAdapter.encoder",
                "hub id or folder of its CLIP picture encoder (default: CLIP ViT-L/14)",
                qualified=True,
            ),
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
                {"action": "store_false"},
            ),
            Option(
                "--outpaint-padding --image-outpaint-padding",
                "Fill.outpaint",
                "paint around the picture: top,right,bottom,left in px or %, for example 0,25%,0,25%",
            ),
            Option(
                "--edit-mode",
                "Fill.edit_mode",
                "without a mask, for adapters trained so: the picture in the extra channels (channels) or beside "
                "the drawn one (spatial)",
            ),
            fit("Fill", "the picture"),
        ),
        fill_conditions,
        default_model="fill",
    ),
    Command(
        "mflux-generate-canny",
        "Draw along the edges of a picture, with a Canny model.",
        "canny",
        (
            *SHARED,
            Option("--image-path", "Control.source", "the picture whose edges to use"),
            Option("--canny-image-path", "Control.image", "a map of edges, in place of a picture"),
            *thresholds("Control", 50, 200),
            fit("Control"),
            side_file("--save-canny", "canny", "the edges"),
        ),
        control_conditions,
        default_model="canny",
    ),
    Command(
        "mflux-generate-depth",
        "Draw with the depth of a picture, with a Depth model.",
        "depth",
        (
            *SHARED,
            Option("--image-path", "Control.source", "the picture whose depth to use"),
            Option("--depth-image-path", "Control.image", "a depth map, near is bright, in place of a picture"),
            depth_model("Control"),
            fit("Control"),
            side_file("--save-depth-map", "depth", "the map"),
        ),
        control_conditions,
        default_model="depth",
    ),
    Command(
        "mflux-save-depth",
        "Write the depth map of a picture, near is bright.",
        "depth",
        (
            Option("--image-path", "SaveDepth.image", "the picture"),
            Option("--output", "SaveDepth.output", "png, jpg or webp (default: <picture>_depth.png beside it)"),
            Option(
                "--model -m", "SaveDepth.model", "Depth Pro's hub id or folder, or `tiny` (default apple/DepthPro-hf)"
            ),
            quantize("SaveDepth"),
        ),
        run="mflux.cli.save_depth:run",
    ),
    Command(
        "mflux-generate-controlnet",
        "Draw along the edges of a picture, or after any map, with ControlNets beside the model.",
        "controlnet",
        (
            *SHARED,
            Option(
                "--controlnet-image-path",
                "ControlNet.source",
                "a picture whose edges to use; again for another ControlNet",
                {"action": "append"},
            ),
            Option("--control-map", "ControlNet.image", "a map, in place of a picture", {"action": "append"}),
            Option(
                "--controlnet-model",
                "ControlNet.model",
                "hub id or folder (default: an edge ControlNet for the model); one for all, or one a picture",
                {"action": "append"},
                qualified=True,
            ),
            Option(
                "--controlnet-strength", "ControlNet.strength", "0 to 2 (default 0.4)", {**REAL, "action": "append"}
            ),
            Option(
                "--control-mode",
                "ControlNet.mode",
                "kind of map, for union ControlNets: canny, tile, depth, blur, pose, gray, low-quality, or a number",
                {"action": "append"},
            ),
            Option(
                "--control-start",
                "ControlNet.start",
                "part of the steps before it, 0 to 1 (default 0)",
                {**REAL, "action": "append"},
            ),
            Option(
                "--control-end",
                "ControlNet.end",
                "part of the steps at which it stops, 0 to 1 (default 1)",
                {**REAL, "action": "append"},
            ),
            *thresholds("ControlNet", 100, 200),
            depth_model("ControlNet"),
            fit("ControlNet"),
            side_file("--controlnet-save-canny", "canny", "the edges"),
        ),
        controlnet_conditions,
        default_model="dev",
    ),
    Command(
        "mflux-outpaint-canvas",
        "Put room around a picture, and write its mask: what mflux-generate-fill needs to paint beyond the borders.",
        "",
        (
            Option("IMAGE", "OutpaintCanvas.image", "the picture", OPTIONAL),
            Option(
                "--image-outpaint-padding --outpaint-padding",
                "OutpaintCanvas.outpaint",
                "top, right, bottom, left in px or per cent, as in CSS: `0,25%,0,25%`",
            ),
        ),
        run="mflux.cli.outpaint_canvas:run",
    ),
    Command(
        "mflux-mask",
        "Paint a mask over a picture, in a page of the browser that only this machine can open.",
        "",
        (
            Option("IMAGE", "PaintMask.image", "the picture", OPTIONAL),
            Option("--output", "PaintMask.output", "png or webp (default: <picture>_mask.png beside it)"),
            Option("--port", "PaintMask.port", "of the page, 1024 to 65535 (default: one that is free)", WHOLE),
            Option("--no-browser", "PaintMask.no_browser", "print the address only", SWITCH),
        ),
        run="mflux.cli.paint_mask:run",
    ),
    Command(
        "mflux-upscale",
        "Enlarge a picture and draw its detail, with an upscaling ControlNet beside the model.",
        "upscaler",
        (
            *SHARED,
            Option("--controlnet-image-path --image-path", "Upscale.image", "the picture"),
            Option("--scale", "Upscale.scale", "by how much, 1 to 16, without a size (default 1)", REAL),
            Option("--controlnet-strength", "Upscale.strength", "how closely, 0 to 2 (default 0.4)", REAL),
            Option("--controlnet-model", "Upscale.model", "hub id or folder of another ControlNet", qualified=True),
        ),
        one("Upscale", "give the picture to enlarge", "image"),
        default_model="dev-upscaler",
        needs_prompt=False,
    ),
    Command(
        "mflux-generate-kontext",
        "Do with a picture what the prompt tells, with a Kontext model.",
        "kontext",
        (
            *SHARED,
            Option("--image-path --image", "Kontext.images", "the picture, or several to take from", {"nargs": "+"}),
            Option("--turns", "Run.turns", "a text file of instructions, one a line, each on the result before"),
            Option(
                "--fit",
                "Kontext.fit",
                "size of the pictures: preferred (default), own, or the drawn one's by stretch, crop or pad",
            ),
        ),
        one("Kontext", "give the picture to edit, and perhaps more to take from", "images"),
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
                SWITCH,
            ),
            Option("--fit", "MaskedEdit.fit", "size of the reference: preferred (default), own, stretch, crop or pad"),
            Option(
                "--strength",
                "MaskedEdit.strength",
                "above 0 to 1: share of the steps that run; lower stays closer (default 1)",
                REAL,
            ),
            Option(
                "--padding-mask-crop",
                "MaskedEdit.crop",
                "work on the mask's surroundings only, with so many px around it, 0 to 512",
                WHOLE,
            ),
            Option("--mask-grow", "MaskedEdit.grow", "widen the mask by so many px, 0 to 256", WHOLE),
            Option(
                "--feather",
                "MaskedEdit.feather",
                "px inside the mask over which new turns into old, 0 to 256 (default 8)",
                WHOLE,
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
                {**REAL, "nargs": "+"},
            ),
            Option(
                "--redux-combine", "Redux.combine", "one after another (concat, default) or added up (sum, diffusers)"
            ),
        ),
        one("Redux", "give one picture or more to draw like", "images"),
        default_model="redux",
        needs_prompt=False,
    ),
    Command(
        "mflux-generate-in-context",
        "Draw a picture that goes with another one; the prompt describes both.",
        "in-context",
        (
            *SHARED,
            Option("--image-path --reference-image", "InContext.image", "the picture"),
            Option(
                "--lora-style",
                "InContext.style",
                "use the LoRA of a style: couple, storyboard, font, home, illustration, portrait, ppt, sandstorm, "
                "sparklers or identity",
            ),
            Option("--layout", "InContext.layout", "the two stand left and right (lr, default) or one on top (tb)"),
            FULL_IMAGE,
        ),
        one("InContext", "give the picture that the new one goes with", "image"),
        default_model="in-context",
    ),
    Command(
        "mflux-generate-in-context-catvton",
        "Dress a person in a garment, with CatVTON's weights.",
        "try-on",
        (
            *SHARED,
            Option("--person-image", "TryOn.person", "the person"),
            Option("--person-mask", "TryOn.mask", "a mask of that picture, white where the garment goes"),
            Option("--garment-image", "TryOn.garment", "the garment"),
            Option("--layout", "TryOn.layout", "the two stand left and right (lr, default) or one on top (tb)"),
            FULL_IMAGE,
        ),
        one(
            "TryOn",
            "give the person, a mask of that picture's size, white where the garment goes, and the garment",
            "person",
            "mask",
            "garment",
        ),
        default_model="try-on",
        needs_prompt=False,
    ),
    Command(
        "mflux-generate-in-context-edit",
        "Edit a picture as an instruction says, with IC-Edit's LoRA on a Fill model.",
        "ic-edit",
        (
            *SHARED,
            Option("--reference-image --image-path", "InContextEdit.image", "the picture"),
            Option("--instruction", "InContextEdit.instruction", "what to change; in place of a prompt"),
            Option(
                "--edit-lora",
                "InContextEdit.lora",
                "another LoRA than IC-Edit's own; empty for none, with a model that was trained whole",
            ),
            Option("--layout", "InContextEdit.layout", "the two stand left and right (lr, default) or one on top (tb)"),
            FULL_IMAGE,
        ),
        one("InContextEdit", "give the picture to edit", "image"),
        default_model="ic-edit",
        needs_prompt=False,
    ),
    Command(
        "mflux-generate-fluxspace",
        "Edit while drawing: bring an attribute into the picture of a seed, and keep the rest.",
        "base",
        (
            *SHARED,
            *INVERSION,
            Option(
                "--edit-prompt",
                "FluxSpace.edits",
                "what to bring in, best in one word; behind it perhaps its own fine and coarse scale, and a text whose "
                "part is taken away; may be given several times",
                {"nargs": "+", "action": "append"},
            ),
            Option("--lambda-fine", "FluxSpace.lambda_fine", "strength of the edit, 2 to 10 (default 5)", REAL),
            Option(
                "--lambda-coarse",
                "FluxSpace.lambda_coarse",
                "strength of the change to the whole look, -1 to 1 (default 0)",
                REAL,
            ),
            Option(
                "--mask-threshold",
                "FluxSpace.mask_threshold",
                "edit only where the picture looks at the word this much, 0 (everywhere) to 1 (default 0.5)",
                REAL,
            ),
            Option("--mask", "FluxSpace.mask", "hard (default) or soft"),
            Option("--mask-words", "FluxSpace.mask_words", "look at the first token (default) or at all its words"),
            Option("--edit-start", "FluxSpace.start", "first step that edits, or a share of the steps", PLACE),
            Option("--edit-stop", "FluxSpace.stop", "the step that edits no more, or a share", PLACE),
            Option(
                "--no-keep-norm",
                "FluxSpace.keep_norm",
                "let edited attention grow longer (then 0 to 1.4 is enough)",
                {"action": "store_false"},
            ),
            side_file("--save-edit-masks", "mask", "where each edit worked, numbered,"),
            Option("--sweep", "Run.sweep", "draw with several values side by side, for example lambda-fine=0,2,4,6,8"),
        ),
        fluxspace_conditions,
        default_model="dev",
    ),
    Command(
        "mflux-generate-rf-inversion",
        "Edit a picture: invert it to noise, and draw that again with another prompt, held near the picture.",
        "base",
        (
            *SHARED,
            *INVERSION,
            Option("--start", "RFInversion.start", "leave out this many of the noisiest steps", WHOLE),
            Option("--sde", "RFInversion.sde", "the stochastic form", SWITCH),
        ),
        one("RFInversion", "give the picture to edit", "image"),
        default_model="dev",
    ),
    Command(
        "mflux-concept",
        "Draw a picture, and maps of where each concept is in it.",
        "base",
        (*SHARED, *START, *CONCEPTS),
        concept_conditions,
        default_model="dev",
        side_files=MAPS,
    ),
    Command(
        "mflux-concept-from-image",
        "Maps of where each concept is in a picture that exists.",
        "base",
        (
            *SHARED,
            *CONCEPTS,
            Option("--input-image-path", "Concepts.image", "the picture"),
            Option("--noise-level", "Concepts.noise_level", "noise to look through, above 0 to 1 (default 0.5)", REAL),
            Option(
                "--samples", "Concepts.samples", "how many times to look, with other noise, 1 to 8 (default 1)", WHOLE
            ),
        ),
        concept_from_image_conditions,
        default_model="dev",
        needs_prompt=False,
        side_files=MAPS,
    ),
    Command(
        "mflux-save",
        "Save a model, quantized or not, with LoRAs in it or not, for mflux or for diffusers.",
        "base",
        (
            Option("--model -m", "Run.model", "alias (dev, schnell, tiny, ...), hub id, folder, or single file"),
            Option("--path", "Saving.target", "the new folder"),
            Option("--base-model", "Flux1.base_model", "alias of the family that a third-party model belongs to"),
            quantize("Flux1"),
            Option("--layout", "Saving.layout", "whose folder layout: mflux (default) or diffusers (whole weights)"),
            *LORAS,
        ),
        run="mflux.cli.save:save_model",
    ),
    Command(
        "mflux-info",
        "Say what a picture, checkpoint, LoRA or model folder holds.",
        "base",
        (Option("FILE", "Asked.file", "a picture, a .safetensors or .gguf file, or a folder"),),
        run="mflux.cli.inspect:info",
    ),
    Command(
        "mflux-check",
        "Compare a saved model with its manifest, byte by byte; without one, check its tensors.",
        "base",
        (Option("MODEL", "Asked.model", "a folder, alias or hub id"),),
        run="mflux.cli.inspect:check",
    ),
    Command(
        "mflux-lora-library",
        "List the LoRAs that can be named: the files below the folders in LORA_LIBRARY_PATH.",
        "base",
        (
            Option("ACTION", "Asked.action", "list", {"nargs": "?", "default": "list", "choices": ("list",)}),
            Option("--paths", "Asked.paths", "folders in place of LORA_LIBRARY_PATH", {"nargs": "+"}),
        ),
        run="mflux.cli.inspect:lora_library",
    ),
    Command(
        "mflux-completions",
        "Print a script that completes the flags of every command in a shell.",
        "base",
        (
            Option("SHELL", "Asked.shell", "bash, zsh or fish", {"choices": ("bash", "zsh", "fish")}),
            Option("--dir", "Asked.folder", "write the script into this folder, under the name that the shell expects"),
        ),
        run="mflux.cli.completions:completions",
    ),
    Command(
        "mflux-train",
        "Train a LoRA as a train.json says, or go on with a run from its checkpoint.",
        "base",
        (
            Option("--train-config --config", "Asked.train_config", "the run's file; `--init-config` prints one"),
            Option(
                "--train-checkpoint --resume", "Asked.train_checkpoint", "a checkpoint zip, or `latest` of --output"
            ),
            Option("--set", "Asked.settings", "change keys of the file: a.b=value", {"nargs": "+", "action": "extend"}),
            Option("--data", "Asked.examples", "pictures with captions beside them: a folder, or a .jsonl file"),
            Option("--model -m", "Asked.model", "alias (dev, schnell, tiny, ...), hub id, or folder"),
            Option("--quantize -q", "Asked.quantize", "bits a weight of the frozen model", WHOLE),
            Option("--rank", "Asked.rank", "rank of every LoRA", WHOLE),
            Option("--lr", "Asked.learning_rate", "learning rate", REAL),
            Option("--max-steps", "Asked.max_steps", "stop after so many updates", WHOLE),
            Option("--batch-size", "Asked.batch_size", "examples an update", WHOLE),
            Option("--resolution", "Asked.resolution", "side in px of the square whose area every picture gets", WHOLE),
            Option("--seed", "Asked.seed", "what every random number follows from", WHOLE),
            Option("--output", "Asked.output_path", "the run's folder"),
            Option("--dry-run", "Asked.dry_run", "check everything, write nothing", SWITCH),
            Option("--init-config", "Asked.init_config", "print a config to start from", SWITCH),
            Option("--export", "Asked.export", "write the adapter of this checkpoint as save.export says, and end"),
            Option("--force", "Asked.force", "train even if the memory forecast says no", SWITCH),
            Option(
                "--allow-mismatch",
                "Asked.allow_mismatch",
                "go on although data, model or versions have changed",
                SWITCH,
            ),
        ),
        run="mflux.cli.train:train",
    ),
)
BY_NAME = {command.name: command for command in COMMANDS}
# What follows `mflux`: generate, fill, kontext, save, ...
SHORT = {name.removeprefix("mflux-generate-").removeprefix("mflux-"): name for name in BY_NAME}
