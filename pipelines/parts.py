"""Long stages in parts: each part is a folder that is there whole or not at all, so a killed stage goes on where it was.

A stage maps a function over batches of rows. Every batch's result is a part in the stage's work folder, which is named
by what the stage is made from; the next run of the same stage finds the finished parts and makes the missing ones. At
most the batch that was under way is done again. What a part cost is written beside it, so costs survive a kill too.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

NOTE = "part.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A finished part: its folder, what its builder said of it, and what it cost (s; CPU with child processes)."""

    folder: Path
    summary: dict[str, Any]
    wall_s: float
    cpu_s: float
    reused: bool


class Parts:
    """The parts of one stage in one work folder. Use `open_parts`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[Part] = []

    def part(self, name: str, build: Callable[[Path], dict[str, Any] | None]) -> Part:
        """The part `name`: found finished, or built by `build(empty folder)`, whose JSON-able answer is kept as summary.

        A `worker_cpu_s` in it is the CPU time of processes that live on, and is added to the part's own.
        """
        final = self.root / name
        if not (final / NOTE).is_file():
            self._build(final, build)
            found = self._read(final, reused=False)
        else:
            found = self._read(final, reused=True)
        self.made.append(found)
        return found

    def _build(self, final: Path, build: Callable[[Path], dict[str, Any] | None]) -> None:
        draft = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}")
        for stale in final.parent.glob(f".{final.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        draft.mkdir(parents=True)
        started, cpu = time.monotonic(), cpu_seconds()
        try:
            summary = build(draft) or {}
            note = {"summary": summary, "wall_s": time.monotonic() - started, "cpu_s": cpu_seconds() - cpu + summary.get("worker_cpu_s", 0.0)}
            (draft / NOTE).write_text(json.dumps(note))
            for path in draft.iterdir():
                _flush(path)
            os.rename(draft, final)
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @staticmethod
    def _read(folder: Path, reused: bool) -> Part:
        note = json.loads((folder / NOTE).read_text())
        return Part(folder, note["summary"], note["wall_s"], note["cpu_s"], reused)

    def map(
        self,
        name: str,
        items: Sequence[T],
        rows: int,
        build: Callable[[Path, Sequence[T]], dict[str, Any] | None],
        progress: Callable[..., None] | None = None,
    ) -> list[Part]:
        """One part for every `rows` items, in order: `build(folder, batch)` fills the folder of a batch."""
        found = []
        for number, start in enumerate(range(0, len(items), rows)):
            batch = items[start : start + rows]
            found.append(self.part(f"{name}-{number:06d}", lambda folder, batch=batch: build(folder, batch)))  # type: ignore[misc]
            if progress is not None:
                progress(start + len(batch), len(items))
        return found

    def cost(self, items: int, unit: str) -> dict[str, Any]:
        """What the parts so far cost together: {items, unit, wall_s, cpu_s, parts, parts_found}."""
        return {
            "items": items, "unit": unit, "wall_s": sum(part.wall_s for part in self.made), "cpu_s": sum(part.cpu_s for part in self.made),
            "parts": len(self.made), "parts_found": sum(part.reused for part in self.made),
        }  # fmt: skip


@contextlib.contextmanager
def open_parts(work: Path | None) -> Iterator[Parts]:
    """Parts kept in `work` until its owner deletes it; without one, in a temporary folder that goes at the end."""
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield Parts(work)
        return
    with tempfile.TemporaryDirectory(prefix="tubelet-parts-") as folder:
        yield Parts(Path(folder))


def cpu_seconds() -> float:
    """CPU time (user and system, s) of this process, its threads, and the child processes that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def _flush(path: Path) -> None:
    """Bytes on the disk before the rename that makes them count."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
