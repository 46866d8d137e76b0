"""Redaction: the bytes of taken clips are in no tar any more, every other byte is where it was, and a kill harms nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import webdataset
from takedown_world import Video, World, data_of

from pipelines.errors import StoreError
from pipelines.lineage.takedown import redaction
from pipelines.lineage.takedown.redaction import members, redact
from pipelines.schemas import SHARD_INDEX, read_table
from pipelines.shards.index import INDEX_FILE, ShardError, ShardIndex
from pipelines.shards.verify import verify_shards
from pipelines.store import REDACTIONS, Artefact, redactions
from pipelines.tombstones import Tombstones

TAKEN = Tombstones(("t",), frozenset({"c-b-1"}), frozenset({"v-a"}))
GONE = {"c-a-0", "c-a-1", "c-a-2", "c-b-1"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two shards artefacts that share their tars, and one with tars of its own."""
    made = World(tmp_path)
    made.ingest("pool-0001", [Video(name, tuple(range(10 * number, 10 * number + 3))) for number, name in enumerate("abc")])
    made.distinct()
    made.select()
    made.shard(links=made.shard())
    made.shard(own=True)
    return made


def shards_of(world: World) -> list[Artefact]:
    return world.store.made("training_shards")


def rows_of(artefact: Artefact) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in read_table(artefact.path / INDEX_FILE, SHARD_INDEX).to_pylist()}


def files_with(root: Path, data: bytes) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and data in path.read_bytes()]


def test_taken_bytes_are_gone_and_all_others_stay_where_they_were(world: World) -> None:
    before = {artefact.path: {path.name: path.read_bytes() for path in artefact.path.glob("*.tar")} for artefact in shards_of(world)}
    found = redact(world.store, TAKEN, "t")
    assert set(found.clips) == GONE and not found.damaged and len(found.tars) == len(set(found.tars)) > 3
    for artefact in shards_of(world):
        rows, changed = rows_of(artefact), bytearray()
        for path in artefact.path.glob("*.tar"):
            now, old = path.read_bytes(), before[artefact.path][path.name]
            assert len(now) == len(old)
            changed += bytes(place for place in range(len(now)) if now[place] != old[place] and not _inside(place, path, rows))
        assert not changed
        index = ShardIndex(artefact.path)
        for row in range(len(index)):
            entry = index.entry(row)
            if entry.clip_id in GONE:
                with pytest.raises(ShardError, match="damaged"):
                    index.read(entry)
            else:
                assert index.read(entry) == data_of(entry.clip_id)
    for clip_id in GONE:
        assert not files_with(world.store.root, data_of(clip_id)[:64])
        assert not files_with(world.store.root, f'"clip_id": "{clip_id}"'.encode())
    assert files_with(world.store.root, data_of("c-c-0")[:64])


def _inside(place: int, path: Path, rows: dict[str, dict[str, Any]]) -> bool:
    """Whether a byte belongs to a member (header or data) of a clip that went."""
    sizes = [(member.offset - 512, member.offset + member.size) for member in members(path) if member.redacted]
    return any(start <= place < end for start, end in sizes)


def test_stock_webdataset_reads_the_others_and_skips_what_is_gone(world: World) -> None:
    redact(world.store, TAKEN, "t")
    for artefact in shards_of(world):
        urls = [str(path) for path in sorted(artefact.path.glob("*.tar"))]
        found = {sample["__key__"]: sample["mp4"] for sample in webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)}
        assert found == {clip_id: data_of(clip_id) for clip_id in rows_of(artefact) if clip_id not in GONE}


def test_every_artefact_that_shares_a_tar_says_so_and_verifies(world: World) -> None:
    redact(world.store, TAKEN, "t")
    for artefact in shards_of(world):
        note = redactions(artefact.path)
        assert {clip for entry in note.values() for clip in entry["clips"]} == GONE and {entry["takedown"] for entry in note.values()} == {"t"}
        assert world.store.verify(artefact) == []
    tar = next(iter(sorted(note)))
    with open(artefact.path / tar, "r+b") as handle:
        handle.write(b"X")
    assert world.store.verify(artefact) == [tar]


