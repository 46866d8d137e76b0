"""Whether two clips show the same footage: their looks laid over each other, then judged by what stands and what moves.

A copy may be cropped, letter-boxed, brighter, slightly re-timed or carry a logo; a clip of the same scene with another
motion must not pass for one. Thresholds were set on planted copies and on clips of fixed cameras (docs/findings.md).
Arrays hold P pairs in their first axis; the alignment itself is in `alignment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.alignment import (
    Floats,
    as_coarse_as_window,
    best_windows,
    channels_of,
    fit_levels,
    local_contrast,
    refine,
    window_of,
)
from pipelines.recipes import Part
from pipelines.video.fingerprint import CELLS, PICTURES, bar_boxes, without_bars

BLOCK = 64  # pairs at a time: what one block needs stays in a processor's cache
LIVELY = 3.0  # grey levels of motion from which on where it moves tells something
LEAST_SCORE, LEAST_STILL_SCORE = 1.1, 0.5  # of both correlations together; planted copies had 1.26 and 0.67 or more
EQUAL = 0.95  # correlations from which on a pair is not laid another way
CLEAR = 0.3  # of a score: when one way to lay the pictures is better by this, the other is not tried
IGNORED = 0.15  # of the cells, those that differ most, are left out (a logo) ...
IGNORED_LEVELS = 6.0  # ... where they differ by more grey levels than this,
QUIET = 0.5  # grey levels of motion in a clip where nothing moves
MOVES_KEPT = 0.6  # and the others hold this share of the motion's energy
NOTHING = 1e-6


class LookRule(Part):
    """When two looks are the same footage. Correlations are at most 1, shares are of the motion's root mean square.

    What moves must agree but for `noise` grey levels (coding, and frames that fall into another eighth) and `share` of
    itself; a window of a picture is read between cells, which costs up to `cropped_share`. Changes from picture to
    picture are differences of noisy pictures, so they get `change` times these. Where less than `still_below` grey levels
    move, noise hides the motion as a whole: the pictures must agree better, by the `still_` values, and nothing small may
    move in one alone (`still_peak` grey levels in the worst places).
    """

    length: float = 0.08  # relative difference of the lengths; 5 % of re-timing, and borders a little off
    noise: float = 1.5
    share: float = 0.25
    cropped_share: float = 0.45
    change: float = 1.4
    strength: float = 0.22  # largest log ratio of how strongly both move, once their levels agree
    cropped_strength: float = 0.6
    picture: float = 0.55  # local contrast of the mean pictures, without the ignored cells
    cropped_picture: float = 0.8  # where the pictures have `texture`; flat ones agree less, by as much as they have less
    texture: float = 0.3  # mean local contrast
    levels: float = 0.94  # grey levels of the mean pictures, without the ignored cells
    still_below: float = 1.5
    still_picture: float = 0.84
    still_whole: float = 0.8  # local contrast with all cells
    still_levels: float = 0.985
    still_peak: float = 12.0
    retimed_above: float = 0.02  # difference of the lengths from which on a pair must agree in all cells, as one that needs
    retimed_whole: float = 0.85  # two excuses, a logo or a crop and another speed, agrees by chance too often
    retimed_cropped_whole: float = 0.95
    rhythm: float = 0.6  # pairs below are not aligned at all, unless one of them moves less than `rhythm_above`
    rhythm_above: float = 3.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """How P pairs compare once aligned, (P,) each. `picture`, `whole_picture`, `levels`, `motion`, `change` are correlations,
    see `LookRule`; `moves` and `changes` root mean squares in grey levels of the livelier clip; `strength` the absolute log
    ratio of what moves, `peak` the grey levels by which it differs most; `texture` mean local contrast; `cropped` whether one shows only a window of the
    other or had bars."""

    picture: Floats
    whole_picture: Floats
    levels: Floats
    motion: Floats
    change: Floats
    moves: Floats
    changes: Floats
    strength: Floats
    peak: Floats
    texture: Floats
    cropped: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> Agreement:
        return Agreement(*(getattr(self, field.name)[rows] for field in fields(self)))

    def put(self, rows: NDArray[np.int64], other: Agreement) -> None:
        """Replace the values of `rows` by those of `other`."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)

    @property
    def distance(self) -> Floats:
        """(P,) how far from equal, 0 and up: the worst of picture, levels and, as far as anything moves, motion."""
        still = np.minimum(1.0 - self.whole_picture, 1.0 - self.picture)
        return np.maximum(np.maximum(still, 1.0 - self.levels), np.where(self.moves > 1.0, 1.0 - self.motion, 0.0))


