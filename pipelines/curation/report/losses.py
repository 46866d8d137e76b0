"""Everything that was dropped, by stage and reason, with examples a person can go and look at; and whether the sums agree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.curation.report.chain import Chain, folders
from pipelines.curation.report.funnel import LEFT_OUT, SUPERSEDED, count, with_quarantine
from pipelines.errors import Removal
from pipelines.schemas import CLIPS, QUARANTINE, REMOVALS, SELECTION, VIDEOS, read_table
from pipelines.video.media import display_name

EXAMPLES = 50
FACTS = [
    "clip_id", "video_id", "path", "start_pts", "end_pts", "start_s", "end_s", "width", "height", "source", "licence", "uploader", "label",
    "language", "motion",
]  # fmt: skip
"""Columns of a clip that people are shown, and those that find its picture."""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Loss:
    """One reason at one stage: how many it took, and the first of them as rows for a table.

    `examples` hold `path`, `start_s`, `end_s` (None for whole files), `detail`; removed clips also `clip` and `twin` (rows
    of FACTS, None when no table knows them), `similarity` and `distance`.
    """

    stage: str
    reason: str
    count: int
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Sum:
    """A sum that must agree: `left` in words and number, the parts it must be the sum of."""

    left: tuple[str, int]
    right: tuple[tuple[str, int], ...]

    @property
    def agrees(self) -> bool:
        return self.left[1] == sum(number for _, number in self.right)


def losses_of(chain: Chain, examples: int = EXAMPLES) -> list[Loss]:
    """Every loss of the chain in the order of the stages, each with at most `examples` of its rows."""
    found = _quarantined("videos", folders(chain.videos), examples) + _quarantined("clips", folders(chain.clips), examples)
    found += _quarantined("embedded", with_quarantine(folders(chain.embeddings)), examples)
    if chain.distinct is not None:
        stale = _superseded(chain, examples)
        found += ([stale] if stale else []) + _removed(chain, chain.distinct.path, examples)
        if chain.selection is not None:
            left = _left_out(chain.distinct.path, chain.selection.path, examples)
            found += [left] if left.count else []
    if chain.shards is not None:
        found += _quarantined("sharded", [chain.shards.path], examples)
    return found


def _quarantined(stage: str, found: Sequence[Path], examples: int) -> list[Loss]:
    """Quarantine rows by code; the first by path."""
    tables = [read_table(folder / "quarantine.parquet", QUARANTINE) for folder in found]
    if not tables:
        return []
    table = pa.concat_tables(tables)
    losses = []
    for code in sorted(set(table.column("code").to_pylist())):
        rows = table.filter(pc.equal(table.column("code"), code))
        first = rows.take(pc.sort_indices(rows, sort_keys=[("path", "ascending"), ("detail", "ascending")])[:examples]).to_pylist()
        losses.append(Loss(stage, code, len(rows), [{**row, "start_s": None, "end_s": None} for row in first]))
    return losses


def _superseded(chain: Chain, examples: int) -> Loss | None:
    """Clips of files that a later batch took in again, from the paths in the distinct set's own configuration."""
    assert chain.distinct is not None
    number = int(chain.distinct.summary.get("superseded_clips", 0))
    stale: dict[str, list[str]] = chain.distinct.config.get("superseded") or {}
    paths = [(path, batch) for batch, listed in sorted(stale.items()) for path in listed][:examples]
    rows = [{"path": path, "start_s": None, "end_s": None, "detail": f"changed after batch {batch}"} for path, batch in paths]
    return Loss("distinct", SUPERSEDED, number, rows) if number else None


def _removed(chain: Chain, distinct: Path, examples: int) -> list[Loss]:
    targets = chain.targets.path if chain.targets else None
    return [Loss("distinct", reason, number, rows) for reason, number, rows in removal_rows(distinct, folders(chain.clips), targets, examples)]


