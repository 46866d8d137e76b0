"""Writing H.264 mp4 files through ffmpeg: one thread, no dates, so that equal frames give equal bytes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.errors import TubeletError


class EncodeError(TubeletError):
    """A video file could not be written; the message carries ffmpeg's own words."""


def ffmpeg_binary() -> str:
    """Path of the ffmpeg to use: the system's, else the one that imageio-ffmpeg brings. Raises EncodeError if none."""
    system = shutil.which("ffmpeg")
    if system:
        return system
    try:
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as error:
        raise EncodeError(
            "no ffmpeg on this machine", expected="ffmpeg on PATH or the package imageio-ffmpeg", found=str(error),
            remedy="Run: pip install imageio-ffmpeg (or, as root: apt-get install -y ffmpeg)",
        ) from error  # fmt: skip


def write_video(
    path: Path, frames: Iterable[np.ndarray] | np.ndarray, fps: float, *, crf: int = 20, preset: str = "veryfast",
    gop: int | None = None, bframes: int = 0,
) -> int:  # fmt: skip
    """Encode `frames`, each `(H, W, 3)` uint8 RGB with even sides, as H.264 yuv420p mp4 at `fps`; returns their number.

    `gop` is the longest distance between key frames (None: the encoder's choice). The file appears at `path` complete
    or not at all. Raises EncodeError on no frames, odd or changing sizes, or when ffmpeg fails.
    """
    import ffmpeg

    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise EncodeError(f"no frames to write to {path.name}", expected="at least one frame", found="none")
    height, width = first.shape[:2]
    if first.shape != (height, width, 3) or height % 2 or width % 2:
        raise EncodeError(
            f"frames do not fit {path.name}", expected="(H, W, 3) with even H and W", found=str(first.shape)
        )
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    options: dict[str, object] = {
        "vcodec": "libx264", "pix_fmt": "yuv420p", "crf": crf, "preset": preset, "bf": bframes, "threads": 1,
        "map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact", "f": "mp4",
        "loglevel": "error",
    }  # fmt: skip
    if gop is not None:
        options |= {"g": gop, "keyint_min": min(gop, 2)}
    arguments = (
        ffmpeg.input(
            "pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", framerate=f"{fps:g}", threads=1
        )
        .output(str(partial), **options)
        .overwrite_output()
        .compile(cmd=ffmpeg_binary())
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EncodeError(
            f"cannot make the folder for {path}", found=str(error), remedy="Choose a folder that can be written"
        ) from error
    process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        count = _feed(process, first, iterator)
        complaint = _finish(process)
        if process.returncode != 0:
            raise EncodeError(
                f"ffmpeg could not write {path}", found=complaint or f"exit code {process.returncode}",
                remedy="Check that the folder is writable and has space",
            )  # fmt: skip
        partial.replace(path)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        partial.unlink(missing_ok=True)
    return count


def _feed(process: subprocess.Popen[bytes], first: np.ndarray, rest: Iterable[np.ndarray]) -> int:
    """Write every frame to ffmpeg's input; a pipe that breaks is left to `_finish` to explain."""
    assert process.stdin is not None
    count = 0
    try:
        process.stdin.write(np.ascontiguousarray(first, dtype=np.uint8).tobytes())
        count = 1
        for frame in rest:
            if frame.shape != first.shape:
                raise EncodeError(f"frame {count} has another size", expected=str(first.shape), found=str(frame.shape))
            process.stdin.write(np.ascontiguousarray(frame, dtype=np.uint8).tobytes())
            count += 1
    except BrokenPipeError:
        pass
    return count


def _finish(process: subprocess.Popen[bytes]) -> str:
    """Close the input, wait, and return the beginning of what ffmpeg said."""
    # communicate() closes stdin itself; after a broken pipe that close is what would raise.
    _, error_text = process.communicate()
    return error_text.decode(errors="replace").strip()[:500]
