"""A forecast before a run: a dozen files really go through the stages, and the rest is extrapolated with intervals.

The stages themselves run, into a folder that is deleted; nothing is written to a store.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.embedding import EmbeddingSettings, build_embeddings
from pipelines.curation.extrapolation import Estimate, Stratum, extrapolate, size_exponent, stratify
from pipelines.curation.report.funnel import count
from pipelines.curation.scenes import SceneConfig, build_clips, insist_on_detector
from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.parts import cpu_seconds
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, VIDEOS, read_table
from pipelines.shards.cutting import cut_clip
from pipelines.shards.form import CutClip, ShardConfig
from pipelines.sources.folder import SourceFile
from pipelines.sources.kinds import describe_source
from pipelines.sources.registry import Batch
from pipelines.video.probe import build_videos

logger = logging.getLogger("tubelet.curation")

STAGES = ("videos", "clips", "clip_embeddings", "training_shards")
SECONDS_PER_MINUTE = 60.0


class ForecastConfig(Part):
    """`sample` files are opened. Intervals hold the truth with the probability `level`, as far as the sample is like the rest."""

    sample: int = 12
    shard_clips: int = 8  # clips of the sample that are really cut into their training form
    seed: int = 0
    workers: int = 2
    timeout_s: float = 30.0
    level: float = 0.9
    draws: int = 2000
    scenes: SceneConfig = SceneConfig()
    embedding: EmbeddingSettings = EmbeddingSettings()
    shards: ShardConfig = ShardConfig()


@dataclass(frozen=True)
class SampledFile:
    """What became of one file of the sample: `code` is why it was rejected, empty when it gave a video."""

    path: str
    bytes: int
    code: str
    seconds: float
    clips: int


@dataclass(frozen=True)
class StageForecast:
    """CPU and wall seconds that a stage will take on this machine, with as many workers as the sample was run with."""

    stage: str
    items: Estimate
    unit: str
    cpu_s: Estimate
    wall_s: Estimate


@dataclass(frozen=True)
class Forecast:
    """What a run over `files` files will give. `known_bad` of them have a problem that is known without opening them.

    `quantities` are (name, unit, estimate); `stages` the measured ones. `took_s` is what the forecast itself took.
    """

    files: int
    bytes: int
    known_bad: int
    left_out: tuple[str, ...]
    sample: tuple[SampledFile, ...]
    quantities: tuple[tuple[str, str, Estimate], ...]
    stages: tuple[StageForecast, ...]
    level: float
    workers: int
    took_s: float

    def quantity(self, name: str) -> Estimate:
        """The estimate called `name`."""
        return next(estimate for known, _, estimate in self.quantities if known == name)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            **{name: value for name, value in asdict(self).items() if name != "quantities"},
            "quantities": {name: {"unit": unit, **asdict(estimate)} for name, unit, estimate in self.quantities},
        }


def forecast_source(
    path: str | Path, config: ForecastConfig | None = None, *, kind: str | None = None, root: str | Path | None = None,
    progress: Callable[..., None] | None = None,
) -> Forecast:  # fmt: skip
    """Forecast what `tubelet curate PATH` would take in: a folder, a manifest, tars or an annotated data set.

    Raises `InputError` when there is nothing to take in.
    """
    found = describe_source(path, kind, root)
    return forecast(found.files, config, left_out=tuple(map(str, found.left_out)), progress=progress)


def forecast(
    files: Sequence[SourceFile], config: ForecastConfig | None = None, *, left_out: tuple[str, ...] = (), progress: Callable[..., None] | None = None
) -> Forecast:
    """Forecast a run over `files`, whatever their order. Raises `InputError` when there is none to open, or no such detector."""
    started = time.monotonic()
    config = config or ForecastConfig()
    insist_on_detector(config.scenes)
    listed = sorted((file for file in files if not file.problem), key=lambda file: file.path)
    if not listed:
        raise InputError("there is no file to forecast", expected="at least one video file", found=f"{len(files)} that cannot be opened", remedy="name another source")
    sizes = [file.bytes for file in listed]
    strata = stratify(sizes, config.sample, stable_seed("forecast", config.seed))
    chosen = sorted(int(place) for item in strata for place in item.sampled)
    with tempfile.TemporaryDirectory(prefix="tubelet-forecast-") as scratch:
        sample = _run_sample(Path(scratch), [listed[place] for place in chosen], config, progress)
    quantities, stages = _extrapolated(strata, sizes, chosen, sample, config)
    known_bad = len(files) - len(listed)
    rejects = next(estimate for name, _, estimate in quantities if name == "rejects")
    quantities = tuple((name, unit, rejects.times(1.0, known_bad) if name == "rejects" else estimate) for name, unit, estimate in quantities)
    return Forecast(
        len(files), sum(sizes), known_bad, left_out, sample.files, quantities, stages, config.level, config.workers, time.monotonic() - started
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """The sample after the stages: per file (n,) of `values`, what each stage `fixed` and per unit of `work` took (CPU s,
    wall s), and bytes on disk a file (`table`) and a clip (`clip`), and of a second of clip in shards (`shard`)."""

    files: tuple[SampledFile, ...]
    values: dict[str, NDArray[np.float64]]
    rates: dict[str, tuple[tuple[float, float], tuple[float, float]]]
    file_bytes: float
    clip_bytes: float
    shard_bytes: float


WORK = {"videos": "pixels", "clips": "frames", "clip_embeddings": "clips", "training_shards": "clip_seconds"}
"""The quantity that a stage's time grows with."""