def removal_rows(distinct: Path, clips: Sequence[Path], targets: Path | None, examples: int) -> list[tuple[str, int, list[dict[str, Any]]]]:
    """For each reason in the removals of `distinct`: (reason, how many, the first rows with their clips and twins).

    Those least like their twin come first, since a wrong threshold shows there. `clips` are the folders of the batches.
    What was taken down is named, but has no `clip`: nobody is to be shown its picture.
    """
    table = read_table(distinct / "removals.parquet", REMOVALS)
    chosen: dict[str, tuple[int, list[dict[str, Any]]]] = {}
    for reason in sorted(set(table.column("reason").to_pylist())):
        rows = table.filter(pc.equal(table.column("reason"), reason))
        order = pc.sort_indices(rows, sort_keys=[("similarity", "ascending"), ("clip_id", "ascending"), ("twin_id", "ascending")])
        chosen[reason] = len(rows), rows.take(order[:examples]).to_pylist()
    shown = [row for _, rows in chosen.values() for row in rows]
    kept = find_clips([distinct], {row["twin_id"] for row in shown})
    held_out = find_clips([targets] if targets else [], {row["twin_id"] for row in shown})
    # A copy of a file has the same clip_id as its twin: the clip that went is one of the others that have it.
    pool = {name: list(rows) for name, rows in find_clips(clips, {row["clip_id"] for row in shown}).items()}
    return [
        (reason, number, [_removal(row, pool, held_out if reason == Removal.EVALUATION_LEAK else kept) for row in rows])
        for reason, (number, rows) in chosen.items()
    ]


def _removal(row: dict[str, Any], pool: dict[str, list[Row]], twins: dict[str, list[Row]]) -> dict[str, Any]:
    """A removal with the clip and its twin; takes the clip out of `pool`, so that the next of the same id is another copy."""
    twin = next(iter(twins.get(row["twin_id"], [])), None)
    candidates = pool.get(row["clip_id"], [])
    clip = next((item for item in candidates if twin is None or (item["clip_id"], item["path"]) != (twin["clip_id"], twin["path"])), None)
    if clip is not None:
        candidates.remove(clip)
    place = clip or {"path": "", "start_s": None, "end_s": None}
    shown = clip if row["reason"] != Removal.TAKEN_DOWN else None
    return {**row, **{name: place[name] for name in ("path", "start_s", "end_s")}, "clip": shown, "twin": twin}


def _left_out(distinct: Path, selection: Path, examples: int) -> Loss:
    """Distinct clips that the selection does not draw."""
    ids = read_table(distinct / "clips.parquet", CLIPS, ["clip_id"]).column("clip_id")
    chosen = read_table(selection / "selection.parquet", SELECTION, ["clip_id"]).column("clip_id")
    left = ids.filter(pc.invert(pc.is_in(ids, value_set=chosen.combine_chunks())))
    first = find_clips([distinct], set(left[:examples].to_pylist()))
    rows = [{**clip, "clip": clip, "twin": None, "detail": "no target asks for it, or a quota was full"} for clips in first.values() for clip in clips]
    return Loss("selected", LEFT_OUT, len(left), sorted(rows, key=lambda row: row["path"]))


def find_clips(found: Iterable[Path], ids: Collection[str]) -> dict[str, list[Row]]:
    """Rows (the columns of FACTS) of the clips tables in these folders that have one of `ids`, by id; sorted by path."""
    clips: dict[str, list[Row]] = {}
    if not ids:
        return clips
    wanted = pa.array(sorted(ids), pa.string())
    for folder in found:
        table = read_table(folder / "clips.parquet", CLIPS, FACTS)
        for row in table.filter(pc.is_in(table.column("clip_id"), value_set=wanted)).to_pylist():
            clips.setdefault(row["clip_id"], []).append(row)
    return {name: sorted(rows, key=lambda row: (row["path"], row["start_pts"])) for name, rows in clips.items()}


