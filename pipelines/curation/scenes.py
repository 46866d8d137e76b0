"""Scene cutting: videos become virtual clips, spans of presentation time in which nothing is cut and nothing transcoded.

Cuts, scores and small pictures come from the signals that the probe recorded while it decoded, so cutting decodes nothing:
another threshold costs seconds. Motion, static and black scores are always recorded; nothing is filtered by them here.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pydantic
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, PositiveFloat

from pipelines.checks import Check
from pipelines.curation.cuts import DetectJob, adaptive_cuts, content_cuts, insist_on_transnet
from pipelines.errors import Reject
from pipelines.identity import clip_id
from pipelines.parts import open_parts
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, VIDEOS, read_table, table_of, write_table
from pipelines.video.fingerprint import fingerprint
from pipelines.video.signals import GRID, VERSION, Signals, read_signals
from pipelines.video.workers import Crew

logger = logging.getLogger("tubelet.curation")

DETECT = "pipelines.curation.cuts:detect_cuts"
MOTION_STEP_S = 0.25
STATIC_BELOW = 0.5  # grey levels of motion: the picture stands still
BLACK_BELOW = 8.0  # grey levels of brightness: the picture is black
LOOKS = 8  # pictures kept of each clip
WHOLE = "whole-v1"
THRESHOLDS = {"adaptive": 3.0, "content": 27.0, "scenedetect-adaptive": 3.0, "scenedetect-content": 27.0, "transnetv2": 0.4}


class SceneConfig(Part):
    """How videos are cut. V-JEPA 2 names neither detector nor threshold, and drops scenes under 4 s; adaptive does best in
    PySceneDetect's own benchmark. The first two detectors work on recorded signals, the others decode every video again."""

    detector: Literal["adaptive", "content", "scenedetect-adaptive", "scenedetect-content", "transnetv2"] = "adaptive"
    threshold: PositiveFloat | None = None  # adaptive: ratio to the neighbourhood; content: change in grey levels; None: THRESHOLDS
    least_change: NonNegativeFloat = 12.0  # adaptive: grey levels (Y + U + V) under which nothing is a cut
    histogram: NonNegativeFloat = 0.3  # adaptive and content: how far the histograms must move (0..3)
    min_clip_s: PositiveFloat = 1.0
    max_clip_s: PositiveFloat = 6.0  # longer scenes are divided into equal parts, as many as leave each min_clip_s long
    min_scene_s: NonNegativeFloat = 0.3  # cuts closer than this are one
    timeout_s: PositiveFloat = 60.0  # for detectors that decode: how long a video may give no sign of life

    @pydantic.model_validator(mode="after")
    def _lengths_agree(self) -> SceneConfig:
        if self.max_clip_s < self.min_clip_s:
            raise ValueError(f"max_clip_s {self.max_clip_s:g} should be at least min_clip_s {self.min_clip_s:g}")
        return self

    @property
    def level(self) -> float:
        return THRESHOLDS[self.detector] if self.threshold is None else self.threshold

    @property
    def splitter(self) -> str:
        """Name of the cutting rule, part of every clip_id."""
        rule = f"{self.detector}-{self.level:g}"
        if self.detector in ("adaptive", "content"):
            rule += f"-{self.least_change:g}-{self.histogram:g}-{VERSION}"
        return f"{rule}-{self.min_scene_s:g}-{self.min_clip_s:g}-{self.max_clip_s:g}-v2"


@dataclass(frozen=True)
class Cut:
    """What a batch of videos was cut into: `clips` rows with their `looks` (N, 8, 24, 24) uint8, and `rejects` (quarantine rows)."""

    clips: list[dict[str, Any]]
    rejects: list[dict[str, Any]]
    looks: NDArray[np.uint8]


def insist_on_detector(config: SceneConfig) -> None:
    """Raise `InputError` when the detector's package is not installed: else every video would be blamed for it."""
    if config.detector == "transnetv2":
        insist_on_transnet()


class _Timeline:
    """A video's frames: `stamps` (T,) pts, `ends` (T,) where each frame stops, `base` the time base in s."""

    def __init__(self, video: dict[str, Any], signals: Signals) -> None:
        self.signals = signals
        self.base = Fraction(video["time_base_num"], video["time_base_den"])
        self.stamps = signals.pts
        steps = np.diff(self.stamps)
        self.typical = int(np.median(steps)) if len(steps) else 1
        self.ends = np.append(self.stamps[1:], self.stamps[-1:] + max(1, self.typical))

    def seconds(self, ticks: int) -> float:
        return float(int(ticks) * self.base)


