"""Masks: the official distribution, and pure functions of the step and the sample."""

from __future__ import annotations

import hashlib
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
from pipelines.pretraining.masks import Masks, block_size, coverage, sample_masks
from pipelines.recipes import MaskStrategy

SHORT = MaskStrategy(num_blocks=8, spatial_scale=(0.15, 0.15))
LONG = MaskStrategy(num_blocks=2, spatial_scale=(0.7, 0.7))
STRATEGIES = [SHORT, LONG]


def drawn(**changes: Any) -> list[Masks]:
    values: dict[str, Any] = {"seed": 0, "phase": "pretrain", "step": 5, "global_batch": 6, "truncation": "random"}
    return sample_masks(STRATEGIES, (4, 5, 5), **(values | changes))


def rows(mask: Masks) -> list[tuple[list[int], list[int]]]:
    """(context ids, target ids) of each sample, whatever the truncation."""
    return [
        (one.tolist(), other.tolist())
        for context, targets in mask.groups() for one, other in zip(context, targets, strict=True)
    ]  # fmt: skip


@pytest.mark.skipif(not os.environ.get("TUBELET_SHARED"), reason="TUBELET_SHARED is not set")
@pytest.mark.parametrize(("name", "number"), [("short", 0), ("long", 1)])
def test_lengths_follow_the_official_distribution(name: str, number: int) -> None:
    stats = json.loads((Path(os.environ["TUBELET_SHARED"]) / "golden" / "mask_stats.json").read_text())["runs"][0]
    official = stats["strategies"][name]
    grid, batch, batches = tuple(stats["grid_thw"]), stats["batch"], 400
    stream = (11, "pretrain", number)
    before = np.stack([coverage(STRATEGIES[number], grid, stream, step, batch)[1] for step in range(batches)])
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
    for truncation in ("random", "prefix", "none"):
        whole = drawn(truncation=truncation)
        parts = [drawn(truncation=truncation, first=first, count=2) for first in (0, 2, 4)]
        for number, mask in enumerate(whole):
            found = [rows(part[number]) for part in parts]
            assert rows(mask) == [pair for part in found for pair in part]


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


def test_masks_of_a_seed_and_step_never_change() -> None:
    """What a training that goes on after an update of this project must draw again."""
    deep = MaskStrategy(num_blocks=3, spatial_scale=(0.2, 0.5), temporal_scale=(0.3, 0.8), aspect_ratio=(0.3, 3.0))
    found = {}
    for truncation in ("prefix", "random"):
        digest = hashlib.sha256()
        for step in (0, 7):
            for mask in sample_masks([SHORT, LONG, deep], (4, 6, 6), seed=3, phase="pretrain", step=step, global_batch=5, truncation=truncation):  # type: ignore[arg-type]
                digest.update(repr(rows(mask)).encode())
        found[truncation] = digest.hexdigest()[:16]
    assert found == {"prefix": "c17ff907be815f44", "random": "036c8d9db4becbfb"}


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_one_block_is_a_box_of_the_drawn_size(depth: float) -> None:
    strategy = MaskStrategy(num_blocks=1, spatial_scale=(0.2, 0.6), temporal_scale=(depth, depth))
    grid = (4, 6, 7)
    for step in range(5):
        (mask,) = sample_masks([strategy], grid, seed=0, phase="p", step=step, global_batch=8, truncation="none")
        size = block_size(strategy, grid, (0, "p", 0), step)
        assert size[0] == 4 * depth
        for _, targets in rows(mask):
            places = np.stack(np.unravel_index(targets, grid))
            assert tuple(places.max(axis=1) - places.min(axis=1) + 1) == size and len(targets) == np.prod(size)


def test_blocks_begin_at_every_place_that_fits() -> None:
    strategy = MaskStrategy(num_blocks=1, spatial_scale=(0.25, 0.25), aspect_ratio=(1.0, 1.0))
    (mask,) = sample_masks([strategy], (1, 4, 6), seed=0, phase="p", step=0, global_batch=400, truncation="none")
    assert {targets[0] for _, targets in rows(mask)} == {row * 6 + column for row in range(3) for column in range(5)}


