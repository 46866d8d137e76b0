"""From pixels to tokens: patch embeddings of videos and images, and the vectors that tell them apart (2.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed3D(nn.Module):
    """Tubelets to tokens. ``proj`` holds the official Conv3d weight (D, C, tubelet, patch, patch), used as a linear.

    V-JEPA 2.1's image tokenizer is the same with a tubelet of one frame.
    """

    def __init__(self, in_chans: int, embed_dim: int, tubelet_size: int, patch_size: int) -> None:
        super().__init__()
        self.kernel = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_chans, embed_dim, kernel_size=self.kernel, stride=self.kernel)

    def forward(self, video: Tensor, token_ids: Tensor | None) -> Tensor:
        """video (B, C, T, H, W); token_ids (B, K) or None for all; returns (B, K or N, D)."""
        batch, channels, frames, height, width = video.shape
        depth, rows, columns = self.kernel
        tubelets = video.reshape(
            batch, channels, frames // depth, depth, height // rows, rows, width // columns, columns
        ).permute(0, 2, 4, 6, 1, 3, 5, 7)
        pixels = tubelets.reshape(batch, -1, channels * depth * rows * columns)  # (B, N, C * tubelet * patch^2)
        if token_ids is not None:
            pixels = pixels[torch.arange(batch, device=video.device).unsqueeze(1), token_ids]
        return F.linear(pixels.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


def modality_embeddings(dim: int) -> tuple[nn.Parameter, nn.Parameter]:
    """The two learned vectors (1, 1, dim) of images and videos; drawn almost at zero, as upstream does."""
    image, video = (nn.Parameter(torch.empty(1, 1, dim)) for _ in range(2))
    nn.init.normal_(image, std=1e-6)
    nn.init.normal_(video, std=1e-6)
    return image, video
