"""Distinct clips: all batches merged, without what was taken down, duplicates, and clips that leak the targets' evaluation splits.

Duplicates go by a greedy star cover: every removed clip is a direct neighbour of a clip that is kept, so no chain of
small differences removes a clip unlike anything that stays. Two copies of one film may be less like each other than both
are like the film: clips that a chain of pairs links are neighbours by the looser rule already. Leaks go by components,
where removing more is wanted. The result depends on the batches alone: a better copy that comes later takes an older
one's place, as from scratch.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.checks import Check
from pipelines.curation.copies import Copies, CoverRule, find_copies
from pipelines.curation.embedding import read_vectors
from pipelines.curation.leaks import COMPONENT, SAME_VIDEO, Evaluation, Leaks, find_leaks, leak_report, open_evaluation
from pipelines.curation.merging import ClipPool, Rows, Stacked, open_pool
from pipelines.curation.neighbours import SearchConfig
from pipelines.curation.pairs import PairRules, Pairs
from pipelines.curation.pool_pairs import PoolPairs, find_pool_pairs, write_pool_pairs
from pipelines.curation.removals import Filters, Removals, filtered
from pipelines.curation.taken import TakenClips, TakenDown, find_taken
from pipelines.curation.verification import LookRule
from pipelines.errors import InputError, Removal
from pipelines.identity import file_sha256
from pipelines.parts import Parts, open_parts
from pipelines.schemas import CLIPS, REMOVALS, read_table, write_table
from pipelines.tombstones import Tombstones
from pipelines.video.fingerprint import CELLS, PICTURES

logger = logging.getLogger("tubelet.curation")

WRITE_ROWS = 16_384
SAME_PRINT = 48  # of 512 bits, 6 of 64 in each picture: a copy that kept its picture, not only its content
LEAK_LOOK = LookRule(
    length=0.12, noise=2.0, share=0.32, cropped_share=0.5, strength=0.4, cropped_strength=0.8, picture=0.5, cropped_picture=0.7, levels=0.9,
    still_picture=0.8, still_whole=0.7, still_levels=0.97, still_peak=16.0, retimed_above=1.0, rhythm=0.6,
)  # fmt: skip


class DuplicatesConfig(Filters):
    """Rules for duplicates and, looser, for leaks; filters by score are off. `cover` is `star` or `components` (DINOv2's way,
    which also removes what is only linked to the kept clip by a chain; V-JEPA 2 describes no removal of duplicates)."""

    duplicate: PairRules = PairRules()
    leak: PairRules = PairRules(look=LEAK_LOOK, eps=1.0, mirrored=True)
    search: SearchConfig = SearchConfig()
    cover: CoverRule = "star"


def build_distinct(
    folder: Path,
    batches: Mapping[str, tuple[Path, Path]],
    target_clips_folder: Path,
    target_embeddings_folder: Path,
    config: DuplicatesConfig | None = None,
    superseded: Mapping[str, Sequence[str]] | None = None,
    previous: Path | None = None,
    work: Path | None = None,
    progress: Callable[..., None] | None = None,
    taken: TakenDown | None = None,
) -> dict[str, Any]:
    """Merge `batches` (key -> folders of clips and embeddings) into `folder`: clips.parquet, looks.npy, removals.parquet,
    leaks.json, embeddings.npy, clip_ids.json, encoder.json, batches.json, and pairs.parquet with pairs.json and signs.npz.

    `superseded` names paths whose file changed after a batch. `previous` is an earlier result, whose pairs are taken over
    where the batches are the same: faster, with the same result. `taken` is what may not be used any more. Raises `InputError` when vectors come from different
    encoders, or when clips have none. Returns the summary.
    """
    started = time.monotonic()
    config = config or DuplicatesConfig()
    pool, evaluation = open_pool(batches, superseded), open_evaluation(target_clips_folder, target_embeddings_folder)
    encoders = pool.encoders | (evaluation.pool.encoders if len(evaluation.pool) else frozenset())
    if len(encoders) > 1:
        raise InputError(
            "clips and targets were embedded by different encoders", expected="one encoder digest", found=", ".join(sorted(encoders)),
            remedy="materialize clip_embeddings of every batch and target_embeddings again with one encoder",
        )  # fmt: skip
    with open_parts(work) as parts:
        found = find_pool_pairs(parts, pool, evaluation, config.search, config.duplicate, config.leak, previous, progress)
        leaks = find_leaks(pool, evaluation, found.evaluation, found.pool)
        gone = find_taken(parts, pool, found, taken or TakenDown(), config.search, config.duplicate)
        removals = removed_clips(parts, pool, evaluation, gone, leaks, found, config)
        cost = parts.cost(len(pool), "clips")
    keep = pool.live.copy()
    keep[removals.rows] = False
    write_distinct(folder, pool, [batches[key][0] for key in pool.keys], np.flatnonzero(keep))
    write_table(removals.table(), folder / "removals.parquet", REMOVALS)
    write_pool_pairs(folder, pool, evaluation, config.search, config.duplicate, config.leak, found)
    (folder / "leaks.json").write_text(json.dumps(leak_report(pool, evaluation, leaks, gone.rows), indent=1))
    shutil.copyfile((next(iter(batches.values()))[1] if batches else target_embeddings_folder) / "encoder.json", folder / "encoder.json")
    digests = {key: file_sha256(batches[key][0] / "clips.parquet")[:16] for key in pool.keys}
    (folder / "batches.json").write_text(json.dumps(digests))
    reasons = dict(sorted(Counter(removals.reasons).items()))
    logger.info("distinct clips: %d of %d kept; removed: %s", int(keep.sum()), len(pool), reasons or "none")
    return {
        "clips": int(keep.sum()), "clips_in": int(pool.live.sum()), "removed": len(removals), "reasons": reasons,
        "superseded_clips": int((~pool.live).sum()), "clips_without_vector": pool.missing,
        "evaluation_leaks": reasons.get(Removal.EVALUATION_LEAK.value, 0), "searched": found.searched, "pairs": int(found.pool.strict.sum()),
        "clip_seconds": float(pool.seconds[keep].sum()), "cost": cost, "seconds": time.monotonic() - started,
    }  # fmt: skip


def removed_clips(
    parts: Parts, pool: ClipPool, evaluation: Evaluation, gone: TakenClips, leaks: Leaks, found: PoolPairs, config: DuplicatesConfig
) -> Removals:
    """What was taken down, then leaks, then filtered clips, then duplicates of what is left: each clip goes once."""
    removals = Removals(pool)
    free = pool.live.copy()
    removals.add(gone.rows, [Removal.TAKEN_DOWN] * len(gone.rows), gone.twins, gone.similarity, gone.distance, gone.details)
    free[gone.rows] = False
    _remove_leaks(removals, pool, evaluation, leaks, free)
    number, filters = filtered(pool, config)
    rows = np.flatnonzero(free & (number >= 0))
    reasons = [filters[place][0] for place in number[rows].tolist()]
    nothing = np.full(len(rows), np.nan)
    removals.add(rows, reasons, [""] * len(rows), nothing, nothing, [filters[number[row]][1](row) for row in rows.tolist()])
    free[rows] = False
    _remove_duplicates(removals, pool, find_copies(parts, pool, found, free, config.search, config.duplicate, config.cover))
    return removals


def _remove_leaks(removals: Removals, pool: ClipPool, evaluation: Evaluation, leaks: Leaks, free: Any) -> None:
    place = np.full(len(pool.firsts), -1, np.int64)
    place[leaks.streams] = np.arange(len(leaks.streams))
    rows = np.flatnonzero(free & (place[pool.stream] >= 0))
    which = place[pool.stream[rows]]
    twins = evaluation.pool.table.column("clip_id").take(evaluation.clips[leaks.evaluation[which]]).to_pylist()
    details = []
    for leak in which.tolist():
        sets = " and ".join(evaluation.targets[leaks.evaluation[leak]])
        if leaks.rules[leak] == SAME_VIDEO:
            details.append(f"a span of a video that {sets} is evaluated on")
        elif leaks.rules[leak] == COMPONENT:
            details.append(f"like a clip of the pool that looks like an evaluation clip of {sets}")
        else:
            details.append(f"looks like an evaluation clip of {sets}")
    removals.add(rows, [Removal.EVALUATION_LEAK] * len(rows), twins, leaks.cosine[which], leaks.distance[which], details)
    free[rows] = False


def _remove_duplicates(removals: Removals, pool: ClipPool, found: Copies) -> None:
    pairs, order, best, cover = found.pairs, found.order, found.best, found.cover
    paths, ids = pool.table.column("path"), pool.table.column("clip_id")
    own = cover[pool.stream[order]] == pool.stream[order]
    copies = order[own & (best[pool.stream[order]] != order)]
    kept = best[pool.stream[copies]]
    names = ids.take(pa.array(kept)).to_pylist()
    same = np.array(ids.take(pa.array(copies)).to_pylist(), object) == np.array(names, object)
    words = [f"the same span of the same stream as {path}" if one else f"the same stream, in another container than {path}" for one, path in zip(same, paths.take(pa.array(kept)).to_pylist(), strict=True)]
    removals.add(copies, [Removal.EXACT] * len(copies), names, np.ones(len(copies)), np.zeros(len(copies)), words)

    gone = order[~own]
    one, two = pool.stream[gone], cover[pool.stream[gone]]
    edge = _edges_between(pairs, one, two, len(best))
    twins = best[two]
    reasons, details = [], []
    for number, path in zip(edge.tolist(), paths.take(pa.array(twins)).to_pylist(), strict=True):
        reasons.append(_reason(pairs, number))
        if number < 0:
            details.append(f"linked to {path} by a chain of copies")
        else:
            details.append(
                f"the same footage as {path}{', mirrored' if pairs.mirrored[number] else ''}: "
                f"pictures agree to {pairs.picture[number]:.2f}, motion to {pairs.motion[number]:.2f}"
            )
    cosine = np.einsum("ij,ij->i", pool.vectors.take(pool.firsts[one]), pool.vectors.take(pool.firsts[two]), dtype=np.float64)
    distance = np.where(edge >= 0, np.append(pairs.distance, np.nan)[edge], np.nan)
    removals.add(gone, reasons, ids.take(pa.array(twins)).to_pylist(), cosine, distance, details)


def _reason(pairs: Pairs, number: int) -> Removal:
    if number >= 0 and pairs.mirrored[number]:
        return Removal.MIRRORED
    return Removal.FINGERPRINT if number >= 0 and pairs.bits[number] <= SAME_PRINT else Removal.NEAR_DUPLICATE


def _edges_between(pairs: Pairs, first: Rows, second: Rows, count: int) -> Rows:
    """Number of the pair between two streams each, -1 where there is none."""
    keys = pairs.keys(count)
    order = np.argsort(keys, kind="stable")
    wanted = np.minimum(first, second) * count + np.maximum(first, second)
    place = np.searchsorted(keys[order], wanted).clip(max=max(0, len(keys) - 1))
    if len(keys) == 0:
        return np.full(len(first), -1, np.int64)
    return np.where(keys[order][place] == wanted, order[place], -1)


def write_distinct(folder: Path, pool: ClipPool, clips_folders: Sequence[Path], kept: Rows) -> None:
    """clips.parquet, looks.npy, embeddings.npy and clip_ids.json of the kept clips, ordered by clip_id; blocks of rows at a time."""
    tables = []
    for number, clips_folder in enumerate(clips_folders):
        own = kept[pool.batch[kept] == number]
        tables.append(read_table(clips_folder / "clips.parquet", CLIPS).take(pa.array(pool.place[own])))
    whole = pa.concat_tables(tables) if tables else CLIPS.empty_table()
    order = pc.sort_indices(whole, sort_keys=[("clip_id", "ascending"), ("path", "ascending")])
    whole = whole.take(order)
    write_table(whole, folder / "clips.parquet", CLIPS)
    (folder / "clip_ids.json").write_text(json.dumps(whole.column("clip_id").to_pylist()))
    rows = kept[order.to_numpy().astype(np.int64)]
    _write_rows(folder / "looks.npy", pool.looks, rows, np.uint8, (PICTURES, CELLS, CELLS))
    size = pool.vectors.take(rows[:1]).shape[1]
    _write_rows(folder / "embeddings.npy", pool.vectors, rows, np.float32, (size,))


def _write_rows(path: Path, values: Stacked, rows: Rows, kind: Any, shape: tuple[int, ...]) -> None:
    found = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(len(rows), *shape))
    for start in range(0, len(rows), WRITE_ROWS):
        found[start : start + WRITE_ROWS] = values.take(rows[start : start + WRITE_ROWS])
    found.flush()


def check_distinct(folder: Path, tombstones: Tombstones | None = None) -> dict[str, Check]:
    """Blocking checks: something is left, and each removal names a kept twin (or the evaluation clip, the takedown, or a filter).

    With `tombstones` nothing that is left may be covered, nor the twin of what was taken down.
    """
    kept = read_table(folder / "clips.parquet", CLIPS, columns=["clip_id", "video_id"])
    clips = kept.column("clip_id")
    removals = read_table(folder / "removals.parquet", REMOVALS, columns=["clip_id", "reason", "twin_id"])
    clip_ids, vectors = read_vectors(folder, mapped=True)
    looks = np.load(folder / "looks.npy", mmap_mode="r", allow_pickle=False)
    reason, twin = removals.column("reason"), removals.column("twin_id")
    by_twin = pc.is_in(reason, pa.array([Removal.EXACT, Removal.FINGERPRINT, Removal.NEAR_DUPLICATE, Removal.MIRRORED], pa.string()))
    orphans = removals.filter(pc.and_(by_twin, pc.invert(pc.is_in(twin, clips.combine_chunks()))))
    unnamed = removals.filter(pc.and_(pc.equal(reason, Removal.EVALUATION_LEAK.value), pc.equal(twin, "")))
    served = int((tombstones or Tombstones()).among(clips, kept.column("video_id")).sum())
    served += len(removals.filter(pc.and_(pc.equal(reason, Removal.TAKEN_DOWN.value), pc.is_in(twin, clips.combine_chunks()))))
    different = len(pc.unique(clips))
    sound = clips.to_pylist() == clip_ids and different == len(clips) == len(vectors) == len(looks)
    return {
        "not_empty": Check(
            len(clips) > 0 and sound, "at least one clip, each once, each with its vector and look",
            f"{len(clips)} clips, {different} different, {len(vectors)} vectors, {len(looks)} looks; {len(removals)} removed",
            "look at removals.parquet: if all went, the pool is the evaluation set",
        ),
        "removals_explained": Check(
            len(orphans) + len(unnamed) + served == 0,
            "a kept twin for every duplicate, an evaluation clip for every leak" + (", nothing left that was taken down" if tombstones else ""),
            f"{len(orphans)} duplicates without a kept twin, {len(unnamed)} leaks without their evaluation clip" + (f", {served} taken clips left" if tombstones else ""),
            "materialize distinct_clips again",
        ),
    }  # fmt: skip
