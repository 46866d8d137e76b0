"""The clips of one phase as the training loop asks for them, with everything the lineage must know noted as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipelines.pretraining.exclusions import Takedowns
from pipelines.shards import exposure_log
from pipelines.shards.exposure_log import whole_lines
from pipelines.shards.loader import Batch, ClipLoader
from pipelines.store import write_atomic

REFUSED = "refused.json"
"""What a training stopped on: `samples` (global) and their `clips`."""
ASIDE = "set-aside.json"
"""[first step, clips] of what stand-ins are shown for, because a person said so after a stop."""


class Clips:
    """The loader's batches; what was taken down is left out from the next step on.

    Samples that were served by a stand-in, and (`logs`) what every sample showed, are on the disk before their batch is
    handed out. Each rank writes files of its own, so neither a restart nor another number of ranks loses one.
    """

    def __init__(self, loader: ClipLoader, takedowns: Takedowns, folder: Path, logs: bool) -> None:
        self.loader, self.takedowns, self.folder, self.logs = loader, takedowns, folder, logs

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        if self.logs:
            exposure_log.mend(self.folder, self.loader.rank)
        for batch in self.loader.batches(start, stop):
            if batch.replaced:
                with open(self.folder / f"stand-ins-{self.loader.rank}.jsonl", "a") as handle:
                    handle.writelines(json.dumps([item.global_sample, item.salt]) + "\n" for item in batch.replaced)
                    handle.flush()
                    os.fsync(handle.fileno())  # few, and a checkpoint that outlives a power cut must not outlive them
            if self.logs:
                exposure_log.append(self.folder, self.loader.rank, batch)
            yield batch

    def changed(self) -> bool:
        return self.takedowns.changed()

    def obey(self, step: int) -> None:
        self.takedowns.obey(step)

    def accuse(self, batches: Sequence[tuple[int, Sequence[int]]]) -> list[str]:
        """Leave the samples of these (step, ranks), and their clips, in refused.json; returns the clips."""
        loader = self.loader
        firsts = [step * loader.global_batch + rank * loader.share for step, ranks in batches for rank in ranks]
        samples = [sample for first in firsts for sample in range(first, first + loader.share)]
        clips = loader.clips_of(samples, dict(stand_ins(self.folder, max(samples) + 1)))
        if loader.rank == 0:
            write_atomic(self.folder / REFUSED, json.dumps({"samples": samples, "clips": clips}))
        return list(dict.fromkeys(clips))


def set_aside(folder: Path, loader: ClipLoader, start: int, exclude_refused: bool) -> int:
    """Serve what the training had stopped on by stand-ins, and what was set aside before; returns how many clips. Rank 0 has
    been here alone before the others come, when `exclude_refused` adds the clips of refused.json from step `start` on."""
    aside: list[tuple[int, list[str]]] = _read(folder / ASIDE, [])
    if loader.rank == 0 and exclude_refused and (folder / REFUSED).is_file():
        aside.append((start, sorted(set(_read(folder / REFUSED, {})["clips"]))))
        write_atomic(folder / ASIDE, json.dumps(aside))
        (folder / REFUSED).unlink()
    for step, clips in aside:
        loader.set_aside(clips, step)
    return len({clip for _, clips in aside for clip in clips})


def _read(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text()) if path.is_file() else otherwise


def stand_ins(folder: Path, samples: int) -> list[tuple[int, int]]:
    """(global sample, salt) of every stand-in among the first `samples` global samples, ascending."""
    found = {}
    for path in sorted(folder.glob("stand-ins-*.jsonl")):
        found.update(dict(json.loads(line) for line in whole_lines(path)))
    return sorted((sample, salt) for sample, salt in found.items() if sample < samples)


def cut_stand_ins(folder: Path, samples: int) -> None:
    """Forget the stand-ins of all ranks beyond the first `samples` global samples: those are drawn again, perhaps from other clips."""
    for path in folder.glob("stand-ins-*.jsonl"):
        write_atomic(path, "".join(line + "\n" for line in whole_lines(path) if json.loads(line)[0] < samples))
