"""What a takedown touches: shards, the weight that falls away, trainings with their exposures, what stands on these, files, and
artefacts that still hold something made from the clips."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines import schemas
from pipelines.errors import TubeletError
from pipelines.lineage.exposure import LINEAGE_FILE, read_spec
from pipelines.lineage.trainings import Training, Trainings
from pipelines.lineage.tree import current_paths, descendants, every_artefact
from pipelines.reporting import Progress
from pipelines.shards.index import INDEX_FILE
from pipelines.store import MANIFEST, Artefact, Store, key_of
from pipelines.tombstones import Tombstones
from pipelines.video.media import media_stat

HELD = {
    "videos": ("videos.parquet", "rows, and small grey pictures of every frame (signals.arrow)"),
    "clips": ("clips.parquet", "rows, looks and fingerprints (small grey pictures)"),
    "clip_embeddings": ("clip_ids.json", "a vector each"),
    "distinct_clips": ("clips.parquet", "rows, looks, a vector each, and pictures on contact_removed.png"),
    "clip_clusters": ("assignments.parquet", "assignments; the centroids were averaged over their vectors"),
    "curated_clips": ("selection.parquet", "weights, and perhaps pictures on contact_kept.png"),
    "target_videos": ("clips.parquet", "clips of a target set, with looks: take the files out of the set and materialize it again"),
    "target_embeddings": ("clip_ids.json", "a vector each, of a target set"),
}
"""asset -> the file that names its clips, and what else of them it holds. Shards are told apart: they hold the clips themselves."""


def artefact_facts(artefact: Artefact, current: Collection[Path]) -> dict[str, Any]:
    """How a report names an artefact."""
    return {"artefact": artefact.key, "digest": artefact.digest, "current": artefact.path in current}


def shards_touched(store: Store, taken: Tombstones) -> list[dict[str, Any]]:
    """Every training_shards artefact that holds taken clips: tars, clips, bytes (of the clips), share of the weights that is not served."""
    current, found = current_paths(store), []
    for artefact in every_artefact(store):
        if artefact.asset != "training_shards" or not (artefact.path / INDEX_FILE).is_file():
            continue
        index = schemas.read_table(artefact.path / INDEX_FILE, schemas.SHARD_INDEX, ["clip_id", "video_id", "shard", "length", "weight"])
        own = index.filter(pa.array(taken.among(index.column("clip_id"), index.column("video_id"))))
        if len(own):
            share = pc.sum(own.column("weight")).as_py() / (pc.sum(index.column("weight")).as_py() or 1.0)
            found.append({
                **artefact_facts(artefact, current), "tars": sorted(pc.unique(own.column("shard")).to_pylist()), "clips": len(own),
                "bytes": pc.sum(own.column("length")).as_py(), "unserved_mass": float(share),
            })  # fmt: skip
    return found


def selection_touched(store: Store, taken: Tombstones) -> dict[str, Any] | None:
    """The current selection: how much of its weight is not served any more, in all and by target. None before there is one."""
    artefact = store.latest("curated_clips")
    if artefact is None:
        return None
    table = schemas.read_table(artefact.file("selection.parquet"), schemas.SELECTION, ["clip_id", "video_id", "weight", "target"])
    own = table.filter(pa.array(taken.among(table.column("clip_id"), table.column("video_id"))))
    total = pc.sum(table.column("weight")).as_py() or 1.0
    by_target = own.group_by("target").aggregate([("weight", "sum")]).to_pylist()
    return {
        **artefact_facts(artefact, {artefact.path}), "clips": len(own), "of": len(table), "unserved_mass": float((pc.sum(own.column("weight")).as_py() or 0.0) / total),
        "by_target": {row["target"] or "": row["weight_sum"] / total for row in sorted(by_target, key=lambda row: row["target"] or "")},
    }  # fmt: skip


def trainings_touched(store: Store, taken: Tombstones) -> tuple[list[dict[str, Any]], list[Artefact]]:
    """Every checkpoint that was shown taken clips, itself or by what it was started from; and these artefacts.

    A row: artefact, digest, current, clips, videos, samples, seconds, first_phase, last_phase, and `phases` with the same
    counts. A checkpoint whose lineage cannot be told has a row with its `problem` instead.
    """
    trainings, current = Trainings(store), current_paths(store)
    made = [item for item in every_artefact(store) if (item.path / LINEAGE_FILE).is_file()]
    counted: dict[Path, dict[str, Any]] = {}
    rows, touched = [], []
    with Progress("exposures", len(made), "checkpoints") as progress:
        for done, item in enumerate(made, start=1):
            try:
                behind = trainings.behind(item) if read_spec(item.path) is not None else []
                for training in behind:
                    if training.checkpoint.path not in counted:
                        counted[training.checkpoint.path] = _count(training, taken)
            except (TubeletError, OSError) as error:  # shards that are gone, or a lineage of another version
                rows.append({**artefact_facts(item, current), "problem": str(error)})
                touched.append(item)
            else:
                shown = [counted[training.checkpoint.path] for training in behind if counted[training.checkpoint.path]["samples"]]
                if shown:
                    rows.append({**artefact_facts(item, current), **_sum(shown)})
                    touched.append(item)
            progress(done, text=item.key)
    return rows, touched


def _count(training: Training, taken: Tombstones) -> dict[str, Any]:
    """What one phase showed of the taken clips; nothing is drawn where the shards hold none."""
    own = training.pool.covered(taken)
    drawn: NDArray[np.bool_] = own & (training.shown.samples > 0) if own.any() else own
    clip_ids, video_ids = (training.pool.texts(name) for name in ("clip_id", "video_id"))
    chosen = pa.array(drawn)
    return {
        "phase": training.spec.phase, "checkpoint": training.checkpoint.digest, "steps": training.spec.steps,
        "samples": int(training.shown.samples[drawn].sum()) if drawn.any() else 0, "of_samples": training.samples,
        "seconds": float(training.shown.seconds[drawn].sum()) if drawn.any() else 0.0,
        "clip_ids": clip_ids.filter(chosen).to_pylist(), "video_ids": sorted(set(video_ids.filter(chosen).to_pylist())),
    }  # fmt: skip


def _sum(shown: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("clip_ids", "video_ids")
    clips, videos = (len({name for phase in shown for name in phase[column]}) for column in names)
    return {
        "clips": clips, "videos": videos, "samples": sum(phase["samples"] for phase in shown), "seconds": sum(phase["seconds"] for phase in shown),
        "first_phase": shown[0]["phase"], "last_phase": shown[-1]["phase"],
        "phases": [{**{key: value for key, value in phase.items() if key not in names}, "clips": len(phase["clip_ids"])} for phase in shown],
    }  # fmt: skip


def unfinished_touched(store: Store, shards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Trainings that have not ended and read from touched shards: their work folder, and the newest checkpoint in it."""
    digests = {row["digest"] for row in shards}
    found = []
    for path in sorted((store.root / "work").glob("*/*/*/spec.json")):
        folder = path.parent
        if (store.root / "artefacts" / folder.relative_to(store.root / "work") / MANIFEST).is_file():
            continue
        manifests = [Path(part) / MANIFEST for part in _texts(json.loads(path.read_text()))]
        read = {json.loads(manifest.read_text()).get("digest") for manifest in manifests if os.path.isfile(manifest)}
        if digests & read:
            asset, partition, _ = folder.relative_to(store.root / "work").parts
            steps = sorted(item.name for item in (folder / "checkpoints").glob("*") if item.is_dir())
            found.append({"training": key_of(asset, partition), "folder": str(folder), "newest_checkpoint": steps[-1] if steps else None})
    return found


