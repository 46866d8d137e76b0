"""Target-weighted retrieval (V-JEPA 2, appendix A.2): which clips to draw, how often, and for which target's sake.

A cluster's share is w_c = sum_d w_d N_dc / N_d over the targets d, spread over its pool clips. What the paper leaves open
is decided by options: no clip repeats hundreds of times because its cluster is rare, nobody's videos fill the set, and a
part of the draws may stay uniform. `balanced` and `uniform` make the sets that such a selection is compared with.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.curation.allotment import Allotment, Candidates, Group, allot, clip_keys, spread_in_time
from pipelines.curation.codebook import Codebook
from pipelines.curation.demand import Demand, Hits, count_hits, demand_of, nobody, spread_hits, training_sets
from pipelines.curation.distribution import Drawn, distribution, group_shares, total_variation
from pipelines.curation.embedding import read_vectors
from pipelines.curation.pictures import draw_distribution
from pipelines.curation.quotas import Index, Vector, sums_by
from pipelines.curation.selection import SelectionConfig
from pipelines.errors import InputError, Removal
from pipelines.parts import Parts, open_parts
from pipelines.schemas import ASSIGNMENTS, CLIPS, REMOVALS, SELECTION, read_table, write_table
from pipelines.sources.targets import EVALUATION, set_weights

SUM_TOLERANCE = 1e-9
MIN_KL = 0.01
GROUPS = ("licence", "uploader", "language", "source")
FILES = ("selection.parquet", "distribution.json", "distribution.png")
HIT_ROWS = 65_536  # target clips in one part of the smoothing
OFF: dict[str, Any] = {
    "support": 1, "smoothing": 1, "uniform_mix": 0.0, "repeat_cap": None, "video_max": None, "cluster_max": None, "target_max": None,
    "target_floor": 0.0, "uploader_share": None, "licence_shares": {}, "language_shares": {}, "source_shares": {},
}  # fmt: skip
"""Options and the values at which they do nothing."""


@dataclass(frozen=True)
class Plan:
    """Which of N distinct clips may be drawn, `kept` (N,); what the `targets` ask, and what was asked for in this mode
    (`asking`; None: all clips alike); and how that is met by the kept ones."""

    kept: NDArray[np.bool_]
    targets: Demand
    asking: Demand | None
    found: Allotment


@dataclass(frozen=True)
class Inputs:
    """What a selection is made from: the distinct `clips` (columns) with their `pool`, the target sets and their clips."""

    clips: pa.Table
    pool: Candidates
    similarity: NDArray[np.float32]
    codebook: Codebook
    sets: tuple[str, ...]
    target_clips: pa.Table
    target_set: Index  # -1: not a training clip
    target_cluster: Index
    target_embeddings: Path | None
    weights: dict[str, float]


def build_selection(
    folder: Path,
    distinct_folder: Path,
    clusters_folder: Path,
    target_clips_folder: Path,
    target_embeddings_folder: Path | None = None,
    config: SelectionConfig | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Weigh the distinct clips into `folder`: selection.parquet, distribution.json, distribution.png. Returns the summary.

    `target_embeddings_folder` is needed for smoothing alone. Raises `InputError` when the artefacts do not belong
    together, a target has no support or a quota cannot be met; the message says which, and by how much.
    """
    started = time.monotonic()
    config = config or SelectionConfig()
    config.insist()
    with open_parts(work) as parts:
        inputs = read_inputs(distinct_folder, clusters_folder, target_clips_folder, target_embeddings_folder, config)
        part = parts.part("selection", lambda place: _select(place, inputs, distinct_folder, config, parts))
        for name in FILES:
            shutil.copyfile(part.folder / name, folder / name)
        cost = parts.cost(len(inputs.clips), "clips")
    return {**part.summary, "pictures": ["distribution.png"], "cost": cost, "seconds": time.monotonic() - started}


