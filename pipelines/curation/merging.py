"""All batches as one pool of clips, without reading their vectors and looks: those stay on the disk until rows are asked for.

Clips have one order: by batch, then clip_id and path. Equal streams are numbered once: clips that show the same span of
the same stream (copies of a file, other containers) share a number, that of the first of them in that order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.embedding import read_vectors, without_vector
from pipelines.errors import InputError
from pipelines.identity import digest_of, file_sha256
from pipelines.schemas import CLIPS, read_table
from pipelines.video.fingerprint import CELLS, PICTURES

SAME_S = 2e-3  # containers of one stream have other time bases (mkv: 1 ms), so equal spans differ by rounding
COLUMNS = [
    "clip_id", "video_id", "path", "start_s", "end_s", "width", "height", "motion", "brightness", "static", "black", "source", "licence",
]  # fmt: skip

Rows = NDArray[np.int64]


class Stacked:
    """Rows of several memory-mapped arrays under one numbering."""

    def __init__(self, arrays: Sequence[NDArray[Any]], part: NDArray[np.int32], row: Rows) -> None:
        self._arrays, self._part, self._row = list(arrays), part, row

    def __len__(self) -> int:
        return len(self._row)

    def take(self, rows: Rows) -> NDArray[Any]:
        """(M, ...) the rows, in memory."""
        found = np.empty((len(rows), *self._arrays[0].shape[1:]), self._arrays[0].dtype) if self._arrays else np.empty((0, 0), np.float32)
        part, place = self._part[rows], self._row[rows]
        for number in np.unique(part).tolist():
            mine = np.flatnonzero(part == number)
            ordered = mine[np.argsort(place[mine], kind="stable")]  # disks read forwards faster
            found[ordered] = self._arrays[number][place[ordered]]
        return found


@dataclass(frozen=True, eq=False)
class ClipPool:
    """N clips of `keys` batches in their order: `table` with COLUMNS, `batch` (N,) number of each one's batch, `stream` (N,)
    number of the stream span it shows, `firsts` (S,) the first clip of each, and `live` (N,) whether a clip is still
    there (its file has not changed since). `place` (N,) is a clip's row in its batch's own table. `missing` clips have no
    vector and are left out; `digests` (by key) name what a batch was."""

    keys: list[str]
    table: pa.Table
    batch: NDArray[np.int32]
    stream: Rows
    firsts: Rows
    live: NDArray[np.bool_]
    place: Rows
    vectors: Stacked
    looks: Stacked
    digests: dict[str, str]
    encoders: frozenset[str]
    missing: int

    def __len__(self) -> int:
        return len(self.batch)

    def column(self, name: str) -> NDArray[Any]:
        return self.table.column(name).to_numpy()

    @property
    def seconds(self) -> NDArray[np.float64]:
        """(N,) length of each clip."""
        return self.column("end_s") - self.column("start_s")


def open_pool(batches: Mapping[str, tuple[Path, Path]], superseded: Mapping[str, Sequence[str]] | None = None) -> ClipPool:
    """The pool of `batches` (key -> folders of clips and embeddings). `superseded` names paths whose file changed since.

    Raises `InputError` when clips have no vector (but for those that the embeddings' own quarantine names) or no look.
    """
    tables, vectors, looks, parts, rows, digests = [], [], [], [], [], {}
    encoders: set[str] = set()
    missing = 0
    for number, (key, (clips_folder, embeddings_folder)) in enumerate(sorted(batches.items())):
        table, own, row = _open_batch(clips_folder, embeddings_folder)
        missing += len(table) - len(row)
        order = _by_id(table.take(pa.array(row[:, 0])))
        vectors.append(own)
        looks.append(open_looks(clips_folder, len(table)))
        parts.append(np.full(len(row), number, np.int32))
        rows.append(row[order])
        tables.append(table.take(pa.array(row[order, 0])))
        encoder = json.loads((embeddings_folder / "encoder.json").read_text())["digest"]
        encoders.add(encoder)
        digests[key] = digest_of([file_sha256(clips_folder / "clips.parquet"), file_sha256(embeddings_folder / "clip_ids.json"), encoder])
    whole = pa.concat_tables(tables).combine_chunks() if tables else CLIPS.empty_table().select(COLUMNS)
    batch = np.concatenate([np.empty(0, np.int32), *parts]).astype(np.int32)
    place = np.concatenate([np.empty((0, 2), np.int64), *rows]).astype(np.int64)
    stream, firsts = stream_spans(whole)
    return ClipPool(
        sorted(batches), whole, batch, stream, firsts, _live(whole, batch, sorted(batches), superseded or {}),
        place[:, 0], Stacked(vectors, batch, place[:, 1]), Stacked(looks, batch, place[:, 0]), digests, frozenset(encoders), missing,
    )  # fmt: skip


def _open_batch(clips_folder: Path, embeddings_folder: Path) -> tuple[pa.Table, NDArray[np.float32], Rows]:
    """Clips of one batch, their vectors, and (M, 2) clip row and vector row of the clips that have a vector."""
    table = read_table(clips_folder / "clips.parquet", CLIPS, columns=COLUMNS)
    clip_ids, vectors = read_vectors(embeddings_folder, mapped=True)
    found = table.column("clip_id").to_pylist()
    without = without_vector(embeddings_folder)
    there = [row for row, pair in enumerate(zip(found, table.column("path").to_pylist(), strict=True)) if pair not in without] if without else range(len(found))
    if [found[row] for row in there] != clip_ids:
        raise InputError(
            f"{embeddings_folder} does not embed the clips of {clips_folder}", expected=f"{len(there)} vectors in the clips' order",
            found=f"{len(clip_ids)} vectors of other clips", remedy="materialize the embeddings again",
        )  # fmt: skip
    return table, vectors, np.stack([np.asarray(there, np.int64), np.arange(len(clip_ids))], axis=1)


def open_looks(clips_folder: Path, count: int) -> NDArray[np.uint8]:
    """(count, 8, 24, 24) uint8 looks of a clips artefact, as a memory map; raises `InputError` when there are others."""
    path = clips_folder / "looks.npy"
    looks = np.load(path, mmap_mode="r", allow_pickle=False) if path.is_file() else np.empty(0, np.uint8)
    if looks.shape != (count, PICTURES, CELLS, CELLS):
        raise InputError(
            f"{clips_folder} does not hold its clips' looks", expected=f"looks.npy of shape ({count}, {PICTURES}, {CELLS}, {CELLS})",
            found=f"shape {looks.shape}" if path.is_file() else "no looks.npy", remedy="materialize the clips again with this version",
        )  # fmt: skip
    return looks


def _by_id(table: pa.Table) -> Rows:
    return pc.sort_indices(table, sort_keys=[("clip_id", "ascending"), ("path", "ascending")]).to_numpy().astype(np.int64)


def _live(table: pa.Table, batch: NDArray[np.int32], keys: Sequence[str], superseded: Mapping[str, Sequence[str]]) -> NDArray[np.bool_]:
    live = np.ones(len(table), bool)
    for number, key in enumerate(keys):
        if superseded.get(key):
            gone = pc.is_in(table.column("path"), pa.array(list(superseded[key]), pa.string())).to_numpy()
            live &= ~(gone & (batch == number))
    return live


def stream_spans(table: pa.Table) -> tuple[Rows, Rows]:
    """(N,) number of the stream span each clip shows, (S,) the first clip of each; numbers ascend with first clips."""
    count = len(table)
    if count == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    video = pc.dictionary_encode(table.column("video_id").combine_chunks()).indices.to_numpy()
    start, end = table.column("start_s").to_numpy(), table.column("end_s").to_numpy()
    order = np.lexsort((start, video))
    groups = np.empty(count, np.int64)
    groups[order] = np.cumsum(_breaks(video[order], start[order]))
    order = np.lexsort((end, groups))
    spans = np.empty(count, np.int64)
    spans[order] = np.cumsum(_breaks(groups[order], end[order])) - 1
    first = np.full(spans.max() + 1, count, np.int64)
    np.minimum.at(first, spans, np.arange(count))
    number = np.empty(len(first), np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[spans], np.sort(first)


def _breaks(group: NDArray[Any], value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where, in sorted rows, something other begins than in the row before."""
    return np.concatenate([[True], (np.diff(group) != 0) | (np.diff(value) >= SAME_S)])
