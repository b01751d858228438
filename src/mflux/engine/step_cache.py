"""Step caches: where a step would change the picture's tokens nearly as the one before did, most blocks are left out.

One cache for each branch of a run.  What is kept of a step is evaluated in it, so that no graph outlives its step.
Sources: first-block cache of ParaAttention, TeaCache (arXiv 2411.19108) with its polynomials for FLUX, TaylorSeer
(arXiv 2503.06923) on the last block's output alone; `newton` is ours: exact for features of degree <= order.
Unlike those: in a batch the picture that changes most decides for all, TeaCache's estimate is never negative, and the
last step is always computed.
"""

from abc import ABC, abstractmethod

import mlx.core as mx

from mflux.engine.request import StepCacheChoice
from mflux.models.transformer import BlockPass

# Of TeaCache's estimate of the output's change from the input's, highest power first.
POLYNOMIALS = {
    "base": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    "kontext": (-1046.55119, 312.563399, -16.9500694, 0.410995971, 0.0374537863),
}
WARM_UP = 3  # steps that TaylorSeer computes before it predicts


class StepCache(ABC):
    """One branch's memory of the steps before; `computed` counts those that ran in full."""

    def __init__(self) -> None:
        self.computed = 0
        self.forget()

    @abstractmethod
    def forget(self) -> None:
        """Start anew: the next step runs in full."""

    @abstractmethod
    def guess(self, blocks: BlockPass, step: int) -> mx.array | None:
        """The image tokens before the head without most blocks, or None where they have to run."""

    @abstractmethod
    def learn(self, blocks: BlockPass, step: int) -> mx.array:
        """The image tokens before the head, by all blocks."""

    def __call__(self, blocks: BlockPass, step: int, last: bool) -> mx.array:
        guessed = None if last else self.guess(blocks, step)
        if guessed is not None:
            return guessed
        self.computed += 1
        return self.learn(blocks, step)


class FirstBlockCache(StepCache):
    """The first joint block always runs; while it changes the image as it did, the rest adds what it added."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forget(self) -> None:
        self.change: mx.array | None = None

    def guess(self, blocks: BlockPass, step: int) -> mx.array | None:
        image, _ = blocks.first()
        if self.change is None or distance(image - blocks.image, self.change) >= self.threshold:
            return None
        return image + self.remainder

    def learn(self, blocks: BlockPass, step: int) -> mx.array:
        image, text = blocks.first()
        out = blocks.rest(image, text)
        self.change, self.remainder = image - blocks.image, out - image
        mx.eval(out, self.change, self.remainder)
        return out


class TeaCache(StepCache):
    """While the first block's modulated input has changed little since the last full step, all blocks are left out."""

    def __init__(self, threshold: float, polynomial: tuple[float, ...]):
        super().__init__()
        self.threshold, self.polynomial = threshold, polynomial

    def forget(self) -> None:
        self.input: mx.array | None = None
        self.estimate = 0.0

    def guess(self, blocks: BlockPass, step: int) -> mx.array | None:
        before, self.input = self.input, blocks.modulated()
        mx.eval(self.input)
        if before is None:
            return None
        self.estimate += max(0.0, horner(self.polynomial, distance(self.input, before)))
        return blocks.image + self.remainder if self.estimate < self.threshold else None

    def learn(self, blocks: BlockPass, step: int) -> mx.array:
        self.estimate, out = 0.0, blocks.all()
        self.remainder = out - blocks.image
        mx.eval(out, self.remainder)
        return out


class TaylorSeer(StepCache):
    """Every `interval` steps all blocks run; in between, their output is extrapolated from the full steps before.

    form: `taylor` takes backward differences for derivatives, as published, which is exact up to degree 1 whatever the
    order; `newton` is the polynomial through the last order + 1 full steps.
    """

    def __init__(self, interval: int, order: int, form: str):
        super().__init__()
        self.interval, self.order, self.newton = interval, order, form == "newton"

    def forget(self) -> None:
        self.steps: list[int] = []  # that ran in full, latest first
        self.seen = 0
        self.differences: list[mx.array] = []  # of rising order, at the latest of them

    def guess(self, blocks: BlockPass, step: int) -> mx.array | None:
        if self.seen < WARM_UP or step - self.steps[0] >= self.interval:
            return None
        ahead, guessed, weight = step - self.steps[0], self.differences[0], 1.0
        for order, difference in enumerate(self.differences[1:], 1):
            weight *= step - self.steps[order - 1] if self.newton else ahead / order
            guessed = guessed + weight * difference
        return guessed

    def learn(self, blocks: BlockPass, step: int) -> mx.array:
        out = blocks.all()
        found = [out]
        for order, before in enumerate(self.differences[: self.order]):
            since = self.steps[order if self.newton else 0]
            found.append((found[-1] - before) / (step - since))
        mx.eval(found)
        self.differences, self.seen = found, self.seen + 1
        self.steps = [step, *self.steps[: self.order]]
        return out


def distance(new: mx.array, old: mx.array) -> float:
    """Mean |new - old| against mean |old|, of the picture in the batch that has changed most."""
    old = old.astype(mx.float32)
    change = mx.abs(new.astype(mx.float32) - old).mean(axis=(1, 2)) / mx.abs(old).mean(axis=(1, 2))
    return float(change.max())


def horner(polynomial: tuple[float, ...], x: float) -> float:
    value = 0.0
    for coefficient in polynomial:
        value = value * x + coefficient
    return value


def make_step_cache(choice: StepCacheChoice, task: str) -> StepCache | None:
    """The cache that was asked for; None for one that would never leave a step out."""
    if choice.off:
        return None
    if choice.kind == "fb":
        return FirstBlockCache(choice.amount)
    if choice.kind == "tea":
        return TeaCache(choice.amount, POLYNOMIALS["kontext" if task == "kontext" else "base"])
    return TaylorSeer(int(choice.amount), choice.order, choice.form)
