"""The models that have a name, as data: where they live and what their commands use by default.

Rows are keyed by (family, task), so that `--model tiny` can mean the row of the command's own task.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mflux.errors import UsageError
from mflux.paths import expand

MAX_HUB_ID = 96
BITS = (3, 4, 5, 6, 8)  # a weight, as MLX packs them
LAYOUTS = ("mflux", "diffusers")  # of saved models
BUILT_IN = Path(__file__).parent.parent / "tiny"


# What Kontext was trained on, height and width in px: a square megapixel, and eight proportions either way.  Source:
# PREFERRED_KONTEXT_RESOLUTIONS of BFL's flux.
TALL = ((1568, 672), (1504, 688), (1456, 720), (1392, 752), (1328, 800), (1248, 832), (1184, 880), (1104, 944))
MEGAPIXEL = (*TALL, (1024, 1024), *((short, long) for long, short in TALL))


@dataclass(frozen=True)
class Row:
    """One named model.  steps, guidance, text_tokens, side are the defaults of a run with it.

    sizes: heights and widths that pictures are brought to where nobody asks for one; the nearest proportion counts.
    panel: px that a panel was wide in training, for methods with two of them.
    """

    name: str
    family: str  # dev, schnell, tiny
    task: str  # base, fill, kontext, depth, canny
    repo: str = ""  # Hugging Face hub id
    folder: str = ""  # folder below BUILT_IN, for models inside the package
    companion: str = ""  # row that provides the parts which this one's folder or repository lacks
    holds: tuple[tuple[str, str], ...] = ()  # parts of a repository that lacks the others, and their folders there
    steps: int = 25
    guidance: float | None = 3.5  # None: the network takes none
    text_tokens: int = 512
    side: int = 1024
    sizes: tuple[tuple[int, int], ...] = MEGAPIXEL
    panel: int = 0
    aliases: tuple[str, ...] = field(default=())

    @property
    def shifts(self) -> bool:
        """True where the model was trained with noise levels shifted by the number of tokens."""
        return self.family != "schnell"

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)


BFL = "black-forest-labs/FLUX.1-"
DEMO: dict[str, Any] = {"steps": 8, "text_tokens": 32, "side": 128, "sizes": ((128, 128),), "panel": 128}
PANEL_DEMO = DEMO | {"text_tokens": 64}  # words for two panels; the adapters were trained with so many
REDUX_PARTS = (("image_encoder", "image_encoder"), ("image_embedder", "image_embedder"))
ROWS = (
    Row("schnell", "schnell", "base", BFL + "schnell", steps=4, guidance=None, text_tokens=256),
    Row("dev", "dev", "base", BFL + "dev"),
    Row("krea-dev", "dev", "base", BFL + "Krea-dev", aliases=("krea",)),
    Row("dev-fill", "dev", "fill", BFL + "Fill-dev", guidance=30.0, aliases=("fill",)),
    Row("dev-kontext", "dev", "kontext", BFL + "Kontext-dev", steps=28, guidance=2.5, aliases=("kontext",)),
    Row("dev-depth", "dev", "depth", BFL + "Depth-dev", guidance=10.0, aliases=("depth",)),
    Row("dev-canny", "dev", "canny", BFL + "Canny-dev", guidance=30.0, aliases=("canny",)),
    Row("dev-redux", "dev", "redux", BFL + "Redux-dev", companion="dev", holds=REDUX_PARTS, aliases=("redux",)),
    Row("dev-in-context", "dev", "in-context", BFL + "dev", aliases=("in-context",)),
    Row("dev-ic-edit", "dev", "ic-edit", BFL + "Fill-dev", guidance=30.0, panel=512, aliases=("ic-edit",)),
    Row(
        "dev-try-on",
        "dev",
        "try-on",
        "xiaozaa/catvton-flux-beta",
        companion="dev-fill",
        holds=(("transformer", ""),),
        guidance=30.0,
        panel=576,
        aliases=("try-on",),
    ),
    Row("dev-upscaler", "dev", "upscaler", BFL + "dev", steps=28),
    Row("tiny", "tiny", "base", folder="base", **DEMO),
    Row("tiny/schnell", "tiny", "base", folder="schnell", companion="tiny", **(DEMO | {"guidance": None})),
    Row("tiny/fill", "tiny", "fill", folder="fill", companion="tiny", **DEMO),
    Row("tiny/kontext", "tiny", "kontext", folder="kontext", companion="tiny", **DEMO),
    Row("tiny/depth", "tiny", "depth", folder="control", companion="tiny", **DEMO),
    Row("tiny/canny", "tiny", "canny", folder="control", companion="tiny", **DEMO),
    Row("tiny/controlnet", "tiny", "controlnet", folder="controlnet", companion="tiny", **DEMO),
    Row("tiny/upscaler", "tiny", "upscaler", folder="upscaler", companion="tiny", **DEMO),
    Row("tiny/redux", "tiny", "redux", folder="redux", companion="tiny", **DEMO),
    Row("tiny/in-context", "tiny", "in-context", folder="in-context", companion="tiny", **PANEL_DEMO),
    Row("tiny/ic-edit", "tiny", "ic-edit", folder="ic-edit", companion="tiny/fill", **PANEL_DEMO),
    Row("tiny/try-on", "tiny", "try-on", folder="try-on", companion="tiny/fill", **PANEL_DEMO),
)
BY_NAME = {name: row for row in ROWS for name in row.names}
# What works beside a model in a role, by the model's family: hub ids, and folders below BUILT_IN for `tiny`.
SIDES = {
    ("controlnet", "dev"): "InstantX/FLUX.1-dev-Controlnet-Canny",
    ("controlnet", "tiny"): "controlnet/controlnet",
    ("upscaler", "dev"): "jasperai/Flux.1-dev-Controlnet-Upscaler",
    ("upscaler", "tiny"): "upscaler/controlnet",
    ("depth estimator", "dev"): "apple/DepthPro-hf",
    ("depth estimator", "tiny"): "control/depth_pro",
    ("image encoder", "dev"): "openai/clip-vit-large-patch14",
}
TASK_CHANNELS = {"base": 64, "kontext": 64, "redux": 64, "depth": 128, "canny": 128, "fill": 384}
TASK_CHANNELS |= {"in-context": 64, "ic-edit": 384, "try-on": 384, "controlnet": 64, "upscaler": 64}
# LoRAs that methods have of their own, as names of files on the hub.  Source: ali-vilab/In-Context-LoRA, ICEdit.
LORA_REPO = "ali-vilab/In-Context-LoRA"
STYLES = {
    "couple": "couple-profile",
    "storyboard": "film-storyboard",
    "font": "font-design",
    "home": "home-decoration",
    "illustration": "portrait-illustration",
    "portrait": "portrait-photography",
    "ppt": "ppt-templates",
    "sandstorm": "sandstorm-visual-effect",
    "sparklers": "sparklers-visual-effect",
    "identity": "visual-identity-design",
}
METHOD_LORAS = {style: f"{LORA_REPO}:{file}.safetensors" for style, file in STYLES.items()}
METHOD_LORAS["ic-edit"] = "RiverZ/normal-lora:pytorch_lora_weights.safetensors"


def find(name: str, task: str = "base") -> Row | None:
    """The row of an alias; `tiny`, and a name whose model serves the task as well, mean their rows for `task`."""
    row = BY_NAME.get(name)
    if row is None or row.task != "base":
        return row
    own = BY_NAME.get(f"tiny/{task}" if row.name == "tiny" else f"{row.name}-{task}")
    return own if own and own.repo == row.repo else row


def of_task(family: str, task: str) -> Row | None:
    return next((row for row in ROWS if (row.family, row.task) == (family, task)), None)


def by_repo(repo: str) -> Row | None:
    return next((row for row in ROWS if row.repo and row.repo.lower() == repo.lower()), None)


def require(name: str, field_name: str) -> Row:
    """The row of an alias or hub id, or a UsageError with the nearest names."""
    row = BY_NAME.get(name) or by_repo(name)
    if row is None:
        raise UsageError(f"unknown model `{name}`", nearest(name), field_name)
    return row


def nearest(name: str) -> str:
    """A hint with the names that look most like `name`."""
    from difflib import get_close_matches

    close = get_close_matches(name[:100].lower(), BY_NAME, n=3, cutoff=0.4)
    names = ", ".join(f"`{each}`" for each in close or ("schnell", "dev", "tiny"))
    return f"did you mean {names}?  Or give a folder, or a hub id such as `black-forest-labs/FLUX.1-dev`"


def is_hub_id(name: str) -> bool:
    """True for what the hub could know: `owner/name`."""
    plausible = re.fullmatch(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}", name, re.ASCII) and len(name) <= MAX_HUB_ID
    return bool(plausible) and not (name.startswith("tiny/") or ".." in name or "--" in name)


def check_repo(name: str, field_name: str) -> None:
    """Refuse what is no hub id, where a folder would also do."""
    if not is_hub_id(name):
        problem = f"there is no folder `{name[:100]}`"
        raise UsageError(
            problem, "give a folder with config.json and safetensors, or a hub id `owner/name`", field_name
        )


def check_name(name: str) -> None:
    """Refuse what is no alias, no existing path and no hub id, before anything heavy is imported."""
    if find(name) or expand(name, "model").exists():
        return
    if not is_hub_id(name):
        looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
        problem = f"there is no folder `{name}`" if looks_like_path else f"unknown model `{name[:100]}`"
        raise UsageError(problem, nearest(name), "model")
