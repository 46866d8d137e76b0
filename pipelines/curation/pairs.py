"""All pairs of a pool that show the same footage: signs of every clip, candidates from the indexes, then verification.

Batches are taken in the order of their keys, and a batch's clips look among their own and all earlier batches. So what
is found for a batch does not change when another one arrives, and an earlier run's pairs can be taken over: only the new
batch is searched for, with the same result as a run from scratch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.merging import ClipPool
from pipelines.curation.neighbours import Finder, SearchConfig, search_vectors, trained_on
from pipelines.curation.verification import Agreement, LookRule, agreement, moves_of, rhythm_of, same_footage
from pipelines.parts import Parts
from pipelines.recipes import Part
from pipelines.video.fingerprint import BITS, fingerprints

SIGN_ROWS = 4_096  # clips whose signs are one part; next queries, pairs: what a kill can cost
QUERY_ROWS = 4_096
PAIR_ROWS = 4_096
SEARCH_SHARE = 0.1  # of the time that finding pairs takes
EVEN = 1e-6  # of a cosine: what float32 makes of two equal vectors

Rows = NDArray[np.int64]
Progress = Callable[..., None]


class PairRules(Part):
    """What makes a pair: looks that agree (`look`) and a cosine of at least 1 - `eps`. Looks decide: cosines of copies lie
    so low (0.3 for a letter-boxed one) that the default excludes little; `eps` 0 leaves only equal vectors. `mirrored`
    also takes a picture turned left to right: off, since left and right are content (Something-Something v2)."""

    look: LookRule = LookRule()
    eps: float = 0.8
    mirrored: bool = False


@dataclass(frozen=True, eq=False)
class Signs:
    """What clips are found by: packed fingerprints (N, 128), rhythms (N, 28), how much moves (N,) grey levels."""

    codes: NDArray[np.uint8]
    rhythms: NDArray[np.float32]
    moves: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.moves)

    def take(self, rows: Any) -> Signs:
        return Signs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Signs:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(*(arrays[field.name] for field in fields(cls)))


NO_SIGNS = Signs(np.empty((0, BITS // 8), np.uint8), np.empty((0, 28), np.float32), np.empty(0, np.float32))


@dataclass(frozen=True, eq=False)
class Pairs:
    """P verified pairs of numbers `first` and `second`: `cosine`, `distance`, `picture` and `motion` of `Agreement`, `bits`
    that differ in the hashes of their pictures (of 512), whether they keep the strict rule, and whether mirrored."""

    first: Rows
    second: Rows
    cosine: NDArray[np.float32]
    distance: NDArray[np.float32]
    picture: NDArray[np.float32]
    motion: NDArray[np.float32]
    bits: NDArray[np.int16]
    strict: NDArray[np.bool_]
    mirrored: NDArray[np.bool_]

    def take(self, rows: NDArray[Any]) -> Pairs:
        return Pairs(*(getattr(self, field.name)[rows] for field in fields(self)))

    def renumbered(self, numbers: Rows) -> Pairs:
        """The same pairs, of `numbers[first]` and `numbers[second]`."""
        return replace(self, first=numbers[self.first], second=numbers[self.second])

    def keys(self, count: int) -> Rows:
        """(P,) one number for each pair of two of `count`, whichever comes first."""
        return np.minimum(self.first, self.second) * count + np.maximum(self.first, self.second)

    def save(self, folder: Path) -> None:
        np.savez(folder / "pairs.npz", **{field.name: getattr(self, field.name) for field in fields(self)})


def join_pairs(found: Sequence[Pairs]) -> Pairs:
    """Pairs one after the other."""
    kinds = (np.int64, np.int64, np.float32, np.float32, np.float32, np.float32, np.int16, np.bool_, np.bool_)
    nothing = Pairs(*(np.empty(0, kind) for kind in kinds))  # type: ignore[arg-type]
    return Pairs(*(np.concatenate([getattr(part, field.name) for part in (nothing, *found)]) for field in fields(Pairs)))


def _loaded(folder: Path) -> Pairs:
    with np.load(folder / "pairs.npz", allow_pickle=False) as arrays:
        return Pairs(*(arrays[field.name] for field in fields(Pairs)))


def signs_of(looks: NDArray[np.uint8]) -> Signs:
    """Signs of looks (N, 8, 24, 24) uint8."""
    return Signs(fingerprints(looks), rhythm_of(looks), moves_of(looks))


def gather_signs(parts: Parts, name: str, clips: Rows, pool: ClipPool, known: Signs = NO_SIGNS) -> Signs:
    """Signs of the given clips of the pool, in parts; those of the first ones may be `known`."""

    def build(folder: Path, rows: Sequence[int]) -> None:
        signs_of(pool.looks.take(np.asarray(rows))).save(folder / "signs.npz")

    made = parts.map(name, clips[len(known) :], SIGN_ROWS, build)  # type: ignore[arg-type]  # an array is sliced as a sequence is
    found = [known, *(Signs.load(part.folder / "signs.npz") for part in made)]
    return Signs(*(np.concatenate([getattr(signs, field.name) for signs in found]) for field in fields(Signs)))


@dataclass(frozen=True, eq=False)
class Side:
    """Clips that are searched or searched for: a pool, the clips of it (M,), and their signs and lengths in s (M,)."""

    pool: ClipPool
    clips: Rows
    signs: Signs
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, rows: Rows) -> Side:
        """Some of the clips, numbered anew."""
        return Side(self.pool, self.clips[rows], self.signs.take(rows), self.seconds[rows])

    def vectors(self, rows: Rows) -> NDArray[np.float32]:
        return self.pool.vectors.take(self.clips[rows])

    def looks(self, rows: Rows) -> NDArray[np.uint8]:
        return self.pool.looks.take(self.clips[rows])

    def search_by(self, rows: Rows, config: SearchConfig) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Search vectors and packed fingerprints of some of the clips."""
        return search_vectors(self.vectors(rows), self.signs.rhythms[rows], config.rhythm), self.signs.codes[rows]


