"""`mflux-train`: flags to a spec, the trainer's updates to what a run leaves."""

import json
import logging
import signal
import sys
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from mflux.cli.options import Values
from mflux.errors import UsageError
from mflux.paths import expand

# Flags that stand for a key of the file.
SHORTCUTS = {
    "model": "model",
    "quantize": "quantize",
    "seed": "seed",
    "learning_rate": "optimizer.learning_rate",
    "max_steps": "training_loop.max_steps",
    "batch_size": "training_loop.batch_size",
    "output_path": "save.output_path",
    "examples": "examples",
}
log = logging.getLogger("mflux")


def train(values: Values) -> None:
    """Check, train, save.  Raises MfluxError; KeyboardInterrupt after Ctrl-C, with the state saved."""
    if values.get("init_config"):
        print(resources.files("mflux.cli").joinpath("train.json").read_text(encoding="utf-8"), end="")
        return
    if "export" in values:
        export_checkpoint(values)
        return
    given = [name for name in ("train_config", "train_checkpoint") if name in values]
    if len(given) != 1:
        problem = "both a config and a checkpoint are given" if given else "there is no config and no checkpoint"
        raise UsageError(problem, "give `--train-config FILE`, or `--train-checkpoint ZIP` to go on with a run")

    if "allow_mismatch" in values and "train_checkpoint" not in values:
        raise UsageError("there is no checkpoint that could differ", "leave it out, or give one", "allow_mismatch")

    from mflux.training import config as files
    from mflux.training.newer import in_our_keys

    settings = read_settings(values)
    if "train_checkpoint" in values:
        from mflux.training import checkpoint as checkpoints

        path = checkpoint_path(values, settings)
        saved = checkpoints.read(path)
        config, folder, name = saved.config, path.parent, str(path)
    else:
        path = expand(values["train_config"], "train_config")
        folder, name, saved = path.absolute().parent, str(path), None
        config = in_our_keys(files.read_json_file(path), folder)
    config = files.with_settings(config, settings | ranks(config, values))
    try:
        config = files.with_items(config, folder)
        spec = files.read_spec(config, name, folder)

        from mflux.training.dataset import find_sources

        sources, held_out = find_sources(spec, folder, name)
    except files.SpecError as error:
        for problem in error.problems:
            print(f"problem: {problem}", file=sys.stderr)
        raise UsageError(f"there are {len(error.problems)} problems in `{name}`", error.hint) from None
    note(spec)
    print_plan(spec, len(sources), values)
    if values.get("dry_run"):
        return
    run(spec, config, sources, held_out, saved, path, values)


def run(spec: Any, config: Any, sources: Any, held_out: Any, saved: Any, path: Path, values: Values) -> None:
    """Train to the end.  Of several processes the first one writes."""
    from mflux.engine.flux import Flux1
    from mflux.ranks import RankLostError, launched
    from mflux.training import config as files
    from mflux.training.dataset import find_sources
    from mflux.training.outputs import check_disk, write_adapters
    from mflux.training.prior import drawn_class
    from mflux.training.trainer import Trainer

    ranks = launched()
    if spec.training_loop.batch_size % ranks.count:
        problem = f"{spec.training_loop.batch_size} examples cannot be shared by {ranks.count} processes"
        raise UsageError(problem, "give a multiple of their number", "batch_size")
    first = ranks.rank == 0
    moved = "output_path" in values and values.get("train_checkpoint") != "latest"
    folder = new_folder(spec)
    if saved and path.parent.name == "_checkpoints" and not moved:
        folder = path.parent.parent  # the run's own
    cache = expand(spec.examples.cache, "cache") if spec.examples.cache else folder / "_cache"
    flux = Flux1(spec.model, spec.quantize, force=True)
    if spec.training_loop.prior and spec.training_loop.prior.class_prompt:
        group = drawn_class(spec, flux, cache / "class")
        config = files.with_settings(config, {"training_loop.prior": group})
        spec = files.read_spec(config, str(path), path.absolute().parent)
        sources, held_out = find_sources(spec, path.absolute().parent, str(path))
    trainer = Trainer(spec, config, flux, sources, held_out, cache if first else None, ranks)
    if saved:
        trainer.restore(saved, bool(values.get("allow_mismatch")))
    if first:
        check_disk(trainer, folder)
        folder.mkdir(parents=True, exist_ok=True)
    try:
        follow(trainer, folder, first)
    except RankLostError as error:
        if not first:
            raise
        written = trainer.save(folder)
        print(written)
        raise RankLostError(error.problem, f"`mflux-train --train-checkpoint {written}` goes on from here") from None
    if first:
        for target in write_adapters(folder, trainer.exported()):
            print(target)


