"""Clips whose source is in training form already: the packets are kept as they are, once decoding has proven it harmless."""

from __future__ import annotations

import contextlib
import io
import subprocess
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg
import numpy as np

from pipelines.errors import InputError
from pipelines.shards.form import COPIED, CutClip, ShardConfig, longest_gop, measure, run_ffmpeg
from pipelines.shards.source import SourceSpan, frames_of, source_span
from pipelines.shards.thinning import mean_rate
from pipelines.video.decode import open_video
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.media import media_url

UNSPECIFIED, BT470BG, SMPTE170M, LIMITED = 2, 5, 6, (0, 1)  # FFmpeg's numbers of colour matrices and ranges


def copy_clip(clip: dict[str, Any], target: Path, config: ShardConfig) -> CutClip | None:
    """The clip as an mp4 of its source's own packets; None when these are not in training form, or when the copy does not
    decode to just the frames and times of the source. Never raises for a bad source."""
    with contextlib.suppress(av.FFmpegError, InputError, subprocess.TimeoutExpired):
        span = _copyable(clip, config)
        if span is not None and run_ffmpeg(_command(clip, target), target, config.cut_timeout_s)[0] == 0 and target.is_file():
            return _proven(target.read_bytes(), clip, span, config)
    return None


def _copyable(clip: dict[str, Any], config: ShardConfig) -> SourceSpan | None:
    """The clip's packets when codec, size and packets allow keeping them; what only pictures tell is left to `_proven`."""
    with open_video(clip["path"]) as (_, stream):
        codec = stream.codec_context
        square = codec.sample_aspect_ratio in (None, 0, 1) and stream.sample_aspect_ratio in (None, 0, 1)
        if codec.name != "h264" or codec.pix_fmt != "yuv420p" or not square or min(stream.width, stream.height) > config.short_side:
            return None
    span = source_span(clip)
    if span is None or len(span.pts) != clip["frames"] or span.pts[0] != clip["start_pts"] or not (span.whole and span.keys[0]):
        return None
    return span if longest_gop(list(span.keys)) <= config.gop else None


def _command(clip: dict[str, Any], target: Path) -> list[str]:
    """Seeks to the middle of the clip's first frame: the key frame before that instant is this frame."""
    tick, frames = Fraction(clip["time_base_num"], clip["time_base_den"]), clip["frames"]
    middle_s = (clip["start_pts"] + Fraction(clip["end_pts"] - clip["start_pts"], 2 * frames)) * tick
    stream = ffmpeg.input(media_url(clip["path"]), seek_timestamp=1, ss=f"{float(middle_s):.6f}")["V:0"]
    return (
        ffmpeg.output(
            stream, str(target), c="copy", map_metadata=-1, map_chapters=-1, fflags="+bitexact", avoid_negative_ts="make_zero", format="mp4",
            **{"frames:v": frames, "flags:v": "+bitexact"},
        )
        .global_args("-nostdin", "-loglevel", "error")
        .overwrite_output()
        .compile(cmd=ffmpeg_binary())
    )  # fmt: skip


def _proven(data: bytes, clip: dict[str, Any], span: SourceSpan, config: ShardConfig) -> CutClip | None:
    """The copy, when its frames are the source's, decoded from before the clip so that nothing earlier is missed, bit by
    bit and tick by tick, and need no turning, stretching or other colours."""
    tick = Fraction(clip["time_base_num"], clip["time_base_den"])
    times = tuple((pts - span.pts[0]) * tick for pts in span.pts)
    found = measure(data)
    if found.times != times or found.problem(config.gop):
        return None
    copies, last = _decoded(data), None
    for (pts, frame), (time, copied) in zip(frames_of(clip, back=1), copies, strict=False):
        same = time == (pts - clip["start_pts"]) * tick and (frame.width, frame.height) == (found.width, found.height)
        if not (same and _trainable(frame) and _same(frame, copied)):
            return None
        last = time
    if last != times[-1] or next(copies, None) is not None:
        return None
    return CutClip(
        data, len(times), float(times[0]), float(times[-1]), float(mean_rate(clip, len(times))), found.width, found.height, COPIED, 1
    )  # fmt: skip


def _decoded(data: bytes) -> Iterator[tuple[Fraction | None, av.VideoFrame]]:
    with av.open(io.BytesIO(data), mode="r", format="mp4") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for frame in container.decode(stream):
            yield None if frame.pts is None else Fraction(frame.pts) * (frame.time_base or 0), frame


def _trainable(frame: av.VideoFrame) -> bool:
    """Whether a decoded frame can be stored as it is: the form is 4:2:0 in BT.601, limited range, upright, with even sides."""
    upright = frame.format.name == "yuv420p" and frame.rotation == 0 and not frame.is_corrupt
    even = frame.width % 2 == 0 and frame.height % 2 == 0
    return upright and even and int(frame.colorspace) in (UNSPECIFIED, BT470BG, SMPTE170M) and int(frame.color_range) in LIMITED


def _same(frame: av.VideoFrame, other: av.VideoFrame) -> bool:
    return other.rotation == 0 and np.array_equal(frame.to_ndarray(format="yuv420p"), other.to_ndarray(format="yuv420p"))