def clip_borders(line: _Timeline, cuts: Sequence[int], config: SceneConfig) -> tuple[list[tuple[int, int]], list[tuple[float, float]]]:
    """Frames [first, last) of each clip, and (start_s, end_s) of the scenes that are too short to be one.

    No clip is shorter than `min_clip_s`: where parts of at most `max_clip_s` would be, there are fewer, longer parts.
    """
    count = len(line.stamps)
    edges = sorted({0, count, *(cut for cut in cuts if 0 < cut < count)})
    clips: list[tuple[int, int]] = []
    short: list[tuple[float, float]] = []
    # Half a frame of grace: a scene of 25 frames at 25/s is 1 s long, whatever its clock rounds to.
    half = line.seconds(line.typical) / 2
    least = config.min_clip_s - half
    for first, last in itertools.pairwise(edges):
        start, end = int(line.stamps[first]), int(line.ends[last - 1])
        seconds = line.seconds(end - start)
        if seconds < least:
            zero = int(line.stamps[0])
            short.append((line.seconds(start - zero), line.seconds(end - zero)))
            continue
        parts = min(math.ceil(seconds / config.max_clip_s - 0.01), int((seconds + half) / config.min_clip_s))
        numbers = [first]
        for part in range(1, parts):
            border = start + round((end - start) * part / parts)
            number = first + int(np.searchsorted(line.stamps[first:last], border))
            # Frames at irregular times: the next one may lie so far behind the border that a part would be too short.
            if number < last and min(line.seconds(line.stamps[number] - line.stamps[numbers[-1]]), line.seconds(end - line.stamps[number])) >= least:
                numbers.append(number)
        clips += itertools.pairwise([*numbers, last])
    return clips, short


def look_of(line: _Timeline, first: int, last: int) -> NDArray[np.uint8]:
    """(8, 24, 24) uint8: the stored pictures nearest to the relative times (i + 0.5) / 8 of frames [first, last)."""
    start, end = int(line.stamps[first]), int(line.ends[last - 1])
    stored = line.signals.grid_frames
    low, high = np.searchsorted(stored, [first, last])
    if low == high:  # a clip so short that no picture of it was kept: the one before shows the same moment, nearly
        low, high = max(0, low - 1), max(1, low)
    times = line.stamps[stored[low:high]]
    wanted = start + (end - start) * (np.arange(LOOKS) + 0.5) / LOOKS
    right = np.searchsorted(times, wanted).clip(1, max(1, len(times) - 1))
    nearer = np.where(wanted - times[right - 1] <= times[right.clip(max=len(times) - 1)] - wanted, right - 1, right)
    return line.signals.grids[low + nearer.clip(0, len(times) - 1)]


