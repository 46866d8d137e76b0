"""Muon: momentum whose direction is orthogonalised, for the matrices of a network (K. Jordan et al., 2024).

`torch.optim.Muon` orthogonalises in bfloat16 on every device. Processors without bfloat16 units then multiply in software,
which takes several times as long as the rest of a small training step; here a CPU works in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic whose slope at 0 is steepest: singular values end between 0.7 and 1.2
ITERATIONS = 5
EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum on 2-D parameters (rows, columns), orthogonalised, times lr * sqrt(max(1, rows / columns)).

    `weight_decay` is decoupled. Matrices of one shape are worked on together.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        flat = [tuple(value.shape) for group in self.param_groups for value in group["params"] if value.ndim != 2]
        if flat:
            raise ValueError(f"Muon takes matrices alone, found a parameter of shape {flat[0]}: give it to another optimizer")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. `closure` is not supported and must be None."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for value in group["params"]:
                if value.grad is not None:
                    alike.setdefault(value.shape, []).append(value)
            for shape, values in alike.items():
                updates = orthogonalised(torch.stack([self._momentum(value, group["momentum"]) for value in values]))
                rate = group["lr"] * math.sqrt(max(1.0, shape[0] / shape[1]))
                for value, update in zip(values, updates, strict=True):
                    value.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)

    def _momentum(self, value: Tensor, momentum: float) -> Tensor:
        gradient = value.grad
        assert gradient is not None
        state = self.state[value]
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(gradient))
        buffer.lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """(N, rows, columns) the nearly orthogonal factors of `matrices`: their singular vectors, with values near 1."""
    tall = matrices.shape[1] > matrices.shape[2]
    kind = torch.float32 if matrices.device.type == "cpu" else torch.bfloat16
    found = (matrices.transpose(1, 2) if tall else matrices).to(kind)
    found = found / torch.linalg.matrix_norm(found, keepdim=True).clamp(min=EPS)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = found @ found.transpose(1, 2)
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), found, beta=first)
    return (found.transpose(1, 2) if tall else found).to(matrices.dtype)
