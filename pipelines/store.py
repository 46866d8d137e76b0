"""The store: immutable, content-checked artefact folders, atomic `current` pointers and `validated` markers.

Layout under the root::

    STORE.json                                   store version
    artefacts/<asset>/<partition>/<identity>/    one immutable folder with MANIFEST.json, written last
    current/<asset>/<partition>.json             the artefact that consumers use (replaced atomically)
    validated/<digest>.json                      written when an artefact's blocking checks have passed
    work/<asset>/<partition>/<identity>/         working folders of long jobs (checkpoints), resumable by identity
    tombstones/ takedowns/                       what may not be used any more, and the report on each takedown
    corpus/ episodes/ dagster/ logs/             built-in data, recorded episodes, Dagster's database, logs

An artefact's *identity* is a digest of what it is made from (asset, partition, config, inputs, code version), so the
same request finds the same folder; its *digest* is over the bytes it holds, so equal contents have equal versions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.errors import TubeletError
from pipelines.errors import InputError, MissingArtefact, StoreError
from pipelines.identity import canonical_json, digest_of, file_sha256

logger = logging.getLogger("tubelet.store")

STORE_VERSION = 1
MARKER = "STORE.json"
MANIFEST = "MANIFEST.json"
NO_PARTITION = "_"
SEALED = frozenset({"asset", "partition", "identity", "digest", "config", "inputs", "input_paths", "files", "summary", "created", "seconds"})
"""What every manifest says."""
FULL_WORDS = ("no space left on device", "disk is full")
DENIED_WORDS = ("readonly database", "unable to open database", "disk i/o error")
NO_ROOM_BYTES = 2**20
NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)  # another file system, or one without hard links
REDACTIONS = "REDACTIONS.json"
"""Beside an artefact's manifest: which of its tars had the bytes of clips overwritten since it was sealed."""


def key_of(asset: str, partition: str) -> str:
    """How an artefact is called: `asset`, or `asset[partition]`."""
    return asset if partition == NO_PARTITION else f"{asset}[{partition}]"


@dataclass(frozen=True)
class Artefact:
    """One published folder. `digest` names its bytes, `identity` what it was made from, `inputs` their digests."""

    asset: str
    partition: str
    identity: str
    digest: str
    path: Path
    summary: dict[str, Any]
    inputs: dict[str, str]
    config: dict[str, Any]
    seconds: float
    reused: bool = False

    @property
    def key(self) -> str:
        return key_of(self.asset, self.partition)

    def file(self, name: str) -> Path:
        """Path of a member, which must be in the manifest's folder."""
        path = self.path / name
        if not path.exists():
            raise MissingArtefact(
                f"{self.key} has no {name}", expected=str(path), found="nothing there",
                remedy=f"the artefact is damaged: delete {self.path} and materialize {self.asset} again",
            )  # fmt: skip
        return path


