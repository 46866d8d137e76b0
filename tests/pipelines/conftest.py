"""What tests of several rooms share: small really encoded videos, the shards cut from them, small recipes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines import schemas
from pipelines.identity import clip_id
from pipelines.recipes import Recipe, load_recipe
from pipelines.shards.cutting import ShardConfig
from pipelines.shards.writer import build_shards
from pipelines.video.encode import write_video
from tests.pipelines.small_pretraining import trained

SIDE = (48, 64)
LENGTHS = {"a": (60, 20.0), "b": (75, 25.0), "c": (24, 12.0)}  # frames, frames per s
SPLIT = 30  # frames in a clip, but for the last of a video


def numbered_frames(count: int) -> np.ndarray:
    """(count, 48, 64, 3) uint8 whose mean grey level tells the frame's number: 20 + 3 * number."""
    levels = (20 + 3 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, *SIDE, 3)).copy()


def clip_rows(path: Path, video_id: str, frames: int, rate: float) -> list[dict[str, Any]]:
    """Rows of the `clips` table that cover the video in runs of SPLIT frames."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        assert base is not None
        pts = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
    assert len(pts) == frames
    tick = pts[1] - pts[0]
    rows = []
    for first in range(0, frames, SPLIT):
        last = min(first + SPLIT, frames)
        start, end = pts[first], pts[last - 1] + tick
        rows.append({
            "clip_id": clip_id(video_id, start, end, (base.numerator, base.denominator), "test-1"), "video_id": video_id,
            "batch": "made-0001", "path": str(path), "start_pts": start, "end_pts": end, "time_base_num": base.numerator,
            "time_base_den": base.denominator, "start_s": float(start * base), "end_s": float(end * base),
            "frames": last - first, "width": SIDE[1], "height": SIDE[0], "frame_rate": rate, "splitter": "test-1",
            "motion": 1.0, "brightness": 0.5, "fingerprint": "", "source": "made", "licence": "CC0-1.0",
            "uploader": "tests", "label": None,
        })  # fmt: skip
    return rows


@pytest.fixture(scope="session")
def made_clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with three videos, clips.parquet and selection.parquet (weights 1, 2, 3, ... by clip_id)."""
    folder = tmp_path_factory.mktemp("made_clips")
    rows: list[dict[str, Any]] = []
    for name, (frames, rate) in LENGTHS.items():
        path = folder / f"{name}.mp4"
        write_video(path, numbered_frames(frames), rate, bframes=2, gop=40)  # B-frames and long GOPs: a hard source to cut
        rows += clip_rows(path, f"video-{name}", frames, rate)
    rows.sort(key=lambda row: row["clip_id"])
    selection = [
        {"clip_id": row["clip_id"], "video_id": row["video_id"], "cluster": 0, "weight": float(position), "target": "t", "uniform_weight": 1.0}
        for position, row in enumerate(rows, start=1)
    ]
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), folder / "clips.parquet", schemas.CLIPS)
    schemas.write_table(schemas.table_of(schemas.SELECTION, selection), folder / "selection.parquet", schemas.SELECTION)
    return folder


@pytest.fixture(scope="session")
def made_shards(made_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of `made_clips`, two or more tars. Not to be changed: copy it first."""
    folder = tmp_path_factory.mktemp("made_shards")
    build_shards(folder, made_clips, made_clips, config=ShardConfig(short_side=32, shard_bytes=12_000), progress=lambda *_: None)
    return folder


@pytest.fixture
def shards_copy(made_shards: Path, tmp_path: Path) -> Callable[[], Path]:
    """A function that gives a private copy of `made_shards` to damage."""

    def copy() -> Path:
        import shutil

        return Path(shutil.copytree(made_shards, tmp_path / "shards"))

    return copy


@contextmanager
def own_state() -> Iterator[None]:
    """Programs set threads and logging for their own process; here they share one with other tests."""
    threads, log = torch.get_num_threads(), logging.getLogger("tubelet")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    yield
    torch.set_num_threads(threads)
    log.handlers, log.level, log.propagate = handlers, level, propagate


@pytest.fixture
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For tests that call a program's `main`: alone, and nothing of it is left."""
    for name in ("WORLD_SIZE", "RANK", "DAGSTER_PIPES_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    with own_state():
        yield


@pytest.fixture(scope="session")
def probe_recipe() -> Recipe:
    """Probes of frames of 32 x 32 that take a second."""
    smoke = load_recipe("smoke").resolved()
    smoke["posttraining"] |= {"height": 32, "width": 32}
    smoke["probes"] = {"frames": 60, "clip_steps": 4, "attentive_epochs": 2}
    return Recipe.model_validate(smoke)


@pytest.fixture(scope="session")
def undisturbed(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result of a small pretraining phase in one process, never interrupted."""
    with own_state():
        return trained(tmp_path_factory.mktemp("undisturbed"), made_shards)
