"""Samples that were served by a stand-in because their clip did not decode: noted as they happen, for the lineage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pipelines.shards.loader import Batch, ClipLoader


def noting(loader: ClipLoader, folder: Path, start: int, stop: int) -> Iterator[Batch]:
    """The loader's batches of steps `start` to `stop`; new stand-ins are on the disk before their batch is handed out.

    Each rank writes a file of its own, so neither a restart nor another number of ranks loses one.
    """
    noted: set[int] = set()
    for batch in loader.batches(start, stop):
        if len(loader.replacements) > len(noted):
            fresh = [item for item in list(loader.replacements.values()) if item.global_sample not in noted]
            with open(folder / f"stand-ins-{loader.rank}.jsonl", "a") as handle:
                handle.writelines(json.dumps([item.global_sample, item.salt]) + "\n" for item in fresh)
            noted.update(item.global_sample for item in fresh)
        yield batch


def stand_ins(folder: Path, samples: int) -> list[tuple[int, int]]:
    """(global sample, salt) of every stand-in among the first `samples` global samples, ascending."""
    found = {}
    for path in sorted(folder.glob("stand-ins-*.jsonl")):
        found.update(dict(json.loads(line) for line in path.read_text().splitlines()))
    return sorted((sample, salt) for sample, salt in found.items() if sample < samples)
