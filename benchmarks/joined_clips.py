"""Films with known cuts: shots of other videos joined end to end by ffmpeg, for measuring how well cuts are found."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.identity import stable_seed
from pipelines.video.encode import ffmpeg_binary

RATES = (24, 25, 30)
SHOT_S = (1.2, 2.2)


def join_clips(
    target: Path, sources: Sequence[Path], *, seed: int, shots: int = 8, size: tuple[int, int] = (640, 360), gop: int = 60
) -> tuple[Path, list[float]]:
    """Write `target` from `shots` random spans of `sources` (never two of one in a row); returns it with its cuts in s.

    `size` is (width, height); shots keep their shape between black bars.
    """
    random = np.random.default_rng(stable_seed("joined clips", seed))
    rate = int(random.choice(RATES))
    former, length_s, cuts, parts = -1, 0.0, [], []
    for number in range(shots):
        chosen = int(random.choice([index for index in range(len(sources)) if index != former]))
        seconds = round(random.uniform(*SHOT_S) * rate) / rate
        start_s = random.uniform(0, max(0.0, duration_s(sources[chosen]) - seconds - 0.3))
        part = target.with_name(f"{target.stem}-{number}.mp4")
        _ffmpeg(
            "-ss", f"{start_s:.3f}", "-i", sources[chosen], "-an", "-frames:v", round(seconds * rate), "-vf",
            f"fps={rate},scale={size[0]}:{size[1]}:force_original_aspect_ratio=decrease,pad={size[0]}:{size[1]}:-1:-1,format=yuv420p,setsar=1",
            "-c:v", "libx264", "-crf", 12, "-preset", "ultrafast", part,
        )  # fmt: skip
        length_s += _frames(part) / rate
        cuts.append(length_s)
        parts.append(part)
        former = chosen
    listed = target.with_suffix(".txt")
    listed.write_text("".join(f"file '{part.name}'\n" for part in parts))
    _ffmpeg("-f", "concat", "-safe", 0, "-i", listed, "-c:v", "libx264", "-crf", 24, "-preset", "veryfast", "-g", gop, target)
    for path in [*parts, listed]:
        path.unlink()
    return target, cuts[:-1]


def duration_s(path: Path) -> float:
    """Declared length of a video in s."""
    with av.open(str(path)) as container:
        return (container.duration or 0) / av.time_base


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


def _ffmpeg(*arguments: Any) -> None:
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)
