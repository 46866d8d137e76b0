"""Motion probes: which way did the hand move? Windows of frames, each also played backwards.

Both directions of a window hold the same frames, so features that ignore order are exactly at chance on the signs. What
a single frame tells (where the arm is says where it can still go) is the floor to beat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from models.probes import AttentiveProbe, AttentiveProbeConfig
from pipelines.evaluation.ridge import choose_ridge
from pipelines.identity import stable_seed

Array = NDArray[np.float64]
CLEAR_M = 0.02
"""Signs are asked only where the hand moved at least this far along the axis."""
DIRECTIONS = 6
_BATCH = 32
_RATE = 3e-3
_DECAY = 0.2
_INIT_STD = 0.1


@dataclass(frozen=True, eq=False)
class MotionLabels:
    """signs (n, 3) of dx, dy, dz in -1, 0, +1 (0: not clear, not scored); directions (n,) the clearest signed axis, or -1."""

    signs: Array
    directions: NDArray[np.int64]

    @classmethod
    def of(cls, moved: Array) -> MotionLabels:
        """From end minus start (n, 3) in m."""
        signs = np.where(np.abs(moved) > CLEAR_M, np.sign(moved), 0.0)
        axis = np.abs(moved).argmax(1)
        rows = np.arange(len(moved))
        directions = np.where(np.abs(moved[rows, axis]) > CLEAR_M, 2 * axis + (moved[rows, axis] > 0), -1)
        return cls(signs, directions.astype(np.int64))

    def score(self, sign_outputs: Array, direction_outputs: Array) -> tuple[Array, Array]:
        """Per window: share of clear axes with the right sign (n,), and whether the direction is right (n,); NaN: not scored."""
        asked = self.signs != 0
        right = ((sign_outputs > 0) == (self.signs > 0)) & asked
        with np.errstate(invalid="ignore", divide="ignore"):
            signs = right.sum(1) / asked.sum(1)
        directions = (direction_outputs.argmax(1) == self.directions).astype(float)
        return signs, np.where(self.directions >= 0, directions, np.nan)


def ridge_scores(
    train: Array, train_labels: MotionLabels, train_episodes: NDArray[np.int64], held: Array, held_labels: MotionLabels, seed: int
) -> tuple[Array, Array]:
    """Scores per held-out window (see `MotionLabels.score`) of one ridge from features (n, d) to signs and directions."""
    one_hot = np.zeros((len(train), DIRECTIONS))
    clear = train_labels.directions >= 0
    one_hot[clear, train_labels.directions[clear]] = 1.0
    ridge = choose_ridge(train, np.concatenate([train_labels.signs, one_hot], axis=1), train_episodes, seed)
    outputs = ridge.predict(held)
    return held_labels.score(outputs[:, :3], outputs[:, 3:])


def attentive_scores(
    train: Tensor, train_labels: MotionLabels, held: Tensor, held_labels: MotionLabels, *, epochs: int, seed: int
) -> tuple[Array, Array]:
    """Scores per held-out window of an attentive probe on tokens (n, t, N, D).

    One cross-attention block (the paper has three self-attention blocks before it), because the whole probe has seconds
    here. It alone cannot tell a token's time and place, so each gets a fixed random code, as large as the features
    (signs right without it: 0.64, with it: 0.79). Tokens lose the mean of their place over windows and time, the same in
    both directions of play, and are scaled per channel: a still background otherwise keeps the probe of a trained
    encoder at chance. AdamW with cosine decay.
    """
    mean = train.mean((0, 1), keepdim=True)
    std = (train - mean).std((0, 1, 2)).clamp_min(1e-6)
    _, steps, patches, dim = train.shape
    codes = torch.Generator().manual_seed(stable_seed("attentive codes", seed))
    code = torch.randn(steps, 1, dim, generator=codes) + torch.randn(1, patches, dim, generator=codes)
    train, held = ((part - mean) / std + code for part in (train, held))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("attentive probe", seed))
        config = AttentiveProbeConfig(embed_dim=dim, num_classes=3 + DIRECTIONS, num_heads=_heads(dim), depth=1, init_std=_INIT_STD)
        probe = AttentiveProbe(config)
    signs, directions = torch.from_numpy(train_labels.signs).float(), torch.from_numpy(train_labels.directions)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=_RATE, weight_decay=_DECAY, fused=True)
    batches = -(-len(train) // _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs * batches))
    generator = torch.Generator().manual_seed(stable_seed("attentive order", seed))
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=generator).split(_BATCH):
            outputs = probe(train[rows].flatten(1, 2))
            loss = _loss(outputs, signs[rows], directions[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        outputs = torch.cat([probe(part.flatten(1, 2)) for part in held.split(_BATCH)])
    values = outputs.double().numpy()
    return held_labels.score(values[:, :3], values[:, 3:])


def _loss(outputs: Tensor, signs: Tensor, directions: Tensor) -> Tensor:
    asked = signs != 0
    right = F.binary_cross_entropy_with_logits(outputs[:, :3], (signs > 0).float(), reduction="none")
    sign_loss = (right * asked).sum() / asked.sum().clamp_min(1)
    clear = directions >= 0
    direction_loss = F.cross_entropy(outputs[:, 3:], directions.clamp_min(0), reduction="none")
    return sign_loss + (direction_loss * clear).sum() / clear.sum().clamp_min(1)


def _heads(dim: int) -> int:
    """Heads of about 32 numbers that divide the width."""
    return next(count for count in range(max(1, dim // 32), 0, -1) if dim % count == 0)
