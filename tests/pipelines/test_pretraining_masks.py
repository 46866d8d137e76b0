"""Masks: the official distribution, and pure functions of the step and the sample."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.pretraining.masks import Masks, block_size, covered_tokens, sample_masks
from pipelines.recipes import MaskStrategy

SHORT = MaskStrategy(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG = MaskStrategy(num_blocks=2, spatial_scale=(0.7, 0.7))
STRATEGIES = [SHORT, LONG]


def drawn(**changes: Any) -> list[Masks]:
    values: dict[str, Any] = {"seed": 0, "phase": "pretrain", "step": 5, "global_batch": 6, "truncation": "random"}
    return sample_masks(STRATEGIES, (4, 5, 5), **(values | changes))


@pytest.mark.skipif(not os.environ.get("TUBELET_SHARED"), reason="TUBELET_SHARED is not set")
@pytest.mark.parametrize(("name", "number"), [("short", 0), ("long", 1)])
def test_lengths_follow_the_official_distribution(name: str, number: int) -> None:
    stats = json.loads((Path(os.environ["TUBELET_SHARED"]) / "golden" / "mask_stats.json").read_text())["runs"][0]
    official = stats["strategies"][name]
    grid, batch, batches = tuple(stats["grid_thw"]), stats["batch"], 400
    stream = (11, "pretrain", number)
    before = np.stack([covered_tokens(STRATEGIES[number], grid, stream, step, batch).sum(axis=1) for step in range(batches)])
    # The size is drawn once a batch, so batches, not samples, are what is independent.
    error = before.mean(axis=1).std() * np.sqrt(1 / batches + 1 / stats["batches"])
    assert abs(before.mean() - official["target_len_before_truncation"]["mean"]) < 4 * error
    assert before.std() == pytest.approx(official["target_len_before_truncation"]["std"], rel=0.06)
    cut = official["target_len_after_truncation"]
    assert abs(before.min(axis=1).mean() - cut["mean"]) < 4 * cut["std"] * np.sqrt(1 / batches + 1 / stats["batches"])
    cut = official["context_len_after_truncation"]
    kept = np.prod(grid) - before.max(axis=1)
    assert abs(kept.mean() - cut["mean"]) < 4 * cut["std"] * np.sqrt(1 / batches + 1 / stats["batches"])
    sizes = {tuple(row["thw"]): row["count"] / stats["batches"] for row in official["block_size_histogram"]}
    ours = [block_size(STRATEGIES[number], grid, stream, step) for step in range(2000)]
    assert set(ours) <= set(sizes) | {size for size in ours if ours.count(size) < 10}
    for size, share in sizes.items():
        assert ours.count(size) / len(ours) == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) * (1 / 500 + 1 / 2000)) + 1e-3)


def test_ranks_draw_slices_of_the_one_global_mask() -> None:
    whole = drawn()
    for truncation in ("random", "prefix"):
        whole = drawn(truncation=truncation)
        parts = [drawn(truncation=truncation, first=first, count=2) for first in (0, 2, 4)]
        for number, mask in enumerate(whole):
            assert torch.equal(mask.context_ids, torch.cat([part[number].context_ids for part in parts]))
            assert torch.equal(mask.target_ids, torch.cat([part[number].target_ids for part in parts]))


def test_masks_change_with_seed_phase_step_and_sample_and_with_nothing_else() -> None:
    first = drawn()
    again = drawn()
    assert all(torch.equal(one.target_ids, two.target_ids) for one, two in zip(first, again, strict=True))
    for change in ({"seed": 1}, {"phase": "cooldown"}, {"step": 6}):
        other = drawn(**change)
        assert any(
            one.target_ids.shape != two.target_ids.shape or not torch.equal(one.target_ids, two.target_ids)
            for one, two in zip(first, other, strict=True)
        )


def test_prefix_keeps_the_first_tokens_and_random_reaches_the_end_of_the_clip() -> None:
    late = {kind: 0 for kind in ("prefix", "random")}
    for kind in late:
        for step in range(20):
            short = sample_masks([SHORT], (8, 16, 16), seed=0, phase="p", step=step, global_batch=12, truncation=kind)[0]  # type: ignore[arg-type]
            late[kind] += int((short.target_ids >= 7 * 256).sum())
    assert late["random"] > 3 * late["prefix"]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)), st.integers(0, 3), st.integers(0, 50), st.integers(1, 6),
    st.sampled_from(["prefix", "random"]),
)  # fmt: skip
def test_context_and_targets_are_disjoint_ascending_and_inside_the_grid(
    grid: tuple[int, int, int], seed: int, step: int, batch: int, truncation: str
) -> None:
    for mask in sample_masks(STRATEGIES, grid, seed=seed, phase="p", step=step, global_batch=batch, truncation=truncation):  # type: ignore[arg-type]
        assert mask.context_ids.shape[1] >= 1 and mask.target_ids.shape[1] >= 1
        for context, target in zip(mask.context_ids, mask.target_ids, strict=True):
            assert not set(context.tolist()) & set(target.tolist())
            for ids in (context, target):
                assert bool((ids[1:] > ids[:-1]).all()) and int(ids[0]) >= 0 and int(ids[-1]) < np.prod(grid)


def test_uncut_masks_and_blocks_without_context_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="packed sequences"):
        drawn(truncation="none")
    with pytest.raises(InputError, match="leave no context"):
        sample_masks([MaskStrategy(num_blocks=2, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))], (2, 4, 4), seed=0, phase="p", step=0, global_batch=2)
