"""A writer that is stopped goes on where it was: killed, out of disk, or refused because another one is at work."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shards_runner import CONFIG

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.shards import filling
from pipelines.shards.index import ShardError
from pipelines.shards.one_writer import one_writer
from pipelines.shards.verify import verify_shards
from pipelines.shards.writer import build_shards
from pipelines.store import Store

RUNNER = Path(__file__).with_name("shards_runner.py")
REPOSITORY = Path(__file__).parents[2]


def quiet(*_: object) -> None:
    return None


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "MANIFEST.json"}


def finished(work: Path) -> int:
    return sum(1 for _ in work.glob("shard-*/part.json"))


@pytest.fixture
def cuts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that are cut, as they are."""
    names: list[str] = []
    really = filling.cut_clip

    def counted(clip: dict[str, Any], target: Path, config: Any) -> Any:
        names.append(clip["clip_id"])
        return really(clip, target, config)

    monkeypatch.setattr(filling, "cut_clip", counted)
    return names


def test_writer_killed_for_real_goes_on_at_the_next_shard_and_gives_the_same_bytes(made_clips: Path, made_shards: Path, tmp_path: Path) -> None:
    work, environment = tmp_path / "work", {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(RUNNER), str(made_clips), str(tmp_path / "out"), str(work)]
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY)
    while finished(work) < 1 and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    kept = finished(work)
    shutil.rmtree(tmp_path / "out")
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cost"]["parts_found"] == kept >= 1
    assert contents(tmp_path / "out") == contents(made_shards)
    assert not list(work.glob(".*-*")), "remains of the killed writer"


@pytest.mark.parametrize("workers", [1, 3])
def test_writer_stopped_anywhere_gives_the_bytes_of_an_undisturbed_one(
    made_clips: Path, made_shards: Path, tmp_path: Path, cuts: list[str], monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    counted, stop_at = filling.cut_clip, 0

    def stopping(clip: dict[str, Any], target: Path, config: Any) -> Any:
        if len(cuts) >= stop_at:
            raise KeyboardInterrupt
        return counted(clip, target, config)

    monkeypatch.setattr(filling, "cut_clip", stopping)
    for stop_at in range(0, 40, 3):  # noqa: B007 - read by `stopping`
        cuts.clear()
        with contextlib.suppress(KeyboardInterrupt):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            build_shards(tmp_path / "out", made_clips, made_clips, config=CONFIG, work=tmp_path / "work", workers=workers, progress=quiet)
            break
    assert contents(tmp_path / "out") == contents(made_shards)


def test_sources_that_were_away_for_a_while_are_cut_when_they_are_back(made_clips: Path, made_shards: Path, tmp_path: Path) -> None:
    rows = schemas.read_table(made_clips / "clips.parquet", schemas.CLIPS).to_pylist()
    moved = [{**row, "path": str(tmp_path / Path(row["path"]).name)} for row in rows]
    (tmp_path / "in").mkdir()
    schemas.write_table(schemas.table_of(schemas.CLIPS, moved), tmp_path / "in" / "clips.parquet", schemas.CLIPS)

    def write() -> dict[str, Any]:
        return build_shards(tmp_path / "out", tmp_path / "in", made_clips, config=CONFIG, work=tmp_path / "work", progress=quiet)

    with pytest.raises(ShardError, match="no selected clip could be cut"):
        write()
    for path in made_clips.glob("*.mp4"):
        shutil.copy(path, tmp_path)
    write()
    assert contents(tmp_path / "out") == contents(made_shards)


def test_second_writer_is_refused_told_who_is_at_work_and_does_no_harm(made_clips: Path, made_shards: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    work = store.folder("work", "training_shards", None, "one")
    refusals: list[str] = []

    def write(folder: Path) -> dict[str, Any]:
        return build_shards(folder, made_clips, made_clips, config=CONFIG, work=work, progress=other_writer)

    def other_writer(*_: object) -> None:
        if not refusals:
            refusals.append("")
            with pytest.raises(ShardError) as refused:
                store.produce("training_shards", write)  # clears what it takes for the draft of a dead writer
            refusals.append(str(refused.value))

    artefact = store.produce("training_shards", write)
    assert f"process {os.getpid()}" in refusals[1] and "since" in refusals[1] and "written already" in refusals[1]
    assert contents(artefact.path) == contents(made_shards) and verify_shards(artefact.path, progress=quiet) == []


def test_lock_on_a_folder_that_was_removed_keeps_nobody_out_and_lets_nobody_in_twice(tmp_path: Path) -> None:
    with one_writer(tmp_path):
        (tmp_path / "writer.lock").unlink()
        with one_writer(tmp_path), pytest.raises(ShardError), one_writer(tmp_path):
            pass
    with one_writer(tmp_path):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    yield folder
    gc.collect()  # a Parquet file that could not be ended stays open for as long as its error is kept
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("room", [4_000, 30_000, 60_000])
def test_a_full_disk_says_so_keeps_finished_shards_and_loses_no_clip(
    made_clips: Path, made_shards: Path, small_disk: Path, cuts: list[str], room: int
) -> None:
    store = Store.open(small_disk / "store")
    work = store.folder("work", "training_shards", None, "one")

    def write(folder: Path) -> dict[str, Any]:
        return build_shards(folder, made_clips, made_clips, config=CONFIG, work=work, workers=1, progress=quiet)

    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - room - 4096))
    with pytest.raises(StoreError, match=r"the disk under .* is full"):
        store.produce("training_shards", write)
    kept = finished(work)
    assert kept < 3 and (kept >= 1 or room < 60_000)
    (small_disk / "ballast").unlink()
    cuts.clear()
    artefact = store.produce("training_shards", write)
    assert contents(artefact.path) == contents(made_shards)
    assert artefact.summary["cost"]["parts_found"] == kept and artefact.summary["failed"] == 0 and (len(cuts) < 6) == (kept > 0)


def test_ffmpeg_out_of_disk_is_no_fault_of_the_clip(made_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on any machine, also where no file system can be mounted: the encoder says it, and no quarantine row is written."""
    from pipelines.shards import form

    def full(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 228, b"", b"av_interleaved_write_frame(): No space left on device")

    monkeypatch.setattr(form.subprocess, "run", full)
    store = Store.open(tmp_path / "store")
    with pytest.raises(StoreError, match="is full"):
        store.produce("training_shards", lambda folder: build_shards(folder, made_clips, made_clips, config=CONFIG, progress=quiet))
