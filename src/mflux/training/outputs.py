"""What a run leaves in its folder: checkpoints, a log, plots, previews, the adapter.

Nothing here draws from the run's random numbers, so looking at a run does not change it.
"""

import atexit
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from mflux.engine.request import Config
from mflux.errors import MfluxError, UsageError
from mflux.models.lora import Factors
from mflux.training.plots import draw_losses
from mflux.training.spec import Spec
from mflux.weights.files import replacing, write_tensors


@dataclass(frozen=True)
class Update:
    """What one update did.  loss: before it; norm: of the gradients before clipping."""

    step: int
    total: int
    epoch: int
    loss: float
    norm: float
    rate: float


class Followed(Protocol):
    """What is looked at of a Trainer."""

    spec: Spec
    flux: Any
    transformer: Any
    subjects: list[Any]
    losses: list[dict[str, float]]
    step: int

    @property
    def total(self) -> int: ...
    @property
    def checkpoint_bytes(self) -> int: ...
    def validate(self) -> float: ...


def check_disk(trainer: Followed, folder: Path) -> None:
    """Raise UsageError where the checkpoints that will be kept do not fit on the disk."""
    save = trainer.spec.save
    coming = (trainer.total - trainer.step) // save.checkpoint_frequency + 1
    needed = trainer.checkpoint_bytes * min(coming, (save.keep_last or coming) + 1)
    place = next(each for each in (folder, *folder.parents) if each.exists())
    if needed > (free := shutil.disk_usage(place).free):
        problem = f"the checkpoints take {needed / 2**30:.1f} GB, and `{place}` has {free / 2**30:.1f} GB left"
        raise UsageError(problem, "keep fewer: `--set save.keep_last=2`, or save less often", "output_path")


def watch(trainer: Followed, update: Update, folder: Path) -> None:
    """The log of an update, and what is looked at every so often."""
    line = {"step": update.step, "epoch": update.epoch, "loss": update.loss, "norm": update.norm, "rate": update.rate}
    if watching := trainer.spec.instrumentation:
        validation = watching.validation

        def due(frequency: int) -> bool:
            return update.step % frequency == 0 or update.step == update.total

        if validation and due(validation.frequency or watching.plot_frequency):
            trainer.losses[-1]["validation"] = line["validation"] = trainer.validate()
        if due(watching.plot_frequency):
            plot(trainer, folder / "_validation" / "plots" / f"{update.step:07d}_loss.pdf")
        prompts = watching.preview_prompts or ((watching.validation_prompt,) if watching.validation_prompt else ())
        if prompts and due(watching.generate_image_frequency):
            preview(trainer, prompts, folder / "_validation" / "images" / f"{update.step:07d}_validation_image.png")
    logs = trainer.spec.instrumentation.log if trainer.spec.instrumentation else ("jsonl",)
    if "jsonl" in logs:
        with (folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    if "tensorboard" in logs:
        events = event_writer(folder / "tensorboard")
        for name, value in line.items():
            if name != "step":
                events.add_scalar(name, value, update.step)
        if update.step == update.total:
            events.close()
            event_writer.cache_clear()


@cache
def event_writer(folder: Path) -> Any:
    from tensorboardX import SummaryWriter  # a package of its own, which only who asks for it needs

    writer = SummaryWriter(str(folder), flush_secs=10)
    atexit.register(writer.close)  # its thread writes later than it is told; a run may be stopped
    return writer


def plot(trainer: Followed, path: Path) -> None:
    points = [(each["step"], each["loss"]) for each in trainer.losses]
    draw_losses(points, [(each["step"], each["validation"]) for each in trainer.losses if "validation" in each], path)


def preview(trainer: Followed, prompts: tuple[str, ...], path: Path) -> None:
    """The model as it is now, one picture a prompt side by side; an edit shows that of the first example's picture."""
    spec, first = trainer.spec, trainer.subjects[0]
    height, width = first.source.size
    trainer.flux.parts.put("transformer", trainer.transformer)  # a large model drops it after each picture
    config = Config(num_inference_steps=spec.steps, height=height, width=width, guidance=spec.guidance)
    draw = partial(trainer.flux.generate_image, spec.seed, config=config, conditions=first.plan.request.conditions)
    pictures = [np.asarray(draw(prompt).image) for prompt in prompts]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures, axis=1)).save(path)


def write_adapters(folder: Path, files: Mapping[str, Factors]) -> Iterator[Path]:
    """The adapter alone, for every `--lora` and for other programs.  files: the tensors of each layout."""
    for layout, tensors in files.items():
        target = folder / ("adapter.safetensors" if layout == "diffusers" else f"adapter_{layout}.safetensors")
        try:
            with replacing(target) as partial:
                write_tensors(partial, tensors, {"format": "pt"})
        except OSError as error:
            problem = f"`{target}` cannot be written ({error.strerror})"
            raise MfluxError(problem, "make room, then write it from the last checkpoint with `--export`") from None
        yield target
