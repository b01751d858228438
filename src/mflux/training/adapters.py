"""The layers that learn: attached to a frozen network, drawn, named in files."""

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from mflux.errors import UsageError
from mflux.models.lora import Adapter, Factors, LowRank, TrainedLinear, input_width, row_lengths
from mflux.training.draws import key_of
from mflux.training.spec import JOINT, Target
from mflux.weights.load import put
from mflux.weights.lora_files import output_width

OLD_NAMES = {new: old for old, new in JOINT.items() if new != old}  # as mflux 0.8 calls them


def attach(network: nn.Module, targets: Sequence[Target], seed: int) -> dict[str, TrainedLinear]:
    """Freeze the network and put an adapter beside each target; it changes nothing yet, so training starts from the
    very model."""
    network.freeze()
    modules = dict(network.named_modules())
    layers = {}
    for target in targets:
        base = modules[target.path]
        layers[target.path] = TrainedLinear(base, drawn(base, target, seed), target.scale, target.dropout)
        put(network, target.path, layers[target.path])
    return layers


def drawn(base: nn.Module, target: Target, seed: int) -> Factors:
    """The first factors of an adapter: uniform within 1 / sqrt(in), the last one zero, as peft and LyCORIS draw them.

    Sources: LoRA, arXiv 2106.09685; DoRA, 2402.09353; LoKr, 2309.14859, with the sides split as near to a square as
    whole numbers allow.
    """
    width, height = input_width(base), output_width(base)

    def uniform(name: str, rows: int, columns: int) -> mx.array:
        bound, key = 1 / math.sqrt(columns), key_of(seed, "init", target.path, *([name] if name != "lora_A" else ()))
        return mx.random.uniform(-bound, bound, (rows, columns), key=key)

    if target.type == "lokr":
        (tall, tall_2), (wide, wide_2) = split(height), split(width)
        rank = min(target.rank, tall_2, wide_2)
        return {
            "lokr_w1": uniform("lokr_w1", tall, wide),
            "lokr_w2_a": uniform("lokr_w2_a", tall_2, rank),
            "lokr_w2_b": mx.zeros((rank, wide_2)),
        }
    if target.rank > min(width, height):
        problem = f"rank {target.rank} is above the sides of `{target.path}`, {height} x {width}"
        raise UsageError(problem, "give a smaller `lora_rank`", "lora_rank")
    factors = {"lora_A": uniform("lora_A", target.rank, width), "lora_B": mx.zeros((height, target.rank))}
    if target.type == "dora":
        factors["lora_magnitude_vector"] = row_lengths(base, Adapter(LowRank(*factors.values()), target.scale))
    return factors


def split(side: int) -> tuple[int, int]:
    """Two factors of a number, the first one at most its square root and as near to it as can be."""
    first = next(number for number in range(math.isqrt(side), 0, -1) if side % number == 0)
    return first, side // first


def detach(network: nn.Module, layers: Mapping[str, TrainedLinear]) -> None:
    for path, layer in layers.items():
        put(network, path, layer.base)


def factors_of(layers: Mapping[str, TrainedLinear]) -> Factors:
    """The learning arrays, in the order of the network."""
    return {f"{path}.{name}": value for path, layer in layers.items() for name, value in layer.factors.items()}


def old_name(name: str) -> str:
    """A layer's or array's name as mflux 0.8 has it in its files: `ff.linear1`, not `ff.net.0.proj`."""
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name
