"""Rows of the removals table: which clip went, why, for which twin, and one sentence that a reader understands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.merging import ClipPool, Rows
from pipelines.errors import Removal
from pipelines.recipes import Part
from pipelines.schemas import REMOVALS

ROUNDED = 6  # decimals of similarities and distances


class Filters(Part):
    """Which good clips are left out for what they show. All are off; their scores are in every clip's row anyway."""

    filter_static: bool = False
    filter_black: bool = False
    static_share: float = 0.95  # of the clip that stands still, from which on it is static
    black_share: float = 0.95
    min_motion: float | None = None  # grey levels in a quarter of a second
    min_seconds: float | None = None
    min_side: int | None = None  # px of the shorter side


def filtered(pool: ClipPool, filters: Filters) -> tuple[NDArray[np.int8], list[tuple[Removal, Callable[[int], str]]]]:
    """(N,) number of the filter that takes each clip, -1 for none, and each filter's reason and sentence for a clip.

    Clips cut by an older version carry no shares: their motion and brightness decide.
    """
    motion, brightness, seconds = pool.column("motion"), pool.column("brightness"), pool.seconds
    side = np.minimum(pool.column("width"), pool.column("height"))
    static = _share(pool.column("static"), motion < 0.5)
    black = _share(pool.column("black"), brightness < 8.0)
    tests: list[tuple[bool, NDArray[np.bool_], Removal, Callable[[int], str]]] = [
        (filters.filter_static, static >= filters.static_share, Removal.FILTERED_STATIC, lambda row: f"{static[row]:.0%} of the clip stands still"),
        (filters.filter_black, black >= filters.black_share, Removal.FILTERED_BLACK, lambda row: f"{black[row]:.0%} of the clip is black"),
        (filters.min_motion is not None, motion < (filters.min_motion or 0), Removal.FILTERED_MOTION, lambda row: f"moves {motion[row]:.2f} grey levels, less than {filters.min_motion:g}"),
        (filters.min_seconds is not None, seconds < (filters.min_seconds or 0), Removal.FILTERED_SHORT, lambda row: f"is {seconds[row]:.2f} s long, shorter than {filters.min_seconds:g} s"),
        (filters.min_side is not None, side < (filters.min_side or 0), Removal.FILTERED_SMALL, lambda row: f"has a side of {side[row]:.0f} px, fewer than {filters.min_side}"),
    ]  # fmt: skip
    number = np.full(len(pool), -1, np.int8)
    for place, (on, taken, _, _) in enumerate(tests):
        if on:
            number[taken & (number < 0)] = place
    return number, [(reason, sentence) for _, _, reason, sentence in tests]


def _share(values: NDArray[Any], otherwise: NDArray[np.bool_]) -> NDArray[np.float64]:
    shares = np.asarray(values, np.float64)
    return np.where(np.isnan(shares), otherwise.astype(np.float64), shares)


class Removals:
    """Collects the removed clips of a pool."""

    def __init__(self, pool: ClipPool) -> None:
        self._pool = pool
        self._rows: list[NDArray[np.int64]] = []
        self._columns: dict[str, list[Any]] = {"reason": [], "twin_id": [], "similarity": [], "distance": [], "detail": []}

    def add(
        self, rows: Rows, reasons: Sequence[Removal], twins: Sequence[str], similarity: NDArray[Any], distance: NDArray[Any], details: Sequence[str]
    ) -> None:
        """Clips `rows` of the pool that went; NaN where there is no distance."""
        self._rows.append(rows)
        columns: list[Iterable[Any]] = [[reason.value for reason in reasons], twins, similarity, distance, details]
        for name, values in zip(self._columns, columns, strict=True):
            self._columns[name].extend(values)

    def __len__(self) -> int:
        return sum(map(len, self._rows))

    @property
    def reasons(self) -> list[str]:
        return self._columns["reason"]

    @property
    def rows(self) -> Rows:
        return np.concatenate([np.empty(0, np.int64), *self._rows])

    def table(self) -> pa.Table:
        """The removals table, ordered by what it says."""
        ids = self._pool.table.select(["clip_id", "video_id"]).take(pa.array(self.rows))
        numbers = {name: pa.array(np.round(np.asarray(self._columns[name], np.float64), ROUNDED), from_pandas=True) for name in ("similarity", "distance")}
        words = {name: pa.array(self._columns[name], pa.string()) for name in ("reason", "twin_id", "detail")}
        columns = {"clip_id": ids.column("clip_id"), "video_id": ids.column("video_id"), **numbers, **words}
        whole = pa.table(columns).select(REMOVALS.names).cast(REMOVALS)
        return whole.take(pc.sort_indices(whole, sort_keys=[(name, "ascending") for name in ("reason", "clip_id", "twin_id", "detail")]))
