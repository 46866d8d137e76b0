"""The energy a planner descends: how far a predicted frame is from the goal frame, in the encoder's own space."""

from __future__ import annotations

import torch
from torch import Tensor

from models.errors import ShapeError


def latent_energy(tokens: Tensor, goal_tokens: Tensor) -> Tensor:
    """Mean absolute difference over tokens and channels, (B, N, D) against (N, D) -> (B,) float32.

    Both are layer-normed frame representations. Source: arXiv 2506.09985 section 3.3, released energy notebook.
    """
    if tokens.dim() != 3 or tokens.shape[1:] != goal_tokens.shape:
        raise ShapeError(
            "energy compares representations of one size",
            expected=f"(B, {', '.join(str(size) for size in goal_tokens.shape)})",
            found=str(tuple(tokens.shape)),
            remedy="encode the goal image with the same world model",
        )
    return torch.mean(torch.abs(tokens - goal_tokens), dim=(1, 2))


def squared_energy(tokens: Tensor, goal_tokens: Tensor) -> Tensor:
    """Mean squared difference, (B, N, D) against (N, D) -> (B,): what a Gauss-Newton step lowers."""
    return torch.mean((tokens - goal_tokens) ** 2, dim=(1, 2))