def test_asked_again_nothing_is_touched_and_a_later_takedown_adds_to_it(world: World) -> None:
    redact(world.store, TAKEN, "t")
    notes = {artefact.path: (artefact.path / REDACTIONS).read_bytes() for artefact in shards_of(world)}
    again = redact(world.store, TAKEN, "u")
    assert again.clips == () and again.tars == () and again.bytes == 0
    assert notes == {artefact.path: (artefact.path / REDACTIONS).read_bytes() for artefact in shards_of(world)}
    more = redact(world.store, Tombstones(("t", "u"), TAKEN.clip_ids, TAKEN.video_ids | {"v-b"}), "u")
    assert set(more.clips) == {"c-b-0", "c-b-2"}
    for artefact in shards_of(world):
        assert {clip for entry in redactions(artefact.path).values() for clip in entry["clips"]} == {*GONE, "c-b-0", "c-b-2"}
        assert world.store.verify(artefact) == []


@pytest.mark.parametrize("text", [None, "{", "[]", '{"shard-000000.tar": {}}'])
def test_notes_that_are_missing_or_damaged_are_told_anew_from_tars_and_index(world: World, text: str | None) -> None:
    redact(world.store, TAKEN, "t")
    noted = {artefact.path: redactions(artefact.path) for artefact in shards_of(world)}
    for folder in noted:
        (folder / REDACTIONS).unlink()
        if text is not None:
            (folder / REDACTIONS).write_text(text)
            with pytest.raises(StoreError, match=r"is damaged .* --compact"):
                redactions(folder)
    redact(world.store, TAKEN, "t")
    assert noted == {folder: redactions(folder) for folder in noted}


def test_shards_that_linked_a_tar_after_its_redaction_say_so_after_the_next_call(world: World) -> None:
    first = shards_of(world)[0]
    redact(world.store, TAKEN, "t")
    late = world.shard(links=first, late=True)
    assert not redactions(late.path)
    redact(world.store, TAKEN, "u")
    assert redactions(late.path) == redactions(first.path) | {name: {**entry, "takedown": "u"} for name, entry in redactions(first.path).items()}
    assert world.store.verify(late) == []


def test_a_writer_whose_work_was_removed_is_told_why(world: World) -> None:
    store = world.store

    def build(folder: Path) -> dict[str, Any]:
        work = store.root / "work" / "training_shards" / "_" / folder.name.split("-")[1]
        work.mkdir(parents=True)
        (work / "c-a-0.mp4").write_bytes(data_of("c-a-0"))
        redact(store, TAKEN, "t", clip_ids=["c-a-0"])
        shutil.copy(work / "c-a-0.mp4", folder)
        return {}

    with pytest.raises(StoreError, match=r"removed while it was being made .* run again; a takedown"):
        store.produce("training_shards", build, config={"under": "way"})
    assert not files_with(store.root, data_of("c-a-0")[:64])


def test_work_that_somebody_goes_on_filling_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    work = world.store.root / "work" / "training_shards" / "_" / "x1"
    work.mkdir(parents=True)
    (work / "c-a-0.mp4").write_bytes(b"")
    monkeypatch.setattr("pipelines.lineage.takedown.redaction.shutil.rmtree", lambda *_, **__: None)
    assert redact(world.store, TAKEN, "t", clip_ids=["c-a-0"]).damaged == (f"{work}: it is being written: end what writes there",)


def test_a_rehearsal_writes_nothing(world: World) -> None:
    before = {path: path.read_bytes() for path in world.store.root.rglob("*") if path.is_file()}
    assert set(redact(world.store, TAKEN, "t", rehearse=True).clips) == GONE
    assert before == {path: path.read_bytes() for path in world.store.root.rglob("*") if path.is_file()}


def test_clips_that_no_index_lists_are_found_by_their_sidecars(world: World) -> None:
    (single,) = [artefact for artefact in shards_of(world) if artefact.config.get("own")]
    for artefact in shards_of(world):
        if artefact.path != single.path:
            world.store.discard(artefact)
    (single.path / INDEX_FILE).unlink()
    assert set(redact(world.store, TAKEN, "t").clips) == GONE
    assert not files_with(world.store.root, data_of("c-a-0")[:64])


