"""The codebook: centroids of every level, and where each centroid belongs in the level above. Versioned by its bytes.

Level 0 are the leaves, which clips are assigned to and retrieval works on; upper levels group them for balanced
sampling and for people. Leaf numbers are stable: leaves may be appended, they are never renumbered or reused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError, StoreError

NOTE = "codebook.json"


@dataclass(frozen=True, eq=False)
class Codebook:
    """`centroids[l]` (K_l, D) float32 unit rows of level l; `parents[l]` (K_l,) int32 rows of level l + 1.

    `encoder_digest` names the embedding space: vectors of another encoder must never be compared with these.
    """

    centroids: tuple[NDArray[np.float32], ...]
    parents: tuple[NDArray[np.int32], ...]
    encoder_digest: str

    def __post_init__(self) -> None:
        levels = len(self.centroids)
        agree = levels >= 1 and len(self.parents) == levels - 1 and all(
            len(parents) == len(self.centroids[level]) and len(parents) > 0 and parents.min() >= 0 and parents.max() < len(self.centroids[level + 1])
            for level, parents in enumerate(self.parents)
        )  # fmt: skip
        if not agree:
            raise StoreError(
                "the codebook's levels do not fit together", expected="a parent in the level above for every centroid",
                found=f"centroids {[len(level) for level in self.centroids]}, parents {[len(level) for level in self.parents]}",
                remedy="materialize clip_clusters again",
            )  # fmt: skip

    @property
    def leaves(self) -> NDArray[np.float32]:
        return self.centroids[0]

    @cached_property
    def version(self) -> str:
        """Digest (16 hex characters) of the encoder and of every level's bytes."""
        running = hashlib.sha256(self.encoder_digest.encode())
        for level in (*self.centroids, *self.parents):
            running.update(repr((level.shape, str(level.dtype))).encode())
            running.update(np.ascontiguousarray(level).tobytes())
        return running.hexdigest()[:16]

    def ancestors(self, level: int) -> NDArray[np.int32]:
        """(K_0,) the row of every leaf's ancestor in `level` (0: the leaf itself; -1: the top)."""
        rows = np.arange(len(self.leaves), dtype=np.int32)
        for parents in self.parents[: level if level >= 0 else len(self.centroids) + level]:
            rows = parents[rows]
        return rows

    def insist_on(self, encoder_digest: str) -> None:
        """Raise `InputError` unless vectors of `encoder_digest` may be assigned to this codebook."""
        if encoder_digest != self.encoder_digest:
            raise InputError(
                "the clips were embedded by another encoder than the codebook's", expected=f"encoder {self.encoder_digest}",
                found=f"encoder {encoder_digest}", remedy="fit a new codebook (materialize clip_clusters), or embed with the old encoder",
            )  # fmt: skip

    def save(self, folder: Path) -> None:
        """codebook.json, centroids_L.npy and parents_L.npy for every level L."""
        for level, centroids in enumerate(self.centroids):
            np.save(folder / f"centroids_{level}.npy", centroids)
        for level, parents in enumerate(self.parents):
            np.save(folder / f"parents_{level}.npy", parents)
        note = {"version": self.version, "encoder_digest": self.encoder_digest, "levels": [len(level) for level in self.centroids]}
        (folder / NOTE).write_text(json.dumps(note, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Codebook:
        """Read a saved codebook; raises `StoreError` when its bytes are not those of its version."""
        note = json.loads((folder / NOTE).read_text())
        levels = len(note["levels"])
        found = cls(
            tuple(np.load(folder / f"centroids_{level}.npy", allow_pickle=False) for level in range(levels)),
            tuple(np.load(folder / f"parents_{level}.npy", allow_pickle=False) for level in range(levels - 1)),
            note["encoder_digest"],
        )  # fmt: skip
        if found.version != note["version"]:
            raise StoreError(f"{folder} is damaged", expected=f"codebook {note['version']}", found=found.version, remedy="materialize clip_clusters again")
        return found
