"""What an artefact was made from, and which seconds of which source video a checkpoint has seen. Reads the store's files only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import schemas
from pipelines.errors import MissingArtefact
from pipelines.identity import canonical_json
from pipelines.lineage.exposure import Exposure, ExposureSpec, expose, exposures, merge_spans, read_spec
from pipelines.lineage.render import render_html, render_text
from pipelines.lineage.tree import Node, ancestors, find, inputs_of, trace
from pipelines.shards.index import INDEX_FILE, ShardIndex
from pipelines.store import Artefact, Store

__all__ = [
    "ExposureSpec", "Node", "checkpoint_row", "episode_seconds", "exposures", "find", "read_spec", "render_html", "render_text",
    "source_seconds", "trace", "write_tables",
]  # fmt: skip


def phases(store: Store, artefact: Artefact) -> Iterator[tuple[Artefact, ExposureSpec, Artefact]]:
    """(checkpoint, spec, shards) of every training on video clips that `artefact` stands on, earliest phase first."""
    for item in reversed(ancestors(store, artefact)):
        spec = read_spec(item.path)
        if spec is None:
            continue
        shards = [parent for parent in inputs_of(store, item) if parent.asset == "training_shards"]
        shards = [parent for parent in shards if spec.shards_digest in ("", parent.digest)]
        if len(shards) != 1:
            raise MissingArtefact(
                f"the shards that {item.key} {item.digest} was trained on are not among its inputs",
                expected=f"training_shards {spec.shards_digest}", found=", ".join(item.inputs.values()) or "no inputs",
                remedy="make the checkpoint again",
            )  # fmt: skip
        yield item, spec, shards[0]


def source_seconds(store: Store, artefact: Artefact) -> list[dict[str, Any]]:
    """What `artefact` stands on, per source video, by path: one row for each video that was seen or lies in the shards.

    Columns: video_id, path, source, licence, uploader, duration_s, clips (in the shards), clip_seconds (their length),
    samples and seconds (shown in training, repeats counted, recomputed by drawing every phase again), distinct_seconds
    (of the source, each counted once), phases ({phase: samples}). For an artefact below any training, the shards
    alone are told, with no samples.
    """
    lineage = ancestors(store, artefact)
    shown = [(spec.phase, shards, spec) for _, spec, shards in phases(store, artefact)]
    folders = {item.path: item for item in lineage if item.asset == "training_shards"}
    rows: dict[str, dict[str, Any]] = {}
    spans: dict[str, list[np.ndarray]] = {}
    seen_clips: set[str] = set()
    for path in folders:
        index = ShardIndex(path)
        for clip in index.table.to_pylist():
            row = rows.setdefault(clip["video_id"], _new_row(clip))
            if clip["clip_id"] not in seen_clips:
                seen_clips.add(clip["clip_id"])
                row["clips"] += 1
                row["clip_seconds"] += clip["source_end_s"] - clip["source_start_s"]
        for phase, shards, spec in shown:
            if shards.path == path:
                _count(index, phase, expose(index, spec), rows, spans)
    for video_id, pieces in spans.items():
        merged = merge_spans(np.concatenate(pieces))
        rows[video_id]["distinct_seconds"] = float((merged[:, 1] - merged[:, 0]).sum())
    for item in lineage:
        _name_videos(item, rows)
    return sorted(rows.values(), key=lambda row: (row["path"], row["video_id"]))


def _new_row(clip: dict[str, Any]) -> dict[str, Any]:
    return {
        "video_id": clip["video_id"], "path": "", "source": clip["source"], "licence": clip["licence"], "uploader": None,
        "duration_s": None, "clips": 0, "clip_seconds": 0.0, "samples": 0, "seconds": 0.0, "distinct_seconds": 0.0, "phases": {},
    }  # fmt: skip


def _count(
    index: ShardIndex, phase: str, shown: Exposure, rows: dict[str, dict[str, Any]], spans: dict[str, list[np.ndarray]]
) -> None:
    video_ids = index.column("video_id")
    for number in np.flatnonzero(shown.samples):
        row = rows[video_ids[number]]
        row["samples"] += int(shown.samples[number])
        row["seconds"] += float(shown.seconds[number])
        row["phases"][phase] = row["phases"].get(phase, 0) + int(shown.samples[number])
        # From the clip's own clock to the source's: the writer starts every clip at 0.
        spans.setdefault(row["video_id"], []).append(shown.spans[number] - index.first_s[number] + index.source_start_s[number])


def _name_videos(item: Artefact, rows: dict[str, dict[str, Any]]) -> None:
    """Fill in path, uploader and duration from a `videos` artefact; the first of several equal files is named."""
    if item.asset != "videos" or not (item.path / "videos.parquet").is_file():
        return
    for video in schemas.read_table(item.path / "videos.parquet", schemas.VIDEOS).to_pylist():
        row = rows.get(video["video_id"])
        if row is not None and (not row["path"] or video["path"] < row["path"]):
            row.update(path=video["path"], uploader=video["uploader"], duration_s=video["duration_s"])


def episode_seconds(store: Store, artefact: Artefact) -> list[dict[str, Any]]:
    """Robot episodes behind `artefact`: episode_id, source, licence, steps, seconds and role.

    The role is `train` or `validation` when the world model's lineage.json says so under `episodes`, else `available`.
    """
    lineage = ancestors(store, artefact)
    roles: dict[str, str] = {}
    for item in lineage:
        if item.asset == "world_model" and (item.path / "lineage.json").is_file():
            used = json.loads((item.path / "lineage.json").read_text()).get("episodes", {})
            roles |= {episode: role for role, episodes in used.items() for episode in episodes}
    rows = {}
    for item in lineage:
        if item.asset == "robot_episodes":
            for episode in schemas.read_table(item.path / "episodes.parquet", schemas.EPISODES).to_pylist():
                rows[episode["episode_id"]] = {
                    "episode_id": episode["episode_id"], "source": episode["source"], "licence": episode["licence"],
                    "steps": episode["steps"], "seconds": episode["steps"] * episode["step_s"],
                    "role": roles.get(episode["episode_id"], "available"),
                }  # fmt: skip
    return [rows[name] for name in sorted(rows)]


def checkpoint_row(store: Store, artefact: Artefact) -> dict[str, Any]:
    """The artefact's row in the CHECKPOINTS table; `parents` is a JSON object {key: digest}, `step` 0 for what was not trained on clips."""
    spec = read_spec(artefact.path)
    shards = {item.digest for item in ancestors(store, artefact) if item.path.joinpath(INDEX_FILE).is_file()}
    return {
        "digest": artefact.digest, "asset": artefact.asset, "partition": artefact.partition, "step": spec.steps if spec else 0,
        "parents": canonical_json(artefact.inputs), "shards_digest": ",".join(sorted(shards)),
        "path": str(artefact.path.relative_to(store.root)),
    }  # fmt: skip


def write_tables(store: Store, artefact: Artefact, folder: Path) -> list[Path]:
    """The trainings on clips that `artefact` stands on, as Parquet: checkpoints, and one exposures table for each phase."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, written = [], [folder / "checkpoints.parquet"]
    for checkpoint, spec, shards in phases(store, artefact):
        rows.append(checkpoint_row(store, checkpoint))
        written.append(folder / f"exposures-{spec.phase}.parquet")
        schemas.write_table(exposures(shards.path, spec), written[-1], schemas.EXPOSURES)
    schemas.write_table(schemas.table_of(schemas.CHECKPOINTS, rows), written[0], schemas.CHECKPOINTS)
    return written
