"""How often every clip of the pool is drawn: expected draws under the demand and the quotas, and whole draws that keep both.

A cluster's draws are spread evenly over its clips. What clusters without clips, or full ones, cannot give goes to the other
clips that the targets ask for, in proportion. The uniform part of a selection is one more asker, which asks for all clips
alike; it keeps its share, and takes what the targets' clusters have no room for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.curation.demand import Demand
from pipelines.curation.placing import placed
from pipelines.curation.quotas import (
    Cells,
    Index,
    Law,
    Quota,
    Room,
    Vector,
    insist_on_floors,
    insist_on_room,
    nearest_law,
    sums_by,
)
from pipelines.curation.selection import UNIFORM, SelectionConfig
from pipelines.curation.whole_draws import repeats_of, whole_draws
from pipelines.errors import InputError
from pipelines.identity import stable_seed

Keys = NDArray[np.uint64]
PLACED = 1e-7  # share of the draws, of which the programme for the rest may be off


@dataclass(frozen=True)
class Group:
    """A column that quotas look at: clip i has the value `names[codes[i]]`; names are sorted, so nothing depends on row order."""

    names: tuple[str, ...]
    codes: Index


@dataclass(frozen=True)
class Candidates:
    """Clips that may be drawn, N rows: `cluster` (N,) of K `clusters`, and `groups` uploader, licence, language and source."""

    cluster: Index
    clusters: int
    groups: Mapping[str, Group]

    def only(self, chosen: NDArray[np.bool_]) -> Candidates:
        """The candidates where `chosen` (N,) is true."""
        groups = {name: Group(group.names, group.codes[chosen]) for name, group in self.groups.items()}
        return Candidates(self.cluster[chosen], self.clusters, groups)


@dataclass(frozen=True)
class Allotment:
    """A demand and what the quotas make of it: `names` (D + 1) are the askers, `asked` (D + 1, K) their draws of each cluster,
    `law` the expected draws of `cells`, of which each has `room` (J,), and the askers `ceilings` (D + 1,)."""

    names: tuple[str, ...]
    asked: Vector
    cells: Cells
    room: Vector
    quotas: tuple[Quota, ...]
    ceilings: Vector
    law: Law
    draws: int

    @property
    def expected(self) -> Vector:
        """(N,) draws of every candidate."""
        return (self.law.draws / self.cells.size)[self.cells.of_clip]

    def repeats(self, keys: Keys, seed: int) -> Index:
        """(N,) whole draws of every candidate, `draws` in all; who gets the odd ones goes by its key (N,) and the seed."""
        offset = stable_seed("offset", seed) / 2.0**63
        return repeats_of(whole_draws(self.law, self.cells, self.room, self.quotas, self.ceilings, self.draws, offset), self.cells, keys)


def clip_keys(clip_ids: pa.ChunkedArray, seed: int) -> Keys:
    """(N,) 64 random bits for every clip that depend on `seed` and its id alone: the same clip draws the same lot in any pool."""
    text = np.asarray(clip_ids.cast(pa.binary()).to_pylist(), dtype=np.bytes_)
    width = -(-text.dtype.itemsize // 8)
    words = text.astype(f"S{8 * width}").view(np.uint64).reshape(len(text), width)
    state = np.full(len(text), stable_seed("clip_keys", seed), np.uint64)
    for column in range(width):
        state = _scrambled(state ^ words[:, column])
    return state


def _scrambled(value: Keys) -> Keys:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def spread_in_time(video: Index, start_s: Vector, first: NDArray[np.bool_], limit: int) -> NDArray[np.bool_]:
    """(N,) which clips stay when each `video` (N,) keeps at most `limit`: evenly through its clips in order of `start_s`.

    Clips where `first` (N,) holds take their places before the others.
    """
    kept = np.zeros(len(video), bool)
    for rows in (np.flatnonzero(first), np.flatnonzero(~first)):
        free = limit - np.bincount(video[kept], minlength=int(video.max(initial=0)) + 1)
        rows = rows[np.lexsort((rows, start_s[rows], video[rows]))]
        many = np.bincount(video[rows], minlength=len(free))
        place = np.arange(len(rows)) - (np.cumsum(many) - many)[video[rows]]  # of a clip in its video's order
        mine, of = np.minimum(free, many)[video[rows]], many[video[rows]]
        # Taken are the places floor((j + 1/2) of / mine): so many of them lie up to a place and up to the one before it.
        upto, before = (-((of - 2 * (place + step) * mine) // (2 * of)) for step in (1, 0))
        kept[rows] = upto > before
    return kept


def allot(candidates: Candidates, demand: Demand | None, config: SelectionConfig, draws: int) -> Allotment:
    """The draws of every candidate in an epoch of `draws`, for a demand on K clusters; without one all are asked alike.

    The uniform part keeps its share. Without one, a demand that the quotas leave no room for raises `InputError`; with one,
    the draws that find no room go to it. Both are told in the balance of the report.
    """
    mix = 1.0 if demand is None else config.uniform_mix
    if demand is None and config.cluster_max is None:  # one draw of lots over all, not one in each cluster
        candidates = replace(candidates, cluster=np.zeros_like(candidates.cluster), clusters=1)
    share = np.zeros((0, candidates.clusters)) if demand is None else demand.weights[:, None] * demand.share
    alike = np.bincount(candidates.cluster, minlength=candidates.clusters) / len(candidates.cluster)
    asked = draws * np.vstack([(1 - mix) * share, mix * alike])
    targets = config.mode == "retrieval"
    ceilings = np.append(np.full(len(share), config.target_max if targets and config.target_max is not None else np.inf), np.inf)
    floors = (config.target_floor if targets else 0.0) * asked[:-1].sum(axis=1)
    cells, quotas = divide(candidates, config, draws)
    room = cells.size.astype(np.float64) * (np.inf if config.cap is None else config.cap)
    open_ = Room(np.where(asked.sum(axis=0)[cells.cluster] > 0, room, 0.0), tuple(quota.ceilings(draws) for quota in quotas))
    insist_on_room(open_.cells, quotas, draws, float(ceilings[:-1].sum()) if mix == 0 else np.inf)
    names = (config.asker,) if demand is None else (*demand.names, UNIFORM)
    law = _two_parts(asked, cells, quotas, open_, draws, floors, ceilings[:-1])
    law = _completed(law, cells, quotas, open_, ceilings, draws)
    insist_on_floors(floors, (law.credit @ sums_by(cells.cluster, law.draws, asked.shape[1]))[:-1], draws, names)
    return Allotment(names, asked, cells, room, quotas, ceilings, law, draws)


def _two_parts(
    asked: Vector, cells: Cells, quotas: Sequence[Quota], room: Room, draws: int, floors: Vector, ceilings: Vector
) -> Law:
    """The law of the targets, beside the uniform part (last row of `asked`), and of the uniform part in what they leave."""
    alike = cells.size * (asked[-1].sum() / cells.size.sum())
    targets = nearest_law(asked[:-1], cells, quotas, room.less(alike, quotas), float(asked[:-1].sum()), floors, ceilings)
    if not asked[-1].any():
        return replace(targets, credit=np.vstack([targets.credit, np.zeros(asked.shape[1])]), lift=np.append(targets.lift, 1.0))
    rest = nearest_law(asked[-1:], cells, quotas, room.less(targets.draws, quotas), draws - float(targets.draws.sum()))
    paid = [targets.credit * sums_by(cells.cluster, targets.draws, asked.shape[1]), rest.credit * sums_by(cells.cluster, rest.draws, asked.shape[1])]
    credit = np.vstack(paid)
    credit = np.divide(credit, credit.sum(axis=0), out=np.zeros_like(credit), where=credit.sum(axis=0) > 0)
    credit[-1, ~credit.any(axis=0)] = 1.0  # for draws that are moved there
    return Law(
        targets.draws + rest.draws, credit, targets.scale, np.append(targets.lift, rest.scale), max(targets.rounds, rest.rounds),
        max(targets.residual, rest.residual),
    )  # fmt: skip


def _completed(law: Law, cells: Cells, quotas: Sequence[Quota], room: Room, ceilings: Vector, draws: int) -> Law:
    """The law with the draws that are still without a place, for which others may have to move; raises `InputError` if there is none."""
    if law.draws.sum() >= draws * (1 - PLACED):
        return law
    limits, shares = list(zip(quotas, room.groups, strict=True)), law.paid(cells, ceilings)
    moved = placed(law.draws, law.draws, room.cells, limits, shares, draws, whole=False)
    if moved.sum() >= draws * (1 - PLACED):
        return replace(law, draws=moved * (draws / moved.sum()))
    full = [quota.name for quota, limit in limits if (quota.sums(moved) > limit * (1 - PLACED)).any()] + ["target_max"] * bool(shares)
    raise InputError(
        "the quotas contradict each other", expected=f"room for {draws} draws", found=f"room for {moved.sum():.1f}; {', '.join(full)} bind together",
        remedy=f"raise one of {', '.join(full)} or repeat_cap, lower draws, or set uniform_mix above 0",
    )  # fmt: skip


def divide(candidates: Candidates, config: SelectionConfig, draws: int) -> tuple[Cells, tuple[Quota, ...]]:
    """The candidates in cells that no quota divides, sorted by cluster, and the quotas on them."""
    codes: list[Index] = []
    labels: Sequence[str]
    drafts: list[tuple[str, Sequence[str], Vector]] = []
    uploader = candidates.groups["uploader"]
    if config.uploader_share is not None:
        # Who has too few clips to reach the limit is left out: there may be a million uploaders, and few that matter.
        most = np.bincount(uploader.codes, minlength=len(uploader.names)) * (np.inf if config.cap is None else config.cap)
        bound = (most > config.uploader_share * draws) & (np.array(uploader.names) != "")
        number = np.where(bound, np.cumsum(bound) - 1, -1)
        codes.append(number[uploader.codes])
        drafts.append(("uploader_share", [uploader.names[row] for row in np.flatnonzero(bound)], np.full(bound.sum(), config.uploader_share)))
    for name, shares in config.named_shares().items():
        if shares:
            labels = sorted(shares)
            group = candidates.groups[name]
            number = np.array([labels.index(value) if value in shares else -1 for value in group.names], np.int64)
            codes.append(number[group.codes])
            drafts.append((f"{name}_shares", labels, np.array([shares[label] for label in labels])))
    key = candidates.cluster.astype(np.int64)
    for code, (_, labels, _) in zip(codes, drafts, strict=True):
        key = np.unique(key * (len(labels) + 1) + code + 1, return_inverse=True)[1]
    size = np.bincount(key)
    of_clip = (np.cumsum(size > 0) - 1)[key]
    size = size[size > 0]
    cluster, *groups = (_of_cells(values, of_clip, len(size)) for values in (candidates.cluster, *codes))
    cells = Cells(cluster, size, of_clip)
    quotas = [Quota(name, labels, group, limit, share=True) for group, (name, labels, limit) in zip(groups, drafts, strict=True)]
    if config.cluster_max is not None:
        numbers = [str(number) for number in range(candidates.clusters)]
        quotas.append(Quota("cluster_max", numbers, cells.cluster, np.full(candidates.clusters, float(config.cluster_max))))
    return cells, tuple(quotas)


def _of_cells(values: Index, of_clip: Index, cells: int) -> Index:
    """(J,) what the clips of each cell have in common."""
    found = np.empty(cells, np.int64)
    found[of_clip] = values
    return found
