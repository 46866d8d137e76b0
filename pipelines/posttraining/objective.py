"""The losses of V-JEPA 2-AC (arXiv 2506.09985 section 3; upstream app/vjepa_droid): L1 between layer-normed tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor
from models.encoder import layer_norm_features


def predict_next(predictor: ActionConditionedPredictor, tokens: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
    """tokens (B, T * N, D) layer-normed, actions and poses (B, T, 7) -> the T next frames (B, T * N, D), layer-normed."""
    return layer_norm_features(predictor(tokens, actions, poses))


def one_step_loss(
    predictor: ActionConditionedPredictor, tokens: Tensor, actions: Tensor, poses: Tensor, next_tokens: Tensor
) -> Tensor:
    """Mean L1 of single transitions: tokens, next_tokens (B, N, D), actions, poses (B, 7). Teacher forcing at T = 1."""
    return F.l1_loss(predict_next(predictor, tokens, actions[:, None], poses[:, None]), next_tokens)


def sequence_losses(
    predictor: ActionConditionedPredictor, tokens: Tensor, actions: Tensor, poses: Tensor, rollout: int
) -> tuple[Tensor, Tensor]:
    """(teacher-forcing loss, rollout loss) of tokens (B, T, N, D), actions (B, T - 1, 7), poses (B, T or T - 1, 7).

    Teacher forcing predicts frames 2..T from the true ones. The rollout goes on from its own predictions for `rollout`
    steps with the true actions and, as upstream, the true poses; the gradient flows through the predicted tokens. Its
    first step is the teacher-forced one. The paper adds both with equal weight.
    """
    steps, patches = actions.shape[1], tokens.shape[2]
    frames = tokens.flatten(1, 2)  # (B, T * N, D)
    forced = predict_next(predictor, frames[:, : steps * patches], actions, poses[:, :steps])
    teacher_loss = F.l1_loss(forced, frames[:, patches:])
    predicted = [forced[:, :patches]]
    for done in range(1, rollout):
        context = torch.cat([frames[:, :patches], *predicted], dim=1)
        following = predict_next(predictor, context, actions[:, : done + 1], poses[:, : done + 1])
        predicted.append(following[:, -patches:])
    rolled = torch.cat(predicted, dim=1)
    return teacher_loss, F.l1_loss(rolled, frames[:, patches : patches + rolled.shape[1]])
