"""Multi-block masks as a pure function of (seed, phase, step, global sample): no generator, no state, no worker order.

Source: arXiv 2506.09985 section 2 (multiblock masking) and upstream's mask collator. The size of the blocks is drawn once
a step, their places for every sample; the targets are the union of the blocks, the context is the rest. Lengths are cut
to the smallest of the global batch, or of a group of samples of it, or not cut at all: never by what a rank happens to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Kept token ids of one strategy, int64, ascending within a sample.

    Cut to one length: `context_ids` (B, Kc), `target_ids` (B, Kt). Uncut: each is one row (1, sum of lengths) that holds the
    samples one after another, and the lengths tell them apart. A share is the mean length here over the mean length in the
    global batch: the mean over tokens here times the share, averaged over ranks and micro-batches of as many samples, is the
    mean over all tokens of the global batch.
    """

    context_ids: Tensor
    target_ids: Tensor
    context_lengths: tuple[int, ...] | None = None
    target_lengths: tuple[int, ...] | None = None
    context_share: float = 1.0
    target_share: float = 1.0

    def to(self, device: torch.device) -> Masks:
        return replace(self, context_ids=self.context_ids.to(device), target_ids=self.target_ids.to(device))

    @property
    def batch(self) -> int:
        """How many samples these are."""
        return len(self.context_ids) if self.context_lengths is None else len(self.context_lengths)

    def groups(self) -> list[tuple[Tensor, Tensor]]:
        """(context ids, target ids) that see each other: one pair for all samples, or uncut a pair (1, K) for each."""
        if self.context_lengths is None or self.target_lengths is None:
            return [(self.context_ids, self.target_ids)]
        contexts, targets = self.context_ids.split(self.context_lengths, dim=1), self.target_ids.split(self.target_lengths, dim=1)
        return list(zip(contexts, targets, strict=True))

    def context_of(self, tokens: Tensor) -> Tensor:
        """The context's among tokens (B, N, ...): in the shape of `context_ids`, then the rest."""
        return tokens[_samples(self.context_ids, self.context_lengths), self.context_ids]

    def targets_of(self, tokens: Tensor) -> Tensor:
        """The targets' among tokens (B, N, ...): in the shape of `target_ids`, then the rest."""
        return tokens[self.target_samples(), self.target_ids]

    def target_samples(self) -> Tensor:
        """Which sample each target is of, int64, in a shape that broadcasts to `target_ids`."""
        return _samples(self.target_ids, self.target_lengths)


def _samples(ids: Tensor, lengths: tuple[int, ...] | None) -> Tensor:
    if lengths is None:
        return torch.arange(len(ids), device=ids.device).unsqueeze(1)
    return torch.repeat_interleave(torch.tensor(lengths, device=ids.device), output_size=ids.shape[1]).unsqueeze(0)


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
    group: int | None = None,
) -> list[Masks]:
    """Masks of the samples `first` to `first + count` of the global batch of `step` (counted from 0), one entry a strategy.

    `grid` is (T, H, W) in tubelets and patches; token id = t * H * W + h * W + w. `truncation`: "prefix" keeps the first
    tokens in raster order as paper and upstream do, which drops the end of the clip; "random" keeps a random subset; "none"
    keeps all, so that every sample has lengths of its own. Cut are runs of `group` samples (None: the global batch) to the
    smallest lengths in each; upstream's runs are what a GPU holds, and the larger they are the more is cut off.
    Raises `InputError` for a strategy whose blocks always cover the whole grid, and for samples of several groups.
    """
    last = global_batch if count is None else first + count
    group = global_batch if truncation == "none" or group is None else group
    begin = first // group * group
    if last > begin + group or global_batch % group:
        raise InputError(
            "the masks of one micro-batch are cut to several lengths", expected=f"micro-batches that divide mask_group {group}, which divides {global_batch}",
            found=f"samples {first} to {last}", remedy="change accumulation, or the number of ranks, or mask_group in the recipe",
        )  # fmt: skip
    rows = slice(first - begin, last - begin)
    tokens = grid[0] * grid[1] * grid[2]
    masks = []
    for number, strategy in enumerate(strategies):
        covered, lengths = coverage(strategy, grid, (seed, phase, number), step, global_batch, begin, group)
        own = np.ascontiguousarray(np.moveaxis(covered[..., rows], -1, 0)).reshape(rows.stop - rows.start, -1)
        again = np.arange(0, tokens, own.shape[1])[:, None]
        contexts, targets = ([(again + row.nonzero()[0]).ravel() for row in kept] for kept in (~own, own))  # ids, ascending
        if truncation == "none":
            masks.append(Masks(
                _joined(contexts), _joined(targets), tuple(map(len, contexts)), tuple(map(len, targets)),
                float((tokens - lengths[rows]).mean() / (tokens - lengths).mean()), float(lengths[rows].mean() / lengths.mean()),
            ))  # fmt: skip
            continue
        context, target = tokens - int(lengths.max()), int(lengths.min())
        if truncation == "random":
            samples = (step * global_batch + first, last - first)
            order = _order(_uniforms(stable_seed("mask-order", seed, phase, number), 0, *samples, tokens))
            contexts = [_first(ids, keys, context) for ids, keys in zip(contexts, order, strict=True)]
            targets = [_first(ids, keys, target) for ids, keys in zip(targets, order, strict=True)]
        masks.append(Masks(_stacked(contexts, context), _stacked(targets, target)))
    return masks


