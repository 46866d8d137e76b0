from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.video import encode
from pipelines.video.encode import EncodeError, ffmpeg_binary, write_video

FRAMES = [np.full((32, 48, 3), 8 * index, np.uint8) for index in range(10)]


def test_written_frames_and_rate_come_back(tmp_path: Path) -> None:
    import av

    assert write_video(tmp_path / "clip.mp4", iter(FRAMES), 12.5) == 10
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25 / 2)
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    np.testing.assert_allclose([frame.mean() for frame in decoded], [8 * index for index in range(10)], atol=2)


def test_equal_frames_give_equal_bytes_and_no_leftovers(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, np.stack(FRAMES), 10)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_gop_bounds_the_distance_between_key_frames(tmp_path: Path) -> None:
    import av

    write_video(tmp_path / "clip.mp4", [FRAMES[5]] * 10, 10, gop=4)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        keys = [packet.is_keyframe for packet in container.demux(video=0) if packet.size]
    assert [index for index, key in enumerate(keys) if key] == [0, 4, 8]


def test_failure_carries_ffmpegs_words_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="preset"):
        write_video(tmp_path / "clip.mp4", FRAMES, 10, preset="nonsense")
    with pytest.raises(EncodeError, match="another size"):
        write_video(tmp_path / "clip.mp4", [FRAMES[0], FRAMES[1][:20]], 10)
    with pytest.raises(EncodeError, match="even"):
        write_video(tmp_path / "clip.mp4", [FRAMES[0][:31]], 10)
    with pytest.raises(EncodeError, match="no frames"):
        write_video(tmp_path / "clip.mp4", [], 10)
    assert list(tmp_path.iterdir()) == []


def test_system_ffmpeg_first_then_the_packaged_one_then_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode.shutil, "which", lambda name: "/opt/ffmpeg")
    assert ffmpeg_binary() == "/opt/ffmpeg"
    monkeypatch.setattr(encode.shutil, "which", lambda name: None)
    assert "ffmpeg" in Path(ffmpeg_binary()).name
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(EncodeError, match="pip install imageio-ffmpeg"):
        ffmpeg_binary()
