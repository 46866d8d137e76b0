"""Clips of the pool that show what a target set is evaluated on, and the report on them.

A clip leaks when it is a span of an evaluation video, when it looks like an evaluation clip, or like a scene of its file, by
a looser rule than the one for duplicates, or when a chain of such likenesses inside the pool leads to one that does: here removing too much is wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.cover import component_leaks
from pipelines.curation.merging import ClipPool, open_pool
from pipelines.curation.pairs import Pairs
from pipelines.sources.targets import EVALUATION, SCENES

SAME_VIDEO, SAME_LOOK, COMPONENT = "same video", "same look", "via component"
RULES = (SAME_VIDEO, SAME_LOOK, COMPONENT)
EXAMPLES = 20

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The evaluation clips of all target sets: their `pool`, the clip that stands for each different stream span (E,), and
    the target sets that each of these belongs to."""

    pool: ClipPool
    clips: Rows
    targets: list[tuple[str, ...]]

    @property
    def digest(self) -> str:
        return next(iter(self.pool.digests.values()))


@dataclass(frozen=True, eq=False)
class Leaks:
    """Streams of the pool that leak (L,): by which rule, the evaluation clip each leads to (row of `Evaluation.clips`), their
    cosine, and the distance of their looks (NaN where they were not compared)."""

    streams: Rows
    rules: list[str]
    evaluation: Rows
    cosine: NDArray[np.float64]
    distance: NDArray[np.float64]


def open_evaluation(target_clips_folder: Path, target_embeddings_folder: Path) -> Evaluation:
    """The evaluation clips of a target_videos artefact and its embeddings."""
    pool = open_pool({"targets": (target_clips_folder, target_embeddings_folder)})
    sources = pool.table.column("source").to_pylist()
    held_out = np.array([source.endswith((EVALUATION, SCENES)) for source in sources], bool)
    sets: dict[int, set[str]] = {}
    for row in np.flatnonzero(held_out).tolist():
        sets.setdefault(int(pool.stream[row]), set()).add(sources[row].rsplit("/", 1)[0])
    return Evaluation(pool, pool.firsts[sorted(sets)], [tuple(sorted(sets[stream])) for stream in sorted(sets)])


def find_leaks(pool: ClipPool, evaluation: Evaluation, alike: Pairs, pairs: Pairs) -> Leaks:
    """The pool's leaking streams. `alike` are pairs of a stream of the pool and a row of `evaluation.clips`, `pairs` pairs of
    streams that keep the loose rule."""
    best: dict[int, int] = {}
    for number in np.lexsort((alike.second, -alike.cosine)).tolist():
        best.setdefault(int(alike.first[number]), number)
    direct = {stream: int(alike.second[number]) for stream, number in best.items()}
    videos: dict[str, list[int]] = {}
    for row, video_id in enumerate(evaluation.pool.table.column("video_id").take(evaluation.clips).to_pylist()):
        videos.setdefault(video_id, []).append(row)
    own = pool.table.column("video_id").take(pool.firsts).to_pylist()
    spans = {stream: videos[video_id] for stream, video_id in enumerate(own) if video_id in videos}
    for stream, rows in spans.items():  # any span of an evaluation video, whatever it looks like
        direct[stream] = _nearest(pool, stream, evaluation, rows)
    edges = np.stack([pairs.first, pairs.second], axis=1)
    reached = component_leaks(len(pool.firsts), edges, direct)
    streams = np.array(sorted(reached), np.int64)
    towards = np.array([reached[stream] for stream in streams.tolist()], np.int64)
    one, two = pool.vectors.take(pool.firsts[streams]), evaluation.pool.vectors.take(evaluation.clips[towards])
    return Leaks(
        streams, [SAME_VIDEO if stream in spans else SAME_LOOK if stream in direct else COMPONENT for stream in streams.tolist()], towards,
        np.einsum("ij,ij->i", one, two, dtype=np.float64) if len(streams) else np.empty(0),
        np.array([alike.distance[best[s]] if s in best and s not in spans else np.nan for s in streams.tolist()], np.float64),
    )  # fmt: skip


def _nearest(pool: ClipPool, stream: int, evaluation: Evaluation, rows: Sequence[int]) -> int:
    vector = pool.vectors.take(pool.firsts[[stream]])[0]
    return int(rows[int((evaluation.pool.vectors.take(evaluation.clips[list(rows)]) @ vector).argmax())])


def leak_report(pool: ClipPool, evaluation: Evaluation, leaks: Leaks, gone: Rows) -> dict[str, Any]:
    """For leaks.json: how many clips and videos were kept out for which target set and by which rule, and, for each set, the
    twenty that are most like their evaluation clip. Clips `gone` before, as they were taken down, are not among them."""
    number = np.full(len(pool.firsts), -1, np.int64)
    number[leaks.streams] = np.arange(len(leaks.streams))
    rows = np.setdiff1d(np.flatnonzero(pool.live & (number[pool.stream] >= 0)), gone)
    video_ids, clip_ids, paths = (pool.table.column(name).take(rows).to_pylist() for name in ("video_id", "clip_id", "path"))
    held_out = evaluation.pool.table.take(evaluation.clips)
    names = held_out.column("clip_id").to_pylist()
    by_set: dict[str, list[int]] = {name: [] for sets in evaluation.targets for name in sets}
    for place, leak in enumerate(number[pool.stream[rows]].tolist()):
        for name in evaluation.targets[leaks.evaluation[leak]]:
            by_set[name].append(place)
    targets, nearest = {}, []
    for name, places in sorted(by_set.items()):
        found = [number[pool.stream[rows[place]]] for place in places]
        counts = Counter(leaks.rules[leak] for leak in found)
        targets[name] = {
            "evaluation_clips": sum(name in sets for sets in evaluation.targets), "clips": len(places),
            "videos": len({video_ids[place] for place in places}), **{rule: counts[rule] for rule in RULES},
        }  # fmt: skip
        for _, place, leak in sorted((-leaks.cosine[leak], place, leak) for place, leak in zip(places, found, strict=True))[:EXAMPLES]:
            distance = float(leaks.distance[leak])
            nearest.append({
                "target": name, "clip_id": clip_ids[place], "path": paths[place], "evaluation_clip": names[leaks.evaluation[leak]],
                "rule": leaks.rules[leak], "similarity": round(float(leaks.cosine[leak]), 6), "distance": None if np.isnan(distance) else round(distance, 6),
            })  # fmt: skip
    return {
        "evaluation_clips": len(evaluation.clips), "evaluation_videos": len(set(held_out.column("video_id").to_pylist())), "clips": len(rows),
        "videos": len(set(video_ids)), "targets": targets, "nearest": nearest,
    }  # fmt: skip
