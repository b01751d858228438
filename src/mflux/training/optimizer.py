"""Updates of the factors: an optimizer of MLX, its learning rate by step, its state as named arrays."""

import math
from collections.abc import Callable

import mlx.core as mx
from mlx import optimizers

from mflux.models.lora import Factors
from mflux.training.prodigy import Prodigy
from mflux.training.spec import Optimizer


def build(settings: Optimizer) -> optimizers.Optimizer | Prodigy:
    """MLX's optimizer, or Prodigy.  Adafactor would ignore the learning rate unless it is told not to."""
    rate, betas = settings.learning_rate, list(settings.betas)
    eps, decay, corrected = settings.eps, settings.weight_decay, settings.bias_correction
    warms_up = settings.schedule.warmup_steps > 0
    makers: dict[str, Callable[[], optimizers.Optimizer | Prodigy]] = {
        "AdamW": lambda: optimizers.AdamW(rate, betas, eps, decay, corrected),
        "Adam": lambda: optimizers.Adam(rate, betas, eps, corrected),
        "Prodigy": lambda: Prodigy(rate, betas, eps, decay, corrected, warms_up),
        "Lion": lambda: optimizers.Lion(rate, betas, decay),
        "Adafactor": lambda: optimizers.Adafactor(rate, weight_decay=decay, relative_step=False, scale_parameter=False),
    }
    return makers[settings.name]()


class Updates:
    """An optimizer and what it remembers."""

    def __init__(self, settings: Optimizer, factors: Factors):
        self.settings = settings
        self._optimizer = build(settings)
        self._optimizer.init(factors)

    def rate(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        settings, schedule = self.settings, self.settings.schedule
        if step < schedule.warmup_steps:
            return settings.learning_rate * (step + 1) / schedule.warmup_steps
        if schedule.name == "constant" or not schedule.total_steps:
            return settings.learning_rate
        share = (step - schedule.warmup_steps) / max(1, schedule.total_steps - schedule.warmup_steps)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def step(self, factors: Factors, gradients: Factors, rate: float | None = None) -> Factors:
        """The factors after one update, evaluated."""
        if rate is not None:
            self._optimizer.learning_rate = rate
        updated = self._optimizer.apply_gradients(gradients, factors)
        mx.eval(updated, self._optimizer.state)
        return updated

    def arrays(self) -> dict[str, mx.array]:
        """The state by mflux 0.8's names: `step`, `learning_rate`, `<factor>.m`, `<factor>.v`."""
        flat: dict[str, mx.array] = {}
        for name, value in self._optimizer.state.items():
            flat |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
        return flat

    def restore(self, arrays: dict[str, mx.array]) -> None:
        state: dict[str, object] = {}
        for name, value in arrays.items():
            owner, _, key = name.rpartition(".")
            if owner:
                state.setdefault(owner, {})[key] = value  # type: ignore[index]
            else:
                state[name] = value
        self._optimizer.state = state
