"""Several processes that work together, on one machine or many: `mlx.launch -n 2 -- mflux-train ...`.

Training sends gradients, one vector an update; drawing sends nothing, or with split weights what attention and
feed-forward add to the streams (`engine/shards.py`).
"""

import faulthandler
import os
from collections.abc import Sequence
from typing import TypeVar

import mlx.core as mx

from mflux.errors import MfluxError

PATIENCE = 1800  # seconds that ranks wait for each other, before this one tells where it stands and ends
Slot = TypeVar("Slot")


class RankLostError(MfluxError):
    """Another process of the run is gone.  What this one had after its last update is whole."""


class Ranks:
    """The processes of one run.  group: of mlx.distributed; None: this one alone, and nothing is sent."""

    def __init__(self, group: mx.distributed.Group | None = None):
        self.group = group
        self.rank, self.count = (group.rank(), group.size()) if group else (0, 1)

    def share(self, slots: Sequence[Slot]) -> Sequence[Slot]:
        """This rank's part of an update: for two ranks the halves that `tree_sum` adds last."""
        return slots[len(slots) * self.rank // self.count : len(slots) * (self.rank + 1) // self.count]

    def sum(self, part: tuple[mx.array, dict[str, mx.array]]) -> tuple[mx.array, dict[str, mx.array]]:
        """Loss and gradients of all ranks together, evaluated; each rank gets the same bits."""
        if self.count == 1:
            return part
        loss, gradients = part
        vector = mx.concatenate([loss.reshape(1), *(value.reshape(-1) for value in gradients.values())])
        total = self.added(vector)
        found, start = {}, 1
        for name, value in gradients.items():
            found[name] = total[start : start + value.size].reshape(value.shape)
            start += value.size
        mx.eval(found)
        return total[0], found

    def any(self, true: bool) -> bool:
        """Whether it is true on any rank: so that all of them do the same."""
        return true if self.count == 1 else bool(self.added(mx.array([float(true)])).item())

    def same(self, number: int) -> bool:
        """Whether all ranks have the same number, below 2^24."""
        numbers = mx.array([float(rank == self.rank) * number for rank in range(self.count)])
        return self.count == 1 or len(set(self.added(numbers).tolist())) == 1  # type: ignore[arg-type]

    def first_says(self, numbers: Sequence[int]) -> tuple[int, ...]:
        """What the first rank has, on all of them; numbers below 2^24."""
        mine = [number if self.rank == 0 else 0 for number in numbers]
        return tuple(map(int, self.added(mx.array(mine, mx.float32)).tolist()))  # type: ignore[arg-type]

    def added(self, part: mx.array) -> mx.array:
        """The sum of an array over all ranks, evaluated, the same bits on each.  Raises RankLostError."""
        mx.eval(part)  # before it is sent: a collective inside a large graph can wait for itself
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        try:
            total = mx.distributed.all_sum(part, group=self.group)
            mx.eval(total)
        except RuntimeError as error:
            raise RankLostError(f"another process of this run is gone ({error})", "see what it printed") from None
        finally:
            faulthandler.cancel_dump_traceback_later()
        return total


def launched() -> Ranks:
    """The ranks that `mlx.launch` started, or this process alone."""
    if "MLX_RANK" not in os.environ and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        return Ranks(mx.distributed.init(strict=True))
    except RuntimeError as error:
        problem = f"the processes of this run do not reach each other ({error})"
        raise MfluxError(problem, "check the hosts that `mlx.launch` was given") from None
