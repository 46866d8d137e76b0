"""What one artefact stands on, as an answer a person reads and a machine can keep: all numbers, units in the names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import TubeletError
from pipelines.lineage.ledger import episode_seconds, shown_to
from pipelines.lineage.shown import GROUPS, Shown, Videos, join, video_rows
from pipelines.lineage.trainings import Training, Trainings, borrowed_weights
from pipelines.lineage.tree import ancestors, current_paths, fan_in, trace
from pipelines.store import Artefact, Store
from pipelines.tombstones import tombstone_rows


def about_artefact(store: Store, artefact: Artefact, trainings: Trainings | None = None) -> dict[str, Any]:
    """The tree, what was shown (in all, by phase, source, licence, uploader and video), robot episodes, merged batches, and takedowns
    that touch it. When the samples cannot be drawn again, `untold` says why; `borrowed` are weights from elsewhere that it stands on.
    Raises `MissingArtefact` when an artefact below it is gone."""
    trainings, untold = trainings or Trainings(store), []
    try:
        shown, videos = shown_to(store, artefact, trainings)
        behind = trainings.behind(artefact)
    except (TubeletError, OSError) as error:
        shown, videos, behind, untold = join([]), Videos.of([]), [], [{"checkpoint": artefact.key, "why": str(error)}]
    lineage = ancestors(store, artefact)
    samples, stand_ins = sum(one.samples for one in behind), sum(one.stand_ins for one in behind)
    return {
        "subject": {
            "kind": "artefact", "name": artefact.key, "digest": artefact.digest, "identity": artefact.identity, "path": str(artefact.path),
            "current": artefact.path in current_paths(store), "validated": store.is_validated(artefact),
        },
        "artefacts": len(lineage),
        "tree": trace(store, artefact).to_dict(),
        "total": {
            **shown.total, "clips_in_shards": pc.count_distinct(shown.clips.column("clip_id")).as_py(), "stand_ins": stand_ins,
            "stand_in_share": stand_ins / samples if samples else 0.0,
        },
        "phases": [_phase(one) for one in behind],
        **{f"{name}s": shown.by(name) for name in GROUPS},
        "videos": sorted(video_rows(shown, videos), key=lambda row: (-row["seconds"], row["path"], row["video_id"])),
        "episodes": episode_seconds(store, artefact),
        "batches": [row for item in lineage for row in fan_in(store, item) if "clips" in row["inputs"]],
        "takedowns": takedowns_of(store, shown),
        "untold": untold,
        "borrowed": borrowed_weights(store, lineage),
    }  # fmt: skip


def _phase(training: Training) -> dict[str, Any]:
    spec, shown = training.spec, training.shown
    return {
        "phase": spec.phase, "checkpoint": training.checkpoint.key, "digest": training.checkpoint.digest, "seed": spec.seed, "steps": spec.steps,
        "global_batch": spec.global_batch, "samples": training.samples, "seconds": float(shown.seconds.sum()),
        "clips": int(np.count_nonzero(shown.samples)), "stand_ins": training.stand_ins,
        "stand_in_share": training.stand_ins / training.samples if training.samples else 0.0,
    }  # fmt: skip


def takedowns_of(store: Store, shown: Shown) -> list[dict[str, Any]]:
    """The takedowns made up to now that name clips of `shown`: clips (in the shards), and how often and how long those were shown."""
    stones = tombstone_rows(store.root)
    rows = []
    for takedown in pc.unique(stones["takedown"]).to_pylist():
        own = stones.filter(pc.equal(stones["takedown"], takedown))
        whole = own.filter(pc.is_null(own["clip_id"]))
        by_clip = pc.is_in(shown.clips["clip_id"], value_set=pa.array(own["clip_id"].drop_null().combine_chunks()))
        by_video = pc.is_in(shown.clips["video_id"], value_set=pa.array(whole["video_id"].combine_chunks()))
        touched = shown.where(np.asarray(pc.or_(by_clip, by_video)))
        if len(touched):
            rules = {f"{row['rule']} {row['value']}".strip() for row in own.select(["rule", "value"]).to_pylist() if row["rule"] != "twin"}
            rows.append({
                "takedown": takedown, "asked": ", ".join(sorted(rules)), "reason": ", ".join(sorted({str(word) for word in own["reason"].to_pylist()})),
                "added": min((str(moment) for moment in own["added"].to_pylist()), default=""),
                "clips": pc.count_distinct(touched.clips["clip_id"]).as_py(), "samples": int(touched.numbers("samples").sum()),
                "seconds": float(touched.numbers("seconds").sum()),
            })  # fmt: skip
    return rows
