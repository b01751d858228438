"""The only loop: Euler steps along a list of noise levels.  It knows numbers, not FLUX."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx


@dataclass(frozen=True)
class At:
    """Where a run is: step `index` goes from `sigma` to `sigma_next`."""

    index: int
    sigma: float
    sigma_next: float


@dataclass(frozen=True)
class Step:
    """One finished step; `latents` are evaluated and stand at noise level `at.sigma_next`."""

    at: At
    latents: mx.array


def integrate(
    velocity: Callable[[mx.array, At], mx.array],
    latents: mx.array,
    sigmas: Sequence[float],
    first: int = 0,
    after_step: Sequence[Callable[[mx.array, At], mx.array]] = (),
    keep: Sequence[Callable[[], Sequence[mx.array]]] = (),
) -> Iterator[Step]:
    """Euler steps of dx/dsigma = velocity along `sigmas`, from sigmas[first] to the last; either direction.

    A generator, so that progress bars, previews, time limits and Ctrl-C are the caller's `for` loop, not hooks.
    Evaluates once per step, together with the arrays that each `keep` returns: what outlives a step and stays lazy
    would hold the whole graph of that step.
    """
    for index, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if index < first:
            continue
        at = At(index, sigma, sigma_next)
        latents = latents + (sigma_next - sigma) * velocity(latents, at).astype(mx.float32)
        for change in after_step:
            latents = change(latents, at)
        mx.eval(latents, *(array for kept in keep for array in kept()))
        yield Step(at, latents)
