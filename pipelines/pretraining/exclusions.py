"""Takedowns while a phase trains: seen by one rank, obeyed by all from the same step on, and on the disk before that."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from pipelines.errors import TrainingError
from pipelines.identity import stable_seed
from pipelines.shards.loader import ClipLoader
from pipelines.store import write_atomic
from pipelines.tombstones import read_tombstones, takedown_names
from pipelines.training.engine import Engine

logger = logging.getLogger("tubelet.pretraining")

FILE = "exclusions.json"
PATIENCE_S = 30.0  # for a shared file system to show a file that another machine has written


class Takedowns:
    """What was taken down and from which step on, as [step, names of all takedowns in force] in the work folder."""

    def __init__(self, engine: Engine, loader: ClipLoader, store: Path, work_folder: Path) -> None:
        self.engine, self.loader, self.store, self.path = engine, loader, store, work_folder / FILE
        self.history: list[tuple[int, list[str]]] = []

    @property
    def in_force(self) -> tuple[str, ...]:
        return tuple(self.history[-1][1]) if self.history else ()

    def begin(self, start: int) -> None:
        """Obey what was obeyed before `start`, and from there on what has come since. All ranks take part."""
        if self.engine.rank == 0:
            self.history = [entry for entry in read_exclusions(self.path.parent) if entry[0] <= start]
        self._agree(start)

    def changed(self) -> bool:
        """Whether there is a takedown that is not obeyed yet; only rank 0 looks."""
        return self.engine.rank == 0 and takedown_names(self.store) != self.in_force

    def obey(self, step: int) -> None:
        """From `step` on, show nothing that is taken down now. All ranks take part."""
        self._agree(step)

    def _agree(self, step: int) -> None:
        if self.engine.rank == 0 and self.changed():
            self.history = [entry for entry in self.history if entry[0] < step] + [(step, list(takedown_names(self.store)))]
        if self.engine.rank == 0 and (self.history or self.path.is_file()):
            write_atomic(self.path, json.dumps(self.history))
        # By its content: a file that another machine has replaced can be seen as it was before, with as many entries.
        wanted = self.engine.from_first(_number(self.history))
        deadline = time.monotonic() + PATIENCE_S
        while self.engine.rank and _number(self.history) != wanted:
            self.history = read_exclusions(self.path.parent)
            if _number(self.history) != wanted:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        "the ranks do not see the same takedowns", expected=f"{self.path} as rank 0 has written it",
                        found=f"{len(self.history)} other entries", remedy="put the store on a file system that all machines share",
                    )  # fmt: skip
                time.sleep(0.1)
        for first, names in self.history:
            shares = self.loader.exclude(read_tombstones(self.store, names), first)
            if first == step and self.engine.rank == 0:
                logger.warning("from step %d on, %.2f %% of the weight is taken down and shared out among the rest", step, 100 * shares.unserved)


def _number(history: list[tuple[int, list[str]]]) -> int:
    """A number that tells a history from others; 0 for an empty one."""
    return stable_seed(json.dumps(history)) if history else 0


def read_exclusions(folder: Path) -> list[tuple[int, list[str]]]:
    """(first step, names of all takedowns in force from it on), ascending, of a work folder."""
    path = folder / FILE
    return [(int(step), list(names)) for step, names in json.loads(path.read_text())] if path.is_file() else []
