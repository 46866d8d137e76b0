"""What an artefact was made from, and which seconds of which source video a checkpoint has seen. Reads the store's files only."""

from __future__ import annotations

import json
from typing import Any

from pipelines import schemas
from pipelines.identity import canonical_json
from pipelines.lineage.exposure import ExposureSpec, exposures, read_spec
from pipelines.lineage.render import render_html, render_text
from pipelines.lineage.shown import Shown, Videos, shown_by, video_rows
from pipelines.lineage.trainings import Trainings, phases, whole_pool
from pipelines.lineage.tree import Node, ancestors, find, trace
from pipelines.shards.index import INDEX_FILE
from pipelines.store import Artefact, Store

__all__ = [
    "ExposureSpec", "Node", "checkpoint_row", "episode_seconds", "exposures", "find", "phases", "read_spec", "render_html", "render_text",
    "shown_to", "source_seconds", "trace",
]  # fmt: skip


def source_seconds(store: Store, artefact: Artefact) -> list[dict[str, Any]]:
    """What `artefact` stands on, per source video, by path (columns: `shown.video_rows`), recomputed by drawing every phase again.

    For an artefact below any training, the shards alone are told, with no samples.
    """
    shown, videos = shown_to(store, artefact, Trainings(store))
    return video_rows(shown, videos)


def shown_to(store: Store, artefact: Artefact, trainings: Trainings) -> tuple[Shown, Videos]:
    """What the trainings behind `artefact` showed, and what its `videos` know; without a training its shards, with no samples."""
    lineage = ancestors(store, artefact)
    videos = Videos.of(lineage)
    behind = trainings.behind(artefact)
    others = [] if behind else [whole_pool(item.path) for item in lineage if (item.path / INDEX_FILE).is_file()]
    return shown_by(behind, videos, others), videos


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
