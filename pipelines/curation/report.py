"""What became of the videos: the funnel from files to shards with every reason, read from the store's artefacts alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.errors import MissingArtefact
from pipelines.schemas import CLIPS, QUARANTINE, REMOVALS, SELECTION, SHARD_INDEX, VIDEOS, read_table
from pipelines.store import Artefact, Store


@dataclass(frozen=True)
class FunnelRow:
    """One line of the funnel: `count` things of `unit` at `stage`, or lost there for `reason`."""

    stage: str
    reason: str
    count: int
    unit: str


def funnel(store: Store) -> list[dict[str, Any]]:
    """Rows from files found to clips sharded, in the order of the stages; stages that were not made yet are left out."""
    rows: list[FunnelRow] = []
    videos = [store.current("videos", batch) for batch in store.partitions("videos")]
    if videos:
        tables = [(read_table(item.file("videos.parquet"), VIDEOS), read_table(item.file("quarantine.parquet"), QUARANTINE)) for item in videos]
        good, bad = sum(len(table) for table, _ in tables), sum(len(table) for _, table in tables)
        rows.append(FunnelRow("files", "found", good + bad, "files"))
        rows += _losses("videos", "quarantined", Counter(code for _, table in tables for code in table.column("code").to_pylist()), "files")
        rows.append(FunnelRow("videos", "decodable", good, "videos"))
    clips = [store.current("clips", batch) for batch in store.partitions("clips")]
    if clips:
        lost = Counter(code for item in clips for code in read_table(item.file("quarantine.parquet"), QUARANTINE).column("code").to_pylist())
        rows += _losses("clips", "rejected", lost, "scenes or files")
        rows.append(FunnelRow("clips", "cut", sum(len(read_table(item.file("clips.parquet"), CLIPS)) for item in clips), "clips"))
    distinct = _current(store, "distinct_clips")
    if distinct is not None:
        lost = Counter(read_table(distinct.file("removals.parquet"), REMOVALS).column("reason").to_pylist())
        stale = int(distinct.summary["superseded_clips"])
        rows += _losses("distinct", "removed", Counter({"superseded by a changed file": stale}) if stale else Counter(), "clips")
        rows += _losses("distinct", "removed", lost, "clips")
        rows.append(FunnelRow("distinct", "kept", len(read_table(distinct.file("clips.parquet"), CLIPS)), "clips"))
    selection = _current(store, "curated_clips")
    if selection is not None:
        earned = Counter(read_table(selection.file("selection.parquet"), SELECTION).column("target").to_pylist())
        rows += _losses("selected", "for target", earned, "clips")
        rows.append(FunnelRow("selected", "with a weight", sum(earned.values()), "clips"))
    shards = _current(store, "training_shards")
    if shards is not None:
        rows.append(FunnelRow("sharded", "written", len(read_table(shards.file("shard_index.parquet"), SHARD_INDEX)), "clips"))
    return [asdict(row) for row in rows]


def _losses(stage: str, verb: str, counts: Counter[str], unit: str) -> list[FunnelRow]:
    return [FunnelRow(stage, f"{verb}: {reason.replace('_', ' ')}", count, unit) for reason, count in sorted(counts.items())]


def _current(store: Store, asset: str) -> Artefact | None:
    try:
        return store.current(asset)
    except MissingArtefact:
        return None