def run_stages(folder: Path, files: Sequence[SourceFile], config: ForecastConfig) -> dict[str, tuple[float, float]]:
    """The stages of ingest over some files, into `folder`/<stage>: (CPU s, wall s) of each."""
    batch = Batch("forecast", "forecast", tuple(files), "", "")
    took = {}
    for stage, build in (
        ("videos", lambda out: build_videos(out, batch, workers=config.workers, timeout_s=config.timeout_s)),
        ("clips", lambda out: build_clips(out, folder / "videos", config=config.scenes, workers=config.workers)),
        ("clip_embeddings", lambda out: build_embeddings(out, folder / "clips", config=config.embedding, workers=config.workers)),
    ):
        (folder / stage).mkdir(parents=True)
        cpu, wall = cpu_seconds(), time.monotonic()
        if stage != "clip_embeddings" or count([folder / "clips"], "clips.parquet"):  # nothing to embed is not an error here
            build(folder / stage)
        took[stage] = cpu_seconds() - cpu, time.monotonic() - wall
    return took


def _run_sample(scratch: Path, files: Sequence[SourceFile], config: ForecastConfig, progress: Callable[..., None] | None) -> _Sample:
    """Run the stages over the whole sample, then over its smallest good file alone: the difference is what the files cost, without the start."""

    def report(done: int, text: str) -> None:
        if progress is not None:
            progress(done, 4, text)

    report(0, f"running {len(files)} files through the stages")
    whole = run_stages(scratch / "all", files, config)
    values, rows = _per_file(scratch / "all", files)
    good = np.flatnonzero(values["videos"] > 0)
    report(2, "measuring what a start costs")
    small = [files[int(good[np.argmin(values["pixels"][good])])]] if len(good) else []
    start = run_stages(scratch / "one", small, config) if len(good) > 1 else {stage: (0.0, 0.0) for stage in whole}
    alone = _per_file(scratch / "one", small)[0] if len(good) > 1 else {name: np.zeros(1) for name in values}
    report(3, "cutting clips into their training form")
    clips = read_table(scratch / "all" / "clips" / "clips.parquet", CLIPS).to_pylist()
    shard_bytes, shard_cost = _cut_some(scratch, clips, config)
    rates = {stage: _rates(whole[stage], float(values[WORK[stage]].sum()), start[stage], float(alone[WORK[stage]].sum())) for stage in whole}
    rates["training_shards"] = ((0.0, 0.0), shard_cost)
    on_disk = {stage: _bytes_of(scratch / "all" / stage) for stage in whole}
    count = max(1.0, float(values["clips"].sum()))
    # Merging writes the clips and their vectors once more, less the duplicates, which a sample cannot show.
    clip_bytes = 2 * (on_disk["clips"] + on_disk["clip_embeddings"]) / count
    report(4, "done")
    return _Sample(rows, values, rates, on_disk["videos"] / max(1.0, float(values["frames"].sum())), clip_bytes, shard_bytes)


