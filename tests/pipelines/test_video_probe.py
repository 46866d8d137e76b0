"""The probe on real files: what is measured, what is rejected and why, and identity under remuxing."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.checks import failed
from pipelines.errors import Reject
from pipelines.schemas import QUARANTINE, VIDEOS, read_table
from pipelines.sources.registry import Batch, SourceFile
from pipelines.video import probe
from pipelines.video.encode import ffmpeg_binary
from pipelines.video.media import media_sha256
from pipelines.video.packets import nal_length_size, prefixed_units, start_code_units
from pipelines.video.probe import FILES_PER_PART, ProbeJob, build_videos, check_videos, probe_file, probe_files
from pipelines.video.workers import Crew


def ffmpeg(*arguments: Any) -> None:
    subprocess.run([ffmpeg_binary(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


def make_video(path: Path, *options: Any, seconds: float = 2.0, rate: int = 25, size: str = "128x96") -> Path:
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}", "-pix_fmt", "yuv420p", *options, path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("probe") / "plain.mp4", "-c:v", "libx264", "-movflags", "+faststart")


def held_video(path: Path, *, held: int) -> Path:
    """20 frames at 10 frames/s; the last is shown for `held` tenths of a second."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * number, np.uint8), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.duration = held if packet is packets[-1] else 1
            container.mux(packet)
    return path