def rhythm_of(looks: NDArray[np.uint8]) -> Floats:
    """(N, 28) unit vectors of looks (N, 8, 24, 24): how far apart a clip's eight pictures are, two by two.

    Crops, bars, mirroring, brightness and logos change it little, another motion changes it much; of a clip in which
    nothing moves it is noise, of one whose pictures are all equal it is 0.
    """
    first, second = np.triu_indices(PICTURES, 1)
    flat = looks.reshape(len(looks), PICTURES, -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    products = flat @ flat.transpose(0, 2, 1)  # (N, 8, 8)
    squares = np.diagonal(products, axis1=1, axis2=2)
    distances = np.sqrt(np.maximum(squares[:, first] + squares[:, second] - 2 * products[:, first, second], 0.0) / flat.shape[2])
    distances -= distances.mean(axis=1, keepdims=True)
    return (distances / np.sqrt((distances * distances).sum(axis=1, keepdims=True) + NOTHING)).astype(np.float32)


def moves_of(looks: NDArray[np.uint8]) -> Floats:
    """(N,) how much moves in looks (N, 8, 24, 24): root mean square from the clip's mean picture, grey levels."""
    moving = looks.astype(np.float32) - looks.mean(axis=1, keepdims=True, dtype=np.float32)
    return np.sqrt((moving * moving).mean(axis=(1, 2, 3)))


def agreement(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Agreement:
    """Align and compare row i of `first` with row i of `second`, looks (P, 8, 24, 24) uint8.

    Pairs that no window brings near each other are not compared further: they agree in nothing.
    """
    pairs = len(first)
    nothing: dict[str, Any] = {field.name: np.zeros(pairs, np.float32) for field in fields(Agreement)}
    found = Agreement(**{**nothing, "cropped": np.zeros(pairs, bool)})
    blocks = [slice(start, start + BLOCK) for start in range(0, pairs, BLOCK)]
    hopeful = np.flatnonzero(np.concatenate([np.empty(0, bool), *(_hopeful(first[block], second[block]) for block in blocks)]))
    for start in range(0, len(hopeful), BLOCK):
        rows = hopeful[start : start + BLOCK]
        found.put(rows, _block(first[rows], second[rows]))
    return found


def same_footage(found: Agreement, shorter: NDArray[np.float64], rule: LookRule) -> NDArray[np.bool_]:
    """(P,) which pairs are the same footage; `shorter` (P,) is the shorter length over the longer."""
    share = np.where(found.cropped, rule.cropped_share, rule.share)
    motion = found.motion >= _needed(found.moves, rule.noise, share)
    change = found.change >= _needed(found.changes, rule.noise * rule.change, share * rule.change)
    lively = found.moves >= rule.still_below
    strength = ~lively | (found.strength <= np.where(found.cropped, rule.cropped_strength, rule.strength))
    least = np.where(found.cropped, rule.cropped_picture * np.minimum(1.0, found.texture / rule.texture), rule.picture)
    picture = (found.picture >= least) & (found.levels >= rule.levels)
    still = (found.picture >= rule.still_picture) & (found.whole_picture >= rule.still_whole) & (found.levels >= rule.still_levels)
    still &= found.peak <= rule.still_peak
    whole = np.where(found.cropped, rule.retimed_cropped_whole, rule.retimed_whole)
    retimed = (shorter >= 1.0 - rule.retimed_above) | (found.whole_picture >= whole)
    agreed = motion & change & strength & picture & (still | lively) & retimed
    return agreed & (shorter >= 1.0 - rule.length)


def _needed(strength: Floats, noise: float, share: Floats) -> Floats:
    """Correlation that is left when a copy of root mean square `strength` holds `noise` and `share` of itself that the
    other does not: none at all where noise may be all there is."""
    left = 1.0 - (noise / np.maximum(strength, NOTHING)) ** 2 - share**2
    return np.where(left > 0, np.sqrt(np.maximum(left, 0.0)), -1.0 - NOTHING)


def _barred(looks: NDArray[np.uint8]) -> NDArray[np.bool_]:
    return (bar_boxes(looks) != (0, CELLS, 0, CELLS)).any(axis=1)


def _hopeful(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(P,) pairs that agree in some window as far as coarse pictures tell."""
    score = _score(without_bars(first), without_bars(second))
    rows = np.flatnonzero(_barred(first) | _barred(second))
    if len(rows):
        score[rows] = np.maximum(score[rows], _score(first[rows].astype(np.float32), second[rows].astype(np.float32)))
    lively = np.minimum(moves_of(first), moves_of(second)) >= LIVELY
    return score >= np.where(lively, LEAST_SCORE, LEAST_STILL_SCORE)


def _score(first: Floats, second: Floats) -> Floats:
    one, two = channels_of(first), channels_of(second)
    return np.maximum(best_windows(one, two)[1], best_windows(two, one)[1])


def _block(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Agreement:
    barred = _barred(first) | _barred(second)
    found = _compare(without_bars(first), without_bars(second), barred)
    rows = np.flatnonzero(barred)
    if len(rows):  # what looks like a bar may be a dark part of the scene, which a crop moves: such pairs are also compared whole
        whole = _compare(first[rows].astype(np.float32), second[rows].astype(np.float32), barred[rows])
        found.put(rows, _better(found.take(rows), whole))
    return found


def _compare(first: Floats, second: Floats, barred: NDArray[np.bool_]) -> Agreement:
    """Align pictures (P, 8, 24, 24) both ways, as one may be a window of the other, and measure the better."""
    one, two = channels_of(first), channels_of(second)
    (there, forth), (back, reverse) = best_windows(one, two), best_windows(two, one)
    turned = reverse > forth
    found = _measured(*_laid(first, second, turned, np.where(turned[:, None], back, there)), barred)
    rows = np.flatnonzero((np.abs(reverse - forth) < CLEAR) & ~((found.motion > EQUAL) & (found.whole_picture > EQUAL)))
    if len(rows):
        other = ~turned[rows]
        again = _measured(*_laid(first[rows], second[rows], other, np.where(other[:, None], back[rows], there[rows])), barred[rows])
        found.put(rows, _better(found.take(rows), again))
    return found


def _laid(first: Floats, second: Floats, turned: NDArray[np.bool_], places: Floats) -> tuple[Floats, Floats, Floats]:
    """The window of the one picture that the other shows, that other picture, and the window's area."""
    flip = turned[:, None, None, None]
    outer, inner = np.where(flip, second, first), np.where(flip, first, second)
    places = refine(outer, inner, places)
    return window_of(outer, places), as_coarse_as_window(inner, places[:, 1::2]), places[:, 1] * places[:, 3]


def _measured(first: Floats, second: Floats, area: Floats, barred: NDArray[np.bool_]) -> Agreement:
    """Compare aligned pictures (P, 8, 24, 24)."""
    pairs = len(first)
    one, two = first.mean(axis=1).reshape(pairs, -1), second.mean(axis=1).reshape(pairs, -1)
    contrast = [local_contrast(pictures.mean(axis=1)).reshape(pairs, -1) for pictures in (first, second)]
    moving = [pictures.reshape(pairs, PICTURES, -1) - pictures.mean(axis=1).reshape(pairs, 1, -1) for pictures in (first, second)]
    gain, kept = _kept_cells(one, two, moving)
    changing = [np.diff(pictures, axis=1) for pictures in moving]
    weight = np.repeat(kept[:, None], PICTURES, axis=1)
    moves = [_strength(pictures, weight) for pictures in moving]
    changes = [_strength(pictures, weight[:, 1:]) for pictures in changing]
    # A grey level more on both sides, so that the noise of two still clips is not a ratio.
    strength = np.abs(np.log((moves[1] + 1.0) / (moves[0] * np.abs(gain) + 1.0)))
    texture = [np.abs(pictures).mean(axis=1) for pictures in contrast]
    everywhere = np.ones_like(kept)
    return Agreement(
        correlation(contrast[0], contrast[1], kept), correlation(contrast[0], contrast[1], everywhere), correlation(one, two, kept),
        correlation(moving[0], moving[1], weight), correlation(changing[0], changing[1], weight[:, 1:]), np.maximum(*moves),
        np.maximum(*changes), strength, _peak(moving, gain, weight), np.minimum(*texture), barred | (area < 0.9),
    )  # fmt: skip


def _kept_cells(one: Floats, two: Floats, moving: list[Floats]) -> tuple[Floats, Floats]:
    """(P,) gain that brings mean pictures `one` (P, M) to `two`, and (P, M) 1 where a cell counts, 0 where it is ignored.

    Cells that hold much of what moves are never ignored: they are where clips of one fixed camera differ.
    """
    weight = np.ones_like(one)
    for least in (0.0, IGNORED_LEVELS):
        gain, offset = fit_levels(one, two, weight)
        left = np.abs(two - gain[:, None] * one - offset[:, None])
        weight = (left <= np.maximum(np.quantile(left, 1 - IGNORED, axis=1, keepdims=True), least)).astype(np.float32)
    energies = [(pictures * pictures).sum(axis=1) for pictures in moving]  # (P, M)
    noise = PICTURES * one.shape[1] * QUIET**2
    shares = [((weight * energy).sum(axis=1) + noise) / (energy.sum(axis=1) + noise) for energy in energies]
    weight[np.minimum(*shares) < MOVES_KEPT] = 1.0
    return gain, weight


def _peak(moving: list[Floats], gain: Floats, weight: Floats) -> Floats:
    """(P,) grey levels by which what moves differs most, in the mean of the four worst places."""
    left = (weight * np.abs(moving[1] - gain[:, None, None] * moving[0])).reshape(len(gain), -1)
    return np.partition(left, -4, axis=1)[:, -4:].mean(axis=1)


def _strength(pictures: Floats, weight: Floats) -> Floats:
    return np.sqrt((weight * pictures * pictures).sum(axis=(1, 2)) / weight.sum(axis=(1, 2)))


def correlation(first: Floats, second: Floats, weight: Floats) -> Floats:
    """(P,) correlation of two arrays (P, ...) under weights of their shape."""
    one, two, weight = (array.reshape(len(array), -1) for array in (first, second, weight))
    total = weight.sum(axis=1, keepdims=True)
    one = one - (weight * one).sum(axis=1, keepdims=True) / total
    two = two - (weight * two).sum(axis=1, keepdims=True) / total
    energy = (weight * one * one).sum(axis=1) * (weight * two * two).sum(axis=1)
    return (weight * one * two).sum(axis=1) / np.sqrt(energy + NOTHING)


def _better(one: Agreement, two: Agreement) -> Agreement:
    """Pair by pair the agreement in which picture and motion agree better."""
    take = two.motion + two.picture > one.motion + one.picture
    return Agreement(*(np.where(take, getattr(two, field.name), getattr(one, field.name)) for field in fields(Agreement)))
