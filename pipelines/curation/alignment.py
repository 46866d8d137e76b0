"""Laying one clip's pictures over another's: which window of the one does the other show?

Windows of many sizes are tried on coarse pictures, then the best is moved by Gauss-Newton steps. A window is its place
(start and side of the rows, start and side of the columns, as shares of the picture). Arrays hold P pairs first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.video.fingerprint import CELLS, averaging_matrices

Floats = NDArray[np.floating[Any]]

SCALES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65)  # sides of the windows that are tried
SHAPE_SLACK = 0.27  # how far a window's two sides may differ: 4:3 cut from 16:9 is 0.25
COARSE = 12  # cells a side while windows are tried
FLAT = 4.0  # grey levels of local contrast that count as none
REFINED = 4  # pictures that a window is moved on, each the mean of two
ROUNDS = 8
STEP = 0.25 / CELLS  # for derivatives
LONGEST_STEP = 1.5 / CELLS
LEAST_SIDE, MOST_SIDE = 0.5, 1.06
MARGIN = 0.03  # how far a window may reach over the picture's edge
LEAST_ENERGY = 0.05  # squares of a channel's cells, of a window in which there is nothing to see
SAMPLED = 5  # every so many cells tell how far cells usually differ
WHOLE_ABOVE = 0.97  # a side from which on a window's detail is the picture's own


@lru_cache(maxsize=1)
def _blur() -> Floats:
    """(24, 24) means over five neighbouring cells."""
    near = np.abs(np.arange(CELLS)[:, None] - np.arange(CELLS)) <= 2
    return (near / near.sum(axis=1, keepdims=True)).astype(np.float32)


def local_contrast(pictures: Floats) -> Floats:
    """(..., 24, 24): how far each cell stands out from its neighbours, in their standard deviations; flat areas give 0."""
    blur = _blur()
    mean = blur @ pictures @ blur.T
    spread = np.maximum(blur @ (pictures * pictures) @ blur.T - mean * mean, 0.0)
    return (pictures - mean) / np.sqrt(spread + FLAT**2)


def channels_of(pictures: Floats) -> Floats:
    """(P, 2, 12, 12) what windows are tried on: local contrast of the mean of pictures (P, 8, 24, 24), and where it moves."""
    mean = pictures.mean(axis=1)
    spread = np.sqrt(np.maximum((pictures * pictures).mean(axis=1) - mean * mean, 0.0))
    both = np.stack([local_contrast(mean), np.log1p(spread)], axis=1)
    cells = CELLS // COARSE
    return both.reshape(len(both), 2, COARSE, cells, COARSE, cells).mean(axis=(3, 5))


@lru_cache(maxsize=1)
def _windows() -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """(K, 2) start and side of windows along one axis, (K, 12, 12) their matrices, (K, K) which two make a window."""
    found = []
    for side in SCALES:
        room = 1.0 - side
        count = int(np.ceil(room * CELLS - 1e-6)) + 1  # about one cell apart
        found += [(start, side) for start in np.linspace(0.0, room, count)]
    windows = np.array(found, np.float32)
    matrices = averaging_matrices(windows[:, 0], windows[:, 1], COARSE, COARSE)
    return windows, matrices, np.abs(windows[:, None, 1] - windows[None, :, 1]) <= SHAPE_SLACK


def best_windows(first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Of channels (P, 2, 12, 12): the place (P, 4) of the window of `first` that `second` shows best, and (P,) the sum of
    both channels' correlations there.

    Reading a window is linear and separable, so the products of all windows with `second`, and the windows' own squares,
    are matrix products.
    """
    windows, matrices, together = _windows()
    count, pairs = len(windows), len(first)
    down = matrices.reshape(count * COARSE, COARSE).T
    across = matrices.transpose(1, 0, 2).reshape(COARSE, count * COARSE)
    weights = matrices.sum(axis=1)  # (K, 12): how much each line counts in a window's mean
    grams = (matrices.transpose(0, 2, 1) @ matrices).reshape(count, -1)  # (K, 144)
    total = np.zeros((pairs, count, count), np.float32)
    for channel in range(first.shape[1]):
        one = first[:, channel]
        two = second[:, channel] - second[:, channel].mean(axis=(1, 2), keepdims=True)
        wide = np.ascontiguousarray((one.reshape(-1, COARSE) @ down).reshape(pairs, COARSE, count, COARSE).transpose(0, 2, 1, 3))
        tall = (np.ascontiguousarray(two.transpose(0, 2, 1)).reshape(-1, COARSE) @ across).reshape(pairs, COARSE, count, COARSE)
        products = tall.transpose(0, 2, 3, 1).reshape(pairs, count, -1) @ wide.reshape(pairs, count, -1).transpose(0, 2, 1)  # (P, K rows, K columns)
        squares = grams @ (wide @ wide.transpose(0, 1, 3, 2)).reshape(pairs, count, -1).transpose(0, 2, 1)
        mean = weights @ one @ weights.T / COARSE**2
        energy = np.maximum(squares - COARSE**2 * mean * mean, LEAST_ENERGY)
        own = (two * two).sum(axis=(1, 2)) + LEAST_ENERGY
        total += products / np.sqrt(energy * own[:, None, None])
    total[:, ~together] = -np.inf
    flat = total.reshape(pairs, -1)
    best = flat.argmax(axis=1)
    places = np.concatenate([windows[best // count], windows[best % count]], axis=1)
    return places, np.take_along_axis(flat, best[:, None], axis=1)[:, 0]


def window_of(pictures: Floats, places: Floats) -> Floats:
    """(P, T, 24, 24): of pictures (P, T, 24, 24) the windows at `places` (P, 4), stretched to all cells."""
    rows, columns = _matrices(places)
    return rows[:, None] @ pictures @ columns[:, None]


def _matrices(places: Floats) -> tuple[Floats, Floats]:
    """(P, 24, 24) from the left, (P, 24, 24) from the right."""
    rows = averaging_matrices(places[:, 0], places[:, 1], CELLS, CELLS)
    return rows, averaging_matrices(places[:, 2], places[:, 3], CELLS, CELLS).transpose(0, 2, 1)


def as_coarse_as_window(pictures: Floats, sides: Floats) -> Floats:
    """`pictures` (P, T, 24, 24) blurred to the detail that a window with `sides` (P, 2) has once it is stretched.

    A window's cells are 1 / side cells wide, and they are read between cells, which widens them once more.
    """
    width = np.where(sides > WHOLE_ABOVE, 1.0, np.sqrt(np.maximum(2.0 / sides**2 - 1.0, 1.0)))
    start, side = np.zeros(len(sides), np.float32), np.ones(len(sides), np.float32)
    rows = averaging_matrices(start, side, CELLS, CELLS, width[:, 0])
    columns = averaging_matrices(start, side, CELLS, CELLS, width[:, 1]).transpose(0, 2, 1)
    return rows[:, None] @ pictures @ columns[:, None]


def refine(first: Floats, second: Floats, places: Floats) -> Floats:
    """`places` (P, 4) moved so that the window of `first` (P, 8, 24, 24) is nearest to `second`, up to gain and offset.

    Gauss-Newton on squared differences; cells that differ much (a logo) count less.
    """
    pairs = len(first)
    one, two = _pooled(first), _pooled(second)
    for _ in range(ROUNDS):
        wanted = as_coarse_as_window(two, places[:, 1::2]).reshape(pairs, -1)
        rows, columns = _matrices(places)
        wide, tall = one @ columns[:, None], rows[:, None] @ one
        shown = (rows[:, None] @ wide).reshape(pairs, -1)
        gain, offset = fit_levels(shown, wanted)
        slopes = np.empty((pairs, 6, shown.shape[1]), np.float32)
        for axis, slope in enumerate(_slopes(places)):
            along = slope[:, None] * gain[:, None, None, None]
            slopes[:, axis] = (along @ wide if axis < 2 else tall @ along.transpose(0, 1, 3, 2)).reshape(pairs, -1)
        slopes[:, 4], slopes[:, 5] = shown, 1.0
        error = wanted - gain[:, None] * shown - offset[:, None]
        usual = 2 * np.median(np.abs(error[:, ::SAMPLED]), axis=1, keepdims=True) + 1
        weighted = slopes / (1 + (error / usual) ** 2)[:, None]
        normal = weighted @ slopes.transpose(0, 2, 1)
        normal[:, range(6), range(6)] = normal[:, range(6), range(6)] * 1.01 + 1e-2
        step = np.linalg.solve(normal, weighted @ error[:, :, None])[:, :4, 0]
        places = places + np.clip(step, -LONGEST_STEP, LONGEST_STEP)
        places[:, 1::2] = np.clip(places[:, 1::2], LEAST_SIDE, MOST_SIDE)
        places[:, 0::2] = np.clip(places[:, 0::2], -MARGIN, 1 + MARGIN - places[:, 1::2])
    return places


def _slopes(places: Floats) -> Floats:
    """(4, P, 24, 24): how the matrix of the rows changes with their start and side, that of the columns with theirs."""
    lines = np.stack([places[:, :2], places[:, :2], places[:, 2:], places[:, 2:]])  # (4, P, 2)
    shift = np.float32(STEP) * np.tile(np.eye(2, dtype=np.float32), (2, 1))[:, None]
    both = np.concatenate([lines + shift, lines - shift]).reshape(-1, 2)
    after, before = averaging_matrices(both[:, 0], both[:, 1], CELLS, CELLS).reshape(2, 4, len(places), CELLS, CELLS)
    return (after - before) / np.float32(2 * STEP)


def _pooled(pictures: Floats) -> Floats:
    pairs, count = pictures.shape[:2]
    return pictures.reshape(pairs, REFINED, count // REFINED, *pictures.shape[2:]).mean(axis=2)


def fit_levels(given: Floats, wanted: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """Gain and offset (P,) that bring `given` (P, M) nearest to `wanted`, under weights (P, M)."""
    share = np.full_like(given, 1 / given.shape[1]) if weight is None else weight / weight.sum(axis=1, keepdims=True)
    given_mean, wanted_mean = (share * given).sum(axis=1), (share * wanted).sum(axis=1)
    together = (share * given * wanted).sum(axis=1) - given_mean * wanted_mean
    gain = together / np.maximum((share * given * given).sum(axis=1) - given_mean * given_mean, 1e-3)
    return gain, wanted_mean - gain * given_mean
