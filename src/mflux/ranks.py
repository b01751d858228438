"""Several processes that work together, on one machine or many: `mlx.launch -n 2 -- mflux-train ...`.

Training sends gradients, one vector an update; drawing sends nothing, or with split weights what attention and
feed-forward add to the streams: every process draws the same picture with its share of each block's heads and columns,
and what it finds is added up, four times in a joint block and once in a single one (Megatron-LM, arXiv 1909.08053).
"""

import faulthandler
from collections.abc import Sequence
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace

from mflux.errors import MfluxError, UsageError
from mflux.models.layers import GROUP_SIZE
from mflux.runtime import one_of_several

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
    if not one_of_several():
        return Ranks()
    try:
        return Ranks(mx.distributed.init(strict=True))
    except RuntimeError as error:
        problem = f"the processes of this run do not reach each other ({error})"
        raise MfluxError(problem, "check the hosts that `mlx.launch` was given") from None


# --- one picture on all of them --------------------------------------------------------------------------------------


class Summed(nn.Module):
    """A Linear whose input channels are spread over the processes: the sum of what each finds, then the bias."""

    def __init__(self, part: nn.Module, ranks: Ranks):
        super().__init__()
        self.part, self._ranks = part, ranks
        if "bias" in part:
            self.bias = part.pop("bias")

    def __call__(self, x: mx.array) -> mx.array:
        total = self._ranks.added(self.part(x))
        return total + self.bias if "bias" in self else total


def check_split(config: Any, packed: bool, ranks: Ranks) -> None:
    """Refuse sizes that cannot be shared.  packed: the weights are quantized.  Raises UsageError."""
    heads, share = config.num_attention_heads, config.width // ranks.count
    if heads % ranks.count:
        problem = f"{heads} heads cannot be shared by {ranks.count} processes"
        raise UsageError(problem, f"start as many as divide {heads}", "split_image")
    if packed and share % GROUP_SIZE:
        problem = f"{share} channels for each of {ranks.count} processes are no whole groups of {GROUP_SIZE}"
        raise UsageError(problem, "start fewer, or use weights that are not quantized", "split_image")


def split(transformer: Any, ranks: Ranks) -> None:
    """Leave a process its share of the heads and columns of every block of a FluxTransformer without adapters."""

    def own_rows(*linears: nn.Module) -> None:
        for linear in linears:
            shard_inplace(linear, "all-to-sharded", group=ranks.group)

    def own_columns(linear: nn.Module, segments: int | list[float] = 1) -> Summed:
        shard_inplace(linear, "sharded-to-all", segments=segments, group=ranks.group)
        return Summed(linear, ranks)

    for joint in transformer.transformer_blocks:
        attention = joint.attn
        attention.heads //= ranks.count
        own_rows(attention.to_q, attention.to_k, attention.to_v)
        own_rows(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj)
        attention.to_out = [own_columns(attention.to_out[0])]
        attention.to_add_out = own_columns(attention.to_add_out)
        for network in (joint.ff, joint.ff_context):
            own_rows(network.net[0].proj)
            network.net[2] = own_columns(network.net[2])
    for single in transformer.single_transformer_blocks:
        single.attn.heads //= ranks.count
        own_rows(single.attn.to_q, single.attn.to_k, single.attn.to_v, single.proj_mlp)
        single.proj_out = own_columns(single.proj_out, [1 / 5])  # of its inputs one part is attention's
    mx.eval(transformer.parameters())
