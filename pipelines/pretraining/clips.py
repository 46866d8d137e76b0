"""The clips of one phase as the training loop asks for them, with everything the lineage must know noted as it happens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.pretraining.exclusions import Takedowns
from pipelines.shards import exposure_log
from pipelines.shards.loader import Batch, ClipLoader


class Clips:
    """The loader's batches; what was taken down is left out from the next step on.

    Samples that were served by a stand-in, and (`logs`) what every sample showed, are on the disk before their batch is
    handed out. Each rank writes files of its own, so neither a restart nor another number of ranks loses one.
    """

    def __init__(self, loader: ClipLoader, takedowns: Takedowns, folder: Path, logs: bool) -> None:
        self.loader, self.takedowns, self.folder, self.logs = loader, takedowns, folder, logs

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        # What was read again before this (for health) was noted when it was trained on.
        noted = set(self.loader.replacements)
        for batch in self.loader.batches(start, stop):
            if len(self.loader.replacements) > len(noted):
                fresh = [item for item in list(self.loader.replacements.values()) if item.global_sample not in noted]
                with open(self.folder / f"stand-ins-{self.loader.rank}.jsonl", "a") as handle:
                    handle.writelines(json.dumps([item.global_sample, item.salt]) + "\n" for item in fresh)
                noted.update(item.global_sample for item in fresh)
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
        found.update(dict(json.loads(line) for line in path.read_text().splitlines()))
    return sorted((sample, salt) for sample, salt in found.items() if sample < samples)
