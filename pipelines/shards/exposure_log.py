"""What batches really showed, sample by sample, as it happens: on the disk before the batch is handed out.

The lines of a rank are appended to a file of its own; a kill can break off the last line only, of a step that is done
again: `mend` it before more is appended. At the end they become one table, in which what was written last counts for a sample.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import schemas
from pipelines.shards.loader import Batch

LOG_FILE = "exposure_log.parquet"
BLOCK = 2**16  # bytes read at a time in search of the last whole line


def rows_of(batch: Batch) -> list[dict[str, Any]]:
    """Rows of the EXPOSURE_LOG table of one rank's batch."""
    return [
        {
            "step": batch.step, "global_sample": int(sample), "salt": shown.salt, "shards": shown.shards, "clip_id": shown.clip_id,
            "sha256": shown.sha256, "time_base_num": shown.time_base.numerator, "time_base_den": shown.time_base.denominator,
            "pts": shown.pts.tolist(), "top": int(box[0]), "left": int(box[1]), "height": int(box[2]), "width": int(box[3]), "flip": bool(flip),
        }
        for sample, shown, box, flip in zip(batch.global_indices, batch.shown, batch.boxes, batch.flips, strict=True)
    ]  # fmt: skip


def append(folder: Path, rank: int, batch: Batch) -> None:
    """Add a batch's rows to the rank's lines in `folder`."""
    with open(folder / f"exposures-{rank}.jsonl", "a") as handle:
        handle.write(json.dumps([time.time_ns(), rows_of(batch)]) + "\n")
        handle.flush()
        os.fsync(handle.fileno())  # a checkpoint that outlives a power cut must not outlive what it has seen


def mend(folder: Path, rank: int) -> None:
    """Take away the last line of a rank's file where a kill broke it off."""
    path = folder / f"exposures-{rank}.jsonl"
    if path.is_file():
        with open(path, "r+b") as handle:
            end, newline = handle.seek(0, os.SEEK_END), -1
            while end and newline < 0:
                begin = max(0, end - BLOCK)
                handle.seek(begin)
                newline = handle.read(end - begin).rfind(b"\n")
                end = begin + newline + 1
            handle.truncate(end)


def collect(folder: Path, samples: int) -> pa.Table:
    """The lines of all ranks as one table over the first `samples` global samples, in their order."""
    found: dict[int, dict[str, Any]] = {}
    for _, rows in sorted(_lines(folder.glob("exposures-*.jsonl")), key=lambda line: line[0]):
        found.update({row["global_sample"]: row for row in rows if row["global_sample"] < samples})
    return schemas.table_of(schemas.EXPOSURE_LOG, [found[sample] for sample in sorted(found)])


def _lines(paths: Iterable[Path]) -> list[tuple[int, list[dict[str, Any]]]]:
    lines = []
    for path in paths:
        lines += [(moment, rows) for moment, rows in map(json.loads, whole_lines(path))]
    return lines


def whole_lines(path: Path) -> list[str]:
    """The lines of a text file, without a last one that was broken off."""
    return path.read_text().split("\n")[:-1]
