"""The masked objective: predict the target encoder's layer-normed tokens from the tokens outside the mask, in L1.

Sources: arXiv 2506.09985 equation 1; upstream averages the mask strategies' losses with equal weight. For V-JEPA 2.1, which
predicts several levels of the target encoder and the context's tokens too, arXiv 2603.14482 and app/vjepa_2_1 of
facebookresearch/vjepa2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.encoder import EncoderConfig, VideoEncoder, layer_norm_features
from models.predictor import MaskedPredictor
from models.rope import Grid
from pipelines.errors import InputError
from pipelines.pretraining.masks import Masks
from pipelines.recipes import ContextLoss

IMAGE_PARTS = ("patch_embed_img", "img_mod_embed")
"""What V-JEPA 2.1 keeps for single images. Clips are videos here, a still is one of equal frames, so these are never used."""


class Predictions(NamedTuple):
    """Of each strategy `targets` (B, Kt, levels * D) and `context` (B, Kc, levels * D), which is empty without a context output.

    Uncut samples lie in one row, as their ids do in `Masks`.
    """

    targets: list[Tensor]
    context: list[Tensor]


class JEPA(nn.Module):
    """The student: encoder and predictor as the one module an engine trains.

    Mask tokens that none of the `strategies` uses, by the predictor's policy, and `IMAGE_PARTS` take no gradient, so no
    optimizer decays them. `context_loss`: whether the context's tokens are predicted too; raises `InputError` unless the predictor is made for that.
    """

    def __init__(self, encoder: VideoEncoder, predictor: MaskedPredictor, strategies: int, context_loss: bool = False) -> None:
        super().__init__()
        check_context_output(predictor.config.context_output, context_loss)
        self.encoder = encoder
        self.predictor = predictor
        used = {choice % len(predictor.mask_tokens) for choice in predictor.mask_choices(0, strategies)}
        for number, token in enumerate(predictor.mask_tokens):
            token.requires_grad_(number in used)
        for name, value in self.named_parameters():
            if any(part in name for part in IMAGE_PARTS):
                value.requires_grad_(False)

    def forward(self, video: Tensor, masks: Sequence[Masks]) -> Predictions:
        """video (B, C, T, H, W) normalised, and the masks of each strategy; all groups of tokens share one pass."""
        config = self.encoder.config
        grid = (video.shape[2] // config.tubelet_size, *(side // config.patch_size for side in video.shape[3:]))
        pairs = [pair for mask in masks for pair in mask.groups()]
        context_ids, target_ids = [context for context, _ in pairs], [targets for _, targets in pairs]
        each = len(pairs) // len(masks)  # groups of a strategy: one, or uncut one a sample
        samples = None if masks[0].context_lengths is None else list(range(each)) * len(masks)
        choices = [choice for choice in self.predictor.mask_choices(0, len(masks)) for _ in range(each)]
        context_tokens = self.encoder(video, context_ids, all_levels=True, samples=samples)
        predicted = self.predictor(context_tokens, context_ids, target_ids, choices, grid)
        targets, context = predicted if self.predictor.config.context_output else (predicted, [])
        return Predictions(_joined(targets, each), _joined(context, each))


def _joined(groups: list[Tensor], each: int) -> list[Tensor]:
    """Groups of one strategy in one row."""
    return groups if each == 1 else [torch.cat(groups[begin : begin + each], dim=1) for begin in range(0, len(groups), each)]


def check_context_output(context_output: bool, context_loss: bool) -> None:
    """Raise `InputError` unless a phase with a loss on the context has a predictor with an output for it, and the reverse."""
    if context_output == context_loss:
        return
    raise InputError(
        "the loss on the context needs an output of the predictor" if context_loss else "the predictor's output for the context would never be trained",
        expected="context_loss in every phase and context_output in the predictor, or neither",
        found=f"context_output {context_output}, {'with' if context_loss else 'without'} a context_loss in the phase",
        remedy="set predictor.context_output: true in the recipe" if context_loss else "give the phase a context_loss, or set predictor.context_output: false",
    )  # fmt: skip


@torch.no_grad()
def target_tokens(target_encoder: nn.Module, video: Tensor) -> Tensor:
    """What has to be predicted: the target encoder's tokens of the whole clip, (B, N, levels * D) float32, each level layer-normed by itself."""
    config = target_encoder.config
    assert isinstance(config, EncoderConfig)
    tokens = target_encoder(video, all_levels=True).float()
    return layer_norm_features(tokens.unflatten(-1, (-1, config.embed_dim))).flatten(-2)


def strategy_losses(predictions: Predictions, targets: Tensor, masks: Sequence[Masks]) -> Tensor:
    """Mean |prediction - target| over the target tokens of each strategy, (strategies,); the loss is their mean.

    Times the mask's share, so that the mean over ranks and micro-batches is that over the global batch's tokens.
    """
    return torch.stack([
        (predicted.float() - mask.targets_of(targets)).abs().mean() * mask.target_share
        for predicted, mask in zip(predictions.targets, masks, strict=True)
    ])  # fmt: skip


def context_losses(predictions: Predictions, targets: Tensor, masks: Sequence[Masks], grid: Grid, by_distance: bool) -> Tensor:
    """Mean |prediction - target| over the context tokens of each strategy, (strategies,): V-JEPA 2.1's second loss, before its weight.

    `by_distance`: every token's error is multiplied by 1 / sqrt(d) before the mean, d being its distance to the nearest target token in
    patches and tubelets, at least 1. The mean is over tokens, as in paper and released code: it is not divided by the sum of the
    factors, so that a context far from all targets counts for less as a whole.
    """
    losses = []
    for predicted, mask in zip(predictions.context, masks, strict=True):
        errors = (predicted.float() - mask.context_of(targets)).abs().mean(dim=-1)
        if by_distance:
            errors = errors * mask.context_of(squared_distances(mask, grid)) ** -0.25
        losses.append(errors.mean() * mask.context_share)
    return torch.stack(losses)


def context_weight(rule: ContextLoss, step: int) -> float:
    """What the loss on the context is multiplied by at `step` (from 0): 0 until `begins`, linear to the full weight at `full`."""
    if step < rule.begins:
        return 0.0
    return rule.weight if step >= rule.full else rule.weight * (step - rule.begins) / (rule.full - rule.begins)


@torch.no_grad()
def squared_distances(mask: Masks, grid: Grid) -> Tensor:
    """Squared Euclidean distance (B, T*H*W) float32 of every token of the grid (T, H, W) to its sample's nearest target token.

    One axis at a time: a minimum over few places each, where comparing all pairs of tokens would take gigabytes for long clips.
    """
    ids = mask.target_ids
    nearest = torch.full((mask.batch, grid[0] * grid[1] * grid[2]), torch.inf, device=ids.device)
    nearest[mask.target_samples(), ids] = 0
    nearest = nearest.unflatten(1, grid)
    for axis, size in enumerate(grid, start=1):
        place = torch.arange(size, device=ids.device, dtype=torch.float32)
        apart = (place.unsqueeze(1) - place) ** 2
        nearest = (nearest.movedim(axis, -1).unsqueeze(-2) + apart).amin(dim=-1).movedim(-1, axis)
    return nearest.flatten(1)


def constant_floor(targets: Tensor) -> Tensor:
    """L1 of a guess that ignores the input, the mean target: a loss that stays there has learned nothing. Scalar."""
    flat = targets.flatten(0, 1)
    return (flat - flat.mean(dim=0)).abs().mean()
