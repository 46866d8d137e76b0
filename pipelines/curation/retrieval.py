"""Target-weighted retrieval (V-JEPA 2, appendix A.2): which clips to draw, how often, and for which target's sake.

A cluster's share is w_c = sum_d w_d N_dc / N_d over the targets d, spread over its pool clips. Two things the paper
leaves open are decided here: no clip is drawn more than `repeat_cap` times its uniform share (rare clusters would
otherwise repeat hundreds of times), and a part of the draws stays uniform, so that what no target asks for is not lost.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.curation.embedding import read_vectors
from pipelines.curation.pictures import draw_distribution
from pipelines.curation.targets import set_weights
from pipelines.errors import InputError, Removal
from pipelines.recipes import Part
from pipelines.schemas import ASSIGNMENTS, CLIPS, REMOVALS, SELECTION, read_table, table_of, write_table

Vector = NDArray[np.float64]
UNIFORM = "uniform"  # in the column `target`: drawn although no target asks for its cluster
SUM_TOLERANCE = 1e-9
MIN_KL = 0.01


class SelectionConfig(Part):
    """The paper: support 1, no smoothing, no cap, no uniform part (repeat_cap large, uniform_mix 0)."""

    support: int = 1  # least number of a target's clips in a cluster for it to count (DINOv2's rule: 4)
    smoothing: int = 1  # nearest clusters that a target clip is spread over; 1 is no smoothing
    smoothing_temperature: float = 0.02  # in units of (1 - cosine)
    repeat_cap: float = 4.0  # largest weight of a clip, in units of its uniform share
    uniform_mix: float = 0.3  # share of the draws spread evenly over all distinct clips


@dataclass(frozen=True)
class Demand:
    """What the targets ask of K clusters: `share[d]` (K,) is p_d(c), `weights[d]` its w_d; only supported clusters count."""

    share: dict[str, Vector]
    weights: dict[str, float]

    @property
    def clusters(self) -> Vector:
        """w_c (K,), summing to 1."""
        return np.sum([self.weights[name] * share for name, share in self.share.items()], axis=0)


def demand_of(hits: Mapping[str, Vector], weights: Mapping[str, float], support: int) -> Demand:
    """From `hits[d]` (K,), the number (or smoothed mass) of target d's clips in each cluster.

    Targets of weight 0 are left out; clusters with fewer than `support` clips of a target do not count for it. Raises
    `InputError` when no target is left or one has no supported cluster.
    """
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        raise InputError("no target set has a weight", expected="at least one weight above 0", found=str(dict(weights)), remedy="mend targets.yaml")
    share = {}
    for name in sorted(used):
        counted = np.where(hits[name] >= support, hits[name], 0.0)
        if counted.sum() <= 0:
            raise InputError(
                f"target set {name} has no cluster with {support} of its clips", expected="support in at least one cluster",
                found=f"at most {hits[name].max(initial=0):g} clips in one", remedy="lower `support`, or add training videos to the set",
            )  # fmt: skip
        share[name] = counted / counted.sum()
    total = sum(used.values())
    return Demand(share, {name: weight / total for name, weight in sorted(used.items())})


def capped(shares: Vector, counts: NDArray[np.int64], ceiling: float) -> tuple[Vector, float]:
    """Largest multiple of `shares` (K,) in which no cluster exceeds `ceiling * counts`, scaled to sum to 1; exact.

    Returns (masses (K,), excess): where even full clusters cannot hold a mass of 1, the excess could not be placed.
    """
    room = ceiling * counts.astype(np.float64)
    active = (shares > 0) & (room > 0)
    masses = np.zeros_like(shares, dtype=np.float64)
    if not active.any():
        return masses, 1.0
    if room[active].sum() <= 1.0:
        masses[active] = room[active]
        return masses, float(max(0.0, 1.0 - room[active].sum()))
    # Clusters fill up in the order of room / share; lambda is where the mass placed reaches 1.
    rows = np.flatnonzero(active)
    rows = rows[np.argsort(room[rows] / shares[rows], kind="stable")]
    filled = np.concatenate([[0.0], np.cumsum(room[rows])])[:-1]
    open_share = np.cumsum(shares[rows][::-1])[::-1]
    scale = (1.0 - filled) / open_share
    first_open = int(np.argmax(scale <= room[rows] / shares[rows]))
    masses[rows[:first_open]] = room[rows[:first_open]]
    masses[rows[first_open:]] = scale[first_open] * shares[rows[first_open:]]
    return masses, 0.0


def divergence(first: Vector, second: Vector) -> float:
    """KL(first || second) in nats; 0 log 0 is 0."""
    inside = first > 0
    return float(np.sum(first[inside] * np.log(first[inside] / second[inside])))


@dataclass(frozen=True)
class Allotment:
    """Weights of N clips (sum 1) and how they came about: `unserved` demand on clusters without clips, `spilled` mass
    that the cap kept from the demanded clusters and that went to the others evenly."""

    weights: Vector
    unserved: float
    spilled: float


def allot(cluster: NDArray[np.int64], demand: Vector, config: SelectionConfig) -> Allotment:
    """Weights of clips whose clusters are `cluster` (N,), for the `demand` w_c (K,) on K clusters."""
    count = len(cluster)
    sizes = np.bincount(cluster, minlength=len(demand))
    served = np.where(sizes > 0, demand, 0.0)
    unserved = float(demand.sum() - served.sum())
    mix = config.uniform_mix
    if not (0 <= mix <= 1 and config.repeat_cap >= 1):
        raise InputError(
            "the selection's options contradict themselves", expected="0 <= uniform_mix <= 1 and repeat_cap >= 1",
            found=f"uniform_mix {mix:g}, repeat_cap {config.repeat_cap:g}", remedy="mend them",
        )  # fmt: skip
    if served.sum() <= 0 or mix == 1:
        return Allotment(np.full(count, 1.0 / count), unserved, 0.0)
    ceiling = (config.repeat_cap - mix) / (1 - mix) / count  # of the retrieved part, so that the whole stays below the cap
    masses, spilled = capped(served, sizes, ceiling)
    per_clip = np.divide(masses, sizes, out=np.zeros_like(masses), where=sizes > 0)[cluster]
    if spilled > 0:
        rest = per_clip < ceiling * (1 - 1e-12)
        per_clip = np.where(rest, per_clip + spilled / max(1, int(rest.sum())), per_clip)
    weights = mix / count + (1 - mix) * per_clip
    return Allotment(weights / weights.sum(), unserved, spilled)


def target_hits(
    target_clips: Sequence[Mapping[str, Any]], cluster: NDArray[np.int64], vectors: NDArray[np.float32],
    centroids: NDArray[np.float32], config: SelectionConfig,
) -> dict[str, Vector]:  # fmt: skip
    """For each target set the number of its training clips in each cluster (K,), spread over near ones when smoothing."""
    names = [str(clip["source"]).rsplit("/", 1)[0] for clip in target_clips]
    training = [row for row, clip in enumerate(target_clips) if str(clip["source"]).endswith("/train")]
    hits = {name: np.zeros(len(centroids)) for name in sorted(set(names))}
    for row in training:
        if config.smoothing <= 1:
            hits[names[row]][cluster[row]] += 1.0
            continue
        cosine = vectors[row].astype(np.float64) @ centroids.T.astype(np.float64)
        near = np.argsort(-cosine, kind="stable")[: config.smoothing]
        pull = np.exp((cosine[near] - cosine[near[0]]) / config.smoothing_temperature)
        hits[names[row]][near] += pull / pull.sum()
    return hits


def build_selection(
    folder: Path,
    distinct_folder: Path,
    clusters_folder: Path,
    target_clips_folder: Path,
    target_embeddings_folder: Path | None = None,
    config: SelectionConfig | None = None,
) -> dict[str, Any]:
    """Weigh the distinct clips into `folder`: selection.parquet, distribution.json, distribution.png. Returns the summary.

    `target_embeddings_folder` is needed for smoothing alone.
    """
    started = time.monotonic()
    config = config or SelectionConfig()
    clips = read_table(distinct_folder / "clips.parquet", CLIPS).to_pylist()
    assignments = read_table(clusters_folder / "assignments.parquet", ASSIGNMENTS)
    if assignments.column("clip_id").to_pylist() != [clip["clip_id"] for clip in clips]:
        raise InputError(
            "the clusters are of other clips", expected="assignments of the distinct clips, in their order", found=f"{len(assignments)} others",
            remedy="materialize clip_clusters again",
        )  # fmt: skip
    centroids = np.load(clusters_folder / "centroids.npy", allow_pickle=False)
    target_clips = read_table(target_clips_folder / "clips.parquet", CLIPS).to_pylist()
    target_cluster = read_table(clusters_folder / "target_assignments.parquet", ASSIGNMENTS).column("cluster").to_numpy()
    vectors = np.empty((0, centroids.shape[1]), np.float32)
    if config.smoothing > 1:
        if target_embeddings_folder is None:
            raise InputError("smoothing needs the targets' vectors", expected="target_embeddings", found="none", remedy="set smoothing to 1")
        vectors = read_vectors(target_embeddings_folder)[1]
    hits = target_hits(target_clips, target_cluster, vectors, centroids, config)
    demand = demand_of(hits, set_weights(target_clips_folder), config.support)
    cluster = assignments.column("cluster").to_numpy().astype(np.int64)
    found = allot(cluster, demand.clusters, config)
    strongest = earned_by(demand)
    rows = [
        {
            "clip_id": clip["clip_id"], "video_id": clip["video_id"], "cluster": int(number), "weight": float(weight),
            "target": strongest[number], "uniform_weight": 1.0 / len(clips),
        }
        for clip, number, weight in zip(clips, cluster, found.weights, strict=True)
        if weight > 0
    ]  # fmt: skip
    write_table(table_of(SELECTION, rows), folder / "selection.parquet", SELECTION)
    report = distribution(cluster, found, demand, config)
    removals = read_table(distinct_folder / "removals.parquet", REMOVALS).to_pylist()
    held_out = {clip["video_id"] for clip in target_clips if clip["source"].endswith("/eval")}
    leaked = {row["clip_id"] for row in removals if row["reason"] == Removal.EVALUATION_LEAK.value}
    report["evaluation_leaks"] = sorted(row["clip_id"] for row in rows if row["video_id"] in held_out or row["clip_id"] in leaked)
    (folder / "distribution.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    draw_distribution(
        folder / "distribution.png", *(np.array([row[name] for row in report["clusters"]]) for name in ("uniform", "requested", "achieved"))
    )
    return {
        "clips": len(rows), "kl": report["kl_clips"], "kl_clusters": report["kl_clusters"], "coverage": report["coverage"],
        "unserved_mass": found.unserved, "spilled_mass": found.spilled, "largest_repeat": report["largest_repeat"],
        "earned_by": dict(sorted(Counter(row["target"] for row in rows).items())), "pictures": ["distribution.png"],
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def earned_by(demand: Demand) -> list[str]:
    """For each cluster the target that asks for most of it, or `uniform` when none does."""
    names = sorted(demand.share)
    parts = np.stack([demand.weights[name] * demand.share[name] for name in names])  # (targets, K)
    return [names[int(parts[:, number].argmax())] if parts[:, number].any() else UNIFORM for number in range(parts.shape[1])]


def distribution(cluster: NDArray[np.int64], found: Allotment, demand: Demand, config: SelectionConfig) -> dict[str, Any]:
    """Achieved against requested: per cluster, per target, and in figures (KL in nats, coverage, repeats)."""
    requested = demand.clusters
    clusters = len(requested)
    uniform = np.bincount(cluster, minlength=clusters) / len(cluster)
    achieved = np.bincount(cluster, weights=found.weights, minlength=clusters)
    wanted = requested > 0
    per_target = {
        name: {
            "requested": demand.weights[name],
            "achieved": float(
                np.sum(achieved[wanted] * demand.weights[name] * demand.share[name][wanted] / requested[wanted])
            ),
            "uniform": float(np.sum(uniform[wanted] * demand.weights[name] * demand.share[name][wanted] / requested[wanted])),
        }
        for name in demand.share
    }  # fmt: skip
    return {
        "config": config.model_dump(), "kl_clips": divergence(found.weights, np.full(len(cluster), 1.0 / len(cluster))),
        "kl_clusters": divergence(achieved.astype(np.float64), uniform), "coverage": float((achieved[wanted] > 0).mean()),
        "supported_clusters": int(wanted.sum()), "unserved_mass": found.unserved, "spilled_mass": found.spilled,
        "largest_repeat": float(found.weights.max() * len(cluster)), "targets": per_target,
        "clusters": [
            {"cluster": number, "uniform": float(uniform[number]), "requested": float(requested[number]), "achieved": float(achieved[number])}
            for number in range(clusters)
        ],
    }  # fmt: skip


def check_selection(folder: Path) -> dict[str, Check]:
    """Blocking checks: a distribution over clips, unlike taking all alike, with nothing of the evaluation splits in it."""
    table = read_table(folder / "selection.parquet", SELECTION)
    report = json.loads((folder / "distribution.json").read_text())
    weights = table.column("weight").to_numpy()
    total = float(np.sum(weights))
    leaks = report["evaluation_leaks"]
    kl = report["kl_clips"]
    return {
        "not_empty": Check(
            len(table) > 0 and bool((weights > 0).all()), "at least one clip, all weights above 0", f"{len(table)} clips",
            "look at the funnel: where did the clips go?",
        ),
        "weights_sum_to_one": Check(
            abs(total - 1.0) <= SUM_TOLERANCE, f"1 to within {SUM_TOLERANCE:g}", f"{total:.12f}", "materialize curated_clips again"
        ),
        "differs_from_uniform": Check(
            kl > MIN_KL, f"KL(selection || uniform) above {MIN_KL:g} nats",
            f"{kl:.4f} nats; largest repeat {report['largest_repeat']:.2f}, unserved mass {report['unserved_mass']:.3f}",
            "the targets ask for every cluster alike: use more clusters, other targets, or a smaller uniform_mix",
        ),
        "no_evaluation_leak": Check(
            not leaks, "no clip of an evaluation video", f"{len(leaks)} clips" + (f" ({', '.join(leaks[:3])})" if leaks else ""),
            "materialize distinct_clips again with the current target_videos",
        ),
    }  # fmt: skip
