"""The flags, as data.  Each names the field that reads it; a test fails where nobody does.

Flags that are not given are absent, so that precedence is one merge: flag, then the model's row.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mflux.engine.request import short
from mflux.weights.catalog import BITS, LORA_REPO

Values = Mapping[str, Any]  # by field name, of the flags that were given


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{short(text)} is not a whole number") from None


def real(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{short(text)} is not a number") from None


def place(text: str) -> float:
    """A step, or a share of the steps where there is a point in it."""
    return real(text) if "." in text else whole(text)


def side(text: str) -> int | str:
    """px, or so many times a picture's own side: `auto` (once), `2x`."""
    return "1x" if text == "auto" else text if text.endswith("x") and real(text[:-1]) > 0 else whole(text)


# How flags are parsed, as argparse says it.
WHOLE: dict[str, Any] = {"type": whole}
REAL: dict[str, Any] = {"type": real}
PLACE: dict[str, Any] = {"type": place}
SWITCH: dict[str, Any] = {"action": "store_true"}


@dataclass(frozen=True)
class Option:
    """One flag.  reads: `Class.field` that takes its value, or several of them, separated by spaces.

    qualified: the field has the same name as another flag's, so it goes by `Class.field`.
    """

    flags: str
    reads: str
    help: str
    parse: dict[str, Any] = field(default_factory=dict)
    qualified: bool = False

    @property
    def name(self) -> str:
        """The field's own name, which is also the key of its value."""
        first = self.reads.split()[0]
        return first if self.qualified else first.split(".")[1]

    @property
    def flag(self) -> str:
        return self.flags.split()[0]

    @property
    def is_flag(self) -> bool:
        """False for an argument without dashes."""
        return self.flags.startswith("-")


@dataclass(frozen=True)
class Command:
    """One command.  make: its conditions from the values of its flags; default_model: without --model; needs_prompt:
    whether there is no picture without a text.

    run: the function (module:name) that takes the values of its flags; by default pictures are drawn.
    """

    name: str
    summary: str
    task: str
    options: tuple[Option, ...]
    make: Callable[["Command", Values], tuple[Any, ...]] = lambda command, values: ()
    default_model: str = ""
    run: str = ""
    needs_prompt: bool = True
    side_files: tuple[str, ...] = ()  # artifacts that are always written

    def conditions(self, values: Values) -> tuple[Any, ...]:
        return self.make(self, values)

    def flag_of(self, name: str) -> str | None:
        """The flag whose value goes by this name."""
        return next((option.flag for option in self.options if option.name == name), None)


def quantize(owner: str) -> Option:
    bits = ", ".join(map(str, BITS))
    return Option("--quantize -q", f"{owner}.quantize", f"bits a weight: {bits}", WHOLE)


