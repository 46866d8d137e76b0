"""Linear probes on the labelled target sets: classes that only motion tells apart (push left or right, lift or lower)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.evaluation.ridge import choose_ridge
from pipelines.schemas import CLIPS, read_table
from pipelines.video.decode import frames_at

logger = logging.getLogger("tubelet.evaluation")

MOST_TRAIN, MOST_EVAL = 10_000, 5_000
"""Clips of a set's splits at most: a set of 200,000 would be decoded for a day. 5,000 leave plus and minus 1.4 points at the widest."""
_BATCH = 64


@dataclass(frozen=True, eq=False)
class TargetSet:
    """labels (n,) class indices, train (n,) bool, the rest is its evaluation split; videos (n,) whose the clips are. `rows` of the clips,
    which lie in `folder`, are decoded to `frames` evenly spaced frames of `size` (height, width)."""

    name: str
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    train: NDArray[np.bool_]
    videos: NDArray[np.str_]
    rows: list[dict[str, Any]]
    folder: Path
    frames: int
    size: tuple[int, int]

    def batches(self) -> Iterator[NDArray[np.uint8]]:
        """The clips (b, T, h, w, 3) uint8 in order, a few at once: a large set does not fit into memory."""
        with ThreadPoolExecutor(2) as pool:  # the decoder leaves Python's lock
            for first in range(0, len(self.rows), _BATCH):
                yield np.stack(list(pool.map(self._decoded, self.rows[first : first + _BATCH])))

    def _decoded(self, row: dict[str, Any]) -> NDArray[np.uint8]:
        length, path = (row["end_pts"] - row["start_pts"]) / row["frames"], Path(row["path"])
        numbers = np.linspace(0, row["frames"] - 1, self.frames).round()
        wanted = [row["start_pts"] + int((number + 0.5) * length) for number in numbers]  # in the middle of a frame's time
        return np.stack(frames_at(path if path.is_absolute() else self.folder / path, wanted, size=self.size))


def read_target_sets(folder: Path, frames: int, size: tuple[int, int]) -> Iterator[TargetSet]:
    """The labelled sets of a `target_videos` artefact, one after another, `frames` evenly spaced frames of each clip, resized to `size`.

    A set is left out when it has no labels, fewer than two classes, or one empty split. Of a larger split than is read, the clips with the
    smallest ids are taken, which are digests; that is told.
    """
    by_set: dict[str, dict[bool, list[dict[str, Any]]]] = {}
    for row in sorted(read_table(folder / "clips.parquet", CLIPS).to_pylist(), key=lambda row: str(row["clip_id"])):
        if row["label"]:
            name, split = row["source"].rsplit("/", 1)
            by_set.setdefault(name, {True: [], False: []})[split == "train"].append(row)
    for name, splits in sorted(by_set.items()):
        classes = tuple(sorted({row["label"] for members in splits.values() for row in members}))
        if len(classes) < 2 or not all(splits.values()):
            continue
        for members, most, word in ((splits[True], MOST_TRAIN, "training"), (splits[False], MOST_EVAL, "evaluation")):
            if len(members) > most:
                logger.warning("target set %s: %d of its %d %s clips are read", name, most, len(members), word)
        train, judged = splits[True][:MOST_TRAIN], splits[False][:MOST_EVAL]
        rows = sorted([*train, *judged], key=lambda row: str(row["clip_id"]))
        fits = {id(row) for row in train}
        yield TargetSet(
            name, classes, np.array([classes.index(row["label"]) for row in rows]), np.array([id(row) in fits for row in rows]),
            np.array([row["video_id"] for row in rows]), rows, folder, frames, size,
        )  # fmt: skip


def linear_correct(features: NDArray[np.float64], target: TargetSet, seed: int) -> NDArray[np.bool_]:
    """Whether each evaluation clip is classified right by a ridge classifier fitted on the training split."""
    one_hot = np.eye(len(target.classes))[target.labels]
    rows = np.flatnonzero(target.train)
    ridge = choose_ridge(features[rows], one_hot[rows], target.videos[rows], seed)
    return ridge.predict(features[~target.train]).argmax(1) == target.labels[~target.train]
