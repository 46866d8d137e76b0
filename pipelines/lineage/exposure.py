"""Which clips a training saw, how often and which of their seconds: recomputed from a few integers, never stored sample by sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.lineage.spans import merge_by_group
from pipelines.recipes import OWN_SHARDS, MixtureSource
from pipelines.shards.geometry import ClipGeometry, Draws, Sampler
from pipelines.shards.mixture import Mixture
from pipelines.tombstones import read_tombstones

LINEAGE_FILE = "lineage.json"
STRETCH = 65_536  # samples drawn at a time
ORDER = 2
"""Version of the rule by which samples are drawn; a lineage of another one cannot be recomputed."""


@dataclass(frozen=True)
class ExposureSpec:
    """All that one training phase's data order depends on; the last of `exposures` in the checkpoint's lineage.json.

    `steps` counts steps done from 0; `geometry` is `ClipGeometry.to_dict()`; `sources` are the mixture's, each with the
    `digest` of its shards; `replaced` lists (global sample, salt) of samples that were served by a stand-in; `exclusions`
    lists (step, names of all takedowns in force from it on). `order` is the version of the rule.
    """

    phase: str
    seed: int
    steps: int
    global_batch: int
    geometry: dict[str, Any]
    sources: list[dict[str, Any]]
    repeat_cap: float | None = None
    replaced: list[tuple[int, int]] = field(default_factory=list)
    exclusions: list[tuple[int, list[str]]] = field(default_factory=list)
    order: int = ORDER

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ExposureSpec:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        if values.get("order") != ORDER or "sources" not in values:
            raise StoreError(
                "a lineage file does not say what was drawn", expected=f"order {ORDER}, with its sources",
                found=f"order {values.get('order', 1)}: {', '.join(sorted(values))}", remedy="make the checkpoint again with this version of Tubelet",
            )  # fmt: skip
        pairs = {
            "replaced": [(int(sample), int(salt)) for sample, salt in known.get("replaced", [])],
            "exclusions": [(int(step), list(names)) for step, names in known.get("exclusions", [])],
        }
        try:
            return cls(**known | pairs)
        except TypeError as error:
            raise StoreError(
                "a lineage file does not say what was drawn", expected=", ".join(cls.__dataclass_fields__), found=", ".join(sorted(values)),
                remedy="make the checkpoint again with this version of Tubelet",
            ) from error  # fmt: skip

    @property
    def mixture(self) -> list[MixtureSource]:
        """The sources as the recipe named them."""
        try:
            return [MixtureSource.model_validate({name: value for name, value in item.items() if name != "digest"}) for item in self.sources]
        except pydantic.ValidationError as error:
            raise StoreError("a lineage file names no sources", found=str(error), remedy="make the checkpoint again") from error

    @property
    def shards_digest(self) -> str:
        """Digest of the training_shards artefact that was drawn from; "" when none was."""
        return next((str(item["digest"]) for item in self.sources if item["shards"] == OWN_SHARDS), "")


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
    """Per clip of the mixture: `samples` (n,) int64 and `seconds` (n,) float64 shown in all; and the distinct stretches shown:
    `spans` (k, 2) in s on the clip's own clock, ascending and disjoint within each clip, and `span_row` (k,), whose they are."""

    samples: np.ndarray
    seconds: np.ndarray
    span_row: np.ndarray
    spans: np.ndarray


def sampler_of(mixture: Mixture, spec: ExposureSpec, root: Path) -> Sampler:
    """The phase's order of samples, with what was taken down while it ran; `root` is the store that keeps the tombstones."""
    sampler = Sampler(mixture, ClipGeometry.from_dict(spec.geometry), spec.seed, spec.phase, spec.repeat_cap)
    for step, names in spec.exclusions:
        sampler.exclude(step * spec.global_batch, mixture.covered(read_tombstones(root, names)))
    return sampler