def sums_of(chain: Chain) -> list[Sum]:
    """The sums that must agree from the files to the shards: nothing is lost without a row, nothing comes from nowhere."""
    sums = []
    videos, clips = count(folders(chain.videos), "videos.parquet"), count(folders(chain.clips), "clips.parquet")
    if chain.videos:
        quarantined = count(folders(chain.videos), "quarantine.parquet")
        listed = sum(int(item.summary.get("files", 0)) for item in chain.videos.values()) or videos + quarantined
        sums.append(Sum(("files taken in", listed), (("decodable videos", videos), ("files in quarantine", quarantined))))
    if chain.videos and chain.clips:
        scanned, cut, rejected = _videos_with_clips(chain)
        sums.append(Sum(("videos scanned for scenes", scanned), (("videos that gave clips", cut), ("videos without a clip, in quarantine", rejected))))
    if chain.distinct is not None and chain.clips:
        removed = count([chain.distinct.path], "removals.parquet")
        reasons = read_table(chain.distinct.path / "removals.parquet", REMOVALS, ["reason"]).column("reason")
        filtered = int(pc.sum(pc.starts_with(reasons, "filtered")).as_py() or 0)
        taken = int(pc.sum(pc.equal(reasons, Removal.TAKEN_DOWN.value)).as_py() or 0)
        parts = [("distinct clips", count([chain.distinct.path], "clips.parquet")), ("duplicates and leaks removed", removed - filtered - taken)]
        parts += [("filtered", filtered), ("taken down", taken)]
        stale = int(chain.distinct.summary.get("superseded_clips", 0))
        parts += [("clips of files changed since", stale), ("clips without a vector", count(with_quarantine(folders(chain.embeddings)), "quarantine.parquet"))]
        sums.append(Sum(("clips cut", clips), tuple(part for part in parts if part[1] or part is parts[0])))
    if chain.distinct is not None and chain.selection is not None:
        ids = read_table(chain.distinct.path / "clips.parquet", CLIPS, ["clip_id"]).column("clip_id")
        chosen = read_table(chain.selection.path / "selection.parquet", SELECTION, ["clip_id"]).column("clip_id")
        known = int(pc.sum(pc.is_in(ids, value_set=chosen.combine_chunks())).as_py() or 0)
        sums.append(Sum(("distinct clips", len(ids)), (("clips with a weight", len(chosen)), ("clips not chosen", len(ids) - known))))
        if chain.shards is not None:
            failed = count([chain.shards.path], "quarantine.parquet")
            parts = [("clips in shards", count([chain.shards.path], "shard_index.parquet")), ("clips that could not be cut", failed)]
            sums.append(Sum(("clips with a weight", len(chosen)), tuple(parts)))
    return sums


def _videos_with_clips(chain: Chain) -> tuple[int, int, int]:
    """Of the batches that were cut: (videos, those with at least one clip, those without one but with a quarantine row)."""
    scanned = cut = rejected = 0
    for batch, item in chain.videos.items():
        if batch not in chain.clips:
            continue
        paths = read_table(item.path / "videos.parquet", VIDEOS, ["path"]).column("path")
        folder = chain.clips[batch].path
        clips = read_table(folder / "clips.parquet", CLIPS, ["path"]).column("path").unique()
        rejects = read_table(folder / "quarantine.parquet", QUARANTINE, ["path"]).column("path").unique()
        has = np.asarray(pc.is_in(paths, value_set=clips))
        scanned += len(paths)
        cut += int(has.sum())
        rejected += int((~has & np.asarray(pc.is_in(paths, value_set=rejects))).sum())
    return scanned, cut, rejected


def place_of(row: Row) -> str:
    """Where a clip or file is, for a person: a short name, and the seconds in it."""
    name = display_name(row["path"]) if row["path"] else "?"
    return name if row.get("start_s") is None else f"{name} {row['start_s']:.2f}-{row['end_s']:.2f} s"
