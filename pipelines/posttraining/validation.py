"""Does the predictor see the action? One-step losses on held-out episodes, with true, zero and shuffled actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor
from pipelines.identity import stable_seed
from pipelines.posttraining.features import FrameFeatures
from pipelines.posttraining.objective import predict_next

RESAMPLES = 1000
_BATCH = 64


@torch.inference_mode()
def transition_losses(
    predictor: ActionConditionedPredictor, features: FrameFeatures, rows: Tensor, seed: int
) -> dict[str, np.ndarray]:
    """L1 (W,) of each transition that starts at the frames `rows` (W,), under each kind of action.

    true, zero, shuffled (the action of another transition) and copy (predicting no change at all).
    """
    order = np.random.default_rng(stable_seed("shuffled actions", seed)).permutation(len(rows))
    other = torch.empty_like(rows)
    other[order] = rows[np.roll(order, 1)]  # a cycle: nobody keeps its own action
    actions = {"true": features.actions[rows], "shuffled": features.actions[other]}
    actions["zero"] = torch.zeros_like(actions["true"])
    losses: dict[str, list[Tensor]] = {name: [] for name in (*actions, "copy")}
    for part in torch.arange(len(rows)).split(_BATCH):
        now, after = features.tokens[rows[part]].float(), features.tokens[rows[part] + 1].float()
        poses = features.poses[rows[part], None]
        for name, values in actions.items():
            predicted = predict_next(predictor, now, values[part, None], poses)
            losses[name].append((predicted - after).abs().mean((1, 2)))
        losses["copy"].append((now - after).abs().mean((1, 2)))
    return {name: torch.cat(values).double().numpy() for name, values in losses.items()}


def validate(
    predictor: ActionConditionedPredictor, features: FrameFeatures, episodes: Sequence[int], seed: int
) -> dict[str, Any]:
    """Mean losses and their ratios, each {value, low, high} with a 95 % bootstrap interval over whole episodes."""
    rows = features.windows(episodes, 2)
    losses = transition_losses(predictor, features, rows, seed)
    owner = features.episode_of(rows).numpy()
    names, index = np.unique(owner, return_inverse=True)
    counts = np.bincount(index).astype(float)
    sums = {name: np.bincount(index, weights=values) for name, values in losses.items()}
    random = np.random.default_rng(stable_seed("bootstrap", seed))
    weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    resampled = {name: weights @ total / (weights @ counts) for name, total in sums.items()}
    means = {name: float(total.sum() / counts.sum()) for name, total in sums.items()}
    table: dict[str, Any] = {name: _interval(means[name], resampled[name]) for name in means}
    for base in ("zero", "shuffled", "copy"):
        ratio = resampled["true"] / resampled[base]
        table[f"true_over_{base}"] = _interval(means["true"] / means[base], ratio)
    return {**table, "transitions": len(rows), "episodes": len(names)}


def _interval(value: float, resampled: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}
