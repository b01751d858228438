"""The layers that learn: attached to a frozen network, drawn, named in files."""

import math
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from mflux.errors import UsageError
from mflux.models.lora import TrainedLinear, input_width
from mflux.training.draws import key_of
from mflux.training.loss import Factors
from mflux.training.spec import JOINT, Target
from mflux.weights.load import put
from mflux.weights.lora_files import output_width

OLD_NAMES = {new: old for old, new in JOINT.items() if new != old}  # as mflux 0.8 calls them


def attach(network: nn.Module, targets: Sequence[Target], seed: int) -> dict[str, TrainedLinear]:
    """Freeze the network and put a LoRA beside each target: A uniform within 1 / sqrt(in), B zero.

    So training starts from the very model.  Source: LoRA, arXiv 2106.09685; the same draw as peft's.
    """
    network.freeze()
    modules = dict(network.named_modules())
    layers = {}
    for target in targets:
        base = modules[target.path]
        width, height = input_width(base), output_width(base)
        if target.rank > min(width, height):
            problem = f"rank {target.rank} is above the sides of `{target.path}`, {height} x {width}"
            raise UsageError(problem, "give a smaller `lora_rank`", "lora_rank")
        bound = 1 / math.sqrt(width)
        a = mx.random.uniform(-bound, bound, (target.rank, width), key=key_of(seed, "init", target.path))
        layers[target.path] = TrainedLinear(base, a, mx.zeros((height, target.rank)), target.scale)
        put(network, target.path, layers[target.path])
    return layers


def detach(network: nn.Module, layers: Mapping[str, TrainedLinear]) -> None:
    """Take the LoRAs away; the network is what it was."""
    for path, layer in layers.items():
        put(network, path, layer.base)


def factors_of(layers: Mapping[str, TrainedLinear]) -> Factors:
    """The learning arrays, in the order of the network."""
    return {f"{path}.{name}": layer[name] for path, layer in layers.items() for name in ("lora_A", "lora_B")}


def old_name(name: str) -> str:
    """A layer's or array's name as mflux 0.8 has it in its files: `ff.linear1`, not `ff.net.0.proj`."""
    for new, old in OLD_NAMES.items():
        name = name.replace(f".{new}.", f".{old}.")
    return name


def in_file(factors: Factors, scales: Mapping[str, float], diffusers: bool) -> dict[str, mx.array]:
    """Tensors of a LoRA file: mflux 0.8's names, or diffusers'; an alpha only where the scale is not 1."""
    tensors = {}
    for name, value in factors.items():
        tensors[f"transformer.{name}.weight" if diffusers else f"transformer.{old_name(name)}"] = value
    for path, scale in scales.items():
        if scale != 1:
            rank = factors[f"{path}.lora_A"].shape[0]
            name = f"{path}.alpha" if diffusers else old_name(f"{path}.alpha")
            tensors[f"transformer.{name}"] = mx.array(scale * rank)
    return tensors
