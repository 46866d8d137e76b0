"""Which of a graph's rows stay: greedy star cover for duplicates, whole components for leaks.

In a star cover every removed row is a direct neighbour of one that stays, so no chain of small differences removes a
clip unlike anything that is left. What is removed may grow or shrink with a looser rule: a row that is newly covered no
longer covers others. Components only ever grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def star_cover(count: int, pairs: Iterable[tuple[int, int]] | Rows, order: Sequence[int] | Rows) -> list[int]:
    """For each of `count` rows the kept neighbour that covers it, or itself when it is kept.

    Rows are visited in `order` (best first): the next uncovered one is kept and covers its uncovered neighbours. Rows
    that `order` leaves out are neither kept nor covered: -1.
    """
    neighbours = _neighbours(pairs)
    cover = np.full(count, -1, np.int64)
    allowed = np.zeros(count, bool)
    allowed[np.asarray(order, np.int64)] = True
    for row in np.asarray(order, np.int64).tolist():
        if cover[row] >= 0:
            continue
        cover[row] = row
        for neighbour in neighbours.get(row, ()):
            if cover[neighbour] < 0 and allowed[neighbour]:
                cover[neighbour] = row
    return cover.tolist()


def component_cover(count: int, pairs: Iterable[tuple[int, int]] | Rows, order: Sequence[int] | Rows) -> list[int]:
    """As `star_cover`, but the best row of each connected component covers all of it, near or not (DINOv2's rule)."""
    neighbours = _neighbours(pairs)
    cover = np.full(count, -1, np.int64)
    allowed = np.zeros(count, bool)
    allowed[np.asarray(order, np.int64)] = True
    for start in np.asarray(order, np.int64).tolist():
        waiting = [start] if cover[start] < 0 else []
        while waiting:
            row = waiting.pop()
            if cover[row] < 0 and allowed[row]:
                cover[row] = start
                waiting += neighbours.get(row, ())
    return cover.tolist()


def component_leaks(count: int, pairs: Iterable[tuple[int, int]] | Rows, direct: Mapping[int, int]) -> dict[int, int]:
    """Rows in any component of `pairs` that touches a row of `direct` (row -> evaluation row), with that evaluation row."""
    neighbours = _neighbours(pairs)
    reached: dict[int, int] = {}
    for start in sorted(direct):
        waiting = [start] if start not in reached else []
        while waiting:
            row = waiting.pop()
            if row in reached:
                continue
            reached[row] = direct.get(row, direct[start])
            waiting += neighbours.get(row, ())
    return reached


def _neighbours(pairs: Iterable[tuple[int, int]] | Rows) -> dict[int, list[int]]:
    """Neighbours of every row that has any, ascending: nothing may depend on the order in which pairs were found."""
    edges = np.asarray(pairs if isinstance(pairs, np.ndarray) else sorted(pairs), np.int64).reshape(-1, 2)
    both = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    found: dict[int, list[int]] = {}
    for row, neighbour in both.tolist():
        found.setdefault(row, []).append(neighbour)
    return found
