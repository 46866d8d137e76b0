"""What became of the videos: the funnel from files to shards with every reason, read from the store's artefacts alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.curation.report.chain import Chain, chain_of, folders
from pipelines.schemas import QUARANTINE, REMOVALS, SELECTION, read_table, table_name
from pipelines.store import Store

SUPERSEDED = "superseded by a changed file"
LEFT_OUT = "not chosen"


@dataclass(frozen=True)
class FunnelRow:
    """One line of the funnel: `count` things of `unit` at `stage`, or lost there for `reason`."""

    stage: str
    reason: str
    count: int
    unit: str

    @property
    def kind(self) -> str:
        """What the line says of its clips: kept, lost, or part of those kept."""
        what, _, why = self.reason.partition(": ")
        if not why:
            return "kept"
        return "part" if what == "for target" else "lost"


def counted(number: int, unit: str) -> str:
    """A number with its unit: "1 clip", "2 clips", "1 scene or file"."""
    return f"{number:,} {' '.join(word.removesuffix('s') for word in unit.split()) if number == 1 else unit}"


def funnel(store: Store) -> list[dict[str, Any]]:
    """Rows from files found to clips sharded, in the order of the stages; stages that were not made yet are left out."""
    return [asdict(row) for row in rows_of(chain_of(store))]


def rows_of(chain: Chain) -> list[FunnelRow]:
    """The funnel of one curation."""
    return count_rows(
        folders(chain.videos), folders(chain.clips), folders(chain.embeddings), chain.distinct.path if chain.distinct else None,
        int(chain.distinct.summary.get("superseded_clips", 0)) if chain.distinct else 0,
        chain.selection.path if chain.selection else None, chain.shards.path if chain.shards else None,
    )  # fmt: skip


def count_rows(
    videos: Sequence[Path], clips: Sequence[Path], embeddings: Sequence[Path] = (), distinct: Path | None = None, superseded: int = 0,
    selection: Path | None = None, shards: Path | None = None,
) -> list[FunnelRow]:  # fmt: skip
    """The funnel from the stages' folders, which a stage that is not sealed yet can be among.

    `superseded` clips came from files that changed after their batch; no table holds them.
    """
    rows: list[FunnelRow] = []
    if videos:
        good, lost = count(videos, "videos.parquet"), tally(videos, QUARANTINE, "code")
        rows.append(FunnelRow("files", "found", good + lost.total(), "files"))
        rows += _losses("videos", "quarantined", lost, "files")
        rows.append(FunnelRow("videos", "decodable", good, "videos"))
    if clips:
        rows += _losses("clips", "rejected", tally(clips, QUARANTINE, "code"), "scenes or files")
        rows.append(FunnelRow("clips", "cut", count(clips, "clips.parquet"), "clips"))
    rows += _losses("embedded", "without a vector", tally(with_quarantine(embeddings), QUARANTINE, "code"), "clips")
    kept = count([distinct], "clips.parquet") if distinct else 0
    if distinct is not None:
        rows += _losses("distinct", "removed", Counter({SUPERSEDED: superseded} if superseded else {}), "clips")
        rows += _losses("distinct", "removed", tally([distinct], REMOVALS, "reason"), "clips")
        rows.append(FunnelRow("distinct", "kept", kept, "clips"))
    if selection is not None:
        earned = tally([selection], SELECTION, "target")
        left = kept - earned.total()
        rows += _losses("selected", "left out", Counter({LEFT_OUT: left} if left > 0 else {}), "clips")
        rows += _losses("selected", "for target", earned, "clips")
        rows.append(FunnelRow("selected", "with a weight", earned.total(), "clips"))
    if shards is not None:
        rows += _losses("sharded", "not cut", tally([shards], QUARANTINE, "code"), "clips")
        rows.append(FunnelRow("sharded", "written", count([shards], "shard_index.parquet"), "clips"))
    return rows


def with_quarantine(found: Sequence[Path]) -> list[Path]:
    """Those of the folders that have a quarantine table: older embeddings have none."""
    return [folder for folder in found if (folder / "quarantine.parquet").is_file()]


def count(found: Sequence[Path], name: str) -> int:
    """Rows of the tables called `name` in these folders, from their footers alone."""
    return sum(pq.read_metadata(folder / name).num_rows for folder in found)


def tally(found: Sequence[Path], schema: pa.Schema, column: str) -> Counter[str]:
    """How often each value of `column` occurs in the tables of `schema` in these folders."""
    total: Counter[str] = Counter()
    for folder in found:
        values = read_table(folder / f"{table_name(schema)}.parquet", schema, [column]).column(column)
        total.update({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})
    return total


def _losses(stage: str, verb: str, counts: Counter[str], unit: str) -> list[FunnelRow]:
    return [FunnelRow(stage, f"{verb}: {reason.replace('_', ' ')}", number, unit) for reason, number in sorted(counts.items())]
