"""Where a video's bytes are: one place that turns the `path` column of the tables into something that can be opened.

A path is a file, or a member of an uncompressed tar, written "/x/y.tar::member/name.mp4". Members are read in place:
FFmpeg's subfile protocol takes the first byte and the one after the last, and both PyAV and the ffmpeg binary know it.
"""

from __future__ import annotations

import errno
import functools
import io
import os
import posixpath
import stat
import tarfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from pipelines.errors import InputError
from pipelines.video.workers import beat

SEPARATOR = "::"
CHUNK = 1 << 20  # bytes hashed between two signs of life
TABLES_KEPT = 64  # offset tables of the tars last used, per process: files of one tar come one after another


@dataclass(frozen=True)
class MediaStat:
    """Length in bytes, and when the file that holds them was last changed (a tar's time, for its members; ns)."""

    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class TarTable:
    """Where the regular members of a tar lie: name -> (first byte, length in bytes), in the order of the tar.

    `repeated` names members that are there more than once (the last counts), `unnamed` counts those whose names are not
    UTF-8, `damage` says why reading ended before the end ("" when it did not).
    """

    members: dict[str, tuple[int, int]]
    repeated: tuple[str, ...]
    unnamed: int
    damage: str


def member_path(tar: str | Path, name: str) -> str:
    """The `path` of one member of a tar."""
    return f"{tar}{SEPARATOR}{_normal(name)}"


def split_member(path: str | Path) -> tuple[str, str] | None:
    """(tar, member) of a path that names a member of a tar that is there; None for every other path.

    A file whose own name has "::" in it is a file.
    """
    text = str(path)
    if SEPARATOR not in text or os.path.lexists(text):
        return None
    position = text.find(SEPARATOR)
    while position >= 0:
        tar, name = text[:position], text[position + len(SEPARATOR) :]
        if name and os.path.isfile(tar):
            return tar, _normal(name)
        position = text.find(SEPARATOR, position + 1)
    return None


def media_url(path: str | Path) -> str:
    """What `av.open` and `ffmpeg -i` open for `path`. Raises `InputError` when a tar has lost the member."""
    parts = split_member(path)
    if parts is None:
        return str(path)
    try:
        start, length = _place(*parts)
    except OSError as error:
        raise InputError(
            f"{parts[0]} has no member {parts[1]}", expected="the tar that was taken in", found=str(error),
            remedy="the tar has changed since: take it in again as a new batch",
        ) from error  # fmt: skip
    return f"subfile,,start,{start},end,{start + length},,:{os.path.abspath(parts[0])}"


def media_stat(path: str | Path) -> MediaStat:
    """Size and time of a regular file or a tar member. Raises `OSError` as `os.stat` does, and for anything else
    that is there (a folder, a pipe), since reading a pipe would wait for ever."""
    parts = split_member(path)
    status = os.stat(parts[0] if parts else path)
    if parts is None and not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return MediaStat(_place(*parts)[1] if parts else status.st_size, status.st_mtime_ns)


def open_media(path: str | Path) -> IO[bytes]:
    """The bytes of a file or a tar member, and no others. Raises `OSError` as `media_stat` does."""
    media_stat(path)
    parts = split_member(path)
    if parts is None:
        return open(path, "rb")
    start, length = _place(*parts)
    return io.BufferedReader(_Window(parts[0], start, length))


def media_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's or a tar member's bytes; in a worker it gives signs of life. Raises `OSError` as `media_stat` does."""
    digest = sha256()
    with open_media(path) as handle:
        while chunk := handle.read(CHUNK):
            digest.update(chunk)
            beat()
    return digest.hexdigest()


def display_name(path: str | Path) -> str:
    """A short name for a person: the file's, or the tar's with the member's."""
    parts = split_member(path)
    return f"{Path(parts[0]).name}{SEPARATOR}{parts[1]}" if parts else Path(path).name


def tar_table(tar: str | Path) -> TarTable:
    """The offset table of an uncompressed tar; read once per process while size and time stay the same. In a worker it
    gives signs of life.

    Raises `OSError` when it cannot be read and `InputError` when it is no uncompressed tar.
    """
    status = os.stat(tar)
    return _read_table(str(tar), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=TABLES_KEPT)
def _read_table(tar: str, size: int, mtime_ns: int) -> TarTable:
    members: dict[str, tuple[int, int]] = {}
    repeated: list[str] = []
    unnamed, damage = 0, ""
    try:
        with tarfile.open(tar, "r:") as opened:
            try:
                for member in opened:
                    beat()
                    if not member.isreg() or member.issparse():
                        continue
                    name = _normal(member.name)
                    if not _is_text(name):
                        unnamed += 1
                        continue
                    if members.pop(name, None) is not None:
                        repeated.append(name)
                    members[name] = (member.offset_data, member.size)
            except tarfile.TarError as error:
                damage = str(error)
            # tarfile ends in silence where a header is cut off or overwritten; a whole tar ends with a block of zeros.
            damage = damage or _end_missing(tar, opened.offset)
    except tarfile.TarError as error:
        raise InputError(
            f"{tar} is not an uncompressed tar", expected="a plain .tar", found=str(error) or "other bytes",
            remedy="if it is compressed, unpack it to a plain tar: members are read in place",
        ) from error  # fmt: skip
    return TarTable(members, tuple(sorted(set(repeated))), unnamed, damage)


def _end_missing(tar: str, offset: int) -> str:
    """ "" when a block of zeros follows the last member."""
    with open(tar, "rb") as handle:
        handle.seek(offset)
        block = handle.read(tarfile.BLOCKSIZE)
    return "" if block == b"\0" * tarfile.BLOCKSIZE else f"no end mark at byte {offset}"


def _place(tar: str, name: str) -> tuple[int, int]:
    """(first byte, length) of a member; raises `FileNotFoundError` when the tar has none of that name."""
    try:
        found = tar_table(tar).members.get(name)
    except InputError as error:
        raise OSError(errno.EINVAL, str(error), tar) from error
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such member", f"{tar}{SEPARATOR}{name}")
    return found


def _normal(name: str) -> str:
    """A member's name as `pathlib` would leave it, so that a path survives being made a `Path`."""
    return posixpath.normpath(name.lstrip("/"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class _Window(io.RawIOBase):
    """A span of a file as a file of its own."""

    def __init__(self, path: str, start: int, length: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with the window
        self._start, self._length, self._at = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        found = os.pread(self._file.fileno(), count, self._start + self._at) if count else b""
        view[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()
