"""Which clips are copies of which, and which of them stays: quality, the cover of each film's copies, and crowds of them.

A clip looks among a few dozen neighbours, so of a film with more copies than that not every two have met. Where a film is
so crowded, the clips that stay look among each other again, until nothing more goes: a second run would remove nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from pipelines.curation.cover import component_cover, star_cover
from pipelines.curation.merging import ClipPool, Rows
from pipelines.curation.neighbours import SearchConfig
from pipelines.curation.pairs import GrowingFinder, PairRules, Pairs, find_pairs, join_pairs
from pipelines.curation.pool_pairs import PoolPairs
from pipelines.parts import Parts
from pipelines.video.fingerprint import CELLS, bar_boxes

LOOK_ROWS = 16_384

CoverRule = Literal["star", "components"]


@dataclass(frozen=True, eq=False)
class Copies:
    """`pairs` of streams that are copies; `order` (M,) the clips that were free, best first; `best` (S,) the best clip of each
    stream, -1 where none is free; `cover` (S,) the stream that stays in each one's place, -1 where none is free."""

    pairs: Pairs
    order: Rows
    best: Rows
    cover: Rows


def linked(pairs: Pairs, streams: int) -> Rows:
    """(S,) number of the component that the pairs' strict ones put each stream in."""
    strict = pairs.take(pairs.strict)
    links = coo_array((np.ones(len(strict.first), bool), (strict.first, strict.second)), shape=(streams, streams))
    return connected_components(links, directed=False)[1].astype(np.int64)


def within_copies(pairs: Pairs, streams: int) -> Rows:
    """Numbers of the pairs whose two streams are copies: by the strict rule, or by the loose one and a chain of strict pairs."""
    component = linked(pairs, streams)
    return np.flatnonzero(pairs.strict | (component[pairs.first] == component[pairs.second]))


def picture_shares(pool: ClipPool, streams: Rows) -> NDArray[np.float64]:
    """(S,) share of each stream's picture that no black bars take, as far as it is one of `streams`; else 1."""
    share = np.ones(len(pool.firsts))
    for start in range(0, len(streams), LOOK_ROWS):
        rows = streams[start : start + LOOK_ROWS]
        top, bottom, left, right = bar_boxes(pool.looks.take(pool.firsts[rows])).T
        share[rows] = (bottom - top) * (right - left) / CELLS**2
    return share


def quality_order(pool: ClipPool, pairs: Pairs) -> Rows:
    """Clips best first: larger picture without bars (by a fifth or more), a known licence, more copies among `pairs` (an edited
    copy is like fewer of the others than the film is), no bars, longer (to 0.01 s), then clip_id and path."""
    paired = np.concatenate([pairs.first, pairs.second])
    shares = picture_shares(pool, np.unique(paired))[pool.stream]
    area = pool.column("width").astype(np.int64) * pool.column("height") * shares
    copies = np.bincount(paired, minlength=len(pool.firsts))[pool.stream]
    unknown = pc.equal(pc.fill_null(pool.table.column("licence"), ""), "")
    ranked = pa.table({
        "area": -np.round(2 * np.log2(np.maximum(area, 1))), "unknown": unknown.cast(pa.int8()), "copies": -copies, "barred": shares < 1,
        "length": -np.round(pool.seconds, 2), "clip_id": pool.table.column("clip_id"), "path": pool.table.column("path"),
    })  # fmt: skip
    return pc.sort_indices(ranked, sort_keys=[(name, "ascending") for name in ranked.column_names]).to_numpy().astype(np.int64)


def cover_copies(pool: ClipPool, pairs: Pairs, free: NDArray[np.bool_], rule: CoverRule) -> Copies:
    """What stays of the `free` (N,) clips: the best clip of every stream stands for it, and streams are covered by streams."""
    order = quality_order(pool, pairs)
    order = order[free[order]]
    streams, place = np.unique(pool.stream[order], return_index=True)
    best = np.full(len(pool.firsts), -1, np.int64)
    best[streams] = order[place]
    pairs = pairs.take((best[pairs.first] >= 0) & (best[pairs.second] >= 0))
    pairs = pairs.take(within_copies(pairs, len(best)))
    edges = np.stack([pairs.first, pairs.second], axis=1)
    cover = (star_cover if rule == "star" else component_cover)(len(best), edges, streams[np.argsort(place)])
    return Copies(pairs, order, best, np.array(cover, np.int64))


def find_copies(
    parts: Parts, pool: ClipPool, found: PoolPairs, free: NDArray[np.bool_], search: SearchConfig, strict: PairRules, rule: CoverRule
) -> Copies:
    """As `cover_copies` of the pool's pairs, with crowds closed."""
    pairs, count = found.pool, len(found.side)
    for turn in itertools.count():
        copies = cover_copies(pool, pairs, free, rule)
        staying = _crowded(copies, min(search.neighbours, search.by_fingerprint))
        part = found.side.take(staying)
        finder = partial(GrowingFinder(part, search, [len(staying)]).up_to, len(staying))
        more = find_pairs(parts, f"crowd-{turn:03d}", part, np.arange(len(staying)), part, finder, search, strict, found.linked).renumbered(staying)
        new = ~np.isin(more.keys(count), pairs.keys(count))
        if not (new & more.strict).any():
            return copies
        pairs = join_pairs([pairs, more.take(new)])
    raise AssertionError("every turn adds a pair")


def _crowded(found: Copies, many: int) -> Rows:
    """Streams that stay and have more than `many` linked to them, or none where fewer than two do."""
    component = linked(found.pairs, len(found.cover))
    size = np.bincount(component)
    staying = np.flatnonzero((found.cover == np.arange(len(found.cover))) & (size[component] > many))
    several = np.bincount(component[staying], minlength=len(size)) > 1
    return staying[several[component[staying]]]
