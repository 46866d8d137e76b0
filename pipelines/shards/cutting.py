"""Cutting one clip out of its source file into the training form, frame-exactly, and measuring what came out."""

from __future__ import annotations

import math
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import ffmpeg

from pipelines.errors import InputError, Reject
from pipelines.shards.copying import copy_clip
from pipelines.shards.form import ENCODED, CutClip, CutFailure, ShardConfig, measure, run_ffmpeg
from pipelines.shards.source import Numbered, numbered_frames, ticks_of
from pipelines.shards.thinning import Thinning, mean_rate, thinning_of
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.media import media_stat, media_url

EARLY_S = (0.0, 5.0, math.inf)  # how long before a clip each attempt starts to decode; infinity: at the beginning


def cut_clip(clip: dict[str, Any], target: Path, config: ShardConfig) -> CutClip | CutFailure:
    """Cut one row of the `clips` table to the temporary file `target` and read it back; never raises for a bad source.

    The frames kept are those with start_pts <= pts < end_pts, thinned where they come faster than `config.frame_rate`;
    thinned ones are compared with the times that the source gives them. First by seeking to the start; if their number is
    not `clip["frames"]` (containers such as mpegts seek inexactly), from some seconds before, then from the file's
    beginning. Raises `OSError` when the disk is full.
    """
    try:
        media_stat(clip["path"])
    except OSError:
        return CutFailure(Reject.UNREADABLE, f"{clip['path']} is not there", 0)
    try:
        numbered = numbered_frames(clip)
        thinning = thinning_of(clip, config.frame_rate)
        ticks = ticks_of(clip, numbered) if thinning else None
    except (av.FFmpegError, InputError) as error:
        return CutFailure(Reject.DECODE_ERROR, str(error), 1)
    if thinning and ticks is not None:
        if len(ticks) != clip["frames"]:
            return CutFailure(Reject.TRUNCATED, f"the source has {len(ticks)} frames where the clip has {clip['frames']}", 1)
        kept = [ticks[place] for place in thinning.kept(ticks)]
        thinning, ticks = (thinning, kept) if len(kept) < len(ticks) else (None, None)
    if config.copy_streams and thinning is None and numbered is None:
        copied = copy_clip(clip, target, config)
        if copied is not None:
            return copied
    return _encode(clip, target, config, numbered, thinning, ticks)


def _encode(
    clip: dict[str, Any], target: Path, config: ShardConfig, numbered: Numbered | None, thinning: Thinning | None, ticks: list[int] | None
) -> CutClip | CutFailure:
    """`ticks` from the first frame to each that must come out; None when only their number is known."""
    failure = CutFailure(Reject.DECODE_ERROR, "not tried", 0)
    for attempt, early_s in enumerate(EARLY_S if numbered is None else (math.inf,), start=1):
        try:
            code, words = run_ffmpeg(_command(clip, target, config, early_s, numbered, thinning), target, config.cut_timeout_s)
        except subprocess.TimeoutExpired:
            return CutFailure(Reject.TIMEOUT, f"no end after {config.cut_timeout_s:g} s", attempt)
        if code != 0 or not target.is_file():
            failure = CutFailure(Reject.DECODE_ERROR if code >= 0 else Reject.WORKER_DIED, words or f"ffmpeg exit code {code}", attempt)
            continue
        outcome = _inspect(target.read_bytes(), clip, config, ticks, attempt, words)
        if isinstance(outcome, CutClip):
            return outcome
        failure = outcome
    return failure


def _inspect(
    data: bytes, clip: dict[str, Any], config: ShardConfig, ticks: list[int] | None, attempt: int, words: str
) -> CutClip | CutFailure:
    try:
        found = measure(data)
    except (av.FFmpegError, InputError) as error:
        return CutFailure(Reject.NO_FRAMES, f"nothing readable was cut: {error}; {words}".strip("; "), attempt)
    times, wanted = found.times, clip["frames"] if ticks is None else len(ticks)
    if len(times) != wanted:
        return CutFailure(Reject.TRUNCATED, f"{len(times)} frames where the clip has {wanted}; {words}".strip("; "), attempt)
    tick = Fraction(clip["time_base_num"], clip["time_base_den"])
    if ticks is not None and (wrong := [place for place, time in enumerate(times) if time != ticks[place] * tick]):
        return CutFailure(Reject.DECODE_ERROR, f"{len(wrong)} of {wanted} frames are not at the source's times; {words}".strip("; "), attempt)
    if problem := found.problem(config.gop):
        return CutFailure(Reject.DECODE_ERROR, f"the encoder kept not to the form: {problem}", attempt)
    rate = float(mean_rate(clip, len(times)))
    return CutClip(data, len(times), float(times[0]), float(times[-1]), rate, found.width, found.height, ENCODED, attempt)


def _command(
    clip: dict[str, Any], target: Path, config: ShardConfig, early_s: float, numbered: Numbered | None, thinning: Thinning | None
) -> list[str]:
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
    )
    if thinning is not None:
        stream = stream.filter("select", thinning.expression)
    stream = (
        stream.filter(
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