def _texts(value: Any) -> Iterable[str]:
    """Every text in a JSON value, whatever it is called there: a spec may name one folder of shards or several."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def standing_on(store: Store, touched: list[Artefact]) -> list[dict[str, Any]]:
    """What was made from the touched checkpoints and is no such checkpoint itself: world models, bundles, deployments, results."""
    current, own = current_paths(store), {item.path for item in touched}
    return [artefact_facts(item, current) for item in descendants(store, touched) if item.path not in own]


def derived(store: Store, taken: Tombstones, clip_ids: Collection[str]) -> list[dict[str, Any]]:
    """Artefacts below the shards that hold something of the taken clips (`clip_ids`: all of them by name)."""
    current, found = current_paths(store), []
    named = pa.array(sorted({*clip_ids, *taken.clip_ids}), pa.string())
    for artefact in every_artefact(store):
        name, what = HELD.get(artefact.asset, ("", ""))
        if not name or not (artefact.path / name).is_file():
            continue
        if name.endswith(".json"):
            own = pc.is_in(pa.array(json.loads((artefact.path / name).read_text()), pa.string()), value_set=named)
        else:
            there = [column for column in ("clip_id", "video_id") if column in pq.read_schema(artefact.path / name).names]
            table = pq.read_table(artefact.path / name, columns=there)
            own = pa.array(np.logical_or.reduce([np.asarray(pc.is_in(table.column(column), value_set=values), bool) for column, values in (
                ("clip_id", named), ("video_id", pa.array(sorted(taken.video_ids), pa.string())),
            ) if column in there]))  # fmt: skip
        number = pc.sum(own).as_py() or 0
        if number:
            found.append({**artefact_facts(artefact, current), "rows": number, "holds": what})
    return found


def pages(store: Store) -> list[str]:
    """Folders of pages that may show pictures of the taken clips until they are written again."""
    return [str(folder) for folder in (store.root / "curation", store.root / "report") if folder.is_dir()]


def files_on_disk(paths: Iterable[str]) -> list[dict[str, Any]]:
    """Of source files that are still there: path and bytes."""
    found = []
    for path in sorted(set(paths)):
        try:
            found.append({"path": path, "bytes": media_stat(path).bytes})
        except OSError:
            continue
    return found
