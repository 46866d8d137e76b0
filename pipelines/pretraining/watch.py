"""Health of a pretraining, measured on the same few clips throughout: does the target encoder still tell them apart?

All that is measured are the targets of these clips, as the objective has them: layer-normed tokens of the whole clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from models.encoder import layer_norm_features
from models.preprocessing import normalise
from models.rope import Grid
from pipelines.identity import stable_seed
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.objective import JEPA, target_tokens
from pipelines.recipes import Phase
from pipelines.shards.loader import Shown
from pipelines.training.engine import Engine
from pipelines.training.metrics import (
    Health,
    halves_recall,
    health,
    label_accuracy,
    lidar,
    mean_cosine,
    rank_me,
    relative_distance,
)

CLIPS = 64
EVERY = 100
LIDAR_EVERY = 5
"""Measurements: its views cost about as many passes through the encoder as all the rest together, and it moves slowly."""
VIEWS = 8
"""Of each clip. The paper takes 50 and many more clips; ranks of different numbers of views do not compare."""


class Watch:
    """The phase's first `CLIPS` training clips over all ranks (the first global batch where that is larger), and what was
    measured on them, in `history`."""

    def __init__(self, engine: Engine, target: nn.Module, phase: Phase, grid: Grid) -> None:
        self.engine, self.target, self.phase, self.grid, self.steps = engine, target, phase, grid, phase.steps
        self.buffered = min(math.ceil(CLIPS / phase.global_batch), phase.steps)
        self.micro = max(1, phase.global_batch // engine.world // phase.accumulation)  # what fits the device at once
        self.history: list[Health] = []
        self._clips: list[Tensor] = []
        self._names: list[tuple[int, int]] = []

    def remember(self, step: int, video: Tensor, shown: Sequence[Shown]) -> None:
        """Keep this rank's clips (b, C, T, H, W) uint8 of `step` (from 0), and where they are from, when it is one of the first.

        Steps come in order. Clips that nothing is known of pass as different clips of one source.
        """
        if step >= self.buffered:
            return
        self._clips.append(video.clone())
        names = [(item.shards, item.clip_id) for item in shown] or [("", f"{self.engine.rank} {step} {place}") for place in range(len(video))]
        self._names += [(stable_seed("source", source), stable_seed("clip", source, clip)) for source, clip in names]

    def due(self, done: int) -> bool:
        """Whether health is measured after `done` steps."""
        return done >= self.buffered and (done == self.buffered or done % EVERY == 0 or done == self.steps)

    @torch.no_grad()
    def measure(self, numbers: Health) -> tuple[Health, str]:
        """What the measures of `pipelines.training.metrics` say now; all ranks take part. `numbers` (mean_loss, data_wait) are told with them.

        `target_std` is over clips at the same place of the grid, so that a target which knows the place alone has none;
        `rank_me` of features of each time step, averaged over its places; `floor` the L1 of a constant guess, the mean target.
        """
        engine, student = self.engine, self.engine.module
        assert isinstance(student, JEPA)
        with engine.autocast():
            targets = torch.cat([target_tokens(self.target, video) for video in self._videos()])  # (b, N, levels * D)
            views = self._views() if len(self.history) % LIDAR_EVERY == 0 else None
        typical = engine.mean(targets.mean(dim=(0, 1)))
        floor = engine.mean((targets - typical).abs().mean())
        spread = engine.mean((targets - engine.mean(targets.mean(dim=0))).square().mean(dim=(0, 1))).sqrt()
        output = targets[..., -student.encoder.config.embed_dim :]  # the last level, which is what everybody uses
        features = engine.gather(output.unflatten(1, (self.grid[0], -1)).mean(dim=2))  # (n, T, D)
        rows = features.flatten(0, 1)
        measured: Health = {
            "rank_me": rank_me(rows - rows.mean(dim=0)), "target_std": float(spread.mean()), "target_std_min": float(spread.min()),
            "cosine": mean_cosine(features.mean(dim=1)), "floor": float(floor),
            "ema_distance": relative_distance(list(self.target.parameters()), list(student.encoder.parameters())),
            **self._neighbours(features), **numbers,
        }  # fmt: skip
        if views is not None:
            measured["lidar"] = lidar(engine.gather(views))
        self.history.append(measured)
        return measured, health(self.history).line

    def _neighbours(self, features: Tensor) -> Health:
        """Whether a clip's neighbours are of its source where the clips have sources, else whether its halves find each other.

        The halves are of time. A mixture's sources are all that is known of any clip without a look at its shards.
        """
        sources, names = self.engine.gather(torch.tensor(self._names, device=self.engine.device)).unbind(dim=1)
        same = names.unsqueeze(0) == names.unsqueeze(1)
        accuracy = label_accuracy(features.mean(dim=1), sources, same)
        if accuracy is not None:
            return {"source_knn": accuracy}
        half = self.grid[0] // 2
        if half == 0:
            return {}
        return {"halves_recall": halves_recall(torch.stack([features[:, :half].mean(dim=1), features[:, -half:].mean(dim=1)], dim=1), same)}

    def _views(self) -> Tensor:
        """Pooled features (b, views, D) of this rank's clips, each clip seen as far as a mask leaves it.

        The masks are those of training, as many views from each strategy; the same for all clips, which then differ by
        themselves alone. The features are the target's: its student is what sees such views in training, but the target is
        what remains of it, and what everything else here measures.
        """
        each = max(1, VIEWS // len(self.phase.masks))
        masks = sample_masks(self.phase.masks, self.grid, seed=0, phase="health", step=0, global_batch=each, truncation="random")
        views = [row.to(self.engine.device) for mask in masks for row in mask.context_ids]
        seen = []
        for video in self._videos():
            tokens = [self.target(video, view.expand(len(video), -1)) for view in views]
            seen.append(torch.stack([layer_norm_features(kept.float()).mean(dim=1) for kept in tokens], dim=1))
        return torch.cat(seen)

    def _videos(self) -> Iterator[Tensor]:
        """This rank's clips as the networks see them, as many at once as in training."""
        for clips in torch.cat(self._clips).split(self.micro):
            yield normalise(clips.to(self.engine.device))