class Store:
    """A local folder as store. Use `Store.open`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def open(cls, root: str | Path, *, create: bool = True) -> Store:
        """Open the store at `root`, making it when absent; refuses other versions, read-only folders and remote URLs."""
        store = cls(local_folder(root))
        with store.writing():
            store._insist_on_own(create)
            if create:
                store._make()
        return store

    def _insist_on_own(self, create: bool) -> None:
        """Raise unless the folder is a store of this version, or (with `create`) could become one."""
        path, marker = self.root, self.root / MARKER
        if marker.exists():
            version = _version_in(marker)
            if version != STORE_VERSION:
                raise StoreError(
                    f"{path} was made by another version of Tubelet", expected=f"store version {STORE_VERSION}",
                    found=f"version {version}", remedy="use that version, or set TUBELET_STORE to another folder; nothing was changed",
                )  # fmt: skip
        elif not create:
            raise MissingArtefact(
                f"no store at {path}", expected="a folder with STORE.json", found="none", remedy="run `make demo` first, or set TUBELET_STORE"
            )
        elif path.exists() and not path.is_dir():
            raise StoreError(f"{path} is a file", expected="a folder", found="a file", remedy="set TUBELET_STORE to a folder")
        elif path.exists() and any(item.name not in {"dagster", "logs"} for item in path.iterdir()):
            raise StoreError(
                f"{path} holds other files and no STORE.json", expected="an empty folder or a Tubelet store",
                found=", ".join(sorted(item.name for item in path.iterdir())[:4]), remedy="set TUBELET_STORE to an empty folder",
            )  # fmt: skip

    def _make(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"the store {self.root} cannot be made", expected="a place where folders can be made", found=str(error),
                remedy="set TUBELET_STORE to another folder",
            ) from error  # fmt: skip
        if not (self.root / MARKER).exists():
            write_atomic(self.root / MARKER, json.dumps({"version": STORE_VERSION}))
        probe = self.root / f".write-{uuid.uuid4().hex}"
        probe.write_bytes(b"")
        probe.unlink()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Turn a full or read-only disk into an error that says so and what to do, also when a database met it."""
        try:
            yield
        except TubeletError:
            raise
        except Exception as error:
            told = disk_error(error, self.root)
            if told is None:
                raise
            raise told from error

    # -- artefacts ---------------------------------------------------------------------------------------------

    def folder(self, area: str, asset: str, partition: str | None, identity: str) -> Path:
        return self.root / area / asset / (partition or NO_PARTITION) / identity

    @staticmethod
    def identity(asset: str, partition: str | None, config: dict[str, Any], inputs: Sequence[Artefact], code_version: str) -> str:
        """Identity digest: what would be made, before it is made."""
        return digest_of([asset, partition, config, {item.key: item.digest for item in inputs}, code_version])

    def produce(
        self,
        asset: str,
        build: Callable[[Path], dict[str, Any]],
        *,
        inputs: Sequence[Artefact] = (),
        config: dict[str, Any] | None = None,
        partition: str | None = None,
        code_version: str = "1",
    ) -> Artefact:
        """The artefact for this identity: found when it was made before, else built, sealed and renamed into place.

        `build(folder)` fills an empty folder and returns a JSON-able summary. Nothing is visible before it has ended well.
        """
        config = json.loads(canonical_json(config or {}))
        identity = self.identity(asset, partition, config, inputs, code_version)
        final = self.folder("artefacts", asset, partition, identity)
        if (final / MANIFEST).exists():
            return self.load(final, reused=True)
        started = time.monotonic()
        with self.writing(), _held_draft(final) as draft:
            summary = build(draft)
            files = {
                str(path.relative_to(draft)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
                for path in sorted(draft.rglob("*"))
                if path.is_file()
            }
            manifest = {
                "asset": asset, "partition": partition or NO_PARTITION, "identity": identity,
                "digest": digest_of([asset, {name: entry["sha256"] for name, entry in files.items()}]),
                "code_version": code_version, "config": config, "inputs": {item.key: item.digest for item in inputs},
                "input_paths": {item.key: str(item.path.relative_to(self.root)) for item in inputs},
                "files": files, "summary": summary, "created": time.time(), "seconds": time.monotonic() - started,
                "store_version": STORE_VERSION,
            }  # fmt: skip
            write_atomic(draft / MANIFEST, json.dumps(manifest, indent=1))
            try:
                os.rename(draft, final)
            except OSError:
                if (final / MANIFEST).exists():  # another process made the same meanwhile
                    return self.load(final, reused=True)
                if not final.exists():
                    raise
                raise StoreError(
                    f"{final} exists without a manifest", expected="no folder or a complete one", found="an incomplete folder",
                    remedy="delete it and run again",
                ) from None  # fmt: skip
        return self.load(final)

    def load(self, path: Path, *, reused: bool = False) -> Artefact:
        """Read one artefact folder's manifest."""
        manifest = read_manifest(path)
        return Artefact(
            asset=manifest["asset"], partition=manifest["partition"], identity=manifest["identity"], digest=manifest["digest"],
            path=path, summary=manifest["summary"], inputs=manifest["inputs"], config=manifest["config"],
            seconds=manifest["seconds"], reused=reused,
        )  # fmt: skip

    def made(self, asset: str, partition: str | None = None) -> list[Artefact]:
        """Every complete artefact of one partition, accepted or not, in the order they were made; a draft is none."""
        folder = self.root / "artefacts" / asset / (partition or NO_PARTITION)
        manifests = folder.glob(f"[!.]*/{MANIFEST}")
        return [self.load(path.parent) for path in sorted(manifests, key=lambda path: read_manifest(path.parent)["created"])]

    def discard(self, artefact: Artefact) -> None:
        """Remove an artefact. It becomes a draft first: after a kill it is no artefact any more, nor half of one."""
        draft = _draft_of(artefact.path)
        with self.writing():
            os.rename(artefact.path, draft)
            shutil.rmtree(draft)

    def inputs_of(self, artefact: Artefact) -> list[Artefact]:
        """The artefacts this one was made from, read from files alone."""
        return [self.load(self.root / path) for path in read_manifest(artefact.path)["input_paths"].values()]

    def verify(self, artefact: Artefact) -> list[str]:
        """Names of members whose bytes do not agree with the manifest, or with what a takedown made of them (empty when all do)."""
        wanted = {name: entry["sha256"] for name, entry in read_manifest(artefact.path)["files"].items()}
        wanted |= {name: entry["sha256"] for name, entry in redactions(artefact.path).items()}
        return [name for name, sha256 in wanted.items() if not (artefact.path / name).is_file() or file_sha256(artefact.path / name) != sha256]

    def work_folder(self, asset: str, partition: str | None, identity: str) -> Path:
        """Working folder of a long job: the same identity resumes in the same folder."""
        path = self.folder("work", asset, partition, identity)
        with self.writing():
            path.mkdir(parents=True, exist_ok=True)
        return path

    # -- validated markers and current pointers ----------------------------------------------------------------

    def accept(self, artefact: Artefact, checks: dict[str, Any]) -> None:
        """Mark `artefact` as having passed its blocking checks, then make it current."""
        with self.writing():
            for area in ("validated", f"current/{artefact.asset}"):
                (self.root / area).mkdir(parents=True, exist_ok=True)
            write_atomic(
                self.root / "validated" / f"{artefact.digest}.json",
                json.dumps({"asset": artefact.asset, "partition": artefact.partition, "digest": artefact.digest, "checks": checks}),
            )
            pointer = {"digest": artefact.digest, "path": str(artefact.path.relative_to(self.root))}
            write_atomic(self.root / "current" / artefact.asset / f"{artefact.partition}.json", json.dumps(pointer))

    def is_validated(self, artefact: Artefact) -> bool:
        return (self.root / "validated" / f"{artefact.digest}.json").exists()

    def partitions(self, asset: str) -> list[str]:
        """Partitions of `asset` that have a current artefact, sorted."""
        return sorted(path.stem for path in (self.root / "current" / asset).glob("*.json"))

    def current(self, asset: str, partition: str | None = None) -> Artefact:
        """The current, validated artefact of `asset`; raises `MissingArtefact` with what to materialize."""
        name = partition or NO_PARTITION
        pointer = self.root / "current" / asset / f"{name}.json"
        label = key_of(asset, name)
        if not pointer.exists():
            raise MissingArtefact(
                f"{label} has not been made yet", expected="a validated artefact", found="none",
                remedy=f"materialize {label} first (its checks must pass)",
            )  # fmt: skip
        artefact = self.load(self.root / json.loads(pointer.read_text())["path"])
        if not self.is_validated(artefact):
            raise MissingArtefact(
                f"{label} {artefact.digest} has not passed its checks", expected="a validated marker", found="none",
                remedy=f"materialize {label} again and look at its checks",
            )  # fmt: skip
        return artefact

    def latest(self, asset: str) -> Artefact | None:
        """The current artefact of an asset without partitions, or None before there is one."""
        try:
            return self.current(asset)
        except MissingArtefact:
            return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What seals an artefact's folder. Raises `FileNotFoundError` when nothing does, `StoreError` when it is damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        missing = sorted(SEALED - manifest.keys())
    except (ValueError, AttributeError) as error:
        missing = [repr(error)]
    if missing:
        raise StoreError(
            f"{folder / MANIFEST} is damaged", expected=f"JSON with {', '.join(sorted(SEALED))}", found=f"no {', '.join(missing)}" if missing[0] in SEALED else missing[0],
            remedy=f"restore that file, or delete {folder} and make it again; `tubelet scrub` names all that is damaged",
        )  # fmt: skip
    return manifest


def redactions(folder: Path) -> dict[str, dict[str, Any]]:
    """{tar: {"sha256", "clips", "takedown"}} of an artefact's tars whose bytes of taken clips were overwritten; {} mostly.

    The manifest keeps the digests of before. No `sha256` (None) means that the overwriting was interrupted: the same
    takedown with --compact finishes it.
    """
    try:
        noted: dict[str, dict[str, Any]] = json.loads((folder / REDACTIONS).read_text())
        whole = all(entry.keys() >= {"sha256", "clips", "takedown"} for entry in noted.values())
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError):
        whole = False
    if not whole:
        raise StoreError(
            f"{folder / REDACTIONS} is damaged", expected="{tar: {sha256, clips, takedown}}", found="something else",
            remedy="run a takedown with --compact again: it tells from the tars what was overwritten",
        )  # fmt: skip
    return noted


