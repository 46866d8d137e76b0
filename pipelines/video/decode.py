"""Exact decoding with PyAV: frames by presentation time stamp, upright, as RGB arrays.

PyAV decides what is decodable: the same bytes are read by the same decoder in the probe, the splitter, the embedder and
the shard writer. Spans are half open, [start_pts, end_pts), in units of the stream's time base.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from pipelines.errors import InputError
from pipelines.video.media import media_url

Frames = NDArray[np.uint8]


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file or tar member and its first moving-picture stream (cover art is none); one decoder thread.

    Raises `InputError` when there is no video stream or FFmpeg has no decoder for it, and `av.FFmpegError` when
    FFmpeg cannot open the file.
    """
    # Titles in other encodings than UTF-8 are common in old files, and a damaged one is no reason to give the pictures up.
    with av.open(media_url(path), metadata_errors="replace") as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            found = "a video stream of a codec that FFmpeg has no decoder for" if streams else f"{len(container.streams)} other streams"
            raise InputError(
                f"{path} has no video stream that can be decoded", expected="a moving picture", found=found, remedy="leave it out of the pool"
            )
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

    def pts(self, frame: av.VideoFrame) -> int:
        value = None if self.counts else frame.pts
        if value is None:
            value = 0 if self._last is None else self._last + self.step
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

    Where seeking fails, lands late, loses the time stamps or would give other pictures, the file is decoded from its start,
    so frames never differ between the two ways. Raises `av.FFmpegError` when it cannot be decoded through either.
    """
    last: int | None = None
    with contextlib.suppress(_Astray, av.FFmpegError), open_video(path) as (container, stream):
        if first_pts is not None and first_pts > (stream.start_time or 0) and not Clock(container, stream).counts:
            for last, frame in _jump(container, stream, first_pts):
                yield last, frame
            return
    with open_video(path) as (container, stream):
        clock = Clock(container, stream)
        for frame in container.decode(stream):
            pts = clock.pts(frame)
            if last is None or pts > last:
                yield pts, frame


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
    """For each wanted pts (any order) the last frame at or before it (the first frame if none is), as `to_array` makes it.

    Stretches between wanted frames are jumped over, see `shown_at`. Raises `InputError` when the file gives no frame.
    """
    found: dict[int, Frames] = {}
    last: tuple[av.VideoFrame, Frames] | None = None
    for index, _, frame in shown_at(path, wanted_pts):
        if last is None or last[0] is not frame:
            last = frame, to_array(frame, size)
        found[index] = last[1]
    return [found[index] for index in range(len(wanted_pts))]


def shown_at(
    path: str | Path, wanted_pts: Sequence[int], beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[int, int, av.VideoFrame]]:
    """(index into `wanted_pts`, pts, frame) in the order of time: the last frame at or before each wanted pts, or the first.

    Where the container lists a keyframe between the last frame and the next wanted one, decoding goes on from there. The
    frames are those of decoding through: a jump counts only when it comes out at a keyframe at or before the wanted pts,
    and frames shown before that keyframe (which may need pictures from before the jump) are left out. After a jump that
    went astray, and in AVI with B-frames, whose frames are counted, the rest is decoded through from the start.
    `beat` is called for each decoded frame. Raises `InputError` when the file gives no frame and `av.FFmpegError` when it
    can neither be jumped through nor decoded through.
    """
    order = sorted(range(len(wanted_pts)), key=lambda index: wanted_pts[index])
    rest = [wanted_pts[index] for index in order]
    done = 0
    for jumps in (True, False):
        try:
            for pts, frame in _passing(path, rest[done:], jumps, beat):
                yield order[done], pts, frame
                done += 1
            return
        except (_Astray, av.FFmpegError):
            if not jumps:
                raise


_LISTING = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi")  # formats (FFmpeg's names) whose index tells keyframes


class _Astray(Exception):
    """A jump did not come out where decoding through would have passed."""


def _passing(
    path: str | Path, wanted_pts: Sequence[int], jumps: bool, beat: Callable[[], None]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) shown at each of the ascending `wanted_pts`; raises `_Astray` when `jumps` and one of them fails."""
    with open_video(path) as (container, stream):
        clock = Clock(container, stream)
        jumps, lists = jumps and not clock.counts, container.format.name in _LISTING
        start = stream.start_time or 0
        coming: Iterator[tuple[int, av.VideoFrame]] = ((clock.pts(frame), frame) for frame in container.decode(stream))
        shown: tuple[int, av.VideoFrame] | None = None
        ahead: tuple[int, av.VideoFrame] | None = None
        for number, wanted in enumerate(wanted_pts):
            if jumps and (wanted > start if number == 0 else lists and ahead and _key_between(stream, ahead[0], wanted)):
                coming, shown = _jump(container, stream, wanted), None
                ahead = next(coming)
            elif number == 0:
                ahead = next(coming, None)
            while ahead is not None and ahead[0] <= wanted:
                shown, ahead = ahead, next(coming, None)
                beat()
            found = shown or ahead
            if found is None:
                raise InputError(
                    f"{path} gives no frame", expected="the video that was probed", found="nothing decodable",
                    remedy="the file has changed since it was probed: take it in again as a new batch",
                )  # fmt: skip
            yield found


def _key_between(stream: VideoStream, pts: int, wanted: int) -> bool:
    """Whether the container lists a keyframe after `pts` and not after `wanted`."""
    entries = stream.index_entries
    number = entries.search_timestamp(wanted, backward=True) if len(entries) else -1
    return number >= 0 and entries[number].is_keyframe and pts < entries[number].timestamp <= wanted


def _jump(container: InputContainer, stream: VideoStream, wanted: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) from a keyframe at or before `wanted` on, the keyframe first; raises `_Astray` when there is no such."""
    target, step, start = wanted, round(1 / time_base_of(stream)), stream.start_time or 0
    while True:
        container.seek(target, stream=stream, backward=True)
        packets = container.demux(stream)
        first = next((packet for packet in packets if packet.is_keyframe and packet.size), None)
        if first is not None and first.pts is not None and first.pts <= wanted and not first.is_corrupt:
            break
        if target <= start:
            raise _Astray
        if first is not None and first.dts is not None and first.dts <= target:
            target = first.dts - 1  # keyframes are listed by decoding time: with B-frames this one is shown later
        else:
            target, step = max(start, target - step), 2 * step  # TS has no list: any packet may come after a seek
    key_pts, started = first.pts, False
    for packet in itertools.chain([first], packets):
        for frame in packet.decode():
            if frame.pts is None or not (started or frame.pts <= key_pts):
                raise _Astray
            started = started or frame.pts == key_pts
            if started and frame.pts >= key_pts:
                yield frame.pts, frame
    if not started:
        raise _Astray
