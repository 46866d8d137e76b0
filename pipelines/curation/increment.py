"""clip_clusters after the first time: new clips enter a frozen codebook, drift is measured, and a decision is carried out.

Clips that were assigned before keep their labels and are not looked at again; the work is proportional to the new clips,
but for copying tables. Only a decision to refit, or another encoder, gives up the codebook.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.checks import Check
from pipelines.curation import clustering, pictures
from pipelines.curation.codebook import Codebook
from pipelines.curation.codebook_drift import codebook_drift
from pipelines.curation.decision import Decision, Findings, Novelty, append_limit, decide, wear_of
from pipelines.curation.drift import DriftConfig, Measured, measure, movers
from pipelines.curation.drift_picture import draw_drift
from pipelines.curation.fit_basis import fit_basis
from pipelines.curation.frozen import Frozen, is_frozen, load_statistics, save_statistics
from pipelines.curation.hierarchy import ClustersConfig
from pipelines.curation.leaf_statistics import LeafStatistics
from pipelines.curation.novelty import Appended, cluster_buffer, novelty_thresholds, videos_in_leaves
from pipelines.curation.pool import (
    ROUNDED,
    Pool,
    Rows,
    assign_new,
    carry_over,
    known_statistics,
    open_vectors,
    sides,
    videos_of,
)
from pipelines.curation.target_assignment import TargetClips, assign_targets, try_appended
from pipelines.curation.target_drift import target_drift
from pipelines.identity import digest_of
from pipelines.parts import Parts, open_parts
from pipelines.schemas import ASSIGNMENTS, read_table

LEAST_CLIPS = 2  # on either side, for anything to be compared


@dataclass(frozen=True, eq=False)
class Run:
    """One update: the folder to fill, the folders of the artefacts that it is made from, and the options."""

    folder: Path
    distinct: Path
    target_clips: Path
    target_embeddings: Path
    cluster: ClustersConfig
    drift: DriftConfig
    parts: Parts
    progress: Callable[..., None] | None


def update_clusters(
    folder: Path,
    previous_folder: Path | None,
    distinct_folder: Path,
    target_clips_folder: Path,
    target_embeddings_folder: Path,
    cluster_config: ClustersConfig | None = None,
    drift_config: DriftConfig | None = None,
    work: Path | None = None,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Everything of the clip_clusters artefact into `folder`, from the distinct clips, the targets and the artefact before.

    Without one, or with one of another encoder, a codebook is fitted; else it is kept as far as the decision allows. Beside
    the files of `clustering.build_clusters` there are leaf_statistics.npz, distances.npy, decision.json and drift.json, and
    drift.png when new clips could be compared with old ones. Raises `InputError` when clips and targets are of different
    encoders. Returns the summary.
    """
    started = time.monotonic()
    cluster, drift = cluster_config or ClustersConfig(), drift_config or DriftConfig()
    with open_parts(work) as parts:
        run = Run(folder, distinct_folder, target_clips_folder, target_embeddings_folder, cluster, drift, parts, progress)
        if previous_folder is None or not is_frozen(previous_folder):
            why = "there is no codebook yet" if previous_folder is None else "the former codebook came without statistics of its leaves"
            summary = _fit(run, Decision("fit", [f"{why}: one is fitted on all distinct clips"]), None)
        else:
            frozen = Frozen.load(previous_folder)
            encoder = open_vectors(distinct_folder)[2]
            if frozen.codebook.encoder_digest != encoder:
                found = f"the clips come from encoder {encoder}, the codebook from encoder {frozen.codebook.encoder_digest}"
                decision = Decision("re-embed", [f"{found}; vectors of two encoders cannot be compared, so a codebook is fitted anew"])
                summary = _fit(run, decision, frozen.codebook)
            else:
                summary = _follow(run, frozen, previous_folder)
    return {**summary, "seconds": time.monotonic() - started}


