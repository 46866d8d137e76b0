"""The nearest leaf of a frozen codebook, decided in float64: a pure function of the clip's vector and the codebook.

A float32 matrix product gives a row other last bits when other rows come with it (BLAS has several kernels, and picks
by size), so two leaves that are almost equally near could swap when a clip comes in a smaller batch. FAISS therefore
only proposes leaves; those that float32 cannot tell apart are measured again, one pair at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.neighbours import faiss_threads

PROPOSED = 8  # leaves that FAISS proposes; more than these within rounding of each other is a case for all leaves
BLOCK = 8192  # rows searched at a time, which bounds the memory
PAIRS = 4096  # pairs measured in float64 at a time


@dataclass(frozen=True)
class Nearest:
    """`leaf` (N,) int64; `cosine` (N,) float64 to it."""

    leaf: NDArray[np.int64]
    cosine: NDArray[np.float64]


def nearest_leaf(vectors: NDArray[np.float32], leaves: NDArray[np.float32]) -> Nearest:
    """For unit rows (N, D) the leaf (K, D) of the largest cosine, the first of equals.

    Every row's answer has the same bits whatever rows come with it, so a clip assigned today and one assigned among a
    million others agree.
    """
    blocks = [_block(np.ascontiguousarray(vectors[start : start + BLOCK]), leaves) for start in range(0, len(vectors), BLOCK)]
    if not blocks:
        return Nearest(np.empty(0, np.int64), np.empty(0))
    return Nearest(np.concatenate([block.leaf for block in blocks]), np.concatenate([block.cosine for block in blocks]))


def cosines(vectors: NDArray[np.float32], rows: NDArray[np.int64], leaves: NDArray[np.float32], numbers: NDArray[np.int64]) -> NDArray[np.float64]:
    """(P,) float64 cosine of row `rows[p]` of `vectors` and leaf `numbers[p]`; a pair's bits depend on that pair alone."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS):
        part = slice(start, start + PAIRS)
        found[part] = np.einsum("ij,ij->i", vectors[rows[part]].astype(np.float64), leaves[numbers[part]].astype(np.float64))
    return found


def _block(vectors: NDArray[np.float32], leaves: NDArray[np.float32]) -> Nearest:
    import faiss

    count, size = leaves.shape
    wanted = min(PROPOSED, count)
    with faiss_threads(1):
        index = faiss.IndexFlatIP(size)
        index.add(np.ascontiguousarray(leaves))
        near, proposed = index.search(vectors, wanted)  # (N, wanted) float32 cosines, falling, and their leaves
    # Two float32 dot products of unit rows can each be off by D * 2^-24, in whatever order they were summed.
    window = 2.0 * size * 2.0**-24
    unsure = near >= near[:, :1] - window
    exact = np.full(near.shape, -np.inf)
    rows, ranks = np.nonzero(unsure)
    exact[rows, ranks] = cosines(vectors, rows, leaves, proposed[rows, ranks])
    first = np.lexsort((proposed, -exact), axis=1)[:, :1]
    leaf = np.take_along_axis(proposed, first, axis=1)[:, 0].astype(np.int64)
    best = np.take_along_axis(exact, first, axis=1)[:, 0]
    if wanted < count:
        for row in np.flatnonzero(unsure.all(axis=1)):  # rare: eight or more leaves as good as equal, say copies of one
            measured = cosines(vectors, np.full(count, row), leaves, np.arange(count))
            leaf[row] = measured.argmax()
            best[row] = measured[leaf[row]]
    return Nearest(leaf, best)