def scores_of(line: _Timeline, first: int, last: int) -> dict[str, float]:
    """motion: mean absolute change (grey levels) of stored pictures 0.25 s apart; static: share of these pairs that stand
    still; brightness: mean grey level (0..255); black: share of frames darker than 8 grey levels."""
    brightness = line.signals.brightness[first:last].astype(np.float64)
    low, high = np.searchsorted(line.signals.grid_frames, [first, last])
    grids = line.signals.grids[low:high].astype(np.float32)
    times = line.stamps[line.signals.grid_frames[low:high]]
    motion, static = 0.0, 1.0
    if len(grids) > 1:
        later = np.searchsorted(times, times + round(MOTION_STEP_S / line.base) - max(1, line.typical // 2))
        pairs = np.flatnonzero(later < len(grids))
        if len(pairs) == 0 or (later[pairs] == pairs).all():
            pairs, later = np.array([0]), np.array([len(grids) - 1])
        change = np.abs(grids[pairs] - grids[later[pairs]]).mean(axis=(1, 2))
        motion, static = float(change.mean()), float((change < STATIC_BELOW).mean())
    return {
        "motion": round(motion, 4), "static": round(static, 4), "brightness": round(float(brightness.mean()), 4),
        "black": round(float((brightness < BLACK_BELOW).mean()), 4),
    }  # fmt: skip


def cut_videos(
    videos: Sequence[dict[str, Any]], signals: Sequence[Signals], config: SceneConfig | None = None, crew: Crew | None = None
) -> Cut:
    """Cut `videos` (rows of the videos table) with their signals, in their order: a pure function of its arguments.

    Detectors that decode run in `crew` (whose target is DETECT), or in this process when there is none.
    """
    config = config or SceneConfig()
    found = _detect(videos, signals, config, crew)
    clips, rejects, looks = [], [], []
    for video, recorded, cuts in zip(videos, signals, found, strict=True):
        if isinstance(cuts, dict):
            rejects.append({**_of_file(video), **cuts})
            continue
        line = _Timeline(video, recorded)
        borders, short = clip_borders(line, cuts, config)
        for start_s, end_s in short:
            detail = f"scene {start_s:.2f}-{end_s:.2f} s is shorter than a clip"
            rejects.append({**_of_file(video), "code": Reject.TOO_SHORT.value, "detail": detail, "attempts": 1, "poison": False})
        for first, last in borders:
            looks.append(look_of(line, first, last))
            clips.append(_clip_row(video, line, first, last, config.splitter, looks[-1], video["label"] or ""))
    return Cut(clips, rejects, np.stack(looks) if looks else np.empty((0, LOOKS, GRID, GRID), np.uint8))


def whole_clips(
    videos: Sequence[dict[str, Any]],
    signals: Sequence[Signals],
    spans: Sequence[Sequence[tuple[float, float, str]] | None] | None = None,
) -> Cut:
    """One clip of each whole video, or one for each of its `spans` (start_s, end_s from the first frame, label).

    Spans are snapped to frames; one that holds fewer than two frames is a reject (too_short).
    """
    clips, rejects, looks = [], [], []
    for number, (video, recorded) in enumerate(zip(videos, signals, strict=True)):
        line = _Timeline(video, recorded)
        wanted = spans[number] if spans is not None else None
        named = [(0, len(line.stamps), video["label"] or "", WHOLE)] if wanted is None else [
            (*_frames_between(line, start_s, end_s), label, f"span-{start_s:.3f}-{end_s:.3f}-v1") for start_s, end_s, label in wanted
        ]  # fmt: skip
        for first, last, label, splitter in named:
            if last - first < 2:
                detail = f"{splitter} has {last - first} frames of a video of {line.seconds(line.ends[-1] - line.stamps[0]):.2f} s"
                rejects.append({**_of_file(video), "code": Reject.TOO_SHORT.value, "detail": detail, "attempts": 1, "poison": False})
                continue
            looks.append(look_of(line, first, last))
            clips.append(_clip_row(video, line, first, last, splitter, looks[-1], label))
    return Cut(clips, rejects, np.stack(looks) if looks else np.empty((0, LOOKS, GRID, GRID), np.uint8))


def _frames_between(line: _Timeline, start_s: float, end_s: float) -> tuple[int, int]:
    """Frames [first, last) shown in [start_s, end_s) seconds from the first frame."""
    zero = int(line.stamps[0])
    half = line.typical / 2  # annotated times are rounded: a frame belongs to the span that holds its middle
    limits = [zero + float(Fraction(seconds).limit_denominator(10**6) / line.base) - half for seconds in (start_s, end_s)]
    first, last = np.searchsorted(line.stamps, limits)
    return int(first), int(last)


def _detect(
    videos: Sequence[dict[str, Any]], signals: Sequence[Signals], config: SceneConfig, crew: Crew | None
) -> list[list[int] | dict[str, Any]]:
    """For each video the frames that start a scene, or the reject of a detector that failed on it."""
    shortest = [max(1, round(config.min_scene_s * video["frame_rate"])) for video in videos]
    if config.detector == "adaptive":
        return [adaptive_cuts(item, config.level, config.least_change, config.histogram, least) for item, least in zip(signals, shortest, strict=True)]
    if config.detector == "content":
        return [content_cuts(item, config.level, config.histogram, least) for item, least in zip(signals, shortest, strict=True)]
    jobs = [
        DetectJob(video["path"], config.detector, config.level, least, video["frame_rate"])
        for video, least in zip(videos, shortest, strict=True)
    ]
    with ExitStack() as stack:
        crew = crew or stack.enter_context(Crew(DETECT, 1))
        outcomes = crew.map(jobs, timeout_s=config.timeout_s)
    found: list[list[int] | dict[str, Any]] = []
    for video, outcome in zip(videos, outcomes, strict=True):
        if outcome.failure is None:
            found.append(outcome.value)
            continue
        code = {"timeout": Reject.TIMEOUT, "died": Reject.WORKER_DIED}.get(outcome.failure, Reject.DECODE_ERROR)
        poison = outcome.failure in ("timeout", "died")
        found.append({"code": code.value, "detail": outcome.detail, "attempts": outcome.attempts, "poison": poison, "sha256": video["sha256"]})
        logger.info("quarantined %s: %s (%s)", video["path"], code.value, outcome.detail)
    return found


def _of_file(video: dict[str, Any]) -> dict[str, Any]:
    return {name: video[name] for name in ("path", "batch", "source", "bytes")}


def _clip_row(
    video: dict[str, Any], line: _Timeline, first: int, last: int, splitter: str, look: NDArray[np.uint8], label: str
) -> dict[str, Any]:
    """One row of the clips table; seconds count from the video's first frame."""
    base = (video["time_base_num"], video["time_base_den"])
    start, end = int(line.stamps[first]), int(line.ends[last - 1])
    copied = {
        name: video[name]
        for name in ("video_id", "batch", "path", "width", "height", "frame_rate", "source", "licence", "uploader", "language")
    }
    return {
        **copied, "clip_id": clip_id(video["video_id"], start, end, base, splitter), "start_pts": start, "end_pts": end,
        "time_base_num": base[0], "time_base_den": base[1], "start_s": (start - video["start_pts"]) * base[0] / base[1],
        "end_s": (end - video["start_pts"]) * base[0] / base[1], "frames": last - first, "splitter": splitter,
        "fingerprint": fingerprint(look), "label": label, **scores_of(line, first, last),
    }  # fmt: skip


def build_clips(
    folder: Path,
    videos_folder: Path,
    *,
    config: SceneConfig | None = None,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Cut one batch into `folder`: clips.parquet, looks.npy and quarantine.parquet. Returns the summary.

    Raises `InputError` when the detector's package is not installed.
    """
    started = time.monotonic()
    config = config or SceneConfig()
    insist_on_detector(config)
    videos = read_table(videos_folder / "videos.parquet", VIDEOS).to_pylist()
    done = 0
    with open_parts(work) as parts, Crew(DETECT, workers) as crew:
        pieces = []
        for number, (paths, signals) in enumerate(read_signals(videos_folder / "signals.arrow")):
            batch = videos[done : done + len(paths)]
            pieces.append(parts.part(f"clips-{number:06d}", lambda piece, b=batch, s=signals: write_cut(piece, cut_videos(b, s, config, crew))))  # type: ignore[misc]
            done += len(paths)
            if progress is not None:
                progress(done, len(videos))
        gather_cuts(folder, [piece.folder for piece in pieces])
        cost = parts.cost(len(videos), "videos")
    clips = read_table(folder / "clips.parquet", CLIPS, columns=["start_s", "end_s"])
    seconds = clips.column("end_s").to_numpy() - clips.column("start_s").to_numpy()
    rejects = read_table(folder / "quarantine.parquet", QUARANTINE, columns=["code"])
    return {
        "videos": len(videos), "clips": len(clips), "rejected": len(rejects), "clip_seconds": float(seconds.sum()),
        "mean_clip_seconds": float(seconds.mean()) if len(seconds) else 0.0, "splitter": config.splitter, "cost": cost,
        "seconds": time.monotonic() - started,
    }  # fmt: skip


def write_cut(folder: Path, cut: Cut) -> dict[str, Any]:
    """clips.parquet, looks.npy and quarantine.parquet of some videos."""
    write_table(table_of(CLIPS, cut.clips), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, [{"sha256": "", **row} for row in cut.rejects]), folder / "quarantine.parquet", QUARANTINE)
    np.save(folder / "looks.npy", cut.looks)
    return {"clips": len(cut.clips)}


def gather_cuts(folder: Path, pieces: Sequence[Path]) -> None:
    """Write the pieces' tables and pictures as one, in order, one piece in memory at a time for the pictures."""
    for name, schema in (("clips.parquet", CLIPS), ("quarantine.parquet", QUARANTINE)):
        tables = [read_table(piece / name, schema) for piece in pieces]
        write_table(pa.concat_tables(tables) if tables else table_of(schema, []), folder / name, schema)
    loaded = [np.load(piece / "looks.npy", mmap_mode="r") for piece in pieces]
    looks = np.lib.format.open_memmap(folder / "looks.npy", "w+", np.uint8, (sum(map(len, loaded)), LOOKS, GRID, GRID))
    row = 0
    for piece in loaded:
        looks[row : row + len(piece)] = piece
        row += len(piece)
    looks.flush()


def check_clips(folder: Path, least: int = 1) -> dict[str, Check]:
    """Blocking check: the batch gave at least one clip (`least` 0 where it had no video)."""
    clips = read_table(folder / "clips.parquet", CLIPS, columns=["clip_id"])
    rejects = read_table(folder / "quarantine.parquet", QUARANTINE, columns=["code"])
    return {
        "not_empty": Check(
            len(clips) >= least, f"at least {least} clip", f"{len(clips)} clips, {len(rejects)} scenes or files rejected",
            "add videos with scenes of a second or longer, or lower min_clip_s",
        )
    }  # fmt: skip
