"""Muon: momentum whose matrices are made orthogonal before they are applied.

After K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). Matrices of one shape are
handled as one batch, which matters where there are many small ones.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from clock import half_is_fast
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic coefficients of the paper


class Muon(torch.optim.Optimizer):
    """For matrices inside blocks, and convolutions as matrices (out, in * height * width).

    The update's scale, 0.2 sqrt(longer side), matches AdamW's (Moonlight, 2025).
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 2e-3, momentum: float = 0.95, steps: int = 5) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for parameters in shapes.values():
                ahead = self._nesterov(parameters, group["momentum"])
                matrices = ahead.flatten(2)
                update = orthogonal(matrices, group["steps"]).view_as(ahead)
                rate = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
                torch._foreach_add_(parameters, list(update.unbind()), alpha=-rate)

    def _nesterov(self, parameters: list[Tensor], momentum: float) -> Tensor:
        """(count, rows, columns, ...): gradients ahead of their running averages."""
        for parameter in parameters:
            if "average" not in self.state[parameter]:
                self.state[parameter]["average"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        averages = [self.state[parameter]["average"] for parameter in parameters]
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        return torch.stack(torch._foreach_lerp(gradients, averages, momentum))


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Nearly the orthogonal factor of each matrix of (count, rows, columns), in bfloat16 where that is fast."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x.bfloat16() if half_is_fast() else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()
