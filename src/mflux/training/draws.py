"""Random numbers as functions of what they are for: (seed, purpose, epoch, example, ...).

Nothing is drawn from a shared stream, so a run that is cut and goes on, or is spread over machines, or looks at itself
more often, sees the same numbers.
"""

import hashlib
import math
import random
from statistics import NormalDist

import mlx.core as mx

from mflux.engine.schedule import Schedule
from mflux.training.spec import Timestep

SMALLEST = 1e-4  # a noise level of 0 has nothing to learn from


def number_of(*what: object) -> int:
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def key_of(*what: object) -> mx.array:
    """A key of MLX's counter-based generator."""
    return mx.random.key(number_of(*what))


def uniform(*what: object) -> float:
    """A number in [0, 1)."""
    return random.Random(number_of(*what)).random()


def shuffled(count: int, *what: object) -> list[int]:
    """A permutation of 0..count - 1.  Fisher-Yates on `random()`, the one stream that Python keeps over versions."""
    stream, order = random.Random(number_of(*what)), list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(stream.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


def noise_level(timestep: Timestep, schedule: Schedule, steps: int, tokens: int, u: float) -> float:
    """The noise level at the share `u` in [0, 1) of its distribution.  tokens: image tokens that are drawn."""
    low, high = max(timestep.low, SMALLEST), timestep.high
    if timestep.mode == "schedule":
        levels = [level for level in schedule.sigmas(steps, tokens)[:-1] if timestep.low <= level <= high]
        levels = levels or list(schedule.sigmas(steps, tokens)[:-1])
        return levels[int(u * len(levels))]
    shift = {"shift": timestep.value, "flux_shift": schedule.shift_of(tokens)}.get(timestep.mode, 1.0)
    normal = NormalDist(timestep.mean, timestep.std)
    drawn_normal = timestep.mode in ("logit_normal", "flux_shift")

    def share_below(level: float) -> float:
        level = min(level / (shift - (shift - 1) * level), 1 - 1e-9)
        return normal.cdf(math.log(level / (1 - level))) if drawn_normal else level

    share = share_below(low) + u * (share_below(high) - share_below(low))
    if drawn_normal:
        share = 1 / (1 + math.exp(-normal.inv_cdf(min(max(share, 1e-12), 1 - 1e-12))))
    return shift * share / (1 + (shift - 1) * share)
