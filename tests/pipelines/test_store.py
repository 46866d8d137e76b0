"""The store keeps what is finished, shows nothing half-done, and says what to do when it cannot work."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import InputError, MissingArtefact, StoreError
from pipelines.identity import canonical_json, clip_id, digest_of
from pipelines.store import Artefact, Store, local_folder, make_folder


def write(text: str):
    def build(folder: Path) -> dict:
        (folder / "data.txt").write_text(text)
        return {"letters": len(text)}

    return build


def test_same_request_is_built_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    first = store.produce("videos", write("abc"), config={"a": 1}, partition="b1")
    again = store.produce("videos", write("never called"), config={"a": 1}, partition="b1")
    assert (first.digest, first.path, first.reused) == (again.digest, again.path, False)
    assert again.reused and again.summary == {"letters": 3}


def test_equal_bytes_have_equal_digests_and_config_changes_identity(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    first = store.produce("videos", write("abc"), config={"a": 1})
    second = store.produce("videos", write("abc"), config={"a": 2})
    assert first.digest == second.digest and first.identity != second.identity


def test_a_failed_build_leaves_nothing_and_the_old_artefact_stays_current(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    good = store.produce("clips", write("good"))
    store.accept(good, {})

    def broken(folder: Path) -> dict:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        store.produce("clips", broken, config={"new": True})
    assert store.current("clips").digest == good.digest
    assert [path.name for path in (store.root / "artefacts/clips/_").iterdir()] == [good.identity]


def test_discarded_artefact_is_gone_also_when_the_removal_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path / "store")
    rejected = store.produce("videos", write("bad"), partition="b1")
    other = store.produce("videos", write("good"), partition="b1", config={"other": True})
    assert [found.path for found in store.made("videos", "b1")] == [rejected.path, other.path]

    def killed(folder: Path, **_: object) -> None:
        (folder / "MANIFEST.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pipelines.store.shutil.rmtree", killed)
        store.discard(rejected)
    assert [found.path for found in store.made("videos", "b1")] == [other.path]
    store.produce("videos", write("good"), partition="b1")
    assert len(list((store.root / "artefacts/videos/b1").iterdir())) == 2


def test_a_second_writer_leaves_the_first_ones_draft_alone_and_both_get_the_same(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    inner: list[Artefact] = []

    def slow(folder: Path) -> dict:
        (folder / "early.txt").write_text("early")
        inner.append(store.produce("clips", lambda other: {"n": (other / "early.txt").write_text("early")}))
        return {"n": (folder / "late.txt").write_text("late")}

    made = store.produce("clips", slow)
    assert (made.path, made.digest) == (inner[0].path, inner[0].digest) and made.reused and store.verify(made) == []
    assert [path.name for path in made.path.parent.iterdir()] == [made.identity]


def test_a_draft_of_a_killed_writer_goes_with_the_next(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    program = f"""
import os, signal
from pipelines.store import Store
def build(folder):
    (folder / "half.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
Store.open({str(store.root)!r}).produce("clips", build)
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", program], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name[:7] for path in (store.root / "artefacts/clips/_").iterdir()] == [".draft-"]
    made = store.produce("clips", write("whole"))
    assert [path.name for path in made.path.parent.iterdir()] == [made.identity]


@pytest.mark.parametrize("text", ["{", "[]", '{"asset": "clips"}'])
def test_a_damaged_manifest_is_named_with_what_to_do(tmp_path: Path, text: str) -> None:
    store = Store.open(tmp_path / "store")
    made = store.produce("clips", write("x"))
    (made.path / "MANIFEST.json").write_text(text)
    with pytest.raises(StoreError, match=r"MANIFEST\.json is damaged .* restore that file, or delete"):
        store.load(made.path)


def test_consumers_refuse_what_has_not_passed_its_checks(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    made = store.produce("clips", write("x"))
    with pytest.raises(MissingArtefact, match="materialize clips first"):
        store.current("clips")
    store.accept(made, {"not_empty": True})
    assert store.current("clips").digest == made.digest
    (store.root / "validated" / f"{made.digest}.json").unlink()
    with pytest.raises(MissingArtefact, match="has not passed its checks"):
        store.current("clips")


def test_inputs_are_found_again_from_files_alone(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    batch = store.produce("clips", write("x"), partition="b1")
    merged = store.produce("distinct_clips", write("y"), inputs=[batch])
    assert [item.digest for item in Store.open(store.root).inputs_of(merged)] == [batch.digest]


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    made = store.produce("clips", write("x"))
    assert store.verify(made) == []
    (made.path / "data.txt").write_text("z")
    assert store.verify(made) == ["data.txt"]


def test_store_of_another_version_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "STORE.json").write_text(json.dumps({"version": 999}))
    with pytest.raises(StoreError, match="another version"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["STORE.json"]


def test_a_folder_with_other_files_is_not_taken_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"no STORE\.json"):
        Store.open(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_store_says_so(tmp_path: Path) -> None:
    Store.open(tmp_path / "store")
    (tmp_path / "store").chmod(0o500)
    with pytest.raises(StoreError, match="cannot be written"):
        Store.open(tmp_path / "store")


@pytest.mark.parametrize(("number", "message"), [(28, "is full"), (30, "cannot be written")])
def test_full_and_read_only_disks_are_named_and_good_data_stays(tmp_path: Path, number: int, message: str) -> None:
    store = Store.open(tmp_path / "store")
    good = store.produce("clips", write("good"))

    def no_space(folder: Path) -> dict:
        raise OSError(number, os.strerror(number))

    with pytest.raises(StoreError, match=message):
        store.produce("clips", no_space, config={"n": 1})
    assert store.verify(good) == []


def test_remote_urls_are_refused_with_a_remedy() -> None:
    with pytest.raises(StoreError, match="TUBELET_STORE"):
        Store.open("s3://bucket/store")


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.integers())))
def test_digest_does_not_depend_on_key_order(value: dict) -> None:
    assert digest_of(dict(reversed(list(value.items())))) == digest_of(value)
    assert json.loads(canonical_json(value)) == value


