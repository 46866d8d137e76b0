"""The clips of one phase as the training loop asks for them, with everything the lineage must know noted as it happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from pipelines.pretraining.exclusions import Takedowns
from pipelines.shards import exposure_log
from pipelines.shards.exposure_log import whole_lines
from pipelines.shards.loader import Batch, ClipLoader
from pipelines.store import write_atomic


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
