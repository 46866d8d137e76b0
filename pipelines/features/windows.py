"""Windows of a video: the frames that a clock of `fps` ticks shows, cut into runs of equal length, one pass, bounded memory.

Only sampled frames are turned into pictures, and each is brought to the encoder's size at once: an hour of 1080p costs
no more memory than its first seconds. A tick shows the last frame at or before it, whatever the file's own rate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import torch
from torch import Tensor

from models.preprocessing import Preprocess
from pipelines.errors import InputError, Reject
from pipelines.features.settings import FeatureSettings, exact
from pipelines.video.decode import open_video, time_base_of, timed_frames, to_array
from pipelines.video.probe import TRUNCATED_BELOW, probe_file

_ROUNDING_S = Fraction(1, 2000)  # containers that count milliseconds store 2/3 s as 0.667: still "at or before" 2/3
_BACKWARDS_S = 1  # a step back by more than reordered frames explain

_REENCODE = "Write it again with: ffmpeg -i IN -c:v libx264 OUT.mp4 (what is damaged is then left out)."
REMEDIES = {
    Reject.EMPTY_FILE: "Copy it again from where it came.",
    Reject.NOT_A_VIDEO: "Leave it out, or give its file the right name.",
    Reject.NO_VIDEO_STREAM: "Leave it out: it holds no moving picture.",
    Reject.TRUNCATED: "Copy or download it again; or keep its readable part: ffmpeg -i IN -c:v libx264 OUT.mp4.",
    Reject.UNREADABLE: "Mend its permissions or its link.",
    Reject.TIMEOUT: "Look whether the file can be played; " + _REENCODE[0].lower() + _REENCODE[1:],
}


class RejectedVideo(InputError):
    """A video that gives no features; `code` says why."""

    def __init__(self, path: Path, code: Reject, detail: str) -> None:
        super().__init__(f"{path} cannot be read", expected="a video that decodes to its end", found=f"{code.value}: {detail}", remedy=REMEDIES.get(code, _REENCODE))
        self.code, self.detail = code, detail


@dataclass(frozen=True, eq=False)
class Window:
    """One window: `video` (C, T, H, W) float32, ready for the encoder. Times are seconds from the video's first frame.

    `end_s` is where its footage ends; its last `filled` frames repeat the last one of the video.
    """

    number: int
    start_s: float
    end_s: float
    filled: int
    video: Tensor

    def without_pixels(self) -> Window:
        """The same window with an empty `video`, to keep its times in little memory."""
        return Window(self.number, self.start_s, self.end_s, self.filled, torch.empty(0))


def windows_of(path: Path, settings: FeatureSettings, *, beat: Callable[[], None] | None = None) -> Iterator[Window]:
    """The windows of a video in order; `beat` is called for each decoded frame.

    What is left at the end and is no longer than one tubelet makes no window of its own. Raises RejectedVideo, at the
    latest after the last window, when the file is not a video, is damaged or breaks off early.
    """
    clock = _Elapsed()
    try:
        yield from _windows(path, settings, clock, beat or (lambda: None))
    except RejectedVideo:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:  # a missing file is an OSError, a broken picture a ValueError
        words = getattr(error, "strerror", None) or str(error)
        if clock.frames:
            raise RejectedVideo(path, Reject.DECODE_ERROR, f"{words} after {clock.frames} frames ({float(clock.now):.2f} s)") from error
        verdict = probe_file(str(path))  # knows by its first bytes what the file wanted to be
        raise RejectedVideo(path, Reject(verdict.get("code", Reject.DECODE_ERROR)), verdict.get("detail", words)) from error
    except InputError as error:
        raise RejectedVideo(path, Reject.NO_VIDEO_STREAM, error.found) from error


def declared_seconds(path: Path) -> float | None:
    """Length of a video as its container declares it, in s; None when it says nothing or cannot be opened."""
    try:
        with open_video(path) as (container, stream):
            if stream.duration and stream.time_base:
                return float(stream.duration * stream.time_base)
            return container.duration / av.time_base if container.duration else None
    except (av.FFmpegError, OSError, InputError):
        return None


class _Elapsed:
    """How far decoding has come: frames, and the last one's time in s from the first."""

    frames = 0
    now = Fraction(0)


