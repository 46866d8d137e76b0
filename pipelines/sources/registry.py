"""Registered sources of video, and the ingest batches cut from what arrives in them.

`sources/<name>.json` in the store holds a source; `batches/<key>.json` holds the files one batch took in, each by path,
size, modification time and what the source says of it; `left_out/<name>.json` what the source holds and nobody took in.
A file belongs to a new batch when the newest batch with its path does not have it just so: a changed file comes again and
its newest batch supersedes the older ones; a vanished file stays recorded where it was.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import InputError, MissingArtefact, Reject
from pipelines.identity import digest_of
from pipelines.sources import kinds
from pipelines.sources.folder import Listing, SourceFile
from pipelines.sources.manifest import is_missing
from pipelines.store import Store, write_atomic

logger = logging.getLogger("tubelet.sources")

RETRY_BUDGET = 4
"""Tries of one file over all its batches, two in each; a file that hung or killed its worker that often is poison."""
PASSING = (Reject.TIMEOUT, Reject.WORKER_DIED, Reject.UNREADABLE)
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Source:
    """A registered source: `path` is absolute; licence and uploader hold for every file that has none of its own.

    `root` is "" where it is the path itself (see `kinds.SourceDescription`).
    """

    name: str
    path: str
    licence: str
    uploader: str
    kind: str = kinds.FOLDER
    root: str = ""

    @property
    def place(self) -> tuple[str, str, str]:
        return self.kind, self.path, self.root or self.path


@dataclass(frozen=True)
class Batch:
    """One ingest batch: what a `videos`, `clips` or `clip_embeddings` partition is made from."""

    key: str
    source: str
    files: tuple[SourceFile, ...]
    licence: str
    uploader: str
    poison: tuple[str, ...] = ()
    """sha256 of the files that had hung or killed their worker every time when this batch was cut: not to be opened."""

    @property
    def record(self) -> dict[str, Any]:
        """The batch as JSON-able data; what is empty is left out, as records of older versions have it."""
        kept = {"key": self.key, "source": self.source, "licence": self.licence, "uploader": self.uploader}
        poison = {"poison": list(self.poison)} if self.poison else {}
        return {**kept, "files": [kinds.recorded(file) for file in self.files], **poison}

    @property
    def digest(self) -> str:
        """Digest of the batch's content: key, files with all that is known of them, licence and uploader."""
        return digest_of(self.record)

    def facts(self, file: SourceFile) -> dict[str, str]:
        """Columns of a `videos` row that the source knows: the file's own words, else the batch's."""
        return {
            "url": file.url, "licence": file.licence or self.licence, "uploader": file.uploader or self.uploader,
            "language": file.language, "label": file.label,
        }  # fmt: skip


