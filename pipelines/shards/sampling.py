"""Which clip each sample of a phase shows: a pure function of (seed, phase, sample), exact in its shares, with no state.

Samples come in epochs of as many draws as there are clips to draw. An epoch is a comb of equally distant teeth laid over
the clips, each of which is as wide as its weight: a clip is met floor or ceil of (draws x weight) times, never more. The
comb starts at random and moves on by the golden section from epoch to epoch, so that over many epochs too a clip is shown
as often as its weight says, to a draw or two. Its teeth are visited in a random order, by a permutation that is computed
for one sample at a time (a Feistel network): nothing grows with the number of samples, and any rank, worker or restart
reads the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.identity import stable_seed

TOOTH_BITS = np.uint64(32)
TOOTH = 2.0**32  # ticks between two teeth: weights are whole ticks, so counts are exact whatever floats do
SHIFT = np.uint64(round(TOOTH / 1.618033988749895))  # from one epoch's comb to the next: the golden section fills gaps evenly
MOST = 2.0**31  # draws of a clip in an epoch: more is no cap
ROUNDS = 12  # with 6, permutations of a handful of places are visibly uneven (by chi-square, as the tests look at it)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
SHIFTS = tuple(map(np.uint64, (30, 27, 31)))
FACTORS = tuple(map(np.uint64, (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)))
TURNS = tuple(map(np.uint64, range(ROUNDS)))

Rows = NDArray[np.int64]
Words = NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class Shares:
    """What is drawn: `draws` (n,) expected draws of each clip in an epoch of `epoch` draws, and where each ends on the line of
    all ticks, `ends` (n,) uint64. `unserved` is the share of the mass that lay on excluded clips before it was shared out."""

    draws: NDArray[np.float64]
    ends: Words
    epoch: int
    unserved: float

    def row(self, ticks: Words) -> Rows:
        """The clip at each place of the line."""
        return np.searchsorted(self.ends, ticks, side="right")


def share_out(
    weight: NDArray[np.float64], source: NDArray[np.int16], source_share: NDArray[np.float64], excluded: NDArray[np.bool_] | None = None,
    repeat_cap: float | None = None, names: tuple[str, ...] = (),
) -> Shares:  # fmt: skip
    """Draws of an epoch: each source s gets `source_share[s]` (sum 1) of them, its clips in proportion to `weight` (n,).

    `source` (n,) numbers each clip's source. Clips with weight 0 and `excluded` ones are never drawn; what was theirs goes
    to the other clips of their source, or of the others when none of it is left. No clip is expected more often than
    `repeat_cap` (1 or more) in an epoch: what the cap takes away goes to the source's other clips. Raises `InputError` when a
    source has no clips, or too few for its share under the cap; but where clips are excluded the cap gives way as far as it
    must: a takedown ends no training.
    """
    alive = (weight > 0) if excluded is None else (weight > 0) & ~excluded
    own = [np.flatnonzero((source == number) & alive) for number in range(len(source_share))]
    gives_way = excluded is not None and bool(excluded.any())
    for number, rows in enumerate(own):
        whole = weight[source == number]
        if not np.isfinite(whole).all() or (whole > 0).sum() == 0 or (len(rows) == 0 and not any(map(len, own))):
            raise InputError(
                f"nothing can be drawn from {_name(names, number)}", expected="clips with finite weights, some above 0 and not taken down",
                found=f"{len(rows)} of {len(whole)} clips", remedy="curate it again, or leave it out of the mixture",
            )  # fmt: skip
    there = np.array([len(rows) > 0 for rows in own])
    epoch, draws, unserved = int(alive.sum()), np.zeros(len(weight)), 0.0
    for number, rows in enumerate(own):
        mass = weight[rows].sum()
        unserved += source_share[number] * (1 - mass / weight[source == number].sum())
        if len(rows):
            wanted = weight[rows] / mass * source_share[number] / source_share[there].sum() * epoch
            least = wanted.sum() / len(rows) if gives_way else 0.0
            draws[rows] = _capped(wanted, None if repeat_cap is None else max(repeat_cap, least), _name(names, number))
    return Shares(draws, np.cumsum(_ticks(draws, epoch, repeat_cap), dtype=np.uint64), epoch, float(unserved))


def _name(names: tuple[str, ...], number: int) -> str:
    return names[number] if names else f"source {number}"


def _capped(wanted: NDArray[np.float64], cap: float | None, name: str) -> NDArray[np.float64]:
    """`wanted` scaled so that none is above `cap` and the sum stays."""
    if cap is None or wanted.max() <= cap:
        return wanted
    total = wanted.sum()
    if cap < 1 or total > cap * len(wanted) * (1 + 1e-9):
        raise InputError(
            f"{name} has too few clips for its share under the repeat cap", expected=f"a cap of {max(1.0, total / len(wanted)):.2f} or more",
            found=f"{cap:g}: {len(wanted)} clips for {total:.0f} draws an epoch", remedy="raise repeat_cap, or lower the source's weight",
        )  # fmt: skip
    draws, full = wanted.copy(), np.zeros(len(wanted), bool)
    while True:
        full |= draws >= cap
        draws[full] = cap
        rest = ~full
        if not rest.any():
            return draws
        draws[rest] *= (total - cap * full.sum()) / draws[rest].sum()
        if draws[rest].max() <= cap:
            return draws


def _ticks(draws: NDArray[np.float64], epoch: int, cap: float | None) -> Words:
    """Whole ticks of each clip, `epoch` teeth in all; none above its cap."""
    ticks = np.floor(draws * TOOTH).astype(np.uint64)
    missing = (epoch << 32) - int(ticks.sum())
    limit = np.uint64(min(cap, MOST) * TOOTH) if cap is not None else np.uint64(2**63)
    room = np.flatnonzero((draws > 0) & (ticks < limit))
    room = room if len(room) else np.flatnonzero(draws > 0)  # a cap that gave way
    if missing < 0:  # floats may have rounded the sum up
        largest = int(np.argmax(ticks))
        ticks[largest] -= np.uint64(-missing)
    elif missing:
        each, rest = divmod(missing, max(1, len(room)))
        ticks[room] += np.uint64(each)
        ticks[room[:rest]] += np.uint64(1)
    return ticks


def visited(shares: Shares, seed: int, phase: str, origin: int, samples: Rows) -> Rows:
    """The clip of each global sample (k,), when epochs are counted from sample `origin` on."""
    key = np.uint64(stable_seed("order", seed, phase, origin))
    since = (samples - origin).astype(np.uint64)
    epoch, place = since // np.uint64(shares.epoch), since % np.uint64(shares.epoch)
    teeth = permuted(place, shares.epoch, _mixed(key ^ _mixed(epoch)))
    return shares.row((teeth << TOOTH_BITS) + ((key + epoch * SHIFT) & np.uint64(TOOTH - 1)))


def permuted(place: Words, size: int, keys: Words) -> Words:
    """Where a random permutation of 0 .. size - 1, named by its key, sends each place. `place` and `keys` (k,) uint64.

    A Feistel network over the smallest square power of two that holds `size`; a value beyond it is sent on until it is
    not (cycle walking), on average fewer than four times.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    found, rest = place.copy(), np.arange(len(place))
    while len(rest):
        left, right, own = found[rest] >> half, found[rest] & mask, keys[rest]
        for turn in range(ROUNDS):
            left, right = right, left ^ (_mixed(own + right * GOLDEN + TURNS[turn]) & mask)
        found[rest] = (left << half) | right
        rest = rest[found[rest] >= np.uint64(size)]
    return found


def _mixed(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit of the input moves every bit of the output."""
    words = words + GOLDEN
    words = (words ^ (words >> SHIFTS[0])) * FACTORS[0]
    words = (words ^ (words >> SHIFTS[1])) * FACTORS[1]
    return words ^ (words >> SHIFTS[2])
