"""What a source file itself says of a clip's frames: their times, and whether its packets could be kept as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av

from pipelines.video.decode import Clock, open_video, time_base_of, timed_frames

SEEKABLE = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # formats (FFmpeg's names) that list key frames and keep pts


@dataclass(frozen=True)
class Numbered:
    """Frames [first, last) of a file counted from its start, `step` ticks apart."""

    first: int
    last: int
    step: int


@dataclass(frozen=True)
class SourceSpan:
    """The packets of a clip in its source, by pts in ticks of the clip's time base, in decoding order.

    `keys` tells the key frames; `whole` that the packets lie side by side in the order in which they are shown.
    """

    pts: tuple[int, ...]
    keys: tuple[bool, ...]
    whole: bool


def numbered_frames(clip: dict[str, Any]) -> Numbered | None:
    """The clip's frames by number where the container keeps no presentation times (AVI); None where times can be trusted.

    FFmpeg's own guess at AVI's times shifts by a frame between seeking and reading through, so the frames are counted as
    the splitter counted them.
    """
    with open_video(clip["path"]) as (container, stream):
        if container.format.name != "avi":
            return None
        step = Clock(container, stream).step
    inside = [number for number, (pts, _) in enumerate(timed_frames(clip["path"])) if clip["start_pts"] <= pts < clip["end_pts"]]
    return Numbered(inside[0], inside[-1] + 1, step) if inside else Numbered(0, 0, step)


def ticks_of(clip: dict[str, Any], numbered: Numbered | None) -> list[int]:
    """Ticks from the clip's first frame to each, without decoding where the packets account for all `clip["frames"]`, else
    by decoding. Raises `av.FFmpegError` and `InputError` as `timed_frames` does."""
    if numbered is not None:
        return [place * numbered.step for place in range(numbered.last - numbered.first)]
    span = source_span(clip)
    pts = sorted(span.pts) if span is not None else []
    if len(pts) != clip["frames"]:
        pts = [pts for pts, _ in frames_of(clip)]
    return [stamp - pts[0] for stamp in pts]


def frames_of(clip: dict[str, Any], back: int = 0) -> Iterator[tuple[int, av.VideoFrame]]:
    """(pts, frame) of the clip from its source; decoding starts at a key frame at least `back` ticks before the clip."""
    for pts, frame in timed_frames(clip["path"], clip["start_pts"] - back):
        if pts >= clip["end_pts"]:
            return
        if pts >= clip["start_pts"]:
            yield pts, frame


def source_span(clip: dict[str, Any]) -> SourceSpan | None:
    """Read the clip's packets without decoding; None where the container does not lead to them or has another clock."""
    with open_video(clip["path"]) as (container, stream):
        if container.format.name not in SEEKABLE or time_base_of(stream) != Fraction(clip["time_base_num"], clip["time_base_den"]):
            return None
        container.seek(clip["start_pts"], stream=stream, backward=True)
        pts: list[int] = []
        keys: list[bool] = []
        whole, last = True, None
        for packet in container.demux(stream):
            if packet.pts is None:
                continue
            if clip["start_pts"] <= packet.pts < clip["end_pts"]:
                whole = whole and (not pts or (packet.pts > pts[-1] and last == pts[-1]))
                pts.append(packet.pts)
                keys.append(packet.is_keyframe)
            last = packet.pts
            if packet.dts is not None and packet.dts >= clip["end_pts"]:
                break
        return SourceSpan(tuple(pts), tuple(keys), whole)
