"""What the training loop trains: the student against its averaged target, and how it is watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.preprocessing import normalise
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.objective import JEPA, strategy_losses, target_tokens
from pipelines.pretraining.watch import Watch
from pipelines.recipes import Phase, PretrainRecipe
from pipelines.shards.loader import Batch
from pipelines.training.ema import update_
from pipelines.training.engine import Engine
from pipelines.training.metrics import Health

TARGET = "target_encoder.safetensors"


class Pretraining:
    """State of one phase outside the engine: the target encoder, and the watch over its health."""

    def __init__(self, engine: Engine, target: nn.Module, recipe: PretrainRecipe, phase_name: str, seed: int, identity: str) -> None:
        self.engine, self.recipe, self.phase_name, self.seed, self.identity = engine, recipe, phase_name, seed, identity
        self.phase: Phase = recipe.pretrain if phase_name == "pretrain" else recipe.cooldown
        student = engine.module
        assert isinstance(student, JEPA)
        config = student.encoder.config
        self.grid = (self.phase.frames // config.tubelet_size, self.phase.height // config.patch_size, self.phase.width // config.patch_size)
        self.target = target.to(engine.device)
        self.share = self.phase.global_batch // engine.world
        self.watch = Watch(engine, self.target, self.phase, self.grid)
        self._averages, self._followed = list(self.target.parameters()), list(student.encoder.parameters())
        self._tokens = 0

    def losses(self, step: int, batch: Batch) -> Tensor:
        """L1 of each mask strategy (k,) of this rank's clips."""
        self.watch.remember(step, batch.video)
        masks = sample_masks(
            self.phase.masks, self.grid, seed=self.seed, phase=self.phase_name, step=step, global_batch=self.phase.global_batch,
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
        return {"identity": self.identity, "phase": self.phase_name, "seed": self.seed, "world": self.engine.world, "health": self.watch.history}

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.target.load_state_dict(load_file(folder / TARGET), strict=True)
        self.watch.history = list(state["health"])

    def measure(self, done: int, numbers: Health) -> tuple[Health, str] | None:
        """Health after `done` steps, as numbers and as a line, or None when it is not due."""
        return self.watch.measure(numbers) if self.watch.due(done) else None