@contextlib.contextmanager
def _held_draft(final: Path) -> Iterator[Path]:
    """An empty draft of `final` that is this process's own until the end, when it goes; those of processes that are gone go first.

    The lock on the draft's folder ends with its holder (and the children it forked), so a living writer's draft is left alone.
    """
    for stale in final.parent.glob(f".draft-{final.name}-*"):
        lock = _lock_of(stale, wait=False)
        if lock is not None:
            shutil.rmtree(stale, ignore_errors=True)
            os.close(lock)
    while True:
        draft = _draft_of(final)
        draft.mkdir(parents=True)
        lock = _lock_of(draft)
        if lock is not None and draft.is_dir():  # before it was locked, another process may have taken it for a dead one's
            break
    try:
        yield draft
    except FileNotFoundError as error:
        if draft.exists():
            raise
        raise StoreError(
            f"{final} was removed while it was being made", expected=str(draft), found="nothing there",
            remedy="run again; a takedown with --compact removes unfinished shards that hold what it takes down",
        ) from error  # fmt: skip
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def _lock_of(folder: Path, wait: bool = True) -> int | None:
    """A descriptor that holds the folder alone until it is closed; None when it is gone, or without `wait` when it is held."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        logger.debug("no folder can be locked on the file system of %s: two writers of one artefact are not kept apart", folder)
    return descriptor


def _draft_of(final: Path) -> Path:
    """A free name beside an artefact's folder, under which `produce` finds and removes what a kill left."""
    return final.with_name(f".draft-{final.name}-{uuid.uuid4().hex[:8]}")


