"""Multi-block masks as a pure function of (seed, phase, step, global sample): no generator, no state, no worker order.

Source: arXiv 2506.09985 section 2 (multiblock masking) and upstream's mask collator. The size of the blocks is drawn once
a step, their places for every sample; the targets are the union of the blocks, the context is the rest. Lengths are cut
to the smallest of the *global* batch, which every rank computes for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.recipes import MaskStrategy

Grid = tuple[int, int, int]
Truncation = Literal["prefix", "random", "none"]
ATTEMPTS = 200
"""Redraws allowed for a sample whose blocks leave no context."""


@dataclass(frozen=True)
class Masks:
    """Kept token ids of one strategy: `context_ids` (B, Kc), `target_ids` (B, Kt), int64, ascending in each row."""

    context_ids: Tensor
    target_ids: Tensor

    def to(self, device: torch.device) -> Masks:
        return Masks(self.context_ids.to(device), self.target_ids.to(device))


def sample_masks(
    strategies: Sequence[MaskStrategy],
    grid: Grid,
    *,
    seed: int,
    phase: str,
    step: int,
    global_batch: int,
    first: int = 0,
    count: int | None = None,
    truncation: Truncation = "prefix",
) -> list[Masks]:
    """Masks of the samples `first` to `first + count` of the global batch of `step` (counted from 0), one entry a strategy.

    `grid` is (T, H, W) in tubelets and patches; token id = t * H * W + h * W + w. `truncation`: "prefix" keeps the first
    tokens in raster order as paper and upstream do, which drops the end of the clip; "random" keeps a random subset.
    Raises `InputError` for "none", and for a strategy whose blocks always cover the whole grid.
    """
    if truncation == "none":
        raise InputError(
            "mask_truncation none is not to be had: samples of unequal length need attention over packed sequences",
            expected="prefix or random", found="none", remedy="set mask_truncation in the recipe",
        )  # fmt: skip
    rows = slice(first, global_batch if count is None else first + count)
    masks = []
    for number, strategy in enumerate(strategies):
        covered = covered_tokens(strategy, grid, (seed, phase, number), step, global_batch)
        kept = covered.sum(axis=1)
        targets, contexts = int(kept.min()), int(covered.shape[1] - kept.max())
        keys = None
        if truncation == "random":
            samples = (step * global_batch + rows.start, rows.stop - rows.start)
            keys = _uniforms(stable_seed("mask-order", seed, phase, number), 0, *samples, covered.shape[1]).astype(np.float32)
        masks.append(Masks(_cut(~covered[rows], contexts, keys), _cut(covered[rows], targets, keys)))
    return masks


def covered_tokens(
    strategy: MaskStrategy, grid: Grid, stream: tuple[int, str, int], step: int, global_batch: int
) -> np.ndarray:
    """(global_batch, T*H*W) bool: tokens under a block, before any cut; every sample keeps at least one token of context."""
    size = block_size(strategy, grid, stream, step)
    seed = stable_seed("mask-place", *stream)
    first = step * global_batch
    covered = np.empty((global_batch, grid[0] * grid[1] * grid[2]), bool)
    waiting = np.arange(global_batch)
    for attempt in range(ATTEMPTS):
        uniforms = _uniforms(seed, attempt, first, global_batch, 3 * strategy.num_blocks)[waiting]
        covered[waiting] = _union(uniforms.reshape(len(waiting), strategy.num_blocks, 3), size, grid)
        waiting = waiting[covered[waiting].all(axis=1)]
        if not len(waiting):
            return covered
    raise InputError(
        f"{strategy.num_blocks} blocks of {size} tokens leave no context in a grid of {grid}",
        expected="at least one token outside the blocks", found=f"none in {ATTEMPTS} draws",
        remedy="use larger videos, or smaller or fewer blocks",
    )  # fmt: skip


def block_size(strategy: MaskStrategy, grid: Grid, stream: tuple[int, str, int], step: int) -> tuple[int, int, int]:
    """Blocks' (t, h, w) in tokens at `step`: share of the frame's tokens and aspect ratio uniform in their ranges.

    At least one token each way, where upstream would make empty blocks on grids of a few patches.
    """
    temporal, spatial, aspect = _uniforms(stable_seed("mask-size", *stream), 0, step, 1, 3)[0]
    depth, rows, columns = grid
    share = strategy.spatial_scale[0] + spatial * (strategy.spatial_scale[1] - strategy.spatial_scale[0])
    ratio = strategy.aspect_ratio[0] + aspect * (strategy.aspect_ratio[1] - strategy.aspect_ratio[0])
    length = strategy.temporal_scale[0] + temporal * (strategy.temporal_scale[1] - strategy.temporal_scale[0])
    tokens = int(rows * columns * share)
    height, width = round(np.sqrt(tokens * ratio)), round(np.sqrt(tokens / ratio))
    return max(1, int(depth * length)), min(rows, max(1, height)), min(columns, max(1, width))


def _uniforms(seed: int, attempt: int, first: int, count: int, words: int) -> np.ndarray:
    """(count, words) float64 in [0, 1): sample `first + i` reads the same words whoever asks for it."""
    counters = -(-words // 4)  # one counter step of Philox4x64 yields four words
    stream = np.random.Philox(key=np.array([seed, attempt], np.uint64))
    stream.advance(first * counters)
    raw = stream.random_raw(count * counters * 4).reshape(count, counters * 4)[:, :words]
    return (raw >> np.uint64(11)) * 2.0**-53


def _union(uniforms: np.ndarray, size: tuple[int, int, int], grid: Grid) -> np.ndarray:
    """Union of blocks placed uniformly over all places that fit; uniforms (B, blocks, 3) -> (B, T*H*W) bool."""
    axes = []
    for axis in range(3):
        start = (uniforms[:, :, axis] * (grid[axis] - size[axis] + 1)).astype(np.int64)[..., None]
        place = np.arange(grid[axis])
        axes.append((place >= start) & (place < start + size[axis]))  # (B, blocks, length of the axis)
    times_rows = (axes[0][..., None] & axes[1][:, :, None]).reshape(*uniforms.shape[:2], -1).astype(np.float32)
    # How many blocks cover a token: a sum over blocks of products of axes, which is a matrix product.
    counts = times_rows.transpose(0, 2, 1) @ axes[2].astype(np.float32)
    return (counts > 0).reshape(len(uniforms), -1)


def _cut(kept: np.ndarray, length: int, keys: np.ndarray | None) -> Tensor:
    """Ids of `length` kept tokens a row: the first ones, or those with the smallest keys; ascending."""
    if keys is None:
        ids = np.argsort(~kept, axis=1, kind="stable")[:, :length]
    else:
        ids = np.sort(np.argsort(np.where(kept, keys, np.float32(2)), axis=1)[:, :length], axis=1)
    return torch.from_numpy(np.ascontiguousarray(ids))
