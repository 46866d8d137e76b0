"""What every stage says about some clips: the artefact that speaks, its digest, its rows, and one sentence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.lineage.answers.subject import rows_where
from pipelines.lineage.spans import spans_text
from pipelines.store import Artefact, redactions

Row = dict[str, Any]
NOT_CHOSEN = "not chosen"


@dataclass(frozen=True)
class Said:
    """`rows` of `artefact` at `stage`, each with `verdict`: how the stage decided (probed, cut, kept, removed, selected, ...)."""

    stage: str
    artefact: Artefact
    current: bool
    rows: list[Row]

    @property
    def words(self) -> str:
        """One sentence: the facts of a single row, or sums over several."""
        return "; ".join(WORDS[verdict]([row for row in self.rows if row["verdict"] == verdict]) for verdict in dict.fromkeys(row["verdict"] for row in self.rows))

    def to_dict(self) -> Row:
        return {
            "stage": self.stage, "artefact": self.artefact.key, "digest": self.artefact.digest, "current": self.current, "says": self.words,
            "rows": self.rows,
        }  # fmt: skip


def stages_of(artefacts: Sequence[Artefact], current: set[Path], clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Said]:
    """What all `artefacts` of the curation say about these clips and the videos they lie in, stage by stage, the oldest artefact first."""
    found = []
    for stage, (assets, look) in LOOKS.items():
        for item in artefacts:
            rows = look(item.path, clip_ids, video_ids) if item.asset in assets else []
            if stage == "selected" and item.asset in assets:
                rows += _not_chosen(item, artefacts, clip_ids, {row["clip_id"] for row in rows})
            if rows:
                found.append(Said(stage, item, item.path in current, rows))
    return found


def _named(rows: list[Row], verdict: str) -> list[Row]:
    return [{"verdict": verdict, **row} for row in rows]


def _probed(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    return _named(rows_where(folder / "videos.parquet", schemas.VIDEOS, "video_id", video_ids), "probed")


def _cut(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    rows = rows_where(folder / "clips.parquet", schemas.CLIPS, "clip_id", clip_ids)
    return _named([{name: value for name, value in row.items() if name != "fingerprint"} for row in rows], "cut")


def _embedded(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    names = pa.array(json.loads((folder / "clip_ids.json").read_text()), pa.string())
    places = pc.indices_nonzero(pc.is_in(names, value_set=pa.array(list(clip_ids), pa.string()))).to_pylist()
    encoder = json.loads((folder / "encoder.json").read_text()).get("name", "") if (folder / "encoder.json").is_file() else ""
    rows = [{"verdict": "embedded", "clip_id": names[place].as_py(), "row": place, "encoder": encoder} for place in places]
    return rows + _quarantined(folder, clip_ids, "without a vector")


def _quarantined(folder: Path, clip_ids: Sequence[str], verdict: str) -> list[Row]:
    """Clips that a stage could not use: its quarantine's detail starts with "CLIP:" or "clip CLIP:"."""
    path = folder / "quarantine.parquet"
    if not path.is_file():
        return []
    table = schemas.read_table(path, schemas.QUARANTINE, ["detail", "code"])
    names = pc.list_element(pc.split_pattern(pc.replace_substring_regex(table["detail"], "^clip ", ""), ":", max_splits=1), 0)
    kept = table.append_column("clip_id", names).filter(pc.is_in(names, value_set=pa.array(list(clip_ids), pa.string())))
    return _named(kept.to_pylist(), verdict)


