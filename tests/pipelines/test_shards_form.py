"""Training form: thinned frames are the source's own at their own times, and packets are kept only where that changes nothing."""

from __future__ import annotations

import itertools
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import numbered_frames
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import Reject
from pipelines.shards.copying import copy_clip
from pipelines.shards.cutting import cut_clip
from pipelines.shards.decode import decode_clip
from pipelines.shards.form import CutClip, CutFailure, ShardConfig, measure
from pipelines.shards.thinning import Thinning, thinning_of
from pipelines.video.decode import open_video, time_base_of, timed_frames
from pipelines.video.encode import ffmpeg_binary, write_video

FRAMES, GOP = 60, 15


def convert(source: Path, target: Path, *options: str, before: tuple[str, ...] = ()) -> Path:
    subprocess.run([ffmpeg_binary(), "-loglevel", "error", *before, "-i", source, *options, target], check=True)
    return target


def clip_of(path: Path, first: int, last: int) -> dict[str, Any]:
    """Frames [first, last) of a file, as a row of `clips` has them."""
    with open_video(path) as (_, stream):
        base = time_base_of(stream)
    pts = [pts for pts, _ in timed_frames(path)]
    ends = [*pts, 2 * pts[-1] - pts[-2]]
    return {
        "clip_id": "x", "path": str(path), "start_pts": pts[first], "end_pts": ends[last], "time_base_num": base.numerator,
        "time_base_den": base.denominator, "frames": last - first,
    }  # fmt: skip


def cut(clip: dict[str, Any], folder: Path, **options: Any) -> CutClip:
    found = cut_clip(clip, folder / "cut.mp4", ShardConfig(**options))
    assert isinstance(found, CutClip), found
    return found


def source_times(clip: dict[str, Any]) -> list[Fraction]:
    tick = Fraction(clip["time_base_num"], clip["time_base_den"])
    return [(pts - clip["start_pts"]) * tick for pts, _ in timed_frames(clip["path"]) if clip["start_pts"] <= pts < clip["end_pts"]]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 frames at 30/s whose grey tells their number, in training form: a key frame every 15 frames, no B-frames."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, numbered_frames(FRAMES), 30.0, gop=GOP)
    return path


# -- fewer frames a second ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "rate", "wanted"),
    [
        ("mp4", 15.0, range(3, 57, 2)), ("mkv", 15.0, range(3, 57, 2)), ("ts", 10.0, range(3, 57, 3)), ("avi", 10.0, range(3, 57, 3)),
        ("mp4", 12.0, [3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38, 41, 43, 46, 48, 51, 53, 56]),
    ],
)  # fmt: skip
def test_a_faster_clip_is_thinned_to_source_frames_at_their_own_times(film: Path, tmp_path: Path, container: str, rate: float, wanted: Any) -> None:
    codec = ["-c", "copy"] if container != "avi" else ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2"]
    clip = clip_of(convert(film, tmp_path / f"film.{container}", *codec), 3, 57)
    found = cut(clip, tmp_path, frame_rate=rate)
    decoded = decode_clip(found.data)
    levels = [decoded.frame(number).mean() for number in range(found.frames)]
    np.testing.assert_allclose(levels, 20 + 3 * np.array(wanted), atol=1.4)
    if container != "avi":  # which keeps no times to compare with
        times = source_times(clip)
        assert list(measure(found.data).times) == [times[number - 3] for number in wanted]
    assert found.form == "encoded" and found.frame_rate == pytest.approx(30 * len(wanted) / 54, rel=1e-3)


def test_a_slower_clip_keeps_every_frame(film: Path, tmp_path: Path) -> None:
    clip = clip_of(film, 0, 60)
    for rate in (None, 30.0, 48.0):
        assert cut(clip, tmp_path, frame_rate=rate, copy_streams=False).frames == 60
        assert thinning_of(clip, rate) is None


def test_frames_of_uneven_length_keep_their_times_when_thinned(film: Path, tmp_path: Path) -> None:
    uneven = convert(film, tmp_path / "uneven.mp4", "-vf", "select='lt(n,20)+not(mod(n,3))'", "-fps_mode", "passthrough", "-bf", "2")
    clip = clip_of(uneven, 0, 33)
    times = source_times(clip)
    assert len({after - before for before, after in itertools.pairwise(times)}) > 1
    found = cut(clip, tmp_path, frame_rate=10.0)
    stored = measure(found.data).times
    assert set(stored) < set(times) and stored[0] == 0 and len(stored) == 20  # one in each tenth of 2 s
    assert found.frame_rate == pytest.approx(10.0)


def test_a_thinned_clip_of_fewer_frames_than_the_source_had_is_refused(film: Path, tmp_path: Path) -> None:
    clip = {**clip_of(film, 0, 60), "frames": 63}
    failure = cut_clip(clip, tmp_path / "cut.mp4", ShardConfig(frame_rate=10.0))
    assert isinstance(failure, CutFailure) and failure.code is Reject.TRUNCATED and "60" in failure.detail