def coverage(
    strategy: MaskStrategy, grid: Grid, stream: tuple[int, str, int], step: int, global_batch: int, first: int = 0, count: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where blocks lie, (T, H, W, count) bool, and how many tokens they cover, (count,) int64, before any cut, of `count` samples
    (None: all) from `first` on of the global batch.

    T is 1 where blocks are as deep as the grid, since all time steps are then alike. The batch comes last because a rank may
    do this for the whole global batch, and numpy is fast along a long last axis only. Every sample keeps a token of context.
    """
    count = global_batch - first if count is None else count
    size = block_size(strategy, grid, stream, step)
    seed = stable_seed("mask-place", *stream)
    shape = (1 if size[0] == grid[0] else grid[0], grid[1], grid[2])
    covered = np.empty((*shape, count), bool)
    lengths = np.empty(count, np.int64)
    waiting: np.ndarray | slice = slice(None)
    for attempt in range(ATTEMPTS):
        uniforms = _uniforms(seed, attempt, step * global_batch + first, count, 3 * strategy.num_blocks)[waiting]
        drawn = _union(uniforms.reshape(len(uniforms), strategy.num_blocks, 3), size, shape)
        covered[..., waiting] = drawn
        lengths[waiting] = (grid[0] // shape[0]) * drawn.view(np.uint8).sum(axis=(0, 1, 2), dtype=np.int32)
        waiting = np.flatnonzero(lengths == grid[0] * grid[1] * grid[2])
        if not len(waiting):
            return covered, lengths
    raise InputError(
        f"{strategy.num_blocks} blocks of {size} tokens leave no context in a grid of {grid}",
        expected="at least one token outside the blocks", found=f"none in {ATTEMPTS} draws",
        remedy="use larger videos, or smaller or fewer blocks",
    )  # fmt: skip


def block_size(strategy: MaskStrategy, grid: Grid, stream: tuple[int, str, int], step: int) -> tuple[int, int, int]:
    """Blocks' (t, h, w) in tokens at `step`: share of the frame's tokens and aspect ratio uniform in their ranges.

    At least one token each way, where upstream would make empty blocks on grids of a few patches.
    """
    temporal, spatial, aspect = _uniforms(stable_seed("mask-size", *stream), 0, step, 1, 3)[0].tolist()
    depth, rows, columns = grid
    share = strategy.spatial_scale[0] + spatial * (strategy.spatial_scale[1] - strategy.spatial_scale[0])
    ratio = strategy.aspect_ratio[0] + aspect * (strategy.aspect_ratio[1] - strategy.aspect_ratio[0])
    length = strategy.temporal_scale[0] + temporal * (strategy.temporal_scale[1] - strategy.temporal_scale[0])
    tokens = int(rows * columns * share)
    height, width = round(math.sqrt(tokens * ratio)), round(math.sqrt(tokens / ratio))
    return max(1, int(depth * length)), min(rows, max(1, height)), min(columns, max(1, width))


def _uniforms(seed: int, attempt: int, first: int, count: int, words: int) -> np.ndarray:
    """(count, words) float64 in [0, 1): sample `first + i` reads the same words whoever asks for it."""
    counters = -(-words // 4)  # one counter step of Philox4x64 yields four words
    stream = np.random.Philox(key=np.array([seed, attempt], np.uint64))
    stream.advance(first * counters)
    raw = stream.random_raw(count * counters * 4).reshape(count, counters * 4)[:, :words]
    return (raw >> np.uint64(11)) * 2.0**-53


def _union(uniforms: np.ndarray, size: tuple[int, int, int], shape: Grid) -> np.ndarray:
    """Union of blocks placed uniformly over all places that fit; uniforms (b, blocks, 3) -> (T, H, W, b) bool.

    A `shape` that is one token long where blocks are longer stands for places that are all alike.
    """
    inside = []
    axes = np.ascontiguousarray(uniforms.transpose(2, 1, 0))  # (3, blocks, b), and everything made from it is b last in memory too
    for chosen, length, block in zip(axes, shape, size, strict=True):
        start = (chosen * (max(0, length - block) + 1)).astype(np.int16)
        place = np.arange(length, dtype=np.int16)[:, None] - start[:, None]  # counted from the block's beginning
        inside.append(place.view(np.uint16) < block)  # (blocks, length, b); what lies before the block is huge without its sign
    times, rows, columns = inside
    return ((times[:, :, None] & rows[:, None])[:, :, :, None] & columns[:, None, None]).any(axis=0)


def _order(uniforms: np.ndarray) -> np.ndarray:
    """(b, N) uint64 keys, no two alike in a row, that sort tokens by their uniforms in float32 and equal ones by id.

    The bits of floats of one sign sort as the floats do.
    """
    bits = uniforms.astype(np.float32).view(np.uint32).astype(np.uint64)
    return bits << np.uint64(32) | np.arange(bits.shape[1], dtype=np.uint64)


def _first(ids: np.ndarray, keys: np.ndarray, length: int) -> np.ndarray:
    """The `length` ids that come first by the keys (N,) of their sample; ascending."""
    own = keys[ids]
    return ids[own <= np.partition(own, length - 1)[length - 1]]


def _stacked(rows: Sequence[np.ndarray], length: int) -> Tensor:
    return torch.from_numpy(np.stack([ids[:length] for ids in rows]))


def _joined(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(rows)).unsqueeze(0)