def side_of(pool: ClipPool, clips: Rows, parts: Parts, name: str, known: Signs = NO_SIGNS) -> Side:
    """A side of the given clips, of which the first ones' signs may be `known`."""
    return Side(pool, clips, gather_signs(parts, name, clips, pool, known), pool.seconds[clips])


class GrowingFinder:
    """A finder over the first so many clips of a side, built only when somebody asks."""

    def __init__(self, side: Side, config: SearchConfig, totals: Sequence[int]) -> None:
        self._side, self._config = side, config
        self._trained = dict(zip(totals, trained_on(totals, config), strict=True))
        self._finder: Finder | None = None

    def up_to(self, total: int) -> Finder:
        """The finder over the first `total` clips (one of the totals; ascending from call to call)."""
        wanted = self._trained[total]
        if self._finder is None or self._finder.trained_on != wanted:
            self._finder = Finder(self._side.search_by(np.arange(1), self._config)[0].shape[1], self._config)
            if wanted:
                self._finder.train(wanted, lambda rows: self._side.search_by(rows, self._config))
        for start in range(len(self._finder), total, SIGN_ROWS):
            self._finder.add(*self._side.search_by(np.arange(start, min(total, start + SIGN_ROWS)), self._config))
        return self._finder


def candidates(queries: Side, rows: Rows, among: Side, finder: Finder, config: SearchConfig, rules: Sequence[PairRules]) -> Rows:
    """(P, 2) row of `queries` and row of `among`, once each: neighbours that could keep one of `rules` as far as lengths,
    rhythms and cosines tell. A clip is no neighbour of itself; of a pair within one side the larger row comes first."""
    near = finder.search(*queries.search_by(rows, config))
    pairs = np.stack([np.repeat(rows, near.shape[1]), near.reshape(-1)], axis=1)
    pairs = pairs[pairs[:, 1] >= 0]
    if queries is among:
        pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)[:, ::-1]
    pairs = np.unique(pairs, axis=0)
    first, second = pairs[:, 0], pairs[:, 1]
    shorter = shorter_share(queries.seconds[first], among.seconds[second])
    rhythm = np.einsum("ij,ij->i", queries.signs.rhythms[first], among.signs.rhythms[second])
    moves = np.minimum(queries.signs.moves[first], among.signs.moves[second])
    passed = np.zeros(len(pairs), bool)
    for rule in rules:
        passed |= (shorter >= 1.0 - rule.look.length) & ((rhythm >= rule.look.rhythm) | (moves < rule.look.rhythm_above))
    pairs = pairs[passed]
    least = min(1.0 - rule.eps for rule in rules)
    return pairs[cosines(queries, among, pairs) >= least - EVEN]


