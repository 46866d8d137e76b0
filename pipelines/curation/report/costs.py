"""The cost ledger: what each stage and batch took, from the artefacts' own summaries."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.schemas import COSTS, table_of, write_table
from pipelines.store import NO_PARTITION, Artefact, write_atomic

ITEMS = {
    "videos": "files", "clips": "videos", "clip_embeddings": "clips", "target_videos": "videos", "target_embeddings": "clips",
    "distinct_clips": "clips_in", "clip_clusters": "clips", "curated_clips": "clips", "training_shards": "clips",
}  # fmt: skip
"""What a stage works on, by the name it has in the summary; for artefacts that carry no cost of their own."""


def costs_of(artefacts: Sequence[Artefact]) -> pa.Table:
    """One row of COSTS for each artefact, in their order. Rates are null where the time is not known or nothing was done."""
    return table_of(COSTS, [_row(artefact) for artefact in artefacts if artefact.asset in ITEMS])


def _row(artefact: Artefact) -> dict[str, Any]:
    summary = artefact.summary
    found: dict[str, Any] = summary.get("cost") or {}
    name = ITEMS[artefact.asset]
    items, wall, cpu = found.get("items", summary.get(name)), found.get("wall_s", artefact.seconds), found.get("cpu_s")
    return {
        "stage": artefact.asset, "batch": "" if artefact.partition == NO_PARTITION else artefact.partition, "digest": artefact.digest,
        "items": items, "unit": found.get("unit", name.removesuffix("_in")), "wall_s": wall, "cpu_s": cpu, "build_s": artefact.seconds,
        "items_per_s": _rate(items, wall), "items_per_cpu_s": _rate(items, cpu), "parts": found.get("parts"), "parts_found": found.get("parts_found"),
    }  # fmt: skip


def _rate(items: Any, seconds: Any) -> float | None:
    return items / seconds if items is not None and seconds else None


def totals(costs: pa.Table) -> list[dict[str, Any]]:
    """One row a stage, batches added up, in the order in which the stages first come."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in costs.to_pylist():
        stages.setdefault(row["stage"], []).append(row)
    found = []
    for stage, rows in stages.items():
        items, wall = _sum(rows, "items"), _sum(rows, "wall_s")
        cpu = _sum(rows, "cpu_s")
        found.append({
            "stage": stage, "batches": len(rows), "items": items, "unit": rows[0]["unit"], "wall_s": wall, "cpu_s": cpu, "build_s": _sum(rows, "build_s"),
            "items_per_s": _rate(items, wall), "items_per_cpu_s": _rate(items, cpu),
        })  # fmt: skip
    return found


def _sum(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """The sum of a column; None where a row does not tell."""
    values = [row[name] for row in rows]
    return None if any(value is None for value in values) else sum(values)


def write_costs(costs: pa.Table, folder: Path) -> None:
    """costs.parquet and costs.json in `folder`."""
    write_table(costs, folder / "costs.parquet", COSTS)
    write_atomic(folder / "costs.json", json.dumps({"stages": totals(costs), "rows": costs.to_pylist()}, indent=1))
