"""How noise levels are drawn, as functions of a number in [0, 1)."""

import math
from statistics import NormalDist

from mflux.engine.schedule import Schedule
from mflux.training.spec import Timestep

SMALLEST = 1e-4  # a noise level of 0 has nothing to learn from


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
