"""Scene cutting: videos become virtual clips, spans of presentation time in which nothing is cut and nothing transcoded.

PySceneDetect's detectors see frames that PyAV decoded, so cuts fall on exact time stamps. The same pass records, for
every clip, motion, brightness and the perceptual fingerprint; nothing is filtered by them here.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.checks import Check
from pipelines.errors import Reject
from pipelines.identity import clip_id
from pipelines.recipes import Part
from pipelines.schemas import CLIPS, QUARANTINE, VIDEOS, read_table, table_of, write_table
from pipelines.video.workers import map_killable

logger = logging.getLogger("tubelet.curation")

SCAN = "pipelines.curation.scenes:scan_video"
DETECTOR_WIDTH = 256  # pixels; PySceneDetect's own default working width
MOTION_STEP_S = 0.25
WHOLE = "whole-v1"


class SceneConfig(Part):
    """How videos are cut. V-JEPA 2 names neither detector nor threshold; adaptive does best in PySceneDetect's benchmark."""

    detector: Literal["adaptive", "content"] = "adaptive"
    threshold: float = 3.0  # adaptive: ratio to the neighbourhood; content: change of content, usually 27
    min_clip_s: float = 1.0
    max_clip_s: float = 6.0  # longer scenes are divided into equal parts
    min_scene_s: float = 0.3  # cuts closer than this are one
    seconds_per_video: float = 60.0  # time limit of one video's scan, at least; long videos get twice their length

    @property
    def splitter(self) -> str:
        """Name of the cutting rule, part of every clip_id."""
        return f"{self.detector}-{self.threshold:g}-{self.min_scene_s:g}-{self.min_clip_s:g}-{self.max_clip_s:g}-v1"


@dataclass(frozen=True)
class Job:
    """One video for a worker; `config` None means one clip over the whole video."""

    path: str
    frame_rate: float
    config: SceneConfig | None


@dataclass(frozen=True)
class Span:
    """One clip of a scanned video: half-open in pts; motion and brightness in grey levels (0..255)."""

    start_pts: int
    end_pts: int
    frames: int
    motion: float
    brightness: float
    fingerprint: str


@dataclass(frozen=True)
class Scan:
    """What one pass over a video gave: clips, scenes too short to be one (start_s, end_s), frames seen."""

    clips: tuple[Span, ...]
    short: tuple[tuple[float, float], ...]
    frames: int


def scan_video(job: Job) -> Scan:
    """Decode one video once; cut it and measure its clips. Runs in a worker, on one thread."""
    import cv2

    from pipelines.video.decode import open_video, time_base_of, timed_frames, to_array, upright_size
    from pipelines.video.fingerprint import cell_grid

    cv2.setNumThreads(1)
    with open_video(job.path) as (_, stream):
        base = time_base_of(stream)
    detector = make_detector(job.config, job.frame_rate) if job.config else None
    stamps: list[int] = []
    grids: list[NDArray[np.uint8]] = []
    cuts: list[int] = []
    for pts, frame in timed_frames(job.path):
        height, width = upright_size(frame)
        scale = max(1.0, width / DETECTOR_WIDTH)
        size = (max(1, round(height / scale)), max(1, round(width / scale)))
        image = to_array(frame, size, "bgr24")
        if detector is not None:
            cuts += detector(len(stamps), image)
        stamps.append(pts)
        grids.append(cell_grid(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)))  # type: ignore[arg-type]
    return _spans(stamps, grids, cuts, base, job.config)


def make_detector(config: SceneConfig, frame_rate: float) -> Callable[[int, NDArray[np.uint8]], list[int]]:
    """A function of (frame number, BGR frame) that returns the numbers of frames found to start a scene."""
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    # In frames, since PySceneDetect measures variable frame rates by their average.
    shortest = max(1, round(config.min_scene_s * frame_rate))
    rate = Fraction(frame_rate).limit_denominator(1001)
    detector: AdaptiveDetector | ContentDetector
    if config.detector == "adaptive":
        detector = AdaptiveDetector(adaptive_threshold=config.threshold, min_scene_len=shortest)
    else:
        detector = ContentDetector(threshold=config.threshold, min_scene_len=shortest)

    def detect(number: int, image: NDArray[np.uint8]) -> list[int]:
        return [cut.frame_num for cut in detector.process_frame(FrameTimecode(number, fps=rate), image)]

    return detect


def _spans(
    stamps: list[int], grids: list[NDArray[np.uint8]], cuts: list[int], base: Fraction, config: SceneConfig | None
) -> Scan:  # fmt: skip
    """Divide the frames at `cuts` into clips of allowed lengths."""
    count = len(stamps)
    if count < 2:
        return Scan((), ((0.0, 0.0),), count)
    typical = int(np.median(np.diff(stamps)))
    ends = [*stamps[1:], stamps[-1] + max(1, typical)]
    edges = sorted({0, count, *(cut for cut in cuts if 0 < cut < count)})
    clips: list[Span] = []
    short: list[tuple[float, float]] = []
    for first, last in itertools.pairwise(edges):
        start, end = stamps[first], ends[last - 1]
        seconds = float((end - start) * base)
        # Half a frame of grace: a scene of 25 frames at 25/s is 1 s long, whatever its clock rounds to.
        if config is not None and seconds < config.min_clip_s - float(typical * base) / 2:
            short.append((float((start - stamps[0]) * base), float((end - stamps[0]) * base)))
            continue
        parts = 1 if config is None else max(1, math.ceil(seconds / config.max_clip_s - 0.01))
        borders = [start + round((end - start) * part / parts) for part in range(parts + 1)]
        numbers = [first + int(np.searchsorted(stamps[first:last], border)) for border in borders[:-1]] + [last]
        clips += [
            measure_span(stamps, ends, grids, one, two, base)
            for one, two in itertools.pairwise(numbers)
            if two > one
        ]
    return Scan(tuple(clips), tuple(short), count)


