"""What drift statistics look like when nothing has drifted: the same clips, split at random into reference and window.

Folklore bounds (PSI .1 and .25) ignore how many clips and bins there are; a permutation null does not. What is
exchanged matters as much: clips of one video resemble each other, so a window of a few new videos differs from the
reference by more than as many clips drawn one by one. Whole videos are exchanged by default, therefore.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
CELLS = 2**20  # counts held at a time: splits are made and measured in chunks


@dataclass(frozen=True)
class Column:
    """One property of every clip, as a bin: `reference` (N,) and `window` (M,) int64 in 0..`bins` - 1."""

    reference: Counts
    window: Counts
    bins: int

    @property
    def counts(self) -> tuple[Counts, Counts]:
        """(bins,) counts of the reference and of the window."""
        return np.bincount(self.reference, minlength=self.bins), np.bincount(self.window, minlength=self.bins)


def clip_splits(columns: Mapping[str, Column], splits: int, random: np.random.Generator) -> Iterator[dict[str, Counts]]:
    """Window counts (S, bins) of every column, in chunks of S splits, when single clips are exchanged.

    Only counts are needed: those of a random window follow the multivariate hypergeometric law. Columns are split
    apart from each other, since each is judged by itself.
    """
    sides = {name: column.counts for name, column in columns.items()}
    for size in _chunks(splits, max(column.bins for column in columns.values())):
        found = {name: np.zeros((size, column.bins), np.int64) for name, column in columns.items()}
        for name, (reference, window) in sides.items():
            used = np.flatnonzero(reference + window)  # the grid of distances is mostly empty
            total = (reference + window)[used]
            found[name][:, used] = random.multivariate_hypergeometric(total, int(window.sum()), size=size, method="marginals")
        yield found


def video_splits(
    columns: Mapping[str, Column], reference_videos: Counts, window_videos: Counts, splits: int, random: np.random.Generator
) -> Iterator[dict[str, Counts]]:
    """The same when whole videos are exchanged: as many videos as the window has, whatever their numbers of clips.

    `reference_videos` (N,) and `window_videos` (M,) number the clips' videos from 0 on either side. Only the clips of
    the drawn videos are looked at, so a split costs in proportion to the window.
    """
    draw = VideoDraw(reference_videos, window_videos, random)
    pooled = {name: np.concatenate([column.reference, column.window]) for name, column in columns.items()}
    for size in _chunks(splits, max(len(window_videos), *(column.bins for column in columns.values()))):
        number, rows = draw.windows(size)
        yield {
            name: np.bincount(number * column.bins + pooled[name][rows], minlength=size * column.bins).reshape(size, column.bins)
            for name, column in columns.items()
        }


class VideoDraw:
    """Draws windows of whole videos from the clips of both sides (numbered: reference first)."""

    def __init__(self, reference_videos: Counts, window_videos: Counts, random: np.random.Generator) -> None:
        known = int(reference_videos.max(initial=-1)) + 1
        videos = np.concatenate([reference_videos, window_videos + known])
        self._by_video = np.argsort(videos, kind="stable")
        self._sizes = np.bincount(videos)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._taken = len(self._sizes) - known
        self._random = random

    def windows(self, count: int) -> tuple[Counts, Counts]:
        """(number, row) of every clip of `count` random windows, window by window."""
        videos, taken = len(self._sizes), self._taken
        if count * videos <= CELLS:  # all at once: the `taken` smallest of random keys
            chosen = self._random.random((count, videos)).argpartition(taken - 1, axis=1)[:, :taken].ravel()
        else:  # one by one, at a cost that follows the window and not the pool
            chosen = np.concatenate([self._random.choice(videos, taken, replace=False, shuffle=False) for _ in range(count)])
        sizes = self._sizes[chosen]
        inside = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.repeat(np.repeat(np.arange(count), taken), sizes), self._by_video[np.repeat(self._starts[chosen], sizes) + inside]


def p_value(observed: float, null: NDArray[np.float64]) -> float:
    """Share of splits, the observed one included, that differ at least as much; never below 1 / (splits + 1)."""
    return float((1 + (null >= observed - 1e-12 * abs(observed)).sum()) / (len(null) + 1))


def _chunks(splits: int, cells: int) -> Iterator[int]:
    size = max(1, CELLS // cells)
    return (min(size, splits - start) for start in range(0, splits, size))
