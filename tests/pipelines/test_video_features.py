"""Features of videos: exact times, pooling, batches, files that say how they were made, and videos that are no videos."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.encoder import EncoderConfig, VideoEncoder
from models.preprocessing import Preprocess
from models.weights import save_module, state_digest
from pipelines import reporting
from pipelines.errors import InputError, MissingArtefact, Reject
from pipelines.features import run, work
from pipelines.features.encoding import video_features
from pipelines.features.report import outcome_text
from pipelines.features.run import FeatureRequest, extract_features
from pipelines.features.settings import FeatureSettings, settings_for, size_of
from pipelines.features.windows import RejectedVideo, windows_of
from pipelines.features.work import Outcome
from pipelines.reporting import Progress
from pipelines.video.encode import write_video

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = EncoderConfig(embed_dim=48, depth=2, num_heads=2, img_size=(32, 32), num_frames=4)
RATE = 8  # frames/s of the made videos: every second frame is sampled at 4 frames/s


def levels(count: int) -> np.ndarray:
    """(count, 48, 64, 3) uint8 whose mean grey level tells the frame's number: 10 + 4 * number."""
    return np.broadcast_to((10 + 4 * np.arange(count)).astype(np.uint8)[:, None, None, None], (count, 48, 64, 3)).copy()


def number_of(frame: torch.Tensor) -> int:
    """The number of a made frame after preprocessing (mean and std undone)."""
    mean, std = torch.tensor(Preprocess(height=1, width=1).mean), torch.tensor(Preprocess(height=1, width=1).std)
    grey = float((frame.mean((1, 2)) * std + mean).mean() * 255)
    return round((grey - 10) / 4)


@pytest.fixture(scope="module")
def encoder() -> VideoEncoder:
    torch.manual_seed(7)
    return VideoEncoder(CONFIG).eval()


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good videos of one name in two folders (2.75 s and 1 s), a damaged one, a text with a video's name, a text."""
    folder = tmp_path_factory.mktemp("features") / "videos"
    write_video(folder / "a" / "clip.mp4", levels(22), RATE)
    write_video(folder / "b" / "clip.mp4", levels(8), RATE)
    whole = (folder / "a" / "clip.mp4").read_bytes()
    (folder / "b" / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "story.mp4").write_text("once upon a time")
    (folder / "notes.txt").write_text("not a video")
    return folder


@pytest.fixture(scope="module")
def weights(encoder: VideoEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save_module(encoder, folder, "encoder")
    return folder


def extract(weights: Path, source: Path, out: Path, file_format: str | None = None, batch: int | None = None, **options: Any) -> Outcome:
    request = FeatureRequest(
        checkpoint=str(weights), source=source, store=out.parent / "none", out=out, file_format=file_format, device="cpu", batch=batch, options=options
    )
    return extract_features(request)


def test_windows_show_the_frames_of_their_seconds_and_fill_the_last_one(pool: Path) -> None:
    windows = list(windows_of(pool / "a" / "clip.mp4", settings_for(CONFIG)))
    assert [(w.number, w.start_s, w.end_s, w.filled) for w in windows] == [(0, 0.0, 1.0, 0), (1, 1.0, 2.0, 0), (2, 2.0, 2.75, 1)]
    assert [[number_of(w.video[:, t]) for t in range(4)] for w in windows] == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18, 20, 21]]  # the video's last frame is number 21
    assert windows[0].video.shape == (3, 4, 32, 32) and windows[0].video.dtype == torch.float32


def test_windows_overlap_by_the_stride_and_stop_when_the_end_is_covered(pool: Path) -> None:
    windows = list(windows_of(pool / "a" / "clip.mp4", settings_for(CONFIG, stride_seconds=0.5)))
    assert [w.start_s for w in windows] == [0.0, 0.5, 1.0, 1.5]  # the next would add one frame: no tubelet of its own
    assert [number_of(w.video[:, 0]) for w in windows] == [0, 4, 8, 12]
    assert [w.filled for w in windows] == [0, 0, 0, 0]