def _kept(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    kept = _named([{"clip_id": row["clip_id"], "path": row["path"]} for row in rows_where(folder / "clips.parquet", schemas.CLIPS, "clip_id", clip_ids)], "kept")
    here = {row["clip_id"] for row in kept}
    gone = rows_where(folder / "removals.parquet", schemas.REMOVALS, "clip_id", clip_ids)
    # The same span of the same stream in two files has one clip_id: the one that went is a copy of the one that stayed.
    removed = [{"verdict": "copy removed" if row["clip_id"] in here else "removed", **row} for row in gone]
    twins = rows_where(folder / "removals.parquet", schemas.REMOVALS, "twin_id", clip_ids)
    return kept + removed + _named([row for row in twins if row["clip_id"] != row["twin_id"]], "stands for")


def _clustered(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    return _named(rows_where(folder / "assignments.parquet", schemas.ASSIGNMENTS, "clip_id", clip_ids), "clustered")


def _selected(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    return _named(rows_where(folder / "selection.parquet", schemas.SELECTION, "clip_id", clip_ids), "selected")


def _not_chosen(item: Artefact, artefacts: Sequence[Artefact], clip_ids: Sequence[str], chosen: set[str]) -> list[Row]:
    """Clips that were kept in what the selection was made from, and are not in it."""
    distinct = [other for other in artefacts if other.asset == "distinct_clips" and other.digest == item.inputs.get("distinct_clips")]
    kept = rows_where(distinct[0].path / "clips.parquet", schemas.CLIPS, "clip_id", clip_ids) if distinct else []
    return [{"verdict": NOT_CHOSEN, "clip_id": row["clip_id"]} for row in kept if row["clip_id"] not in chosen]


def _sharded(folder: Path, clip_ids: Sequence[str], video_ids: Sequence[str]) -> list[Row]:
    overwritten = {(shard, name): note["takedown"] for shard, note in redactions(folder).items() for name in note["clips"]}
    rows = _named(rows_where(folder / "shard_index.parquet", schemas.SHARD_INDEX, "clip_id", clip_ids), "sharded")
    rows = [{**row, "overwritten_by": overwritten.get((row["shard"], row["clip_id"]))} for row in rows]
    return rows + _quarantined(folder, clip_ids, "not cut")


LOOKS: dict[str, tuple[tuple[str, ...], Callable[[Path, Sequence[str], Sequence[str]], list[Row]]]] = {
    "probed": (("videos",), _probed), "cut": (("clips", "target_videos"), _cut), "embedded": (("clip_embeddings", "target_embeddings"), _embedded),
    "compared": (("distinct_clips",), _kept), "clustered": (("clip_clusters",), _clustered), "selected": (("curated_clips",), _selected),
    "sharded": (("training_shards",), _sharded),
}  # fmt: skip


def _list(values: Sequence[Any], shown: int = 4) -> str:
    different = [str(value) for value in dict.fromkeys(values) if value not in (None, "")]
    return ", ".join(different[:shown]) + (f" and {len(different) - shown} more" if len(different) > shown else "")


def _clips(rows: list[Row]) -> str:
    count = len({row["clip_id"] for row in rows})
    return "" if count == 1 else f"{count} clips "


def _reasons(rows: list[Row]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {count}" if len(rows) > 1 else reason.replace("_", " ") for reason, count in Counter(row["reason"] for row in rows).items())


def _probed_words(rows: list[Row]) -> str:
    return "; ".join(
        f"probed in batch {row['batch']}: {row['path']}, {row['duration_s']:.2f} s, {row['frames']} frames, {row['codec']} {row['width']}x{row['height']}" for row in rows
    )  # fmt: skip


def _cut_words(rows: list[Row]) -> str:
    spans = sorted((row["start_s"], row["end_s"]) for row in {row["clip_id"]: row for row in rows}.values())
    files = len({row["path"] for row in rows})
    return f"{_clips(rows)}cut at {spans_text(spans)} by {rows[0]['splitter']}" + (f", in {files} equal files" if files > 1 else "")


def _removed_words(rows: list[Row]) -> str:
    if len(rows) > 1:
        return f"{_clips(rows)}removed: {_reasons(rows)}"
    (row,) = rows
    likeness = "" if row["similarity"] is None else f", similarity {row['similarity']:.3f}"
    return f"removed: {_reasons(rows)}" + (f", twin {row['twin_id']}{likeness}" if row["twin_id"] else "") + (f" ({row['detail']})" if row["detail"] else "")


def _clustered_words(rows: list[Row]) -> str:
    if len(rows) > 1:
        return f"{_clips(rows)}in clusters {_list([row['cluster'] for row in rows])}"
    (row,) = rows
    return f"in cluster {row['cluster']} of coarse cluster {row['coarse_cluster']}, similarity {row['similarity']:.3f}" + (" (novel)" if row["novel"] else "")


def _selected_words(rows: list[Row]) -> str:
    weight, uniform = sum(row["weight"] for row in rows), sum(row["uniform_weight"] or 0 for row in rows)
    paid: Counter[str] = Counter()
    for row in rows:
        for target, share in zip(row["credit_targets"] or [row["target"]], row["credit_shares"] or [1.0], strict=True):
            paid[target] += row["weight"] * share
    payers = ", ".join(f"{target} {part / weight:.0%}" for target, part in paid.most_common(4)) if weight else "nobody"
    times = f", {weight / uniform:.2f} times its even share" if uniform else ""
    return f"{_clips(rows)}selected with weight {weight:.6f}{times}, paid by {payers}"


def _sharded_words(rows: list[Row]) -> str:
    gone = _list([row["overwritten_by"] for row in rows])
    ending = f"; {sum(row['overwritten_by'] is not None for row in rows)} of {len(rows)} overwritten with zeros by takedown {gone}" if gone else ""
    if len(rows) > 1:
        return f"{_clips(rows)}in {_list([row['shard'] for row in rows])}, {sum(row['length'] for row in rows):,} bytes{ending}"
    (row,) = rows
    return f"in {row['shard']} at byte {row['offset']:,}, {row['length']:,} bytes, sha256 {row['sha256']}{ending}"


WORDS: dict[str, Callable[[list[Row]], str]] = {
    "probed": _probed_words, "cut": _cut_words,
    "embedded": lambda rows: f"{_clips(rows)}embedded" + (f" by {rows[0]['encoder']}" if rows[0]["encoder"] else ""),
    "without a vector": lambda rows: f"{_clips(rows)}without a vector: {_list([row['detail'] for row in rows])}",
    "kept": lambda rows: f"{_clips(rows)}kept", "removed": _removed_words,
    "copy removed": lambda rows: f"{len(rows)} {'copy' if len(rows) == 1 else 'copies'} of it removed: {_list([row['detail'] or row['reason'] for row in rows], 2)}",
    "stands for": lambda rows: f"stands for {len({row['clip_id'] for row in rows})} removed ({_reasons(rows)}): {_list([row['clip_id'] for row in rows])}",
    "clustered": _clustered_words, "selected": _selected_words, NOT_CHOSEN: lambda rows: f"{_clips(rows)}not chosen: no target asks for it, or a quota was full",
    "sharded": _sharded_words, "not cut": lambda rows: f"{_clips(rows)}not cut: {_list([row['detail'] for row in rows])}",
}  # fmt: skip
