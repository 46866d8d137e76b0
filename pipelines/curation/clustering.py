"""Clusters: a two-level k-means codebook over the distinct clips, and where the target sets fall in it.

V-JEPA 2 used 1.5 M flat clusters for 316 M scenes, some 200 scenes each; a small pool needs a few clips each. The coarse
level clusters the fine centroids; it is for people to look at, retrieval works on the fine one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.curation.duplicates import clips_with_vectors
from pipelines.curation.embedding import read_vectors
from pipelines.curation.kmeans import assign, spherical_kmeans
from pipelines.curation.pictures import draw_cluster_map
from pipelines.errors import InputError
from pipelines.recipes import Part
from pipelines.schemas import ASSIGNMENTS, read_table, table_of, write_table

REPRESENTATIVES = 3


class ClustersConfig(Part):
    """`clips_per_cluster` sets the number of fine clusters, up to `max_clusters`."""

    clips_per_cluster: int = 4
    max_clusters: int = 48
    coarse_clusters: int = 6
    iterations: int = 25
    starts: int = 3
    seed: int = 0

    def clusters(self, clips: int) -> int:
        return max(1, min(self.max_clusters, clips // self.clips_per_cluster, clips))


def build_clusters(
    folder: Path,
    distinct_folder: Path,
    target_clips_folder: Path,
    target_embeddings_folder: Path,
    config: ClustersConfig | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Cluster the distinct clips into `folder`: centroids.npy, coarse_centroids.npy, assignments.parquet,
    target_assignments.parquet, representatives.json, cluster_map.png. Returns the summary."""
    started = time.monotonic()
    config = config or ClustersConfig()
    clip_ids, vectors = read_vectors(distinct_folder)
    target_clips, target_vectors = clips_with_vectors(target_clips_folder, target_embeddings_folder)
    if not clip_ids:
        raise InputError("there is no distinct clip to cluster", expected="at least one", found="0", remedy="add videos to the pool")
    fine = spherical_kmeans(vectors, config.clusters(len(vectors)), seed=config.seed, iterations=config.iterations, starts=config.starts)
    if progress is not None:
        progress(1, 2, "fine clusters done")
    groups = min(config.coarse_clusters, len(fine.centroids))
    coarse = spherical_kmeans(fine.centroids, groups, seed=config.seed, iterations=config.iterations, starts=config.starts)
    parent, _ = assign(fine.centroids, coarse.centroids)
    np.save(folder / "centroids.npy", fine.centroids)
    np.save(folder / "coarse_centroids.npy", coarse.centroids)
    cluster, cosine = assign(vectors, fine.centroids)
    target_cluster, target_cosine = assign(target_vectors, fine.centroids)
    write_assignments(folder / "assignments.parquet", clip_ids, cluster, parent, cosine)
    target_ids = [clip["clip_id"] for clip in target_clips]
    write_assignments(folder / "target_assignments.parquet", target_ids, target_cluster, parent, target_cosine)
    (folder / "representatives.json").write_text(json.dumps(representatives(clip_ids, cluster, cosine, len(fine.centroids))))
    training = np.array([clip["source"].endswith("/train") for clip in target_clips], bool)
    draw_cluster_map(folder / "cluster_map.png", vectors, cluster, parent, target_vectors[training])
    if progress is not None:
        progress(2, 2)
    sizes = np.bincount(cluster, minlength=len(fine.centroids))
    return {
        "clips": len(clip_ids), "clusters": len(fine.centroids), "coarse_clusters": groups, "largest_cluster": int(sizes.max()),
        "smallest_cluster": int(sizes.min()), "mean_cosine": fine.objective,
        "clusters_with_targets": len(set(target_cluster[training].tolist())), "target_mean_cosine": float(target_cosine.mean()),
        "pictures": ["cluster_map.png"], "seconds": time.monotonic() - started,
    }  # fmt: skip


def write_assignments(
    path: Path, clip_ids: list[str], cluster: NDArray[np.int64], parent: NDArray[np.int64], cosine: NDArray[np.float32]
) -> None:
    """One assignments table: fine cluster, its coarse cluster, cosine to the fine centroid."""
    rows = [
        {"clip_id": clip_id, "cluster": int(fine), "coarse_cluster": int(parent[fine]), "similarity": round(float(near), 6)}
        for clip_id, fine, near in zip(clip_ids, cluster, cosine, strict=True)
    ]
    write_table(table_of(ASSIGNMENTS, rows), path, ASSIGNMENTS)


def representatives(
    clip_ids: list[str], cluster: NDArray[np.int64], cosine: NDArray[np.float32], clusters: int
) -> dict[str, list[str]]:
    """For each cluster the ids of the clips nearest its centroid, nearest first (ties by id)."""
    members: dict[str, list[tuple[float, str]]] = {str(number): [] for number in range(clusters)}
    for clip_id, number, near in zip(clip_ids, cluster, cosine, strict=True):
        members[str(int(number))].append((-float(near), clip_id))
    return {number: [clip_id for _, clip_id in sorted(found)[:REPRESENTATIVES]] for number, found in members.items()}


def check_clusters(folder: Path) -> dict[str, Check]:
    """Blocking check: clusters of unit length, and every clip and target assigned to one of them."""
    centroids, coarse = np.load(folder / "centroids.npy"), np.load(folder / "coarse_centroids.npy")
    assignments = read_table(folder / "assignments.parquet", ASSIGNMENTS)
    targets = read_table(folder / "target_assignments.parquet", ASSIGNMENTS)
    labels = np.concatenate([table.column("cluster").to_numpy() for table in (assignments, targets)])
    inside = bool(((labels >= 0) & (labels < len(centroids))).all())
    unit = bool(np.allclose(np.linalg.norm(centroids, axis=1), 1.0, atol=1e-4))
    used = len(np.unique(assignments.column("cluster").to_numpy()))
    return {
        "not_empty": Check(
            len(assignments) > 0 and len(targets) > 0 and inside and unit and len(coarse) <= len(centroids),
            "unit centroids, and every clip and target in one of them",
            f"{len(centroids)} clusters ({used} with clips, {len(coarse)} coarse), {len(assignments)} clips, {len(targets)} target clips",
            "materialize clip_clusters again after distinct_clips and target_embeddings",
        )
    }  # fmt: skip
