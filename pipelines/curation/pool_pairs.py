"""The pairs of a whole pool and its evaluation clips, batch by batch, and the files in which the next run finds them again.

A batch's pairs depend on it and on the batches before it (in the order of their keys). A run that is given an earlier
result takes over the pairs and signs of all batches up to the first that is new or other, and works only on the rest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.leaks import Evaluation
from pipelines.curation.merging import ClipPool, Rows
from pipelines.curation.neighbours import SearchConfig
from pipelines.curation.pairs import (
    NO_SIGNS,
    GrowingFinder,
    PairRules,
    Pairs,
    Side,
    Signs,
    find_pairs,
    join_pairs,
    side_of,
)
from pipelines.identity import digest_of
from pipelines.parts import Parts
from pipelines.schemas import PAIRS, read_table, write_table

VERSION = "pairs-1"  # of everything that decides which pairs are found, but for what is digested with it


@dataclass(frozen=True, eq=False)
class PoolPairs:
    """`pool`: pairs of streams of the pool; `evaluation`: pairs of a stream and a row of `Evaluation.clips`; `searched`
    streams were looked up, the others' pairs were taken over; `side` holds all streams, `linked` is the loose rule among them."""

    pool: Pairs
    evaluation: Pairs
    searched: int
    side: Side
    linked: PairRules


def find_pool_pairs(
    parts: Parts, pool: ClipPool, evaluation: Evaluation, search: SearchConfig, strict: PairRules, loose: PairRules,
    previous: Path | None = None, progress: Callable[..., None] | None = None,
) -> PoolPairs:  # fmt: skip
    """All pairs, by the strict rule or the loose one; evaluation clips by the loose one. `previous` is an earlier result."""
    settings = digest_of([VERSION, search.model_dump(mode="json"), strict.model_dump(mode="json"), loose.model_dump(mode="json")])
    totals = np.cumsum(np.bincount(pool.batch[pool.firsts], minlength=len(pool.keys))).tolist()
    own, held_out = _taken_over(pool, evaluation, settings, previous)
    known = Signs.load(previous / "signs.npz").take(slice(totals[own.batches - 1])) if previous and own.batches else NO_SIGNS
    streams = side_of(pool, pool.firsts, parts, "signs", known)
    evaluated = side_of(evaluation.pool, evaluation.clips, parts, "evaluation-signs")
    among, against = GrowingFinder(streams, search, totals), GrowingFinder(evaluated, search, [len(evaluation.clips)])
    found, alike, searched = [own.pairs], [held_out.pairs], 0
    # A mirrored copy of a clip that leaks is itself like the evaluation clip: chains of mirrored pairs need no search.
    linked = loose.model_copy(update={"mirrored": strict.mirrored})

    def heard(former: int) -> Callable[..., None] | None:
        return (lambda done, _: progress(former + done, len(pool.firsts))) if progress else None

    for number, total in enumerate(totals):
        rows = np.arange(totals[number - 1] if number else 0, total)
        if number >= own.batches:
            found.append(find_pairs(
                parts, f"{number:04d}", streams, rows, streams, lambda total=total: among.up_to(total), search, strict, linked,  # type: ignore[misc]
                heard(int(rows[0]) if len(rows) else 0),
            ))  # fmt: skip
            searched += len(rows)
        if number >= held_out.batches and len(evaluation.clips):
            alike.append(find_pairs(
                parts, f"evaluation-{number:04d}", streams, rows, evaluated, lambda: against.up_to(len(evaluation.clips)), search, loose, loose,
            ))  # fmt: skip
    return PoolPairs(join_pairs(found), join_pairs(alike), searched, streams, linked)


@dataclass(frozen=True, eq=False)
class _Known:
    """Pairs of the first so many `batches` of an earlier result."""

    batches: int
    pairs: Pairs


