"""One predictor being trained: its updates are pure functions of (seed, step), so a resumed run is the same run."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.action_predictor import ActionConditionedPredictor, ActionPredictorConfig
from models.encoder import EncoderConfig
from pipelines.errors import InputError, TrainingError
from pipelines.identity import stable_seed
from pipelines.posttraining.features import FrameFeatures
from pipelines.posttraining.objective import one_step_loss, sequence_losses
from pipelines.recipes import PosttrainRecipe
from pipelines.training import checkpoint
from pipelines.training.muon import Muon
from pipelines.training.schedule import learning_rate

Optimizer = Literal["adamw", "muon"]
PREDICTOR, MOMENTS = "predictor.safetensors", "optimizers.safetensors"
MUON_RATE = 10.0 / 3.0
"""Muon's learning rate as a multiple of AdamW's (0.02 beside 6e-3)."""


def new_predictor(recipe: PosttrainRecipe, encoder: EncoderConfig, seed: int) -> ActionConditionedPredictor:
    """A freshly initialised predictor of the recipe's shape for this encoder; the caller's random state is untouched."""
    config = ActionPredictorConfig(
        embed_dim=encoder.embed_dim, predictor_embed_dim=recipe.predictor_embed_dim, depth=recipe.depth,
        num_heads=recipe.num_heads, img_size=(recipe.height, recipe.width), patch_size=encoder.patch_size,
        tubelet_size=encoder.tubelet_size, rope_layout=encoder.rope_layout, residual=recipe.residual,
        init_std=recipe.init_std, action_scale=recipe.action_scale, state_center=recipe.state_center,
        state_scale=recipe.state_scale,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("predictor", seed))
        return ActionConditionedPredictor(config)


def optimizers(
    predictor: ActionConditionedPredictor, recipe: PosttrainRecipe, kind: Optimizer
) -> list[tuple[torch.optim.Optimizer, float]]:
    """Optimizers, each with the factor on the scheduled learning rate.

    adamw is the paper's: decay on matrices only. muon gives the blocks' matrices orthogonalised momentum updates and
    leaves the rest to AdamW: fewer updates until the predictor sees the action (measured in docs/findings.md).
    """
    named = [(name, value) for name, value in predictor.named_parameters() if "extrinsics" not in name]
    matrices = [value for name, value in named if value.ndim > 1 and "blocks" in name]
    others = [value for name, value in named if value.ndim > 1 and "blocks" not in name]
    vectors = [value for _, value in named if value.ndim <= 1]
    if kind == "adamw":
        others, matrices = others + matrices, []
    groups = [{"params": others, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    made: list[tuple[torch.optim.Optimizer, float]] = [(torch.optim.AdamW(groups, fused=True), 1.0)]
    if matrices:
        made.append((Muon(matrices), MUON_RATE))
    return made


@dataclass
class Trainer:
    """State of one training. `step` counts finished updates; `update` does the next one.

    The first `one_step_share` of the updates sees single transitions; the rest sees `sequence` frames with teacher
    forcing and a rollout of `rollout` steps, on as many predicted frames per update.
    """

    recipe: PosttrainRecipe
    features: FrameFeatures
    episodes: Sequence[int]
    predictor: ActionConditionedPredictor
    seed: int
    kind: Optimizer = "adamw"
    step: int = 0
    _optimizers: list[tuple[torch.optim.Optimizer, float]] = field(init=False)
    _windows: dict[int, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self._optimizers = optimizers(self.predictor, self.recipe, self.kind)
        self._windows = {frames: self.features.windows(self.episodes, frames) for frames in (2, self.recipe.sequence)}
        for frames, windows in self._windows.items():
            if not len(windows) and (frames == 2 or self.recipe.one_step_share < 1.0):
                raise TrainingError(
                    "no training episode is long enough", expected=f"at least {frames} frames", found="shorter episodes",
                    remedy="record longer episodes, or set posttraining.one_step_share to 1",
                )  # fmt: skip

    def update(self) -> dict[str, float]:
        """One optimizer step; returns its losses and learning rate. Raises TrainingError when the loss is not finite."""
        recipe, number = self.recipe, self.step + 1
        rate = learning_rate(recipe.learning_rate, number, recipe.steps)
        random = np.random.default_rng(stable_seed("posttraining", self.seed, number))
        one_step = number <= math.ceil(recipe.one_step_share * recipe.steps)
        loss, parts = self._one_step(random) if one_step else self._sequence(random)
        for optimizer, factor in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        if not bool(torch.isfinite(loss)):
            raise TrainingError(
                f"post-training diverged at step {number}", expected="a finite loss", found=str(loss.item()),
                remedy="lower posttraining.learning_rate",
            )  # fmt: skip
        loss.backward()
        for optimizer, _ in self._optimizers:
            optimizer.step()
        self.step = number
        return {**parts, "learning_rate": rate}

    def _draw(self, random: np.random.Generator, frames: int, batch: int) -> Tensor:
        """(batch, frames) indices of consecutive frames, drawn with replacement."""
        windows = self._windows[frames]
        firsts = windows[torch.from_numpy(random.integers(0, len(windows), batch))]
        return firsts[:, None] + torch.arange(frames)

    def _one_step(self, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        now, after = self._draw(random, 2, self.recipe.batch).unbind(1)
        data = self.features
        loss = one_step_loss(
            self.predictor, data.tokens[now].float(), data.actions[now], data.poses[now], data.tokens[after].float()
        )
        return loss, {"loss": loss.item()}

    def _sequence(self, random: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        frames = self.recipe.sequence
        rows = self._draw(random, frames, max(1, self.recipe.batch // (frames - 1)))
        data = self.features
        forced, rolled = sequence_losses(
            self.predictor, data.tokens[rows].float(), data.actions[rows[:, :-1]], data.poses[rows],
            min(self.recipe.rollout, frames - 1),
        )  # fmt: skip
        return forced + rolled, {"loss": forced.item(), "rollout_loss": rolled.item()}

    def save(self, folder: Path) -> None:
        """Write checkpoint `step` under `folder`, whole or not at all; the one before is kept."""
        draft = folder / f".draft-{checkpoint.name_of(self.step)}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in self.predictor.state_dict().items()}, draft / PREDICTOR)
        moments = {
            f"{place}.{parameter}.{name}": value.contiguous()
            for place, (optimizer, _) in enumerate(self._optimizers)
            for parameter, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(moments, draft / MOMENTS, metadata={"kind": self.kind})
        checkpoint.seal(draft)
        final = folder / checkpoint.name_of(self.step)
        shutil.rmtree(final, ignore_errors=True)
        draft.rename(final)
        for old in sorted(folder.glob("step-*"))[: -checkpoint.KEPT]:
            shutil.rmtree(old)

    def resume(self, folder: Path) -> bool:
        """Go on from the newest whole checkpoint; False when there is none. Raises InputError on another optimizer's."""
        path = checkpoint.newest(folder)
        if path is None:
            return False
        with safe_open(path / MOMENTS, framework="pt") as file:
            kind = (file.metadata() or {}).get("kind")
        if kind != self.kind:
            raise InputError(
                f"{path} was written by another optimizer", expected=self.kind, found=str(kind),
                remedy="delete the work folder to start again",
            )  # fmt: skip
        self.predictor.load_state_dict(load_file(path / PREDICTOR))
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._optimizers]
        for key, value in load_file(path / MOMENTS).items():
            place, parameter, name = key.split(".")
            states[int(place)].setdefault(int(parameter), {})[name] = value
        for (optimizer, _), state in zip(self._optimizers, states, strict=True):
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self.step = checkpoint.step_of(path)
        return True