@given(st.integers(0, 10**9), st.integers(1, 10**6))
def test_clip_id_tells_spans_apart(start: int, length: int) -> None:
    one = clip_id("v", start, start + length, (1, 1000), "s1")
    assert one != clip_id("v", start, start + length + 1, (1, 1000), "s1")
    assert one == clip_id("v", start, start + length, (1, 1000), "s1")


def test_artefact_without_a_member_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    made: Artefact = store.produce("clips", write("x"))
    with pytest.raises(MissingArtefact, match=r"has no clips\.parquet"):
        made.file("clips.parquet")


@pytest.mark.parametrize("text", ["garbage", "[]", "", "{}"])
def test_a_damaged_marker_is_told_with_what_belongs_there(tmp_path: Path, text: str) -> None:
    (tmp_path / "STORE.json").write_text(text)
    with pytest.raises(StoreError, match=r"is damaged .*\"version\": 1"):
        Store.open(tmp_path)
    assert (tmp_path / "STORE.json").read_text() == text


@pytest.mark.parametrize("url", ["s3://bucket/store", Path("s3://bucket/store"), "gs:/bucket"])
def test_a_url_of_another_machine_is_refused_also_after_it_has_been_a_path(url: str | Path) -> None:
    with pytest.raises(StoreError, match="not on this machine"):
        local_folder(url)


def test_a_place_where_no_folder_can_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="cannot be made"):
        Store.open(tmp_path / "file" / "store")


def test_a_full_disk_is_told_also_when_a_database_met_it(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")

    def fail(words: str) -> None:
        try:
            raise sqlite3.OperationalError(words)
        except sqlite3.OperationalError as error:
            raise RuntimeError("a layer above") from error

    with pytest.raises(StoreError, match=r"is full .* free some space"), store.writing():
        fail("database or disk is full")
    with pytest.raises(StoreError, match="cannot be written"), store.writing():
        fail("attempt to write a readonly database")
    with pytest.raises(RuntimeError, match="a layer above"), store.writing():
        fail("no such table: runs")


def test_a_file_elsewhere_that_may_not_be_read_is_not_blamed_on_the_store(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with pytest.raises(PermissionError), store.writing():
        raise PermissionError(13, "Permission denied", str(tmp_path / "videos"))


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert make_folder(tmp_path / "new" / "folder").is_dir() and make_folder(tmp_path).is_dir()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot be written into"):
            make_folder(place)