def batch_of(*paths: Path) -> Batch:
    files = tuple(SourceFile(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    return Batch("pool-0001", "pool", files, "CC0", "someone")


def test_probe_measures_what_ffmpeg_encoded(video: Path) -> None:
    row = probe_file(str(video))
    assert (row["codec"], row["width"], row["height"], row["rotation"]) == ("h264", 128, 96, 0)
    assert (row["declared_frames"], row["frames"], row["variable_frame_rate"]) == (50, 50, False)
    assert row["duration_s"] == pytest.approx(2.0) and row["frame_rate"] == pytest.approx(25.0)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_remuxed_copies_of_one_stream_have_one_video_id(codec: str, tmp_path: Path) -> None:
    original = make_video(tmp_path / "original.mp4", "-c:v", codec, "-bf", 2, "-g", 10)
    other = make_video(tmp_path / "other.mp4", "-c:v", codec, "-bf", 2, "-g", 10, "-crf", 40)
    copies = [tmp_path / f"copy.{suffix}" for suffix in ("mkv", "ts", "mov")]
    for copy in copies:
        ffmpeg("-i", original, "-c", "copy", copy)
    back = tmp_path / "back.mp4"
    ffmpeg("-i", copies[1], "-c", "copy", back)
    ids = [probe_file(str(path))["video_id"] for path in [original, *copies, back, other]]
    assert len(set(ids[:-1])) == 1
    assert ids[-1] not in ids[:-1]


def test_both_unit_forms_split_into_the_same_units() -> None:
    units = [b"\x65abc", b"\x41de", b"\x06f"]
    prefixed = b"".join(len(unit).to_bytes(4, "big") + unit for unit in units)
    started = b"\0\0\0\1" + units[0] + b"\0\0\1" + units[1] + b"\0\0\0\1" + units[2]
    assert list(prefixed_units(prefixed, 4)) == units
    assert [unit.rstrip(b"\0") for unit in start_code_units(started) if unit.strip(b"\0")] == units
    assert nal_length_size("h264", b"\x01d\x00\x1e\xff\xe1\x00") == 4
    assert nal_length_size("h264", b"\0\0\0\1gd") == 0


def test_rotated_video_has_its_upright_size(video: Path, tmp_path: Path) -> None:
    rotated = tmp_path / "rotated.mov"
    ffmpeg("-display_rotation", "90", "-i", video, "-c", "copy", rotated)
    row = probe_file(str(rotated))
    assert (row["width"], row["height"]) == (96, 128) and row["rotation"] in (90, 270)


def test_variable_frame_rate_and_late_start_are_seen(tmp_path: Path) -> None:
    path = make_video(
        tmp_path / "variable.mkv", "-vf", "select='not(eq(mod(n,5),2))'", "-fps_mode", "vfr", "-output_ts_offset", 3, "-c:v", "libx264"
    )
    row = probe_file(str(path))
    assert row["variable_frame_rate"]
    assert row["start_pts"] * row["time_base_num"] / row["time_base_den"] == pytest.approx(3.0, abs=0.1)


def test_last_picture_that_is_held_long_belongs_to_the_video(tmp_path: Path) -> None:
    row = probe_file(str(held_video(tmp_path / "slides.mp4", held=80)))
    assert row["frames"] == 20 and row["duration_s"] == pytest.approx((19 + 80) / 10) and row["frame_rate"] == pytest.approx(10.0)


def test_every_bad_file_becomes_a_row_with_its_code(video: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 50)
    headless = tmp_path / "headless.mp4"  # the index at the end of the file is cut off
    ffmpeg("-i", video, "-c", "copy", headless)
    headless.write_bytes(headless.read_bytes()[: headless.stat().st_size // 2])
    cut = tmp_path / "cut.mp4"  # the index is at the start, half of the frames are gone
    cut.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    sound = tmp_path / "sound.mp4"
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", sound)
    single = make_video(tmp_path / "single.mp4", "-frames:v", 1)
    fifo = tmp_path / "fifo.mp4"
    os.mkfifo(fifo)
    codes = {path.stem: probe_file(str(path)).get("code") for path in (empty, text, headless, cut, sound, single, fifo, video)}
    assert codes == {
        "empty": Reject.EMPTY_FILE, "text": Reject.NOT_A_VIDEO, "headless": Reject.TRUNCATED, "cut": Reject.TRUNCATED,
        "sound": Reject.NO_VIDEO_STREAM, "single": Reject.TOO_SHORT, "fifo": Reject.UNREADABLE, "plain": None,
    }  # fmt: skip
    assert probe_file(str(tmp_path / "gone.mp4"))["code"] == Reject.UNREADABLE


def test_damaged_bytes_inside_the_stream_are_a_decode_error(video: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mp4"
    content = bytearray(video.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 600] = b"\xff" * 600
    damaged.write_bytes(content)
    assert probe_file(str(damaged))["code"] == Reject.DECODE_ERROR


def probe_that_hangs(job: ProbeJob) -> Any:
    """The probe, with a decoder that never answers for a file of this name and kills its worker for another."""

    def stuck(*arguments: Any) -> None:
        if "kills" in job.path:
            os._exit(3)
        time.sleep(600)

    probe._measure = stuck
    return probe.probe_recording(job)


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with Crew("test_video_probe:probe_that_hangs", 2) as crew:
        yield crew


def test_file_that_hangs_the_decoder_is_quarantined_as_poison(video: Path, tmp_path: Path, hanging: Crew) -> None:
    paths = [str(video), str(shutil.copy(video, tmp_path / "copy.mp4"))]
    first, row = probe_files(paths, batch="b", source="s", timeout_s=2.5, tries={paths[1]: 2}, crew=hanging).quarantine
    assert (first["code"], first["poison"], first["attempts"]) == (Reject.TIMEOUT, False, 2)  # it may have been the machine
    assert (row["code"], row["poison"], row["attempts"], row["detail"]) == (Reject.TIMEOUT, True, 4, "no sign of life for 2.5 s")
    assert (row["sha256"], row["bytes"]) == (media_sha256(video), video.stat().st_size)
    # A copy under another name is known by its bytes, and is not opened.
    again = probe_files([paths[0]], batch="b", source="s", poison=frozenset([row["sha256"]]))
    assert [(item["code"], item["poison"]) for item in again.quarantine] == [(Reject.POISON, True)]


def test_file_whose_reads_may_block_is_only_read_in_a_worker(video: Path, tmp_path: Path, hanging: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: str) -> None:
        raise AssertionError(f"{path} was read outside of its worker")

    deadly = str(shutil.copy(video, tmp_path / "kills.mp4"))
    digest, size = media_sha256(deadly), video.stat().st_size
    monkeypatch.setattr(probe, "media_sha256", never)
    monkeypatch.setattr(probe, "media_stat", never)
    (row,) = probe_files([deadly], batch="b", source="s", crew=hanging).quarantine
    assert (row["code"], row["sha256"], row["bytes"]) == (Reject.WORKER_DIED, digest, size)


def test_path_that_its_source_warns_of_is_a_row_and_is_not_opened(video: Path) -> None:
    probed = probe_files([str(video)], batch="b", source="s", problems={str(video): "the download failed: 403"})
    assert [(row["code"], row["detail"], row["attempts"]) for row in probed.quarantine] == [(Reject.SOURCE_PROBLEM, "the download failed: 403", 0)]


def test_path_that_no_file_can_have_is_a_row(video: Path) -> None:
    probed = probe_files([str(video), "a\0b.mp4", "c\0d.mp4"], batch="b", source="s", problems={"c\0d.mp4": "odd"})
    assert [(row["path"], row["code"], row["bytes"]) for row in probed.quarantine] == [
        ("a\0b.mp4", Reject.UNREADABLE, 0), ("c\0d.mp4", Reject.SOURCE_PROBLEM, 0)
    ] and len(probed.videos) == 1  # fmt: skip


@pytest.mark.parametrize(("name", "codec"), [("plain.mkv", "libx264"), ("plain.webm", "libvpx")])
def test_matroska_that_ends_before_its_time_is_truncated(name: str, codec: str, tmp_path: Path) -> None:
    whole = make_video(tmp_path / name, "-c:v", codec, "-g", 5)
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    row = probe_file(str(cut))
    assert probe_file(str(whole))["frames"] == 50 and row["code"] == Reject.TRUNCATED and "of 2.00 s" in row["detail"]


def test_matroska_is_whole_when_any_of_its_streams_or_held_pictures_lasts_to_the_end(tmp_path: Path) -> None:
    for name in ("sound.webm", "live.webm"):
        # Without the seconds of each stream, which ffmpeg adds as tags: only the whole file's length is told, or none (live).
        ffmpeg(
            "-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=1", "-f", "lavfi", "-i", "sine=duration=4", "-c:v", "libvpx",
            "-c:a", "libvorbis", "-live", int(name == "live.webm"), tmp_path / name,
        )  # fmt: skip
    ffmpeg("-i", held_video(tmp_path / "held.mp4", held=80), "-c", "copy", tmp_path / "held.mkv")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25", "-frames:v", 2, "-c:v", "libx264", tmp_path / "tiny.mkv")
    found = {name: probe_file(str(tmp_path / name)) for name in ("sound.webm", "live.webm", "held.mkv", "tiny.mkv")}
    assert {name: row.get("frames") for name, row in found.items()} == {"sound.webm": 25, "live.webm": 25, "held.mkv": 20, "tiny.mkv": 2}
    assert found["held.mkv"]["duration_s"] == pytest.approx(9.9)


def test_codec_without_a_decoder_is_told_in_words(video: Path, tmp_path: Path) -> None:
    content = video.read_bytes()
    entry = content.index(b"avc1", content.index(b"stsd"))
    (tmp_path / "odd.mp4").write_bytes(content[:entry] + b"zzzz" + content[entry + 4 :])
    row = probe_file(str(tmp_path / "odd.mp4"))
    assert row["code"] == Reject.NO_VIDEO_STREAM and "no decoder" in row["detail"]


def test_file_that_gives_more_than_its_bytes_is_no_endless_video(video: Path, tmp_path: Path) -> None:
    """Such as a list of other files, which FFmpeg knows by its first words and may name itself."""
    (tmp_path / "other.mp4").write_bytes(video.read_bytes())
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\n" + "file other.mp4\n" * 3)
    row = probe_file(str(tmp_path / "list.mp4"))
    assert row["code"] == Reject.DECODE_ERROR and "list of other files" in row["detail"]


def test_killed_probe_goes_on_and_gives_the_tables_of_an_undisturbed_one(video: Path, tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(FILES_PER_PART + 5)]
    files = [Path(shutil.copy(video, tmp_path / f"{name}.mp4")) for name in names]
    work, batch = tmp_path / "work", batch_of(*files)
    for folder in ("plain", "killed"):
        (tmp_path / folder).mkdir()
    build_videos(tmp_path / "plain", batch)
    seen: list[int] = []

    def stop_in_the_second_part(done: int, total: int, text: str = "") -> None:
        seen.append(done)
        if done > FILES_PER_PART + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_videos(tmp_path / "killed", batch, work=work, progress=stop_in_the_second_part)
    summary = build_videos(tmp_path / "killed", batch, work=work)
    assert (summary["cost"]["parts"], summary["cost"]["parts_found"]) == (2, 1) and summary["cost"]["cpu_s"] > 0
    for name in ("videos.parquet", "quarantine.parquet", "signals.arrow"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_order_in_which_files_are_listed_does_not_matter(video: Path, tmp_path: Path) -> None:
    files = [Path(shutil.copy(video, tmp_path / f"{name}.mp4")) for name in "abc"]
    contents = []
    for folder, listed in (("one", files), ("two", files[::-1])):
        (tmp_path / folder).mkdir()
        build_videos(tmp_path / folder, batch_of(*listed))
        contents.append([(tmp_path / folder / name).read_bytes() for name in ("videos.parquet", "signals.arrow")])
    assert contents[0] == contents[1]


def test_tables_do_not_depend_on_worker_count_and_account_for_every_file(video: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    copies = [Path(shutil.copy(video, tmp_path / f"{name}.mp4")) for name in "abc"]
    tables = []
    for workers in (1, 2):
        folder = tmp_path / f"videos-{workers}"
        folder.mkdir()
        batch = batch_of(*copies, text)
        summary = build_videos(folder, batch, workers=workers)
        assert (summary["videos"], summary["quarantined"], summary["distinct_streams"]) == (3, 1, 1)
        assert not failed(check_videos(folder, batch))
        tables.append((folder / "videos.parquet").read_bytes() + (folder / "quarantine.parquet").read_bytes())
    assert tables[0] == tables[1]
    rows = read_table(tmp_path / "videos-1" / "videos.parquet", VIDEOS).to_pylist()
    assert [row["path"] for row in rows] == [str(path) for path in copies]
    assert {(row["licence"], row["uploader"], row["batch"]) for row in rows} == {("CC0", "someone", "pool-0001")}


def test_batch_of_text_files_fails_its_checks_and_names_the_codes(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    build_videos(tmp_path, batch_of(text))
    bad = failed(check_videos(tmp_path, batch_of(text)))
    assert set(bad) == {"something_decodes"} and "not_a_video" in bad["something_decodes"].found


def test_files_that_were_removed_do_not_count_against_their_batch(video: Path, tmp_path: Path) -> None:
    texts = [tmp_path / "x.mp4", tmp_path / "y.mp4"]
    for text in texts:
        text.write_text("no video")
    batch = batch_of(video, *texts)
    build_videos(tmp_path, batch)
    bad = failed(check_videos(tmp_path, batch))["something_decodes"]
    assert bad.found.startswith("1 videos of 3 files") and "remove the files" in bad.remedy
    texts[0].unlink()
    texts[1].unlink()
    for _ in ("judged again", "probed again"):
        checks = check_videos(tmp_path, batch)
        assert not failed(checks) and "2 not there any more" in checks["something_decodes"].found
        build_videos(tmp_path, batch)


def test_files_that_a_manifest_names_and_nobody_has_seen_count_against_their_batch(tmp_path: Path) -> None:
    batch = Batch("pool-0001", "pool", (SourceFile(str(tmp_path / "never.mp4"), 0, 0),), "", "")
    build_videos(tmp_path, batch)
    assert failed(check_videos(tmp_path, batch))["something_decodes"].found.startswith("0 videos of 1 files (1 unreadable)")


def test_files_tried_before_are_not_judged_again(video: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    good, bad = batch_of(video, text).files
    for files, passes in [((replace(bad, tries=2),), True), ((bad,), False), ((good, replace(bad, tries=2)), True), ((replace(good, tries=2), bad), False)]:
        batch = Batch("pool-0002", "pool", files, "", "")
        build_videos(tmp_path, batch)
        assert (not failed(check_videos(tmp_path, batch))) == passes


def test_file_without_a_row_fails_the_accounting_check(video: Path, tmp_path: Path) -> None:
    build_videos(tmp_path, batch_of(video))
    twin = Path(shutil.copy(video, tmp_path / "twin.mp4"))
    assert set(failed(check_videos(tmp_path, batch_of(video, twin)))) == {"every_file_accounted_for"}


@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
def test_every_shared_file_is_a_row_somewhere() -> None:
    root = Path(os.environ["TUBELET_SHARED"]) / "data"
    suffixes = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".flv", ".ts", ".ogv"}
    paths = sorted(str(path) for path in root.rglob("*") if path.suffix in suffixes)
    probed = probe_files(paths, batch="b", source="shared")
    videos, quarantine = probed.videos, probed.quarantine
    assert sorted(row["path"] for row in videos + quarantine) == paths
    assert {Path(row["path"]).name: row["code"] for row in quarantine} == {"corrupted.mp4": Reject.DECODE_ERROR}
    frames = {Path(row["path"]).name: row["frames"] for row in videos}
    assert (frames["sample_vvc.mp4"], frames["discard_first_keyframe.mp4"], frames["bbb_2500ms.ts"]) == (120, 25, 58)
    assert QUARANTINE.names and all(row["sha256"] and row["video_id"] and row["keyframes"] > 0 for row in videos)
    assert all(len(item.pts) == row["frames"] and len(item.grids) for row, item in zip(videos, probed.signals, strict=True))
    late = next(row for row in videos if row["path"].endswith("test_non_zero_start.mp4"))
    assert late["start_offset_s"] > 0
