"""Whether two clips show the same footage: their looks laid over each other, then judged by what stands and what moves.

A copy may be cropped, letter-boxed, brighter, slightly re-timed or carry a logo; a clip of the same scene with another
motion must not pass for one. Thresholds were set on planted copies and on clips of fixed cameras (docs/curation.md).
Arrays hold P pairs in their first axis; the alignment itself is in `alignment.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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
EQUAL = 0.95  # correlations from which on a pair is not laid another way
CLEAR = 0.3  # of a score: when one way to lay the pictures is better by this, the other is not tried
IGNORED = 0.15  # of the cells, those that differ most, are left out (a logo) ...
IGNORED_LEVELS = 6.0  # ... where they differ by more grey levels than this,
MOVES_KEPT = 0.6  # and the others hold this share of the motion's energy
NOTHING = 1e-6


class LookRule(Part):
    """When two looks are the same footage. Correlations are at most 1, shares are of the motion's root mean square.

    What moves must agree but for `noise` grey levels (coding, and frames that fall into another eighth) and `share` of
    itself; a window of a picture is read between cells, which costs up to `cropped_share`. Changes from picture to
    picture are differences of noisy pictures, so they get `change` times these. Where less than `still_below` grey levels
    move, motion says nothing, and the pictures must agree by the three `still_` values.
    """

    length: float = 0.08  # relative difference of the lengths; 5 % of re-timing, and borders a little off
    noise: float = 1.5
    share: float = 0.25
    cropped_share: float = 0.42
    change: float = 1.4
    strength: float = 0.22  # largest log ratio of how strongly both move, once their levels agree
    cropped_strength: float = 0.6
    picture: float = 0.55  # local contrast of the mean pictures, without the ignored cells
    cropped_picture: float = 0.8
    levels: float = 0.94  # grey levels of the mean pictures, without the ignored cells
    still_below: float = 1.5
    still_picture: float = 0.84
    still_whole: float = 0.8  # local contrast with all cells
    still_levels: float = 0.985
    retimed_above: float = 0.02  # difference of the lengths from which on a pair must agree in all cells:
    retimed_whole: float = 0.95  # a pair that needs two excuses, a logo and another speed, agrees by chance too often
    rhythm: float = 0.65  # pairs below are not aligned at all, unless one of them moves less than `rhythm_above`
    rhythm_above: float = 3.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """How P pairs compare once aligned, (P,) each. `picture`, `whole_picture`, `levels`, `motion`, `change` are correlations,
    see `LookRule`; `moves` and `changes` root mean squares in grey levels of the livelier clip; `strength` the absolute log
    ratio of what moves; `cropped` whether one shows only a window of the other or had bars."""

    picture: Floats
    whole_picture: Floats
    levels: Floats
    motion: Floats
    change: Floats
    moves: Floats
    changes: Floats
    strength: Floats
    cropped: NDArray[np.bool_]

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
    """Align and compare row i of `first` with row i of `second`, looks (P, 8, 24, 24) uint8."""
    blocks = [_block(first[start : start + BLOCK], second[start : start + BLOCK]) for start in range(0, max(1, len(first)), BLOCK)]
    return _joined(blocks)


def same_footage(found: Agreement, shorter: NDArray[np.float64], rule: LookRule) -> NDArray[np.bool_]:
    """(P,) which pairs are the same footage; `shorter` (P,) is the shorter length over the longer."""
    share = np.where(found.cropped, rule.cropped_share, rule.share)
    motion = found.motion >= _needed(found.moves, rule.noise, share)
    change = found.change >= _needed(found.changes, rule.noise * rule.change, share * rule.change)
    lively = found.moves >= rule.still_below
    strength = ~lively | (found.strength <= np.where(found.cropped, rule.cropped_strength, rule.strength))
    picture = (found.picture >= np.where(found.cropped, rule.cropped_picture, rule.picture)) & (found.levels >= rule.levels)
    still = (found.picture >= rule.still_picture) & (found.whole_picture >= rule.still_whole) & (found.levels >= rule.still_levels)
    retimed = (shorter >= 1.0 - rule.retimed_above) | (found.whole_picture >= rule.retimed_whole)
    agreed = motion & change & strength & picture & (still | lively) & retimed
    return agreed & (shorter >= 1.0 - rule.length)


def _needed(strength: Floats, noise: float, share: Floats) -> Floats:
    """Correlation that two copies of what has root mean square `strength` keep, each differing by `noise` and `share` of it."""
    return 1.0 - ((noise / np.maximum(strength, NOTHING)) ** 2 + share**2) / 2


def _block(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Agreement:
    barred = (bar_boxes(first) != (0, CELLS, 0, CELLS)).any(axis=1) | (bar_boxes(second) != (0, CELLS, 0, CELLS)).any(axis=1)
    found = _compare(without_bars(first), without_bars(second), barred)
    rows = np.flatnonzero(barred)
    if len(rows) == 0:
        return found
    # What looks like a bar may be a dark part of the scene, which a crop moves: such pairs are compared whole as well.
    whole = _compare(first[rows].astype(np.float32), second[rows].astype(np.float32), barred[rows])
    kept = Agreement(*(getattr(found, field.name)[rows] for field in fields(Agreement)))
    better = _chosen(kept, whole)
    for field in fields(Agreement):
        getattr(found, field.name)[rows] = getattr(better, field.name)
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
        places = np.where(other[:, None], back[rows], there[rows])
        second_try = _measured(*_laid(first[rows], second[rows], other, places), barred[rows])
        kept = Agreement(*(getattr(found, field.name)[rows] for field in fields(Agreement)))
        better = _chosen(kept, second_try)
        for field in fields(Agreement):
            getattr(found, field.name)[rows] = getattr(better, field.name)
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
    everywhere = np.ones_like(kept)
    return Agreement(
        correlation(contrast[0], contrast[1], kept), correlation(contrast[0], contrast[1], everywhere), correlation(one, two, kept),
        correlation(moving[0], moving[1], weight), correlation(changing[0], changing[1], weight[:, 1:]), np.maximum(*moves),
        np.maximum(*changes), strength, barred | (area < 0.9),
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
    shares = [(weight * energy).sum(axis=1) / np.maximum(energy.sum(axis=1), NOTHING) for energy in energies]
    weight[np.minimum(*shares) < MOVES_KEPT] = 1.0
    return gain, weight


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


def _chosen(one: Agreement, two: Agreement) -> Agreement:
    """Pair by pair the agreement in which picture and motion agree better."""
    take = two.motion + two.picture > one.motion + one.picture
    return Agreement(*(np.where(take, getattr(two, field.name), getattr(one, field.name)) for field in fields(Agreement)))


def _joined(blocks: list[Agreement]) -> Agreement:
    return Agreement(*(np.concatenate([getattr(block, field.name) for block in blocks]) for field in fields(Agreement)))
