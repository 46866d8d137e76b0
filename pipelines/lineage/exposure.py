"""Which clips a training saw, how often and which of their seconds: recomputed from a few integers, never stored sample by sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.shards.geometry import ClipGeometry, Draws, draws
from pipelines.shards.index import ShardIndex

LINEAGE_FILE = "lineage.json"
STRETCH = 65_536  # samples drawn at a time


@dataclass(frozen=True)
class ExposureSpec:
    """All that one training phase's data order depends on; the last of `exposures` in the checkpoint's lineage.json.

    `steps` counts steps done from 0; `geometry` is `ClipGeometry.to_dict()`; `shards_digest` the digest of the
    training_shards artefact; `replaced` lists (global sample, salt) of samples that were served by a stand-in.
    """

    phase: str
    seed: int
    steps: int
    global_batch: int
    geometry: dict[str, Any]
    shards_digest: str = ""
    replaced: list[tuple[int, int]] = field(default_factory=list)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExposureSpec:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            return cls(**known | {"replaced": [(int(sample), int(salt)) for sample, salt in known.get("replaced", [])]})
        except TypeError as error:
            raise StoreError(
                "a lineage file does not say what was drawn", expected=", ".join(cls.__dataclass_fields__), found=", ".join(sorted(values)),
                remedy="make the checkpoint again with this version of Tubelet",
            ) from error  # fmt: skip


def read_spec(folder: Path) -> ExposureSpec | None:
    """The spec of the phase that made a checkpoint; None when the folder holds no training on video clips.

    The list `exposures` in lineage.json holds the earlier phases first; those are told by the artefact's parents.
    """
    path = folder / LINEAGE_FILE
    if not path.is_file():
        return None
    phases = json.loads(path.read_text()).get("exposures")
    return ExposureSpec.from_dict(phases[-1]) if phases else None


@dataclass(frozen=True)
class Exposure:
    """Per row of the shard index: `samples` (n,) int64, `seconds` (n,) float64 shown in all, and `spans`, the distinct
    stretches shown as a list of (k, 2) arrays in s on the clip's own clock (empty where a clip was never drawn)."""

    samples: np.ndarray
    seconds: np.ndarray
    spans: list[np.ndarray]


def expose(index: ShardIndex, spec: ExposureSpec) -> Exposure:
    """Draw the whole phase again. A sample shows the time from its first frame to the end of its last one."""
    geometry = ClipGeometry.from_dict(spec.geometry)
    samples, seconds = np.zeros(len(index), np.int64), np.zeros(len(index))
    starts: list[np.ndarray] = []
    ends: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    for part in _stretches(index, geometry, spec):
        span = part.step_s * (geometry.frames - 1) + 1 / index.frame_rate[part.row]
        samples += np.bincount(part.row, minlength=len(index))
        seconds += np.bincount(part.row, weights=span, minlength=len(index))
        rows.append(part.row)
        starts.append(part.start_s)
        ends.append(part.start_s + span)
    row = np.concatenate([np.zeros(0, np.int64), *rows])
    both = np.stack([np.concatenate([np.zeros(0), *starts]), np.concatenate([np.zeros(0), *ends])], axis=1)
    order = np.argsort(row, kind="stable")
    groups = np.split(both[order], np.searchsorted(row[order], np.arange(1, len(index))))
    return Exposure(samples, seconds, [merge_spans(group) for group in groups])


def _stretches(index: ShardIndex, geometry: ClipGeometry, spec: ExposureSpec) -> Iterator[Draws]:
    total, stand_ins = spec.steps * spec.global_batch, dict(spec.replaced)
    for first in range(0, total, STRETCH):
        part = draws(index, geometry, spec.seed, spec.phase, first, min(STRETCH, total - first))
        for sample in (sample for sample in stand_ins if first <= sample < first + len(part)):
            other, at = draws(index, geometry, spec.seed, spec.phase, sample, 1, stand_ins[sample]), sample - first
            part.row[at], part.start_s[at], part.step_s[at] = other.row[0], other.start_s[0], other.step_s[0]
        yield part


def merge_spans(spans: np.ndarray) -> np.ndarray:
    """Union of half-open spans (k, 2) as disjoint ascending spans."""
    if len(spans) == 0:
        return spans.reshape(0, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    opens = np.concatenate([[True], spans[1:, 0] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.stack([spans[opens, 0], reach[closes]], axis=1)


def exposures(shards_folder: Path, spec: ExposureSpec) -> pa.Table:
    """The EXPOSURES table of one phase: clips that were drawn, by clip_id, with their samples and the seconds shown in all."""
    index = ShardIndex(shards_folder)
    shown = expose(index, spec)
    clip_ids, video_ids = index.column("clip_id"), index.column("video_id")
    rows = [
        {"clip_id": clip_ids[row], "video_id": video_ids[row], "samples": int(shown.samples[row]), "seconds": float(shown.seconds[row])}
        for row in np.flatnonzero(shown.samples)
    ]
    return schemas.table_of(schemas.EXPOSURES, rows)
