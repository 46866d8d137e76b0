"""Draws under quotas: the distribution nearest to what is asked (least Kullback-Leibler divergence) that keeps every quota.

Its shape is known: each asked amount times one scale, times a factor of at most 1 for every full group it belongs to.
So one kind of quota at a time is solved exactly with the scale (water filling, by sorting) while the others hold still,
until nothing moves. Where one kind alone binds, as with a repeat cap only, the first round is the answer. The optimum
is unique, so the order of the quotas does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipelines.errors import InputError

Vector = NDArray[np.float64]
Index = NDArray[np.int64]
ROUNDS = 50
SETTLED = 1e-10  # largest excess over a quota, as a share of the draws, at which the rounds end
NOTHING = 1e-15  # share of all that is asked, below which it counts as not asked for
TIGHT = 1e-12  # relative slack for sums that should be equal
RUNAWAY = 1e30  # a scale that only contradicting quotas drive so high
REFUSED = 1e-3  # an excess above this after all rounds is taken back


def sums_by(group: Index, amounts: NDArray[np.generic], groups: int) -> Vector:
    """(groups,) what `amounts` (n,) add up to in each `group` (n,)."""
    return np.bincount(group, amounts, minlength=groups).astype(np.float64, copy=False)


@dataclass(frozen=True)
class Cells:
    """Clips that no quota tells apart, J cells: `cluster` (J,), `size` (J,) in clips, and `of_clip` (N,) the cell of each clip."""

    cluster: Index
    size: Index
    of_clip: Index


@dataclass(frozen=True)
class Quota:
    """Group g takes at most `limit[g]` draws from its cells, those with `group` (J,) equal to g; cells with -1 are free.

    `name` is the option and `labels` the groups, for people. With `share` the limits are shares of the draws.
    """

    name: str
    labels: Sequence[str]
    group: Index
    limit: Vector
    share: bool = False

    def ceilings(self, total: float) -> Vector:
        """(G,) draws of `total` that each group may take; a share of them need not be whole."""
        return self.limit * total if self.share else self.limit

    def indicator(self) -> csr_array:
        """(G, J) 1 where a cell is in a group."""
        inside = np.flatnonzero(self.group >= 0)
        return csr_array((np.ones(len(inside)), (self.group[inside], inside)), shape=(len(self.limit), len(self.group)))

    def sums(self, amounts: Vector) -> Vector:
        """(G,) what `amounts` (J,) add up to in each group."""
        inside = self.group >= 0
        return sums_by(self.group[inside], amounts[inside], len(self.limit))

    def spread(self, values: Vector, free: float) -> Vector:
        """(J,) the value of each cell's group, `free` where it has none."""
        return np.append(values, free)[self.group]


@dataclass(frozen=True)
class Room:
    """Draws that may be made: of each cell (J,), and for every quota of each of its groups (G,)."""

    cells: Vector
    groups: tuple[Vector, ...]

    def less(self, draws: Vector, quotas: Sequence[Quota]) -> Room:
        """What is left when `draws` (J,) of the cells are made; at least nothing."""
        return Room(
            np.maximum(self.cells - draws, 0.0),
            tuple(np.maximum(limit - quota.sums(draws), 0.0) for quota, limit in zip(quotas, self.groups, strict=True)),
        )

    def most(self, quotas: Sequence[Quota], wanted: NDArray[np.bool_]) -> dict[str, float]:
        """Draws of the cells `wanted` (J,) that the repeat cap, and each quota by itself, leave room for."""
        cell = np.where(wanted, self.cells, 0.0)
        for quota, limit in zip(quotas, self.groups, strict=True):
            cell = np.minimum(cell, quota.spread(limit, np.inf))
        held = {
            quota.name: float(np.minimum(limit, quota.sums(cell)).sum() + cell[quota.group < 0].sum())
            for quota, limit in zip(quotas, self.groups, strict=True)
        }  # fmt: skip
        return {"repeat_cap": float(self.cells[wanted].sum()), **held}

    def fitted(self, draws: Vector, quotas: Sequence[Quota]) -> Vector:
        """(J,) the largest multiples of at most 1 of `draws` in each group that keep all quotas, one quota after the other."""
        draws = np.minimum(draws, self.cells)
        for quota, limit in zip(quotas, self.groups, strict=True):
            sums = quota.sums(draws)
            draws = draws * quota.spread(np.divide(limit, sums, out=np.ones_like(sums), where=sums > limit), 1.0)
        return draws


@dataclass(frozen=True)
class Law:
    """Expected draws: `draws` (J,) of each cell, and `credit` (D, K), the share of a cluster's draws that each asker pays for.

    `scale` is lambda and `lift` (D,) what a floor or ceiling makes of an asker's rate; `residual` is the largest excess
    (or want) left after `rounds`, as a share of the draws.
    """

    draws: Vector
    credit: Vector
    scale: float
    lift: Vector
    rounds: int
    residual: float

    def paid(self, cells: Cells, ceilings: Vector) -> list[tuple[Vector, float]]:
        """For each asker with a ceiling (of D) the share (J,) that it pays of every cell's draws, and its ceiling."""
        return [(self.credit[row][cells.cluster], float(ceilings[row])) for row in np.flatnonzero(np.isfinite(ceilings))]