def _fit(
    run: Run, decision: Decision, former: Codebook | None, drift: Mapping[str, Any] | None = None, pool: Pool | None = None
) -> dict[str, Any]:
    """A new codebook in the place of `former`; after a `drift` measured on `pool`, also what the change does to its clips."""
    summary = clustering.build_clusters(
        run.folder, run.distinct, run.target_clips, run.target_embeddings, run.cluster, run.progress, run.parts.root / "fit"
    )
    codebook = Codebook.load(run.folder)
    clip_ids, vectors, _ = open_vectors(run.distinct)
    video = videos_of(run.distinct, clip_ids)
    leaf = read_table(run.folder / "assignments.parquet", ASSIGNMENTS, columns=["cluster"]).column("cluster").to_numpy().astype(np.int64)
    former_targets = read_table(run.folder / "target_assignments.parquet", ASSIGNMENTS)
    targets = assign_targets(codebook, former_targets, run.target_clips, run.target_embeddings, run.parts)
    asked, settings = targets.asked(len(codebook.leaves)), run.cluster.model_dump(mode="json")
    statistics, basis, distance = fit_basis(codebook, vectors, video, leaf, asked, settings, run.drift, run.parts)
    save_statistics(run.folder, statistics, basis, distance)
    report: dict[str, Any] = dict(drift or {"note": f"{decision.action}: there is nothing to compare with"})
    if former is not None and pool is not None:
        anchors = pool.known[: run.drift.anchors]  # in the order of their ids, which are digests: a random sample that stays
        report["codebooks"] = codebook_drift(former, codebook, pool.leaf[anchors], leaf[anchors])
    cost = run.parts.cost(len(clip_ids), "clips")
    cost |= {name: cost[name] + summary["cost"][name] for name in ("wall_s", "cpu_s", "parts", "parts_found")}
    return {**summary, **_conclude(run, decision, decision.action, report, former, codebook), "cost": cost}


def _follow(run: Run, frozen: Frozen, previous_folder: Path) -> dict[str, Any]:
    """Keep the frozen codebook: assign, measure, decide, and carry it out."""
    config, codebook, basis = run.drift, frozen.codebook, frozen.basis
    clip_ids, vectors, _ = open_vectors(run.distinct)
    pool = carry_over(frozen, clip_ids, vectors, videos_of(run.distinct, clip_ids))
    assign_new(pool, frozen, run.parts, run.progress)
    statistics = known_statistics(pool, frozen)
    statistics.add_rows(vectors, pool.new, pool.leaf, pool.distance)
    former_targets = read_table(previous_folder / "target_assignments.parquet", ASSIGNMENTS)
    targets = assign_targets(codebook, former_targets, run.target_clips, run.target_embeddings, run.parts)

    demand, served = target_drift(basis.asked, targets.asked(len(codebook.leaves)), targets.known, statistics.counts, config)
    measured, compared, moved = _measure(run, pool, frozen)
    novelty, appended = _novelty(pool, frozen, config)
    wear = wear_of(basis.fit_counts, basis.fit_digest, statistics, pool.distance[pool.novel])
    settings = basis.changes(run.cluster.model_dump(mode="json"))
    fit_sizes, sizes = (run.cluster.sizes(clips) for clips in (basis.fitted, len(clip_ids)))
    findings = Findings(len(clip_ids), len(pool.new), len(pool.gone), wear, novelty, measured, demand, settings, fit_sizes, sizes)
    decision = decide(findings, config)
    report = {
        **compared, "statistics": {name: found.described(name) for name, found in {**measured, "targets": demand}.items()},
        "movers": moved, "targets": served, "novelty": {**vars(novelty), "excess": novelty.excess, "limit": append_limit(len(clip_ids), config)},
        "wear": {**vars(wear), "staleness": statistics.staleness(codebook.leaves)},
    }  # fmt: skip
    if measured:
        title = f"{len(pool.new):,} new clips against {len(pool.known):,} before them: {decision.action}"
        draw_drift(run.folder / "drift.png", title, {**measured, "targets": demand}, moved, config)

    follows = config.on_drift == "follow" or bool(settings)  # other options are a person's wish, not drift
    if decision.action == "refit" and follows:
        return _fit(run, decision, codebook, report, pool)
    touched = np.unique(frozen.assignments.column("cluster").to_numpy()[pool.gone])
    done = decision.action if decision.action in ("none", "reweight") or follows else "none"
    if done == "append" and appended is not None:
        touched = np.union1d(touched, np.union1d(pool.leaf[pool.novel], appended.leaf))
        frozen, statistics = _append(pool, frozen, statistics, appended, config)
        targets = try_appended(targets, frozen.codebook, appended.first)
    vain = novelty.explained is not None and novelty.explained < config.append_explained
    basis = replace(frozen.basis, asked=targets.asked(len(frozen.codebook.leaves)), tried=novelty.buffer if vain else frozen.basis.tried)
    save_statistics(run.folder, statistics, basis, pool.distance)
    summary = _write_tables(run, pool, frozen.codebook, targets, previous_folder, touched.astype(np.int64))
    cost = run.parts.cost(len(pool.new), "clips")
    return {**summary, **_conclude(run, decision, done, report, codebook, frozen.codebook), "cost": cost}