def expose(mixture: Mixture, spec: ExposureSpec, root: Path) -> Exposure:
    """Draw the whole phase again. A sample shows the time from its first frame to the end of its last one."""
    frames = ClipGeometry.from_dict(spec.geometry).frames
    samples, seconds = np.zeros(len(mixture), np.int64), np.zeros(len(mixture))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in _stretches(sampler_of(mixture, spec, root), spec):
        span = part.step_s * (frames - 1) + 1 / mixture.frame_rate[part.row]
        samples += np.bincount(part.row, minlength=len(mixture))
        seconds += np.bincount(part.row, weights=span, minlength=len(mixture))
        parts.append((part.row, np.stack([part.start_s, part.start_s + span], axis=1)))
    row = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in parts)])
    both = np.concatenate([np.zeros((0, 2)), *(spans for _, spans in parts)])
    return Exposure(samples, seconds, *merge_by_group(row, both))


def _stretches(sampler: Sampler, spec: ExposureSpec) -> Iterator[Draws]:
    total, stand_ins = spec.steps * spec.global_batch, dict(spec.replaced)
    for first in range(0, total, STRETCH):
        part = sampler.draws(first, min(STRETCH, total - first))
        for sample in (sample for sample in stand_ins if first <= sample < first + len(part)):
            other, at = sampler.draws(sample, 1, stand_ins[sample]), sample - first
            part.row[at], part.start_s[at], part.step_s[at] = other.row[0], other.start_s[0], other.step_s[0]
        yield part


def exposures(mixture: Mixture, spec: ExposureSpec, root: Path) -> pa.Table:
    """The EXPOSURES table of one phase: clips that were drawn, in the mixture's order, with their samples and the seconds shown in all."""
    shown = expose(mixture, spec, root)
    rows = np.flatnonzero(shown.samples)
    table = pa.table({
        "clip_id": mixture.texts("clip_id").take(pa.array(rows)), "video_id": mixture.texts("video_id").take(pa.array(rows)),
        "samples": shown.samples[rows], "seconds": shown.seconds[rows],
    })  # fmt: skip
    return table.cast(schemas.EXPOSURES)


def log_disagreements(mixture: Mixture, spec: ExposureSpec, root: Path, log: pa.Table) -> list[str]:
    """Where an EXPOSURE_LOG, told by the bytes that were decoded, differs from the order drawn again; empty when nowhere.

    Sample by sample: is it there, from the right shards and clip, with the same digest as the index has, as the same stand-in,
    and does every frame lie near the instant drawn for it (three quarters of a frame: rates vary).
    """
    sampler, stand_ins = sampler_of(mixture, spec, root), dict(spec.replaced)
    rows, problems = {row["global_sample"]: row for row in log.to_pylist()}, []
    for sample in range(spec.steps * spec.global_batch):
        row = rows.pop(sample, None)
        if row is None:
            problems.append(f"sample {sample} is not in the log")
            continue
        draw = sampler.draw(sample, stand_ins.get(sample, 0))
        found, own = mixture.place(draw.row)
        entry = found.index.entry(own)
        expected = {"step": sample // spec.global_batch, "salt": stand_ins.get(sample, 0), "shards": found.source.name, "clip_id": entry.clip_id, "sha256": entry.sha256, "flip": draw.flip}
        problems += [f"sample {sample}: {name} is {row[name]}, drawn again {value}" for name, value in expected.items() if row[name] != value]
        times = np.asarray(row["pts"]) * (row["time_base_num"] / row["time_base_den"])
        wanted = draw.times_s(sampler.geometry.frames)
        if len(times) != len(wanted) or (np.abs(times - wanted) > 0.75 / mixture.frame_rate[draw.row]).any():
            problems.append(f"sample {sample}: frames at {times.round(3).tolist()} s, drawn again {wanted.round(3).tolist()} s")
    return problems + [f"sample {sample} is in the log, and was not asked for" for sample in sorted(rows)]
