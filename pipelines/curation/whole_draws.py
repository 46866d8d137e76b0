"""Whole draws from expected ones: unbiased, their sum exact, and every quota kept as a whole number.

Systematic sampling walks along the cells with one random offset, so each cell, and each cluster, whose cells lie side by
side, gets its expected draws rounded down or up. Groups that lie scattered may come out a few draws above their quota;
those few are moved to cells that were rounded down, and where that leaves some without a place, `placed` looks further.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.placing import ROUNDING, placed
from pipelines.curation.quotas import Cells, Index, Law, Quota, Vector
from pipelines.errors import InputError

PASSES = 100
Keys = NDArray[np.uint64]


def systematic(expected: Vector, total: int, offset: float) -> Index:
    """(J,) whole draws, `total` in all, each `expected` (J,) rounded down or up; unbiased for a uniform `offset` in [0, 1)."""
    edges = np.cumsum(expected)
    passed = np.minimum(np.floor(edges * (total / edges[-1]) + offset).astype(np.int64), total)
    passed[-1] = total  # whatever the last digits of the sum are
    return np.diff(passed, prepend=0)


def whole_draws(
    law: Law, cells: Cells, room: Vector, quotas: Sequence[Quota], ceilings: Vector, total: int, offset: float
) -> Index:
    """(J,) whole draws of the cells that follow `law` and keep `room` (J,), `quotas` and the askers' `ceilings` (D,).

    No clip is drawn more often than the cap's whole part, and shares of the draws are rounded up to whole draws. A ceiling is
    kept to within one draw, as what an asker pays for is no whole number. Raises `InputError` when no such draws are found.
    """
    room = np.where(law.draws > 0, cells.size * np.floor(room / cells.size + ROUNDING), 0.0)
    limits = [(quota, np.ceil(quota.ceilings(total) - ROUNDING)) for quota in quotas]
    shares = law.paid(cells, ceilings)
    whole = systematic(law.draws, total, offset)
    for _ in range(PASSES):
        whole = np.minimum(whole, room).astype(np.int64)
        for quota, limit in limits:
            whole[_surplus(quota, limit, whole, law.draws)] -= 1
        for share, ceiling in shares:
            whole[_overpaid(share, float(share @ whole) - ceiling, whole, law.draws)] -= 1
        missing = total - int(whole.sum())
        takers = _takers(whole, room, law.draws, limits, shares)[:missing] if missing else np.empty(0, np.int64)
        if len(takers) == 0:
            break
        whole[takers] += 1
    if missing == 0:
        return whole
    within = [(share, ceiling + 1.0) for share, ceiling in shares]
    whole = placed(whole.astype(np.float64), law.draws, room, limits, within, total, whole=True).astype(np.int64)
    missing = total - int(whole.sum())
    if missing == 0:
        return whole
    raise InputError(
        f"{missing} of {total} draws find no place as whole draws", expected="quotas with slack for rounding", found="none",
        remedy="raise a quota a little, lower draws, or take another seed",
    )  # fmt: skip


def _surplus(quota: Quota, limit: Vector, whole: Index, expected: Vector) -> Index:
    """Cells to take one draw from, so that no group is above its limit (or as many as there are): the most rounded up first."""
    above = np.ceil(np.maximum(quota.sums(whole.astype(np.float64)) - limit - ROUNDING, 0.0)).astype(np.int64)
    rows = np.flatnonzero((quota.spread(above.astype(np.float64), 0.0) > 0) & (whole > 0))
    rows = rows[np.argsort(expected[rows] - whole[rows], kind="stable")]
    return rows[_rank(quota.group[rows], len(limit)) < above[quota.group[rows]]]


def _overpaid(share: Vector, above: float, whole: Index, expected: Vector) -> Index:
    """Cells to take one draw from, so that an asker who pays `share` (J,) of each is credited `above` fewer draws."""
    if above <= ROUNDING:
        return np.empty(0, np.int64)
    rows = np.flatnonzero((share > 0) & (whole > 0))
    rows = rows[np.lexsort((-share[rows], whole[rows] <= expected[rows]))]
    return rows[: int(np.searchsorted(np.cumsum(share[rows]), above)) + 1]


def _takers(
    whole: Index, room: Vector, expected: Vector, limits: Sequence[tuple[Quota, Vector]], shares: Sequence[tuple[Vector, float]]
) -> Index:
    """Cells that have place for one draw more, all at once, without a quota being exceeded: the most rounded down first."""
    rows = np.flatnonzero(whole + 1 <= room)
    rows = rows[np.argsort(whole[rows] - expected[rows], kind="stable")]
    for quota, limit in limits:
        free = np.floor(limit - quota.sums(whole.astype(np.float64)) + ROUNDING)
        group = quota.group[rows]
        rows = rows[(group < 0) | (_rank(group, len(limit)) < quota.spread(free, 0.0)[rows])]
    for share, ceiling in shares:
        left = ceiling - share @ whole + ROUNDING
        rows = rows[share[rows] <= left]  # or one cell that costs too much would end the walk before cells that fit
        rows = rows[np.cumsum(share[rows]) <= left]
    return rows


def _rank(group: Index, groups: int) -> Index:
    """(n,) how many rows before each are of the same `group` (n,; -1 is one, too)."""
    order = np.argsort(group, kind="stable")
    many = np.bincount(group + 1, minlength=groups + 1)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(many) - many, many)
    return rank


def repeats_of(whole: Index, cells: Cells, keys: Keys) -> Index:
    """(N,) whole draws of every clip: full copies of its cell, and one more for those of the smallest `keys` (N,).

    Within a cell repeats differ by at most 1 and add up to `whole` (J,).
    """
    order = np.lexsort((keys, cells.of_clip))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(cells.size) - cells.size, cells.size)
    copies, extra = np.divmod(whole, cells.size)
    return copies[cells.of_clip] + (rank < extra[cells.of_clip])
