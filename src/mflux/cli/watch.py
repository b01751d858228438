"""What a run shows while it works: a bar or JSON lines on stderr, previews, stepwise pictures; and the battery's limit.

An object of `--progress json`: `{"event": "step", "seeds": [1], "step": 3, "steps": 8, "done": 11, "total": 16,
"seconds_left": 2.4}`, or `{"event": "saved", "file": "image.png"}`; notes and errors are `say`'s.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mflux.engine.request import check_choice, check_number
from mflux.errors import MfluxError, StoppedError, UsageError
from mflux.paths import check_output, expand

POWER_SUPPLIES = Path("/sys/class/power_supply")  # Linux; macOS has pmset
BATTERY_EVERY = 30  # seconds
PREVIEW_SCALE = 4  # px a latent cell
PREVIEW_MARK = {"mflux": "preview"}  # metadata of a preview, by which the next one may replace it


@dataclass(frozen=True)
class Watching:
    """progress: bar, json or none.  preview: a picture replaced after each step.  stepwise_image_output_dir: a folder
    of every step's picture.  battery_percentage_stop_limit: per cent, 1 to 99."""

    progress: str = "bar"
    preview: str | None = None
    stepwise_image_output_dir: str | None = None
    battery_percentage_stop_limit: int = 5

    def check(self) -> None:
        """Raise UsageError for what cannot be meant."""
        check_choice("progress", self.progress, ("bar", "json", "none"))
        check_number("battery_percentage_stop_limit", self.battery_percentage_stop_limit, 1, 99, whole=True)
        if self.preview is not None:
            check_output(self.preview, "preview")
        if self.stepwise_image_output_dir is not None:
            folder = expand(self.stepwise_image_output_dir, "stepwise_image_output_dir")
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"`{folder}` is no folder", "give a folder", "stepwise_image_output_dir")
            check_output(folder / "seed_0_composite.png", "stepwise_image_output_dir")


class Interrupts:
    """Ctrl-C, also where Python loses the exception: in a destructor, or in a callback from C."""

    def __enter__(self) -> "Interrupts":
        self.seen, self._ours = False, signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _note(self, *_: object) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        if self.seen:
            raise KeyboardInterrupt


