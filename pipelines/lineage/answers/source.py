"""What became of one clip or one source video: every stage's word on it, its shards, and which checkpoints saw it."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.lineage.answers.seen_by import seen_by, spans_of
from pipelines.lineage.answers.stages import Said, stages_of
from pipelines.lineage.answers.subject import Tables
from pipelines.lineage.shown import Shown, Videos
from pipelines.lineage.trainings import Trainings
from pipelines.lineage.tree import current_paths, every_artefact
from pipelines.store import Store
from pipelines.tombstones import tombstone_rows


def about_clip(store: Store, clip_id: str, trainings: Trainings | None = None) -> dict[str, Any]:
    """Span and source file of a clip, its stages, shards, checkpoints, and what stands on those."""
    artefacts = every_artefact(store)
    video_ids = Tables(store, artefacts).partners("clip_id", clip_id, "video_id")
    return _about(store, "clip", clip_id, [clip_id], video_ids, trainings or Trainings(store))


def about_video(store: Store, video_id: str, trainings: Trainings | None = None) -> dict[str, Any]:
    """The same for a whole video, summed over its clips, which are rows of `clips`."""
    artefacts = every_artefact(store)
    clip_ids = Tables(store, artefacts).partners("video_id", video_id, "clip_id")
    return _about(store, "video", video_id, clip_ids, [video_id], trainings or Trainings(store))


def _about(store: Store, kind: str, name: str, clip_ids: list[str], video_ids: list[str], trainings: Trainings) -> dict[str, Any]:
    artefacts, current = every_artefact(store), current_paths(store)
    videos = Videos.of(artefacts)
    column = f"{kind}_id"
    said = stages_of(artefacts, current, clip_ids, video_ids)
    stones = _stones(store, clip_ids, video_ids)
    answer, shown = seen_by(store, trainings, videos, lambda clips: pc.equal(clips[column], name))
    return {
        "subject": {"kind": kind, "name": name, "video_id": video_ids[0] if video_ids else None, **_origin(said)},
        "notes": [*_down_notes(stones), *_age_notes(kind, said)],
        "stages": [one.to_dict() for one in said],
        **answer,
        "total": shown.total, "spans_s": spans_of(shown), "clips": _clip_rows(said, shown, stones), "tombstones": stones,
    }  # fmt: skip


def _origin(said: list[Said]) -> dict[str, Any]:
    """Where it lies: the source file and what is known of it, by the newest table that tells, a current one before others."""
    by_trust = sorted(said, key=lambda one: one.current)  # stable: the newest of the current ones comes last
    told: dict[str, Any] = {}
    for one in by_trust:
        for row in one.rows:
            if row["verdict"] in ("probed", "cut", "kept", "sharded"):  # of equal files, the one that was kept names the place
                told |= {name: row[name] for name in ("path", "source", "licence", "uploader", "duration_s") if row.get(name) is not None}
    spans = _spans(said)
    paths = {row["path"] for one in said for row in one.rows if row["verdict"] in ("probed", "cut")}
    return {
        "paths": sorted(paths), "path": told.get("path", ""), **{name: told.get(name) for name in ("source", "licence", "uploader", "duration_s")},
        "start_s": min((start for start, _ in spans.values()), default=None), "end_s": max((end for _, end in spans.values()), default=None),
    }  # fmt: skip


def _spans(said: list[Said]) -> dict[str, tuple[float, float]]:
    """{clip_id: (start, end)} in s of the source, by the clips tables or else by the shards."""
    spans: dict[str, tuple[float, float]] = {}
    for one in said:
        for row in one.rows:
            if row["verdict"] == "cut":
                spans[row["clip_id"]] = (row["start_s"], row["end_s"])
            elif row["verdict"] == "sharded":
                spans.setdefault(row["clip_id"], (row["source_start_s"], row["source_end_s"]))
    return spans


def _clip_rows(said: list[Said], shown: Shown, stones: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each clip, in the order of the video: clip_id, start_s, end_s, verdict, cluster, weight, shards, samples and seconds
    (of all trainings of the store, each once), taken_down. What artefacts disagree on is told by the current one, or else the newest."""
    rows: dict[str, dict[str, Any]] = {}
    spans = _spans(said)
    for clip_id in sorted(spans, key=lambda name: (spans[name], name)):
        rows[clip_id] = {
            "clip_id": clip_id, "start_s": spans[clip_id][0], "end_s": spans[clip_id][1], "verdict": "cut", "cluster": None, "weight": None,
            "shards": [], "samples": 0, "seconds": 0.0, "taken_down": any(stone["clip_id"] in (None, clip_id) for stone in stones),
        }  # fmt: skip
    for one in sorted(said, key=lambda one: one.current):
        for row in one.rows:
            mine = rows.get(row.get("clip_id", ""))
            if mine is None:
                continue
            if one.stage == "compared" and row["verdict"] in ("kept", "removed"):
                mine["verdict"] = row["verdict"] if row["verdict"] == "kept" else f"removed: {row['reason'].replace('_', ' ')}"
            elif one.stage == "clustered":
                mine["cluster"] = row["cluster"]
            elif one.stage == "selected":
                mine["weight"] = row.get("weight")  # None where it was not chosen
            elif row["verdict"] == "sharded":
                mine["shards"].append(f"{one.artefact.digest}/{row['shard']}")
    sums = shown.clips.group_by("clip_id").aggregate([("samples", "sum"), ("seconds", "sum")]).to_pylist()
    for row in sums:
        if row["clip_id"] in rows:
            rows[row["clip_id"]].update(samples=int(row["samples_sum"]), seconds=float(row["seconds_sum"]))
    return list(rows.values())


def _stones(store: Store, clip_ids: list[str], video_ids: list[str]) -> list[dict[str, Any]]:
    stones = tombstone_rows(store.root)
    by_clip = pc.fill_null(pc.is_in(stones["clip_id"], value_set=pa.array(clip_ids, pa.string())), False)
    by_video = pc.and_(pc.is_null(stones["clip_id"]), pc.is_in(stones["video_id"], value_set=pa.array(video_ids, pa.string())))
    return stones.filter(pc.or_(by_clip, by_video)).to_pylist()


def _down_notes(stones: list[dict[str, Any]]) -> list[str]:
    notes = []
    for stone in stones:
        what = f"clip {stone['clip_id']}" if stone["clip_id"] else f"video {stone['video_id']}, all clips of it,"
        why = f"as the twin of {stone['twin_of']}" if stone["rule"] == "twin" else f"by {stone['rule']} {stone['value'] or ''}".strip()
        notes.append(f"{what} was taken down {why} ({stone['reason']}) on {stone['added']}, takedown {stone['takedown'] or '?'}: nothing may use it from then on")
    return notes


def _age_notes(kind: str, said: list[Said]) -> list[str]:
    if any(one.current and one.stage in ("probed", "cut") for one in said):
        return []
    if said:
        return [f"this {kind} is known from older artefacts only: no current batch has it"]
    return [f"no artefact of this store holds this {kind} any more"]
