"""What the training loop trains: the student against its averaged target, and how it is watched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils import get_total_norm as total_norm

from models.flops import encoder_flops, predictor_flops, train_step_flops
from models.preprocessing import normalise
from pipelines.errors import InputError
from pipelines.pretraining.masks import Masks, sample_masks
from pipelines.pretraining.objective import JEPA, context_losses, context_weight, strategy_losses, target_tokens
from pipelines.pretraining.watch import Watch
from pipelines.recipes import Phase, PretrainRecipe
from pipelines.shards.loader import Batch
from pipelines.training.checkpoint import Beside
from pipelines.training.ema import update_
from pipelines.training.engine import Engine, on_cpu
from pipelines.training.loop import Work
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
        if self.phase.global_batch % (engine.world * self.phase.accumulation):
            raise InputError(
                "the global batch cannot be shared out", expected="a multiple of ranks times micro-batches",
                found=f"global batch {self.phase.global_batch}, {engine.world} ranks, {self.phase.accumulation} micro-batches",
                remedy="change global_batch or accumulation of the phase, or the number of ranks",
            )  # fmt: skip
        self.share = self.phase.global_batch // engine.world
        self.micro = self.share // self.phase.accumulation
        self.watch = Watch(engine, self.target, self.phase, self.grid)
        self.judged = len(self.phase.masks)
        self.names = tuple(f"loss_{number}" for number in range(self.judged))
        if self.phase.context_loss is not None:
            self.names += tuple(f"context_loss_{number}" for number in range(self.judged))
        self._config, self._predictor = config, student.predictor.config
        self._averages, self._followed = list(self.target.parameters()), list(student.encoder.parameters())
        self._weights = [value for value in student.parameters() if value.requires_grad]
        self._before: list[Tensor] = []
        self._update = float("nan")
        self._work = Work(0, 0, 0)

    def losses(self, step: int, batch: Batch, part: int) -> tuple[Tensor, Tensor]:
        """What is minimised, a scalar, and the L1 of each mask strategy (k,), of micro-batch `part` of this rank's clips; with a loss on
        the context that of each strategy follows, unweighted (2k,)."""
        first = part * self.micro
        if part == 0:
            self.watch.remember(step, batch.video, batch.shown)
            self._work = Work(0, 0, 0)
        masks = sample_masks(
            self.phase.masks, self.grid, seed=self.seed, phase=self.phase_name, step=step, global_batch=self.phase.global_batch,
            first=self.engine.rank * self.share + first, count=self.micro, truncation=self.recipe.mask_truncation, group=self.phase.mask_group,
        )  # fmt: skip
        masks = [mask.to(self.engine.device) for mask in masks]
        video = normalise(batch.video[first : first + self.micro].to(self.engine.device))
        with self.engine.autocast():  # as upstream, and half of a large step's work
            targets = target_tokens(self.target, video)
        predictions = self.engine(video, masks)
        losses = strategy_losses(predictions, targets, masks)
        self._count(masks)
        rule = self.phase.context_loss
        if rule is None:
            return losses.mean(), losses
        context = context_losses(predictions, targets, masks, self.grid, rule.by_distance)
        return losses.mean() + context_weight(rule, step) * context.mean(), torch.cat([losses, context])

    def _count(self, masks: Sequence[Masks]) -> None:
        """Add one micro-batch to this step's work."""
        pairs = [pair for mask in masks for pair in mask.groups()]
        contexts, targets = ([ids.shape[1] for ids in side] for side in zip(*pairs, strict=True))
        rows = len(pairs[0][0])  # samples of a group: all, or uncut one
        student = [encoder_flops(self._config, rows, self.grid, contexts), predictor_flops(self._predictor, rows, contexts, targets)]
        flops = train_step_flops(student, [encoder_flops(self._config, self.micro, self.grid)])
        tokens = self.micro * math.prod(self.grid) + rows * (sum(contexts) + sum(targets))
        self._work = Work(self._work.clips + self.micro, self._work.tokens + tokens, self._work.flops + flops)

    def work(self, batch: Batch) -> Work:
        return self._work

    def about_to_move(self, step: int) -> None:
        """Keep the weights when the length of this step is to be measured."""
        self._before = [value.detach().clone() for value in self._weights] if self.watch.due(step + 1) else []

    def moved(self, momentum: float) -> None:
        if self._before:
            steps = [value.detach() - before for value, before in zip(self._weights, self._before, strict=True)]
            self._update = float(total_norm(steps) / total_norm(self._before))
            self._before = []
        update_(self._averages, self._followed, momentum)

    def beside(self) -> Beside:
        content = {"identity": self.identity, "phase": self.phase_name, "seed": self.seed, "world": self.engine.world, "health": self.watch.history}
        return {TARGET: on_cpu(self.target.state_dict())}, content

    def restore(self, folder: Path, state: dict[str, Any]) -> None:
        self.target.load_state_dict(load_file(folder / TARGET), strict=True)
        self.watch.history = list(state["health"])

    def measure(self, done: int, numbers: Health) -> tuple[Health, str] | None:
        """Health after `done` steps, as numbers and as a line, or None when it is not due."""
        if not self.watch.due(done):
            return None
        return self.watch.measure({**numbers, **({"update_norm": self._update} if math.isfinite(self._update) else {})})
