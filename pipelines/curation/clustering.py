"""Clusters: a hierarchical codebook over the distinct clips, and where the clips and the target sets fall in it.

V-JEPA 2 used 1.5 M flat clusters for 316 M scenes, some 200 scenes each; a small pool needs a few clips each (`ClustersConfig`). Retrieval
works on the leaves; upper levels serve balanced sampling, and people who look at the pool.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.curation.codebook import Codebook
from pipelines.curation.hierarchy import ClustersConfig, FitReport, fit_codebook
from pipelines.curation.pictures import draw_cluster_map
from pipelines.curation.pool import ROUNDED, assign_rows, open_vectors
from pipelines.errors import InputError
from pipelines.parts import open_parts
from pipelines.schemas import ASSIGNMENTS, CLIPS, read_table, write_table

REPRESENTATIVES = 3
UNIT_TOLERANCE = 1e-4
OBJECTIVE = "objective.json"


def build_clusters(
    folder: Path,
    distinct_folder: Path,
    target_clips_folder: Path,
    target_embeddings_folder: Path,
    config: ClustersConfig | None = None,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Cluster the distinct clips into `folder`: the codebook's files, assignments.parquet, target_assignments.parquet,
    representatives.json, cluster_map.png, objective.json (every pass of every k-means).

    Every level, resampling round and batch of assignments is a part in `work`. Raises `InputError` when there is no clip, or
    the targets are of another encoder. Returns the summary.
    """
    started = time.monotonic()
    config = config or ClustersConfig()
    clip_ids, vectors, encoder = open_vectors(distinct_folder)
    target_ids, target_vectors, target_encoder = open_vectors(target_embeddings_folder)
    training = _training(target_clips_folder, target_ids, target_embeddings_folder)
    if not clip_ids:
        raise InputError("there is no distinct clip to cluster", expected="at least one", found="0", remedy="add videos to the pool")
    if target_encoder != encoder:
        raise InputError(
            "clips and targets were embedded by different encoders", expected=f"encoder {encoder}", found=f"encoder {target_encoder}",
            remedy="materialize clip_embeddings and target_embeddings again with one encoder, then distinct_clips",
        )  # fmt: skip
    with open_parts(work) as parts:
        codebook, report = fit_codebook(vectors, clip_ids, encoder, config, parts, progress)
        leaf, cosine = assign_rows(vectors, np.arange(len(clip_ids)), codebook, parts, "assign", progress)
        target_leaf, target_cosine = assign_rows(target_vectors, np.arange(len(target_ids)), codebook, parts, "assign-targets")
        cost = parts.cost(len(clip_ids), "clips")
    codebook.save(folder)
    top = codebook.ancestors(-1).astype(np.int64)
    similarity = np.round(cosine, ROUNDED).astype(np.float32)
    write_assignments(folder / "assignments.parquet", clip_ids, leaf, top, similarity)
    write_assignments(folder / "target_assignments.parquet", target_ids, target_leaf, top, np.round(target_cosine, ROUNDED))
    (folder / "representatives.json").write_text(json.dumps(representatives(clip_ids, leaf, similarity, len(codebook.leaves))))
    note = {"codebook": codebook.version, "clips": len(clip_ids), "objective": float(np.sum(2.0 - 2.0 * cosine)), **report.as_dict()}
    (folder / OBJECTIVE).write_text(json.dumps(note, indent=1))
    draw_cluster_map(folder / "cluster_map.png", vectors, leaf, top, target_vectors[training])
    return {**_summary(codebook, report, leaf, cosine), **_target_summary(target_leaf, target_cosine, training), "cost": cost,
            "pictures": ["cluster_map.png"], "seconds": time.monotonic() - started}  # fmt: skip


def _training(clips_folder: Path, clip_ids: list[str], embeddings_folder: Path) -> NDArray[np.int64]:
    """Rows of the target clips that a target set is trained on."""
    table = read_table(clips_folder / "clips.parquet", CLIPS, columns=["clip_id", "source"])
    if table.column("clip_id").to_pylist() != clip_ids:
        raise InputError(
            f"{embeddings_folder} does not embed the clips of {clips_folder}", expected=f"{len(table)} vectors in the clips' order",
            found=f"{len(clip_ids)} vectors of other clips", remedy="materialize the embeddings again",
        )  # fmt: skip
    return np.flatnonzero([source.endswith("/train") for source in table.column("source").to_pylist()])


