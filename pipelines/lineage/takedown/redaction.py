"""Overwriting taken clips inside sealed tars, in place: every other byte stays where it is, so trainings that read go on.

A tar may be linked into several artefacts: it is overwritten once, and each of them says so in its REDACTIONS.json. The
order makes a kill harmless. First every artefact notes what is about to change, with no digest; then the data becomes
zeros, is flushed, and only then loses its name; last the new digests are noted. Whatever is still there by name is
overwritten by the next call.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines import schemas
from pipelines.identity import file_sha256
from pipelines.reporting import Progress
from pipelines.shards.index import INDEX_FILE
from pipelines.store import MANIFEST, Store, write_atomic
from pipelines.tombstones import REDACTIONS, Tombstones, redactions

PREFIX = "__redacted__/"  # stock webdataset takes names of the form __.../ for metadata and skips them
BLOCK = tarfile.BLOCKSIZE
CHUNK = 1 << 20
_MARKED = re.compile(re.escape(PREFIX) + r"\d+")


@dataclass(frozen=True)
class Member:
    """One member of a tar: the `number` of its place, its `name`, where its data begins, and how long it is (bytes)."""

    number: int
    name: str
    offset: int
    size: int

    @property
    def clip_id(self) -> str:
        return self.name.partition(".")[0]

    @property
    def redacted(self) -> bool:
        return _MARKED.fullmatch(self.name) is not None


@dataclass
class Tar:
    """One tar of the store: its `links` (artefact folder, name in it), and clip_id -> video_id of what their indexes list."""

    links: list[tuple[Path, str]] = field(default_factory=list)
    listed: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.links[0][0] / self.links[0][1]


@dataclass(frozen=True)
class Redaction:
    """What was overwritten (or, in a rehearsal, would be): `clips` by id, `bytes` of their members, `tars` as the artefacts name
    them, and unfinished `work` folders that were removed whole, since they held such clips. `damaged` tars could not be searched."""

    clips: tuple[str, ...]
    bytes: int
    tars: tuple[str, ...]
    work: tuple[str, ...]
    damaged: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "clips": list(self.clips), "bytes": self.bytes, "tars": list(self.tars), "work_folders": list(self.work), "damaged": list(self.damaged),
        }  # fmt: skip


def redact(store: Store, taken: Tombstones, takedown: str, clip_ids: Collection[str] = (), rehearse: bool = False) -> Redaction:
    """Overwrite every covered clip in every tar of the store, and remove unfinished work that holds one.

    `clip_ids` are clips of the covered videos, as far as any table names them.
    """
    covered = frozenset(clip_ids) | taken.clip_ids
    # Work first: what a build under way would still link or publish is gone before the sealed tars are listed.
    work = [folder for folder in _unfinished(store) if _holds(folder, taken, covered)]
    for folder in work if not rehearse else []:
        shutil.rmtree(folder)
    tars = _tars(store)
    clips: set[str] = set()
    size, names, damaged = 0, [], []
    with Progress("redaction", len(tars), "tars") as progress:
        for done, tar in enumerate(tars, start=1):
            try:
                found = _covered(tar, taken, covered)
            except tarfile.TarError as error:
                damaged.append(f"{tar.path}: {error}")
            else:
                size += sum(member.size for member in found)
                clips |= {member.clip_id for member in found}
                names += [str((folder / name).relative_to(store.root)) for folder, name in tar.links if found]
                if not rehearse:
                    _redact_tar(tar, found, takedown)
            progress(done, text=tar.path.name)
    return Redaction(tuple(sorted(clips)), size, tuple(sorted(names)), tuple(str(folder) for folder in work), tuple(damaged))


def _tars(store: Store) -> list[Tar]:
    """Every tar of every training_shards artefact, once however many names it has."""
    found: dict[tuple[int, int], Tar] = {}
    for manifest in sorted((store.root / "artefacts" / "training_shards").glob(f"*/[!.]*/{MANIFEST}")):
        folder, listed = manifest.parent, {}
        if (folder / INDEX_FILE).is_file():
            index = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX, ["clip_id", "video_id"])
            listed = dict(zip(*(index.column(name).to_pylist() for name in ("clip_id", "video_id")), strict=True))
        for path in sorted(folder.rglob("*.tar")):
            status = path.stat()
            tar = found.setdefault((status.st_dev, status.st_ino), Tar())
            tar.links.append((folder, path.relative_to(folder).as_posix()))
            tar.listed = tar.listed | listed if tar.listed else listed
    return list(found.values())


def members(path: Path) -> Iterator[Member]:
    """The members of a tar that the shards' writer made. Raises `tarfile.TarError`, also for what it never writes."""
    with tarfile.open(path, "r:") as archive:
        for number, member in enumerate(archive):
            if member.offset_data != member.offset + BLOCK or not member.isreg():
                raise tarfile.ReadError(f"member {member.name} is no plain file with a header of one block")
            yield Member(number, member.name, member.offset_data, member.size)


