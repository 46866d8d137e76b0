"""The index over a folder of shards: which bytes of which tar hold a clip, in 92 bytes a clip of memory.

The columns that every read needs are held as plain arrays; those that only a person asks for (source, licence, ...) are
read from the Parquet file when they are.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import schemas
from pipelines.shards.storage import Patience, ShardError, open_storage

INDEX_FILE = "shard_index.parquet"
LONG_NAME = 8 * tarfile.BLOCKSIZE  # bytes before a member's data in which an extra header with its name is looked for
TYPE = 156  # where a tar header tells its member's type
READS = 2  # of bytes that are not the indexed ones: the first time the fault may be the transport's
REMEDY = "run `tubelet shards verify`; then materialize training_shards again with rewrite, or restore the file"

__all__ = ["INDEX_FILE", "ClipEntry", "ShardError", "ShardIndex", "Stored"]


@dataclass(frozen=True)
class ClipEntry:
    """Where one clip lies. `offset` and `length` (bytes) delimit the clip's member inside `shard`."""

    row: int
    clip_id: str
    shard: str
    offset: int
    length: int
    sha256: str
    frames: int


@dataclass(frozen=True)
class Stored:
    """The bytes of one clip as they lie in the tar: the member's `name`, its `data`, and the digest of these."""

    name: str
    data: bytes
    sha256: str

    @property
    def clip_id(self) -> str:
        return self.name.rpartition("/")[2].partition(".")[0]

    @property
    def kind(self) -> str:
        return self.name.rpartition(".")[2].lower()


class ShardIndex:
    """`shard_index.parquet` of a local folder or an fsspec URL, with ranged reads that check what they read. Safe to share
    between threads. Rows are in the file's order (by clip_id).

    `offset`, `length`, `frames`, `first_s`, `last_s` (s on the clip's own clock), `frame_rate` (1/s), `weight` and
    `source_start_s` (s on the source's) are arrays (n,).
    """

    def __init__(self, folder: str | Path, patience: Patience | None = None) -> None:
        self.folder = folder
        self.storage = open_storage(folder, patience)
        if not self.storage.exists(INDEX_FILE):
            raise ShardError(f"no shard index in {folder}", expected=INDEX_FILE, found="none", remedy="materialize training_shards")
        raw = self._columns("clip_id", "shard", "offset", "length", "sha256", "frames", "first_pts_s", "last_pts_s")
        if len(raw) == 0:
            raise ShardError(f"the shards in {folder} hold no clip", expected="at least one clip", found="0", remedy="select more clips")
        self._clip_ids, self._shards = raw.column("clip_id").combine_chunks(), pc.dictionary_encode(raw.column("shard")).combine_chunks()
        self._names: list[str] = self._shards.dictionary.to_pylist()
        self._shard: NDArray[np.int32] = self._shards.indices.to_numpy().astype(np.int32)
        self.offset, self.length = raw.column("offset").to_numpy(), raw.column("length").to_numpy().astype(np.uint32)
        self.frames = raw.column("frames").to_numpy()
        self.first_s, self.last_s = raw.column("first_pts_s").to_numpy(), raw.column("last_pts_s").to_numpy()
        self._digests = _digests(raw.column("sha256"), folder)
        del self._shards
        self._lazy: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.offset)

    @property
    def frame_rate(self) -> NDArray[np.float64]:
        return self.numbers("frame_rate")

    @property
    def weight(self) -> NDArray[np.float64]:
        return self.numbers("weight")

    @property
    def source_start_s(self) -> NDArray[np.float64]:
        return self.numbers("source_start_s")

    @property
    def nbytes(self) -> int:
        """Memory of the columns that every read needs."""
        arrays = (self._shard, self.offset, self.length, self.frames, self.first_s, self.last_s, self._digests)
        return int(self._clip_ids.nbytes + sum(array.nbytes for array in arrays))

    def numbers(self, name: str) -> NDArray[Any]:
        """A column of numbers as an array, read when it is first asked for; null becomes NaN."""
        if name not in self._lazy:
            self._lazy[name] = self._columns(name).column(name).to_numpy()
        values: NDArray[Any] = self._lazy[name]
        return values

    def texts(self, name: str) -> pa.Array:
        """A text column as an Arrow array."""
        return self._clip_ids if name == "clip_id" else self._columns(name).column(name).combine_chunks()

    def column(self, name: str) -> list[Any]:
        """A column as a list."""
        values: list[Any] = self.texts(name).to_pylist()
        return values

    def clip_id(self, row: int) -> str:
        return str(self._clip_ids[row].as_py())

    def digest(self, row: int) -> str:
        """Hex sha256 of a clip's bytes."""
        return self._digests[row].tobytes().hex()

    def entry(self, row: int) -> ClipEntry:
        """The clip in row `row`."""
        return ClipEntry(
            row, self.clip_id(row), self._names[self._shard[row]], int(self.offset[row]), int(self.length[row]), self.digest(row),
            int(self.frames[row]),
        )  # fmt: skip

    def stored(self, entry: ClipEntry) -> Stored:
        """The clip as it lies in its tar, by one ranged read that starts at the member's header.

        Raises `ShardError` naming the clip when name or bytes are not the indexed ones, or when the shard is gone.
        """
        for _ in range(READS):
            found = self._read(entry)
            if found.sha256 == entry.sha256 and found.clip_id != entry.clip_id:
                found = Stored(self._long_name(entry) or found.name, found.data, found.sha256)
            if found.sha256 == entry.sha256 and found.clip_id == entry.clip_id:
                return found
        raise ShardError(
            f"clip {entry.clip_id} in {self.folder}/{entry.shard} is damaged",
            expected=f"{entry.length} bytes with sha256 {entry.sha256[:16]}", found=f"{len(found.data)} bytes of {found.name or 'no member'} with {found.sha256[:16]}",
            remedy=REMEDY,
        )  # fmt: skip

    def read(self, entry: ClipEntry) -> bytes:
        """The clip's bytes; raises as `stored` does."""
        return self.stored(entry).data

    def _read(self, entry: ClipEntry) -> Stored:
        whole = self._bytes(entry, tarfile.BLOCKSIZE, tarfile.BLOCKSIZE + entry.length)
        data = whole[tarfile.BLOCKSIZE :]
        return Stored(member_name(whole[: tarfile.BLOCKSIZE]), data, hashlib.sha256(data).hexdigest())

    def _long_name(self, entry: ClipEntry) -> str:
        """Name of the clip's member where it stands in an extra header before the member's own, as names that are long or not
        ASCII do in tars that others made; "" when there is none."""
        before = min(entry.offset, LONG_NAME)
        return long_name(self._bytes(entry, before, before))

    def _bytes(self, entry: ClipEntry, before: int, length: int) -> bytes:
        """`length` bytes of the clip's shard, from `before` bytes before its data on."""
        try:
            return self.storage.read(entry.shard, entry.offset - before, length)
        except FileNotFoundError as error:
            raise ShardError(
                f"shard {entry.shard} is missing from {self.folder}", expected="every shard the index names", found="no such file", remedy=REMEDY
            ) from error
        except OSError as error:
            raise ShardError(
                f"shard {entry.shard} in {self.folder} cannot be read", expected=f"{length} bytes of clip {entry.clip_id}", found=str(error),
                remedy="see to the disk, then run again: what was finished is kept",
            ) from error  # fmt: skip

    def _columns(self, *names: str) -> pa.Table:
        try:
            return self.storage.whole(INDEX_FILE, lambda handle: schemas.read_table(handle, schemas.SHARD_INDEX, columns=list(names)))
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ShardError(f"the index of {self.folder} cannot be read", expected="a Parquet table with the index's columns", found=str(error), remedy=REMEDY) from error

    def close(self) -> None:
        """Let go of open files; a later read opens them again."""
        self.storage.close()