def test_strides_longer_than_a_window_leave_gaps_and_a_limit_ends_the_video_early(pool: Path) -> None:
    path = pool / "a" / "clip.mp4"
    assert [w.start_s for w in windows_of(path, settings_for(CONFIG, stride_seconds=2.0))] == [0.0, 2.0]
    limited = list(windows_of(path, settings_for(CONFIG, limit_seconds=1.5)))
    assert [(w.start_s, w.end_s, w.filled) for w in limited] == [(0.0, 1.0, 0), (1.0, 1.5, 2)]


def test_one_frame_is_a_window_of_it_repeated(tmp_path: Path) -> None:
    write_video(tmp_path / "one.mp4", levels(1), RATE)
    (window,) = windows_of(tmp_path / "one.mp4", settings_for(CONFIG))
    assert window.filled == 3 and window.end_s == pytest.approx(1 / RATE)


def test_last_frame_lasts_as_long_as_the_file_says(tmp_path: Path) -> None:
    """Slides and screen recordings hold their last picture; the mean spacing says nothing of it."""
    with av.open(str(tmp_path / "slides.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"bf": "0", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number, picture in enumerate(levels(8)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for packet in packets:
            packet.duration = 17 if packet is packets[-1] else 1
            container.mux(packet)
    windows = list(windows_of(tmp_path / "slides.mp4", settings_for(CONFIG)))
    assert [(window.start_s, window.end_s, window.filled) for window in windows] == [(0.0, 1.0, 0), (1.0, 2.0, 0), (2.0, 3.0, 0)]
    assert [number_of(windows[-1].video[:, tick]) for tick in range(4)] == [7] * 4


@pytest.fixture(scope="module")
def ramp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ramp") / "ramp.mp4"
    write_video(path, levels(50), 10)
    return path


@settings(max_examples=30, deadline=None)
@given(frames=st.sampled_from([2, 4, 6, 12]), fps=st.sampled_from([1.0, 2.5, 3.0, 4.0, 7.3, 20.0]), stride=st.sampled_from([None, 0.1, 0.3, 1.0, 2.2]))
def test_every_sample_is_the_last_frame_at_or_before_its_time(ramp: Path, frames: int, fps: float, stride: float | None) -> None:
    wanted = settings_for(CONFIG, frames=frames, fps=fps, stride_seconds=stride, size=(16, 16))
    windows = list(windows_of(ramp, wanted))
    assert [w.number for w in windows] == list(range(len(windows)))
    for window in windows:
        assert window.start_s == pytest.approx(window.number * wanted.stride_seconds) and window.start_s < window.end_s <= 5.0 + 1e-9
        times = [window.start_s + i / fps for i in range(frames)]
        assert window.filled == sum(second >= 5.0 - 1e-6 for second in times)
        shown = [number_of(window.video[:, i]) for i in range(frames)]
        assert shown == [min(49, int(second * 10 + 0.006)) for second in times]
    left = 5.0 - (windows[-1].start_s + frames / fps)  # what no window has seen is shorter than a tubelet, or lies in a gap
    assert left <= 1 / fps + 1e-6 or left < wanted.stride_seconds - frames / fps + 1 / fps + 1e-6


def test_pools_are_means_of_the_dense_tokens_and_layers_are_blocks(encoder: VideoEncoder, pool: Path) -> None:
    path = pool / "a" / "clip.mp4"
    found = {kind: np.stack([w.values for w in video_features(encoder, path, pool=kind)]) for kind in ("clip", "frame", "dense")}
    assert {kind: values.shape for kind, values in found.items()} == {"clip": (3, 48), "frame": (3, 2, 48), "dense": (3, 2, 2, 2, 48)}
    np.testing.assert_allclose(found["clip"], found["dense"].mean((1, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(found["frame"], found["dense"].mean((2, 3)), atol=1e-6)
    layered = np.stack([w.values for w in video_features(encoder, path, layers=(0, -1))])
    assert layered.shape == (3, 2, 48)
    np.testing.assert_allclose(layered[:, 1], found["clip"], atol=1e-6)
    assert np.abs(layered[:, 0] - layered[:, 1]).max() > 1e-3


def test_features_are_the_encoders_on_prepared_frames(encoder: VideoEncoder, pool: Path) -> None:
    chosen = settings_for(CONFIG, mode="squash", size=(32, 48), pool="dense")
    window = next(windows_of(pool / "a" / "clip.mp4", chosen))
    with torch.inference_mode():
        expected = encoder(window.video[None]).unflatten(1, (2, 2, 3))[0].numpy()
    np.testing.assert_allclose(next(video_features(encoder, pool / "a" / "clip.mp4", chosen)).values, expected, atol=1e-6)


def test_batch_size_changes_nothing_but_rounding(encoder: VideoEncoder, pool: Path) -> None:
    found = [np.stack([w.values for w in video_features(encoder, pool / "a" / "clip.mp4", stride_seconds=0.25, batch=batch)]) for batch in (1, 3, 64)]
    assert len(found[0]) >= 7
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-5)


def test_folder_keeps_relative_names_and_says_what_made_it(weights: Path, encoder: VideoEncoder, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = extract(weights, pool, out, batch=2)
    assert (outcome.written, outcome.windows, outcome.filled, outcome.exit_code) == (2, 4, 1, 0)
    first, second = np.load(out / "features" / "a" / "clip.mp4.npy"), np.load(out / "features" / "b" / "clip.mp4.npy", mmap_mode="r")
    np.testing.assert_allclose(first, np.stack([w.values for w in video_features(encoder, pool / "a" / "clip.mp4")]), atol=1e-5)
    assert second.shape == (1, 48)
    index = pq.read_table(out / "index.parquet").to_pylist()
    assert index[2] == {"video": "a/clip.mp4", "file": "features/a/clip.mp4.npy", "window": 2, "start_s": 2.0, "end_s": 2.75, "filled": 1}
    assert [row["video"] for row in index] == ["a/clip.mp4"] * 3 + ["b/clip.mp4"]
    told = json.loads((out / "features.json").read_text())
    assert told["checkpoint"]["digest"] == state_digest(encoder) and told["settings"]["preprocess"]["mode"] == "short_side_crop"
    assert outcome.others == ("notes.txt",)


def test_bad_videos_are_rows_with_reason_and_remedy_and_the_rest_goes_on(weights: Path, pool: Path, tmp_path: Path) -> None:
    outcome = extract(weights, pool, tmp_path / "out")
    codes = {video.name: reason.code for video, reason in outcome.rejected}
    assert codes["story.mp4"] == Reject.NOT_A_VIDEO and codes.keys() == {"story.mp4", "b/torn.mp4"}
    lines = (tmp_path / "out" / "rejected.csv").read_text().splitlines()
    assert lines[0] == "video,code,detail,remedy" and len(lines) == 3
    alone = extract(weights, pool / "story.mp4", tmp_path / "alone")
    assert alone.exit_code == 2 and alone.written == 0


def test_video_that_breaks_off_while_decoding_leaves_no_file(weights: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "v" / "long.mp4", np.random.default_rng(0).integers(0, 255, (80, 48, 64, 3), np.uint8), RATE, gop=8)
    content = bytearray((tmp_path / "v" / "long.mp4").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    (tmp_path / "v" / "long.mp4").write_bytes(content)
    outcome = extract(weights, tmp_path / "v", tmp_path / "out", batch=1)
    assert outcome.exit_code == 2 and outcome.rejected[0][1].code in (Reject.DECODE_ERROR, Reject.TRUNCATED)
    assert not [path for path in (tmp_path / "out").rglob("*long*") if path.is_file()]


def test_rerun_does_only_what_is_new_and_other_settings_are_refused(weights: Path, pool: Path, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "videos"
    write_video(source / "x.mp4", levels(8), RATE)
    assert extract(weights, source, out).written == 1
    written = (out / "features" / "x.mp4.npy").stat().st_mtime_ns
    write_video(source / "y.mp4", levels(8), RATE)
    again = extract(weights, source, out, batch=1)
    assert (again.written, again.skipped, again.exit_code) == (1, 1, 0)
    assert (out / "features" / "x.mp4.npy").stat().st_mtime_ns == written
    write_video(source / "x.mp4", levels(16), RATE)  # a changed file is made anew
    assert (extract(weights, source, out).written, len(pq.read_table(out / "index.parquet"))) == (1, 3)
    with pytest.raises(InputError, match=r"fps 4\.0 instead of 2\.0"):
        extract(weights, source, out, fps=2.0)
    with pytest.raises(InputError, match="file_format npy instead of parquet"):
        extract(weights, source, out, "parquet")
    torch.manual_seed(1)
    save_module(VideoEncoder(CONFIG), tmp_path / "other", "encoder")
    with pytest.raises(InputError, match="weights"):
        extract(tmp_path / "other", source, out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("do not touch")
    with pytest.raises(InputError, match="holds something else"):
        extract(weights, source, tmp_path / "mine")


def test_names_that_mean_another_kind_of_file_are_refused_and_folders_may_have_dots(weights: Path, pool: Path, tmp_path: Path) -> None:
    for name in ("q.csv", "q.json", "q.pt", "q.h5"):
        with pytest.raises(InputError, match="no features in"):
            extract(weights, pool, tmp_path / name)
    text = outcome_text(extract(weights, pool, tmp_path / "clips.v2"))
    assert "features/<video>.npy" in text and "rejected.csv; the next run tries again" in text and (tmp_path / "clips.v2" / "index.parquet").exists()


def test_folder_of_features_belongs_to_one_folder_of_videos(weights: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    for name in ("x", "y"):
        write_video(source / f"{name}.mp4", levels(8), RATE)
    extract(weights, source, out)
    write_video(tmp_path / "others" / "x.mp4", levels(8), RATE)
    with pytest.raises(InputError, match="of another folder"):
        extract(weights, tmp_path / "others", out)
    (source / "x.mp4").unlink()
    again = extract(weights, source, out)
    assert again.gone == 1 and "1 video in the index, no longer in the folder" in outcome_text(again)
    assert len(pq.read_table(out / "index.parquet")) == 2
    assert extract(weights, source / "y.mp4", out).gone == 0


def test_video_that_turned_bad_loses_its_old_features(weights: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "videos", tmp_path / "out"
    for name in ("x", "y"):
        write_video(source / f"{name}.mp4", levels(8), RATE)
    extract(weights, source, out)
    (source / "x.mp4").write_text("once upon a time")
    for _ in range(2):  # and they do not come back from the journal
        extract(weights, source, out)
        assert pq.read_table(out / "index.parquet").column("video").to_pylist() == ["y.mp4"]
        assert not (out / "features" / "x.mp4.npy").exists() and "x.mp4" in (out / "rejected.csv").read_text()
    (source / "y.mp4").write_text("and another time")
    assert extract(weights, source, out).exit_code == 2
    assert not (out / "index.parquet").exists() and (out / "rejected.csv").exists()


def test_still_image_has_features_and_is_called_one(weights: Path, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "photo.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        container.mux([*stream.encode(av.VideoFrame.from_ndarray(levels(1)[0], "rgb24")), *stream.encode(None)])
    outcome = extract(weights, tmp_path / "photo.png", tmp_path / "out")
    assert (outcome.written, outcome.windows) == (1, 1) and "a still image" in outcome_text(outcome)


def test_options_that_no_encoder_can_meet_are_refused_before_weights_are_read(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(run, "load_encoder", never)
    for options in ({"fps": 0.0}, {"size": "big"}, {"pool": "mean"}, {"stored": "int8"}, {"precision": "bf16"}, {"limit_seconds": 0.0}):
        with pytest.raises(InputError):
            extract(tmp_path, pool, tmp_path / "out", **options)
    with pytest.raises(InputError, match="npy only"):
        extract(tmp_path, pool, tmp_path / "out", "parquet", pool="dense")


@pytest.mark.parametrize(("opened", "total"), [(200, 4), (1, 4)])
def test_progress_counts_seconds_of_few_videos_and_numbers_of_many(
    weights: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: int, total: int
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(work, "_OPENED_AT_MOST", opened)
    monkeypatch.setattr(work, "Progress", partial(Progress, emit=lines.append))
    monkeypatch.setattr(reporting, "LINE_EVERY_S", 0.0)
    extract(weights, pool, tmp_path / "out", batch=1)
    done = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert done == sorted(done) and f"{total}/{total} {'s of video' if opened > 1 else 'videos'}" in lines[-1]


def test_journal_torn_by_a_crash_costs_one_video_at_most(weights: Path, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(weights, pool, out)
    journal = out / "videos.jsonl"
    journal.write_text(journal.read_text()[:-20])
    again = extract(weights, pool, out)
    assert (again.written, again.skipped) == (1, 1)
    assert len(pq.read_table(out / "index.parquet")) == 4


def test_parquet_has_a_row_a_window_or_a_tubelet(weights: Path, encoder: VideoEncoder, pool: Path, tmp_path: Path) -> None:
    extract(weights, pool, tmp_path / "clip", "parquet")
    table = pq.read_table(tmp_path / "clip" / "features" / "a" / "clip.mp4.parquet")
    assert table.schema.field("feature").type.list_size == 48 and json.loads(table.schema.metadata[b"tubelet.features"])["settings"]["fps"] == 4.0
    expected = np.stack([w.values for w in video_features(encoder, pool / "a" / "clip.mp4")])
    np.testing.assert_allclose(np.stack(table.column("feature").to_pylist()), expected, atol=1e-5)
    everything = pq.read_table(tmp_path / "clip" / "features")  # the folder is one data set
    assert sorted(set(everything.column("video").to_pylist())) == ["a/clip.mp4", "b/clip.mp4"]
    extract(weights, pool / "a" / "clip.mp4", tmp_path / "frame.parquet", pool="frame", layers=(0, 1), stored="float16")
    rows = pq.read_table(tmp_path / "frame.parquet")
    assert rows.num_rows == 6 and {"feature_0", "feature_1", "step"} <= set(rows.column_names)
    last = rows.slice(5).to_pylist()[0]
    assert (last["window"], last["step"], last["start_s"], last["end_s"], last["filled"]) == (2, 1, 2.5, 2.75, 1)
    assert json.loads((tmp_path / "frame.parquet.json").read_text())["windows"][2] == [2.0, 2.75, 1]
    with pytest.raises(InputError, match="npy only"):
        extract(weights, pool, tmp_path / "dense", "parquet", pool="dense")


def test_single_file_is_not_mistaken_for_another_videos(weights: Path, pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.npy"
    assert extract(weights, pool / "a" / "clip.mp4", out, pool="dense", stored="float16").shape == (2, 2, 2, 48)
    assert np.load(out).dtype == np.float16 and np.load(out).shape == (3, 2, 2, 2, 48)
    assert extract(weights, pool / "a" / "clip.mp4", out, pool="dense", stored="float16").skipped == 1
    for damaged in ("", "{}", "[]"):
        (tmp_path / "y.npy.json").write_text(damaged)
        with pytest.raises(InputError, match=r"y\.npy\.json is not a description"):
            extract(weights, pool / "a" / "clip.mp4", tmp_path / "y.npy")
    with pytest.raises(InputError, match="another video"):
        extract(weights, pool / "b" / "clip.mp4", out, pool="dense", stored="float16")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 3}, "--frames 4"), ({"fps": 0.0}, "--fps 4"), ({"size": (30, 32)}, "--size 32x32"), ({"size": (32, 48)}, "--mode squash"),
        ({"layers": (5,)}, "0 to 1"), ({"stride_seconds": 0.0}, "stride"), ({"limit_seconds": -1.0}, "limit"), ({"pool": "mean"}, "--pool"),
    ],
)  # fmt: skip
def test_options_the_encoder_cannot_meet_are_refused_with_the_option_to_give(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        settings_for(CONFIG, **options)


def test_sizes_are_read_as_height_by_width() -> None:
    assert size_of("256") == size_of(256) == size_of((256,)) == (256, 256) and size_of("180x320") == size_of([180, 320]) == (180, 320)
    assert settings_for(CONFIG, size=48, layers=-1) == settings_for(CONFIG, size="48x48", layers=(1,))
    for wrong in ("big", (1, 2, 3), -5):
        with pytest.raises(InputError, match="no size"):
            size_of(wrong)


def test_missing_video_is_called_missing(encoder: VideoEncoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.mp4 does not exist"):
        next(video_features(encoder, tmp_path / "gone.mp4"))


def test_checkpoint_that_is_neither_a_path_nor_an_artefact_is_told(weights: Path, pool: Path, tmp_path: Path) -> None:
    for name in ("cooled_encoder[nano]", "vitl"):
        with pytest.raises(MissingArtefact, match="neither a file here nor an artefact"):
            extract(Path(name), pool, tmp_path / "out")


def test_settings_digest_depends_on_all_that_decides_numbers() -> None:
    base = settings_for(CONFIG)
    others = [settings_for(CONFIG, fps=2.0), settings_for(CONFIG, antialias=False), settings_for(CONFIG, pool="frame"), settings_for(CONFIG, layers=(0,))]
    digests = {one.digest("w", CONFIG) for one in [base, *others]} | {base.digest("v", CONFIG)}
    assert len(digests) == 6 and isinstance(base, FeatureSettings)
    same_tensors = [replace(CONFIG, num_heads=4), replace(CONFIG, rope_layout="interleaved")]
    assert len(digests | {base.digest("w", config) for config in same_tensors}) == 8


def test_same_tensors_under_another_configuration_are_not_mixed(encoder: VideoEncoder, weights: Path, pool: Path, tmp_path: Path) -> None:
    extract(weights, pool / "b" / "clip.mp4", tmp_path / "out")
    other = VideoEncoder(replace(CONFIG, num_heads=4))
    other.load_state_dict(encoder.state_dict())
    save_module(other, tmp_path / "other", "encoder")
    with pytest.raises(InputError, match="num_heads 2 instead of 4"):
        extract(tmp_path / "other", pool / "b" / "clip.mp4", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "features.json").read_text())
    (tmp_path / "out" / "features.json").write_text(json.dumps({**told, "format": 1}))
    with pytest.raises(InputError, match="older version"):
        extract(weights, pool / "b" / "clip.mp4", tmp_path / "out")


def test_command_writes_features_and_stops_cleanly_when_asked(weights: Path, pool: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": "200", "TUBELET_STORE": str(tmp_path / "none")}
    command = [sys.executable, str(REPOSITORY / "tubelet.py"), "features", str(weights), str(pool), "--device", "cpu"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], env=environment, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 videos, 3.8 s, 4 windows" in done.stdout and "story.mp4: not_a_video" in done.stdout and "notes.txt" in done.stdout
    long = tmp_path / "long"
    for number in range(40):
        write_video(long / f"{number:02d}.mp4", levels(60), RATE)
    out = tmp_path / "stopped"
    arguments = [*command[:4], str(long), "--device", "cpu", "--out", str(out), "--stride-seconds", "0.02", "--batch", "1"]
    process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not (out / "videos.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    words, complaint = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in words, complaint
    files = [path for path in out.rglob("*.npy") if path.is_file()]
    assert files and not list(out.rglob("*.partial")) and all(np.load(path).shape[1] == 48 for path in files)


def test_real_video_and_one_that_is_damaged(encoder: VideoEncoder) -> None:
    shared = os.environ.get("TUBELET_SHARED")
    if not shared:
        pytest.skip("TUBELET_SHARED is not set")
    found = list(video_features(encoder, Path(shared) / "data" / "torchcodec" / "nasa_13013.mp4"))
    assert len(found) == 13 and found[-1].end_s == pytest.approx(13.0, abs=0.05)
    assert all(np.isfinite(window.values).all() for window in found)
    with pytest.raises(RejectedVideo, match="decode_error"):
        list(video_features(encoder, Path(shared) / "data" / "decord" / "corrupted.mp4"))
