"""`tubelet takedown` from end to end, and the stage that follows it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from takedown_world import Video, World, data_of

from assets.curation import StageConfig, plan_distinct_clips
from pipelines.tombstones import read_tombstones, takedown_names

REPOSITORY = Path(__file__).resolve().parents[2]


def tubelet(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TUBELET_STORE": str(store), "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    command = [sys.executable, str(REPOSITORY / "tubelet.py"), "takedown", *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.ingest("pool-0001", [Video("a", (0, 1)), Video("b", (10, 11)), Video("d", (0, 30), copy=1, uploader="bob")])
    return made.whole()


def test_a_takedown_from_the_command_line(world: World) -> None:
    root = world.store.root
    before = plan_distinct_clips(world.store, StageConfig())
    assert "tombstones" not in before.config

    rehearsed = tubelet(root, "--uploader", "bob", "--reason", "asked", "--compact", "--dry-run")
    assert rehearsed.returncode == 0 and "rehearsal" in rehearsed.stdout, rehearsed.stderr
    assert takedown_names(root) == () and not (root / "takedowns").exists()
    done = tubelet(root, "--uploader", "bob", "--reason", "asked", "--compact")
    assert done.returncode == 0, done.stderr
    (name,) = takedown_names(root)
    assert f"takedown {name}: uploader bob: asked" in done.stdout and "1 video and 1 twin taken down" in done.stdout and "unserved mass" in done.stdout
    assert read_tombstones(root).covers("c-a-0", "v-a") and json.loads((root / "takedowns" / name / "report.json").read_text())["trainings"]
    assert not any(data_of("c-a-0") in path.read_bytes() for path in root.rglob("*.tar"))
    again = tubelet(root, "--uploader", "bob", "--reason", "asked")
    assert again.returncode == 0 and "nothing new" in again.stdout and takedown_names(root) == (name,)

    after = plan_distinct_clips(world.store, StageConfig())
    assert after.config["tombstones"] == read_tombstones(root).digest and after.identity != before.identity


def test_tars_that_cannot_be_searched_end_the_command_with_an_error_code(world: World) -> None:
    (world.store.current("training_shards").path / "shard-000000.tar").write_bytes(b"no tar at all" * 99)
    done = tubelet(world.store.root, "--uploader", "bob", "--reason", "asked", "--compact")
    assert done.returncode == 2 and "tars that could not be searched" in done.stdout and "ask again with --compact" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--reason", "r"), "exactly one of --video"), (("--uploader", "Bob", "--reason", "r"), "near misses: bob"), (("--video", "v-a", "--licence", "x", "--reason", "r"), "exactly one of")],
)
def test_what_cannot_be_taken_down_is_refused_with_a_remedy(world: World, arguments: tuple[str, ...], words: str) -> None:
    done = tubelet(world.store.root, *arguments)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert takedown_names(world.store.root) == ()
