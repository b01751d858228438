"""One picture on several processes: each has a share of every block's heads and feed-forward columns.

Every process draws the same picture from the same seed; what its share adds to the streams is added up over all of
them, twice for each stream of a joint block and once in a single block.  Source: Megatron-LM, arXiv 1909.08053.
"""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace

from mflux.errors import UsageError
from mflux.models.layers import GROUP_SIZE
from mflux.models.transformer import TransformerConfig
from mflux.ranks import Ranks


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


def check_split(config: TransformerConfig, packed: bool, ranks: Ranks) -> None:
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
