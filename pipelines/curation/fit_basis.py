"""What is fixed when a codebook is fitted: statistics of its leaves, and the distances beyond which later clips are novel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.codebook import Codebook
from pipelines.curation.drift import DriftConfig
from pipelines.curation.frozen import Basis
from pipelines.curation.held_out import held_out_distances, video_blocks
from pipelines.curation.leaf_statistics import BLOCK, FIXED, LeafStatistics
from pipelines.curation.novelty import OVERALL_QUANTILE, TYPICAL_QUANTILE, novelty_thresholds, videos_in_leaves
from pipelines.curation.pool import Rows
from pipelines.curation.target_drift import Asked
from pipelines.parts import Parts


def fit_basis(
    codebook: Codebook, vectors: NDArray[np.float32], video: Rows, leaf: Rows, asked: Asked, settings: Mapping[str, Any],
    config: DriftConfig, parts: Parts,
) -> tuple[LeafStatistics, Basis, NDArray[np.float32]]:  # fmt: skip
    """(statistics, basis, held-out distances (N,)) of the clips that `codebook` was fitted on: vectors (N, D) (a memory map
    will do), numbers of their videos (N,) and their leaves (N,)."""
    statistics = LeafStatistics.empty(*codebook.leaves.shape)
    statistics.add_members(vectors, leaf)
    sums = statistics.sums / FIXED

    def build(folder: Path, batch: Sequence[Rows]) -> dict[str, Any]:
        rows = batch[0]
        found = held_out_distances(np.asarray(vectors[rows]), leaf[rows], video[rows], codebook.leaves, sums, statistics.counts)
        np.save(folder / "distance.npy", found)
        return {"clips": len(rows)}

    blocks = video_blocks(video, BLOCK)
    distance = np.empty(len(leaf), np.float32)
    for rows, part in zip(blocks, parts.map("held-out", blocks, 1, build), strict=True):
        distance[rows] = np.load(part.folder / "distance.npy")
    statistics.add_distances(leaf, distance)
    overall = statistics.overall_quantile(OVERALL_QUANTILE)
    thresholds = novelty_thresholds(statistics, videos_in_leaves(video, leaf, len(codebook.leaves)), overall, config)
    basis = Basis(
        thresholds, overall, statistics.overall_quantile(TYPICAL_QUANTILE), float((distance > thresholds[leaf]).mean()), 0,
        statistics.counts.copy(), statistics.digests.sum(axis=0, dtype=np.int64), settings, asked,
    )  # fmt: skip
    return statistics, basis, distance