@pytest.mark.parametrize("writes", [0, 1, 2, 5, 7, 9, 12, 15, 20, 26, 33])
def test_a_call_that_breaks_off_at_any_write_is_finished_by_the_next(world: World, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    left, real_write, real_note = [writes], os.pwrite, redaction._note

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def one(*arguments: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise RuntimeError("killed")
            return call(*arguments)

        return one

    monkeypatch.setattr("pipelines.lineage.takedown.redaction.overwrite.__defaults__", (counted(real_write),))
    monkeypatch.setattr(redaction, "_note", counted(real_note))
    with pytest.raises(RuntimeError, match="killed"):
        redact(world.store, TAKEN, "t")
    monkeypatch.undo()
    redact(world.store, TAKEN, "t")
    for artefact in shards_of(world):
        assert world.store.verify(artefact) == []
        assert {clip for entry in redactions(artefact.path).values() for clip in entry["clips"]} == GONE
    for clip_id in GONE:
        assert not files_with(world.store.root, data_of(clip_id)[:64])


def test_kill_9_in_the_middle_is_finished_by_the_next_call(world: World) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from pipelines.lineage.takedown import redaction
from pipelines.store import Store
from pipelines.tombstones import Tombstones
left = [7]
def put(*arguments):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.pwrite(*arguments)
redaction.overwrite.__defaults__ = (put,)
redaction.redact(Store.open({str(world.store.root)!r}), Tombstones(("t",), frozenset({{"c-b-1"}}), frozenset({{"v-a"}})), "t")
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(entry["sha256"] is None for artefact in shards_of(world) for entry in redactions(artefact.path).values())
    assert any(world.store.verify(artefact) for artefact in shards_of(world))
    redact(world.store, TAKEN, "t")
    assert not any(world.store.verify(artefact) for artefact in shards_of(world))
    assert not any(files_with(world.store.root, data_of(clip_id)[:64]) for clip_id in GONE)


def test_unfinished_work_and_drafts_that_hold_such_clips_are_removed(world: World) -> None:
    made = shards_of(world)[-1]
    work = world.store.root / "work" / "training_shards" / "_"
    for name, wanted in (("x1", "c-a-0"), ("x2", "c-c-0")):
        (work / name / "part-0").mkdir(parents=True)
        (work / name / "part-0" / f"{wanted}.mp4").write_bytes(data_of(wanted))
    shutil.copytree(made.path, work / "x3")
    cut_short = (work / "x3" / "shard-000000.tar").read_bytes()[:-900]
    (work / "x3" / "shard-000000.tar").write_bytes(cut_short)
    draft = made.path.with_name(".draft-zzz-1")
    shutil.copytree(made.path, draft)
    found = redact(world.store, TAKEN, "t", clip_ids=["c-a-0"])
    assert sorted(Path(path).name for path in found.work) == [".draft-zzz-1", "x1", "x3"]
    assert [path.name for path in work.iterdir()] == ["x2"] and not draft.exists()


def test_a_tar_that_cannot_be_read_is_named_after_all_others_are_done(world: World) -> None:
    (single,) = [artefact for artefact in shards_of(world) if artefact.config.get("own")]
    (single.path / "shard-000000.tar").write_bytes(b"no tar at all" * 100)
    found = redact(world.store, TAKEN, "t")
    assert len(found.damaged) == 1 and "shard-000000.tar" in found.damaged[0]
    others = [artefact for artefact in shards_of(world) if artefact.path != single.path]
    assert all({clip for entry in redactions(artefact.path).values() for clip in entry["clips"]} == GONE for artefact in others)


def test_shards_that_were_really_cut_are_redacted_and_verify(world: World, made_shards: Path) -> None:
    artefact = world.store.produce("training_shards", lambda folder: shutil.copytree(made_shards, folder, dirs_exist_ok=True) and {}, config={"real": True})
    redact(world.store, Tombstones(("t",), frozenset(), frozenset({"video-a"})), "t")
    gone = {row["clip_id"] for row in rows_of(artefact).values() if row["video_id"] == "video-a"}
    assert {clip for entry in redactions(artefact.path).values() for clip in entry["clips"]} == gone != set()
    assert verify_shards(artefact.path) == [] and world.store.verify(artefact) == []
    assert json.loads((artefact.path / REDACTIONS).read_text())