def _covered(tar: Tar, taken: Tombstones, covered: Collection[str]) -> list[Member]:
    """Members of covered clips that are still there, by their names; by their sidecars where no index lists them."""
    there = list(members(tar.path))
    videos = dict(tar.listed)
    for member in there:
        if member.name.endswith(".json") and member.clip_id not in videos and not member.redacted:
            videos[member.clip_id] = _video_in(tar.path, member)
    return [member for member in there if not member.redacted and (member.clip_id in covered or taken.covers(member.clip_id, videos.get(member.clip_id, "")))]


def _video_in(path: Path, sidecar: Member) -> str:
    with open(path, "rb") as handle:
        handle.seek(sidecar.offset)
        try:
            return str(json.loads(handle.read(sidecar.size)).get("video_id", ""))
        except (ValueError, AttributeError):
            return ""


def _redact_tar(tar: Tar, found: list[Member], takedown: str) -> None:
    notes = [redactions(folder) for folder, _ in tar.links]
    clips = sorted({member.clip_id for member in found})
    if found:
        for (folder, name), note in zip(tar.links, notes, strict=True):
            former = note.get(name, {}).get("clips", [])
            _note(folder, note, name, {"sha256": None, "clips": sorted({*former, *clips}), "takedown": takedown})
        overwrite(tar.path, found)
    pending = [(link, note) for link, note in zip(tar.links, notes, strict=True) if note.get(link[1], {"sha256": ""})["sha256"] is None]
    if pending:
        sha256 = file_sha256(tar.path)
        for (folder, name), note in pending:
            _note(folder, note, name, {**note[name], "sha256": sha256})


def _note(folder: Path, note: dict[str, dict[str, Any]], name: str, entry: dict[str, Any]) -> None:
    note[name] = entry
    write_atomic(folder / REDACTIONS, json.dumps(note, indent=1, sort_keys=True))


def overwrite(path: Path, found: list[Member], put: Callable[[int, bytes, int], int] = os.pwrite) -> None:
    """Zeros for the members' data, then headers of nameless members of the same size; nothing else changes or moves.

    The data is on the disk before a header loses the name by which an interrupted call would find it again.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        for member in found:
            for start in range(0, member.size, CHUNK):
                _put(put, descriptor, bytes(min(CHUNK, member.size - start)), member.offset + start)
        os.fsync(descriptor)
        for member in found:
            header = tarfile.TarInfo(f"{PREFIX}{member.number}")
            header.size, header.mode = member.size, 0o644
            _put(put, descriptor, header.tobuf(tarfile.USTAR_FORMAT), member.offset - BLOCK)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(put: Callable[[int, bytes, int], int], descriptor: int, data: bytes, offset: int) -> None:
    while data:
        written = put(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _unfinished(store: Store) -> list[Path]:
    """Work folders and drafts of shards that are being made, or that a kill left."""
    work = (store.root / "work" / "training_shards").glob("*/*")
    drafts = (store.root / "artefacts" / "training_shards").glob("*/.draft-*")
    return sorted(path for path in (*work, *drafts) if path.is_dir())


def _holds(folder: Path, taken: Tombstones, covered: Collection[str]) -> bool:
    """Whether a file in the folder is a covered clip, or a tar with one; a tar that is being written ends somewhere."""
    for path in sorted(folder.rglob("*")):
        if path.name.partition(".")[0] in covered:
            return True
        if path.suffix == ".tar" and path.is_file():
            try:
                for member in members(path):
                    known = member.clip_id in covered or (member.name.endswith(".json") and taken.covers(member.clip_id, _video_in(path, member)))
                    if known and not member.redacted:
                        return True
            except tarfile.TarError:
                return True  # nobody can tell, and whoever makes it makes it again
    return False
