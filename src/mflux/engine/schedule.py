"""Noise levels: from steps, or from a list, shifted by the number of tokens where the model was trained so."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mflux.errors import ModelError
from mflux.weights.files import read_json

LIMIT, MAX_MU = 2**31, 20
HINT = "the file is damaged, or belongs to another kind of model"
FOREIGN = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "shift_terminal")


@dataclass(frozen=True)
class Schedule:
    """How a model spaces its noise levels; field names are those of diffusers' scheduler_config.json."""

    use_dynamic_shifting: bool = True
    shift: float = 3.0  # without dynamic shifting only
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    def mu(self, tokens: int) -> float:
        """The logarithm of the dynamic shift: linear in the number of image tokens that are drawn."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (tokens - self.base_image_seq_len)

    def shift_of(self, tokens: int) -> float:
        """What noise odds are multiplied by: s / (1 - s) becomes shift times that."""
        return math.exp(self.mu(tokens)) if self.use_dynamic_shifting else self.shift

    def sigmas(self, steps: int, tokens: int, own: Sequence[float] | None = None) -> tuple[float, ...]:
        """steps + 1 noise levels from noise (1) to picture (0), in float32; `own` levels replace the even ones.

        tokens: image tokens that are drawn, height * width / 256.  Source: diffusers' FlowMatchEulerDiscreteScheduler.
        """
        levels = np.linspace(1.0, 1 / steps, steps) if own is None else np.array(own)
        levels = levels.astype(np.float32).astype(np.float64)
        if self.use_dynamic_shifting:
            ratio = math.exp(self.mu(tokens))
            shifted = ratio / (ratio + (1 / levels - 1))
        else:
            shifted = self.shift * levels / (1 + (self.shift - 1) * levels)
        return (*(float(level) for level in shifted.astype(np.float32)), 0.0)


def read_schedule(folder: Path) -> Schedule:
    """The schedule of a model folder.  Raises ModelError for a spacing that FLUX.1 does not use."""
    path = folder / "scheduler_config.json"
    raw = read_json(path)
    for name in FOREIGN:
        if raw.get(name):
            raise ModelError(f"`{path}`: `{name}` is not supported", "FLUX.1 models do not use it; is this one?")
    values = {each.name: raw[each.name] for each in fields(Schedule) if raw.get(each.name) is not None}
    for name, value in values.items():
        dynamic = name == "use_dynamic_shifting"
        number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LIMIT
        if not (isinstance(value, bool) if dynamic else number):
            kind = "true or false" if dynamic else "a sane number"
            raise ModelError(f"`{path}`: `{name}` should be {kind}, but is {str(value)[:60]!r}", HINT)
    schedule = Schedule(**values)
    for name, low, high in (("shift", 1e-9, LIMIT), ("base_shift", -MAX_MU, MAX_MU), ("max_shift", -MAX_MU, MAX_MU)):
        if not low <= getattr(schedule, name) <= high:
            raise ModelError(f"`{path}`: `{name}` {getattr(schedule, name)} makes no noise levels", HINT)
    if schedule.base_image_seq_len == schedule.max_image_seq_len:
        raise ModelError(f"`{path}`: `base_image_seq_len` and `max_image_seq_len` are the same", HINT)
    return schedule


def strength_start(steps: int, strength: float) -> int:
    """The first of `steps` that runs for diffusers' strength (1: all).  Source: get_timesteps, floats and all."""
    return int(max(steps - min(steps * strength, steps), 0))


def image_strength_start(steps: int, image_strength: float) -> int:
    """The first of `steps` that runs for mflux's image_strength (0: all; higher stays closer to the picture)."""
    return max(1, math.floor(steps * image_strength)) if image_strength > 0 else 0
