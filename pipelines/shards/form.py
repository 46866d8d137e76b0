"""The form in which training clips are stored, and measuring whether an mp4 has it."""

from __future__ import annotations

import errno
import io
import itertools
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pydantic

from pipelines.errors import InputError, Reject
from pipelines.store import FULL_WORDS, NO_ROOM_BYTES

ENCODED, COPIED = "encoded", "copied"
LONGEST_GOP = 32
WORDS = 300  # characters kept of what ffmpeg said


class ShardConfig(pydantic.BaseModel):
    """Form of the stored clips. `short_side` in px (even; smaller sources keep their size), `frame_rate` in 1/s (None: the
    source's; a lower one is never raised), `gop` in frames, `shard_bytes` in bytes, `compact_below` a share of bytes.

    A GOP of at most 16 and no B-frames bound the frames decoded to reach any instant (docs: mean half a GOP).
    `copy_streams` keeps the source's own packets where they are in this form already and proven to give the same frames.
    A tar whose clips still in use are less than `compact_below` of its bytes is written anew without the others.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    short_side: int = pydantic.Field(default=112, ge=16, multiple_of=2)
    frame_rate: float | None = pydantic.Field(default=None, gt=0, le=1000)
    gop: int = pydantic.Field(default=16, ge=1, le=LONGEST_GOP)
    crf: int = pydantic.Field(default=20, ge=0, le=51)
    preset: str = "veryfast"
    copy_streams: bool = True
    shard_bytes: int = pydantic.Field(default=64 * 2**20, ge=1)
    compact_below: float = pydantic.Field(default=0.5, ge=0, le=1)
    cut_timeout_s: float = 120.0

    @property
    def clip_form(self) -> dict[str, Any]:
        """The options that decide a stored clip's bytes: clips of equal ones need not be cut again."""
        return self.model_dump(exclude={"shard_bytes", "compact_below", "cut_timeout_s"})


@dataclass(frozen=True)
class CutClip:
    """`data` is the mp4; times in s on the clip's own clock, of the first and the last frame; `frame_rate` is `frames` over
    the clip's length (1/s); `width` and `height` in px; `form` says how the bytes came about."""

    data: bytes
    frames: int
    first_pts_s: float
    last_pts_s: float
    frame_rate: float
    width: int
    height: int
    form: str
    attempts: int


@dataclass(frozen=True)
class CutFailure:
    """Why a clip could not be cut; `detail` carries ffmpeg's words or the counts that disagree."""

    code: Reject
    detail: str
    attempts: int


@dataclass(frozen=True)
class Measured:
    """What an mp4's packets tell: `times` in s, ascending; `gop` frames at most from one key frame to before the next;
    `reordered` when packets come in another order than frames are shown; size in px."""

    times: tuple[Fraction, ...]
    gop: int
    reordered: bool
    width: int
    height: int

    def problem(self, gop: int) -> str:
        """What is not in training form; "" when all is."""
        if self.reordered:
            return "the frames are not stored in the order in which they are shown"
        return f"{self.gop} frames from one key frame to the next, at most {gop} allowed" if self.gop > gop else ""


def measure(data: bytes) -> Measured:
    """Read an mp4 held in memory without decoding it. Raises `av.FFmpegError`, or `InputError` when there is no frame in it."""
    with av.open(io.BytesIO(data), mode="r", format="mp4") as container:
        streams = container.streams.video
        packets = [packet for packet in container.demux(streams[0]) if packet.size] if streams else []
        times = [packet.pts * packet.time_base for packet in packets if packet.pts is not None and packet.time_base]
        if not times or len(times) != len(packets):
            raise InputError("an mp4 holds no frames", expected="a time on every frame", found=f"{len(times)} times, {len(packets)} packets")
        keys = [packet.is_keyframe for packet in packets]
        return Measured(tuple(sorted(times)), longest_gop(keys), times != sorted(times), streams[0].width, streams[0].height)


def longest_gop(keyframes: list[bool]) -> int:
    """Longest run of frames from one key frame to before the next."""
    starts = [position for position, key in enumerate(keyframes) if key] + [len(keyframes)]
    return max((after - before for before, after in itertools.pairwise(starts)), default=len(keyframes))


def run_ffmpeg(command: list[str], target: Path, timeout_s: float) -> tuple[int, str]:
    """(exit code, ffmpeg's last words) of a command that writes `target`, removed before.

    Raises `OSError` when the disk was full, which is no fault of the clip, and `subprocess.TimeoutExpired`.
    """
    target.unlink(missing_ok=True)
    # A group of its own: Ctrl-C is for the writer, which then lets ffmpeg end, and must not look like a clip that cannot be cut.
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, process_group=0)
    words = done.stderr.decode(errors="replace").strip()[-WORDS:]
    full = any(said in words.lower() for said in FULL_WORDS)
    if full or (done.returncode != 0 and shutil.disk_usage(target.parent).free < NO_ROOM_BYTES):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    return done.returncode, words