PROMPTS = (
    Option("--prompt", "Run.prompt", "what to draw; `-` reads all of stdin"),
    Option("--prompt-file", "Run.prompt_file", "a text file with the prompt, read again before each picture"),
    Option(
        "--jobs",
        "Run.jobs",
        "a file of requests, or `-` for stdin: a line is a prompt, or a JSON object of flags; the model stays loaded",
    ),
    Option("--negative-prompt", "Request.negative_prompt", "what to stay away from (costs a second pass per step)"),
    Option("--true-cfg", "Config.true_cfg", "weight of the negative prompt, 1 to 20; 1 = off", REAL),
)
MODELS = (
    Option("--model -m", "Run.model", "alias (dev, schnell, tiny, ...), hub id, or folder"),
    Option("--path", "Run.path", "folder of a model; --model then names the kind it is"),
    Option("--base-model", "Flux1.base_model", "alias whose defaults a third-party model uses"),
    quantize("Flux1"),
)
LORAS = (
    Option(
        "--lora",
        "Run.adapters",
        "a LoRA and its scale (default 1); may be given several times",
        {"nargs": "+", "action": "append", "metavar": ("PATH", "SCALE")},
    ),
    Option(
        "--lora-paths", "Flux1.lora_paths", "LoRA files, PEFT folders, or names in LORA_LIBRARY_PATH", {"nargs": "+"}
    ),
    Option("--lora-scales", "Flux1.lora_scales", "one number a LoRA (default 1)", {**REAL, "nargs": "+"}),
    Option("--lora-name", "Run.lora_name", "a file in the hub repository --lora-repo-id"),
    Option("--lora-repo-id", "Run.lora_repo_id", f"hub id for --lora-name (default {LORA_REPO})"),
    Option(
        "--allow-partial-lora",
        "Flux1.allow_partial_lora",
        "apply a LoRA even if some of its layers are not in this model",
        SWITCH,
    ),
)
ADAPTERS = (
    *LORAS,
    Option("--bake-lora", "Flux1.bake_lora", "put LoRAs into the weights instead of beside them", SWITCH),
    Option("--no-bake-lora", "Run.no_bake_lora", "leave LoRAs beside the weights, which is the default", SWITCH),
)
SIDES = ", floored to a multiple of 16; or times the picture's own, `auto` (once) or `2x`"
DRAWING = (
    Option(
        "--seed", "Run.seed", "one picture for each seed, 0 to 2^64 - 1", {**WHOLE, "nargs": "+", "action": "extend"}
    ),
    Option("--auto-seeds", "Run.auto_seeds", "this many pictures with random seeds", WHOLE),
    Option("--height", "Config.height", f"px{SIDES}", {"type": side}),
    Option("--width", "Config.width", f"px{SIDES}", {"type": side}),
    Option("--steps", "Config.num_inference_steps", "denoising steps, 1 to 1000", WHOLE),
    Option("--guidance", "Config.guidance", "distilled guidance, 0 to 100", REAL),
    Option("--max-sequence-length", "Config.max_sequence_length", "text tokens, 1 to 512", WHOLE),
    Option("--step-cache", "Config.step_cache", "faster, nearly the same: fb:0.08, tea:0.4 or taylor:5"),
    Option("--noise", "Config.noise", "whose start noise a seed means: mflux or torch"),
    Option("--batch-size", "Run.batch_size", "seeds drawn in one pass (default: what fits in memory)", WHOLE),
    Option("--scheduler", "Run.scheduler", "linear: FLUX.1's own, and the only one"),
    Option("--mlx-cache-limit-gb", "Run.mlx_cache_limit_gb", "memory that MLX keeps for reuse, 0 to 1024", REAL),
    Option("--low-ram", "Flux1.low_ram", "drop every part of the model after its use", SWITCH),
    Option(
        "--split-image", "Flux1.split_image", "share each picture among the processes that mlx.launch started", SWITCH
    ),
    Option("--vae-tiling", "Flux1.vae_tiling", "encode and decode in tiles: less memory", SWITCH),
    Option("--vae-tile-size", "Flux1.vae_tile_size", "px of a tile, a multiple of 16 from 128 on", WHOLE),
    Option("--vae-tiling-split", "Run.vae_tiling_split", "of mflux 0.8; not used: tiles leave no seam to turn"),
    Option("--force", "Flux1.force", "draw even if the memory forecast says no", SWITCH),
)
OUTPUTS = (
    Option(
        "--config-from-metadata -C",
        "Run.config_from_metadata",
        "draw what this picture or .json file was drawn with; other flags change it",
    ),
    Option(
        "--output",
        "Run.output",
        "png, jpg or webp; in it `{seed}`, `{prompt}`, and `{index}`, or `{index+5}` from 6 on (default image.png)",
    ),
    Option("--overwrite", "Run.overwrite", "replace a file of that name", SWITCH),
    Option("--metadata --make-conf", "Run.metadata", "also write the metadata as <name>.json", SWITCH),
    Option("--no-metadata --no-exif", "Run.no_metadata", "put no metadata into the picture", SWITCH),
)
WATCHING = (
    Option("--verbose -v", "Run.verbose", "also say what is loaded, and how long things take", SWITCH),
    Option(
        "--progress",
        "Watching.progress",
        "on stderr: bar (default), none, or json: an object a line, notes and errors too",
    ),
    Option("--preview", "Watching.preview", "a picture that is replaced after each step, by what it will about be"),
    Option(
        "--stepwise-image-output-dir",
        "Watching.stepwise_image_output_dir",
        "a folder for the picture of every step, and a strip of them for each seed",
    ),
    Option(
        "--battery-percentage-stop-limit -B",
        "Watching.battery_percentage_stop_limit",
        "stop when the battery is down to this, 1 to 99 % (default 5)",
        WHOLE,
    ),
)
SHARED = (*PROMPTS, *MODELS, *ADAPTERS, *DRAWING, *OUTPUTS, *WATCHING)
