"""A train.json of mflux 0.16 and newer in our keys.  Those versions do not train FLUX.1; their users know its keys."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mflux.paths import expand
from mflux.training.config import PICTURES, with_settings

log = logging.getLogger("mflux")
# A newer key -> where its value goes; names with dots are paths.
MOVED = {
    "model_path": "model",
    "max_resolution": "resolution",
    "gradient_checkpointing": "training_loop.gradient_checkpointing",
    "checkpoint.save_frequency": "save.checkpoint_frequency",
    "checkpoint.output_path": "save.output_path",
    "monitoring.plot_frequency": "instrumentation.plot_frequency",
    "monitoring.generate_image_frequency": "instrumentation.generate_image_frequency",
    "optimizer.lr_schedule": "optimizer.schedule.name",
    "optimizer.lr_warmup_steps": "optimizer.schedule.warmup_steps",
    "optimizer.lr_total_steps": "optimizer.schedule.total_steps",
    "optimizer.gradient_accumulation_steps": "training_loop.gradient_accumulation_steps",
}
UNUSED = {
    "low_ram": "text encoders and autoencoder are freed anyway",
    "cache_limit_gb": "the run keeps no memory that it does not need",
    "monitoring.preview_width": "previews have the size of the examples",
    "monitoring.preview_height": "previews have the size of the examples",
    "monitoring.smooth_loss": "the plot shows the running mean",
}
TIMESTEPS = {"uniform": "schedule", "sigmoid": "logit_normal"}
MARKS = ("data", "checkpoint", "monitoring", "max_resolution")  # keys by which such a file is known


def in_our_keys(value: Any, folder: Path) -> Any:
    """The same run in our keys; a file that has none of theirs comes back as it is.  folder: of the file."""
    if not isinstance(value, Mapping) or not any(name in value for name in MARKS):
        return value
    old = json.loads(json.dumps(value))
    for name, reason in UNUSED.items():
        if taken(old, name) is not None:
            log.warning(f"`{name}` is not used: {reason}")
    found: dict[str, Any] = {}
    if isinstance(data := taken(old, "data"), str):
        found |= examples_of(folder / expand(data))
    if timestep := timestep_of(old):
        found["training_loop.timestep"] = timestep
    moved = {place: taken(old, name) for name, place in MOVED.items()}
    found |= {place: each for place, each in moved.items() if each is not None}
    settings = taken(old, "optimizer.optimizer_params")
    if isinstance(settings, Mapping):
        found |= {f"optimizer.{name}": each for name, each in settings.items()}
    return with_settings({name: each for name, each in old.items() if each != {}}, found)


def taken(value: Any, name: str) -> Any:
    """The value of a key, which is no longer there afterwards; None without it."""
    *outer, last = name.split(".")
    for key in outer:
        value = value.get(key) if isinstance(value, dict) else None
    return value.pop(last, None) if isinstance(value, dict) else None


def timestep_of(old: dict[str, Any]) -> dict[str, Any]:
    """Their steps and kind of noise levels, taken from the training loop, in our keys: step 0 is pure noise."""
    low, high, kind = (taken(old, f"training_loop.timestep_{name}") for name in ("low", "high", "type"))
    steps, found = old.get("steps"), dict[str, Any]()
    if kind is not None:
        found["mode"] = TIMESTEPS.get(kind, "flux_shift")
        if kind not in TIMESTEPS:
            log.warning(f"`timestep_type` {kind} is not known here: flux_shift is used")
    if isinstance(steps, int) and steps > 0:
        found |= {} if low is None else {"high": 1 - low / steps}
        found |= {} if high is None else {"low": max(0.0, 1 - high / steps)}
    return found


def examples_of(place: Path) -> dict[str, Any]:
    """Settings for a folder of theirs: pictures with texts beside them, `x_in` and `x_out` for edits, previews."""
    files = sorted(place.iterdir()) if place.is_dir() else []
    pictures = {file.stem: file.name for file in files if file.suffix.lower() in PICTURES}
    texts = {file.stem: file.name for file in files if file.suffix == ".txt"}
    previews = [file.read_text(encoding="utf-8").strip() for file in files if file.match("preview*.txt")]
    found: dict[str, Any] = {"instrumentation.preview_prompts": previews} if previews else {}
    pairs = [stem[:-4] for stem in pictures if stem.endswith("_out") and f"{stem[:-4]}_in" in pictures]
    if not pairs:
        shown = [stem for stem in pictures if not stem.startswith("preview")]
        items = [{"image": pictures[stem], "prompt_file": f"{stem}.txt"} for stem in shown]
        return found | {"examples": {"path": str(place), "images": items}}
    items = []
    for stem in pairs:
        words = [texts[name] for name in (f"{stem}_in", f"{stem}_out", stem) if name in texts]
        pair = {"image": pictures[f"{stem}_out"], "input_image": pictures[f"{stem}_in"]}
        items.append(pair | {"prompt_file": words[0] if words else f"{stem}_in.txt"})
    return found | {"examples": {"path": str(place), "images": items}, "kind": "kontext"}
