"""Perceptual fingerprint of a clip: difference hashes of three frames, stable under re-encoding and small resizes.

Each frame is averaged to a 16 x 17 grid; a bit says that a cell is brighter than its right neighbour by more than
`DEAD_ZONE` grey levels. The dead zone keeps flat areas, where coding noise decides the sign, at 0 in every copy; the
grid is finer than the usual 8 x 9 because clips of one robot differ only where the arm is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GRID = 16
THUMBNAIL = (GRID * 4, (GRID + 1) * 4)  # (height, width) in pixels of the grey thumbnail that hashes are made of
DEAD_ZONE = 2.0
POSITIONS = (0.25, 0.5, 0.75)
BITS = GRID * GRID


def difference_hash(thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(256,) bits of one grey thumbnail of shape `THUMBNAIL`."""
    cells = thumbnail.reshape(GRID, 4, GRID + 1, 4).mean(axis=(1, 3))
    return (cells[:, :-1] - cells[:, 1:] > DEAD_ZONE).reshape(-1)


def fingerprint(thumbnails: NDArray[np.uint8]) -> str:
    """Hex text (3 x 64 characters) of a clip whose grey thumbnails (T, 64, 68) uint8 are given in order."""
    count = len(thumbnails)
    chosen = [min(count - 1, int(count * position)) for position in POSITIONS]
    return "".join(np.packbits(difference_hash(thumbnails[index])).tobytes().hex() for index in chosen)


def unpack(fingerprints: list[str]) -> NDArray[np.uint8]:
    """(N, 3, 32) uint8 packed bits of N fingerprints."""
    raw = np.frombuffer(bytes.fromhex("".join(fingerprints)), np.uint8)
    return raw.reshape(len(fingerprints), len(POSITIONS), BITS // 8)


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Largest share of differing bits (0..1) over the three frames, for packed fingerprints that broadcast (..., 3, 32)."""
    differing = np.bitwise_count(np.bitwise_xor(first, second)).sum(axis=-1, dtype=np.int64)
    return differing.max(axis=-1) / BITS