def pour(amounts: Vector, ceilings: Vector, total: float, floors: Vector | None = None) -> tuple[float, Vector]:
    """The scale with sum(clip(scale * amounts, floors, ceilings)) = total, and the clipped amounts; exact, O(n log n).

    All (n,), 0 <= floors <= ceilings; nothing is poured where the amount is 0. A total above all ceilings fills them.
    """
    poured = np.zeros(len(amounts))
    open_ = (amounts > 1e-100 * amounts.max(initial=0.0)) & (ceilings > 0)  # smaller ones would overflow what follows
    if not open_.any():
        return 0.0, poured
    asked, high = amounts[open_], ceilings[open_]
    low = np.zeros_like(asked) if floors is None else floors[open_]
    # Piecewise linear in the scale: an amount starts to grow where it passes its floor and stops at its ceiling.
    bounded = np.isfinite(high)
    turns = np.concatenate([low / asked, high[bounded] / asked[bounded]])
    order = np.argsort(turns, kind="stable")
    turns, slopes = turns[order], np.cumsum(np.concatenate([asked, -asked[bounded]])[order])
    slopes[-1] = asked[~bounded].sum()
    reached = low.sum() + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(turns))])
    place = max(0, int(np.searchsorted(reached, total, side="right")) - 1)
    scale = turns[place] + (max(0.0, total - reached[place]) / slopes[place] if slopes[place] > 0 else 0.0)
    for _ in range(2):  # long sums lose digits; what still moves makes them good
        value = np.clip(scale * asked, low, high)
        moving = asked[(value > low) & (value < high)].sum()
        scale += (total - value.sum()) / moving if moving > 0 else 0.0
    poured[open_] = np.clip(scale * asked, low, high)
    return float(scale), poured


def fill_levels(amounts: Vector, ceilings: Vector, group: Index, limits: Vector) -> Vector:
    """(G,) for every group the scale with sum(min(scale * amounts, ceilings)) = limit over its cells; infinite if never.

    `amounts`, `ceilings` and `group` (J,), cells of group -1 belong to none; exact, O(J log J).
    """
    rows = np.flatnonzero((group >= 0) & (amounts > 0))
    rows = rows[np.lexsort((ceilings[rows] / amounts[rows], group[rows]))]  # in each group those that fill up first
    owner, high = group[rows], ceilings[rows]
    sums = sums_by(owner, amounts[rows], len(limits))
    asked = amounts[rows] / sums[owner]  # groups of any size are added up together, and small ones must not drown
    first, last = (np.searchsorted(owner, np.arange(len(limits)), side=side) for side in ("left", "right"))
    full = np.concatenate([[0.0], np.cumsum(np.where(np.isfinite(high), high, 0.0))])
    grown = np.concatenate([[0.0], np.cumsum(asked)])
    before, after = full[:-1] - full[first[owner]], grown[last[owner]] - grown[:-1]  # full cells before, open ones from here
    level = (limits[owner] - before) / np.maximum(after, asked)
    reached = np.flatnonzero(level <= high / asked)[::-1]
    found = np.full(len(limits), np.inf)
    found[owner[reached]] = np.maximum(level[reached], 0.0) / sums[owner[reached]]  # the first of each group is written last
    return found


def nearest_law(
    asked: Vector,
    cells: Cells,
    quotas: Sequence[Quota],
    room: Room,
    total: float,
    floors: Vector | None = None,
    ceilings: Vector | None = None,
) -> Law:
    """Expected draws of every cell within `room`, `total` in all, for askers (D) of `asked` (D, K) draws of the clusters.

    Clips of one cluster are asked alike; what is asked of clusters without clips goes to the others in proportion.
    `floors` and `ceilings` (D,) bound the draws credited to an asker. Where the rounds come to no end, floors are given up,
    and then draws are left out until the rest keeps all quotas; so there may be fewer than `total`.
    """
    floors = np.zeros(len(asked)) if floors is None else floors
    ceilings = np.full(len(asked), np.inf) if ceilings is None else ceilings
    sizes = sums_by(cells.cluster, cells.size, asked.shape[1])
    asked = np.where((sizes > 0) & (asked > NOTHING * asked.sum()), asked, 0.0)
    part = cells.size / sizes[cells.cluster]  # of its cluster
    wanted = asked.sum(axis=0)[cells.cluster] > 0
    total = min(total, *room.most(quotas, wanted).values(), float(ceilings[asked.sum(axis=1) > 0].sum()))
    if total <= 0 or not wanted.any():
        return Law(np.zeros(len(part)), np.zeros_like(asked), 0.0, np.ones(len(asked)), 0, 0.0)
    top = Room(np.where(wanted, room.cells, 0.0), room.groups)
    law = _rounds(asked, part, cells, quotas, top, total, floors, ceilings)
    if law.residual <= REFUSED:
        return replace(law, draws=law.draws * (total / law.draws.sum()))
    if (floors > 0).any():
        return nearest_law(asked, cells, quotas, room, total, ceilings=ceilings)
    return replace(law, draws=top.fitted(law.draws, quotas), residual=0.0)