def test_uncut_samples_keep_every_token_in_context_or_targets() -> None:
    masks = drawn(truncation="none")
    assert any(len({len(targets) for _, targets in rows(mask)}) > 1 for mask in masks)
    for mask in masks:
        for context, targets in rows(mask):
            assert sorted(context + targets) == list(range(100))


def test_shares_make_means_over_parts_the_mean_over_all_tokens() -> None:
    whole = drawn(truncation="none")
    parts = [drawn(truncation="none", first=first, count=2) for first in (0, 2, 4)]
    for number, mask in enumerate(whole):
        assert mask.context_share == mask.target_share == 1.0
        for side in (0, 1):
            value = [float(sum(pair[side])) for pair in rows(mask)]  # any function of the tokens: here their ids
            wanted = sum(value) / sum(len(pair[side]) for pair in rows(mask))
            means = []
            for part in parts:
                pairs = rows(part[number])
                share = (part[number].context_share, part[number].target_share)[side]
                means.append(share * sum(sum(pair[side]) for pair in pairs) / sum(len(pair[side]) for pair in pairs))
            assert sum(means) / len(means) == pytest.approx(wanted, rel=1e-12)
    assert all(mask.context_share == mask.target_share == 1.0 for mask in drawn(first=2, count=2))


@pytest.mark.parametrize("truncation", ["random", "none"])
def test_picked_tokens_are_those_of_their_sample(truncation: str) -> None:
    tokens = torch.arange(6 * 100).reshape(6, 100, 1)
    for mask in drawn(truncation=truncation):
        for picked, ids, side in ((mask.context_of(tokens), mask.context_ids, 0), (mask.targets_of(tokens), mask.target_ids, 1)):
            assert picked.shape == (*ids.shape, 1)
            assert picked.flatten().tolist() == [100 * sample + token for sample, pair in enumerate(rows(mask)) for token in pair[side]]


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 4), st.integers(2, 7), st.integers(2, 7)), st.integers(0, 3), st.integers(0, 50), st.integers(1, 6),
    st.sampled_from(["prefix", "random", "none"]),
)  # fmt: skip
def test_context_and_targets_are_disjoint_ascending_and_inside_the_grid(
    grid: tuple[int, int, int], seed: int, step: int, batch: int, truncation: str
) -> None:
    for mask in sample_masks(STRATEGIES, grid, seed=seed, phase="p", step=step, global_batch=batch, truncation=truncation):  # type: ignore[arg-type]
        assert mask.batch == batch == len(rows(mask))
        for context, targets in rows(mask):
            assert context and targets and not set(context) & set(targets)
            for ids in (context, targets):
                assert ids == sorted(set(ids)) and ids[0] >= 0 and ids[-1] < np.prod(grid)


def test_blocks_that_leave_no_context_are_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match="leave no context"):
        sample_masks([MaskStrategy(num_blocks=2, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0))], (2, 4, 4), seed=0, phase="p", step=0, global_batch=2)


def test_masks_are_cut_in_groups_that_no_division_among_ranks_changes() -> None:
    values: dict[str, Any] = {"seed": 1, "phase": "p", "step": 3, "global_batch": 12}
    lengths = set()
    for first in (0, 4, 8):
        for short, whole in zip(sample_masks(STRATEGIES, (4, 6, 6), first=first, count=4, group=4, **values), sample_masks(STRATEGIES, (4, 6, 6), **values), strict=True):
            assert torch.equal(short.target_ids[:, : whole.target_ids.shape[1]], whole.target_ids[first : first + 4])  # the same blocks, cut less
            lengths.add(short.target_ids.shape[1])
        halves = [sample_masks(STRATEGIES, (4, 6, 6), first=first + half, count=2, group=4, **values) for half in (0, 2)]
        for number, mask in enumerate(sample_masks(STRATEGIES, (4, 6, 6), first=first, count=4, group=4, **values)):
            assert torch.equal(torch.cat([half[number].context_ids for half in halves]), mask.context_ids)
    assert len(lengths) > 2  # groups differ, or this would show nothing
    with pytest.raises(InputError, match="mask_group 4"):
        sample_masks(STRATEGIES, (4, 6, 6), first=2, count=4, group=4, **values)
