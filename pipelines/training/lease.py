"""Who works in a folder: a lock that only one writer can hold, and a lease that tells who it is and since when."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipelines.errors import InputError, TrainingError
from pipelines.store import write_atomic

LEASE = "lease.json"
LOCK = "lock"
WRITER = "writer.lock"
FOREIGN_STALE_S = 120.0
"""A lease of another machine counts as living while its heartbeat is younger than this (s)."""


@dataclass(frozen=True)
class Lease:
    """`started` and `heartbeat` are seconds since 1970; `pid_started` is the process's start in clock ticks since boot."""

    folder: str
    host: str
    pid: int
    pid_started: int
    run_id: str
    started: float
    heartbeat: float

    def alive(self) -> bool:
        """Whether the holder still exists: the same process, not merely the same number."""
        if self.host != socket.gethostname():
            return time.time() - self.heartbeat < FOREIGN_STALE_S
        return process_started(self.pid) == self.pid_started

    def describe(self) -> str:
        age = time.time() - self.heartbeat
        return f"process {self.pid} on {self.host}, run {self.run_id or 'without id'}, last heard of {age:.0f} s ago"


def process_started(pid: int) -> int | None:
    """Start of process `pid` in clock ticks since boot, None when there is none (or it is a zombie)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else int(fields[19])


def read_lease(folder: Path) -> Lease | None:
    """The lease in `folder`, None when there is none; raises `TrainingError` when it cannot be read."""
    path = folder / LEASE
    try:
        return Lease(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise TrainingError(
            f"{path} cannot be read", expected="a lease", found=str(error), remedy="delete it when no training runs there"
        ) from error


def reconcile(store_root: Path) -> list[Lease]:
    """Leases of trainings whose holder is gone, under `store_root`/work; `clear` takes one away when it has been dealt with."""
    found = (read_lease(path.parent) for path in sorted(Path(store_root).glob(f"work/**/{LEASE}")))
    return [lease for lease in found if lease is not None and not lease.alive()]


def clear(lease: Lease) -> None:
    """Remove a lease unless somebody has taken the folder since."""
    if read_lease(Path(lease.folder)) == lease:
        (Path(lease.folder) / LEASE).unlink(missing_ok=True)


class HeldFolder:
    """A folder that this process holds: `descriptor` is the open lock, `beat` renews the lease."""

    def __init__(self, folder: Path, descriptor: int, run_id: str) -> None:
        self.descriptor = descriptor
        now = time.time()
        self._folder, self._last = folder, 0.0
        self._lease = Lease(str(folder), socket.gethostname(), os.getpid(), process_started(os.getpid()) or 0, run_id, now, now)

    def beat(self, every_s: float = 5.0) -> None:
        if time.monotonic() - self._last >= every_s:
            self._last = time.monotonic()
            self._lease = replace(self._lease, heartbeat=time.time())
            write_atomic(self._folder / LEASE, json.dumps(asdict(self._lease)))


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Be the one training that writes to `folder`, also where nobody holds it because it was started by hand. Raises `InputError`."""
    descriptor = os.open(folder / WRITER, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise InputError(f"a training writes to {folder} already", expected="one writer", found="a locked folder", remedy="wait for it, or stop it") from error
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def hold(folder: Path, run_id: str, wait_s: float) -> Iterator[HeldFolder]:
    """Take `folder` for one writer.

    When the lock is taken by the remains of a dead holder (they may still write their last checkpoint), waits up to
    `wait_s`; raises `InputError` at once when the holder lives.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                holder = read_lease(folder)
                # Its processes outlive a killed holder by their grace; a lock without a lease is just being taken or given back.
                if time.monotonic() > deadline or (holder is not None and holder.alive()):
                    raise InputError(
                        f"a training runs in {folder} already", expected="one writer",
                        found=holder.describe() if holder else "a locked folder",
                        remedy="wait for it, or stop it, then run again",
                    ) from error  # fmt: skip
                time.sleep(0.2)
        held = HeldFolder(folder, descriptor, run_id)
        held.beat()
        try:
            yield held
        finally:
            (folder / LEASE).unlink(missing_ok=True)
    finally:
        os.close(descriptor)
