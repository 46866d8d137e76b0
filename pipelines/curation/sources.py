"""Registered roots of video, and the ingest batches cut from what arrives in them.

`sources/<name>.json` in the store holds a root; `batches/<key>.json` holds the files one batch took in, each by path,
size and modification time. A file belongs to a new batch when no batch has it with that size and time, so a changed
file comes again and its newest batch supersedes the older ones; a vanished file stays recorded where it was.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.errors import InputError, MissingArtefact
from pipelines.identity import digest_of
from pipelines.store import Store, write_atomic

logger = logging.getLogger("tubelet.curation")

VIDEO_SUFFIXES = frozenset(
    {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"}
    | {".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Source:
    """A registered root: `path` is absolute; licence and uploader hold for every file below it."""

    name: str
    path: str
    licence: str
    uploader: str


@dataclass(frozen=True)
class SourceFile:
    """One candidate file: absolute path, size in bytes, modification time in ns."""

    path: str
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Batch:
    """One ingest batch: what a `videos`, `clips` or `clip_embeddings` partition is made from."""

    key: str
    source: str
    files: tuple[SourceFile, ...]
    licence: str
    uploader: str

    @property
    def digest(self) -> str:
        """Digest of the batch's content: key, files with sizes and times, licence and uploader."""
        return digest_of(asdict(self))


def scan_folder(root: Path) -> tuple[list[SourceFile], Counter[str]]:
    """Candidate files below `root`, sorted by path, and how many other files there are by suffix.

    Candidates are regular files with a common video suffix; hidden files and folders are not looked at.
    """
    found: list[SourceFile] = []
    ignored: Counter[str] = Counter()

    def cannot_list(error: OSError) -> None:
        logger.warning("%s cannot be listed (%s): its files are not in the pool", error.filename, error.strerror)

    for folder, subfolders, names in os.walk(root, onerror=cannot_list):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(folder, name)
            suffix = path.suffix.lower()
            try:
                status = path.stat()
            except OSError:
                ignored["broken links"] += 1
                continue
            if suffix not in VIDEO_SUFFIXES:
                ignored[suffix or "no suffix"] += 1
            elif not stat.S_ISREG(status.st_mode):
                ignored["not regular files"] += 1
            else:
                found.append(SourceFile(str(path), status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path), ignored


def register_source(store: Store, name: str, path: str | Path, licence: str = "", uploader: str = "") -> Source:
    """Register `path` as a root under `name`; registering the same root again updates licence and uploader.

    Raises `InputError` when the folder does not exist, is empty or has no candidate file, when `name` cannot name a
    partition, or when it already stands for another folder.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a source", expected="lower-case letters, digits, - and _ (at most 64)", found=repr(name),
            remedy="choose another name",
        )  # fmt: skip
    root = Path(path).expanduser().absolute()
    candidates_or_error(root)
    source = Source(name, str(root), licence, uploader)
    record = store.root / "sources" / f"{name}.json"
    if record.exists():
        known = Source(**json.loads(record.read_text()))
        if known.path != source.path:
            raise InputError(
                f"source {name} already stands for another folder", expected=known.path, found=source.path,
                remedy="register the new folder under another name",
            )  # fmt: skip
        if known == source:
            return known
    with store.writing():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(record, json.dumps(asdict(source), sort_keys=True))
    return source


def candidates_or_error(root: Path) -> list[SourceFile]:
    """Candidate files below `root`; raises `InputError` when there is nothing to take in. Ignored files are logged."""
    kinds = "a folder with video files (.mp4 .mkv .mov .avi .webm or another common suffix)"
    remedy = "name a folder that holds video files, for example make demo VIDEOS=/path/to/videos"
    if not root.exists():
        raise InputError(f"{root} does not exist", expected=kinds, found="nothing there", remedy=remedy)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder", expected=kinds, found="a file", remedy=remedy)
    if not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"{root} cannot be read", expected=kinds, found="no permission", remedy="mend its permissions")
    if not any(root.iterdir()):
        raise InputError(f"{root} is empty", expected=kinds, found="an empty folder", remedy=remedy)
    files, ignored = scan_folder(root)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(ignored.items()))
    if not files:
        raise InputError(f"{root} has no video file", expected=kinds, found=listed or "only empty folders", remedy=remedy)
    if ignored:
        logger.info("%s: %d candidate files; %d others ignored (%s)", root, len(files), sum(ignored.values()), listed)
    return files


def list_sources(store: Store) -> list[Source]:
    """Registered roots, sorted by name."""
    return [Source(**json.loads(path.read_text())) for path in sorted((store.root / "sources").glob("*.json"))]


def _present(source: Source) -> list[SourceFile]:
    """Candidate files of a registered root; a root that has gone since is an error, not an empty pool."""
    if not Path(source.path).is_dir():
        raise InputError(
            f"the folder of source {source.name} is gone", expected=source.path, found="no such folder",
            remedy=f"bring it back (mount it), or delete the record sources/{source.name}.json in the store",
        )  # fmt: skip
    return scan_folder(Path(source.path))[0]


def source_digest(store: Store) -> str:
    """Digest over every registered root and its candidate files (path, size, modification time)."""
    return digest_of([[asdict(source), [asdict(file) for file in _present(source)]] for source in list_sources(store)])


def list_batches(store: Store) -> list[str]:
    """Keys of all batches, sorted (so oldest first within a source)."""
    return sorted(path.stem for path in (store.root / "batches").glob("*.json"))


def read_batch(store: Store, key: str) -> Batch:
    """Read one batch record; raises `MissingArtefact` when there is none."""
    path = store.root / "batches" / f"{key}.json"
    if not path.exists():
        raise MissingArtefact(
            f"there is no ingest batch {key}", expected=f"one of {', '.join(list_batches(store)) or 'none yet'}", found=key,
            remedy="materialize source_catalog, which makes a batch from new files",
        )  # fmt: skip
    record = json.loads(path.read_text())
    return Batch(**{**record, "files": tuple(SourceFile(**file) for file in record["files"])})


def new_batches(store: Store) -> list[str]:
    """Put every candidate file that no batch has yet into one new batch for its source; returns the new keys."""
    batches = [read_batch(store, key) for key in list_batches(store)]
    made = []
    for source in list_sources(store):
        own = [batch for batch in batches if batch.source == source.name]
        known = {file for batch in own for file in batch.files}
        fresh = tuple(file for file in _present(source) if file not in known)
        if not fresh:
            continue
        batch = Batch(f"{source.name}-{len(own) + 1:04d}", source.name, fresh, source.licence, source.uploader)
        with store.writing():
            (store.root / "batches").mkdir(parents=True, exist_ok=True)
            write_atomic(store.root / "batches" / f"{batch.key}.json", json.dumps(asdict(batch), sort_keys=True))
        logger.info("batch %s: %d new files of source %s", batch.key, len(fresh), source.name)
        made.append(batch.key)
    return made


def superseded(store: Store) -> dict[str, list[str]]:
    """For each batch, those of its paths that a later batch took in again because the file had changed."""
    owner: dict[str, str] = {}
    stale: dict[str, list[str]] = {}
    for key in list_batches(store):
        for file in read_batch(store, key).files:
            if file.path in owner:
                stale.setdefault(owner[file.path], []).append(file.path)
            owner[file.path] = key
    return {key: sorted(paths) for key, paths in sorted(stale.items())}