def read_inputs(
    distinct_folder: Path, clusters_folder: Path, target_clips_folder: Path, target_embeddings_folder: Path | None, config: SelectionConfig
) -> Inputs:
    """The columns that a selection needs; raises `InputError` when they are of different clips or encoders."""
    clips = read_table(distinct_folder / "clips.parquet", CLIPS, ["clip_id", "video_id", "start_s", *GROUPS])
    assignments = read_table(clusters_folder / "assignments.parquet", ASSIGNMENTS, ["clip_id", "cluster", "similarity"])
    target_clips = read_table(target_clips_folder / "clips.parquet", CLIPS, ["clip_id", "video_id", "source"])
    target_assignments = read_table(clusters_folder / "target_assignments.parquet", ASSIGNMENTS, ["clip_id", "cluster"])
    for assigned, own, of in ((assignments, clips, "distinct"), (target_assignments, target_clips, "target")):
        if not assigned.column("clip_id").equals(own.column("clip_id")):
            raise InputError(
                "the clusters are of other clips", expected=f"assignments of the {len(own)} {of} clips, in their order", found=f"{len(assigned)} others",
                remedy="materialize clip_clusters again",
            )  # fmt: skip
    if not len(clips):
        raise InputError("there is no distinct clip to select from", expected="at least one", found="0", remedy="add videos to the pool")
    codebook = Codebook.load(clusters_folder)
    codebook.insist_on(json.loads((distinct_folder / "encoder.json").read_text())["digest"])
    cluster = assignments.column("cluster").to_numpy().astype(np.int64)
    pool = Candidates(cluster, len(codebook.leaves), {name: group_of(clips.column(name)) for name in GROUPS})
    sets, target_set = training_sets(target_clips.column("source"))
    return Inputs(
        clips, pool, assignments.column("similarity").to_numpy(), codebook, sets, target_clips, target_set,
        target_assignments.column("cluster").to_numpy().astype(np.int64), target_embeddings_folder,
        set_weights(target_clips_folder) if config.target_weights is None else dict(config.target_weights),
    )  # fmt: skip


def group_of(column: pa.ChunkedArray) -> Group:
    """The values of a column of words, sorted, and each row's place among them; null reads as unknown, ""."""
    coded = column.combine_chunks().fill_null("").dictionary_encode()
    values = np.array(coded.dictionary.to_pylist(), np.str_)
    order = np.argsort(values, kind="stable")
    return Group(tuple(values[order].tolist()), np.argsort(order, kind="stable")[coded.indices.to_numpy()])


def hits_of(inputs: Inputs, smoothing: int, temperature: float, parts: Parts) -> Hits:
    """Where the targets' training clips lie, spread over near clusters when `smoothing` is above 1."""
    if smoothing <= 1:
        return count_hits(inputs.sets, inputs.target_set, inputs.target_cluster, inputs.pool.clusters)
    if inputs.target_embeddings is None:
        raise InputError("smoothing needs the targets' vectors", expected="target_embeddings", found="none", remedy="set smoothing to 1")
    inputs.codebook.insist_on(json.loads((inputs.target_embeddings / "encoder.json").read_text())["digest"])
    clip_ids, vectors = read_vectors(inputs.target_embeddings, mapped=True)
    if clip_ids != inputs.target_clips.column("clip_id").to_pylist():
        raise InputError(
            "target_embeddings are of other clips", expected="the target clips, in their order", found=f"{len(clip_ids)} others",
            remedy="materialize target_embeddings again",
        )  # fmt: skip
    rows = np.argsort(np.array(clip_ids, np.str_), kind="stable")  # sums must not depend on the order of the files
    batches = parts.map("hits", rows.tolist(), HIT_ROWS, partial(_spread, inputs=inputs, vectors=vectors, smoothing=smoothing, temperature=temperature))
    counts, mass = (sum(np.load(batch.folder / f"{name}.npy", allow_pickle=False) for batch in batches) for name in ("counts", "mass"))
    return Hits(inputs.sets, counts, mass)


def _spread(place: Path, rows: Sequence[int], inputs: Inputs, vectors: NDArray[np.float32], smoothing: int, temperature: float) -> None:
    batch = np.array(rows, np.int64)
    hits = spread_hits(inputs.sets, inputs.target_set[batch], vectors[batch], inputs.codebook.leaves, smoothing, temperature)
    np.save(place / "counts.npy", hits.counts)
    np.save(place / "mass.npy", hits.mass)


def candidates_of(inputs: Inputs, demand: Demand | None, config: SelectionConfig) -> NDArray[np.bool_]:
    """(N,) which distinct clips may be drawn: not shut out by a share of 0, and within their video's number."""
    kept = np.ones(len(inputs.clips), bool)
    for name, shares in config.named_shares().items():
        group = inputs.pool.groups[name]
        kept &= ~np.array([shares.get(value) == 0 for value in group.names])[group.codes]
    if config.video_max is not None:
        rows = np.flatnonzero(kept)
        video = group_of(inputs.clips.column("video_id")).codes[rows]
        asked = np.ones(len(rows), bool) if demand is None else demand.clusters[inputs.pool.cluster[rows]] > 0
        kept[rows] = spread_in_time(video, inputs.clips.column("start_s").to_numpy()[rows], asked, config.video_max)
    return kept


