"""What pretraining is said to cost: counted on the masks that training draws, and by the FLOPs that its networks spend."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipelines.errors import InputError
from pipelines.pretraining.cost import (
    at_full_size,
    cost_table,
    mask_lengths,
    networks,
    phase_cost,
    schedule_cost,
)
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.run import build_student
from pipelines.recipes import MaskStrategy, Phase, Recipe, load_recipe

STEPS = 3


def changed(name: str, **pretrain: Any) -> Recipe:
    """A preset with another first phase."""
    recipe = load_recipe(name)
    plan = recipe.pretraining
    return recipe.model_copy(update={"pretraining": plan.model_copy(update={"pretrain": plan.pretrain.model_copy(update=pretrain)})})


@pytest.mark.parametrize("depth", [(1.0, 1.0), (0.3, 0.9)])
def test_lengths_are_those_that_training_cuts_masks_to(depth: tuple[float, float]) -> None:
    strategies = (MaskStrategy(num_blocks=3, spatial_scale=(0.2, 0.3), temporal_scale=depth), MaskStrategy(num_blocks=2, spatial_scale=(0.5, 0.5)))
    phase: Phase = load_recipe("nano").pretraining.pretrain.model_copy(update={"masks": strategies, "global_batch": 12})
    found = mask_lengths(phase, (4, 6, 5), 7, "pretrain", steps=STEPS)
    for step, (contexts, targets) in enumerate(found.tolist()):
        masks = sample_masks(strategies, (4, 6, 5), seed=7, phase="pretrain", step=step, global_batch=12)
        assert contexts == [mask.context_ids.shape[1] for mask in masks] and targets == [mask.target_ids.shape[1] for mask in masks]


def test_smaller_groups_keep_more_and_single_samples_keep_everything() -> None:
    phase = load_recipe("nano").pretraining.cooldown
    grid = (6, 6, 6)
    by_group = [mask_lengths(phase, grid, 0, "cooldown", group, STEPS) for group in (16, 4, 1)]
    assert [len(lengths) for lengths in by_group] == [STEPS, 4 * STEPS, 16 * STEPS]
    means = np.array([lengths.mean(axis=0) for lengths in by_group])
    assert (np.diff(means, axis=0) > 0).all()
    assert (by_group[2].sum(axis=1) == 6 * 6 * 6).all()  # context and target of one sample are its whole grid


def test_groups_that_do_not_divide_the_batch_are_refused() -> None:
    with pytest.raises(InputError, match="divisor of the global batch 16"):
        phase_cost(load_recipe("nano"), "pretrain", 5)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_flops_of_a_clip_are_what_a_training_step_spends(checkpointing: Any) -> None:
    """torch's own counter around the real networks; every step has the same masks, so that the mean is a single step's."""
    strategies = (MaskStrategy(num_blocks=1, spatial_scale=(0.3, 0.3), aspect_ratio=(1.0, 1.0)),)
    recipe = changed("smoke", masks=strategies, height=64, width=64, activation_checkpointing=checkpointing)
    phase = recipe.pretraining.pretrain
    with torch.device("meta"):
        student = build_student(recipe, phase)
        for network in (student.encoder, student.predictor):
            network.activation_checkpointing = checkpointing
        video = torch.empty(1, 3, phase.frames, phase.height, phase.width)
    masks = [mask.to(torch.device("meta")) for mask in sample_masks(strategies, (2, 4, 4), seed=0, phase="pretrain", step=0, global_batch=1)]
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            student.encoder(video)
        predicted = student(video, masks)
        sum(tokens.sum() for tokens in predicted.targets).backward()
    cost = phase_cost(recipe, "pretrain")
    assert cost.flops / cost.clips == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert (cost.flops > cost.model_flops) == (checkpointing == "full")
    assert 0 < cost.target_share < 1 and 0 < cost.predictor_share < 1 and 0 < cost.attention_share < 1


def test_uncut_masks_cost_what_groups_of_one_do() -> None:
    recipe = load_recipe("nano")
    uncut = recipe.model_copy(update={"pretraining": recipe.pretraining.model_copy(update={"mask_truncation": "none"})})
    assert phase_cost(uncut, "pretrain") == phase_cost(recipe, "pretrain", 1) != phase_cost(recipe, "pretrain")


def test_full_size_throughout_takes_the_same_steps_at_the_cooldowns_size() -> None:
    recipe = load_recipe("nano")
    progressive, full = schedule_cost(recipe), schedule_cost(at_full_size(recipe))
    assert [cost.steps for cost in progressive] == [cost.steps for cost in full]
    assert full[1] == progressive[1] and full[0].flops > 2 * progressive[0].flops
    assert networks(at_full_size(recipe), at_full_size(recipe).pretraining.pretrain)[0].grid == (6, 6, 6)


def test_hours_follow_from_peak_and_share_and_the_table_has_a_row_a_phase() -> None:
    recipe = load_recipe("nano")
    first, second = schedule_cost(recipe)
    assert first.gpu_hours(1e12, 0.5) == pytest.approx(first.model_flops / 0.5e12 / 3600)
    rows = cost_table([recipe], 1e12, 0.5).splitlines()
    assert len(rows) == 5 and f"{first.model_flops:.2e}" in rows[2] and f"{second.model_flops:.2e}" in rows[3]
    assert rows[4].endswith("2.2x |")
