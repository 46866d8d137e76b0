"""The masked objective: predict the target encoder's layer-normed tokens from the tokens outside the mask, in L1.

Source: arXiv 2506.09985 equation 1; upstream averages the mask strategies' losses with equal weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.encoder import VideoEncoder, layer_norm_features
from models.predictor import MaskedPredictor
from pipelines.pretraining.masks import Masks


class JEPA(nn.Module):
    """The student: encoder and predictor as the one module an engine trains.

    Mask tokens that none of the `strategies` uses, by the predictor's policy, take no gradient, so no optimizer decays
    them.
    """

    def __init__(self, encoder: VideoEncoder, predictor: MaskedPredictor, strategies: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.predictor = predictor
        used = {choice % len(predictor.mask_tokens) for choice in predictor.mask_choices(0, strategies)}
        for number, token in enumerate(predictor.mask_tokens):
            token.requires_grad_(number in used)

    def forward(self, video: Tensor, masks: Sequence[Masks]) -> list[Tensor]:
        """video (B, C, T, H, W) normalised -> for each strategy the predicted target tokens (B, Kt, D)."""
        context_ids = [mask.context_ids for mask in masks]
        target_ids = [mask.target_ids for mask in masks]
        config = self.encoder.config
        grid = (video.shape[2] // config.tubelet_size, *(side // config.patch_size for side in video.shape[3:]))
        context_tokens = self.encoder(video, context_ids)
        return list(self.predictor(context_tokens, context_ids, target_ids, grid=grid))


@torch.no_grad()
def target_tokens(target_encoder: nn.Module, video: Tensor) -> Tensor:
    """What has to be predicted: the target encoder's tokens of the whole clip, layer-normed, (B, N, D) float32."""
    return layer_norm_features(target_encoder(video).float())


def strategy_losses(predictions: Sequence[Tensor], targets: Tensor, masks: Sequence[Masks]) -> Tensor:
    """Mean |prediction - target| of each strategy, (strategies,); the loss is their mean."""
    rows = torch.arange(targets.shape[0], device=targets.device).unsqueeze(1)
    return torch.stack([
        (predicted.float() - targets[rows, mask.target_ids]).abs().mean() for predicted, mask in zip(predictions, masks, strict=True)
    ])  # fmt: skip


def constant_floor(targets: Tensor) -> Tensor:
    """L1 of the best guess that ignores the input, the mean target: a loss that stays there has learned nothing. Scalar."""
    flat = targets.flatten(0, 1)
    return (flat - flat.mean(dim=0)).abs().mean()
