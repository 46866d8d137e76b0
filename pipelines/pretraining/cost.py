"""What a recipe's pretraining costs: FLOPs, tokens and GPU-hours of each phase, from the masks that training really draws.

    python -m pipelines.pretraining.cost vitg16-384 [more recipes] [--peak 989e12] [--mfu 0.4] [--groups 24 6]

`--groups` cuts the masks to the shortest of so many samples, one number a phase, in the place of what the recipe says.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoder import EncoderConfig
from models.flops import encoder_flops, predictor_flops, train_step_flops
from models.predictor import PredictorConfig
from pipelines.errors import InputError
from pipelines.pretraining.masks import Grid, coverage
from pipelines.pretraining.run import build_student
from pipelines.recipes import Phase, Recipe, load_recipe

PhaseName = Literal["pretrain", "cooldown"]
PHASES: tuple[PhaseName, PhaseName] = ("pretrain", "cooldown")
SAMPLED_STEPS = 32
"""The blocks' shape is drawn once a step, so lengths differ from step to step by more than chance; over so many the mean holds to 1 %."""


@dataclass(frozen=True)
class PhaseCost:
    """One phase. FLOPs are 2 per multiply-add of matrix products; `model_flops` is without what activation checkpointing computes
    again, `flops` with it. `tokens` go through target encoder, encoder and predictor, each counted. `contexts` and `targets` are
    mean lengths of each mask strategy. The shares are of `model_flops`: of the target encoder, of the predictor, and of attention in all."""

    phase: PhaseName
    steps: int
    clips: int
    tokens: float
    flops: float
    model_flops: float
    contexts: tuple[float, ...]
    targets: tuple[float, ...]
    target_share: float
    predictor_share: float
    attention_share: float

    def gpu_hours(self, peak: float, mfu: float) -> float:
        """Hours of one accelerator of `peak` FLOP/s that reaches the share `mfu` of it in `model_flops`."""
        return self.model_flops / (peak * mfu * 3600)


def schedule_cost(recipe: Recipe, groups: Sequence[int | None] = (None, None)) -> list[PhaseCost]:
    """Both phases of a recipe; `groups` as `mask_lengths`'s, one a phase."""
    return [phase_cost(recipe, name, group) for name, group in zip(PHASES, groups, strict=True)]


def at_full_size(recipe: Recipe) -> Recipe:
    """The same schedule with the cooldown's pixels and frames throughout, and as many clips at once: what progressive resolution saves is measured against it."""
    plan = recipe.pretraining
    size = {name: getattr(plan.cooldown, name) for name in ("height", "width", "frames", "mask_group")}
    return recipe.model_copy(update={"pretraining": plan.model_copy(update={"pretrain": plan.pretrain.model_copy(update=size)})})


def networks(recipe: Recipe, phase: Phase) -> tuple[EncoderConfig, PredictorConfig]:
    """What training builds for a phase, without memory for it."""
    with torch.device("meta"):
        student = build_student(recipe, phase)
    return student.encoder.config, student.predictor.config


def phase_cost(recipe: Recipe, name: PhaseName, group: int | None = None) -> PhaseCost:
    """Cost of one phase, its masks cut to the shortest of `group` samples; None is what training does."""
    phase: Phase = getattr(recipe.pretraining, name)
    if group is None and recipe.pretraining.mask_truncation == "none":
        group = 1
    encoder, predictor = networks(recipe, phase)
    grid = encoder.grid
    whole = math.prod(grid)
    teacher = encoder_flops(encoder, 1, grid)
    lengths = mask_lengths(phase, grid, recipe.seed, name, group)
    spent, model, seen, predicting, attending = [], [], [], [], []
    for contexts, targets in lengths.tolist():
        student = [encoder_flops(encoder, 1, grid, contexts), predictor_flops(predictor, 1, contexts, targets)]
        model.append(train_step_flops(student, [teacher]))
        spent.append(train_step_flops(student, [teacher], phase.activation_checkpointing))
        predicting.append(train_step_flops(student[1:]))
        together = [context + target for context, target in zip(contexts, targets, strict=True)]
        attending.append(
            _attention(encoder.embed_dim, encoder.depth, [whole]) + 3 * _attention(encoder.embed_dim, encoder.depth, contexts)
            + 3 * _attention(predictor.predictor_embed_dim, predictor.depth, together)
        )  # fmt: skip
        seen.append(whole + sum(contexts) + sum(together))
    clips, a_clip = phase.steps * phase.global_batch, float(np.mean(model))
    means = lengths.mean(axis=0)
    return PhaseCost(
        name, phase.steps, clips, clips * float(np.mean(seen)), clips * float(np.mean(spent)), clips * a_clip,
        tuple(means[0].tolist()), tuple(means[1].tolist()), teacher.forward / a_clip, float(np.mean(predicting)) / a_clip, float(np.mean(attending)) / a_clip,
    )  # fmt: skip


