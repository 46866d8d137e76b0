"""One real kill -9 in the middle of a stage; `make soak` kills every stage ten times."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from killed_stages import contents, finish, finished_parts, start
from stage_runner import prepare

from pipelines.video.encode import write_video
from pipelines.video.probe import FILES_PER_PART


def test_killed_probe_leaves_finished_parts_and_the_next_run_makes_the_rest(tmp_path: Path) -> None:
    import numpy as np

    film = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), dtype=np.uint8)
    (tmp_path / "pool").mkdir()
    write_video(tmp_path / "pool" / "000.mp4", film, 8.0)
    for number in range(1, 2 * FILES_PER_PART + 3):
        shutil.copy(tmp_path / "pool" / "000.mp4", tmp_path / "pool" / f"{number:03d}.mp4")
    prepare(tmp_path, sorted((tmp_path / "pool").iterdir()), tmp_path)
    finish(start("videos", tmp_path, tmp_path / "plain", tmp_path / "plain-work"))
    process = start("videos", tmp_path, tmp_path / "out", tmp_path / "work")
    while finished_parts(tmp_path / "work") < 1 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    kept = finished_parts(tmp_path / "work")
    assert 1 <= kept < 3
    shutil.rmtree(tmp_path / "out")
    summary = finish(start("videos", tmp_path, tmp_path / "out", tmp_path / "work"))
    assert (summary["cost"]["parts"], summary["cost"]["parts_found"]) == (3, kept)
    assert contents(tmp_path / "out") == contents(tmp_path / "plain")
