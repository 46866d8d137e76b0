"""Distinct clips: all batches merged, without duplicates and without clips that leak the targets' evaluation splits.

Duplicates go by a greedy star cover: every removed clip is a direct neighbour of a clip that is kept, so no chain of
small differences removes a clip unlike anything that stays. Leaks go by components, where removing more is wanted.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.curation.embedding import read_vectors, write_vectors
from pipelines.curation.neighbours import PairRule, Pairs, SearchConfig, candidate_pairs, features_of, judge
from pipelines.errors import InputError, Removal
from pipelines.identity import file_sha256
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, REMOVALS, read_table, table_of, write_table

logger = logging.getLogger("tubelet.curation")

EVALUATION_CHUNK = 2048


class DuplicatesConfig(Part):
    """Rules for duplicates and, looser, for leaks; scores of static and black clips are always there, filters are off."""

    duplicate: PairRule = PairRule()
    leak: PairRule = PairRule(length=0.12, fingerprint=0.08)
    search: SearchConfig = SearchConfig()
    filter_static: bool = False
    filter_black: bool = False
    static_below: float = 0.5  # motion score in grey levels
    black_below: float = 8.0  # brightness in grey levels


def star_cover(count: int, pairs: Iterable[tuple[int, int]], order: Sequence[int]) -> list[int]:
    """For each of `count` rows the kept neighbour that covers it, or itself when it is kept.

    Rows are visited in `order` (best first): the next uncovered one is kept and covers its uncovered neighbours.
    """
    neighbours: dict[int, list[int]] = {}
    for first, second in pairs:
        neighbours.setdefault(first, []).append(second)
        neighbours.setdefault(second, []).append(first)
    cover = [-1] * count
    for row in order:
        if cover[row] >= 0:
            continue
        cover[row] = row
        for neighbour in neighbours.get(row, []):
            if cover[neighbour] < 0:
                cover[neighbour] = row
    return cover


def component_leaks(count: int, pairs: Iterable[tuple[int, int]], direct: Mapping[int, int]) -> dict[int, int]:
    """Rows in any component of `pairs` that touches a row of `direct` (row -> evaluation row), with that evaluation row."""
    neighbours: dict[int, list[int]] = {}
    for first, second in pairs:
        neighbours.setdefault(first, []).append(second)
        neighbours.setdefault(second, []).append(first)
    reached: dict[int, int] = {}
    for start in sorted(direct):
        waiting = [start] if start not in reached else []
        while waiting:
            row = waiting.pop()
            if row in reached:
                continue
            reached[row] = direct.get(row, direct[start])
            waiting += neighbours.get(row, [])
    return reached


def quality_order(clips: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows best first: higher resolution, then longer, then by clip_id and path, so that nothing depends on row order."""
    return sorted(
        range(len(clips)),
        key=lambda row: (
            -clips[row]["width"] * clips[row]["height"], -round(clips[row]["end_s"] - clips[row]["start_s"], 3),
            clips[row]["clip_id"], clips[row]["path"],
        ),
    )  # fmt: skip


def merge_batches(
    batches: Mapping[str, tuple[Path, Path]], superseded: Mapping[str, Sequence[str]]
) -> tuple[list[dict[str, Any]], NDArray[np.float32], set[str], int]:
    """All clips with their vectors, sorted by clip_id and path; the encoder digests met; how many clips were superseded."""
    clips: list[dict[str, Any]] = []
    vectors: list[NDArray[np.float32]] = []
    encoders: set[str] = set()
    stale = 0
    for batch, (clips_folder, embeddings_folder) in sorted(batches.items()):
        found, matrix = clips_with_vectors(clips_folder, embeddings_folder)
        old = set(superseded.get(batch, ()))
        keep = [row for row, clip in enumerate(found) if clip["path"] not in old]
        stale += len(found) - len(keep)
        clips += [found[row] for row in keep]
        vectors.append(matrix[keep])
        encoders.add(json.loads((embeddings_folder / "encoder.json").read_text())["digest"])
    order = sorted(range(len(clips)), key=lambda row: (clips[row]["clip_id"], clips[row]["path"]))
    stacked = np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32)
    return [clips[row] for row in order], stacked[order], encoders, stale


