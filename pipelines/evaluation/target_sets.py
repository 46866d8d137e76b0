"""Linear probes on the labelled target sets: classes that only motion tells apart (push left or right, lift or lower)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.evaluation.ridge import choose_ridge
from pipelines.schemas import CLIPS, read_table
from pipelines.video.decode import decode_span


@dataclass(frozen=True, eq=False)
class TargetSet:
    """clips (n, T, h, w, 3) uint8, labels (n,) class indices, train (n,) bool, the rest is its evaluation split; videos (n,) whose
    they are."""

    name: str
    classes: tuple[str, ...]
    clips: NDArray[np.uint8]
    labels: NDArray[np.int64]
    train: NDArray[np.bool_]
    videos: NDArray[np.str_]


def read_target_sets(
    folder: Path, frames: int, size: tuple[int, int], progress: Callable[..., None] | None = None
) -> Iterator[TargetSet]:
    """The labelled sets of a `target_videos` artefact, one after another, `frames` evenly spaced frames of each clip, resized to `size`.

    A set is left out when it has no labels, fewer than two classes, or one empty split.
    """
    rows = [row for row in read_table(folder / "clips.parquet", CLIPS).to_pylist() if row["label"]]
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: str(row["clip_id"])):
        by_set.setdefault(row["source"].rsplit("/", 1)[0], []).append(row)
    with ThreadPoolExecutor(2) as pool:  # the decoder leaves Python's lock
        for done, (name, members) in enumerate(sorted(by_set.items()), start=1):
            train = np.array([row["source"].rsplit("/", 1)[-1] == "train" for row in members])
            classes = tuple(sorted({row["label"] for row in members}))
            if len(classes) < 2 or train.all() or not train.any():
                continue
            clips = list(pool.map(lambda row: _frames(folder, row, frames, size), members))
            labels = np.array([classes.index(row["label"]) for row in members])
            yield TargetSet(name, classes, np.stack(clips), labels, train, np.array([row["video_id"] for row in members]))
            if progress is not None:
                progress(done, len(by_set))


def _frames(folder: Path, row: dict[str, Any], count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    path = Path(row["path"])
    decoded, _ = decode_span(
        path if path.is_absolute() else folder / path, row["start_pts"], row["end_pts"],
        (row["time_base_num"], row["time_base_den"]), size=size,
    )  # fmt: skip
    if not len(decoded):
        raise InputError(f"target clip {row['clip_id']} has no frames", expected="at least one", found=str(path))
    return decoded[np.linspace(0, len(decoded) - 1, count).round().astype(int)]


def linear_correct(features: NDArray[np.float64], target: TargetSet, seed: int) -> NDArray[np.bool_]:
    """Whether each evaluation clip is classified right by a ridge classifier fitted on the training split."""
    one_hot = np.eye(len(target.classes))[target.labels]
    rows = np.flatnonzero(target.train)
    ridge = choose_ridge(features[rows], one_hot[rows], np.arange(len(rows)), seed)
    return ridge.predict(features[~target.train]).argmax(1) == target.labels[~target.train]
