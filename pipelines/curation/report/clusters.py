"""The leaves of a codebook as a person browses them: how full, how much asked for and by whom, and what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.report.pool import Column, Pool, taken
from pipelines.schemas import ASSIGNMENTS, CLIPS, read_table

TOP = 2  # names shown of each kind


@dataclass(frozen=True)
class Leaf:
    """One leaf: its place in the codebook, its shares of clips (`uniform`) and of draws (`requested` by the targets,
    `achieved`; None where no selection tells), `asked` training clips of each target in it, the most frequent names of
    each group with their clips, and the clips nearest its centroid."""

    cluster: int
    coarse: int
    clips: int
    uniform: float
    requested: float | None
    achieved: float | None
    asked: dict[str, int]
    top: dict[str, list[tuple[str, int]]]
    representatives: tuple[str, ...]


@dataclass(frozen=True)
class Browser:
    """Leaves by what is asked of them, most first: `leaves` in full, and of the others (`rest`) only the numbers."""

    leaves: list[Leaf]
    rest: list[Leaf]
    total: int
    empty: int


def browse(pool: Pool, clusters: Path, selection: Path | None, targets: Path | None, shown: int, rows: int) -> Browser:
    """The leaves of a clip_clusters folder: `shown` with their contents, at most `rows` more with their numbers."""
    representatives: dict[str, list[str]] = json.loads((clusters / "representatives.json").read_text())
    asked = asked_by(clusters, targets)
    requested = requested_shares(selection)
    count = 1 + max(
        [int(pool.cluster.max(initial=-1)), len(requested) - 1, *(int(leaves.max(initial=-1)) for leaves in asked.values())]
        + [int(name) for name in representatives]
    )
    inside = pool.cluster >= 0
    sizes = np.bincount(pool.cluster[inside], minlength=count)
    coarse = np.full(count, -1, np.int64)
    coarse[pool.cluster[inside]] = pool.coarse[inside]
    achieved = np.bincount(pool.cluster[inside], pool.weight[inside], minlength=count) if pool.weight is not None else None
    wanted = np.pad(requested, (0, count - len(requested))) if len(requested) else None
    keys = (np.arange(count), -sizes, -(achieved if achieved is not None else sizes), -(wanted if wanted is not None else sizes))
    order = np.lexsort(keys)
    hits = {name: np.bincount(leaves, minlength=count) for name, leaves in asked.items()}
    chosen = order[:shown]
    top = {name: _top(column, pool.cluster, chosen) for name, column in pool.groups.items()}

    def leaf(number: int, full: bool) -> Leaf:
        return Leaf(
            number, int(coarse[number]), int(sizes[number]), float(sizes[number] / max(1, len(pool))),
            float(wanted[number]) if wanted is not None else None, float(achieved[number]) if achieved is not None else None,
            {name: int(found[number]) for name, found in sorted(hits.items()) if found[number]},
            {name: found[number] for name, found in top.items()} if full else {}, tuple(representatives.get(str(number), ())) if full else (),
        )  # fmt: skip

    return Browser(
        [leaf(int(number), True) for number in chosen], [leaf(int(number), False) for number in order[shown : shown + rows]],
        count, int((sizes == 0).sum()),
    )  # fmt: skip


def asked_by(clusters: Path, targets: Path | None) -> dict[str, NDArray[np.int64]]:
    """For each target set the leaves of its training clips; nothing where there are no targets."""
    if targets is None or not (clusters / "target_assignments.parquet").is_file():
        return {}
    clips = read_table(targets / "clips.parquet", CLIPS, ["clip_id", "source"])
    training = clips.filter(pc.ends_with(clips.column("source"), "/train"))
    leaves = taken(
        read_table(clusters / "target_assignments.parquet", ASSIGNMENTS, ["clip_id", "cluster"]), "cluster", training.column("clip_id").combine_chunks(), -1
    ).astype(np.int64)
    names = [source.removesuffix("/train") for source in training.column("source").to_pylist()]
    return {name: leaves[[row for row, other in enumerate(names) if other == name and leaves[row] >= 0]] for name in sorted(set(names))}


def requested_shares(selection: Path | None) -> NDArray[np.float64]:
    """(K,) share of the draws that the targets ask for in each leaf; empty where no selection tells."""
    report = distribution_of(selection)
    rows: list[Mapping[str, Any]] = report.get("clusters", [])
    if not rows:
        return np.empty(0)
    shares = np.zeros(1 + max(int(row["cluster"]) for row in rows))
    for row in rows:
        shares[int(row["cluster"])] = float(row["requested"])
    return shares


def distribution_of(selection: Path | None) -> dict[str, Any]:
    """distribution.json of a selection; empty where there is none."""
    path = selection / "distribution.json" if selection is not None else None
    return json.loads(path.read_text()) if path is not None and path.is_file() else {}


def _top(column: Column, cluster: NDArray[np.int64], leaves: NDArray[np.int64]) -> dict[int, list[tuple[str, int]]]:
    """The names that most clips of each of `leaves` have, with how many."""
    place = np.full(int(max(cluster.max(initial=-1), leaves.max(initial=-1))) + 1, -1, np.int64)
    place[leaves] = np.arange(len(leaves))
    row = np.where(cluster >= 0, place[cluster], -1)
    inside = row >= 0
    pairs, times = np.unique(row[inside] * len(column.names) + column.codes[inside], return_counts=True)
    found: dict[int, list[tuple[str, int]]] = {int(leaf): [] for leaf in leaves}
    for pair, number in sorted(zip(pairs.tolist(), times.tolist(), strict=True), key=lambda item: (-item[1], item[0])):
        names = found[int(leaves[pair // len(column.names)])]
        if len(names) < TOP:
            names.append((column.names[pair % len(column.names)], number))
    return found
