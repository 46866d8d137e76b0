"""Several shard sets drawn from as one, each with its share of the samples: the paper's VM22M, or any other."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.recipes import OWN_SHARDS, MixtureSource
from pipelines.shards.index import INDEX_FILE, ShardIndex
from pipelines.shards.storage import Patience, open_storage
from pipelines.tombstones import Tombstones

BLOCK = 2**24  # bytes read at a time

WHOLE = (MixtureSource(name=OWN_SHARDS, weight=1.0),)
"""The graph's own shards alone."""


@dataclass(frozen=True, eq=False)
class ShardSet:
    """One opened source of a mixture; `rows` (k,) are those of its index that belong to it."""

    source: MixtureSource
    index: ShardIndex
    rows: NDArray[np.int64]


class Mixture:
    """The clips of all sources, numbered through in the order of the sources. Arrays are (n,) over all of them."""

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        self.sets = tuple(sets)
        self.starts = np.cumsum([0, *(len(item.rows) for item in self.sets)])
        self.source = np.repeat(np.arange(len(self.sets), dtype=np.int16), np.diff(self.starts))
        total = sum(item.source.weight for item in self.sets)
        self.source_share = np.array([item.source.weight / total for item in self.sets])
        self.still = np.array([item.source.still for item in self.sets])[self.source]
        self.first_s, self.last_s = self._joined("first_pts_s"), self._joined("last_pts_s")
        self.weight = self._joined("weight")

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(item.source.name for item in self.sets)

    @functools.cached_property
    def frame_rate(self) -> NDArray[np.float64]:
        return self._joined("frame_rate")

    @functools.cached_property
    def source_start_s(self) -> NDArray[np.float64]:
        """Where each clip begins in its source video (s); 0 where the index does not tell."""
        return np.nan_to_num(self._joined("source_start_s"))

    def texts(self, name: str) -> pa.ChunkedArray:
        """A text column over all clips."""
        return pa.chunked_array([item.index.texts(name).take(pa.array(item.rows)) for item in self.sets])

    def column(self, name: str) -> list[Any]:
        """A column as a list."""
        return self.texts(name).to_pylist()

    def place(self, row: int) -> tuple[ShardSet, int]:
        """The set that clip `row` is in, and its row there."""
        number = int(self.source[row])
        found = self.sets[number]
        return found, int(found.rows[row - self.starts[number]])

    def clip_id(self, row: int) -> str:
        found, own = self.place(row)
        return found.index.clip_id(own)

    def covered(self, tombstones: Tombstones) -> NDArray[np.bool_]:
        """(n,) clips that were taken down."""
        return tombstones.among(self.texts("clip_id"), self.texts("video_id")) if tombstones else np.zeros(len(self), bool)

    def decoded_bytes(self) -> int | None:
        """What all clips take as decoded I420 frames; None where an index does not tell the size of its pictures."""
        total = 0.0
        for item in self.sets:
            pixels = np.multiply(item.index.numbers("width"), item.index.numbers("height"), dtype=np.float64)  # 32 bits are too few for a clip's
            total += float((item.index.frames * pixels)[item.rows].sum() * 1.5)
        return int(total) if np.isfinite(total) else None

    def _joined(self, name: str) -> NDArray[np.float64]:
        values = [item.index.first_s if name == "first_pts_s" else item.index.last_s if name == "last_pts_s" else item.index.numbers(name) for item in self.sets]
        return np.concatenate([np.asarray(value, np.float64)[item.rows] for value, item in zip(values, self.sets, strict=True)])

    def close(self) -> None:
        for item in self.sets:
            item.index.close()


def open_mixture(sources: Sequence[MixtureSource], own: Path | str | None, patience: Patience | None = None) -> Mixture:
    """Open every source; `own` is the folder that "training_shards" stands for. One index is opened once.

    Raises `InputError` when a source has no shards or none of its clips is there, and `ShardError` for a damaged index.
    """
    indexes: dict[str, ShardIndex] = {}
    sets = []
    for source in sources:
        folder = str(own) if source.shards == OWN_SHARDS and own is not None else source.shards
        if folder in ("", OWN_SHARDS):
            raise InputError(
                f"the mixture's source {source.name} has no shards", expected="a folder or URL with shard_index.parquet",
                found=source.shards or "none", remedy=f"say where they are: shards of {source.name} in the recipe's mixture",
            )  # fmt: skip
        if folder not in indexes:
            indexes[folder] = ShardIndex(folder, patience)
        index = indexes[folder]
        rows = np.arange(len(index))
        if source.only is not None:
            rows = np.flatnonzero(pc.equal(index.texts("source"), source.only).fill_null(False).to_numpy(zero_copy_only=False))
            if len(rows) == 0:
                there = ", ".join(sorted(str(name) for name in pc.unique(index.texts("source")).to_pylist())[:8])
                raise InputError(f"no clip of source {source.only} is in {folder}", expected=source.only, found=there, remedy="mend `only` in the recipe's mixture")
        sets.append(ShardSet(source, index, rows))
    return Mixture(sets)


def index_digest(folder: str | Path) -> str:
    """Of a shard index, which names every clip's bytes; "" where there is none."""
    storage = open_storage(folder)
    if not storage.exists(INDEX_FILE):
        return ""
    return storage.whole(INDEX_FILE, _sha256)[:16]


def _sha256(handle: BinaryIO) -> str:
    """Of a file that may be larger than memory."""
    digest = hashlib.sha256()
    while block := handle.read(BLOCK):
        digest.update(block)
    return digest.hexdigest()