def measure_span(
    stamps: list[int], ends: list[int], grids: list[NDArray[np.uint8]], first: int, last: int, base: Fraction
) -> Span:  # fmt: skip
    """The clip of frames [first, last). Motion: mean absolute difference between frames 0.25 s apart."""
    from pipelines.video.fingerprint import fingerprint

    own = np.stack(grids[first:last]).astype(np.float32)
    own_stamps = np.asarray(stamps[first:last])
    later = np.searchsorted(own_stamps, own_stamps + round(MOTION_STEP_S / base))
    pairs = np.flatnonzero(later < len(own))
    if len(pairs) == 0:
        pairs, later = np.array([0]), np.array([len(own) - 1])
    motion = float(np.abs(own[pairs] - own[later[pairs]]).mean())
    return Span(
        stamps[first], ends[last - 1], last - first, round(motion, 4), round(float(own.mean()), 4), fingerprint(grids[first:last])
    )


def cut_videos(
    videos: Sequence[dict[str, Any]],
    config: SceneConfig | None,
    *,
    labels: Sequence[str] | None = None,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
    scan: str = SCAN,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Scan `videos` (rows of the videos table): (`clips` rows, `quarantine` rows), in the order of the videos.

    `config` None makes one clip of each whole video. `scan` names the function that workers run.
    """
    jobs = [Job(video["path"], video["frame_rate"], config) for video in videos]
    least = config.seconds_per_video if config else SceneConfig().seconds_per_video
    limit = max([least, *(2.0 * video["duration_s"] for video in videos)])
    outcomes = map_killable(scan, jobs, workers=min(workers, 2), timeout_s=limit, progress=progress)
    clips: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for index, (video, outcome) in enumerate(zip(videos, outcomes, strict=True)):
        common = {name: video[name] for name in ("path", "batch", "source", "bytes")}
        if outcome.failure is not None or outcome.value.frames != video["frames"]:
            code = {"timeout": Reject.TIMEOUT, "died": Reject.WORKER_DIED}.get(outcome.failure or "", Reject.DECODE_ERROR)
            detail = outcome.detail or f"{outcome.value.frames} frames where the probe found {video['frames']}: the file has changed"
            poison = outcome.failure in ("timeout", "died")
            rejects.append({**common, "code": code.value, "detail": detail, "attempts": outcome.attempts, "poison": poison})
            logger.info("quarantined %s: %s (%s)", video["path"], code.value, detail)
            continue
        for start_s, end_s in outcome.value.short:
            detail = f"scene {start_s:.2f}-{end_s:.2f} s is shorter than a clip"
            rejects.append({**common, "code": Reject.TOO_SHORT.value, "detail": detail, "attempts": 1, "poison": False})
        splitter = config.splitter if config else WHOLE
        clips += [_clip_row(video, span, splitter, labels[index] if labels else "") for span in outcome.value.clips]
    return clips, rejects


def _clip_row(video: dict[str, Any], span: Span, splitter: str, label: str) -> dict[str, Any]:
    """One row of the clips table; seconds count from the video's first frame."""
    base = (video["time_base_num"], video["time_base_den"])
    copied = {
        name: video[name]
        for name in ("video_id", "batch", "path", "width", "height", "frame_rate", "source", "licence", "uploader")
    }
    return {
        **copied, "clip_id": clip_id(video["video_id"], span.start_pts, span.end_pts, base, splitter),
        "start_pts": span.start_pts, "end_pts": span.end_pts, "time_base_num": base[0], "time_base_den": base[1],
        "start_s": (span.start_pts - video["start_pts"]) * base[0] / base[1],
        "end_s": (span.end_pts - video["start_pts"]) * base[0] / base[1], "frames": span.frames, "splitter": splitter,
        "motion": span.motion, "brightness": span.brightness, "fingerprint": span.fingerprint, "label": label,
    }  # fmt: skip


def build_clips(
    folder: Path,
    videos_folder: Path,
    *,
    config: SceneConfig | None = None,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Cut one batch into `folder`: clips.parquet and quarantine.parquet. Returns the summary."""
    started = time.monotonic()
    config = config or SceneConfig()
    videos = read_table(videos_folder / "videos.parquet", VIDEOS).to_pylist()
    clips, rejects = cut_videos(videos, config, workers=workers, progress=progress)
    write_table(table_of(CLIPS, clips), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, rejects), folder / "quarantine.parquet", QUARANTINE)
    seconds = [clip["end_s"] - clip["start_s"] for clip in clips]
    return {
        "videos": len(videos), "clips": len(clips), "rejected": len(rejects), "clip_seconds": sum(seconds),
        "mean_clip_seconds": sum(seconds) / max(1, len(seconds)), "seconds": time.monotonic() - started,
    }  # fmt: skip


def check_clips(folder: Path) -> dict[str, Check]:
    """Blocking check: the batch gave at least one clip."""
    clips = read_table(folder / "clips.parquet", CLIPS)
    rejects = read_table(folder / "quarantine.parquet", QUARANTINE)
    return {
        "not_empty": Check(
            len(clips) > 0, "at least one clip", f"{len(clips)} clips, {len(rejects)} scenes or files rejected",
            "add videos with scenes of a second or longer, or lower min_clip_s",
        )
    }  # fmt: skip