def _summary(codebook: Codebook, report: FitReport, leaf: NDArray[np.int64], cosine: NDArray[np.float64]) -> dict[str, Any]:
    sizes = np.bincount(leaf, minlength=len(codebook.leaves))
    return {
        "clips": len(leaf), "clusters": len(codebook.leaves), "coarse_clusters": len(codebook.centroids[-1]),
        "levels": [len(level) for level in codebook.centroids], "rounds": [len(level.rounds) - 1 for level in report.levels],
        "largest_cluster": int(sizes.max()), "smallest_cluster": int(sizes.min()), "mean_cosine": float(cosine.mean()),
        "codebook": codebook.version, "threads": report.threads, "device": report.device,
    }  # fmt: skip


def _target_summary(leaf: NDArray[np.int64], cosine: NDArray[np.float64], training: NDArray[np.int64]) -> dict[str, Any]:
    return {"clusters_with_targets": len(np.unique(leaf[training])), "target_mean_cosine": float(cosine.mean()) if len(cosine) else None}


def write_assignments(
    path: Path,
    clip_ids: Sequence[str],
    cluster: NDArray[np.integer],
    parent: NDArray[np.integer],
    similarity: NDArray[np.floating],
    novel: NDArray[np.bool_] | None = None,
) -> None:
    """One assignments table: leaf (N,), its ancestor on the top level (`parent` (K,)), cosine (N,) to the leaf's centroid,
    and whether the clip is `novel` (N,), which no clip is that the codebook was fitted on."""
    columns = {
        "clip_id": pa.array(clip_ids, pa.string()), "cluster": pa.array(cluster.astype(np.int32)),
        "coarse_cluster": pa.array(parent[cluster].astype(np.int32)), "similarity": pa.array(similarity.astype(np.float32)),
        "novel": pa.array(np.zeros(len(cluster), bool) if novel is None else novel),
    }  # fmt: skip
    write_table(pa.table(columns), path, ASSIGNMENTS)


def representatives(
    clip_ids: Sequence[str], cluster: NDArray[np.integer], similarity: NDArray[np.floating], clusters: int
) -> dict[str, list[str]]:
    """For each cluster the ids of the clips nearest its centroid, nearest first (ties by id)."""
    by_id = np.empty(len(clip_ids), np.int64)
    by_id[np.argsort(np.asarray(clip_ids), kind="stable")] = np.arange(len(clip_ids))
    order = np.lexsort((by_id, -similarity, cluster))
    sizes = np.bincount(cluster, minlength=clusters)
    starts = np.cumsum(sizes) - sizes
    return {
        str(number): [clip_ids[row] for row in order[start : start + min(size, REPRESENTATIVES)]]
        for number, (start, size) in enumerate(zip(starts.tolist(), sizes.tolist(), strict=True))
    }


def check_clusters(folder: Path) -> dict[str, Check]:
    """Blocking check: centroids of unit length on every level, and every clip and target in a leaf, under its ancestor."""
    codebook = Codebook.load(folder)
    assignments = read_table(folder / "assignments.parquet", ASSIGNMENTS)
    targets = read_table(folder / "target_assignments.parquet", ASSIGNMENTS)
    leaf, coarse = (np.concatenate([table.column(name).to_numpy() for table in (assignments, targets)]) for name in ("cluster", "coarse_cluster"))
    inside = bool(((leaf >= 0) & (leaf < len(codebook.leaves))).all())
    under = inside and bool((codebook.ancestors(-1)[leaf] == coarse).all())
    unit = all(bool(np.allclose(np.linalg.norm(level, axis=1), 1.0, atol=UNIT_TOLERANCE)) for level in codebook.centroids)
    used = len(np.unique(assignments.column("cluster").to_numpy()))
    return {
        "not_empty": Check(
            len(assignments) > 0 and under and unit, "unit centroids, and every clip and target in one leaf, under that leaf's ancestor",
            f"{len(codebook.leaves)} leaves ({used} with clips) under {len(codebook.centroids[-1])}, {len(assignments)} clips, {len(targets)} target clips",
            "materialize clip_clusters again after distinct_clips and target_embeddings",
        )
    }  # fmt: skip