def _windows(path: Path, settings: FeatureSettings, clock: _Elapsed, beat: Callable[[], None]) -> Iterator[Window]:
    with open_video(path) as (_, stream):
        base, rate = time_base_of(stream), stream.guessed_rate or stream.average_rate or Fraction(25)
        declared_s, declared_frames = (stream.duration or 0) * base, stream.frames
    tolerance = min(base / 2, _ROUNDING_S)
    limit = None if settings.limit_seconds is None else exact(settings.limit_seconds)
    sampler = _Sampler(settings)
    picture: _Picture | None = None
    first = Fraction(0)
    for pts, frame in timed_frames(path):
        beat()
        if frame.is_corrupt:
            raise RejectedVideo(path, Reject.DECODE_ERROR, f"a damaged frame after {float(clock.now):.2f} s")
        if picture is None:
            first = pts * base
        now = pts * base - first
        if now < clock.now - _BACKWARDS_S:
            raise RejectedVideo(path, Reject.DECODE_ERROR, f"time stamps jump back from {float(clock.now):.2f} to {float(now):.2f} s")
        if limit is not None and now >= limit and picture is not None:
            yield from sampler.show(picture, limit, limit)
            yield from sampler.finish(picture, limit)
            return
        if picture is not None:
            yield from sampler.show(picture, now - tolerance)
        picture = _Picture(frame, settings.preprocess)
        clock.frames, clock.now = clock.frames + 1, now
    if picture is None:
        raise RejectedVideo(path, Reject.NO_FRAMES, "no frame came out")
    end = clock.now + (picture.duration_s or (clock.now / (clock.frames - 1) if clock.frames > 1 and clock.now > 0 else 1 / rate))
    # One frame may be a large share of a tiny file.
    if end < TRUNCATED_BELOW * declared_s and declared_frames - clock.frames != 1:
        raise RejectedVideo(path, Reject.TRUNCATED, f"{float(end):.2f} of {float(declared_s):.2f} declared seconds")
    if limit is not None:
        end = min(end, limit)
    yield from sampler.show(picture, end, end)
    yield from sampler.finish(picture, end)


class _Picture:
    """A decoded frame, brought to the encoder's size when it is first asked for: (C, 1, height, width) float32."""

    def __init__(self, frame: av.VideoFrame, preprocess: Preprocess) -> None:
        self._frame = frame
        self._preprocess = preprocess

    @property
    def duration_s(self) -> Fraction:
        """How long the file shows it, in s; 0 where it does not say."""
        return (self._frame.duration or 0) * (self._frame.time_base or Fraction(0))

    @cached_property
    def prepared(self) -> Tensor:
        return self._preprocess(torch.from_numpy(to_array(self._frame))[None])


class _Open:
    """A window that still waits for frames."""

    def __init__(self, number: int, start: Fraction) -> None:
        self.number, self.start = number, start
        self.pictures: list[Tensor] = []


class _Sampler:
    """Gives pictures to the ticks of all windows that are open, in the order of time."""

    def __init__(self, settings: FeatureSettings) -> None:
        self.length, self.step, self.stride = settings.frames, settings.step, exact(settings.stride_seconds)
        if settings.stride_seconds == float(self.length * self.step):
            self.stride = self.length * self.step  # consecutive windows touch exactly, also at 30000/1001 frames a second
        self.slack = (settings.tubelet_size - 1) * self.step
        self.opened = 0
        self.waiting: deque[_Open] = deque()

    def show(self, picture: _Picture, until: Fraction, end: Fraction | None = None) -> Iterator[Window]:
        """`picture` is on screen until then: it goes to every tick before, and windows that are over come out.

        `end` is given with the last picture: where the video ends.
        """
        for window in self.waiting:
            self._fill(window, picture, until)
        while self.waiting and self._over(self.waiting[0], until, end):
            yield self._close(self.waiting.popleft(), end)
        while self.opened * self.stride < until:
            window = _Open(self.opened, self.opened * self.stride)
            self.opened += 1
            self._fill(window, picture, until)
            if self._over(window, until, end):  # then so are all before it
                yield self._close(window, end)
            else:
                self.waiting.append(window)

    def finish(self, picture: _Picture, end: Fraction) -> Iterator[Window]:
        """The window that the end of the video cut short, if it has more than one tubelet that no window before it has.

        The video's last picture fills it up, as in upstream's loader.
        """
        for window in list(self.waiting)[:1]:
            covered = max(window.start, window.start - self.stride + self.length * self.step)
            if window.number == 0 or covered + self.slack < end:
                yield self._close(window, end, picture.prepared)

    def _fill(self, window: _Open, picture: _Picture, until: Fraction) -> None:
        while len(window.pictures) < self.length and window.start + len(window.pictures) * self.step < until:
            window.pictures.append(picture.prepared)

    def _over(self, window: _Open, until: Fraction, end: Fraction | None) -> bool:
        full = len(window.pictures) == self.length
        return full and (end is not None or window.start + self.length * self.step <= until)

    def _close(self, window: _Open, end: Fraction | None, filling: Tensor | None = None) -> Window:
        filled = self.length - len(window.pictures)
        full_end = window.start + self.length * self.step
        return Window(
            window.number, float(window.start), float(full_end if end is None else min(end, full_end)), filled,
            torch.cat([*window.pictures, *([] if filling is None else [filling] * filled)], dim=1),
        )  # fmt: skip