def shorter_share(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """The shorter of two lengths as a share of the longer."""
    return np.minimum(first, second) / np.maximum(np.maximum(first, second), 1e-9)


def cosines(queries: Side, among: Side, pairs: Rows) -> NDArray[np.float64]:
    """(P,) cosines of the pairs' vectors."""
    found = np.empty(len(pairs))
    for start in range(0, len(pairs), PAIR_ROWS):
        part = pairs[start : start + PAIR_ROWS]
        one, two = _read(queries.vectors, part[:, 0]), _read(among.vectors, part[:, 1])
        found[start : start + PAIR_ROWS] = np.einsum("ij,ij->i", one, two, dtype=np.float64)
    return found


def _read(take: Callable[[Rows], NDArray[Any]], rows: Rows) -> NDArray[Any]:
    """Rows of a file, each read once."""
    once, place = np.unique(rows, return_inverse=True)
    return take(once)[place]


def verify(queries: Side, among: Side, pairs: Rows, strict: PairRules, loose: PairRules) -> Pairs:
    """Those of `pairs` (P, 2) that keep one of the two rules, with what was measured.

    A rule that allows it is also tried on the mirrored picture, where the picture as it is does not keep it.
    """
    first, second = _read(queries.looks, pairs[:, 0]), _read(among.looks, pairs[:, 1])
    cosine = cosines(queries, among, pairs)
    shorter = shorter_share(queries.seconds[pairs[:, 0]], among.seconds[pairs[:, 1]])
    found = agreement(first, second)
    kept = [_keeps(found, shorter, cosine, rule) for rule in (strict, loose)]
    mirrored = np.zeros(len(pairs), bool)
    distance, picture, motion = found.distance, found.picture, found.motion
    rows = np.flatnonzero((strict.mirrored & ~kept[0]) | (loose.mirrored & ~kept[1]))
    if len(rows):
        turned = agreement(first[rows], second[rows][..., ::-1])
        for number, rule in enumerate((strict, loose)):
            also = rule.mirrored & _keeps(turned, shorter[rows], cosine[rows], rule) & ~kept[number][rows]
            mirrored[rows] |= also & ~kept[0][rows]  # where the strict rule keeps a pair, it tells which way
            kept[number][rows] |= also
        for value, other in ((distance, turned.distance), (picture, turned.picture), (motion, turned.motion)):
            value[rows] = np.where(mirrored[rows], other, value[rows])
    half = queries.signs.codes.shape[1] // 2
    differ = queries.signs.codes[pairs[:, 0], :half] ^ among.signs.codes[pairs[:, 1], :half]
    bits = np.bitwise_count(differ).sum(axis=1, dtype=np.int16)
    whole = Pairs(
        pairs[:, 0], pairs[:, 1], cosine.astype(np.float32), distance.astype(np.float32), picture.astype(np.float32),
        motion.astype(np.float32), bits, kept[0], mirrored,
    )  # fmt: skip
    return whole.take(kept[0] | kept[1])


def _keeps(found: Agreement, shorter: NDArray[np.float64], cosine: NDArray[np.float64], rule: PairRules) -> NDArray[np.bool_]:
    return same_footage(found, shorter, rule.look) & (cosine >= 1.0 - rule.eps - EVEN)


def find_pairs(
    parts: Parts, name: str, queries: Side, rows: Rows, among: Side, finder: Callable[[], Finder], config: SearchConfig,
    strict: PairRules, loose: PairRules, progress: Progress | None = None,
) -> Pairs:  # fmt: skip
    """Verified pairs of some rows of `queries` with any of `among`, in parts; `finder` is asked for when a part is missing.

    Progress counts rows, most of which for verification, which takes longest.
    """
    before = int(SEARCH_SHARE * len(rows))

    def searching(done: int, _: int) -> None:
        if progress is not None:
            progress(done * before // len(rows), len(rows))

    def verifying(done: int, total: int) -> None:
        if progress is not None:
            progress(before + (len(rows) - before) * done // total, len(rows))

    def search(folder: Path, batch: Sequence[int]) -> dict[str, Any]:
        found = candidates(queries, np.asarray(batch), among, finder(), config, (strict, loose))
        np.save(folder / "candidates.npy", found)
        return {"candidates": len(found)}

    searched = parts.map(f"search-{name}", rows, QUERY_ROWS, search, searching)  # type: ignore[arg-type]
    near = np.concatenate([np.empty((0, 2), np.int64), *(np.load(part.folder / "candidates.npy") for part in searched)])
    near = np.unique(near, axis=0)  # two clips of one batch may have found each other in two parts

    def judge(folder: Path, batch: Rows) -> dict[str, Any]:
        found = verify(queries, among, batch, strict, loose)
        found.save(folder)
        return {"candidates": len(batch), "pairs": len(found.first)}

    judged = parts.map(f"verify-{name}", near, PAIR_ROWS, judge, verifying)  # type: ignore[arg-type]
    return join_pairs([_loaded(part.folder) for part in judged])