def allot_pool(inputs: Inputs, hits: Hits, config: SelectionConfig) -> Plan:
    """What is asked of the pool under `config`, of which clips, and how it is met."""
    targets = demand_of(hits, inputs.weights, config.support) if inputs.sets or config.mode == "retrieval" else nobody(inputs.pool.clusters)
    asking = targets if config.mode == "retrieval" else None
    kept = candidates_of(inputs, asking, config)
    if kept.sum() < (config.size or 1):
        raise InputError(
            f"{config.size or 'any'} clips cannot be kept", expected=f"a size of at most {kept.sum()}, the clips that no share of 0 and no video_max shuts out",
            found=f"{config.size or 'all'}", remedy="lower size, raise those limits, or add videos to the pool",
        )  # fmt: skip
    draws = config.size or config.draws or len(inputs.clips)
    if config.mode == "balanced" and config.size is not None:
        kept[kept] = _balanced_sample(inputs, kept, config)
    elif config.mode == "balanced":
        asking = _balanced_demand(inputs, kept, config, draws)
    return Plan(kept, targets, asking, allot(inputs.pool.only(kept), asking, config, draws))


def _balanced_demand(inputs: Inputs, kept: NDArray[np.bool_], config: SelectionConfig, draws: int) -> Demand:
    """Every branch of the codebook's tree asks for the same, as far as its clips may be drawn so often."""
    from pipelines.curation.balanced import balanced_quotas

    sizes = np.bincount(inputs.pool.cluster[kept], minlength=inputs.pool.clusters)
    room = np.floor(sizes * config.repeat_cap).astype(np.int64) if config.repeat_cap is not None else np.where(sizes > 0, draws, 0)
    leaves = balanced_quotas(inputs.codebook, room, draws, config.seed)[0]
    return Demand((config.asker,), np.ones(1), leaves[None] / max(1, leaves.sum()))


def _balanced_sample(inputs: Inputs, kept: NDArray[np.bool_], config: SelectionConfig) -> NDArray[np.bool_]:
    """Which of the `kept` clips a balanced sample over the codebook's levels takes."""
    from pipelines.curation.balanced import balanced_sample

    rows = np.flatnonzero(kept)
    clip_ids = inputs.clips.column("clip_id").filter(pa.array(kept)).to_pylist()
    taken = balanced_sample(inputs.codebook, inputs.pool.cluster[rows], clip_ids, config.size or 0, config.seed, config.pick, inputs.similarity[rows])
    return np.isin(np.arange(len(rows)), taken)


def _select(place: Path, inputs: Inputs, distinct_folder: Path, config: SelectionConfig, parts: Parts) -> dict[str, Any]:
    hits = hits_of(inputs, config.smoothing, config.smoothing_temperature, parts)
    plan = allot_pool(inputs, hits, config)
    kept, found = plan.kept, plan.found
    weight, repeats = np.zeros(len(kept)), np.zeros(len(kept), np.int64)
    keys = clip_keys(inputs.clips.column("clip_id").filter(pa.array(kept)), config.seed)
    repeats[kept] = found.repeats(keys, config.seed)
    weight[kept] = (found.expected if config.size is None else repeats[kept]) / found.draws
    drawn = Drawn(inputs.pool.cluster, weight, repeats)
    chosen = weight > 0
    table = selection_table(inputs, drawn, chosen, found)
    write_table(table, place / "selection.parquet", SELECTION)
    requested = (plan.asking or plan.targets).clusters
    report = distribution(drawn, found, requested, plan.targets, config)
    report["groups"] = {name: group_shares(inputs.pool.groups[name], weight, repeats) for name in GROUPS}
    report["candidates"] = int(kept.sum())
    report["effects"] = effects(inputs, hits, cluster_shares(inputs, plan), config)
    report["evaluation_leaks"] = evaluation_leaks(table, inputs, distinct_folder)
    (place / "distribution.json").write_text(json.dumps(report, indent=1, sort_keys=True))
    draw_distribution(
        place / "distribution.png", np.bincount(drawn.cluster, minlength=inputs.pool.clusters) / len(kept), requested,
        sums_by(drawn.cluster, weight, inputs.pool.clusters),
    )  # fmt: skip
    figures = ("coverage", "unserved_mass", "spilled_mass", "largest_repeat", "effective_clips", "kl_clusters", "draws")
    return {
        "clips": len(table), "kl": report["kl_clips"], **{name: report[name] for name in figures}, "mode": config.mode,
        "earned_by": dict(sorted(Counter(table.column("target").to_pylist()).items())),
    }  # fmt: skip


