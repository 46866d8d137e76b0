"""A process that loads batches and writes down what each showed, to be killed: `loader_runner.py SHARDS OUT STEPS [WORKERS]`.

It goes on after the last step that is whole on the disk, as a training goes on after its newest checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines.shards.exposure_log import rows_of
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.loader import ClipLoader, Reading
from pipelines.shards.mixture import WHOLE, open_mixture

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24, static_share=0.25)


def finished(out: Path) -> list[str]:
    """Whole lines: one a step."""
    text = out.read_text() if out.is_file() else ""
    return text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]


def main(shards: Path, out: Path, steps: int, workers: int) -> None:
    lines = finished(out)
    out.write_text("".join(line + "\n" for line in lines))
    loader = ClipLoader(
        open_mixture(WHOLE, shards), GEOMETRY, seed=3, phase="p", global_batch=8, reading=Reading(workers=workers, cache_bytes=0)
    )  # fmt: skip
    with open(out, "a") as handle:
        for batch in loader.batches(len(lines), steps):
            handle.write(json.dumps([rows_of(batch), batch.times_s.tolist(), int(batch.video.long().sum())]) + "\n")
            handle.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
