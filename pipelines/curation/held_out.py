"""How far a clip would lie from the codebook if its video had not been in the fit: what new videos are compared with.

A centroid lies in the middle of the clips that made it, so those lie nearer to it than new clips of the same kind do; and
clips of one video resemble each other, so leaving out the clip alone changes little. Measured on pools of 5 clips a video
and 5 to 50 a leaf, ordinary new videos seem 1 to 30 standard deviations too far without this, 0.7 to 20 when single clips
are left out, and 0.0 to 0.25 when their videos are. Without it every batch after a fit would be drift.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.neighbours import faiss_threads

CANDIDATES = 8
WIDER = 8  # times as many, for clips whose nearest leaves hold little else than their own video

Rows = NDArray[np.int64]


def held_out_distances(
    vectors: NDArray[np.float32], leaf: Rows, video: Rows, leaves: NDArray[np.float32], sums: NDArray[np.float64], counts: Rows
) -> NDArray[np.float32]:
    """Cosine distances (n,) of unit `vectors` (n, D), of whole videos, to the nearest leaf without their own video.

    `leaf` and `video` (n,) say where they are and whose; `leaves` (K, D) are the centroids, `sums` (K, D) and `counts` (K,)
    of all clips that made them. Leaving video v out turns centroid k to S_k - T_vk, T the sum of v's clips in k. A clip for
    which no leaf has another video's clips is at distance 2.
    """
    import faiss

    best = np.full(len(vectors), -1.0)
    # T_vk and how many clips it sums, for every pair that occurs; its key is video * K + leaf.
    key = video * len(leaves) + leaf
    order = np.argsort(key, kind="stable")
    pairs, starts, members = np.unique(key[order], return_index=True, return_counts=True)
    own = np.add.reduceat(vectors[order].astype(np.float64), starts, axis=0)
    rows, wanted = np.arange(len(vectors)), min(CANDIDATES, len(leaves))
    with faiss_threads(1):
        index = faiss.IndexFlatIP(leaves.shape[1])
        index.add(np.ascontiguousarray(leaves))
        while True:
            near, candidate = index.search(np.ascontiguousarray(vectors[rows]), wanted)
            cosine = near.astype(np.float64)
            asked = video[rows, None] * len(leaves) + candidate
            place = np.searchsorted(pairs, asked).clip(0, len(pairs) - 1)
            at, rank = np.nonzero(pairs[place] == asked)
            for part in range(0, len(at), 4096):
                a, r = at[part : part + 4096], rank[part : part + 4096]
                inside = place[a, r]
                rest = sums[candidate[a, r]] - own[inside]
                length = np.maximum(np.linalg.norm(rest, axis=1), 1e-9)
                found = np.einsum("ij,ij->i", vectors[rows[a]], rest, dtype=np.float64) / length
                # Never nearer than it is: a resampled centroid is not the mean of its clips, which may lie round it unevenly.
                cosine[a, r] = np.where(counts[candidate[a, r]] > members[inside], np.minimum(found, cosine[a, r]), -1.0)
            best[rows] = cosine.max(axis=1)
            # Leaves beyond the candidates are no nearer than the last of them.
            open_rows = best[rows] < near[:, -1]
            if wanted == len(leaves) or not open_rows.any():
                return np.clip(1.0 - best, 0.0, 2.0).astype(np.float32)
            rows, wanted = rows[open_rows], min(WIDER * wanted, len(leaves))


def video_blocks(video: Rows, most: int) -> list[Rows]:
    """Row numbers of whole videos, about `most` at a time (more only for a video that has more), videos in their order."""
    order = np.argsort(video, kind="stable")
    sizes = np.bincount(video)
    ends = np.cumsum(sizes)
    group = (ends - sizes) // most  # videos whose first clip falls into the same stretch
    cuts = np.concatenate([[0], ends[:-1][np.diff(group) > 0], [len(order)]])
    return [order[start:stop] for start, stop in itertools.pairwise(cuts) if stop > start]