def selection_table(inputs: Inputs, drawn: Drawn, chosen: NDArray[np.bool_], found: Allotment) -> pa.Table:
    """The rows of SELECTION for the clips that are `chosen` (N,), in their order, built column by column."""
    clips, rows = inputs.clips.filter(pa.array(chosen)), np.flatnonzero(chosen)
    credit, cluster = found.law.credit, drawn.cluster[rows]
    place = cluster if credit.shape[1] == inputs.pool.clusters else np.zeros(len(rows), np.int64)
    names = pa.array(found.names, pa.string())
    strongest = np.where(credit[:-1].any(axis=0), credit[:-1].argmax(axis=0), len(credit) - 1) if len(credit) > 1 else np.zeros(credit.shape[1], np.int64)
    of, who = np.nonzero(credit.T)
    ends = np.concatenate([[0], np.cumsum((credit > 0).sum(axis=0))]).astype(np.int32)
    where = pa.array(place)
    return pa.table(
        {
            "clip_id": clips.column("clip_id"), "video_id": clips.column("video_id"), "cluster": cluster.astype(np.int32),
            "weight": drawn.weight[rows], "target": names.take(pa.array(strongest[place])),
            "uniform_weight": np.full(len(rows), 1.0 / len(drawn.cluster)), "repeats": drawn.repeats[rows].astype(np.int32),
            "credit_targets": pa.ListArray.from_arrays(ends, names.take(pa.array(who))).take(where),
            "credit_shares": pa.ListArray.from_arrays(ends, pa.array(credit[who, of].astype(np.float32))).take(where),
        }
    )  # fmt: skip


def cluster_shares(inputs: Inputs, plan: Plan) -> Vector:
    """(K,) share of the draws in each cluster."""
    return sums_by(inputs.pool.cluster[plan.kept], plan.found.expected / plan.found.draws, inputs.pool.clusters)


def effects(inputs: Inputs, hits: Hits, achieved: Vector, config: SelectionConfig) -> dict[str, float | None]:
    """For every option that is on, the share of the draws that lie in other clusters than they would without it.

    `achieved` (K,) is with all of them. None where there would be no selection; options idle in this mode are left out.
    """
    idle = set() if config.mode == "retrieval" else {"support", "smoothing", "target_max", "target_floor"}
    idle |= set() if config.size is None else {"repeat_cap"}
    idle |= set() if config.mode == "retrieval" or (config.mode == "balanced" and config.size is None) else {"uniform_mix"}
    shares: dict[str, float | None] = {}
    for name, off in OFF.items():
        if getattr(config, name) == off or name in idle:
            continue
        plain = count_hits(inputs.sets, inputs.target_set, inputs.target_cluster, inputs.pool.clusters)
        try:
            other = allot_pool(inputs, plain if name == "smoothing" else hits, config.model_copy(update={name: off}))
        except InputError:
            shares[name] = None
        else:
            shares[name] = total_variation(achieved, cluster_shares(inputs, other))
    return shares


def evaluation_leaks(table: pa.Table, inputs: Inputs, distinct_folder: Path) -> list[str]:
    """Ids of chosen clips of an evaluation video, or that were removed because they look like one."""
    held_out = inputs.target_clips.filter(pc.ends_with(inputs.target_clips.column("source"), EVALUATION)).column("video_id")
    removals = read_table(distinct_folder / "removals.parquet", REMOVALS, ["clip_id", "reason"])
    leaked = removals.filter(pc.equal(removals.column("reason"), Removal.EVALUATION_LEAK.value)).column("clip_id")
    leaks = pc.or_(pc.is_in(table.column("video_id"), value_set=held_out), pc.is_in(table.column("clip_id"), value_set=leaked))
    return sorted(table.column("clip_id").filter(leaks).to_pylist())


def check_selection(folder: Path) -> dict[str, Check]:
    """Blocking checks: a distribution over clips, unlike taking all alike where targets ask, and no evaluation video in it."""
    weights = read_table(folder / "selection.parquet", SELECTION, ["weight"]).column("weight").to_numpy()
    report = json.loads((folder / "distribution.json").read_text())
    total, kl, leaks = float(np.sum(weights)), report["kl_clips"], report["evaluation_leaks"]
    retrieved = report["config"]["mode"] == "retrieval"
    return {
        "not_empty": Check(
            len(weights) > 0 and bool((weights > 0).all()), "at least one clip, all weights above 0", f"{len(weights)} clips",
            "look at the funnel: where did the clips go?",
        ),
        "weights_sum_to_one": Check(
            abs(total - 1.0) <= SUM_TOLERANCE, f"1 to within {SUM_TOLERANCE:g}", f"{total:.12f}", "materialize curated_clips again"
        ),
        "differs_from_uniform": Check(
            kl > MIN_KL or not retrieved,
            f"KL(selection || uniform) above {MIN_KL:g} nats" if retrieved else f"nothing: the mode is {report['config']['mode']}",
            f"{kl:.4f} nats; largest repeat {report['largest_repeat']:.2f}, unserved mass {report['unserved_mass']:.3f}",
            "the targets ask for every cluster alike: use more clusters, other targets, or a smaller uniform_mix",
        ),
        "no_evaluation_leak": Check(
            not leaks, "no clip of an evaluation video", f"{len(leaks)} clips" + (f" ({', '.join(leaks[:3])})" if leaks else ""),
            "materialize distinct_clips again with the current target_videos",
        ),
    }  # fmt: skip
