"""Ranged reads from a folder of shards, on a local disk or any store that fsspec knows, with patience and within bounds."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipelines.errors import InputError, StoreError

logger = logging.getLogger("tubelet.shards")

K = TypeVar("K")
V = TypeVar("V")
T = TypeVar("T")

OPEN_FILES = 32  # a source: ten sources stay far below what a process may hold
WHOLE_FILE = 20  # times the patience of a ranged read: an index is larger than a clip


class ShardError(StoreError):
    """A shard or its index does not hold what it must."""


@dataclass(frozen=True)
class Patience:
    """How often a remote read is tried, how long one try may take (s), and the pause before the second (s; doubled each time)."""

    attempts: int = 5
    timeout_s: float = 30.0
    pause_s: float = 0.1


class Storage(Protocol):
    """A folder of files that do not change. `remote`: a read may take long, so many at once pay."""

    remote: bool

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Up to `length` bytes (fewer at the file's end); raises `FileNotFoundError`, or `ShardError` when patience ends."""

    def whole(self, name: str, use: Callable[[BinaryIO], T]) -> T:
        """What `use` makes of a file that is opened for it, perhaps several times; raises as `read` does."""

    def exists(self, name: str) -> bool: ...

    def close(self) -> None: ...


def open_storage(folder: str | Path, patience: Patience | None = None) -> Storage:
    """Local folders are read with `pread`; any other URL through its fsspec file system."""
    try:
        system, root = fsspec.core.url_to_fs(str(folder))
    except (ValueError, ImportError) as error:  # an unknown protocol, or one whose package is not installed
        raise InputError(
            f"there is no way to read {folder}", expected="a local folder, or a URL that fsspec knows", found=str(error),
            remedy="mend the URL, or install the fsspec package of that store (s3fs for s3://, gcsfs for gs://)",
        ) from error  # fmt: skip
    return LocalStorage(Path(root)) if isinstance(system, LocalFileSystem) else RemoteStorage(system, root, patience or Patience())


class _Opened:
    """A descriptor that is closed with the last reader's hold on it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class LocalStorage:
    """The files read last stay open, a few of them: a process may hold a thousand, and a set can have more shards. Safe to share
    between threads."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, offset: int, length: int) -> bytes:
        with self._lock:
            opened = self._open.get(name)
        opened = opened or _Opened(self.root / name)
        with self._lock:
            self._open[name] = opened
            self._open.move_to_end(name)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)
        return os.pread(opened.number, length, offset)

    def whole(self, name: str, use: Callable[[BinaryIO], T]) -> T:
        with open(self.root / name, "rb") as handle:
            return use(handle)

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def close(self) -> None:
        """A later read opens the files again."""
        with self._lock:
            self._open.clear()


class RemoteStorage:
    """An fsspec file system. What fails or stalls is tried again; each try has a thread of its own, which a stalled one keeps:
    what hangs in the store's client cannot be stopped from outside."""

    remote = True

    def __init__(self, system: Any, root: str, patience: Patience) -> None:
        self.system, self.root, self.patience = system, root.rstrip("/"), patience

    def read(self, name: str, offset: int, length: int) -> bytes:
        path = f"{self.root}/{name}"
        return self._try(f"{path} at byte {offset}", lambda: bytes(self.system.cat_file(path, start=offset, end=offset + length)), self.patience.timeout_s)

    def whole(self, name: str, use: Callable[[BinaryIO], T]) -> T:
        def read() -> T:
            with self.system.open(f"{self.root}/{name}", "rb") as handle:
                return use(handle)

        return self._try(f"{self.root}/{name}", read, WHOLE_FILE * self.patience.timeout_s)

    def exists(self, name: str) -> bool:
        return self._try(f"{self.root}/{name}", lambda: bool(self.system.exists(f"{self.root}/{name}")), self.patience.timeout_s)

    def close(self) -> None:
        """Nothing is held."""

    def _try(self, what: str, action: Callable[[], T], timeout_s: float) -> T:
        problem = ""
        for attempt in range(1, self.patience.attempts + 1):
            try:
                return _within(timeout_s, action)
            except (FileNotFoundError, StoreError):
                raise
            except Exception as error:  # every client has errors of its own
                problem = f"{type(error).__name__}: {error}"
                logger.warning("try %d of %d to read %s failed: %s", attempt, self.patience.attempts, what, problem)
            if attempt < self.patience.attempts:
                time.sleep(self.patience.pause_s * 2 ** (attempt - 1))
        raise ShardError(
            f"{what} cannot be read", expected=f"an answer within {self.patience.attempts} tries", found=problem,
            remedy="see that the store answers, then run again: what was finished is kept",
        )  # fmt: skip


def _within(timeout_s: float, action: Callable[[], T]) -> T:
    """The action's result, or error, or `TimeoutError`; its thread does not keep the program from ending."""
    results: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((action(), None))
        except BaseException as error:
            results.put((None, error))

    threading.Thread(target=run, name="remote-read", daemon=True).start()
    try:
        value, error = results.get(timeout=timeout_s)
    except queue.Empty:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    if error is not None:
        raise error
    return cast(T, value)


class BoundedCache(Generic[K, V]):
    """Least recently used out first, at most `max_bytes` in all (a value larger than that is not kept). Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.nbytes = max_bytes, 0
        self._values: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        with self._lock:
            if key in self._values or nbytes > self.max_bytes:
                return
            self._values[key] = value, nbytes
            self.nbytes += nbytes
            while self.nbytes > self.max_bytes:
                self.nbytes -= self._values.popitem(last=False)[1][1]
