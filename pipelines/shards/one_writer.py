"""One writer a folder: a lock that the system takes back when its holder dies, and a note of who holds it."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.shards.storage import ShardError

LOCK = "writer.lock"


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Hold `folder` alone; raises `ShardError` at once, with the holder and since when, when somebody else does.

    Not the lease of a training: that one waits for a holder's remains, and `reconcile` deals with those it finds.
    """
    descriptor = _locked(folder / LOCK)
    try:
        os.ftruncate(descriptor, 0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename} since {since}".encode())
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder's work folder goes when its artefact is there: a lock on a removed file keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except BlockingIOError as error:
            holder = os.read(descriptor, 200).decode(errors="replace") or "a process that has just begun"
            os.close(descriptor)
            raise ShardError(
                f"these shards are being written already in {path.parent}", expected="one writer", found=holder,
                remedy="wait for it, or stop it, then run again: finished shards are kept",
            ) from error  # fmt: skip
        os.close(descriptor)