def clips_with_vectors(clips_folder: Path, embeddings_folder: Path) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    """Clip rows and their vectors in one order; raises `InputError` when the embeddings are of other clips."""
    clips = read_table(clips_folder / "clips.parquet", CLIPS).to_pylist()
    clip_ids, vectors = read_vectors(embeddings_folder)
    if clip_ids != [clip["clip_id"] for clip in clips]:
        raise InputError(
            f"{embeddings_folder} does not embed the clips of {clips_folder}", expected=f"{len(clips)} vectors in the clips' order",
            found=f"{len(clip_ids)} vectors of other clips", remedy="materialize the embeddings again",
        )  # fmt: skip
    return clips, vectors


def build_distinct(
    folder: Path,
    batches: Mapping[str, tuple[Path, Path]],
    target_clips_folder: Path,
    target_embeddings_folder: Path,
    config: DuplicatesConfig | None = None,
    superseded: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Merge `batches` (key -> folders of clips and embeddings) into `folder`: clips.parquet, removals.parquet,
    embeddings.npy, clip_ids.json, encoder.json, batches.json. `superseded` names paths whose file changed after a batch.

    Raises `InputError` when vectors come from different encoders. Returns the summary.
    """
    started = time.monotonic()
    config = config or DuplicatesConfig()
    clips, vectors, encoders, stale = merge_batches(batches, superseded or {})
    target_clips, target_vectors = clips_with_vectors(target_clips_folder, target_embeddings_folder)
    encoders.add(json.loads((target_embeddings_folder / "encoder.json").read_text())["digest"])
    if len(encoders) > 1:
        raise InputError(
            "clips and targets were embedded by different encoders", expected="one encoder digest", found=", ".join(sorted(encoders)),
            remedy="materialize clip_embeddings of every batch and target_embeddings again with one encoder",
        )  # fmt: skip
    removals: list[dict[str, Any]] = []
    gone: set[int] = set()

    def remove(row: int, reason: Removal, twin_id: str, similarity: float) -> None:
        gone.add(row)
        ids = {"clip_id": clips[row]["clip_id"], "video_id": clips[row]["video_id"]}
        removals.append({**ids, "reason": reason.value, "twin_id": twin_id, "similarity": round(similarity, 6)})

    if clips:
        pairs = _duplicates(clips, vectors, config)
        evaluation = [row for row, clip in enumerate(target_clips) if clip["source"].endswith("/eval")]
        held_out, held_vectors = [target_clips[row] for row in evaluation], target_vectors[evaluation]
        leaks = _leaks(clips, vectors, held_out, held_vectors, pairs, config)
        for row, other in sorted(leaks.items()):
            remove(row, Removal.EVALUATION_LEAK, held_out[other]["clip_id"], float(vectors[row] @ held_vectors[other]))
        for row, clip in enumerate(clips):
            if row not in gone and config.filter_static and clip["motion"] < config.static_below:
                remove(row, Removal.FILTERED_STATIC, "", 0.0)
            elif row not in gone and config.filter_black and clip["brightness"] < config.black_below:
                remove(row, Removal.FILTERED_BLACK, "", 0.0)
        order = [row for row in quality_order(clips) if row not in gone]
        links = [pair for pair in pairs if gone.isdisjoint(pair)]
        cover = star_cover(len(clips), links, order)
        for row in sorted(order):
            if cover[row] != row:
                reason, cosine = pairs[(min(row, cover[row]), max(row, cover[row]))]
                remove(row, Removal(reason), clips[cover[row]]["clip_id"], cosine)
    kept = [row for row in range(len(clips)) if row not in gone]
    write_table(table_of(CLIPS, [clips[row] for row in kept]), folder / "clips.parquet", CLIPS)
    removals.sort(key=lambda row: (row["reason"], row["clip_id"], row["twin_id"]))
    write_table(table_of(REMOVALS, removals), folder / "removals.parquet", REMOVALS)
    write_vectors(folder, [clips[row]["clip_id"] for row in kept], vectors[kept])
    shutil.copyfile(target_embeddings_folder / "encoder.json", folder / "encoder.json")
    digests = {batch: file_sha256(pair[0] / "clips.parquet")[:16] for batch, pair in sorted(batches.items())}
    (folder / "batches.json").write_text(json.dumps(digests))
    reasons = dict(sorted(Counter(row["reason"] for row in removals).items()))
    logger.info("distinct clips: %d of %d kept; removed: %s", len(kept), len(clips), reasons or "none")
    return {
        "clips": len(kept), "clips_in": len(clips), "removed": len(removals), "reasons": reasons, "superseded_clips": stale,
        "evaluation_leaks": reasons.get(Removal.EVALUATION_LEAK.value, 0),
        "clip_seconds": sum(clips[row]["end_s"] - clips[row]["start_s"] for row in kept), "seconds": time.monotonic() - started,
    }  # fmt: skip


def _duplicates(
    clips: list[dict[str, Any]], vectors: NDArray[np.float32], config: DuplicatesConfig
) -> dict[tuple[int, int], tuple[str, float]]:
    """Duplicate pairs (i < j) with reason and cosine."""
    features = features_of(clips, vectors)
    judged = judge(features, features, *candidate_pairs(features, config.search), config.duplicate)
    return {
        (int(first), int(second)): (reason, float(cosine))
        for first, second, reason, cosine in zip(judged.first, judged.second, judged.reason, judged.cosine, strict=True)
        if reason
    }


def _leaks(
    clips: list[dict[str, Any]], vectors: NDArray[np.float32], held_out: list[dict[str, Any]],
    held_vectors: NDArray[np.float32], pairs: Iterable[tuple[int, int]], config: DuplicatesConfig,
) -> dict[int, int]:  # fmt: skip
    """Pool rows that leak, with the evaluation row they leak: every pool clip against every evaluation clip."""
    if not held_out:
        return {}
    direct: dict[int, int] = {}
    by_video = {clip["video_id"]: row for row, clip in reversed(list(enumerate(held_out)))}
    pool, evaluation = features_of(clips, vectors), features_of(held_out, held_vectors)
    columns = np.arange(len(held_out))
    for start in range(0, len(clips), EVALUATION_CHUNK):
        rows = np.arange(start, min(len(clips), start + EVALUATION_CHUNK))
        judged: Pairs = judge(pool, evaluation, np.repeat(rows, len(columns)), np.tile(columns, len(rows)), config.leak)
        best: dict[int, tuple[float, int]] = {}
        for first, second, reason, cosine in zip(judged.first, judged.second, judged.reason, judged.cosine, strict=True):
            if reason:
                best[int(first)] = max(best.get(int(first), (-2.0, 0)), (float(cosine), int(second)))
        direct.update({row: other for row, (_, other) in best.items()})
    # Any span of an evaluation video is a leak, whatever it looks like.
    direct.update({row: by_video[clip["video_id"]] for row, clip in enumerate(clips) if clip["video_id"] in by_video})
    return component_leaks(len(clips), pairs, direct)


def check_distinct(folder: Path) -> dict[str, Check]:
    """Blocking checks: something is left, and each removal names a kept twin (or the evaluation clip, or a filter)."""
    clips = read_table(folder / "clips.parquet", CLIPS).column("clip_id").to_pylist()
    removals = read_table(folder / "removals.parquet", REMOVALS).to_pylist()
    clip_ids, vectors = read_vectors(folder)
    kept = set(clips)
    by_twin = {Removal.EXACT.value, Removal.FINGERPRINT.value, Removal.NEAR_DUPLICATE.value}
    orphans = [row["clip_id"] for row in removals if row["reason"] in by_twin and row["twin_id"] not in kept]
    unnamed = [row["clip_id"] for row in removals if row["reason"] == Removal.EVALUATION_LEAK.value and not row["twin_id"]]
    sound = clip_ids == clips and len(kept) == len(clips) == len(vectors)
    return {
        "not_empty": Check(
            len(clips) > 0 and sound, "at least one clip, each once, each with its vector",
            f"{len(clips)} clips, {len(kept)} different, {len(vectors)} vectors; {len(removals)} removed",
            "look at removals.parquet: if all went, the pool is the evaluation set",
        ),
        "removals_explained": Check(
            not orphans and not unnamed, "a kept twin for every duplicate, an evaluation clip for every leak",
            f"{len(orphans)} duplicates without a kept twin, {len(unnamed)} leaks without their evaluation clip",
            "materialize distinct_clips again",
        ),
    }  # fmt: skip