def _taken_over(pool: ClipPool, evaluation: Evaluation, settings: str, previous: Path | None) -> tuple[_Known, _Known]:
    """What an earlier result knows of the pool's pairs, and of its pairs with evaluation clips."""
    nothing = _Known(0, join_pairs([]))
    note = previous / "pairs.json" if previous else None
    if previous is None or note is None or not note.is_file():
        return nothing, nothing
    former = json.loads(note.read_text())
    if former["settings"] != settings or former["encoders"] != sorted(pool.encoders):
        return nothing, nothing
    same = 0
    for one, two in zip(former["batches"], pool.digests.items(), strict=False):
        if tuple(one) != two:
            break
        same += 1
    table = read_table(previous / "pairs.parquet", PAIRS)
    table = table.filter(pc.is_in(table.column("batch"), pa.array(pool.keys[:same], pa.string())))
    streams = pool.table.column("clip_id").take(pool.firsts)
    own = _Known(same, _pairs_of(table.filter(pc.invert(table.column("evaluation"))), streams, streams))
    if former["evaluation"] != evaluation.digest:
        return own, nothing
    held_out = evaluation.pool.table.column("clip_id").take(evaluation.clips)
    return own, _Known(same, _pairs_of(table.filter(table.column("evaluation")), streams, held_out))


def _pairs_of(table: pa.Table, first: pa.ChunkedArray, second: pa.ChunkedArray) -> Pairs:
    values: dict[str, Any] = {field.name: table.column(field.name).to_numpy() for field in fields(Pairs)[2:]}
    values["bits"] = values["bits"].astype(np.int16)
    return Pairs(first=_place(table.column("first_id"), first), second=_place(table.column("second_id"), second), **values)


def _place(ids: pa.ChunkedArray, among: pa.ChunkedArray) -> Rows:
    return pc.index_in(ids, value_set=among.combine_chunks()).to_numpy().astype(np.int64)


def write_pool_pairs(folder: Path, pool: ClipPool, evaluation: Evaluation, search: SearchConfig, strict: PairRules, loose: PairRules, found: PoolPairs) -> None:
    """pairs.parquet, signs.npz of the streams, and pairs.json, which says what the pairs were found in and by."""
    found.side.signs.save(folder / "signs.npz")
    streams = pool.table.column("clip_id").take(pool.firsts)
    held_out = evaluation.pool.table.column("clip_id").take(evaluation.clips)
    tables = [_table_of(pool, found.pool, streams, False), _table_of(pool, found.evaluation, held_out, True)]
    whole = pa.concat_tables(tables)
    order = pc.sort_indices(whole, sort_keys=[(name, "ascending") for name in ("batch", "evaluation", "first_id", "second_id")])
    write_table(whole.take(order), folder / "pairs.parquet", PAIRS)
    settings = digest_of([VERSION, search.model_dump(mode="json"), strict.model_dump(mode="json"), loose.model_dump(mode="json")])
    note: dict[str, Any] = {"settings": settings, "encoders": sorted(pool.encoders), "batches": list(pool.digests.items()), "evaluation": evaluation.digest}
    (folder / "pairs.json").write_text(json.dumps(note))


def _table_of(pool: ClipPool, pairs: Pairs, second: pa.ChunkedArray, evaluation: bool) -> pa.Table:
    keys = pa.array(pool.keys, pa.string())
    columns: dict[str, Any] = {
        "batch": keys.take(pa.array(pool.batch[pool.firsts[pairs.first]])),
        "first_id": pool.table.column("clip_id").take(pool.firsts[pairs.first]), "second_id": second.take(pa.array(pairs.second)),
        "evaluation": pa.array(np.full(len(pairs.first), evaluation)),
    }  # fmt: skip
    values: dict[str, NDArray[Any]] = {field.name: getattr(pairs, field.name) for field in fields(Pairs)[2:]}
    return pa.table({**columns, **values}).select(PAIRS.names).cast(PAIRS)
