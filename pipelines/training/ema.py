"""The target encoder: an exponential moving average of the student, always float32 and outside the engine.

In bfloat16 a momentum of 0.99925 would stall: the change is below half a unit in the last place.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def make_target(source: nn.Module) -> nn.Module:
    """A float32 copy of `source` without gradients, in eval mode."""
    target = copy.deepcopy(source).float().eval()
    return target.requires_grad_(False)


@torch.no_grad()
def update_(target: Sequence[Tensor], source: Sequence[Tensor], momentum: float) -> None:
    """target = momentum * target + (1 - momentum) * source, in place, for parameters in the same order.

    Upstream averages parameters only; the networks have no buffers.
    """
    same = [tensor.detach().to(mean.dtype) for tensor, mean in zip(source, target, strict=True)]
    torch._foreach_lerp_(list(target), same, 1.0 - momentum)
