"""Exact decoding with PyAV: frames by presentation time stamp, upright, as RGB arrays.

PyAV decides what is decodable: the same bytes are read by the same decoder in the probe, the splitter, the embedder and
the shard writer. Spans are half open, [start_pts, end_pts), in units of the stream's time base.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.errors import InputError

Frames = NDArray[np.uint8]


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file and its first moving-picture stream (cover art is none); one decoder thread.

    Raises `InputError` when there is no video stream and `av.FFmpegError` when FFmpeg cannot open the file.
    """
    with av.open(str(path)) as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise InputError(
                f"{path} has no video stream", expected="a moving picture", found=f"{len(container.streams)} other streams",
                remedy="leave it out of the pool",
            )  # fmt: skip
        stream = streams[0]
        stream.thread_type = "NONE"  # one thread: callers run several files side by side
        yield container, stream


def time_base_of(stream: VideoStream) -> Fraction:
    """The stream's time base in seconds (1/1000 when the container names none)."""
    return stream.time_base or Fraction(1, 1000)


class Clock:
    """Gives every decoded frame a pts: the decoder's own, or one frame after the last where it has none.

    AVI stores no presentation times: with B-frames FFmpeg hands out decoding times in scrambled order, so there the
    frames are counted instead.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        self.step = max(1, round(1 / (rate * time_base_of(stream))))
        self.counts = container.format.name == "avi" and bool(stream.codec_context.has_b_frames)
        self._last: int | None = None
        self.guessed = 0

    def pts(self, frame: av.VideoFrame) -> int:
        value = None if self.counts else frame.pts
        if value is None:
            value = 0 if self._last is None else self._last + self.step
            self.guessed += 1
        self._last = value
        return value


def upright_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(height, width) in pixels of the frame as a person sees it."""
    return (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)


def to_array(frame: av.VideoFrame, size: tuple[int, int] | None = None, pixels: str = "rgb24") -> Frames:
    """The frame upright as (H, W, 3) uint8 (or (H, W) with pixels="gray"), resized to `size` (height, width) if given."""
    height, width = size or upright_size(frame)
    if frame.rotation % 180:
        height, width = width, height
    if size is not None and (height, width) != (frame.height, frame.width):
        frame_array = frame.reformat(width=width, height=height, format=pixels, interpolation="AREA").to_ndarray()
    else:
        frame_array = frame.reformat(format=pixels).to_ndarray()
    # `rotation` is how far to turn counterclockwise for display, as is np.rot90.
    return np.ascontiguousarray(np.rot90(frame_array, k=(frame.rotation // 90) % 4))


def timed_frames(path: str | Path, first_pts: int | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) in presentation order, from the start or from the last keyframe at or before `first_pts`.

    Where seeking lands late or loses the time stamps, the file is decoded from its start, so pts never differ
    between the two ways.
    """
    if first_pts is not None:
        with open_video(path) as (container, stream):
            if first_pts > (stream.start_time or 0):
                container.seek(first_pts, stream=stream, backward=True)
                clock, landed = Clock(container, stream), False
                for frame in container.decode(stream):
                    pts = clock.pts(frame)
                    landed = landed or (pts <= first_pts and not clock.guessed)
                    if not landed:
                        break
                    yield pts, frame
                if landed:
                    return
    with open_video(path) as (container, stream):
        clock = Clock(container, stream)
        for frame in container.decode(stream):
            yield clock.pts(frame), frame


def decode_span(
    path: str | Path,
    start_pts: int,
    end_pts: int,
    time_base: tuple[int, int],
    *,
    size: tuple[int, int] | None = None,
) -> tuple[Frames, NDArray[np.float64]]:
    """Frames of [start_pts, end_pts): (T, H, W, 3) uint8 RGB and their times (T,) in s of the stream's own clock.

    `time_base` (num, den) is the one the span was recorded in; `size` (height, width) resizes. Raises `InputError` when
    the file has no frame in the span.
    """
    arrays: list[Frames] = []
    times: list[float] = []
    with open_video(path) as (_, stream):
        own = time_base_of(stream)
    ratio = Fraction(*time_base) / own
    first, last = round(start_pts * ratio), round(end_pts * ratio)
    for pts, frame in timed_frames(path, first):
        if pts >= last:
            break
        if pts >= first:
            arrays.append(to_array(frame, size))
            times.append(float(pts * own))
    if not arrays:
        raise InputError(
            f"{path} has no frame in its recorded span", expected=f"frames in [{start_pts}, {end_pts}) x {time_base[0]}/{time_base[1]} s",
            found="none", remedy="the file has changed since it was probed: take it in again as a new batch",
        )  # fmt: skip
    return np.stack(arrays), np.asarray(times)


def frames_at(path: str | Path, wanted_pts: Sequence[int], *, size: tuple[int, int] | None = None) -> list[Frames]:
    """For each wanted pts (any order) the last frame at or before it (the first frame if none is), in one pass."""
    order = sorted(range(len(wanted_pts)), key=lambda index: wanted_pts[index])
    found: dict[int, Frames] = {}
    waiting = list(order)
    previous: av.VideoFrame | None = None
    for pts, frame in timed_frames(path, wanted_pts[order[0]] if order else None):
        passed = []
        while waiting and pts > wanted_pts[waiting[0]]:
            passed.append(waiting.pop(0))
        if passed:
            array = to_array(previous or frame, size)
            found.update(dict.fromkeys(passed, array))
        previous = frame
        if not waiting:
            break
    if waiting:
        if previous is None:
            raise InputError(
                f"{path} gives no frame", expected="the video that was probed", found="nothing decodable",
                remedy="the file has changed since it was probed: take it in again as a new batch",
            )  # fmt: skip
        found.update(dict.fromkeys(waiting, to_array(previous, size)))
    return [found[index] for index in range(len(wanted_pts))]