def register_source(
    store: Store,
    name: str,
    path: str | Path,
    licence: str | None = None,
    uploader: str | None = None,
    *,
    kind: str | None = None,
    root: str | Path | None = None,
) -> Source:
    """Register `path` under `name`; registering the same again updates those of licence and uploader that are given.

    `kind` and `root` as for `kinds.describe_source`, whose errors are raised too; `InputError` also when `name` cannot name
    a partition, or already stands for something else.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a source", expected="lower-case letters, digits, - and _ (at most 64)", found=repr(name),
            remedy="choose another name",
        )  # fmt: skip
    found = kinds.describe_source(path, kind, root)
    for told in found.left_out:
        logger.info("%s: %d candidate files; %s", found.path, len(found.files), told)
    source = Source(name, found.path, licence or "", uploader or "", found.kind, "" if found.root == found.path else found.root)
    record = store.root / "sources" / f"{name}.json"
    if record.exists():
        known = Source(**json.loads(record.read_text()))
        if known.place != source.place:
            raise InputError(
                f"source {name} already stands for something else", expected=" ".join(known.place[:2]), found=" ".join(source.place[:2]),
                remedy="register the new one under another name",
            )  # fmt: skip
        source = replace(
            source, licence=known.licence if licence is None else licence, uploader=known.uploader if uploader is None else uploader
        )
        if known == source:
            return known
    with store.writing():
        record.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(record, json.dumps(asdict(source), sort_keys=True))
    return source


def list_sources(store: Store) -> list[Source]:
    """Registered sources, sorted by name."""
    return [Source(**json.loads(path.read_text())) for path in sorted((store.root / "sources").glob("*.json"))]


def _insist_on_place(source: Source) -> None:
    """A place that has gone since is an error, not an empty pool."""
    for place in dict.fromkeys((source.path, source.root or source.path)):
        if not Path(place).exists():
            what = "folder" if source.kind == kinds.FOLDER else "file or folder"
            raise InputError(
                f"the {what} of source {source.name} is gone", expected=place, found="nothing there",
                remedy=f"bring it back (mount it), or delete the record sources/{source.name}.json in the store",
            )  # fmt: skip


def present_files(source: Source) -> Listing:
    """What a registered source gives now. Raises `InputError` when its place is gone."""
    _insist_on_place(source)
    kind, path, root = source.place
    return kinds.LISTERS[kind](Path(path), Path(root))


def deciding_files(source: Source) -> list[SourceFile]:
    """The files whose sizes and times decide whether a registered source has changed. Raises when its place is gone."""
    _insist_on_place(source)
    kind, path, root = source.place
    return kinds.deciding_files(kind, Path(path), Path(root))


def source_digest(store: Store) -> str:
    """Digest over every registered source and what it holds (paths, sizes, modification times)."""
    return digest_of([[asdict(source), [kinds.recorded(file) for file in deciding_files(source)]] for source in list_sources(store)])


def list_batches(store: Store) -> list[str]:
    """Keys of all batches, by source and within a source oldest first."""
    return sorted((path.stem for path in (store.root / "batches").glob("*.json")), key=_source_and_number)


def _source_and_number(key: str) -> tuple[str, int]:
    source, _, number = key.rpartition("-")
    return source, int(number) if number.isdecimal() else 0


def read_batch(store: Store, key: str) -> Batch:
    """Read one batch record, also of an older version; raises `MissingArtefact` when there is none."""
    path = store.root / "batches" / f"{key}.json"
    if not path.exists():
        raise MissingArtefact(
            f"there is no ingest batch {key}", expected=f"one of {', '.join(list_batches(store)) or 'none yet'}", found=key,
            remedy="materialize source_catalog, which makes a batch from new files",
        )  # fmt: skip
    record = json.loads(path.read_text())
    files = tuple(SourceFile(**file) for file in record["files"])
    return Batch(**{**record, "files": files, "poison": tuple(record.get("poison", ()))})


def new_batches(store: Store, *, retry_poison: bool = False) -> list[str]:
    """Put every candidate file that is new or has changed, and those that deserve another try, into one new batch for its
    source; returns the new keys. With `retry_poison` files whose tries are used up are opened once more."""
    batches = [read_batch(store, key) for key in list_batches(store)]
    poison = () if retry_poison else poison_list(store)
    made = []
    for source in list_sources(store):
        own = [batch for batch in batches if batch.source == source.name]
        newest = {file.path: replace(file, tries=0) for batch in own for file in batch.files}
        listing = present_files(source)
        _write_left_out(store, source, listing)
        # A file that a manifest names stays recorded where it was when it vanishes.
        fresh = {file.path: file for file in listing.files if file != newest.get(file.path) and not (is_missing(file) and file.path in newest)}
        tries = {path: count for path, count in _to_try_again(store, own, retry_poison).items() if path not in fresh}
        again = [replace(file, tries=tries[file.path]) for file in listing.files if file.path in tries and not is_missing(file)]
        if not fresh and not again:
            continue
        number = 1 + max((_source_and_number(batch.key)[1] for batch in own), default=0)
        batch = Batch(f"{source.name}-{number:04d}", source.name, (*fresh.values(), *again), source.licence, source.uploader, poison)
        with store.writing():
            (store.root / "batches").mkdir(parents=True, exist_ok=True)
            write_atomic(store.root / "batches" / f"{batch.key}.json", json.dumps(batch.record, sort_keys=True))
        told = f", {len(again)} of them to be tried again" if again else ""
        logger.info("batch %s: %d files of source %s%s", batch.key, len(batch.files), source.name, told)
        made.append(batch.key)
    return made


def _to_try_again(store: Store, own: list[Batch], retry_poison: bool) -> dict[str, int]:
    """Paths whose newest probe failed for a reason that may pass, with their tries so far, until these are used up.

    A file that hung or killed its worker, or could not be read, may have met a busy machine or a sick disk. With
    `retry_poison` those come as well whose tries are used up.
    """
    newest = {file.path: batch for batch in own for file in batch.files}
    tried: dict[str, int] = {}
    for batch in own:
        for row in _quarantined(store, batch.key):
            may_pass = row["code"] in PASSING and not row["poison"] and row["attempts"] < RETRY_BUDGET
            lifted = retry_poison and (row["code"] in PASSING or row["poison"])
            if newest.get(row["path"]) is batch and (may_pass or lifted):
                tried[row["path"]] = row["attempts"]
    return tried


def _quarantined(store: Store, key: str) -> list[dict[str, Any]]:
    """Path, code, attempts, poison and sha256 of the files that the newest complete probe of a batch rejected."""
    from pipelines.schemas import QUARANTINE, read_table

    probes = store.made("videos", key)
    columns = ["path", "code", "attempts", "poison", "sha256"]
    return read_table(probes[-1].file("quarantine.parquet"), QUARANTINE, columns=columns).to_pylist() if probes else []


def _write_left_out(store: Store, source: Source, listing: Listing) -> None:
    """Keep the names of what a source holds and nobody takes in; written only when it has changed."""
    path = store.root / "left_out" / f"{source.name}.json"
    text = json.dumps([asdict(told) for told in listing.left_out], indent=1)
    if (not listing.left_out and not path.exists()) or (path.exists() and path.read_text() == text):
        return
    with store.writing():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    for told in listing.left_out:
        logger.info("source %s leaves out: %s", source.name, told)


def rejects_left(store: Store, batch: Batch) -> list[str]:
    """Those files that the newest probe of a batch rejected, that its source still gives and that no later batch took in again.

    Nothing else can be mended or removed. Raises `InputError` when the source's place is gone.
    """
    later = set(superseded(store).get(batch.key, ()))
    given = {file.path for source in list_sources(store) if source.name == batch.source for file in present_files(source).files}
    left = given - later
    return [row["path"] for row in _quarantined(store, batch.key) if row["path"] in left]


def poison_list(store: Store) -> tuple[str, ...]:
    """sha256 of every file that used up its tries by hanging or killing its worker, and never decoded since; sorted."""
    from pipelines.schemas import VIDEOS, read_table

    probed = [path.name for path in (store.root / "artefacts" / "videos").glob("[!.]*")]
    found = {row["sha256"] for key in probed for row in _quarantined(store, key) if row["poison"] and row["sha256"]}
    if found:
        for key in probed:
            for probe in store.made("videos", key)[-1:]:
                found -= set(read_table(probe.file("videos.parquet"), VIDEOS, columns=["sha256"]).column("sha256").to_pylist())
    return tuple(sorted(found))


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