def member_name(header: bytes) -> str:
    """Name in a tar member's header; "" when it is none."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
    except tarfile.HeaderError:
        return ""


def long_name(headers: bytes) -> str:
    """Name in the extra header (pax's or GNU's) of the tar member whose data follow `headers`; "" when there is none."""
    for start in range(len(headers) - 3 * tarfile.BLOCKSIZE, -1, -tarfile.BLOCKSIZE):
        if headers[start + TYPE : start + TYPE + 1] in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            try:
                with tarfile.open(fileobj=io.BytesIO(headers[start:]), mode="r:") as archive:
                    member = archive.next()
            except tarfile.TarError:
                continue  # some member's data that look like a header
            if member is not None and start + member.offset_data == len(headers):
                return member.name
    return ""


def _digests(column: pa.ChunkedArray, folder: str | Path) -> NDArray[np.uint8]:
    """(n, 32) bytes of hex sha256 texts."""
    try:
        whole = b"".join(binascii.unhexlify(_characters(chunk)) for chunk in column.chunks)
        return np.frombuffer(whole, np.uint8).reshape(len(column), hashlib.sha256().digest_size)
    except ValueError as error:
        raise ShardError(f"the index of {folder} names no digests", expected="a sha256 of 64 hex digits a clip", found=str(error), remedy=REMEDY) from error


def _characters(chunk: pa.Array) -> memoryview:
    """The characters of a text array without nulls, as they lie in memory."""
    offsets = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    return memoryview(chunk.buffers()[2])[int(offsets[0]) : int(offsets[-1])]