def _per_file(folder: Path, files: Sequence[SourceFile]) -> tuple[dict[str, NDArray[np.float64]], tuple[SampledFile, ...]]:
    """What the stages found of every file, in the order of the files."""
    videos = {row["path"]: row for row in read_table(folder / "videos" / "videos.parquet", VIDEOS).to_pylist()}
    rejects = {row["path"]: row["code"] for row in read_table(folder / "videos" / "quarantine.parquet", QUARANTINE).to_pylist()}
    clips: dict[str, list[float]] = {}
    for row in read_table(folder / "clips" / "clips.parquet", CLIPS, ["path", "start_s", "end_s"]).to_pylist():
        clips.setdefault(row["path"], []).append(row["end_s"] - row["start_s"])
    values = {
        "videos": [float(file.path in videos) for file in files],
        "seconds": [videos[file.path]["duration_s"] if file.path in videos else 0.0 for file in files],
        "frames": [float(videos[file.path]["frames"]) if file.path in videos else 0.0 for file in files],
        "pixels": [float(row["frames"] * row["width"] * row["height"]) if (row := videos.get(file.path)) else 0.0 for file in files],
        "clips": [float(len(clips.get(file.path, []))) for file in files],
        "clip_seconds": [float(sum(clips.get(file.path, []))) for file in files],
    }  # fmt: skip
    rows = tuple(
        SampledFile(file.path, file.bytes, rejects.get(file.path, ""), values["seconds"][place], int(values["clips"][place]))
        for place, file in enumerate(files)
    )
    return {name: np.array(column) for name, column in values.items()}, rows


