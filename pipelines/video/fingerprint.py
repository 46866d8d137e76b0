"""What is kept of a clip's pictures to recognise its copies: its look, and a fingerprint of the look's bits.

A look is eight small grey pictures, one from the middle of each eighth of the clip, so that a frame more or less at its
ends changes little. The fingerprint is 1024 bits: difference hashes of the eight pictures, and where each differs from the
clip's mean, because clips from one fixed camera differ only where something moves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

PICTURES = 8
CELLS = 24  # cells a side of each picture
HASH_ROWS, HASH_COLUMNS = 8, 8
BITS = 2 * PICTURES * HASH_ROWS * HASH_COLUMNS
NEIGHBOUR_STEP = 2.0  # grey levels; at or below it coding noise decides the sign, and flat areas must hash alike in all copies
CHANGE_STEP = 2.0  # grey levels above the clip's mean picture
BAR_FLAT, BAR_DARK = 8, 48  # grey levels: a bar varies no more over cells and pictures, and is no brighter
BAR_KEEP = 0.3  # of a side; a picture that would be cut below it is dark, not barred


def bar_boxes(looks: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(N, 4) first and last row, first and last column (half-open, in cells) of looks (N, 8, 24, 24) without black bars.

    Beside a bar the next line is left out too: it holds a share of the bar.
    """
    boxes = np.tile(np.array([0, looks.shape[2], 0, looks.shape[3]]), (len(looks), 1))
    for first, axes in ((0, (1, 3)), (2, (1, 2))):
        top = looks.max(axis=axes).astype(np.int64)
        bar = (top - looks.min(axis=axes) <= BAR_FLAT) & (top <= BAR_DARK)  # (N, 24)
        side = bar.shape[1]
        start, stop = (~bar).argmax(axis=1), side - (~bar[:, ::-1]).argmax(axis=1)
        start, stop = start + (start > 0), stop - (stop < side)
        good = ~bar.all(axis=1) & (stop - start >= BAR_KEEP * side)
        boxes[good, first], boxes[good, first + 1] = start[good], stop[good]
    return boxes


def averaging_matrices(
    starts: NDArray[Any], sizes: NDArray[Any], cells: int, into: int, least: NDArray[Any] | float = 1.0
) -> NDArray[np.float32]:
    """(N, into, cells) matrices that average lines of `cells` cells over windows that begin at `starts` and are `sizes`
    long (N,), as shares of the line, cut into `into` equal parts; a part is widened to `least` cells."""
    begin, length = np.asarray(starts, np.float32)[:, None, None], np.asarray(sizes, np.float32)[:, None, None]
    middle = (begin + length * (np.arange(into, dtype=np.float32)[:, None] + 0.5) / into) * cells  # (N, into, 1)
    half = np.maximum(np.asarray(least, np.float32).reshape(-1, 1, 1), length * (cells / into)) / 2
    left = np.arange(cells, dtype=np.float32)
    cover = np.maximum(np.minimum(middle + half, left + 1) - np.maximum(middle - half, left), 0.0)
    return cover / np.maximum(cover.sum(axis=2, keepdims=True), 1e-6)


def without_bars(looks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Looks (N, 8, 24, 24) with black bars cut away and the rest stretched to 24 x 24 cells."""
    found = looks.astype(np.float32)
    boxes = bar_boxes(looks)
    barred = np.flatnonzero((boxes != (0, looks.shape[2], 0, looks.shape[3])).any(axis=1))
    if len(barred):
        starts, sizes = boxes[barred][:, [0, 2]] / CELLS, (boxes[barred][:, [1, 3]] - boxes[barred][:, [0, 2]]) / CELLS
        rows = averaging_matrices(starts[:, 0], sizes[:, 0], CELLS, CELLS)
        columns = averaging_matrices(starts[:, 1], sizes[:, 1], CELLS, CELLS)
        found[barred] = rows[:, None] @ found[barred] @ columns.transpose(0, 2, 1)[:, None]
    return found


def fingerprints(looks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 128) uint8 packed bits of looks (N, 8, 24, 24); black bars do not count."""
    whole = without_bars(looks)
    rows = averaging_matrices(np.zeros(1), np.ones(1), CELLS, HASH_ROWS)[0]
    columns = averaging_matrices(np.zeros(1), np.ones(1), CELLS, HASH_COLUMNS + 1)[0]
    small = rows @ whole @ columns.T  # (N, 8, 8, 9)
    falls = small[..., :-1] - small[..., 1:] > NEIGHBOUR_STEP
    square = rows @ whole @ rows.T
    rises = square - square.mean(axis=1, keepdims=True) > CHANGE_STEP
    bits = np.concatenate([falls.reshape(len(looks), -1), rises.reshape(len(looks), -1)], axis=1)
    return np.packbits(bits, axis=1)


def fingerprint(look: NDArray[np.uint8]) -> str:
    """Hex text (256 characters) of one look (8, 24, 24)."""
    return fingerprints(look[None])[0].tobytes().hex()