def _measure(run: Run, pool: Pool, frozen: Frozen) -> tuple[dict[str, Measured], dict[str, Any], list[dict[str, Any]]]:
    """(statistics, what was compared, clusters that gained and lost most): new clips against those before them.

    Leaves are compared when the new clips fill them well enough for counts to mean something, else the first level
    above that they do fill, or the top.
    """
    config, codebook = run.drift, frozen.codebook
    levels = [len(level) for level in codebook.centroids]
    filled = [level for level, clusters in enumerate(levels) if len(pool.new) >= config.clips_per_bin * clusters]
    level = filled[0] if filled else len(levels) - 1
    compared: dict[str, Any] = {
        "reference": {"clips": len(pool.known)}, "window": {"clips": len(pool.new), "removed": len(pool.gone)}, "level": level,
        "clusters": levels[level], "exchange": config.exchange, "splits": config.splits, "seed": config.seed,
    }  # fmt: skip
    if min(len(pool.known), len(pool.new)) < LEAST_CLIPS:
        return {}, compared, []
    cluster = codebook.ancestors(level)[pool.leaf].astype(np.int64)
    reference, window = sides(pool, cluster, frozen.basis.thresholds, config)
    for name, side in (("reference", reference), ("window", window)):
        compared[name]["videos"] = int(side.video.max()) + 1
    key = digest_of([pool.clip_ids[row] for row in pool.new])
    return measure(reference, window, levels[level], config, key), compared, movers(reference, window, levels[level])


def _novelty(pool: Pool, frozen: Frozen, config: DriftConfig) -> tuple[Novelty, Appended | None]:
    """The novelty buffer and, when it is large enough, what leaves of its own would make of it."""
    basis = frozen.basis
    buffer = np.flatnonzero(pool.novel)
    novelty = Novelty(len(buffer), basis.tail * max(0, len(pool.clip_ids) - basis.fitted))
    limit = append_limit(len(pool.clip_ids), config)
    if novelty.excess <= limit or (basis.tried and len(buffer) - basis.tried < limit):
        return novelty, None
    fill = basis.fitted / len(basis.fit_counts)
    found = (np.asarray(pool.vectors[buffer]), pool.video[buffer], pool.leaf[buffer])
    appended = cluster_buffer(*found, frozen.codebook, basis.typical, fill, config)
    if appended is None:
        return replace(novelty, explained=0.0), None
    return replace(novelty, explained=appended.explained, leaves=len(appended.codebook.leaves) - appended.first), appended


def _append(
    pool: Pool, frozen: Frozen, statistics: LeafStatistics, appended: Appended, config: DriftConfig
) -> tuple[Frozen, LeafStatistics]:
    """Move the buffer's clips of `pool` (in place) to the appended leaves where those are nearer."""
    leaves = len(appended.codebook.leaves)
    buffer = np.flatnonzero(pool.novel)
    moves = appended.leaf >= appended.first
    rows = buffer[moves]
    statistics = statistics.extended(leaves)
    statistics.subtract(np.asarray(pool.vectors[rows]), pool.leaf[rows], pool.distance[rows])
    pool.leaf[rows], pool.distance[rows] = appended.leaf[moves], appended.distance[moves]
    pool.similarity[rows] = np.round(appended.cosine[moves], ROUNDED)
    statistics.add_rows(pool.vectors, rows, pool.leaf, pool.distance)
    videos = videos_in_leaves(pool.video[rows], pool.leaf[rows], leaves)
    of_new = novelty_thresholds(statistics, videos, frozen.basis.overall, config)[appended.first :]
    thresholds = np.concatenate([frozen.basis.thresholds, of_new])
    pool.novel[buffer] = pool.distance[buffer] > thresholds[pool.leaf[buffer]]
    return replace(frozen, codebook=appended.codebook, basis=replace(frozen.basis, thresholds=thresholds)), statistics


