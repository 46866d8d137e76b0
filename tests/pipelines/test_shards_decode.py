"""Decoding a window of a clip: the same frames as decoding all of it, whatever the form of the stream."""

from __future__ import annotations

import io
import os
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.shards import decode
from pipelines.shards.decode import DecodeFailure, decode_clip, nearest_frames
from pipelines.video.encode import write_video

FRAMES, RATE = 70, 20.0
FORMS = {"trained": {"bframes": 0, "gop": 16}, "reordered": {"bframes": 3, "gop": 40}, "one key": {"bframes": 0, "gop": 400}}


def moving(count: int) -> np.ndarray:
    """(count, 48, 64, 3) uint8: a grey level that counts the frames, and a bright square that wanders."""
    frames = np.broadcast_to((20 + 2 * np.arange(count)).astype(np.uint8)[:, None, None, None], (count, 48, 64, 3)).copy()
    for number in range(count):
        frames[number, 8:24, number % 40 : number % 40 + 16] = 255 - frames[number, 0, 0]
    return frames


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("forms")
    for name, form in FORMS.items():
        write_video(folder / f"{name}.mp4", moving(FRAMES), RATE, **form)  # type: ignore[arg-type]
    return {name: (folder / f"{name}.mp4").read_bytes() for name in FORMS}


def same(first: decode.Picture, second: decode.Picture) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@given(top=st.integers(0, 47), left=st.integers(0, 63), height=st.integers(1, 48), width=st.integers(1, 64))
@settings(max_examples=100, deadline=None)
def test_a_box_is_cut_as_from_the_whole_picture(clips: dict[str, bytes], top: int, left: int, height: int, width: int) -> None:
    clip = decode_clip(clips["trained"], np.array([1.0]))
    height, width = min(height, 48 - top), min(width, 64 - left)
    assert np.array_equal(clip.crop(0, top, left, height, width), clip.frame(0)[top : top + height, left : left + width])


@given(form=st.sampled_from(sorted(FORMS)), wanted=st.lists(st.floats(-1, 5), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_a_window_holds_the_frames_of_the_whole(clips: dict[str, bytes], form: str, wanted: list[float]) -> None:
    instants = np.array(wanted)
    whole, window = decode_clip(clips[form]), decode_clip(clips[form], instants)
    expected = np.unique(nearest_frames(whole.times_s, instants))
    assert np.array_equal(window.pts, whole.pts[expected])
    assert all(same(window.pictures[place], whole.pictures[number]) for place, number in enumerate(expected))
    assert np.array_equal(window.times_s[nearest_frames(window.times_s, instants)], whole.times_s[nearest_frames(whole.times_s, instants)])


def test_the_whole_is_what_av_decodes(clips: dict[str, bytes]) -> None:
    for data in clips.values():
        with av.open(io.BytesIO(data)) as container:
            frames = [(frame.pts, cv2.cvtColor(frame.to_ndarray(format="yuv420p"), cv2.COLOR_YUV2RGB_I420)) for frame in container.decode(video=0)]
        whole = decode_clip(data)
        assert whole.pts.tolist() == [pts for pts, _ in frames] and len(frames) == FRAMES
        assert all(np.array_equal(rgb, whole.frame(number)) for number, (_, rgb) in enumerate(frames))


def test_only_packets_that_a_wanted_frame_needs_are_decoded(clips: dict[str, bytes]) -> None:
    with av.open(io.BytesIO(clips["trained"])) as container:
        listed = decode.list_packets(container, container.streams.video[0])
        runs = decode._runs(listed, listed.pts[[20, 23, 50]])
        keys = np.flatnonzero(listed.keys)
    assert [last for _, last in runs] == [23, 50] and [first for first, _ in runs] == [keys[keys <= 20][-1], keys[keys <= 50][-1]]


def test_a_stream_of_other_colours_or_turned_goes_the_general_way() -> None:
    shared = os.environ.get("TUBELET_SHARED")
    if not shared:
        pytest.skip("TUBELET_SHARED is not set: no shared videos")
    read = 0
    for path in sorted(Path(shared, "data").rglob("*")):
        if path.suffix not in {".mp4", ".webm", ".mkv", ".mov"} or path.stat().st_size > 110_000:  # the many odd forms are small
            continue
        kind = path.suffix[1:]
        try:
            whole = decode_clip(path.read_bytes(), None, kind)
        except DecodeFailure:
            continue  # planted damage
        window = decode_clip(path.read_bytes(), whole.times_s[[len(whole.pts) // 2]], kind)
        assert same(window.pictures[0], whole.pictures[len(whole.pts) // 2]) and whole.frame(0).shape == (whole.height, whole.width, 3)
        read += 1
    assert read >= 5


def test_a_picture_is_one_frame() -> None:
    picture = moving(1)[0]
    data = cv2.imencode(".png", picture[:, :, ::-1])[1].tobytes()
    clip = decode_clip(data, np.array([0.0]), "png")
    assert np.array_equal(clip.frame(0), picture) and (clip.height, clip.width, clip.times_s.tolist()) == (48, 64, [0.0])
    with pytest.raises(DecodeFailure, match="picture"):
        decode_clip(b"no picture", None, "jpg")


@pytest.mark.parametrize("data", [b"", b"no video at all", b"\0" * 2000])
def test_what_is_no_video_is_told_as_one_error(data: bytes) -> None:
    with pytest.raises(DecodeFailure):
        decode_clip(data)


def test_a_clip_that_breaks_off_fails_as_a_whole_and_serves_the_windows_it_has(clips: dict[str, bytes]) -> None:
    data = bytearray(clips["trained"])
    with av.open(io.BytesIO(clips["trained"])) as container:
        last = max((packet for packet in container.demux(video=0) if packet.pos is not None), key=lambda packet: packet.pos)
    data[last.pos : last.pos + last.size] = bytes(last.size)
    with pytest.raises(DecodeFailure):
        decode_clip(bytes(data))
    window = decode_clip(bytes(data), np.array([0.1, 0.4]))
    assert all(map(same, window.pictures, decode_clip(clips["trained"], np.array([0.1, 0.4])).pictures))