def mask_lengths(phase: Phase, grid: Grid, seed: int, name: str, group: int | None = None, steps: int = SAMPLED_STEPS) -> NDArray[np.int64]:
    """Lengths that masks are cut to, (n, 2, strategies): contexts and targets, of every `group` samples of the first `steps` steps.

    Raises `InputError` when groups do not divide the global batch.
    """
    group = group or phase.mask_group or phase.global_batch
    if phase.global_batch % group:
        raise InputError("masks cannot be cut in such groups", expected=f"a divisor of the global batch {phase.global_batch}", found=str(group))
    strategies = []
    for number, strategy in enumerate(phase.masks):
        covered = np.stack([coverage(strategy, grid, (seed, name, number), step, phase.global_batch)[1] for step in range(steps)]).reshape(-1, group)
        strategies.append(np.stack([math.prod(grid) - covered.max(axis=1), covered.min(axis=1)], axis=1))
    return np.stack(strategies, axis=2)


def _attention(dim: int, depth: int, sizes: Sequence[int]) -> int:
    """FLOPs of one clip's attention forward: scores and weighted sums over groups that never see each other."""
    return 4 * depth * dim * sum(size**2 for size in sizes)


def cost_table(recipes: Sequence[Recipe], peak: float, mfu: float, groups: Sequence[int | None] = (None, None)) -> str:
    """A Markdown table, a row a phase, and what each schedule saves against its full size throughout."""
    lines = [
        "| recipe | phase | clip | steps | clips | context / target kept | TFLOPs a clip | attention | FLOPs | GPU-hours |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        costs = schedule_cost(recipe, groups)
        for cost in costs:
            phase: Phase = getattr(recipe.pretraining, cost.phase)
            whole = math.prod(networks(recipe, phase)[0].grid)
            kept = ", ".join(f"{context / whole:.0%} / {target / whole:.0%}" for context, target in zip(cost.contexts, cost.targets, strict=True))
            lines.append(
                f"| {recipe.name} | {cost.phase} | {phase.frames} x {phase.height} px | {cost.steps:,} | {cost.clips:.2g} | {kept} "
                f"| {cost.model_flops / cost.clips / 1e12:.3g} | {cost.attention_share:.0%} | {cost.model_flops:.2e} | {cost.gpu_hours(peak, mfu):,.0f} |"
            )
        full = schedule_cost(at_full_size(recipe), (groups[1], groups[1]))
        lines.append(f"| {recipe.name} | full size throughout | | | | | | | {_flops(full):.2e} | {_flops(full) / _flops(costs):.1f}x |")
    return "\n".join(lines)


def _flops(costs: Sequence[PhaseCost]) -> float:
    return sum(cost.model_flops for cost in costs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--peak", type=float, default=989e12, help="FLOP/s of one accelerator; 989e12 is an H100 or H200 in bf16")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that model FLOPs reach")
    parser.add_argument("--groups", type=int, nargs=2, default=[0, 0], help="0: as the recipe says")
    asked = parser.parse_args(arguments)
    groups = [group or None for group in asked.groups]
    sys.stdout.write(cost_table([load_recipe(name) for name in asked.recipes], asked.peak, asked.mfu, groups) + "\n")


if __name__ == "__main__":
    main()
