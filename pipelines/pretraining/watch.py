"""Health of a pretraining, measured on the same few clips throughout: does the target encoder still tell them apart?"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.encoder import layer_norm_features
from models.preprocessing import normalise
from models.rope import Grid
from pipelines.pretraining.objective import constant_floor
from pipelines.recipes import Phase
from pipelines.training.engine import Engine
from pipelines.training.metrics import Health, feature_std, health, rank_me

CLIPS = 64
EVERY = 100


class Watch:
    """The phase's first `CLIPS` training clips over all ranks, and what was measured on them, in `history`."""

    def __init__(self, engine: Engine, target: nn.Module, phase: Phase, grid: Grid) -> None:
        self.engine, self.target, self.grid, self.steps = engine, target, grid, phase.steps
        self.buffered = min(math.ceil(CLIPS / phase.global_batch), phase.steps)
        self.history: list[Health] = []
        self._clips: dict[int, Tensor] = {}

    def remember(self, step: int, video: Tensor) -> None:
        """Keep this rank's clips (b, C, T, H, W) uint8 of `step` (from 0) when it is one of the first."""
        if step < self.buffered:
            self._clips[step] = video.clone()

    def due(self, done: int) -> bool:
        """Whether health is measured after `done` steps."""
        return done >= self.buffered and (done == self.buffered or done % EVERY == 0 or done == self.steps)

    def measure(self, numbers: Health) -> tuple[Health, str]:
        """Rank and spread of the target encoder's features; all ranks take part. `numbers` (mean_loss, data_wait) are told with them."""
        pooled, spread = [], []
        for _, clips in sorted(self._clips.items()):
            with torch.no_grad():
                tokens = self.target(normalise(clips.to(self.engine.device))).float()  # (b, T*H*W, D)
            pooled.append(tokens.unflatten(1, (self.grid[0], -1)).mean(dim=2).flatten(0, 1))  # a row a clip and time step
            targets = layer_norm_features(tokens)
            spread.append(torch.stack([torch.tensor(feature_std(targets.flatten(0, 1))), constant_floor(targets).cpu()]))
        features = self.engine.gather(torch.cat(pooled))
        target_std, floor = self.engine.mean(torch.stack(spread).mean(dim=0).to(self.engine.device)).tolist()
        measured: Health = {"rank_me": rank_me(features - features.mean(dim=0)), "target_std": target_std, "floor": floor, **numbers}
        self.history.append(measured)
        return measured, health(self.history).line
