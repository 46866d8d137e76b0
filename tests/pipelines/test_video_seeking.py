"""Frames picked by time stamp: jumping from keyframe to keyframe gives what decoding through gives, in every container."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.video import decode
from pipelines.video.decode import Frames, frames_at, shown_at, timed_frames, to_array
from pipelines.video.encode import ffmpeg_binary

SIZE = (24, 32)
ENCODINGS = {
    "closed.mp4": ["-c:v", "libx264", "-g", "12", "-bf", "2"],
    "open_gop.mp4": ["-c:v", "libx264", "-x264-params", "open-gop=1:keyint=12:bframes=3:scenecut=0"],
    "refresh.mp4": ["-c:v", "libx264", "-x264-params", "intra-refresh=1:keyint=12:bframes=0"],
    "uneven.mp4": ["-vf", "select='not(mod(n,7))+lt(mod(n,40),11)'", "-fps_mode", "vfr", "-c:v", "libx264", "-g", "12", "-bf", "3"],
    "counted.avi": ["-c:v", "mpeg4", "-g", "12", "-bf", "2"],
    "plain.avi": ["-c:v", "mpeg4", "-g", "12"],
    "broadcast.ts": ["-c:v", "mpeg2video", "-g", "12", "-bf", "2"],
    "web.webm": ["-c:v", "libvpx", "-g", "12", "-b:v", "150k", "-cpu-used", "8", "-deadline", "realtime"],
}
COPIES = {"open_gop.mkv": "open_gop.mp4", "open_gop.ts": "open_gop.mp4", "uneven.mkv": "uneven.mp4"}


def ffmpeg(*arguments: Any) -> None:
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


def through(path: Path) -> list[tuple[int, Frames]]:
    """(pts, small picture) of every frame, decoded through from the start."""
    return [(pts, to_array(frame, SIZE)) for pts, frame in timed_frames(path)]


def expected(films: list[tuple[int, Frames]], wanted: int) -> Frames:
    """The last frame at or before `wanted`; else the first."""
    later = next((number for number, (pts, _) in enumerate(films) if pts > wanted), len(films))
    return films[max(0, later - 1)][1]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[tuple[int, Frames]]]]:
    folder = tmp_path_factory.mktemp("seeking")
    for name, options in ENCODINGS.items():
        ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=6", "-pix_fmt", "yuv420p", *options, folder / name)
    for name, origin in COPIES.items():
        ffmpeg("-i", folder / origin, "-c", "copy", folder / name)
    return {name: (folder / name, through(folder / name)) for name in (*ENCODINGS, *COPIES)}


@pytest.mark.parametrize("name", [*ENCODINGS, *COPIES])
@settings(max_examples=12, deadline=None)
@given(shares=st.lists(st.floats(-0.05, 1.1), min_size=1, max_size=4))
def test_jumping_gives_the_frames_of_decoding_through(name: str, shares: list[float], films: Any) -> None:
    path, everything = films[name]
    first, last = everything[0][0], everything[-1][0]
    wanted = [first + round((last - first) * share) for share in shares]
    for array, pts in zip(frames_at(path, wanted, size=SIZE), wanted, strict=True):
        assert np.array_equal(array, expected(everything, pts)), (name, wanted)


@pytest.mark.parametrize(("name", "most"), [("closed.mp4", 40), ("open_gop.mkv", 40), ("web.webm", 40), ("plain.avi", 40), ("counted.avi", 150)])
def test_stretches_between_wanted_frames_are_not_decoded(name: str, most: int, films: Any) -> None:
    path, everything = films[name]
    beats: list[int] = []
    found = list(shown_at(path, [everything[-5][0], everything[3][0], everything[70][0]], beat=lambda: beats.append(1)))
    assert [index for index, _, _ in found] == [1, 2, 0] and [pts for _, pts, _ in found] == [everything[n][0] for n in (3, 70, -5)]
    assert len(beats) <= most < 151


def test_jump_that_goes_astray_is_made_good_by_decoding_through(films: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, everything = films["closed.mp4"]
    jump, jumps = decode._jump, []

    def second_fails(container: Any, stream: Any, wanted: int) -> Any:
        jumps.append(wanted)
        if len(jumps) == 2:
            raise av.error.InvalidDataError(1, "torn")
        return jump(container, stream, wanted)

    monkeypatch.setattr(decode, "_jump", second_fails)
    wanted = [everything[number][0] for number in (20, 80, 140)]
    assert all(np.array_equal(array, expected(everything, pts)) for array, pts in zip(frames_at(path, wanted, size=SIZE), wanted, strict=True))
    assert len(jumps) == 2


def test_file_that_cannot_be_jumped_in_is_decoded_through(films: Any, tmp_path: Path) -> None:
    """A raw H.264 stream has no time stamps to look for."""
    raw = tmp_path / "raw.m4v"
    ffmpeg("-i", films["closed.mp4"][0], "-c", "copy", "-f", "h264", raw)
    everything = through(raw)
    after = list(timed_frames(raw, everything[70][0]))
    assert [pts for pts, _ in after] == [pts for pts, _ in everything] and len(everything) == 150


def test_file_without_frames_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-frames:v", 1, "-c:v", "libx264", tmp_path / "one.mp4")
    with av.open(str(tmp_path / "one.mp4")) as source, av.open(str(tmp_path / "none.mp4"), "w") as target:
        target.add_stream_from_template(source.streams.video[0])
        target.start_encoding()
    with pytest.raises(InputError, match=r"gives no frame|has no video stream"):
        frames_at(tmp_path / "none.mp4", [0])


@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
@pytest.mark.parametrize("name", [
    "androidx-media/bbb_2500ms.ts", "androidx-media/sample.avi", "androidx-media/sample.flv",
    "androidx-media/sample_with_increasing_timestamps_320w_240h.mp4", "debian-python-nbsphinx-doc/Shepard_Calais_1906_FrenchGP.ogv.160p.ogv",
    "decord/unordered.mov", "decord/video_90.mov", "intel-sample-videos/asl_gestures/brother.mkv", "mdn/rabbit320.webm",
    "torchcodec/discard_first_keyframe.mp4", "torchcodec/h265_video.mp4", "torchcodec/nasa_13013.mp4", "torchcodec/test_non_zero_start.mp4",
    "torchcodec/testsrc2_mpeg4.avi",
])  # fmt: skip
def test_shared_files_are_jumped_through_exactly(name: str) -> None:
    path = Path(os.environ["TUBELET_SHARED"]) / "data" / name
    everything = through(path)
    stamps = [pts for pts, _ in everything]
    for places in ((0.9,), (0.02, 0.5), (0.25, 0.3, 0.98)):
        wanted = [stamps[int(place * len(stamps))] for place in places]
        for array, pts in zip(frames_at(path, wanted, size=SIZE), wanted, strict=True):
            assert np.array_equal(array, expected(everything, pts))


@pytest.mark.parametrize("name", [*ENCODINGS, *COPIES])
def test_reading_on_from_a_seek_gives_the_frames_of_reading_from_the_start(name: str, films: Any) -> None:
    path, everything = films[name]
    for number in (5, 12, 30, len(everything) - 3):
        wanted = everything[number][0]
        after = [(pts, to_array(frame, SIZE)) for pts, frame in timed_frames(path, wanted) if pts >= wanted]
        assert [pts for pts, _ in after] == [pts for pts, _ in everything[number:]]
        assert all(np.array_equal(mine, other) for (_, mine), (_, other) in zip(after, everything[number:], strict=True))
