"""Exact decoding: spans by pts, seeking equal to decoding through, upright frames."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import InputError
from pipelines.video.decode import decode_span, frames_at, timed_frames, to_array
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.probe import probe_file


def ffmpeg(*arguments: Any) -> None:
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decode")


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    """4 s at 25 frames/s with B-frames and a keyframe every 10 frames."""
    path = folder / "plain.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=128x96:rate=25:duration=4", "-pix_fmt", "yuv420p", "-g", 10, "-bf", 2, "-c:v", "libx264", path)
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_span_decoded_after_a_seek_is_the_span_decoded_through(video: Path, folder: Path, suffix: str) -> None:
    path = folder / f"copy.{suffix}"
    if suffix != "mp4":
        ffmpeg("-i", video, "-c", "copy", path)
    else:
        path = video
    row = probe_file(str(path))
    base = (row["time_base_num"], row["time_base_den"])
    everything = list(timed_frames(path))
    stamps = [pts for pts, _ in everything]
    frames, times = decode_span(path, stamps[37], stamps[61], base)
    assert len(frames) == 24
    assert times[0] == pytest.approx(stamps[37] * base[0] / base[1])
    assert np.array_equal(frames[0], to_array(everything[37][1])) and np.array_equal(frames[-1], to_array(everything[60][1]))


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mkv"])
def test_title_that_is_no_utf_8_keeps_no_video_out(video: Path, folder: Path, suffix: str) -> None:
    titled = folder / f"titled.{suffix}"
    command = [ffmpeg_binary(), "-y", "-loglevel", "error", "-i", str(video), "-c", "copy", "-metadata", b"title=caf\xe9", str(titled)]
    subprocess.run(command, check=True)
    assert probe_file(titled)["frames"] == probe_file(video)["frames"] > 0


def test_span_is_resized(video: Path) -> None:
    row = probe_file(str(video))
    frames, times = decode_span(video, 0, 2**40, (row["time_base_num"], row["time_base_den"]), size=(48, 64))
    assert frames.shape == (100, 48, 64, 3) and np.allclose(np.diff(times), 0.04)


def test_span_outside_the_file_is_an_error_with_a_remedy(video: Path) -> None:
    row = probe_file(str(video))
    with pytest.raises(InputError, match="no frame in its recorded span"):
        decode_span(video, 2**30, 2**31, (row["time_base_num"], row["time_base_den"]))


def test_frames_are_found_by_pts_in_any_order(video: Path) -> None:
    everything = [(pts, to_array(frame)) for pts, frame in timed_frames(video)]
    stamps = [pts for pts, _ in everything]
    wanted = [stamps[75], stamps[0] - 5, stamps[25] + 1, 2**40]
    for array, index in zip(frames_at(video, wanted), [75, 0, 25, 99], strict=True):
        assert np.array_equal(array, everything[index][1])


@pytest.mark.parametrize("turn", ["90", "180", "270"])
def test_rotated_copy_comes_out_as_the_upright_original(video: Path, folder: Path, turn: str) -> None:
    turned, tagged = folder / f"turned{turn}.mp4", folder / f"tagged{turn}.mp4"
    steps = {"90": "transpose=1", "180": "hflip,vflip", "270": "transpose=2"}[turn]
    ffmpeg("-i", video, "-vf", steps, "-c:v", "libx264", "-crf", 10, "-frames:v", 3, turned)
    for candidate in (turn, f"-{turn}"):
        ffmpeg("-display_rotation", candidate, "-i", turned, "-c", "copy", tagged)
        frame = next(timed_frames(tagged))[1]
        shown = to_array(frame)
        ffmpeg("-i", tagged, "-c:v", "libx264", "-crf", 10, "-frames:v", 1, folder / "baked.mp4")  # ffmpeg turns it itself
        baked = to_array(next(timed_frames(folder / "baked.mp4"))[1])
        assert shown.shape == baked.shape
        assert np.abs(shown.astype(int) - baked).mean() < 3
