"""Probes: fair baselines, order-blind features at exact chance, a table and a page that say what was found."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from models.encoder import EncoderConfig, VideoEncoder
from models.errors import TubeletError
from models.preprocessing import Preprocess
from models.weights import save_module
from pipelines.episodes.episode import POSE_COLUMNS
from pipelines.evaluation.encoder_report import build_encoder_report, check_encoder_report
from pipelines.evaluation.features import (
    WindowSet,
    clip_tokens,
    frame_tokens,
    pixel_patches,
    pixel_vectors,
    pooled_by_time,
)
from pipelines.evaluation.health import encoder_health
from pipelines.evaluation.motion import MotionLabels, attentive_scores, ridge_scores
from pipelines.evaluation.pictures import find_row
from pipelines.evaluation.probes import build_probes, check_probes
from pipelines.evaluation.target_sets import read_target_sets
from pipelines.identity import clip_id
from pipelines.recipes import Recipe
from pipelines.schemas import CLIPS, EPISODES, STEPS, table_of, write_table
from pipelines.video.decode import decode_span
from pipelines.video.encode import write_video

SIDE, FRAMES = 32, 6


def square(x: float, y: float) -> np.ndarray:
    """A frame with a bright square at (x, y) in 0..1 of the free range."""
    frame = np.full((SIDE, SIDE, 3), 40, np.uint8)
    top, left = int(y * (SIDE - 10)), int(x * (SIDE - 10))
    frame[top : top + 10, left : left + 10] = (230, 120, 40)
    return frame


def drifting(random: np.random.Generator, frames: int = FRAMES) -> np.ndarray:
    """(frames, 2) places that move one way, at constant speed."""
    start, step = random.uniform(0.3, 0.7, 2), random.uniform(-0.06, 0.06, 2)
    return np.clip(start + step * np.arange(frames)[:, None], 0, 1)


@pytest.fixture(scope="module")
def episode_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe_episodes")
    (folder / "videos").mkdir()
    random = np.random.default_rng(8)
    rows, steps = [], []
    for index in range(20):
        places, name = drifting(random), f"episode-{index}"
        write_video(folder / "videos" / f"{name}.mp4", np.stack([square(x, y) for x, y in places]), 2.0)
        rows.append({
            "episode_id": name, "source": "made", "steps": FRAMES, "step_s": 0.5, "video": f"videos/{name}.mp4",
            "sha256": "", "licence": "CC0-1.0",
        })  # fmt: skip
        for step, (x, y) in enumerate(places):
            pose = (x, y, 0.2 + 0.1 * random.uniform(), 0.0, 0.0, 0.0, 0.0)
            steps.append({
                "episode_id": name, "step": step, "t_s": 0.5 * step, "cube_x": x, "cube_y": random.uniform(),
                **dict(zip(POSE_COLUMNS, pose, strict=True)),
            })  # fmt: skip
    write_table(table_of(EPISODES, rows), folder / "episodes.parquet", EPISODES)
    write_table(table_of(STEPS, steps), folder / "steps.parquet", STEPS)
    return folder


@pytest.fixture(scope="module")
def target_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One set whose classes are the same drifts played forwards and backwards."""
    folder = tmp_path_factory.mktemp("probe_targets")
    rows = []
    for index in range(16):
        places = np.stack([np.linspace(0.1, 0.8, 8) + 0.01 * (index // 2), np.full(8, 0.5)], axis=1)
        label = ("left", "right")[index % 2]
        path = folder / f"{index}.mp4"
        write_video(path, np.stack([square(x, y) for x, y in (places if label == "right" else places[::-1])]), 8.0)
        split = "train" if index < 10 else "eval"
        import av

        with av.open(str(path)) as container:
            base = container.streams.video[0].time_base
            pts = sorted(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        assert base is not None
        end = pts[-1] + pts[1] - pts[0]
        rows.append({
            "clip_id": clip_id(str(index), pts[0], end, (base.numerator, base.denominator), "t"), "video_id": str(index),
            "path": str(path), "start_pts": pts[0], "end_pts": end, "time_base_num": base.numerator,
            "time_base_den": base.denominator, "frames": 8, "source": f"push/{split}", "label": label,
        })  # fmt: skip
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    return folder


@pytest.fixture(scope="module")
def encoder_artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 'trained' encoder with the files a pretraining phase leaves."""
    folder = tmp_path_factory.mktemp("probe_encoder")
    torch.manual_seed(1)
    encoder = VideoEncoder(EncoderConfig(embed_dim=32, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=4))
    save_module(encoder, folder, "target_encoder")
    state = {"verdict": {"state": "healthy", "line": "healthy: RankMe 20.0"}, "summary": {"steps": 6, "loss": 0.5}}
    (folder / "state.json").write_text(json.dumps(state))
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).savefig(folder / "curves.png")
    return folder


@pytest.fixture(scope="module")
def probed(
    encoder_artefact: Path, episode_artefact: Path, target_artefact: Path, probe_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("probed")
    return folder, build_probes(folder, encoder_artefact, episode_artefact, target_artefact, recipe=probe_recipe)


# -- motion --------------------------------------------------------------------------------------------------------------


def windows(count: int, seed: int) -> WindowSet:
    random = np.random.default_rng(seed)
    places = np.stack([drifting(random, 4) for _ in range(count)])
    clips = np.stack([[square(x, y) for x, y in path] for path in places])
    moved = np.concatenate([places[:, -1] - places[:, 0], np.zeros((count, 1))], axis=1)
    return WindowSet(clips, moved, np.arange(count) // 2)


def test_order_blind_features_are_exactly_at_chance() -> None:
    train, held = windows(40, 1).with_reversed(), windows(20, 2).with_reversed()
    blind = [pixel_vectors(part.clips.reshape(-1, SIDE, SIDE, 3), 8).reshape(len(part.clips), 4, -1).mean(1) for part in (train, held)]
    signs, _ = ridge_scores(
        blind[0], MotionLabels.of(train.moved), train.episodes, blind[1], MotionLabels.of(held.moved), seed=0
    )
    counted = MotionLabels.of(held.moved).signs != 0
    right = np.nansum(signs * counted.sum(1))
    assert right == pytest.approx(counted.sum() / 2, abs=1e-9)


def test_ordered_pixels_tell_the_direction() -> None:
    train, held = windows(60, 1).with_reversed(), windows(20, 2).with_reversed()
    ordered = [pixel_vectors(part.clips.reshape(-1, SIDE, SIDE, 3), 8).reshape(len(part.clips), -1) for part in (train, held)]
    signs, directions = ridge_scores(
        ordered[0], MotionLabels.of(train.moved), train.episodes, ordered[1], MotionLabels.of(held.moved), seed=0
    )
    assert np.nanmean(signs) > 0.8 and np.nanmean(directions) > 0.5


def test_reversed_window_has_the_opposite_motion_and_the_same_frames() -> None:
    plain = windows(3, 5)
    both = plain.with_reversed()
    np.testing.assert_array_equal(both.moved[1::2], -plain.moved)
    np.testing.assert_array_equal(both.clips[1::2], plain.clips[:, ::-1])
    assert both.episodes.tolist() == np.repeat(plain.episodes, 2).tolist()


def test_unclear_motion_is_not_scored() -> None:
    labels = MotionLabels.of(np.array([[0.05, 0.01, -0.03], [0.001, 0.0, 0.0]]))
    signs, directions = labels.score(np.array([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]]), np.eye(6)[[1, 0]])
    assert signs[0] == 0.5 and np.isnan(signs[1])
    assert directions[0] == 1.0 and np.isnan(directions[1])


def test_attentive_probe_learns_and_leaves_the_global_random_state_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (240, 3), generator=generator) * 2 - 1
    tokens = torch.randn(240, 2, 4, 32, generator=generator)
    tokens[:, 1, :, :3] += 2 * signs[:, None]
    labels = MotionLabels.of(signs.numpy() * 0.05)
    halves = (MotionLabels(labels.signs[:180], labels.directions[:180]), MotionLabels(labels.signs[180:], labels.directions[180:]))
    before = torch.get_rng_state()
    found, _ = attentive_scores(tokens[:180], halves[0], tokens[180:], halves[1], epochs=30, seed=0)
    assert torch.equal(before, torch.get_rng_state())
    assert np.nanmean(found) > 0.75


# -- features ------------------------------------------------------------------------------------------------------------


def test_clip_tokens_keep_the_order_of_time_and_do_not_mix_clips() -> None:
    torch.manual_seed(0)
    encoder = VideoEncoder(EncoderConfig(embed_dim=32, depth=1, num_heads=2, img_size=(SIDE, SIDE), num_frames=4)).eval()
    preprocess = Preprocess(height=SIDE, width=SIDE)
    clips = windows(40, 3).clips
    tokens = clip_tokens(encoder, clips, preprocess)
    with torch.inference_mode():
        one = encoder(preprocess(torch.from_numpy(clips[33]))[None])
    torch.testing.assert_close(tokens[33].flatten(0, 1), one[0], atol=2e-5, rtol=0)
    assert pooled_by_time(tokens).shape == (40, 2 * 32)
    assert frame_tokens(encoder, clips[:, 0], preprocess).shape == (40, 4, 32)


def test_mean_patch_of_pixels_is_the_mean_over_patches() -> None:
    images = windows(2, 4).clips[:, 0]
    preprocess = Preprocess(height=SIDE, width=SIDE)
    video = preprocess(torch.from_numpy(images)).transpose(0, 1)[1]  # (3, 32, 32)
    patches = [video[:, r : r + 16, c : c + 16] for r in (0, 16) for c in (0, 16)]
    np.testing.assert_allclose(pixel_patches(images, 16, preprocess)[1], torch.stack(patches).mean(0).flatten(), atol=1e-6)


def test_health_sees_a_loss_of_rank_that_spread_hides() -> None:
    random = np.random.default_rng(0)
    healthy = random.normal(size=(300, 32))
    flat = random.normal(size=(300, 2)) @ random.normal(size=(2, 32))
    flat *= healthy.std() / flat.std()
    assert encoder_health(healthy, healthy).state == "healthy"
    assert encoder_health(flat, healthy).state in ("weak", "collapsed")
    assert encoder_health(healthy * 1e-3, healthy).state == "collapsed"


# -- the stage -----------------------------------------------------------------------------------------------------------


def test_table_has_every_baseline_with_intervals(probed: tuple[Path, dict[str, object]]) -> None:
    folder, summary = probed
    rows = json.loads((folder / "probes.json").read_text())["rows"]
    for key in (
        ("frame", "pooled", "trained", "r2_mean"), ("frame", "pooled", "random", "r2_ee_x"), ("frame", "flat", "pixels", "r2_cube_y"),
        ("frame", "pooled", "trained_minus_random", "r2_mean"), ("motion", "pooled_by_time", "trained", "sign_accuracy"),
        ("motion", "attentive", "random", "direction_accuracy"), ("motion", "flat", "single_frame", "sign_accuracy"),
        ("motion", "pooled_by_time", "pixels", "sign_accuracy"), ("push", "pooled_by_time", "trained", "accuracy"),
    ):  # fmt: skip
        row = find_row(rows, *key)
        assert row is not None, key
        assert row["low"] <= row["high"] and row["n"] > 0
    assert len({tuple(row[name] for name in ("task", "features", "encoder", "metric")) for row in rows}) == len(rows)
    trained, random = (find_row(rows, "frame", "pooled", name, "r2_mean") for name in ("trained", "random"))
    assert trained is not None and random is not None
    assert summary["frame_r2_gain"] == pytest.approx(trained["value"] - random["value"])
    assert (folder / "probes.png").stat().st_size < 100_000
    assert check_probes(folder)["finite"].passed


def test_probing_twice_gives_the_same_table(
    probed: tuple[Path, dict[str, object]], encoder_artefact: Path, episode_artefact: Path, probe_recipe: Recipe, tmp_path: Path
) -> None:
    build_probes(tmp_path, encoder_artefact, episode_artefact, None, recipe=probe_recipe)
    first, again = (json.loads((folder / "probes.json").read_text())["rows"] for folder in (probed[0], tmp_path))
    assert again == [row for row in first if row["task"] != "push"]


def test_target_sets_keep_their_splits_apart(target_artefact: Path) -> None:
    (target,) = read_target_sets(target_artefact, 4, (SIDE, SIDE))
    assert target.name == "push" and target.classes == ("left", "right")
    (clips,) = target.batches()
    assert target.train.sum() == 10 and clips.shape == (16, 4, SIDE, SIDE, 3)
    for row, frames in zip(target.rows, clips, strict=True):
        whole, _ = decode_span(row["path"], row["start_pts"], row["end_pts"], (row["time_base_num"], row["time_base_den"]))
        np.testing.assert_array_equal(frames, whole[np.linspace(0, len(whole) - 1, 4).round().astype(int)])


def test_a_large_target_set_is_read_in_part_and_that_is_told(
    target_artefact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (whole,) = read_target_sets(target_artefact, 4, (SIDE, SIDE))
    monkeypatch.setattr("pipelines.evaluation.target_sets.MOST_TRAIN", 6)
    monkeypatch.setattr("pipelines.evaluation.target_sets._BATCH", 5)
    monkeypatch.setattr(logging.getLogger("tubelet"), "propagate", True)
    with caplog.at_level(logging.WARNING, "tubelet"):
        (part,) = read_target_sets(target_artefact, 4, (SIDE, SIDE))
    assert "push: 6 of its 10 training clips are read" in caplog.text and "evaluation clips" not in caplog.text
    assert (part.train.sum(), (~part.train).sum()) == (6, 6) and [len(clips) for clips in part.batches()] == [5, 5, 2]
    first = [row["clip_id"] for row, train in zip(whole.rows, whole.train, strict=True) if train][:6]
    assert [row["clip_id"] for row, train in zip(part.rows, part.train, strict=True) if train] == first


def test_numbers_that_are_not_finite_fail_the_check(probed: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    content = json.loads((probed[0] / "probes.json").read_text())
    row = find_row(content["rows"], "frame", "pooled", "trained", "r2_mean")
    assert row is not None
    row["value"] = float("nan")
    (tmp_path / "probes.json").write_text(json.dumps(content))
    assert not check_probes(tmp_path)["finite"].passed


def test_report_is_one_whole_page(probed: tuple[Path, dict[str, object]], encoder_artefact: Path, tmp_path: Path) -> None:
    build_encoder_report(tmp_path, encoder_artefact, encoder_artefact, probed[0])
    assert check_encoder_report(tmp_path)["complete"].passed
    page = (tmp_path / "encoder_report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "random initialisation" in page
    (tmp_path / "encoder_report.html").write_text(page.replace("id='probes'", ""))
    assert "probes" in check_encoder_report(tmp_path)["complete"].found


def test_report_names_the_file_it_misses(probed: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match=r"needs state\.json"):
        build_encoder_report(tmp_path, tmp_path, tmp_path, probed[0])
