"""Clips that no leaf describes: found by quantiles that are frozen with the codebook, kept aside, and, once they are many
and alike, given leaves of their own behind the others. Existing leaves keep their numbers and their centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.assignment import cosines, nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.drift import DriftConfig
from pipelines.curation.embedding import unit_rows
from pipelines.curation.held_out import held_out_distances
from pipelines.curation.kmeans import KMeansConfig, spherical_kmeans
from pipelines.curation.kmeans import Rows as Lines
from pipelines.curation.leaf_statistics import FIXED, LeafStatistics

LEAF_QUANTILE, OVERALL_QUANTILE = 0.99, 0.999
TYPICAL_QUANTILE = 0.9  # clips of a concept that has its leaf lie this near to it, nine times in ten
SIBLING_QUANTILE = 0.01

Rows = NDArray[np.int64]


def novelty_thresholds(statistics: LeafStatistics, videos: Rows, overall: float, config: DriftConfig) -> NDArray[np.float32]:
    """(K,) distance beyond which a clip of a leaf is novel: `overall`, the .999 quantile of all clips, or the leaf's own
    .99 quantile where that is less and the leaf has the evidence: clips of `videos` (K,) videos, which are as one clip each.
    """
    own = np.where(videos >= config.leaf_videos, statistics.quantiles(LEAF_QUANTILE), np.inf)
    return np.minimum(overall, own).astype(np.float32)


def videos_in_leaves(video: Rows, leaf: Rows, leaves: int) -> Rows:
    """(K,) of how many videos each leaf holds clips."""
    return np.bincount(np.unique(video * leaves + leaf) % leaves, minlength=leaves)


@dataclass(frozen=True, eq=False)
class Appended:
    """A codebook with `codebook.leaves[first:]` new, and the buffer's clips (M,) under it: leaf, cosine, held-out distance.

    `explained` is the share of the buffer that lies in new leaves as near as clips of old leaves do.
    """

    codebook: Codebook
    first: int
    leaf: Rows
    cosine: NDArray[np.float64]
    distance: NDArray[np.float32]
    explained: float


def cluster_buffer(
    vectors: NDArray[np.float32], video: Rows, leaf: Rows, codebook: Codebook, typical: float, clips_per_leaf: float, config: DriftConfig
) -> Appended | None:
    """Cluster novel clips (M, D) of videos (M,), now in leaves (M,), alone, and append what describes them; None when
    nothing does.

    A k-means of anything finds something, so a new leaf counts for the clips that lie within `typical` of it when their
    videos are left out of its making; leaves with too few of those are dropped. `clips_per_leaf` is what old leaves hold.
    """
    count = max(1, min(len(vectors) // config.append_leaf_clips, round(len(vectors) / max(clips_per_leaf, 1.0))))
    fit = spherical_kmeans(Lines(vectors), count, seed=config.seed, config=KMeansConfig(starts=3))
    young = nearest_leaf(vectors, fit.centroids).leaf
    distance = _apart(vectors, video, young, fit.centroids)
    kept = np.flatnonzero(np.bincount(young[distance <= typical], minlength=count) >= config.append_leaf_clips)
    if len(kept) == 0:
        return None
    return _settle(vectors, video, leaf, with_leaves(codebook, fit.centroids[kept]), len(codebook.leaves), typical)


def _settle(vectors: NDArray[np.float32], video: Rows, leaf: Rows, grown: Codebook, first: int, typical: float) -> Appended:
    """The buffer's clips in the nearer of their old leaf and the nearest new one (an old leaf wins a tie)."""
    old = cosines(vectors, np.arange(len(leaf)), grown.leaves, leaf)
    new = nearest_leaf(vectors, grown.leaves[first:])
    moves = new.cosine > old
    distance = (1.0 - old).astype(np.float32)
    apart = _apart(vectors[moves], video[moves], new.leaf[moves], grown.leaves[first:])
    distance[moves] = np.minimum(distance[moves], apart)
    return Appended(
        grown, first, np.where(moves, first + new.leaf, leaf), np.where(moves, new.cosine, old), distance,
        float((moves & (distance <= typical)).mean()),
    )  # fmt: skip


def _apart(vectors: NDArray[np.float32], video: Rows, leaf: Rows, leaves: NDArray[np.float32]) -> NDArray[np.float32]:
    """Held-out distances (M,) of clips to leaves that they alone made."""
    members = LeafStatistics.empty(*leaves.shape)
    members.add_members(vectors, leaf)
    return held_out_distances(vectors, leaf, video, leaves, members.sums / FIXED, members.counts)


def with_leaves(codebook: Codebook, leaves: NDArray[np.float32]) -> Codebook:
    """The codebook with `leaves` (A, D) appended under their nearest parents, or under new parents where none is near.

    Near is what 99 % of the level's centroids are to their own parents. New parents are adopted the same way, up to the
    top; numbers on every level only grow.
    """
    centroids, parents = [np.concatenate([codebook.leaves, leaves])], []
    young = leaves
    for level, parent_of in enumerate(codebook.parents):
        above = codebook.centroids[level + 1]
        numbers = np.arange(len(parent_of))
        siblings = cosines(codebook.centroids[level], numbers, above, parent_of.astype(np.int64))
        found = nearest_leaf(young, above)
        adopted, founders = found.leaf.copy(), np.empty((0, leaves.shape[1]), np.float32)
        far = np.flatnonzero(found.cosine < np.quantile(siblings, SIBLING_QUANTILE))
        if len(far):
            group, founders = _families(young[far], float(np.quantile(siblings, SIBLING_QUANTILE)))
            adopted[far] = len(above) + group
        parents.append(np.concatenate([parent_of, adopted.astype(np.int32)]))
        centroids.append(np.concatenate([above, founders]))
        young = founders
    return Codebook(tuple(centroids), tuple(parents), codebook.encoder_digest)


def _families(young: NDArray[np.float32], near: float) -> tuple[Rows, NDArray[np.float32]]:
    """(family (A,), directions (F, D)): the first centroid founds a family, later ones within `near` of a founder join it."""
    founders: list[int] = []
    family = np.empty(len(young), np.int64)
    for number in range(len(young)):
        among = nearest_leaf(young[number : number + 1], young[founders]) if founders else None
        if among is not None and among.cosine[0] >= near:
            family[number] = among.leaf[0]
        else:
            family[number] = len(founders)
            founders.append(number)
    sums = np.zeros((len(founders), young.shape[1]))
    np.add.at(sums, family, young.astype(np.float64))
    return family, unit_rows(sums.astype(np.float32))
