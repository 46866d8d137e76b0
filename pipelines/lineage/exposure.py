"""Which clips a training saw, how often and which of their seconds: recomputed from a few integers, never stored sample by sample."""

from __future__ import annotations

import json
from bisect import bisect_left
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
from pipelines.shards.decode import frame_pts, nearest_frames
from pipelines.shards.geometry import ClipGeometry, Draws, Sampler
from pipelines.shards.mixture import Mixture
from pipelines.tombstones import read_tombstones

LINEAGE_FILE = "lineage.json"
STRETCH = 65_536  # samples drawn at a time
GATHERED = 2**22  # spans kept before those that overlap become one: memory must not grow with the samples of a long training
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


def read_start(folder: Path) -> dict[str, Any] | None:
    """The record of the weights that a checkpoint, or what it was started from, began at; None when it began at random ones."""
    path = folder / LINEAGE_FILE
    record = json.loads(path.read_text()).get("start_from") if path.is_file() else None
    return dict(record) if record else None


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
    row, spans = np.zeros(0, np.int64), np.zeros((0, 2))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in _stretches(sampler_of(mixture, spec, root), spec):
        span = part.step_s * (frames - 1) + 1 / mixture.frame_rate[part.row]
        np.add.at(samples, part.row, 1)
        np.add.at(seconds, part.row, span)
        parts.append((part.row, np.stack([part.start_s, part.start_s + span], axis=1)))
        if sum(len(rows) for rows, _ in parts) >= max(GATHERED, len(row)):
            row, spans, parts = *_merged(row, spans, parts), []
    return Exposure(samples, seconds, *_merged(row, spans, parts))


def _merged(row: np.ndarray, spans: np.ndarray, parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Spans that are merged already, with more of them."""
    return merge_by_group(np.concatenate([row, *(rows for rows, _ in parts)]), np.concatenate([spans, *(more for _, more in parts)]))


def _stretches(sampler: Sampler, spec: ExposureSpec) -> Iterator[Draws]:
    total, stand_ins = spec.steps * spec.global_batch, sorted(spec.replaced)
    replaced = [sample for sample, _ in stand_ins]
    for first in range(0, total, STRETCH):
        part = sampler.draws(first, min(STRETCH, total - first))
        for sample, salt in stand_ins[bisect_left(replaced, first) : bisect_left(replaced, first + len(part))]:
            other, at = sampler.draws(sample, 1, salt), sample - first
            part.row[at], part.start_s[at], part.step_s[at], part.flip[at] = other.row[0], other.start_s[0], other.step_s[0], other.flip[0]
        yield part


def exposures(mixture: Mixture, shown: Exposure) -> pa.Table:
    """The EXPOSURES table of one phase: clips that were drawn, in the mixture's order, with their samples and the seconds shown in all."""
    rows = np.flatnonzero(shown.samples)
    table = pa.table({
        "clip_id": mixture.texts("clip_id").take(pa.array(rows)), "video_id": mixture.texts("video_id").take(pa.array(rows)),
        "samples": shown.samples[rows], "seconds": shown.seconds[rows],
    })  # fmt: skip
    return table.cast(schemas.EXPOSURES)


def log_disagreements(mixture: Mixture, spec: ExposureSpec, root: Path, log: pa.Table) -> list[str]:
    """Where an EXPOSURE_LOG, told by the bytes that were decoded, differs from the order drawn again; one line a kind of difference.

    Sample by sample: is it there once, from the right shards and clip, with the digest of the index, as the stand-in it was, and
    is every frame the one nearest to the instant drawn for it. One within three quarters of a frame is taken to be; where rates
    vary, or a frame is missing, it can be farther away, and the clip's packets are asked; raises `ShardError` when those are gone.
    """
    total, frames = spec.steps * spec.global_batch, ClipGeometry.from_dict(spec.geometry).frames
    log = log.sort_by("global_sample")
    if log.column("global_sample").to_pylist() != list(range(total)):
        missing = sorted(set(range(total)) - set(log.column("global_sample").to_pylist()))
        return [f"the log has {len(log)} rows for {total} samples; not in it: {', '.join(map(str, missing[:5])) or 'none'}"]
    digests = np.array([found.index.digest(own) for found, own in map(mixture.place, range(len(mixture)))], object)
    clip_ids, names = np.array(mixture.column("clip_id"), object), np.array(mixture.names, object)
    stand_ins, wrong, first = dict(spec.replaced), dict[str, list[int]](), 0
    for part in _stretches(sampler_of(mixture, spec, root), spec):
        rows = log.slice(first, len(part))
        samples = range(first, first + len(part))
        expected = {
            "step": np.array(samples) // spec.global_batch, "salt": np.array([stand_ins.get(sample, 0) for sample in samples]),
            "shards": names[mixture.source[part.row]], "clip_id": clip_ids[part.row], "sha256": digests[part.row], "flip": part.flip,
        }  # fmt: skip
        for name, values in expected.items():
            wrong.setdefault(name, []).extend((first + np.flatnonzero(np.array(rows.column(name).to_pylist(), object) != values)).tolist())
        base = np.array(rows.column("time_base_num")) / np.array(rows.column("time_base_den"))
        pts = np.array([one if len(one) == frames else [np.nan] * frames for one in rows.column("pts").to_pylist()])
        wanted = part.start_s[:, None] + part.step_s[:, None] * np.arange(frames)
        near = (np.abs(pts * base[:, None] - wanted) <= 0.75 / mixture.frame_rate[part.row][:, None]).all(axis=1)
        far = [at for at in np.flatnonzero(~near).tolist() if not _nearest(mixture, int(part.row[at]), wanted[at], pts[at], float(base[at]))]
        wrong.setdefault("pts", []).extend(first + at for at in far)
        first += len(part)
    return [f"{name} differs in {len(found)} samples: {', '.join(map(str, found[:5]))}" for name, found in wrong.items() if found]


def _nearest(mixture: Mixture, row: int, wanted_s: np.ndarray, pts: np.ndarray, base: float) -> bool:
    """Whether `pts` (frames,), in units of `base` s, are those of the clip's frames nearest to `wanted_s`, by its packets."""
    found, own = mixture.place(row)
    stored = found.index.stored(found.index.entry(own))
    there = frame_pts(stored.data, stored.kind)
    return np.array_equal(there[nearest_frames(np.multiply(there, base, dtype=np.float64), wanted_s)], pts)
