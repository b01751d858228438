"""Prodigy: AdamW whose step length finds itself; the learning rate is a factor of it, usually 1.

Source: arXiv 2306.06101, algorithm 4, in the form of the authors' `prodigyopt`.  MLX has none.
"""

import math
from typing import Any

import mlx.core as mx

from mflux.models.lora import Factors

FIRST_STEP = 1e-6  # d0 of the paper


class Prodigy:
    """As MLX's optimizers: `init`, `apply_gradients`, `state`, `learning_rate`.

    d: the estimated distance to the solution.  guarded: early, small learning rates of a warm-up do not count in it.
    """

    def __init__(
        self, rate: float, betas: list[float], eps: float, decay: float, corrected: bool, guarded: bool = False
    ):
        self.betas, self.eps, self.decay, self.corrected, self.guarded = betas, eps, decay, corrected, guarded
        self.state: dict[str, Any] = {"step": mx.array(0, mx.uint64), "learning_rate": mx.array(rate)}
        self.state |= {name: mx.array(FIRST_STEP) for name in ("d", "d_max")} | {"numerator": mx.array(0.0)}

    @property
    def learning_rate(self) -> mx.array:
        return self.state["learning_rate"]

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.state["learning_rate"] = mx.array(rate)

    def init(self, factors: Factors) -> None:
        zeros = {name: mx.zeros_like(value) for name, value in factors.items()}
        self.state |= {name: {"m": zero, "v": zero, "s": zero, "start": factors[name]} for name, zero in zeros.items()}

    def apply_gradients(self, gradients: Factors, factors: Factors) -> Factors:
        state, (beta1, beta2) = self.state, self.betas
        beta3, d, step = math.sqrt(beta2), state["d"], state["step"] + 1
        length = d * self.learning_rate
        if self.corrected:
            left = (-mx.expm1(step.astype(mx.float32) * math.log(beta)) for beta in (beta2, beta1))  # 1 - beta^step
            length = length * mx.sqrt(next(left)) / next(left)
        ratio, numerator, denominator = d / FIRST_STEP, beta3 * state["numerator"], mx.array(0.0)
        for name, gradient in gradients.items():
            own = state[name]
            numerator = numerator + ratio * length * (gradient * (own["start"] - factors[name])).sum()
            s = beta3 * own["s"] + ratio * (d if self.guarded else length) * gradient
            m = beta1 * own["m"] + d * (1 - beta1) * gradient
            v = beta2 * own["v"] + d * d * (1 - beta2) * mx.square(gradient)
            state[name] = {"m": m, "v": v, "s": s, "start": own["start"]}
            denominator = denominator + mx.abs(s).sum()
        found = mx.where(denominator > 0, numerator / mx.maximum(denominator, 1e-38), d)
        larger = mx.maximum(state["d_max"], found)
        state |= {"d": larger, "d_max": larger, "numerator": numerator, "step": step}
        return {name: self._moved(factors[name], state[name], length, larger) for name in factors}

    def _moved(self, factor: mx.array, own: Factors, length: mx.array, d: mx.array) -> mx.array:
        kept = factor * (1 - self.decay * length)
        return kept - length * own["m"] / (mx.sqrt(own["v"]) + d * self.eps)
