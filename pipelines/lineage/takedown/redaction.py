"""Overwriting taken clips inside sealed tars, in place: every other byte stays where it is, so trainings that read go on.

A tar may be linked into several artefacts: it is overwritten once, and each of them says so in its REDACTIONS.json. The
order makes a kill harmless. First every artefact notes what is about to change, with no digest; then the data becomes
zeros, is flushed, and only then loses its name; last the new digests are noted. Whatever is still there by name is
overwritten by the next call, and what is missing or damaged in a REDACTIONS.json is told anew from the tar and the index.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.identity import file_sha256
from pipelines.reporting import Progress
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.tars import BLOCK, REDACTED, header_of
from pipelines.shards.verify import by_shard
from pipelines.store import MANIFEST, REDACTIONS, Store, redactions, write_atomic
from pipelines.tombstones import Tombstones

CHUNK = 1 << 20
TRIES = 5  # at removing a work folder in which somebody goes on writing
_MARKED = re.compile(re.escape(REDACTED) + r"\d+")


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


@dataclass(frozen=True)
class Link:
    """One name of a tar: `name` in the artefact `folder`. `listed` are the ids of the clips that its index has there (a text column)."""

    folder: Path
    name: str
    listed: pa.ChunkedArray

    @property
    def path(self) -> Path:
        return self.folder / self.name


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
    covered = set(clip_ids) | taken.clip_ids
    # Work first: what a build under way would still link or publish is gone before the sealed tars are listed.
    unfinished = _unfinished(store)
    work = [folder for folder in unfinished if _holds(folder, taken, covered)]
    drafts = tuple(f".draft-{folder.name}-" for folder in work)  # of which these are the parts: their writer must not go on
    work = [folder for folder in unfinished if folder in work or folder.name.startswith(drafts)]
    damaged = [] if rehearse else _remove(work)
    tars, of_videos = _tars(store, taken)
    covered |= of_videos
    clips: set[str] = set()
    size, names = 0, []
    with Progress("redaction", len(tars), "tars") as progress:
        for done, links in enumerate(tars, start=1):
            try:
                there = list(members(links[0].path))
            except tarfile.TarError as error:
                damaged.append(f"{links[0].path}: {error}")
            else:
                found = _covered(links, there, taken, covered)
                size += sum(member.size for member in found)
                clips |= {member.clip_id for member in found}
                names += [str(link.path.relative_to(store.root)) for link in links if found]
                if not rehearse:
                    _redact_tar(links, there, found, takedown)
            progress(done, text=links[0].name)
    return Redaction(tuple(sorted(clips)), size, tuple(sorted(names)), tuple(str(folder) for folder in work), tuple(damaged))


def _remove(folders: list[Path]) -> list[str]:
    """Remove unfinished work; what a writer goes on filling is told, to be asked for again."""
    for folder in folders:
        for _ in range(TRIES):
            shutil.rmtree(folder, ignore_errors=True)
    return [f"{folder}: it is being written: end what writes there" for folder in folders if folder.exists()]


def _tars(store: Store, taken: Tombstones) -> tuple[list[list[Link]], set[str]]:
    """Every tar of every training_shards artefact with all its names, and the clips of taken videos that their indexes list."""
    found: dict[tuple[int, int], list[Link]] = {}
    covered: set[str] = set()
    for manifest in sorted((store.root / "artefacts" / "training_shards").glob(f"*/[!.]*/{MANIFEST}")):
        folder, listed = manifest.parent, dict[str, pa.ChunkedArray]()
        if (folder / INDEX_FILE).is_file():
            index = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX, ["clip_id", "video_id", "shard"])
            covered |= set(index.column("clip_id").filter(pa.array(taken.among(index.column("clip_id"), index.column("video_id")))).to_pylist())
            listed = {name: part.column("clip_id") for name, part in by_shard(index).items()}
        for path in sorted(folder.rglob("*.tar")):
            status, name = path.stat(), path.relative_to(folder).as_posix()
            link = Link(folder, name, listed.get(name, pa.chunked_array([], pa.string())))
            found.setdefault((status.st_dev, status.st_ino), []).append(link)
    return list(found.values()), covered


def members(path: Path) -> Iterator[Member]:
    """The members of a tar that the shards' writer made. Raises `tarfile.TarError`, also for what it never writes."""
    with tarfile.open(path, "r:") as archive:
        for number, member in enumerate(archive):
            if member.offset_data != member.offset + BLOCK or not member.isreg():
                raise tarfile.ReadError(f"member {member.name} is no plain file with a header of one block")
            yield Member(number, member.name, member.offset_data, member.size)


def _covered(links: list[Link], there: list[Member], taken: Tombstones, covered: set[str]) -> list[Member]:
    """Members of covered clips that are still there, by their names; by their sidecars where no index lists them."""
    listed = {name for link in links for name in link.listed.to_pylist()}
    unlisted = [member for member in there if member.name.endswith(".json") and not member.redacted and member.clip_id not in listed]
    own = {member.clip_id for member in unlisted if _video_in(links[0].path, member) in taken.video_ids}
    return [member for member in there if not member.redacted and (member.clip_id in covered or member.clip_id in own)]


def _video_in(path: Path, sidecar: Member) -> str:
    with open(path, "rb") as handle:
        handle.seek(sidecar.offset)
        try:
            return str(json.loads(handle.read(sidecar.size)).get("video_id", ""))
        except (ValueError, AttributeError):
            return ""


def _redact_tar(links: list[Link], there: list[Member], found: list[Member], takedown: str) -> None:
    notes = [_noted(link.folder) for link in links]
    clips = {member.clip_id for member in found}
    kept = {member.clip_id for member in there if not member.redacted} - clips
    overwritten = bool(found) or any(member.redacted for member in there)
    pending = []
    for link, note in zip(links, notes, strict=True):
        former = note.get(link.name, {"clips": [], "sha256": None, "takedown": takedown})
        gone = clips | set(former["clips"]) | (set(link.listed.to_pylist()) - kept if overwritten else set())
        if found or gone != set(former["clips"]):  # also of an artefact that linked the tar, or lost its note, after an earlier call
            former = {"sha256": None, "clips": sorted(gone), "takedown": takedown if found else former["takedown"]}
            _note(link.folder, note, link.name, former)
        if link.name in note and former["sha256"] is None:
            pending.append((link, note))
    if found:
        overwrite(links[0].path, found)
    sha256 = file_sha256(links[0].path) if pending else ""
    for link, note in pending:
        _note(link.folder, note, link.name, {**note[link.name], "sha256": sha256})


def _noted(folder: Path) -> dict[str, dict[str, Any]]:
    try:
        return redactions(folder)
    except StoreError:  # damaged: told anew
        return {}


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
            _put(put, descriptor, header_of(f"{REDACTED}{member.number}", member.size), member.offset - BLOCK)
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
