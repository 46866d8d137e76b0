"""Cutting one clip out of its source file into the training form, frame-exactly, and measuring what came out."""

from __future__ import annotations

import itertools
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import ffmpeg
import pydantic

from pipelines.errors import InputError, Reject
from pipelines.shards.decode import packet_times
from pipelines.video.decode import Clock, open_video, timed_frames
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.media import media_stat, media_url

EARLY_S = (0.0, 5.0, math.inf)  # how long before a clip each attempt starts to decode; infinity: at the beginning


class ShardConfig(pydantic.BaseModel):
    """Form of the stored clips. `short_side` in px (even; smaller sources keep their size), `gop` in frames, sizes in bytes.

    A GOP of at most 16 and no B-frames bound the frames decoded to reach any instant (docs: mean half a GOP).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    short_side: int = pydantic.Field(default=112, ge=16, multiple_of=2)
    gop: int = pydantic.Field(default=16, ge=1, le=32)
    crf: int = pydantic.Field(default=20, ge=0, le=51)
    preset: str = "veryfast"
    shard_bytes: int = pydantic.Field(default=64 * 2**20, ge=1)
    cut_timeout_s: float = 120.0


@dataclass(frozen=True)
class CutClip:
    """`data` is the mp4; times in s on the clip's own clock, of the first and the last frame."""

    data: bytes
    frames: int
    first_pts_s: float
    last_pts_s: float
    attempts: int


@dataclass(frozen=True)
class CutFailure:
    """Why a clip could not be cut; `detail` carries ffmpeg's words or the counts that disagree."""

    code: Reject
    detail: str
    attempts: int


def cut_clip(clip: dict[str, Any], target: Path, config: ShardConfig) -> CutClip | CutFailure:
    """Cut one row of the `clips` table to the temporary file `target` and read it back; never raises for a bad source.

    The frames kept are those with start_pts <= pts < end_pts. First by seeking to the start; if their number is not
    `clip["frames"]` (containers such as mpegts seek inexactly), from some seconds before, then from the file's beginning.
    """
    failure = CutFailure(Reject.UNREADABLE, f"{clip['path']} is not there", 0)
    try:
        media_stat(clip["path"])
    except OSError:
        return failure
    try:
        numbered = _numbered(clip)
    except (av.FFmpegError, InputError) as error:
        return CutFailure(Reject.DECODE_ERROR, str(error), 1)
    for attempt, early_s in enumerate(EARLY_S if numbered is None else (math.inf,), start=1):
        try:
            done = subprocess.run(
                _command(clip, target, config, early_s, numbered), stdin=subprocess.DEVNULL, capture_output=True, timeout=config.cut_timeout_s,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return CutFailure(Reject.TIMEOUT, f"no end after {config.cut_timeout_s:g} s", attempt)
        words = done.stderr.decode(errors="replace").strip()[-300:]
        if done.returncode != 0 or not target.is_file():
            failure = CutFailure(Reject.DECODE_ERROR, words or f"ffmpeg exit code {done.returncode}", attempt)
            continue
        outcome = _inspect(target.read_bytes(), clip, config, attempt, words)
        if isinstance(outcome, CutClip):
            return outcome
        failure = outcome
    return failure


def _inspect(data: bytes, clip: dict[str, Any], config: ShardConfig, attempt: int, words: str) -> CutClip | CutFailure:
    try:
        times, keyframes, reordered = packet_times(data)
    except (av.FFmpegError, IndexError) as error:
        return CutFailure(Reject.NO_FRAMES, f"nothing readable was cut: {error}; {words}".strip("; "), attempt)
    if len(times) != clip["frames"]:
        code = Reject.TRUNCATED if times else Reject.NO_FRAMES
        return CutFailure(code, f"{len(times)} frames where the clip has {clip['frames']}; {words}".strip("; "), attempt)
    if reordered or longest_gop(keyframes) > config.gop:
        return CutFailure(Reject.DECODE_ERROR, "the encoder kept to neither the key frame distance nor the frame order", attempt)
    return CutClip(data, len(times), times[0], times[-1], attempt)


def longest_gop(keyframes: list[bool]) -> int:
    """Longest run of frames from one key frame to before the next."""
    starts = [position for position, key in enumerate(keyframes) if key] + [len(keyframes)]
    return max((after - before for before, after in itertools.pairwise(starts)), default=len(keyframes))


@dataclass(frozen=True)
class Numbered:
    """Frames [first, last) of a file counted from its start, `step` ticks apart."""

    first: int
    last: int
    step: int


def _numbered(clip: dict[str, Any]) -> Numbered | None:
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


def _command(clip: dict[str, Any], target: Path, config: ShardConfig, early_s: float, numbered: Numbered | None) -> list[str]:
    """The ffmpeg command line. Source timestamps are kept (`copyts`) so that `trim` selects frames by the source's own pts,
    or by their number in the file."""
    numerator, denominator = clip["time_base_num"], clip["time_base_den"]
    tick = numerator / denominator
    options: dict[str, Any] = {"threads": 1, "copyts": None}
    seek_s = clip["start_pts"] * tick - early_s
    if math.isfinite(seek_s):
        options |= {"seek_timestamp": 1, "ss": f"{seek_s:.6f}", "noaccurate_seek": None}
    shrink = f"min(1,{config.short_side}/min(iw*sar,ih))"
    if numbered is None:
        # Half a tick early on both sides: `trim` takes decimal seconds, and no frame lies between two ticks.
        span: dict[str, Any] = {"start": f"{(clip['start_pts'] - 0.5) * tick:.7f}", "end": f"{(clip['end_pts'] - 0.5) * tick:.7f}"}
    else:
        span = {"start_frame": numbered.first, "end_frame": numbered.last}
    stream = (
        ffmpeg.input(media_url(clip["path"]), **options)["V:0"]  # the first moving picture: cover art is no video
        .filter("trim", **span)
        .filter("setpts", "PTS-STARTPTS" if numbered is None else f"N*{numbered.step}")
        .filter(
            "scale", w=f"max(2,trunc(iw*sar*{shrink}/2+0.001)*2)", h=f"max(2,trunc(ih*{shrink}/2+0.001)*2)",
            flags="bicubic+accurate_rnd+full_chroma_int+bitexact", out_color_matrix="bt601", out_range="tv",
        )
        .filter("setsar", 1)
        .filter("format", "yuv420p")
    )  # fmt: skip
    return (
        ffmpeg.output(
            stream, str(target), vcodec="libx264", crf=config.crf, preset=config.preset, g=config.gop, bf=0,
            sc_threshold=0, threads=1, fps_mode="passthrough", enc_time_base=f"{numerator}/{denominator}", map_metadata=-1,
            fflags="+bitexact", format="mp4", **{"flags:v": "+bitexact"},
        )
        .global_args("-nostdin", "-loglevel", "error", "-filter_threads", "1")
        .overwrite_output()
        .compile(cmd=ffmpeg_binary())
    )  # fmt: skip
