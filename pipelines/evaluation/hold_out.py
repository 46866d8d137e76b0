"""Some of a person's own videos kept out of training, so that an adapted encoder is judged on what it has not seen.

They are a target set without labels: curation keeps evaluation footage, and what looks like it, out of the pool by itself.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import yaml

from pipelines.errors import InputError
from pipelines.identity import digest_of
from pipelines.sources import kinds
from pipelines.sources.manifest import is_missing, read_rows
from pipelines.store import make_folder, write_atomic
from pipelines.video.probe import PROBE, probe_files
from pipelines.video.workers import Crew

NAME = "held-out"
SHARE = 0.1
FEWEST, MOST = 4, 256
TRAIN = 2
"""A target set has training files too; these take no part in anything, as the selection is a balanced one."""
LIST = "held-out.csv"


def hold_out(
    folder: Path, videos: Path, *, kind: str | None = None, root: Path | None = None, progress: Callable[..., None] | None = None
) -> Path:
    """Write a targets file into `folder` that holds out a tenth of the videos of a source, 4 at least and 256 at most; returns its path.

    Those whose names have the smallest digests, as far as they decode. What was held out once stays so while it is there, so that
    adding videos changes nothing. Raises `InputError` when too few decode to hold some out.
    """
    files = [file for file in kinds.describe_source(videos, kind, root).files if not file.problem and not is_missing(file)]
    there = {file.path for file in files}
    targets = folder / "targets.yaml"
    if targets.is_file() and (folder / LIST).is_file() and {row["path"] for row in read_rows(folder / LIST, ("path", "label", "split"))[1]} <= there:
        return targets
    wanted = min(MOST, max(FEWEST, math.ceil(SHARE * len(files)))) + TRAIN
    chosen: list[str] = []
    with Crew(PROBE, 2) as crew:
        for path in sorted(there, key=lambda path: digest_of(["hold out", Path(path).name, path])):
            if len(chosen) < wanted and probe_files([path], batch="", source="", crew=crew).videos:
                chosen.append(path)
                if progress is not None:
                    progress(len(chosen), wanted, Path(path).name)
    if len(chosen) < wanted or 2 * wanted > len(files):
        raise InputError(
            f"{videos} has too few videos to hold some out and train on the rest", expected=f"at least {2 * wanted} videos that decode, to hold out {wanted}",
            found=f"{len(files)} files, of which {len(chosen)} were found to decode", remedy="add videos, or name target sets to judge by: --targets TARGETS",
        )  # fmt: skip
    make_folder(folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "split"))
    writer.writerows((path, "", "train" if number < TRAIN else "eval") for number, path in enumerate(chosen))
    write_atomic(folder / LIST, text.getvalue())
    write_atomic(targets, yaml.safe_dump({"sets": {NAME: {"kind": "manifest", "path": LIST}}}))
    return targets
