"""The frames of clips that an encoder is shown: which ones, decoded in killable workers while the network runs on the last ones.

A clip whose frames cannot be had any more (its file changed, vanished, or hangs the decoder) is refused with a typed
code; the others of its file go on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipelines.curation.embedders.pixels import Geometry, fit
from pipelines.errors import InputError, Reject
from pipelines.video.decode import open_video, shown_at, time_base_of
from pipelines.video.workers import Crew, beat

FRAMES = "pipelines.curation.clip_frames:frames_of"
THREE_FRAMES = (0.25, 0.5, 0.75)
CLIPS_PER_JOB = 32
BYTES_PER_JOB = 32 * 2**20  # of pictures that one answer carries; each worker has at most two answers waiting
_ROUNDING_S = Fraction(1, 2000)  # containers that count milliseconds store 2/3 s as 0.667: still "at or before" 2/3


@dataclass(frozen=True)
class Sampling:
    """Which frames stand for a clip: those at `shares` of its length; or without shares a window of `frames` at `fps`.

    A window lies in the middle of the clip. In a clip that is shorter it starts with the clip, and the last frame is
    repeated, as in upstream's loader. A moment shows the last frame at or before it.
    """

    frames: int
    shares: tuple[float, ...] = ()
    fps: float = 0.0

    def pts(self, start_pts: int, end_pts: int, time_base: Fraction) -> list[int]:
        """The wanted pts in the clip [start_pts, end_pts), ascending."""
        if self.shares:
            return [start_pts + int((end_pts - start_pts) * share) for share in self.shares]
        step = 1 / Fraction(str(self.fps))
        first = max(Fraction(0), ((end_pts - start_pts) * time_base - self.frames * step) / 2)
        tolerance = min(time_base / 2, _ROUNDING_S)
        ticks = (math.floor((first + number * step + tolerance) / time_base) for number in range(self.frames))
        return [min(end_pts - 1, start_pts + tick) for tick in ticks]

    def to_dict(self) -> dict[str, Any]:
        """For digests and records; changing a word here makes every embedding another one."""
        if self.shares:
            return {"rule": "at_or_before_shares", "frames": self.frames, "positions": list(self.shares)}
        return {"rule": "middle_window_last_repeated", "frames": self.frames, "fps": self.fps}


def image_sampling(frames: int | str | None) -> Sampling:
    """Frames for an image encoder: the middle one, three at 25, 50 and 75 % (the default), or n spread evenly."""
    if frames == "clip" or (isinstance(frames, int) and frames < 1):
        raise InputError(
            f"an image encoder cannot see {frames} frames", expected="1 (the middle frame), 3, or another number", found=str(frames),
            remedy="name a number of frames, or a clip encoder such as V-JEPA 2",
        )  # fmt: skip
    count = 3 if frames is None else int(frames)
    return Sampling(count, THREE_FRAMES if count == 3 else tuple((number + 0.5) / count for number in range(count)))


@dataclass(frozen=True)
class Refusal:
    """Why a clip has no frames; `poison` when it hung or killed its worker."""

    code: Reject
    detail: str
    attempts: int = 1
    poison: bool = False


@dataclass(frozen=True)
class FrameJob:
    """Clips of one file for a worker: spans are (start pts, end pts, time base numerator, denominator)."""

    path: str
    spans: tuple[tuple[int, int, int, int], ...]
    sampling: Sampling
    geometry: Geometry


def frames_of(job: FrameJob) -> list[NDArray[np.uint8] | Refusal]:
    """(T, H, W, 3) uint8 for each clip, or why there is none. Runs in a worker."""
    try:
        return [*_decoded(job)]
    except (av.FFmpegError, OSError, ValueError, InputError) as error:
        if len(job.spans) == 1:
            return [_refusal(error)]
    # One damaged stretch must not take the other clips along.
    return [frames_of(FrameJob(job.path, (span,), job.sampling, job.geometry))[0] for span in job.spans]


def _decoded(job: FrameJob) -> list[NDArray[np.uint8]]:
    with open_video(job.path) as (_, stream):
        own = time_base_of(stream)
    count = job.sampling.frames
    wanted: list[int] = []
    spans = []
    for start, end, numerator, denominator in job.spans:
        ratio = Fraction(numerator, denominator) / own  # 1 unless the file was replaced
        spans.append((round(start * ratio), round(end * ratio)))
        wanted += job.sampling.pts(*spans[-1], own)
    pictures: dict[int, NDArray[np.uint8]] = {}
    last: tuple[av.VideoFrame, NDArray[np.uint8]] | None = None
    for index, pts, frame in shown_at(job.path, wanted, beat=beat):
        start, end = spans[index // count]
        if not start <= pts < end:
            raise InputError(
                "the file has changed since it was cut", expected=f"a frame in [{start}, {end}) x {own} s", found=f"one at {pts}",
                remedy="take it in again as a new batch",
            )  # fmt: skip
        if last is None or last[0] is not frame:
            last = frame, fit(frame, job.geometry)
        pictures[index] = last[1]  # moments that show one frame share its picture
    return [np.stack([pictures[number * count + place] for place in range(count)]) for number in range(len(spans))]


def _refusal(error: Exception) -> Refusal:
    """The clip was decoded once, when it was cut: now the file is gone, or it is not what it was."""
    lost = isinstance(error, FileNotFoundError | PermissionError) or (isinstance(error, OSError) and not isinstance(error, av.FFmpegError))
    words = getattr(error, "strerror", None) or str(error)
    return Refusal(Reject.UNREADABLE if lost else Reject.DECODE_ERROR, words)


@dataclass(frozen=True, eq=False)
class Group:
    """Some clips of a batch: rows that have frames with those, (n, T, H, W, 3) uint8; rows refused; CPU s of the workers."""

    rows: list[int]
    frames: NDArray[np.uint8]
    refused: list[tuple[int, Refusal]]
    cpu_s: float


class FrameSource:
    """Decodes the frames of clips in `workers` processes, one group ahead of whoever takes them. A context manager."""

    def __init__(self, sampling: Sampling, geometry: Geometry, *, workers: int = 2, timeout_s: float = 60.0) -> None:
        self._sampling, self._geometry, self._workers, self._timeout_s = sampling, geometry, max(1, workers), timeout_s
        self._crew = Crew(FRAMES, self._workers)
        # One thread for the whole life: the kernel kills workers when the thread that started them ends.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clip-frames")

    def __enter__(self) -> FrameSource:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._crew.__exit__(kind, error, trace)

    def groups(self, clips: Sequence[Mapping[str, Any]]) -> Iterator[Group]:
        """The clips (rows of the clips table) in order, some at a time."""
        size = self._geometry.height * self._geometry.width * 3 * self._sampling.frames
        per_job = max(1, min(CLIPS_PER_JOB, BYTES_PER_JOB // size))
        together = per_job * self._workers
        starts = range(0, len(clips), together)
        ahead: Future[Group] | None = None
        for start, following in itertools.zip_longest(starts, starts[1:]):
            current = ahead or self._thread.submit(self._group, clips, start, together, per_job)
            if following is not None:
                ahead = self._thread.submit(self._group, clips, following, together, per_job)
            yield current.result()

    def _group(self, clips: Sequence[Mapping[str, Any]], start: int, together: int, per_job: int) -> Group:
        by_path: dict[str, list[int]] = {}
        for row in range(start, min(len(clips), start + together)):
            by_path.setdefault(clips[row]["path"], []).append(row)
        jobs: list[FrameJob] = []
        rows_of_jobs: list[list[int]] = []
        for path, rows in by_path.items():
            for first in range(0, len(rows), per_job):
                rows_of_jobs.append(rows[first : first + per_job])
                jobs.append(FrameJob(path, tuple(_span(clips[row]) for row in rows_of_jobs[-1]), self._sampling, self._geometry))
        outcomes = self._crew.map(jobs, timeout_s=self._timeout_s)
        found: dict[int, NDArray[np.uint8] | Refusal] = {}
        for rows, outcome in zip(rows_of_jobs, outcomes, strict=True):
            if outcome.failure is None:
                found.update(zip(rows, outcome.value, strict=True))
            else:
                code = {"timeout": Reject.TIMEOUT, "died": Reject.WORKER_DIED}.get(outcome.failure, Reject.DECODE_ERROR)
                refusal = Refusal(code, outcome.detail, outcome.attempts, poison=outcome.failure in ("timeout", "died"))
                found.update(dict.fromkeys(rows, refusal))
        pictures = {row: item for row, item in sorted(found.items()) if not isinstance(item, Refusal)}
        shape = (0, self._sampling.frames, self._geometry.height, self._geometry.width, 3)
        frames = np.stack(list(pictures.values())) if pictures else np.empty(shape, np.uint8)
        refused = [(row, item) for row, item in sorted(found.items()) if isinstance(item, Refusal)]
        return Group(list(pictures), frames, refused, sum(outcome.cpu_s for outcome in outcomes))


def _span(clip: Mapping[str, Any]) -> tuple[int, int, int, int]:
    return clip["start_pts"], clip["end_pts"], clip["time_base_num"], clip["time_base_den"]
