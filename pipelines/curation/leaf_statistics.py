"""What is known of every leaf without looking at its clips again: how many, their sum, and how far they lie.

All of it is integers, so adding clips in any order, in any batches, and taking them out again gives the same bytes.
Sums are in fixed point (2^-30 of a unit vector's entry, finer than float32 can tell entries of that size apart by
more than a few bits; 8e9 clips of one leaf before an int64 overflows).

The digest of distances is a histogram on one fixed grid instead of a t-digest: a t-digest depends on the order in which
it was filled and cannot forget a clip, a histogram merges and subtracts exactly. Its bins are 4 % wide, which is what
a quantile read from it is worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError

BINS = 256
EDGES = np.geomspace(1e-4, 2.0, BINS - 1)
"""Inner edges of the grid of cosine distances (1 - cosine): bin 0 is below 1e-4 (copies), the last bin is 2 itself."""
FIXED = 2.0**30
BLOCK = 8192

Distances = NDArray[np.float32]


def distance_bin(distance: Distances) -> NDArray[np.int64]:
    """Bin of every cosine distance (N,) on the grid, 0..255."""
    return np.searchsorted(EDGES, distance.astype(np.float64), side="right").astype(np.int64)


def bin_centres() -> NDArray[np.float64]:
    """(256,) a distance that stands for each bin: geometric middle, 0 for the first and 2 for the last."""
    return np.concatenate([[0.0], np.sqrt(EDGES[:-1] * EDGES[1:]), [2.0]])


def blocks(count: int) -> Iterator[slice]:
    """Slices of at most 8192 rows over `count` rows, which bounds what a pass over vectors holds in memory."""
    return (slice(start, min(count, start + BLOCK)) for start in range(0, count, BLOCK))


@dataclass(eq=False)
class LeafStatistics:
    """Of K leaves in D dimensions: `counts` (K,), `sums` (K, D) and `squares` (K,) int64 in fixed point, `digests` (K, 256)
    int32. `squares` are the summed squared lengths, with which the squared error about any point follows from the sums.
    """

    counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    digests: NDArray[np.int32]

    @classmethod
    def empty(cls, leaves: int, dimensions: int) -> LeafStatistics:
        return cls(
            np.zeros(leaves, np.int64), np.zeros((leaves, dimensions), np.int64), np.zeros(leaves, np.int64),
            np.zeros((leaves, BINS), np.int32),
        )  # fmt: skip

    def add(self, vectors: NDArray[np.float32], leaf: NDArray[np.int64], distance: Distances, sign: int = 1) -> None:
        """Count clips in (`sign` 1) or out again (-1). Raises `InputError` when clips that were never in go out."""
        self.add_members(vectors, leaf, sign)
        self.add_distances(leaf, distance, sign)

    def add_rows(self, vectors: NDArray[np.float32], rows: NDArray[np.int64], leaf: NDArray[np.int64], distance: Distances) -> None:
        """`add` some `rows` of whole tables, of which only those are read."""
        for part in blocks(len(rows)):
            self.add(np.asarray(vectors[rows[part]]), leaf[rows[part]], distance[rows[part]])

    def subtract(self, vectors: NDArray[np.float32], leaf: NDArray[np.int64], distance: Distances) -> None:
        """Take clips out again; the bytes are then those of a rebuild without them."""
        self.add(vectors, leaf, distance, -1)

    def add_members(self, vectors: NDArray[np.float32], leaf: NDArray[np.int64], sign: int = 1) -> None:
        """`add` without the distances, which for the clips of a fit are known only after all sums are."""
        for part in blocks(len(leaf)):
            fixed = np.rint(np.asarray(vectors[part], np.float64) * FIXED).astype(np.int64)
            order = np.argsort(leaf[part], kind="stable")
            touched, starts = np.unique(leaf[part][order], return_index=True)
            self.sums[touched] += sign * np.add.reduceat(fixed[order], starts, axis=0)
            lengths = np.rint(np.einsum("ij,ij->i", vectors[part], vectors[part], dtype=np.float64) * FIXED).astype(np.int64)
            self.squares[touched] += sign * np.add.reduceat(lengths[order], starts)
        self.counts += sign * np.bincount(leaf, minlength=len(self.counts))
        if sign < 0:
            self._insist()

    def add_distances(self, leaf: NDArray[np.int64], distance: Distances, sign: int = 1) -> None:
        """Enter distances (N,) of clips of leaves (N,) into the digests, or take them out (`sign` -1)."""
        flat, times = np.unique(leaf * BINS + distance_bin(distance), return_counts=True)
        self.digests.reshape(-1)[flat] += (sign * times).astype(np.int32)
        if sign < 0:
            self._insist()

    def _insist(self) -> None:
        if self.counts.min(initial=0) < 0 or self.digests.min(initial=0) < 0:
            raise InputError(
                "clips were taken out of leaves that they are not in", expected="only clips that were added",
                found=f"{int((self.counts < 0).sum())} leaves with less than no clip", remedy="materialize clip_clusters again without the previous one",
            )  # fmt: skip

    def clear(self, leaves: NDArray[np.int64]) -> None:
        """Forget all clips of `leaves`, whose remaining members the caller adds again."""
        for table in (self.counts, self.sums, self.squares, self.digests):
            table[leaves] = 0

    def extended(self, leaves: int) -> LeafStatistics:
        """The same with empty leaves appended, `leaves` in all."""
        more = leaves - len(self.counts)
        return LeafStatistics(
            np.pad(self.counts, (0, more)), np.pad(self.sums, ((0, more), (0, 0))), np.pad(self.squares, (0, more)),
            np.pad(self.digests, ((0, more), (0, 0))),
        )  # fmt: skip

    def tables(self) -> dict[str, NDArray[np.int64] | NDArray[np.int32]]:
        """The arrays by name, as they are stored."""
        return {"counts": self.counts, "sums": self.sums, "squares": self.squares, "digests": self.digests}

    def resultants(self) -> NDArray[np.float64]:
        """(K,) length of the sum of each leaf's vectors: its count when all point one way, less when they spread."""
        return np.sqrt(np.einsum("ij,ij->i", self.sums / FIXED, self.sums / FIXED))

    def quantiles(self, share: float) -> NDArray[np.float64]:
        """(K,) distance that at least `share` of a leaf's clips do not exceed (upper edge of the bin); inf without clips."""
        return _upper_edge(self.digests, share)

    def overall_quantile(self, share: float) -> float:
        """The same of all leaves together."""
        return float(_upper_edge(self.digests.sum(axis=0, dtype=np.int64)[None], share)[0])

    def staleness(self, leaves: NDArray[np.float32]) -> float:
        """Share of the squared error about the frozen `leaves` (K, D) that moving each to its clips' mean direction would
        save: what a shadow codebook, updated with every batch, would be better by. Near 0 after a converged fit.
        """
        along = np.einsum("ij,ij->i", self.sums / FIXED, leaves, dtype=np.float64)
        error = float((self.squares / FIXED + self.counts - 2.0 * along).sum())
        return float((2.0 * (self.resultants() - along)).sum() / error) if error > 0 else 0.0


def _upper_edge(digests: NDArray[np.int64] | NDArray[np.int32], share: float) -> NDArray[np.float64]:
    running = np.cumsum(digests, axis=1, dtype=np.int64)
    total = running[:, -1:]
    place = (running >= np.ceil(share * total)).argmax(axis=1)
    return np.where(total[:, 0] > 0, np.append(EDGES, 2.0)[place], np.inf)
