"""Stretches of time: merged within groups without a loop over them, and as words for a reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHOWN = 4  # spans of a video in one line of text
SHARED = 0.5  # of the shorter of two spans of one video: they show the same footage
LEAST_S = 2e-3  # a span that is shorter is one of rounding


def merge_by_group(group: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Union of the half-open spans (k, 2) of each group (k,) int: groups (m,) ascending, and their disjoint ascending spans (m, 2).

    Exact: no offset is added to keep groups apart, ends are compared by their rank among (group, end).
    """
    if len(spans) == 0:
        return np.zeros(0, np.int64), np.zeros((0, 2))
    order = np.lexsort((spans[:, 0], group))
    group, spans = group[order], spans[order]
    by_end = np.lexsort((spans[:, 1], group))
    rank = np.empty(len(by_end), np.int64)
    rank[by_end] = np.arange(len(by_end))
    reach = spans[by_end[np.maximum.accumulate(rank)], 1]  # ranks of a later group are above all before it
    opens = np.concatenate([[True], (group[1:] != group[:-1]) | (spans[1:, 0] > reach[:-1])])
    closes = np.concatenate([opens[1:], [True]])
    return group[opens], np.stack([spans[opens, 0], reach[closes]], axis=1)


def shares_footage(start_s: float, end_s: float, other_start_s: float, other_end_s: float) -> bool:
    """Whether two spans of one video show the same footage: half of the shorter one, or more, lies in the other."""
    shorter = min(end_s - start_s, other_end_s - other_start_s)
    return min(end_s, other_end_s) - max(start_s, other_start_s) >= SHARED * max(shorter, LEAST_S)


def spans_text(spans: Sequence[Sequence[float]], shown: int | None = SHOWN) -> str:
    """Ascending spans in s as "12.0-18.5 s, 31.0-40.2 s"; those that touch at a tenth of a second read as one."""
    joined: list[list[float]] = []
    for start, end in spans:
        if joined and round(start, 1) <= round(joined[-1][1], 1):
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    words = ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in joined[:shown])
    more = len(joined) - len(joined[:shown])
    return f"{words} and {more} more" if more else words
