"""Members of a tar are read in place, and everywhere just as the files they were made from."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import InputError
from pipelines.identity import file_sha256
from pipelines.schemas import CLIPS, read_table
from pipelines.shards.cutting import CutClip, CutFailure, ShardConfig, cut_clip
from pipelines.video import media
from pipelines.video.decode import decode_span, open_video
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.media import (
    display_name,
    media_sha256,
    media_stat,
    media_url,
    member_path,
    open_media,
    split_member,
    tar_table,
)
from pipelines.video.probe import probe_file
from pipelines.video.workers import map_killable

SHARED = os.environ.get("TUBELET_SHARED")


def pack(tar: Path, members: dict[str, Path], mode: str = "w") -> Path:
    with tarfile.open(tar, mode) as opened:  # type: ignore[call-overload]
        for name, path in members.items():
            opened.add(path, name)
    return tar


def damage_end(tar: Path, left: int) -> None:
    with open(tar, "r+b") as handle:
        handle.truncate(left)


@pytest.fixture(scope="module")
def tar(made_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three videos of `made_clips` in a tar whose folder and name are full of what protocols care about."""
    folder = tmp_path_factory.mktemp("media") / "a, b:c %20 ü"
    folder.mkdir()
    return pack(folder / "x::y.tar", {f"deep/{name}.mp4": made_clips / f"{name}.mp4" for name in "abc"})


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_clip_cut_from_a_member_equals_the_clip_cut_from_the_file(made_clips: Path, tar: Path, name: str, tmp_path: Path) -> None:
    member = member_path(tar, f"deep/{name}.mp4")
    rows = [row for row in read_table(made_clips / "clips.parquet", CLIPS).to_pylist() if row["path"].endswith(f"{name}.mp4")]
    for row in rows:
        cuts = [cut_clip({**row, "path": path}, tmp_path / "cut.mp4", ShardConfig(short_side=32)) for path in (row["path"], member)]
        assert isinstance(cuts[0], CutClip) and cuts[0] == cuts[1]
        span = row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"])
        from_file, from_member = decode_span(row["path"], *span), decode_span(Path(member), *span)
        assert np.array_equal(from_file[0], from_member[0]) and np.array_equal(from_file[1], from_member[1])


