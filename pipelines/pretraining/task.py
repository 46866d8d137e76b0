"""What the training loop trains: the student against its averaged target, and how it is watched."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.encoder import layer_norm_features
from models.preprocessing import normalise
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.objective import JEPA, constant_floor, strategy_losses, target_tokens
from pipelines.recipes import Phase, PretrainRecipe
from pipelines.shards.loader import Batch
from pipelines.training.ema import update_
from pipelines.training.engine import Engine
from pipelines.training.metrics import Health, feature_std, health, rank_me

HEALTH_CLIPS = 64
HEALTH_EVERY = 100
TARGET = "target_encoder.safetensors"


class Pretraining:
    """State of one phase outside the engine: the target encoder, and the fixed clips on which health is measured."""

    def __init__(self, engine: Engine, target: nn.Module, recipe: PretrainRecipe, phase_name: str, seed: int, identity: str) -> None:
        self.engine, self.recipe, self.phase_name, self.seed, self.identity = engine, recipe, phase_name, seed, identity
        self.phase: Phase = recipe.pretrain if phase_name == "pretrain" else recipe.cooldown
        student = engine.module
        assert isinstance(student, JEPA)
        config = student.encoder.config
        self.grid = (self.phase.frames // config.tubelet_size, self.phase.height // config.patch_size, self.phase.width // config.patch_size)
        self.target = target.to(engine.device)
        self.share = self.phase.global_batch // engine.world
        self.buffered = min(math.ceil(HEALTH_CLIPS / self.phase.global_batch), self.phase.steps)
        self.buffer: dict[int, Tensor] = {}
        self.history: list[Health] = []
        self._averages, self._followed = list(self.target.parameters()), list(student.encoder.parameters())
        self._tokens = 0

    def losses(self, step: int, batch: Batch) -> Tensor:
        """L1 of each mask strategy (k,) of this rank's clips."""
        if step < self.buffered:
            self.remember(step, batch)
        masks = sample_masks(
            self.recipe.masks, self.grid, seed=self.seed, phase=self.phase_name, step=step, global_batch=self.phase.global_batch,
            first=self.engine.rank * self.share, count=self.share, truncation=self.recipe.mask_truncation,
        )  # fmt: skip
        masks = [mask.to(self.engine.device) for mask in masks]
        video = normalise(batch.video.to(self.engine.device))
        targets = target_tokens(self.target, video)
        self._tokens = targets[..., 0].numel() + sum(mask.context_ids.numel() + mask.target_ids.numel() for mask in masks)
        return strategy_losses(self.engine(video, masks), targets, masks)

    def moved(self, momentum: float) -> None:
        update_(self._averages, self._followed, momentum)

    def samples(self, batch: Batch) -> list[str]:
        return [f"{index} (clip {clip})" for index, clip in zip(batch.global_indices.tolist(), batch.clip_ids, strict=True)]

    def work(self, batch: Batch) -> tuple[int, int]:
        return len(batch.clip_ids), self._tokens

    def fill(self, folder: Path) -> dict[str, Any]:
        save_file({name: value.cpu().contiguous() for name, value in self.target.state_dict().items()}, folder / TARGET)
        return {"identity": self.identity, "phase": self.phase_name, "seed": self.seed, "world": self.engine.world, "health": self.history}

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.target.load_state_dict(load_file(folder / TARGET), strict=True)
        self.history = list(state["health"])

    def remember(self, step: int, batch: Batch) -> None:
        """Keep this batch: health is measured on the phase's first `HEALTH_CLIPS` training clips throughout."""
        self.buffer[step] = batch.video.clone()

    def measure(self, step: int, mean_loss: float, data_wait: float) -> tuple[Health, str] | None:
        """Rank and spread of the target encoder's features on the fixed clips, over all ranks."""
        if step < self.buffered or not (step == self.buffered or step % HEALTH_EVERY == 0 or step == self.phase.steps):
            return None
        pooled, spread = [], []
        for _, clips in sorted(self.buffer.items()):
            with torch.no_grad():
                tokens = self.target(normalise(clips.to(self.engine.device))).float()  # (b, T*H*W, D)
            pooled.append(tokens.unflatten(1, (self.grid[0], -1)).mean(dim=2).flatten(0, 1))  # a row a clip and time step
            targets = layer_norm_features(tokens)
            spread.append(torch.stack([torch.tensor(feature_std(targets.flatten(0, 1))), constant_floor(targets).cpu()]))
        features = self.engine.gather(torch.cat(pooled))
        target_std, floor = self.engine.mean(torch.stack(spread).mean(dim=0).to(self.engine.device)).tolist()
        measured: Health = {
            "rank_me": rank_me(features - features.mean(dim=0)), "target_std": target_std, "floor": floor, "mean_loss": mean_loss, "data_wait": data_wait,
        }  # fmt: skip
        self.history.append(measured)
        return measured, health(self.history).line