def local_folder(root: str | Path) -> Path:
    """`root` as an absolute path; raises `StoreError` for a URL of another machine."""
    text = re.sub(r"^file:/+", "/", str(root))
    # One slash is enough: a URL that has been a Path has lost the other.
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/", text)
    if scheme:
        raise StoreError(
            f"store {text} is not on this machine", expected="a local folder", found=f"{scheme[1]} URL",
            remedy="mount it, or set TUBELET_STORE to a local folder",
        )  # fmt: skip
    return Path(text).expanduser().absolute()


def _version_in(marker: Path) -> Any:
    try:
        return json.loads(marker.read_text())["version"]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{marker} is damaged", expected=json.dumps({"version": STORE_VERSION}), found=repr(error),
            remedy="if this folder is a store of this version, write the expected text into that file; else set TUBELET_STORE to another folder",
        ) from error  # fmt: skip


def disk_error(error: BaseException, root: Path) -> StoreError | None:
    """What to tell a person when `error`, or what it was raised from, is a full or read-only disk; None when it is not.

    Databases and file formats have errors of their own for it, so their words count too.
    """
    cause: BaseException | None = error
    while cause is not None:
        number, words = getattr(cause, "errno", None), str(cause).lower()
        full = number in (errno.ENOSPC, errno.EDQUOT) or any(said in words for said in FULL_WORDS)
        # SQLite's word when not even its index of the log has room.
        if full or ("disk i/o error" in words and shutil.disk_usage(root).free < NO_ROOM_BYTES):
            return StoreError(
                f"the disk under {root} is full", expected="free space", found=str(cause).splitlines()[0],
                remedy="free some space and run again; what was finished is kept",
            )  # fmt: skip
        denied = number in (errno.EACCES, errno.EPERM) and _touches(getattr(cause, "filename", None), root)
        if denied or number == errno.EROFS or any(said in words for said in DENIED_WORDS):
            return StoreError(
                f"the store {root} cannot be written", expected="a writable folder", found=str(cause).splitlines()[0],
                remedy="mend its permissions, or set TUBELET_STORE to a writable folder",
            )  # fmt: skip
        cause = cause.__cause__
    return None


def _touches(name: Any, root: Path) -> bool:
    """Whether a path from an error lies in `root`, or on the way to it."""
    return isinstance(name, str) and (Path(name).is_relative_to(root) or root.is_relative_to(name))


def make_folder(folder: Path) -> Path:
    """A folder that a person has named to be written into, made where it is not there; `InputError` when it cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} cannot be written into", expected="a folder, or a place for one", found=str(error), remedy="name another place") from error
    return folder


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that readers see the old file or the new one, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    with open(temporary, "w") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