def _rounds(
    asked: Vector, part: Vector, cells: Cells, quotas: Sequence[Quota], room: Room, total: float, floors: Vector, ceilings: Vector
) -> Law:
    """The law after as many rounds as it takes, at most ROUNDS; `part` (J,) of its cluster is in each cell."""
    factors = [np.ones(len(limit)) for limit in room.groups]
    lift = np.ones(len(asked))
    bounded = bool((floors > 0).any() or np.isfinite(ceilings).any())

    def rates(but: int = -1) -> Vector:
        """(J,) draws at scale 1, shrunk in full groups except those of quota `but`."""
        found = (lift @ asked)[cells.cluster] * part
        for number, quota in enumerate(quotas):
            if number != but:
                found *= quota.spread(factors[number], 1.0)
        return found

    rounds, over, slack, scale = 0, np.inf, 0.0, 1.0
    while rounds < ROUNDS and max(over, slack) > SETTLED * total and 0 < scale < RUNAWAY:
        rounds += 1
        scale, draws = pour(rates(), room.cells, total)
        for number, (quota, limit) in enumerate(zip(quotas, room.groups, strict=True)):
            amounts = rates(but=number)
            levels = fill_levels(amounts, room.cells, quota.group, limit)
            level = quota.spread(levels, np.inf)
            full = np.multiply(amounts, level, out=room.cells.copy(), where=np.isfinite(level))
            scale, draws = pour(amounts, np.minimum(room.cells, full), total)
            factors[number] = np.minimum(1.0, levels / scale) if scale > 0 else factors[number]
        over = 0.0
        if bounded:
            drawn = (lift @ asked)[cells.cluster]
            each = np.divide(draws, drawn, out=np.zeros_like(draws), where=drawn > 0)
            plain = asked @ sums_by(cells.cluster, each, asked.shape[1])
            scale, held = pour(plain, ceilings, total, floors)
            lift = np.divide(held, plain, out=np.ones_like(plain), where=plain > 0)
            draws = each * (lift @ asked)[cells.cluster]
            over = float(max((held - ceilings).max(), (floors - held).max()))
        beyond = [quota.sums(draws) - limit for quota, limit in zip(quotas, room.groups, strict=True)]
        over = max(over, float((draws - room.cells).max()), float(total - draws.sum()), *(float(more.max(initial=0.0)) for more in beyond))
        # A group that was shrunk must be full at the end, or it was shrunk too much.
        slack = max((float(-more[factor < 1].min(initial=0.0)) for more, factor in zip(beyond, factors, strict=True)), default=0.0)
    owed = lift[:, None] * asked
    credit = np.divide(owed, owed.sum(axis=0), out=np.zeros_like(owed), where=owed.sum(axis=0) > 0)
    return Law(draws, credit, scale, lift, rounds, max(0.0, over) / total)


def insist_on_floors(floors: Vector, credited: Vector, total: float, names: Sequence[str]) -> None:
    """Raise the `InputError` that tells which asker's floor is not reached: `credited` (D,) is what they get of `total` draws."""
    if (floors - credited > REFUSED * total).any():
        row = int(np.argmax(floors - credited))
        raise InputError(
            f"target {names[row]} cannot be drawn as often as target_floor wants", expected=f"at least {floors[row]:.1f} draws",
            found=f"{credited[row]:.1f} under the quotas, and no room to make up for it",
            remedy="lower target_floor, raise repeat_cap, or add videos like the target's",
        )  # fmt: skip


def insist_on_room(cells_room: Vector, quotas: Sequence[Quota], total: float, askers: float = np.inf) -> None:
    """Raise `InputError` unless the cells, with `cells_room` (J,) each, and every quota by itself hold `total` draws.

    `askers` is what may be credited to all askers together.
    """
    if not (cells_room > 0).any():
        raise InputError(
            "no clip lies in a cluster that a target asks for", expected="pool clips like the targets' training clips", found="none",
            remedy="add such videos to the pool, or set uniform_mix above 0",
        )  # fmt: skip

    def held(draws: float) -> tuple[float, str]:
        room = Room(cells_room, tuple(quota.ceilings(draws) for quota in quotas))
        most = {"target_max": askers, **room.most(quotas, cells_room > 0)}
        name = min(most, key=lambda quota: most[quota])
        return most[name], name

    most, name = held(total)
    if most >= total * (1 - TIGHT):
        return
    low, high = 0, int(total)  # what is held is concave in the draws and starts at 0 or above, so all fit up to the largest number that does
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if held(middle)[0] >= middle * (1 - TIGHT) else (low, middle - 1)
    raise InputError(
        f"{total:.0f} draws cannot be made from the clips that are asked for", expected=f"at most {low} draws, for which {name} leaves room",
        found=f"{total:.0f} draws", remedy=f"raise {name}, lower draws or size, set uniform_mix above 0, or add videos to the pool",
    )  # fmt: skip
