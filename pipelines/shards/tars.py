"""Tars in the one way the writer makes them: two members a clip, nothing in them but what the content decides."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pipelines.identity import digest_of

BLOCK = tarfile.BLOCKSIZE
SHARD_GLOB = "shard-*.tar"
REDACTED = "__redacted__/"
"""Names of members that a takedown has overwritten with zeros begin so; webdataset takes names of the form __.../ for metadata."""
SELF = "digest"
"""Key of a sidecar under which it carries the digest of all its others, so that damage to it shows."""


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def shard_number(name: str) -> int:
    return int(name.removeprefix("shard-").removesuffix(".tar"))


def sidecar_text(fields: dict[str, Any]) -> bytes:
    """The member `<clip_id>.json` of a clip."""
    return json.dumps({**fields, SELF: digest_of(fields)}, sort_keys=True, indent=1).encode()


def header_of(name: str, size: int) -> bytes:
    """A member's header: times, owner and group stay 0."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.USTAR_FORMAT)


def member_bytes(name: str, data: bytes) -> bytes:
    """A member as it lies in the tar: header, data, zeros up to the next block."""
    return header_of(name, len(data)) + data + bytes(-len(data) % BLOCK)


class TarFile:
    """One tar being written, clip after clip. `close` ends it."""

    def __init__(self, path: Path) -> None:
        self._handle: BinaryIO = path.open("wb")
        self.size = 0

    def add(self, clip_id: str, sidecar: bytes, video: bytes) -> int:
        """Append `<clip_id>.json` and `<clip_id>.mp4`; returns the offset of the mp4's first byte."""
        whole = pair_of(clip_id, sidecar, video)
        self._handle.write(whole)
        self.size += len(whole)
        return self.size - len(video) - (-len(video) % BLOCK)

    def close(self) -> None:
        """Write the end mark; the whole is a multiple of the record size, as tar wants it."""
        end = bytes(2 * BLOCK)
        with self._handle:  # closed also when the disk is full
            self._handle.write(end + bytes(-(self.size + len(end)) % tarfile.RECORDSIZE))


def pair_of(clip_id: str, sidecar: bytes, video: bytes) -> bytes:
    """A clip's two members."""
    return member_bytes(f"{clip_id}.json", sidecar) + member_bytes(f"{clip_id}.mp4", video)


@dataclass(frozen=True)
class Member:
    """`offset` is that of the first data byte; `plain` when header and padding are just what the writer writes."""

    name: str
    offset: int
    data: bytes
    plain: bool


def read_members(path: Path) -> Iterator[Member]:
    """Every member of a tar in order, reading every byte of the file up to its end.

    Raises `tarfile.TarError` that names the byte where a header, the data or the end is damaged or missing.
    """
    with path.open("rb") as handle:
        while True:
            at = handle.tell()
            header = handle.read(BLOCK)
            if header == bytes(BLOCK):
                _insist_on_end(at, handle.read())
                return
            try:
                found = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.HeaderError, UnicodeError) as error:
                raise tarfile.ReadError(f"no member and no end mark at byte {at}: {error}") from error
            data, padding = handle.read(found.size), handle.read(-found.size % BLOCK)
            if len(data) + len(padding) != found.size + -found.size % BLOCK:
                raise tarfile.ReadError(f"ends inside {found.name}, at byte {handle.tell()}")
            plain = header == header_of(found.name, found.size) and not any(padding)
            yield Member(found.name, at + BLOCK, data, plain)


def _insist_on_end(at: int, rest: bytes) -> None:
    if any(rest):
        raise tarfile.ReadError(f"something lies behind the end mark at byte {at}")
    if len(rest) < BLOCK or (at + BLOCK + len(rest)) % tarfile.RECORDSIZE:
        raise tarfile.ReadError(f"the end mark at byte {at} is cut short")


def member_places(path: Path) -> dict[str, tuple[int, int]]:
    """name -> (offset, length) of every member's data, from the headers alone."""
    with tarfile.open(path, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive}
