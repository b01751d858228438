"""The flow-matching loss, its gradients, and how the loss of an update is put together.

x_s = (1 - s) x0 + s noise; the velocity that leads along this line is noise - x0, whatever s.  Source: rectified flow,
arXiv 2209.03003; the same target as diffusers' and mflux 0.8's trainers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from mflux.engine.network import Branch, Network
from mflux.models.lora import Factors, TrainedLinear
from mflux.models.transformer import NO_HOOKS, BlockHooks, FluxBlocks

Summed = TypeVar("Summed")
Part = TypeVar("Part")


def sample_losses(
    network: Network,
    branch: Branch,
    x0: mx.array,
    noise: mx.array,
    sigma: mx.array,
    region: mx.array | None = None,
    hooks: BlockHooks = NO_HOOKS,
) -> tuple[mx.array, mx.array]:
    """Mean squared error of the velocity for each sample (B,) in float32, and the velocity.

    x0, noise: (B, S, 64) float32; sigma: (B,) in (0, 1]; region: weights of the tokens (1, S, 1 or 64), mean 1.
    """
    level = sigma[:, None, None]
    velocity = network.velocity(branch, (1 - level) * x0 + level * noise, sigma, hooks)
    error = mx.square(velocity - (noise - x0))
    return (error if region is None else error * region).mean(axis=(1, 2)), velocity


def checkpointed(block: nn.Module, *arguments: Any) -> Any:
    """Call a block and forget what is inside; the backward pass computes it again.

    Arrays that a closure captures would lose their gradients in silence, so everything is an argument, and the block's
    own parameters are handed over by `nn.utils.checkpoint`.
    """
    arrays = [each for each in arguments if isinstance(each, mx.array | tuple)]
    rest = arguments[len(arrays) :]
    return nn.utils.checkpoint(block, lambda *given: block(*given, *rest))(*arrays)


CHECKPOINTED = replace(NO_HOOKS, call=checkpointed)


def checkpointing(network: FluxBlocks, every: bool | int) -> BlockHooks:
    """All blocks checkpointed, none, or every n-th."""
    if every is True or every is False:
        return CHECKPOINTED if every else NO_HOOKS
    blocks = [*network.transformer_blocks, *network.single_transformer_blocks]
    chosen = {id(block) for block in blocks[::every]}

    def call(block: nn.Module, *given: Any) -> Any:
        return checkpointed(block, *given) if id(block) in chosen else block(*given)

    return replace(NO_HOOKS, call=call)


def value_and_gradients(
    layers: Mapping[str, TrainedLinear], factors: Factors, loss: Callable[[], mx.array]
) -> tuple[mx.array, Factors]:
    """A scalar loss and its gradient for every factor, evaluated.

    The blocks' gradients are evaluated from the last to the first, which needs the least memory: each uses what the
    backward pass has just computed.
    """

    def of(given: Factors) -> mx.array:
        put_factors(layers, given)
        return loss()

    value, gradients = mx.value_and_grad(of)(factors)
    put_factors(layers, factors)
    mx.eval(value)
    for _, names in groupby(reversed(list(gradients)), key=lambda name: ".".join(name.split(".")[:2])):
        mx.eval([gradients[name] for name in names])
    return value, gradients


def put_factors(layers: Mapping[str, TrainedLinear], factors: Factors) -> None:
    for path, layer in layers.items():
        layer.put({name: factors[f"{path}.{name}"] for name in layer.factors})


def tree_sum(parts: Sequence[Part], value_of: Callable[[Part], Summed]) -> Summed:
    """The sum of a tree of arrays for each part: the first half's sum plus the second half's, and so on inwards.

    So it has the same bits where two machines have a half each.  At most log2 of the parts are in memory at once.
    """
    if len(parts) == 1:
        return value_of(parts[0])
    half = len(parts) // 2
    total: Summed = tree_map(mx.add, tree_sum(parts[:half], value_of), tree_sum(parts[half:], value_of))
    mx.eval(total)
    return total


def clipped(gradients: Factors, most: float | None) -> tuple[Factors, mx.array]:
    """Gradients scaled down to a global norm of `most`, and the norm before.  Source: torch's clip_grad_norm_.

    Each is laid out by rows first: MLX adds in the order of memory, which differs for what other ranks have sent.
    """
    squares = (mx.square(each.reshape(-1)).sum() for each in gradients.values())
    norm = mx.sqrt(sum(squares, mx.array(0.0)))
    if most is None:
        return gradients, norm
    factor = mx.minimum(1.0, most / (norm + 1e-6))
    return {name: each * factor for name, each in gradients.items()}, norm


def shares(weights: Sequence[float], priors: Sequence[bool], prior_weight: float) -> Iterator[float]:
    """What each slot's loss counts in an update: mean(subject) + prior_weight * mean(class)."""
    class_slots = sum(priors)
    for weight, prior in zip(weights, priors, strict=True):
        yield weight * prior_weight / class_slots if prior else weight / (len(priors) - class_slots)
