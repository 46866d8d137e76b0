"""Registered roots and ingest batches: only new and changed files come in, and bad roots say what to do."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from pipelines.errors import InputError, MissingArtefact, Reject
from pipelines.identity import digest_of
from pipelines.schemas import QUARANTINE, VIDEOS, table_of, write_table
from pipelines.sources.registry import (
    list_batches,
    list_sources,
    new_batches,
    poison_list,
    read_batch,
    register_source,
    rejects_left,
    source_digest,
    superseded,
)
from pipelines.store import Artefact, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.mp4").write_bytes(b"b")
    (folder / "deep" / "a.MKV").write_bytes(b"a")
    return folder


def names(store: Store, key: str) -> list[str]:
    return [Path(file.path).name for file in read_batch(store, key).files]


def probed(store: Store, key: str, rejected: list[dict], decoded: tuple[str, ...] = (), version: str = "1") -> Artefact:
    """A probe of a batch with these quarantine rows, and videos with these sha256."""

    def build(folder: Path) -> dict:
        write_table(table_of(QUARANTINE, rejected), folder / "quarantine.parquet", QUARANTINE)
        write_table(table_of(VIDEOS, [{"sha256": digest} for digest in decoded]), folder / "videos.parquet", VIDEOS)
        return {"videos": len(decoded)}

    return store.produce("videos", build, partition=key, code_version=version)


def reject(path: Path | str, code: Reject = Reject.TIMEOUT, attempts: int = 2, poison: bool = False, sha256: str = "x") -> dict:
    return {"path": str(path), "code": code.value, "attempts": attempts, "poison": poison, "sha256": sha256}


def test_first_batch_takes_every_candidate_and_the_next_only_new_ones(store: Store, root: Path) -> None:
    register_source(store, "pool", root, "CC0", "me")
    assert new_batches(store) == ["pool-0001"]
    assert names(store, "pool-0001") == ["b.mp4", "a.MKV"]
    assert new_batches(store) == []
    (root / "c.webm").write_bytes(b"c")
    assert new_batches(store) == ["pool-0002"]
    assert names(store, "pool-0002") == ["c.webm"]


def test_changed_file_comes_again_and_supersedes(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    new_batches(store)
    before = source_digest(store)
    (root / "b.mp4").write_bytes(b"changed")
    assert source_digest(store) != before
    assert new_batches(store) == ["pool-0002"]
    assert superseded(store) == {"pool-0001": [str(root / "b.mp4")]}


def test_vanished_file_stays_recorded_and_touches_no_batch(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    new_batches(store)
    (root / "b.mp4").unlink()
    assert new_batches(store) == []
    assert names(store, "pool-0001") == ["b.mp4", "a.MKV"]


def test_sources_are_batched_apart_and_carry_their_licence(store: Store, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.mp4").write_bytes(b"x")
    register_source(store, "pool", root, "CC0", "me")
    register_source(store, "guests", other, "CC-BY-4.0", "them")
    assert new_batches(store) == ["guests-0001", "pool-0001"]
    batch = read_batch(store, "guests-0001")
    assert (batch.licence, batch.uploader, [source.name for source in list_sources(store)]) == ("CC-BY-4.0", "them", ["guests", "pool"])


def test_other_files_are_counted_and_named_not_silently_skipped(store: Store, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "notes.txt").write_text("x")
    os.mkfifo(root / "pipe.mp4")
    logger = logging.getLogger("tubelet")
    logger.propagate = True
    with caplog.at_level(logging.INFO, logger="tubelet"):
        register_source(store, "pool", root)
    assert "others ignored (1 .txt): 1" in caplog.text and "not regular files: 1" in caplog.text and "pipe.mp4" in caplog.text


def test_bad_roots_are_refused_with_a_remedy(store: Store, root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("x")
    for path, words in [(tmp_path / "none", "does not exist"), (empty, "is empty"), (texts, "no video file"), (texts / "a.txt", "not a folder")]:
        with pytest.raises(InputError, match=words) as caught:
            register_source(store, "bad", path)
        assert caught.value.remedy
    with pytest.raises(InputError, match="cannot name"):
        register_source(store, "Bad Name", root)
    register_source(store, "pool", root)
    with pytest.raises(InputError, match="already stands"):
        register_source(store, "pool", texts.parent)
    assert [source.name for source in list_sources(store)] == ["pool"]


def test_records_of_older_versions_load_with_the_digest_they_had(store: Store, root: Path) -> None:
    files = [{"path": str(root / "b.mp4"), "bytes": 1, "mtime_ns": (root / "b.mp4").stat().st_mtime_ns}]
    record = {"files": files, "key": "pool-0001", "licence": "CC0", "source": "pool", "uploader": "me"}
    (store.root / "batches").mkdir()
    (store.root / "batches" / "pool-0001.json").write_text(json.dumps(record))
    (store.root / "sources").mkdir()
    (store.root / "sources" / "pool.json").write_text(json.dumps({"name": "pool", "path": str(root), "licence": "CC0", "uploader": "me"}))
    batch = read_batch(store, "pool-0001")
    assert batch.digest == digest_of(record) and batch.poison == ()
    assert batch.facts(batch.files[0]) == {"url": "", "licence": "CC0", "uploader": "me", "language": "", "label": ""}
    assert [source.kind for source in list_sources(store)] == ["folder"]
    assert register_source(store, "pool", root, "CC0", "me") == list_sources(store)[0]
    assert new_batches(store) == ["pool-0002"] and names(store, "pool-0002") == ["a.MKV"]


def test_new_batch_knows_the_poison_of_earlier_probes(store: Store, root: Path) -> None:
    rows = [reject("x", poison=True, sha256="b"), reject("y", sha256="c"), reject("z", poison=True, sha256=""), reject("w", poison=True, sha256="d")]
    probed(store, "old-0001", rows)
    probed(store, "old-0002", [reject("v", poison=True, sha256="a")], decoded=("d",))
    register_source(store, "pool", root)
    (key,) = new_batches(store)
    assert read_batch(store, key).poison == ("a", "b")


def test_only_the_newest_complete_probe_of_a_batch_counts_and_no_draft(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    new_batches(store)
    probed(store, "pool-0001", [reject(root / "b.mp4", poison=True), reject(root / "deep" / "a.MKV")])
    good = probed(store, "pool-0001", [], version="2")
    complete, cut = (good.path.with_name(f".draft-{good.identity}-{number}") for number in "12")
    probed(store, "pool-0001", [reject(root / "b.mp4", poison=True)], version="3").path.rename(complete)
    cut.mkdir()
    (cut / "quarantine.parquet").write_bytes(b"PAR1 half a tab")
    assert poison_list(store) == () and new_batches(store) == []


def test_what_is_left_out_is_kept_by_name_until_it_is_gone(store: Store, root: Path) -> None:
    record = store.root / "left_out" / "pool.json"
    register_source(store, "pool", root)
    new_batches(store)
    assert not record.exists()
    (root / "notes.txt").write_text("x")
    new_batches(store)
    assert json.loads(record.read_text()) == [{"reason": "others ignored (1 .txt)", "count": 1, "names": []}]
    (root / "notes.txt").unlink()
    new_batches(store)
    assert json.loads(record.read_text()) == []


def test_root_that_went_away_and_unknown_batch_are_errors(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    root.rename(root.with_name("moved"))
    with pytest.raises(InputError, match="is gone"):
        new_batches(store)
    with pytest.raises(MissingArtefact, match="no ingest batch"):
        read_batch(store, "pool-0009")


def test_file_that_failed_for_a_passing_reason_is_tried_again_until_its_budget_is_used_up(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    new_batches(store)
    path = root / "b.mp4"
    probed(store, "pool-0001", [reject(path)])
    assert new_batches(store) == ["pool-0002"] and new_batches(store) == []
    batch = read_batch(store, "pool-0002")
    assert [(file.path, file.tries) for file in batch.files] == [(str(path), 2)] and "tries" not in read_batch(store, "pool-0001").record["files"][0]
    probed(store, "pool-0002", [reject(path, attempts=4, poison=True)])
    assert new_batches(store) == [] and poison_list(store) == ("x",)
    path.write_bytes(b"mended")
    assert new_batches(store) == ["pool-0003"]


def test_poison_is_lifted_on_demand_and_what_decodes_then_is_none_any_more(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    new_batches(store)
    path, copy, text = root / "b.mp4", root / "deep" / "a.MKV", Reject.NOT_A_VIDEO
    probed(store, "pool-0001", [reject(path, attempts=4, poison=True), reject(copy, Reject.POISON, 1, True), reject(root / "c.mp4", text)])
    assert new_batches(store) == []
    assert new_batches(store, retry_poison=True) == ["pool-0002"]
    batch = read_batch(store, "pool-0002")
    assert {file.path: file.tries for file in batch.files} == {str(path): 4, str(copy): 1} and batch.poison == ()
    assert new_batches(store, retry_poison=True) == []
    probed(store, "pool-0002", [], decoded=("x",))
    assert poison_list(store) == () and new_batches(store, retry_poison=True) == []


def test_label_and_bytes_that_return_to_what_they_were_come_again(store: Store, root: Path) -> None:
    manifest, film = root / "list.csv", root / "b.mp4"

    def labelled(label: str) -> list[str]:
        manifest.write_text(f"path,label\nb.mp4,{label}\n")
        return new_batches(store)

    manifest.write_text("path,label\nb.mp4,x\n")
    register_source(store, "pool", manifest)
    assert [labelled(label) for label in "xyxx"] == [["pool-0001"], ["pool-0002"], ["pool-0003"], []]
    assert read_batch(store, "pool-0003").files[0].label == "x"
    first = film.stat()
    film.write_bytes(b"replaced")
    assert new_batches(store) == ["pool-0004"]
    film.write_bytes(b"b")
    os.utime(film, ns=(first.st_atime_ns, first.st_mtime_ns))  # as cp -p from a backup
    assert new_batches(store) == ["pool-0005"] and new_batches(store) == []
    assert sorted(superseded(store)) == [f"pool-000{number}" for number in range(1, 5)]


def test_relabelled_file_that_waits_for_another_try_is_taken_once(store: Store, root: Path) -> None:
    manifest = root / "list.csv"
    manifest.write_text("path,label\nb.mp4,x\n")
    register_source(store, "pool", manifest)
    new_batches(store)
    probed(store, "pool-0001", [reject(root / "b.mp4")])
    manifest.write_text("path,label\nb.mp4,y\n")
    assert new_batches(store) == ["pool-0002"]
    assert [(file.label, file.tries) for file in read_batch(store, "pool-0002").files] == [("y", 0)]


def test_batches_keep_their_numbers_when_a_record_is_deleted_and_past_four_digits(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    for number in (1, 2):
        (root / "b.mp4").write_bytes(b"b" * number)
        new_batches(store)
    (store.root / "batches" / "pool-0001.json").unlink()
    (root / "c.mp4").write_bytes(b"c")
    assert new_batches(store) == ["pool-0003"] and names(store, "pool-0002") == ["b.mp4"]
    last = store.root / "batches" / "pool-9999.json"
    last.write_text((store.root / "batches" / "pool-0003.json").read_text().replace("pool-0003", "pool-9999"))
    (root / "c.mp4").write_bytes(b"changed")
    assert new_batches(store) == ["pool-10000"] and list_batches(store)[-1] == "pool-10000"


def test_licence_and_uploader_stay_when_they_are_not_given(store: Store, root: Path) -> None:
    register_source(store, "pool", root, "CC0", "me")
    register_source(store, "pool", root)
    assert [(source.licence, source.uploader) for source in list_sources(store)] == [("CC0", "me")]
    register_source(store, "pool", root, uploader="")
    assert [(source.licence, source.uploader) for source in list_sources(store)] == [("CC0", "")]


def test_reject_is_left_until_it_is_mended_removed_or_tried_again(store: Store, root: Path) -> None:
    (root / "c.mp4").write_bytes(b"c")
    (root / "d.mp4").write_bytes(b"d")
    register_source(store, "pool", root)
    new_batches(store)
    batch = read_batch(store, "pool-0001")
    mended, removed, hung = root / "b.mp4", root / "c.mp4", root / "d.mp4"
    probed(store, "pool-0001", [reject(mended, Reject.NOT_A_VIDEO), reject(removed, Reject.NOT_A_VIDEO), reject(hung)])
    assert rejects_left(store, batch) == [str(mended), str(removed), str(hung)]
    mended.write_bytes(b"mended")
    removed.unlink()
    assert rejects_left(store, batch) == [str(mended), str(hung)]
    new_batches(store)
    assert rejects_left(store, batch) == []
