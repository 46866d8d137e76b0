"""Perceptual fingerprint of a clip: difference hashes of three frames, and where the picture changed between them.

Each frame is averaged to a grid of 16 x 17 cells. A bit of a difference hash says that a cell is brighter than its right
neighbour; a bit of a change mask says that a cell changed from one frame to the next. Grids are finer than the usual
8 x 9, and changes are kept, because clips from one fixed camera differ only where something moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 16, 17
POSITIONS = (0.25, 0.5, 0.75)
BITS = ROWS * (COLUMNS - 1)
NEIGHBOUR_STEP = 2  # grey levels; at or below it coding noise decides the sign, and flat areas must hash alike in all copies
CHANGE_STEP = 6  # grey levels between two frames of a clip
MIN_BITS = 8  # a hash with fewer set bits (a black or flat frame) is no evidence
MIN_CHANGED = 4  # cells; below it a mask counts as "nothing moved"
_PARTS = 2 * len(POSITIONS) - 1


def cell_grid(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(16, 17) uint8 mean brightness of a grey image (H, W) of any size."""
    import cv2

    return cv2.resize(image, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def fingerprint(grids: Sequence[NDArray[np.uint8]]) -> str:
    """Hex text (5 x 64 characters: three hashes, two masks) of a clip whose frames have these grids, in order."""
    chosen = [grids[min(len(grids) - 1, int(len(grids) * position))].astype(np.int16) for position in POSITIONS]
    hashes = [grid[:, :-1] - grid[:, 1:] > NEIGHBOUR_STEP for grid in chosen]
    masks = [np.abs(later - former)[:, :-1] > CHANGE_STEP for former, later in itertools.pairwise(chosen)]
    return "".join(np.packbits(bits).tobytes().hex() for bits in [*hashes, *masks])


def unpack(fingerprints: Sequence[str]) -> NDArray[np.uint8]:
    """(N, 5, 32) uint8 packed bits of N fingerprints."""
    return np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint8).reshape(len(fingerprints), _PARTS, BITS // 8)


@dataclass(frozen=True)
class Closeness:
    """How two fingerprints compare: `picture` share of differing bits in the worst frame (0..1), `change` Jaccard
    distance of the worse change mask (0..1), `evidence` whether the frames have enough structure to say anything."""

    picture: NDArray[np.float64]
    change: NDArray[np.float64]
    evidence: NDArray[np.bool_]


def compare(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Closeness:
    """Compare packed fingerprints (..., 5, 32) pairwise; shapes broadcast."""
    count = len(POSITIONS)
    a, b = first[..., :count, :], second[..., :count, :]
    picture = _set_bits(a ^ b).max(axis=-1) / BITS
    evidence = np.minimum(_set_bits(a), _set_bits(b)).min(axis=-1) >= MIN_BITS
    a, b = first[..., count:, :], second[..., count:, :]
    union, shared = _set_bits(a | b), _set_bits(a & b)
    change = np.where(union < MIN_CHANGED, 0.0, 1.0 - shared / np.maximum(union, 1)).max(axis=-1)
    return Closeness(picture, change, evidence)


def _set_bits(packed: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.bitwise_count(packed).sum(axis=-1, dtype=np.int64)
