"""Clips of other videos that show the footage of taken ones, by every removals table and every table of pairs of the store.

Curation drops a copy and keeps its twin. If only the kept one were taken down, the next curation would promote the dropped
one. So the whole connected component goes: copies of a taken clip, what a taken clip was dropped for, and the other
copies of that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.lineage.spans import shares_footage
from pipelines.lineage.takedown.sightings import clips_by_id, clips_of_videos
from pipelines.lineage.tree import every_artefact
from pipelines.store import Store

LINKS = ("exact", "fingerprint", "near_duplicate", "mirrored", "taken_down")  # reasons of a removal that may name a twin with the same footage
PAIR, SAME_SPAN = "pair", "same span"
EDGES = pa.schema([("first", pa.string()), ("second", pa.string()), ("similarity", pa.float32()), ("link", pa.string())])


@dataclass(frozen=True)
class Twin:
    """A clip that goes because it is linked to `twin_of`: a clip of a taken video, or another twin.

    `link` is the reason of the removal that links the two, "pair" for verified pairs that both stayed or both went, or
    "same span" of one stream (another container, other cuts). `video_id` is "" where no table knows it any more.
    """

    clip_id: str
    video_id: str
    path: str | None
    start_s: float | None
    end_s: float | None
    twin_of: str
    similarity: float | None
    link: str


def find_twins(store: Store, video_ids: Collection[str]) -> list[Twin]:
    """The twins of all clips of these videos, themselves of other videos, by clip_id."""
    edges = _edges(store)
    reached = _clip_ids(store, video_ids)
    found: dict[str, Twin] = {}
    fresh = set(reached)
    while fresh:
        linked = {name: link for name, link in _neighbours(edges, fresh).items() if name not in reached}
        reached |= set(linked)
        rows = {row["clip_id"]: row for row in clips_by_id(store, linked).to_pylist()}
        fresh = set(linked)
        for name, (twin_of, similarity, link) in linked.items():
            row = rows.get(name, {})
            found[name] = Twin(name, row.get("video_id") or "", row.get("path"), row.get("start_s"), row.get("end_s"), twin_of, similarity, link)
        # What shows the same seconds goes too; but not what shares seconds with that, or all of a video would follow.
        for twin in _same_spans(store, [found[name] for name in sorted(linked)], reached):
            if twin.clip_id not in reached:
                reached.add(twin.clip_id)
                fresh.add(twin.clip_id)
                found[twin.clip_id] = twin
    return [found[name] for name in sorted(found)]


def _clip_ids(store: Store, video_ids: Collection[str]) -> set[str]:
    """Ids of the clips of these videos, also of those that only a removals table names."""
    found = set(clips_of_videos(store, video_ids).column("clip_id").to_pylist())
    wanted = pa.array(sorted(video_ids), pa.string())
    for artefact in every_artefact(store):
        path = artefact.path / "removals.parquet"
        if artefact.asset == "distinct_clips" and path.is_file():
            table = schemas.read_table(path, schemas.REMOVALS, ["clip_id", "video_id"])
            found |= set(table.filter(pc.is_in(table.column("video_id"), value_set=wanted)).column("clip_id").to_pylist())
    return found


def _edges(store: Store) -> pa.Table:
    """Links between clips with the same footage, of every distinct_clips artefact, once each, with what told first."""
    tables = [EDGES.empty_table()]
    for artefact in every_artefact(store):
        if artefact.asset != "distinct_clips":
            continue
        if (artefact.path / "removals.parquet").is_file():
            table = schemas.read_table(artefact.path / "removals.parquet", schemas.REMOVALS, ["clip_id", "twin_id", "similarity", "reason"])
            table = table.filter(pc.is_in(table.column("reason"), value_set=pa.array(LINKS)))
            tables.append(table.rename_columns(EDGES.names).cast(EDGES))
        if (artefact.path / "pairs.parquet").is_file():
            table = schemas.read_table(artefact.path / "pairs.parquet", schemas.PAIRS, ["first_id", "second_id", "cosine", "strict", "evaluation"])
            table = table.filter(pc.and_(table.column("strict"), pc.invert(table.column("evaluation")))).select(["first_id", "second_id", "cosine"])
            table = table.append_column("link", pa.array([PAIR] * len(table), pa.string()))
            tables.append(table.rename_columns(EDGES.names).cast(EDGES))
    whole = pa.concat_tables(tables)
    return whole.filter(pc.and_(pc.not_equal(whole.column("first"), whole.column("second")), pc.not_equal(whole.column("second"), "")))


def _neighbours(edges: pa.Table, among: Collection[str]) -> dict[str, tuple[str, float | None, str]]:
    """Clips with a link to one of `among`: (that one, similarity, link), by the most similar one."""
    wanted = pa.array(sorted(among), pa.string())
    best: dict[str, tuple[str, float | None, str]] = {}
    rows: list[tuple[str, str, float | None, str]] = []
    for here, there in (("first", "second"), ("second", "first")):
        part = edges.filter(pc.is_in(edges.column(here), value_set=wanted)).select([there, here, "similarity", "link"])
        rows += zip(*(column.to_pylist() for column in part.columns), strict=True)
    # A removal tells more than a pair does, so at equal similarity (removals round theirs) its reason is the link.
    for name, twin_of, similarity, link in sorted(rows, key=lambda row: (row[0], -round(_known(row[2]), 4), row[3] == PAIR, row[1])):
        best.setdefault(name, (twin_of, None if similarity is None or np.isnan(similarity) else round(float(similarity), 6), link))
    return best


def _known(similarity: float | None) -> float:
    return -2.0 if similarity is None or np.isnan(similarity) else similarity


def _same_spans(store: Store, twins: list[Twin], reached: Collection[str]) -> list[Twin]:
    """Clips of the twins' videos that show the same seconds: of another container, or cut by another splitter."""
    rows: dict[str, list[dict[str, object]]] = {}
    for row in clips_of_videos(store, {twin.video_id for twin in twins} - {""}).to_pylist():
        if row["clip_id"] not in reached:
            rows.setdefault(row["video_id"], []).append(row)
    return [
        Twin(row["clip_id"], twin.video_id, row["path"], row["start_s"], row["end_s"], twin.clip_id, 1.0, SAME_SPAN)  # type: ignore[arg-type]
        for twin in twins
        for row in rows.get(twin.video_id, [])
        if twin.start_s is not None and twin.end_s is not None and shares_footage(twin.start_s, twin.end_s, row["start_s"], row["end_s"])  # type: ignore[arg-type]
    ]