def test_frames_at_other_times_than_the_sources_are_refused(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Thinning, "expression", "not(mod(n+1,2))")  # as many frames as there should be, and the wrong ones
    failure = cut_clip(clip_of(film, 0, 60), tmp_path / "cut.mp4", ShardConfig(frame_rate=15.0))
    assert isinstance(failure, CutFailure)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=80), st.sampled_from([(1, 1000), (1, 90000), (1001, 30000), (1, 12800), (1, 30)]),
    st.floats(0.5, 120).map(lambda rate: round(rate, 3)),
)  # fmt: skip
def test_thinning_keeps_the_first_frame_and_at_most_one_in_each_cell(steps: list[int], base: tuple[int, int], rate: float) -> None:
    ticks = [0, *np.cumsum(steps[:-1]).tolist()]
    clip = {"frames": len(ticks), "start_pts": 7, "end_pts": 7 + sum(steps), "time_base_num": base[0], "time_base_den": base[1]}
    thinning = thinning_of(clip, rate)
    if thinning is None:
        assert Fraction(len(ticks)) <= Fraction(str(rate)) * sum(steps) * Fraction(*base)
        return
    kept = thinning.kept(ticks)
    assert kept[0] == 0 and kept == sorted(set(kept))
    length_s = ticks[-1] * Fraction(*base)
    assert len(kept) <= 2 + length_s * Fraction(str(rate))
    assert thinning.kept([ticks[place] for place in kept]) == list(range(len(kept)))
    for tick in ticks:  # ffmpeg reckons with doubles
        assert np.floor((tick + thinning.early) * float(thinning.numerator) / thinning.denominator) == (tick + thinning.early) * thinning.numerator // thinning.denominator


# -- kept packets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_packets_in_training_form_are_kept_as_they_are(film: Path, tmp_path: Path, container: str) -> None:
    path = film if container == "mp4" else convert(film, tmp_path / "film.mkv", "-c", "copy")
    clip = clip_of(path, 15, 40)
    found = cut(clip, tmp_path)
    assert found.form == "copied" and (found.width, found.height, found.frames) == (64, 48, 25)
    with av.open(str(path)) as container_:
        packets = [bytes(packet) for packet in container_.demux(video=0) if packet.pts is not None and clip["start_pts"] <= packet.pts < clip["end_pts"]]
    (tmp_path / "again.mp4").write_bytes(found.data)
    with av.open(str(tmp_path / "again.mp4")) as container_:
        assert [bytes(packet) for packet in container_.demux(video=0) if packet.size] == packets
    assert list(measure(found.data).times) == source_times(clip)
    assert cut(clip, tmp_path).data == found.data


def test_copying_can_be_switched_off(film: Path, tmp_path: Path) -> None:
    clip = clip_of(film, 15, 40)
    copied, encoded = cut(clip, tmp_path), cut(clip, tmp_path, copy_streams=False)
    assert (copied.form, encoded.form) == ("copied", "encoded") and copied.data != encoded.data
    assert (copied.frames, copied.first_pts_s, copied.last_pts_s, copied.frame_rate) == (encoded.frames, encoded.first_pts_s, encoded.last_pts_s, encoded.frame_rate)
    first, second = decode_clip(copied.data), decode_clip(encoded.data)
    for one, other in zip(first.pictures, second.pictures, strict=True):
        np.testing.assert_allclose(one[0].mean(), other[0].mean(), atol=1.0)


X264 = ("-c:v", "libx264", "-g", str(GOP), "-bf", "0", "-sc_threshold", "0")


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ((*X264[:4], "-bf", "2"), ()), ((*X264, "-g", "40"), ()), ((*X264, "-vf", "setsar=2"), ()), ((*X264, "-pix_fmt", "yuv444p"), ()),
        ((*X264, "-vf", "scale=out_range=pc", "-color_range", "pc"), ()), ((*X264, "-colorspace", "bt709"), ()),
        (("-c", "copy"), ("-display_rotation:v", "90")), (("-c:v", "mpeg4", "-g", str(GOP)), ()),
    ],
    ids=["b-frames", "long-gop", "pixels-not-square", "full-chroma", "full-range", "bt709", "turned", "other-codec"],
)  # fmt: skip
def test_sources_in_any_other_form_are_encoded(film: Path, tmp_path: Path, options: tuple[str, ...], before: tuple[str, ...]) -> None:
    path = convert(film, tmp_path / "other.mp4", *options, before=before)
    found = cut(clip_of(path, 15, 40), tmp_path)
    assert found.form == "encoded" and found.frames == 25


def test_clips_that_start_between_key_frames_are_too_large_or_too_fast_are_encoded(film: Path, tmp_path: Path) -> None:
    assert cut(clip_of(film, 16, 40), tmp_path).form == "encoded"
    assert cut(clip_of(film, 15, 40), tmp_path, short_side=46).form == "encoded"
    assert cut(clip_of(film, 15, 40), tmp_path, gop=14).form == "encoded"
    assert cut(clip_of(film, 15, 40), tmp_path, frame_rate=20.0).form == "encoded"


def test_a_key_frame_that_is_none_is_found_out_by_decoding(tmp_path: Path) -> None:
    """The container calls frame 32 a key frame, and its packet needs those before it."""
    frames = np.random.default_rng(5).integers(0, 255, (4, 48, 64, 3), np.uint8).repeat(15, axis=0)
    path = tmp_path / "lying.mp4"
    write_video(path, frames, 30.0, gop=GOP)
    data = bytearray(path.read_bytes())
    place = data.index(b"stss") + 8
    count = struct.unpack(">I", data[place : place + 4])[0]
    samples = list(struct.unpack(f">{count}I", data[place + 4 : place + 4 + 4 * count]))
    samples[samples.index(31)] = 33
    data[place + 4 : place + 4 + 4 * count] = struct.pack(f">{count}I", *samples)
    path.write_bytes(data)
    assert copy_clip(clip_of(path, 15, 30), tmp_path / "cut.mp4", ShardConfig()) is not None
    assert copy_clip(clip_of(path, 32, 44), tmp_path / "cut.mp4", ShardConfig()) is None