class Watch:
    """Looks at a run after each step.  total: steps of all its pictures."""

    def __init__(self, wish: Watching, flux: Any, plan: Any, total: int, overwrite: bool = False):
        from tqdm import tqdm

        self.wish, self.flux, self.plan, self.total, self.overwrite = wish, flux, plan, total, overwrite
        self._started, self._done, self._battery_read = time.monotonic(), 0, -float(BATTERY_EVERY)
        self._before: tuple[Any, float, Any] = (None, 0.0, None)  # seeds, noise level and latents of the last step
        self._strips: dict[int, tuple[Path, list[Any]]] = {}  # where each seed's strip is, and its pictures
        self._colours = None
        if wish.preview is not None:
            refuse_foreign(expand(wish.preview), overwrite)
            self._colours = flux.colours()
        self._check_battery()
        self._interrupts = Interrupts()
        self._bar = tqdm(
            total=total,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            leave=False,
            disable=wish.progress != "bar",
        )

    def __enter__(self) -> "Watch":
        self._interrupts.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._interrupts.__exit__()
        self._bar.close()

    def step(self, progress: Any) -> None:
        """One step of a batch of seeds."""
        self._interrupts.check()
        self._bar.update(len(progress.seeds))
        self._done += len(progress.seeds)
        left = (time.monotonic() - self._started) / self._done * (self.total - self._done)
        self._tell(
            "step",
            seeds=progress.seeds,
            step=progress.done,
            steps=progress.total,
            done=self._done,
            total=self.total,
            seconds_left=round(left, 3),
        )
        if self._colours is not None:
            self._preview(progress)
        if self.wish.stepwise_image_output_dir is not None:
            self._stepwise(progress, expand(self.wish.stepwise_image_output_dir))
        self._check_battery()

    def say(self, path: Path) -> None:
        """A written file's line on stdout, which the bar does not run into."""
        self._bar.clear()
        self._tell("saved", file=str(path))
        try:
            print(path, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            drop_stdout()
            raise MfluxError(
                f"stdout takes no text ({error.strerror}); `{path}` is written", "redirect it elsewhere"
            ) from None

    def _tell(self, event: str, **values: Any) -> None:
        if self.wish.progress == "json":
            print(json.dumps({"event": event, **values}), file=sys.stderr, flush=True)

    def _preview(self, progress: Any) -> None:
        """What the last step expects the picture to become, in the colours that a linear map of its latents gives."""
        from mflux.images.metadata import save_picture

        seeds, sigma, latents = self._before
        expected = progress.latents
        if seeds == progress.seeds and sigma > progress.sigma > 0:  # along the last step's line to noise level 0
            expected = expected - progress.sigma * (expected - latents) / (progress.sigma - sigma)
        self._before = (progress.seeds, progress.sigma, progress.latents)
        image = side_by_side(self.flux.preview(expected, self.plan, self._colours))
        larger = image.resize((image.width * PREVIEW_SCALE, image.height * PREVIEW_SCALE))
        save_picture(larger, expand(self.wish.preview or ""), PREVIEW_MARK, True, None)

    def _stepwise(self, progress: Any, folder: Path) -> None:
        """`seed_S_stepKofN.png` for each seed, and all steps so far in `seed_S_composite.png`."""
        from mflux.images.metadata import save_picture

        step, steps = self.plan.first + progress.done, self.plan.first + progress.total
        for index, seed in enumerate(progress.seeds):
            image = self.flux.decoded(progress.latents[index : index + 1], self.plan)
            save_picture(image, folder / f"seed_{seed}_step{step}of{steps}.png", None, self.overwrite, None)
            target, earlier = self._strips.pop(seed, (folder / f"seed_{seed}_composite.png", []))
            images = [*earlier, image]
            written = save_picture(side_by_side(images), target, None, self.overwrite or bool(earlier), None)
            if progress.done < progress.total:  # a finished strip need not stay in memory
                self._strips[seed] = (written, images)

    def _check_battery(self) -> None:
        if time.monotonic() - self._battery_read < BATTERY_EVERY:
            return
        self._battery_read = time.monotonic()
        limit, percentage = self.wish.battery_percentage_stop_limit, battery_percentage()
        if percentage is not None and percentage <= limit:
            raise StoppedError(f"the battery is down to {percentage} %, and the limit is {limit} %")


def side_by_side(images: Sequence[Any]) -> Any:
    """Pictures of one size in a row."""
    from PIL import Image

    row = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for index, image in enumerate(images):
        row.paste(image, (index * image.width, 0))
    return row


def refuse_foreign(path: Path, overwrite: bool) -> None:
    """Refuse to replace a picture that is not an earlier preview."""
    from mflux.images.metadata import read_metadata

    try:
        free = overwrite or not path.exists() or read_metadata(path) == PREVIEW_MARK
    except OSError:
        free = False
    if not free:
        raise UsageError(f"`{path}` exists, and is no preview", "choose another name, or `--overwrite` it", "preview")


def battery_percentage() -> int | None:
    """Charge of a battery that this machine runs on, per cent; None without one, or on mains."""
    if sys.platform == "darwin":
        import subprocess

        try:
            told = subprocess.run(["pmset", "-g", "batt"], capture_output=True, text=True, timeout=5).stdout
        except (OSError, subprocess.SubprocessError):
            return None
        return read_pmset(told)
    return min(map(int, discharging(POWER_SUPPLIES)), default=None)


def read_pmset(told: str) -> int | None:
    """The percentage in what `pmset -g batt` says: `-InternalBattery-0 (id=1)  87%; discharging; 3:12 remaining`."""
    match = re.search(r"(\d+)%;", told) if "'Battery Power'" in told else None
    return int(match[1]) if match else None


def discharging(supplies: Path) -> list[str]:
    """Charges of the batteries that are being emptied; a mouse's battery is none of this machine."""

    def told(supply: Path, name: str) -> str:
        try:
            return (supply / name).read_text().strip()
        except (OSError, ValueError):
            return ""

    found = sorted(supplies.iterdir()) if supplies.is_dir() else []
    own = [each for each in found if told(each, "type") == "Battery" and told(each, "scope") != "Device"]
    charges = [told(each, "capacity") for each in own if told(each, "status") == "Discharging"]
    return [charge for charge in charges if charge.isdecimal()]


def drop_stdout() -> None:
    """Send what is still to come to nowhere, so that Python's own flush at the end does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
