"""Shards: frame-exact, byte-identical, readable by the stock webdataset, and damage is named."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset

from pipelines import schemas
from pipelines.shards.cutting import cut_clip
from pipelines.shards.decode import decode_clip
from pipelines.shards.form import CutClip, ShardConfig, measure
from pipelines.shards.index import ShardError, ShardIndex
from pipelines.shards.verify import verify_shards
from pipelines.shards.writer import build_shards, check_shards
from pipelines.video.decode import open_video, time_base_of, timed_frames
from pipelines.video.encode import ffmpeg_binary


def quiet(*_: object) -> None:
    return None


def clips_by_id(made_clips: Path) -> dict[str, dict]:
    return {row["clip_id"]: row for row in schemas.read_table(made_clips / "clips.parquet", schemas.CLIPS).to_pylist()}


def test_stock_webdataset_and_our_index_read_the_same_bytes(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    tars = sorted(str(path) for path in made_shards.glob("*.tar"))
    assert len(tars) >= 2
    samples = {sample["__key__"]: sample for sample in webdataset.WebDataset(tars, shardshuffle=False)}
    assert set(samples) == set(index.column("clip_id"))
    for row in range(len(index)):
        entry = index.entry(row)
        assert index.read(entry) == samples[entry.clip_id]["mp4"]
        assert json.loads(samples[entry.clip_id]["json"])["clip_id"] == entry.clip_id


def test_a_cut_clip_holds_exactly_the_frames_of_its_span(made_clips: Path, made_shards: Path) -> None:
    index, clips = ShardIndex(made_shards), clips_by_id(made_clips)
    for row in range(len(index)):
        entry = index.entry(row)
        clip = clips[entry.clip_id]
        decoded = decode_clip(index.read(entry))
        first = round(clip["start_s"] * clip["frame_rate"])
        levels = [decoded.frame(number).mean() for number in range(len(decoded.pictures))]
        np.testing.assert_allclose(levels, 20 + 3 * (first + np.arange(clip["frames"])), atol=1.4)  # 3 grey levels a frame
        np.testing.assert_allclose(decoded.times_s, np.arange(clip["frames"]) / clip["frame_rate"], atol=1e-4)
        assert (decoded.height, decoded.width) == (32, 42)


@pytest.mark.parametrize("container", ["ts", "mkv", "avi"])
def test_containers_with_coarse_clocks_inexact_seeking_or_no_times_are_cut_exactly(
    made_clips: Path, tmp_path: Path, container: str
) -> None:
    path = tmp_path / f"b.{container}"
    codec = ["-c", "copy"] if container != "avi" else ["-c:v", "mpeg4", "-bf", "2", "-q:v", "2"]
    subprocess.run([ffmpeg_binary(), "-loglevel", "error", "-i", made_clips / "b.mp4", *codec, path], check=True)
    with open_video(path) as (_, stream):
        base = time_base_of(stream)
    pts = [pts for pts, _ in timed_frames(path)]
    clip = {
        "clip_id": "x", "path": str(path), "start_pts": pts[47], "end_pts": pts[70], "time_base_num": base.numerator,
        "time_base_den": base.denominator, "frames": 23,
    }  # fmt: skip
    cut = cut_clip(clip, tmp_path / "cut.mp4", ShardConfig())
    assert isinstance(cut, CutClip), cut
    decoded = decode_clip(cut.data)
    levels = [decoded.frame(number).mean() for number in range(23)]
    np.testing.assert_allclose(levels, 20 + 3 * np.arange(47, 70), atol=1.4)
    np.testing.assert_allclose(decoded.times_s, np.arange(23) / 25, atol=2e-3)


def test_the_index_tells_what_is_stored_and_whose_it_is(made_clips: Path, made_shards: Path) -> None:
    clips = clips_by_id(made_clips)
    rows = schemas.read_table(made_shards / "shard_index.parquet", schemas.SHARD_INDEX).to_pylist()
    assert [row["clip_id"] for row in rows] == sorted(clips)
    for row in rows:
        assert (row["width"], row["height"], row["form"], row["uploader"]) == (42, 32, "encoded", "tests")
        assert row["frame_rate"] == clips[row["clip_id"]]["frame_rate"] and row["frames"] == clips[row["clip_id"]]["frames"]


def test_training_form_bounds_key_frame_distance_and_has_no_reordering(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    for row in range(len(index)):
        found = measure(index.read(index.entry(row)))
        assert found.gop <= 16 and not found.reordered


def test_clips_are_never_enlarged(made_clips: Path, tmp_path: Path) -> None:
    build_shards(tmp_path, made_clips, made_clips, config=ShardConfig(short_side=200), progress=quiet)
    index = ShardIndex(tmp_path)
    decoded = decode_clip(index.read(index.entry(0)))
    assert (decoded.height, decoded.width) == (48, 64)


def test_two_builds_give_equal_bytes_whatever_the_workers(made_clips: Path, made_shards: Path, tmp_path: Path) -> None:
    build_shards(tmp_path, made_clips, made_clips, config=ShardConfig(short_side=32, shard_bytes=12_000), workers=1, progress=quiet)
    names = sorted(path.name for path in made_shards.iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())
    for name in names:
        assert (made_shards / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_clip_that_cannot_be_cut_is_a_row_with_a_reason(made_clips: Path, tmp_path: Path) -> None:
    rows = schemas.read_table(made_clips / "clips.parquet", schemas.CLIPS).to_pylist()
    rows[0]["path"] = str(tmp_path / "gone.mp4")
    rows[1]["frames"] += 3
    (tmp_path / "text.mp4").write_text("not a video")
    rows[2]["path"] = str(tmp_path / "text.mp4")
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), tmp_path / "in/clips.parquet", schemas.CLIPS)
    summary = build_shards(tmp_path / "out", tmp_path / "in", made_clips, config=ShardConfig(), progress=quiet)
    assert summary["clips"] == len(rows) - 3 and summary["failed"] == 3
    refused = schemas.read_table(tmp_path / "out/quarantine.parquet", schemas.QUARANTINE).to_pylist()
    assert [row["code"] for row in refused] == ["unreadable", "truncated", "decode_error"]
    assert all(clip["clip_id"] in row["detail"] for clip, row in zip(rows, refused, strict=False))
    assert summary["weight_lost"] == pytest.approx(1 + 2 + 3)
    checks = check_shards(tmp_path / "out")
    assert checks["not_empty"].passed and checks["bytes_agree"].passed and not checks["clips_were_cut"].passed


def test_a_selection_of_unknown_clips_is_refused(made_clips: Path, tmp_path: Path) -> None:
    row = {"clip_id": "nobody", "video_id": "v", "cluster": 0, "weight": 1.0, "target": "t", "uniform_weight": 1.0}
    schemas.write_table(schemas.table_of(schemas.SELECTION, [row]), tmp_path / "selection.parquet", schemas.SELECTION)
    with pytest.raises(ShardError, match="nobody"):
        build_shards(tmp_path, made_clips, tmp_path, config=ShardConfig(), progress=quiet)


def test_verify_finds_nothing_in_good_shards(made_shards: Path) -> None:
    assert verify_shards(made_shards) == []


def test_a_flipped_byte_is_found_by_verify_and_refused_by_the_reader(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    entry = ShardIndex(folder).entry(3)
    data = bytearray((folder / entry.shard).read_bytes())
    data[entry.offset + entry.length // 2] ^= 1
    (folder / entry.shard).write_bytes(data)
    assert [entry.clip_id in problem for problem in verify_shards(folder)] == [True]
    index = ShardIndex(folder)
    with pytest.raises(ShardError, match=entry.clip_id):
        index.read(index.entry(3))


def test_a_truncated_and_a_missing_and_an_unknown_shard_are_named(shards_copy: Callable[[], Path]) -> None:
    folder = shards_copy()
    first, second = sorted(folder.glob("*.tar"))[:2]
    (folder / "shard-000099.tar").write_bytes(second.read_bytes())
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    second.unlink()
    problems = " | ".join(verify_shards(folder))
    assert "shard-000099.tar: not in the index" in problems
    assert f"{second.name}: missing" in problems
    assert f"{first.name}:" in problems
    lost = next(row for row in range(len(ShardIndex(folder))) if ShardIndex(folder).entry(row).shard == second.name)
    with pytest.raises(ShardError, match=second.name):
        ShardIndex(folder).read(ShardIndex(folder).entry(lost))