def test_ffmpeg_and_pyav_open_the_same_frames_of_a_member(made_clips: Path, tar: Path) -> None:
    def frames(url: str) -> str:
        command = [ffmpeg_binary(), "-v", "error", "-i", url, "-f", "framemd5", "-"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    url = media_url(member_path(tar, "deep/b.mp4"))
    assert frames(url) == frames(str(made_clips / "b.mp4"))
    with open_video(member_path(tar, "deep/b.mp4")) as (container, stream):
        assert sum(1 for _ in container.decode(stream)) == 75


def test_size_hash_and_bytes_of_a_member_are_those_of_the_file(made_clips: Path, tar: Path) -> None:
    for name in "abc":
        path, member = made_clips / f"{name}.mp4", member_path(tar, f"deep/{name}.mp4")
        assert media_stat(member).bytes == media_stat(path).bytes == path.stat().st_size
        assert media_stat(member).mtime_ns == tar.stat().st_mtime_ns and media_stat(path).mtime_ns == path.stat().st_mtime_ns
        assert media_sha256(member) == media_sha256(path) == file_sha256(path)
        with open_media(member) as handle:
            assert handle.read() == path.read_bytes() and handle.read(1) == b""
    assert display_name(member) == "x::y.tar::deep/c.mp4" and display_name(path) == "c.mp4"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_range_reads_never_leave_the_member(made_clips: Path, tar: Path, data: st.DataObject) -> None:
    whole = (made_clips / "c.mp4").read_bytes()
    with open_media(member_path(tar, "deep/c.mp4")) as handle:
        for _ in range(4):
            position = data.draw(st.integers(0, len(whole) + 10))
            count = data.draw(st.integers(0, len(whole) + 10))
            assert handle.seek(position) == position
            assert handle.read(count) == whole[position : position + count]
        assert handle.seek(-5, os.SEEK_END) == len(whole) - 5 and handle.read() == whole[-5:]


def test_file_whose_name_has_the_separator_is_a_file(made_clips: Path, tmp_path: Path) -> None:
    odd = tmp_path / "x.tar::a.mp4"
    odd.write_bytes((made_clips / "a.mp4").read_bytes())
    pack(tmp_path / "x.tar", {"a.mp4": made_clips / "b.mp4", "b.mp4": made_clips / "b.mp4"})
    assert split_member(odd) is None and media_url(odd) == str(odd)
    assert media_sha256(odd) == file_sha256(made_clips / "a.mp4")
    assert media_sha256(tmp_path / "x.tar::b.mp4") == file_sha256(made_clips / "b.mp4")
    assert probe_file(str(odd))["frames"] == 60


def test_member_names_survive_being_made_a_path(made_clips: Path, tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", {"./a//b.mp4": made_clips / "c.mp4", "/d.mp4": made_clips / "c.mp4", "e::f.mp4": made_clips / "c.mp4"})
    assert sorted(tar_table(tar).members) == ["a/b.mp4", "d.mp4", "e::f.mp4"]
    for name in tar_table(tar).members:
        path = member_path(tar, name)
        assert str(Path(path)) == path and media_stat(path).bytes == (made_clips / "c.mp4").stat().st_size


def test_tar_that_changed_is_read_again_and_a_lost_member_is_told(made_clips: Path, tmp_path: Path) -> None:
    tar = pack(tmp_path / "x.tar", {"a.mp4": made_clips / "a.mp4"})
    first = media_url(member_path(tar, "a.mp4"))
    pack(tar, {"z.mp4": made_clips / "b.mp4", "a.mp4": made_clips / "a.mp4"})
    assert media_url(member_path(tar, "a.mp4")) != first
    assert media_sha256(member_path(tar, "a.mp4")) == file_sha256(made_clips / "a.mp4")
    pack(tar, {"z.mp4": made_clips / "b.mp4"})
    with pytest.raises(InputError, match=r"has no member a\.mp4") as caught:
        media_url(member_path(tar, "a.mp4"))
    assert "new batch" in caught.value.remedy
    with pytest.raises(FileNotFoundError):
        media_stat(member_path(tar, "a.mp4"))
    row = read_table(made_clips / "clips.parquet", CLIPS).to_pylist()[0]
    lost = cut_clip({**row, "path": member_path(tar, "a.mp4")}, tmp_path / "cut.mp4", ShardConfig())
    assert isinstance(lost, CutFailure) and "not there" in lost.detail


def test_offset_table_is_read_once_while_the_tar_stays(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_table(tar)

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the tar was opened again")

    monkeypatch.setattr(media.tarfile, "open", never)
    assert len(tar_table(tar).members) == 3


def read_slowly(path: str) -> str:
    """The hash of a file, or of a tar's member, on a disk that takes 0.1 s for each mebibyte or header."""
    plain_read, plain_next = io.BufferedReader.read, tarfile.TarFile.next

    class SlowReader(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            time.sleep(0.1)
            return plain_read(self, size)

    def slow_next(opened: tarfile.TarFile) -> tarfile.TarInfo | None:
        time.sleep(0.1)
        return plain_next(opened)

    opening = media.open_media
    media.open_media = lambda file: SlowReader(opening(file).detach())  # type: ignore[attr-defined, assignment]
    tarfile.TarFile.next = slow_next  # type: ignore[method-assign]
    return media_sha256(path)


def test_reading_a_large_file_or_a_long_tar_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    (tmp_path / "large.mp4").write_bytes(bytes(14 << 20))
    (tmp_path / "small.mp4").write_bytes(b"small")
    tar = pack(tmp_path / "long.tar", {f"{number:02d}.mp4": tmp_path / "small.mp4" for number in range(14)})
    paths = [str(tmp_path / "large.mp4"), member_path(tar, "13.mp4")]
    outcomes = map_killable("test_video_media:read_slowly", paths, workers=1, timeout_s=1.0, attempts=1)
    assert [outcome.value for outcome in outcomes] == [file_sha256(tmp_path / "large.mp4"), file_sha256(tmp_path / "small.mp4")]


def test_what_is_no_regular_file_raises_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    for path, error in [("pipe.mp4", OSError), ("folder.mp4", OSError), ("none.mp4", FileNotFoundError), ("none.tar::a.mp4", FileNotFoundError)]:
        for read in (media_stat, open_media, media_sha256):
            with pytest.raises(error):
                read(tmp_path / path)


def test_damaged_and_foreign_tars_are_told_apart(made_clips: Path, tmp_path: Path) -> None:
    tar = pack(tmp_path / "cut.tar", {"a.mp4": made_clips / "a.mp4", "b.mp4": made_clips / "b.mp4"})
    (start, length) = tar_table(tar).members["b.mp4"]
    damage_end(tar, start + length // 2)
    table = tar_table(tar)
    assert table.damage and list(table.members) == ["a.mp4", "b.mp4"]
    assert media_sha256(member_path(tar, "a.mp4")) == file_sha256(made_clips / "a.mp4")
    assert probe_file(member_path(tar, "b.mp4"))["code"] == "truncated"
    (tmp_path / "text.tar").write_text("no tar " * 200)
    packed = pack(tmp_path / "gz.tar", {"a.mp4": made_clips / "a.mp4"}, "w:gz")
    for path in (tmp_path / "text.tar", packed):
        with pytest.raises(InputError, match="not an uncompressed tar"):
            tar_table(path)
        with pytest.raises(OSError):
            media_stat(member_path(path, "a.mp4"))


@pytest.mark.skipif(not SHARED, reason="TUBELET_SHARED is not set: no shared data")
def test_every_shared_file_reads_the_same_from_a_tar(tmp_path: Path) -> None:
    data = Path(str(SHARED)) / "data"
    names = [
        "androidx-media/bbb_2500ms.ts", "androidx-media/sample.avi", "androidx-media/sample.flv", "androidx-media/sample_vvc.mp4", "decord/corrupted.mp4",
        "decord/unordered.mov", "debian-python-nbsphinx-doc/Shepard_Calais_1906_FrenchGP.ogv.160p.ogv", "mdn/rabbit320.webm",
        "intel-sample-videos/asl_gestures/again.mkv", "torchcodec/test_non_zero_start.mp4", "torchcodec/testsrc2_mpeg4.avi", "README.md",
    ]  # fmt: skip
    tar = pack(tmp_path / "shared.tar", {name: data / name for name in names})
    for name in names:
        assert probe_file(member_path(tar, name)) == probe_file(str(data / name)), name