def follow(trainer: Any, folder: Path, writes: bool) -> None:
    """The updates with a bar, what is written at each, and Ctrl-C."""
    from tqdm import tqdm

    from mflux.training.outputs import watch

    steps = {"total": trainer.total, "initial": trainer.step, "unit": "update"}
    with Stop() as stop, tqdm(**steps, file=sys.stderr, leave=False, disable=not writes) as bar:
        for update in trainer.run():
            bar.update()
            bar.set_postfix(loss=f"{update.loss:.4f}")
            stops, last = trainer.ranks.any(stop.asked), update.step == update.total
            if writes:
                watch(trainer, update, folder)
                if last or stops or update.step % trainer.spec.save.checkpoint_frequency == 0:
                    written = trainer.save(folder)
                    bar.clear()
                    print(written, flush=True)
            if stops and not last:
                if writes:
                    log.warning(f"interrupted; `mflux-train --train-checkpoint {written}` goes on")
                raise KeyboardInterrupt


class Stop:
    """Ctrl-C and SIGTERM ask for a stop after the update; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def export_checkpoint(values: Values) -> None:
    """The adapter of a checkpoint as files beside it, in the layouts of its config."""
    from mflux.training import checkpoint as checkpoints
    from mflux.training.config import read_tables, with_settings
    from mflux.training.export import in_layouts, of_checkpoint
    from mflux.training.outputs import write_adapters

    path = expand(values["export"], "export").absolute()
    saved = checkpoints.read(path)
    spec = read_tables(with_settings(saved.config, read_settings(values)), str(path))
    folder = path.parent / path.stem
    folder.mkdir(exist_ok=True)
    for target in write_adapters(folder, in_layouts(spec, of_checkpoint(spec, saved.ema or saved.adapter))):
        print(target)


def read_settings(values: Values) -> dict[str, Any]:
    """Keys of the file and their new values, from --set and the short flags."""
    settings: dict[str, Any] = {}
    for text in values.get("settings", ()):
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UsageError(f"`{text}` is no setting", "give `a.b=value`, for example `seed=1`", "settings")
        try:
            settings[name] = json.loads(value)
        except json.JSONDecodeError:
            settings[name] = value
    settings |= {key: values[flag] for flag, key in SHORTCUTS.items() if flag in values}
    if "examples" in settings:
        settings["examples"] = str(expand(settings["examples"], "examples").absolute())
    if "resolution" in values:
        settings |= {"resolution": values["resolution"], "width": None, "height": None}
    return settings


def ranks(config: Any, values: Values) -> dict[str, Any]:
    """`--rank` for every family of layers in the config."""
    families = config.get("lora_layers") if isinstance(config, dict) else None
    if "rank" not in values or not isinstance(families, dict):
        return {}
    return {f"lora_layers.{family}.lora_rank": values["rank"] for family in families}


def checkpoint_path(values: Values, settings: dict[str, Any]) -> Path:
    """The zip, or the newest of the folder that `--output` names."""
    if values["train_checkpoint"] != "latest":
        return expand(values["train_checkpoint"], "train_checkpoint").absolute()
    if "output_path" not in values:
        raise UsageError("`latest` of which run?", "name its folder with `--output`", "train_checkpoint")
    from mflux.training.checkpoint import latest

    return latest(expand(settings.pop("save.output_path"), "output_path").absolute())


def new_folder(spec: Any) -> Path:
    """The output folder; with the time behind its name where there is one already."""
    folder = expand(spec.save.output_path).absolute()
    if folder.exists():
        folder = folder.with_name(f"{folder.name}_{datetime.now():%Y%m%d_%H%M%S}")
    return folder


def note(spec: Any) -> None:
    """What is allowed, and seldom meant."""
    from mflux.training.config import sizes_of
    from mflux.weights.catalog import find

    row = find(spec.model)
    if row and row.family == "schnell":
        log.warning(f"`{spec.model}` is distilled to few steps: adapters trained on it may need more of them")
    if spec.guidance is not None and not sizes_of(spec.model).guidance_embeds:
        log.warning(f"`guidance` {spec.guidance} is not used: `{spec.model}` takes none")
    if spec.resolution is None and (spec.height, spec.width) != spec.size:
        log.warning(f"{spec.width} x {spec.height} px are floored to {spec.size[1]} x {spec.size[0]}")
    images = [item.image for item in spec.examples.images]
    if len(set(images)) < len(images):
        log.warning("`examples.images` names a picture more than once; `repeats` says so with less")


def print_plan(spec: Any, examples: int, values: Values) -> None:
    """Layers, weights and the memory forecast on stderr.  Raises UsageError where the machine is too small."""
    from mflux.engine.plan import gigabytes
    from mflux.runtime import physical_memory
    from mflux.training.memory import forecast
    from mflux.training.spec import targets_of

    needed = forecast(spec)
    log.warning(
        f"{len(targets_of(spec))} layers are trained on {examples} examples; about {gigabytes(needed)} of memory"
    )
    if needed > physical_memory() and not values.get("force"):
        problem = f"training needs about {gigabytes(needed)}, and this machine has {gigabytes(physical_memory())}"
        raise UsageError(
            problem,
            "quantize to 4 bits, lower width, height or lora_rank, turn gradient_checkpointing on; or `--force`",
        )
