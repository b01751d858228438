"""Heads that begin by looking at one exact place: of kontext's reference, or of the panel beside.

A copy needs attention to the token of the same place. Left to itself a head takes hours to become that sharp, and what
should stay is blurred until then: without such heads kontext's own tokens of unchanged objects were off by 5.5 per cent
of their variance after 145 minutes, with them by 1.2 after three minutes more. q and k begin as constants, so that RoPE
alone decides; all of it goes on learning, also to look elsewhere.
"""

from __future__ import annotations

import torch
from networks import WIDTH, Networks
from torch import Tensor, nn

# Block and head: those that kontext's loss missed least. In the first joint block a reference's token is still what it
# looks like; from the second block on it is more and more what it is called.
JOINT_HEADS = ((0, 1), (0, 3))
HEADS = ((0, 3), (1, 0), (1, 1), (2, 1))  # of single blocks
HEAD_WIDTH = 32
# Shares of q and k: first dims of pairs of the three coordinates, which RoPE turns by 1 or .215 a step.
PAIRS = {0: (0.22, 1.0), 8: (0.27, 1.0), 10: (0.12, 0.215), 20: (0.27, 1.0), 22: (0.12, 0.215)}
DIMS = [first + i for first in PAIRS for i in range(2)]
SHARP = 2.5  # norm weights of q and k in these dims
LOUDER = 10.0  # how much an adapter's constant outweighs what the head had to say
STARTS = (0, 8, 20)  # first dims of the coordinates


def looking(number: float | None = 0.0, row: float = 0.0, column: float = 0.0) -> Tensor:
    """A constant q or k (HEAD_WIDTH,), turned as if it stood at these coordinates; None: that one does not matter."""
    found = torch.zeros(HEAD_WIDTH)
    for first, (share, speed) in PAIRS.items():
        where = (number, row, column)[sum(first >= start for start in STARTS) - 1]
        if where is not None:
            turned = torch.tensor(where * speed)
            found[first : first + 2] = (share * HEAD_WIDTH) ** 0.5 * torch.stack([turned.cos(), turned.sin()])
    return found


@torch.no_grad()
def look_at_reference(networks: Networks) -> None:
    """Kontext: the same place of the first reference, whose first coordinate is 1."""
    look_early(networks)
    blocks = networks.transformer.single_transformer_blocks
    for number in {block for block, _ in HEADS}:
        _sharpen(blocks[number].attn)
    for number, head in HEADS:
        _look_ahead(blocks[number].attn, _own(head))
        blocks[number].proj_out.weight[:, _own(head)] = 0


@torch.no_grad()
def look_early(networks: Networks) -> None:
    """The joint blocks' part of it: values begin as the latents themselves, and the text is not looked at."""
    blocks, width = networks.transformer.transformer_blocks, HEAD_WIDTH
    for number in {block for block, _ in JOINT_HEADS}:
        _sharpen(blocks[number].attn)
    directions = torch.linalg.svd(networks.transformer.x_embedder.weight[:, :64], full_matrices=False).U
    elsewhere = torch.zeros(width)
    elsewhere[-1] = 1.0  # where no q has anything
    for place, (number, head) in enumerate(JOINT_HEADS):
        attention, own = blocks[number].attn, _own(head)
        _look_ahead(attention, own)
        attention.add_k_proj.weight[own], attention.add_k_proj.bias[own] = 0, elsewhere
        attention.to_v.weight[own], attention.to_v.bias[own] = directions[:, place * width : (place + 1) * width].T, 0
        attention.to_out[0].weight[:, own] = 0
        attention.to_add_out.weight[:, own] = 0


def _own(head: int) -> slice:
    return slice(head * HEAD_WIDTH, (head + 1) * HEAD_WIDTH)


def _sharpen(attention: nn.Module) -> None:
    """Larger norm weights, which a block's heads share; what the heads had to say is made smaller to make up for it."""
    rows = torch.arange(WIDTH).view(-1, HEAD_WIDTH)[:, DIMS]
    for linear, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k)):
        linear.weight[rows] *= (norm.weight[DIMS] / SHARP)[:, None]
        linear.bias[rows] *= norm.weight[DIMS] / SHARP
        norm.weight[DIMS] = SHARP


def _look_ahead(attention: nn.Module, own: slice) -> None:
    for linear, constant in ((attention.to_q, looking(number=1)), (attention.to_k, looking())):
        linear.weight[own], linear.bias[own] = 0, constant


@torch.no_grad()
def look_beside(networks: Networks, columns: int, *inputs: Tensor) -> None:
    """Panels: so many columns to the left, by an adapter alone, which has no biases: rank 1 of it reads a constant.

    inputs: those of `Networks.velocity`, from which is learnt what is constant in a block's states.
    """
    blocks, seen = networks.transformer.single_transformer_blocks, {}
    hooks = [
        blocks[number].attn.to_q.register_forward_pre_hook(
            lambda _, states, number=number: seen.update({number: states[0]})
        )
        for number in {block for block, _ in HEADS}
    ]
    networks.velocity(*inputs)
    for hook in hooks:
        hook.remove()
    for number, head in HEADS:
        attention = blocks[number].attn
        own, states = _own(head), seen[number].flatten(0, 1)
        constant = torch.linalg.lstsq(states, torch.ones(len(states), 1)).solution[:, 0]
        size = constant.norm()
        for linear, wanted in ((attention.to_q, looking(None, column=-columns)), (attention.to_k, looking(None))):
            loud = LOUDER * linear.base_layer(states)[:, own].square().mean().sqrt()
            read, write = linear.lora_A["default"].weight, linear.lora_B["default"].weight
            read[0] = constant / size
            write[own, 0] = loud * size * wanted
