"""Long campaign: every curation stage killed at ten random moments; the next run gives the tables of an undisturbed one."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from killed_stages import contents, finish, finished_parts, kill_after, start
from stage_runner import STAGES, prepare

KILLS = 10


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The demo corpus through every stage, undisturbed, and how many seconds each stage took."""
    from pipelines.corpus.pool import make_corpus

    root = tmp_path_factory.mktemp("killed")
    make_corpus(root / "corpus", seed=17, scale="demo")
    prepare(root, sorted((root / "corpus" / "pool").iterdir()), root / "corpus" / "targets")
    seconds = {}
    for stage in STAGES:
        started = time.monotonic()
        finish(start(stage, root, root / stage, root / "work" / stage))
        seconds[stage] = time.monotonic() - started
    return root, seconds


@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_stage_killed_at_random_moments_gives_the_same_tables(stage: str, world: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    root, seconds = world
    random = np.random.default_rng(list(STAGES).index(stage))
    wanted, hit = contents(root / stage), 0
    for kill in range(KILLS):
        out, work = tmp_path / f"out-{kill}", tmp_path / f"work-{kill}"
        hit += kill_after(start(stage, root, out, work), random.uniform(0, seconds[stage]))
        kept = finished_parts(work)
        shutil.rmtree(out)  # as the store does with a draft
        summary = finish(start(stage, root, out, work))
        assert contents(out) == wanted
        assert summary["cost"]["parts_found"] == kept, "a finished part was made again"
    print(f"{stage}: {hit} of {KILLS} kills hit, {summary['cost']['parts']} parts")
    assert hit >= KILLS // 2