def _write_tables(run: Run, pool: Pool, codebook: Codebook, targets: TargetClips, previous_folder: Path, touched: Rows) -> dict[str, Any]:
    """The tables and pictures that `clustering.build_clusters` writes after a fit, for a codebook that was kept.

    Representatives can change only in leaves with new clips or among `touched`, so only their candidates are compared.
    """
    codebook.save(run.folder)
    parent = codebook.ancestors(-1).astype(np.int64)
    leaves = len(codebook.leaves)
    clustering.write_assignments(run.folder / "assignments.parquet", pool.clip_ids, pool.leaf, parent, pool.similarity, pool.novel)
    clustering.write_assignments(run.folder / "target_assignments.parquet", targets.clip_ids, targets.leaf, parent, targets.similarity)
    shown = [clip_id for found in json.loads((previous_folder / "representatives.json").read_text()).values() for clip_id in found]
    candidate = np.isin(pool.leaf, touched)
    candidate[pool.new] = True
    candidate |= pc.is_in(pa.array(pool.clip_ids, pa.string()), value_set=pa.array(shown, pa.string())).to_numpy(zero_copy_only=False)
    rows = np.flatnonzero(candidate)
    found = clustering.representatives([pool.clip_ids[row] for row in rows], pool.leaf[rows], pool.similarity[rows], leaves)
    (run.folder / "representatives.json").write_text(json.dumps(found))
    shutil.copyfile(previous_folder / clustering.OBJECTIVE, run.folder / clustering.OBJECTIVE)  # how the codebook was fitted
    training = targets.of_set >= 0
    pictures.draw_cluster_map(run.folder / "cluster_map.png", pool.vectors, pool.leaf, parent, np.asarray(targets.vectors[training]))
    sizes = np.bincount(pool.leaf, minlength=leaves)
    return {
        "clips": len(pool.leaf), "clusters": leaves, "coarse_clusters": len(codebook.centroids[-1]),
        "levels": [len(level) for level in codebook.centroids], "largest_cluster": int(sizes.max()),
        "smallest_cluster": int(sizes.min()), "mean_cosine": float(pool.similarity.mean(dtype=np.float64)),
        "clusters_with_targets": len(np.unique(targets.leaf[training])),
        "target_mean_cosine": float(targets.similarity.mean(dtype=np.float64)) if len(targets.leaf) else None,
    }  # fmt: skip


def _conclude(
    run: Run, decision: Decision, done: str, report: Mapping[str, Any], former: Codebook | None, codebook: Codebook
) -> dict[str, Any]:
    """decision.json and drift.json, and what the summary says of them."""
    options = run.drift.model_dump(mode="json")
    verdict = {
        "action": decision.action, "carried_out": done, "reasons": decision.reasons, "on_drift": run.drift.on_drift, "thresholds": options,
        "codebook": codebook.version, "previous_codebook": former.version if former is not None else None, "leaves": len(codebook.leaves),
    }  # fmt: skip
    for name, content in (("decision.json", verdict), ("drift.json", report)):
        (run.folder / name).write_text(json.dumps(content, indent=1, sort_keys=True))
    drawn = [name for name in ("cluster_map.png", "drift.png") if (run.folder / name).is_file()]
    new = report.get("window", {}).get("clips", 0)
    return {
        "decision": decision.action, "carried_out": done, "reasons": decision.reasons, "codebook": codebook.version, "new_clips": new,
        "pictures": drawn,
    }  # fmt: skip


def check_increment(folder: Path) -> dict[str, Check]:
    """Blocking check: the leaves' statistics are those of the assignments, clip for clip."""
    assignments = read_table(folder / "assignments.parquet", ASSIGNMENTS, columns=["cluster", "novel"])
    statistics, basis = load_statistics(folder)
    leaf, novel = assignments.column("cluster").to_numpy(), assignments.column("novel").to_numpy(zero_copy_only=False)
    distances = np.load(folder / "distances.npy", allow_pickle=False)
    counted = np.array_equal(np.bincount(leaf, minlength=len(statistics.counts)), statistics.counts)
    digested = LeafStatistics.empty(len(statistics.counts), 0)
    digested.add_distances(leaf.astype(np.int64), distances)
    agree = counted and np.array_equal(digested.digests, statistics.digests) and len(basis.thresholds) == len(statistics.counts)
    return {
        "statistics_agree": Check(
            agree, "as many clips, at the same distances, in every leaf's statistics as in the assignments",
            f"{int(statistics.counts.sum())} clips in the statistics, {len(leaf)} in the assignments, {int(novel.sum())} novel",
            "materialize clip_clusters again without the previous one",
        )
    }  # fmt: skip