def _rates(
    whole: tuple[float, float], work: float, start: tuple[float, float], alone: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """((fixed CPU s, fixed wall s), (CPU s, wall s) per unit of work) from two runs over different amounts of work."""
    each = tuple(max(0.0, all_ - one) / (work - alone) if work > alone else 0.0 for all_, one in zip(whole, start, strict=True))
    fixed = tuple(max(0.0, one - rate * alone) for one, rate in zip(start, each, strict=True))
    return (fixed[0], fixed[1]), (each[0], each[1])


def _cut_some(scratch: Path, clips: Sequence[dict[str, Any]], config: ForecastConfig) -> tuple[float, tuple[float, float]]:
    """(bytes, (CPU s, wall s)) a second of clip in shards, from cutting some clips, by turns of their files."""
    order = np.random.default_rng(stable_seed("forecast-shards", config.seed)).permutation(len(clips))
    chosen: dict[str, dict[str, Any]] = {}
    for row in order:
        chosen.setdefault(clips[row]["path"], clips[row])
    picked = list(chosen.values())[: config.shard_clips]
    cpu, wall = cpu_seconds(), time.monotonic()
    size = seconds = 0.0
    for number, clip in enumerate(picked):
        cut = cut_clip(clip, scratch / f"{number}.mp4", config.shards)
        if isinstance(cut, CutClip):
            size, seconds = size + len(cut.data), seconds + clip["end_s"] - clip["start_s"]
    if seconds == 0:
        return 0.0, (0.0, 0.0)
    workers = max(1, min(config.workers, os.cpu_count() or 1))  # one ffmpeg process each
    return size / seconds, ((cpu_seconds() - cpu) / seconds, (time.monotonic() - wall) / seconds / workers)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _extrapolated(
    strata: Sequence[Stratum], sizes: Sequence[int], chosen: Sequence[int], sample: _Sample, config: ForecastConfig
) -> tuple[tuple[tuple[str, str, Estimate], ...], tuple[StageForecast, ...]]:
    values = {name: np.zeros(len(sizes)) for name in (*sample.values, "bytes")}
    for name, column in sample.values.items():
        values[name][list(chosen)] = column
    tables = values["frames"] * sample.file_bytes + values["clips"] * sample.clip_bytes
    values["bytes"] = tables + values["clip_seconds"] * sample.shard_bytes
    good = values["videos"] > 0
    opened = np.array(chosen)[good[list(chosen)]]
    exponent = size_exponent(np.asarray(sizes, np.float64)[opened], values["seconds"][opened])
    found = extrapolate(
        strata, sizes, good, values, counts=("videos",), exponent=exponent, draws=config.draws, level=config.level,
        seed=stable_seed("forecast-draws", config.seed),
    )  # fmt: skip
    videos = found["videos"]
    rejects = Estimate(*(max(0.0, round(len(sizes) - edge, 6)) for edge in (videos.value, videos.high, videos.low)))
    quantities = (
        ("videos", "videos that decode", videos), ("rejects", "files in quarantine", rejects), ("hours", "hours of video", found["seconds"].times(1 / 3600)),
        ("clips", "clips, before duplicates go", found["clips"]), ("clip_hours", "hours of clips", found["clip_seconds"].times(1 / 3600)),
        ("bytes", "bytes in the store, if all clips are chosen", found["bytes"]),
    )  # fmt: skip
    units = {"videos": "files", "clips": "videos", "clip_embeddings": "clips", "training_shards": "clips"}
    total = {"files": Estimate(len(sizes), len(sizes), len(sizes)), "videos": videos, "clips": found["clips"]}
    stages = tuple(
        StageForecast(
            stage, total[units[stage]], units[stage],
            *(found[WORK[stage]].times(each, fixed) for fixed, each in zip(*sample.rates[stage], strict=True)),
        )
        for stage in STAGES
    )  # fmt: skip
    return quantities, stages


def forecast_text(found: Forecast) -> str:
    """The forecast as a table for a console."""
    size, held = _readable("bytes", Estimate(found.bytes, found.bytes, found.bytes))
    lines = [f"{found.files:,} files, {_shown(held.value)} {size.strip()}" + (f"; {found.known_bad:,} are known to be unusable" if found.known_bad else "")]
    lines += [f"left out: {words}" for words in found.left_out]
    codes = [file.code for file in found.sample if file.code]
    lines.append(f"sample: {len(found.sample)} files, {len(codes)} rejected" + (f" ({', '.join(sorted(set(codes)))})" if codes else ""))
    lines.append("")
    lines.append(f"{'':<44}{'forecast':>12}   {found.level:.0%} interval")
    for _, unit, estimate in found.quantities:
        unit, estimate = _readable(unit, estimate)
        lines.append(f"{unit:<44}{_shown(estimate.value):>12}   {_shown(estimate.low)} to {_shown(estimate.high)}")
    lines.append("")
    lines.append(f"{'stage':<20}{'items':>16}{'CPU min':>12}{'wall min':>12}   {found.level:.0%} interval of the wall time, {found.workers} workers")
    for stage in found.stages:
        cpu, wall = (estimate.times(1 / SECONDS_PER_MINUTE) for estimate in (stage.cpu_s, stage.wall_s))
        items = f"{_shown(stage.items.value)} {stage.unit}"
        lines.append(f"{stage.stage:<20}{items:>16}{_shown(cpu.value):>12}{_shown(wall.value):>12}   {_shown(wall.low)} to {_shown(wall.high)}")
    cpu_s, wall_s = (sum(getattr(stage, name).value for stage in found.stages) / SECONDS_PER_MINUTE for name in ("cpu_s", "wall_s"))
    lines.append(f"{'together':<20}{'':>16}{_shown(cpu_s):>12}{_shown(wall_s):>12}")
    lines.append("")
    lines.append(f"Merging, clustering and choosing come on top, seconds for thousands of clips. The forecast took {found.took_s:.0f} s; nothing was written.")
    return "\n".join(lines)


def _readable(unit: str, estimate: Estimate) -> tuple[str, Estimate]:
    """Bytes and hours in the unit that fits them."""
    first, _, rest = unit.partition(" ")
    if first == "bytes":
        scale, name = next(((scale, name) for scale, name in ((1e9, "GB"), (1e6, "MB")) if estimate.high >= scale), (1e3, "kB"))
        return f"{name} {rest}", estimate.times(1 / scale)
    return (f"minutes {rest}", estimate.times(60.0)) if first == "hours" and estimate.high < 1 else (unit, estimate)


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
