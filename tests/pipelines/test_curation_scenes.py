"""Cutting, embedding and target sets on real files with known content."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.checks import failed
from pipelines.curation.embedding import (
    EfficientNetLite0,
    EmbeddingSettings,
    build_embeddings,
    check_embeddings,
    make_embedder,
    read_vectors,
)
from pipelines.curation.scenes import SceneConfig, build_clips, check_clips, cut_videos
from pipelines.curation.sources import Batch, SourceFile
from pipelines.curation.targets import (
    build_target_videos,
    check_target_videos,
    read_targets_root,
    root_digest,
    set_weights,
)
from pipelines.errors import InputError, Reject
from pipelines.schemas import CLIPS, QUARANTINE, VIDEOS, read_table
from pipelines.video.decode import decode_span
from pipelines.video.encode import write_video
from pipelines.video.probe import build_videos

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


def test_clip_row_decodes_to_exactly_its_frames(clips_folder: Path) -> None:
    for row in read_table(clips_folder / "clips.parquet", CLIPS).to_pylist():
        frames, _ = decode_span(row["path"], row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"]))
        assert frames.shape == (row["frames"], row["height"], row["width"], 3)


def test_motion_is_recorded_and_nothing_is_filtered(clips_folder: Path) -> None:
    still, moving = rows_of(clips_folder, "still.mp4"), rows_of(clips_folder, "long.mp4")
    assert len(still) == 1 and still[0]["motion"] < 0.5 < moving[0]["motion"]


def test_tables_are_byte_equal_for_one_and_two_workers(pool: Path, clips_folder: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, pool / "videos", workers=1)
    assert (tmp_path / "clips.parquet").read_bytes() == (clips_folder / "clips.parquet").read_bytes()


def test_other_cutting_rule_gives_other_clip_ids(pool: Path, clips_folder: Path, tmp_path: Path) -> None:
    build_clips(tmp_path, pool / "videos", config=SceneConfig(detector="content", threshold=27.0))
    ours = set(read_table(tmp_path / "clips.parquet", CLIPS).column("clip_id").to_pylist())
    assert ours and ours.isdisjoint(read_table(clips_folder / "clips.parquet", CLIPS).column("clip_id").to_pylist())


def test_file_that_changed_since_the_probe_is_a_row(pool: Path) -> None:
    video = read_table(pool / "videos" / "videos.parquet", VIDEOS).to_pylist()[0]
    clips, rejects = cut_videos([{**video, "frames": 7}], SceneConfig())
    assert not clips and rejects[0]["code"] == Reject.DECODE_ERROR and "changed" in rejects[0]["detail"]


def test_vectors_are_unit_length_and_do_not_depend_on_their_neighbours(clips_folder: Path, tmp_path: Path) -> None:
    summary = build_embeddings(tmp_path, clips_folder)
    clip_ids, vectors = read_vectors(tmp_path)
    assert vectors.shape == (summary["clips"], 1280) and vectors.dtype == np.float32
    assert clip_ids == read_table(clips_folder / "clips.parquet", CLIPS).column("clip_id").to_pylist()
    assert not failed(check_embeddings(tmp_path))
    embedder = make_embedder(EmbeddingSettings())
    frames = np.random.default_rng(0).integers(0, 255, (30, 128, 128, 3), dtype=np.uint8)
    assert np.array_equal(embedder.embed(frames)[26:28], embedder.embed(frames[26:28]))


def test_damaged_vectors_fail_their_check(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.array([[1.0, 0.0], [np.nan, 1.0]], np.float32))
    (tmp_path / "clip_ids.json").write_text('["a", "b"]')
    assert set(failed(check_embeddings(tmp_path))) == {"not_empty"}


def test_encoder_digest_names_weights_and_preprocessing() -> None:
    digests = {EfficientNetLite0(EmbeddingSettings(image_size=size)).digest for size in (96, 128, 128)}
    assert len(digests) == 2
    with pytest.raises(InputError, match="no encoder"):
        make_embedder(EmbeddingSettings(encoder="other"))


@pytest.fixture(scope="module")
def targets_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("targets")
    for number, (name, split, label) in enumerate((n, s, x) for n in ("push", "lift") for s in ("train", "eval") for x in ("a", "b")):
        (root / name / split / label).mkdir(parents=True)
        write_video(root / name / split / label / "one.mp4", shot(50 + number, 12), RATE)
    return root


def test_target_sets_give_one_labelled_clip_a_file(targets_root: Path, tmp_path: Path) -> None:
    summary = build_target_videos(tmp_path, targets_root)
    rows = read_table(tmp_path / "clips.parquet", CLIPS).to_pylist()
    assert (summary["sets"], summary["clips"], summary["evaluation_clips"]) == (2, 8, 4)
    assert {(row["source"], row["label"]) for row in rows} == {
        (f"{name}/{split}", label) for name in ("push", "lift") for split in ("train", "eval") for label in "ab"
    }
    assert all(row["frames"] == 12 and row["splitter"] == "whole-v1" for row in rows)
    assert set_weights(tmp_path) == {"lift": 0.5, "push": 0.5} and not failed(check_target_videos(tmp_path))
    listed = json.loads((tmp_path / "targets.json").read_text())
    assert {part["split"] for part in listed} == {"train", "eval"} and all(len(part["files"]) == 1 for part in listed)


def test_target_weights_come_from_the_file_and_bad_ones_are_refused(targets_root: Path) -> None:
    path = targets_root / "targets.yaml"
    before = root_digest(targets_root)
    try:
        path.write_text("weights: {push: 3, lift: 1}")
        assert {part.name: part.weight for part in read_targets_root(targets_root)} == {"push": 0.75, "lift": 0.25}
        assert root_digest(targets_root) != before
        for text in ("weights: {push: 1}", "weights: {push: -1, lift: 2}", "weights: {push: 0, lift: 0}", "[]"):
            path.write_text(text)
            with pytest.raises(InputError, match="does not weigh"):
                read_targets_root(targets_root)
    finally:
        path.unlink()


def test_badly_laid_out_target_roots_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        read_targets_root(tmp_path / "none")
    with pytest.raises(InputError, match="no target set"):
        read_targets_root(tmp_path)
    (tmp_path / "push" / "train" / "left").mkdir(parents=True)
    with pytest.raises(InputError, match="no train videos"):
        read_targets_root(tmp_path)


@pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")
def test_shared_films_are_cut_where_their_sheet_says(tmp_path: Path) -> None:
    data = Path(os.environ["TUBELET_SHARED"]) / "data"
    sheet = {
        "cosmos-curate/test_video_30s.mp4": [14.5, 15.5, 21.79, 23.88, 25.42, 26.0],
        "moviepy/big_buck_bunny_0_30.webm": [11.80, 15.67, 22.96], "torchcodec/nasa_13013.mp4": [8.01],
    }  # fmt: skip
    files = tuple(SourceFile(str(data / name), (data / name).stat().st_size, 0) for name in sheet)
    build_videos(tmp_path, Batch("b-0001", "b", files, "", ""))
    clips, rejects = cut_videos(read_table(tmp_path / "videos.parquet", VIDEOS).to_pylist(), SceneConfig())
    for name, cuts in sheet.items():
        starts = [row["start_s"] for row in clips if row["path"].endswith(name)]
        starts += [float(row["detail"].split()[1].split("-")[0]) for row in rejects if row["path"].endswith(name)]
        assert all(any(abs(start - cut) < 0.1 for start in starts) for cut in cuts), name
