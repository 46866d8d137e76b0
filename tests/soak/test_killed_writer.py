"""Long campaign: the shard writer killed at twenty random moments; the next run gives the tars of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import conftest
import numpy as np
import pytest
import shards_runner
from killed_stages import REPOSITORY, contents, finished_parts, kill_after

from pipelines import schemas
from pipelines.shards.verify import verify_shards
from pipelines.video.encode import write_video

KILLS = 20


def start(clips: Path, out: Path, work: Path) -> subprocess.Popen[str]:
    command = [sys.executable, shards_runner.__file__, str(clips), str(out), str(work)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> dict[str, object]:
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.mark.soak
def test_writer_killed_at_random_moments_gives_the_same_tars(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    rows = []
    for number in range(12):
        path = clips / f"{number}.mp4"
        write_video(path, conftest.numbered_frames(75), 25.0, bframes=2 * (number % 2), gop=15)
        rows += conftest.clip_rows(path, f"video-{number}", 75, 25.0)
    chosen = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "cluster": 0, "weight": 1.0, "target": "t", "uniform_weight": 1.0} for row in rows]
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), clips / "clips.parquet", schemas.CLIPS)
    schemas.write_table(schemas.table_of(schemas.SELECTION, chosen), clips / "selection.parquet", schemas.SELECTION)
    started = time.monotonic()
    finish(start(clips, tmp_path / "plain", tmp_path / "plain-work"))
    seconds = time.monotonic() - started
    wanted, hit, random = contents(tmp_path / "plain"), 0, np.random.default_rng(11)
    assert len(wanted) > 6
    for kill in range(KILLS):
        out, work = tmp_path / f"out-{kill}", tmp_path / f"work-{kill}"
        hit += kill_after(start(clips, out, work), random.uniform(0, seconds))
        kept = finished_parts(work)
        shutil.rmtree(out, ignore_errors=True)  # as the store does with a draft
        summary = finish(start(clips, out, work))
        assert contents(out) == wanted and verify_shards(out, progress=lambda *_: None) == []
        assert summary["cost"]["parts_found"] == kept, "a finished shard was made again"  # type: ignore[index]
    print(f"{hit} of {KILLS} kills hit, {len(wanted)} files")
    assert hit >= KILLS // 2
