"""Registered roots and ingest batches: only new and changed files come in, and bad roots say what to do."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from pipelines.errors import InputError, MissingArtefact, Reject
from pipelines.identity import digest_of
from pipelines.schemas import QUARANTINE, table_of, write_table
from pipelines.sources.registry import (
    list_sources,
    new_batches,
    poison_list,
    read_batch,
    register_source,
    source_digest,
    superseded,
)
from pipelines.store import Store


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
    assert "not regular files): 2" in caplog.text and "1 .txt" in caplog.text and "not regular files" in caplog.text


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
    rows = [{"path": name, "code": "timeout", "poison": poison, "sha256": digest} for name, poison, digest in [("x", True, "b"), ("y", False, "c"), ("z", True, "")]]
    for identity in ("one", "two"):
        folder = store.folder("artefacts", "videos", "pool-0001", identity)
        folder.mkdir(parents=True)
        write_table(table_of(QUARANTINE, rows if identity == "one" else [{**rows[0], "sha256": "a"}]), folder / "quarantine.parquet", QUARANTINE)
    register_source(store, "pool", root)
    (key,) = new_batches(store)
    assert read_batch(store, key).poison == ("a", "b")


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
    path = str(root / "b.mp4")

    def failed(key: str, code: Reject, attempts: int, poison: bool) -> None:
        folder = store.root / "artefacts" / "videos" / key / "made"
        folder.mkdir(parents=True)
        row = {"path": path, "code": code.value, "attempts": attempts, "poison": poison, "sha256": "x"}
        write_table(table_of(QUARANTINE, [row]), folder / "quarantine.parquet", QUARANTINE)

    failed("pool-0001", Reject.TIMEOUT, 2, False)
    assert new_batches(store) == ["pool-0002"] and new_batches(store) == []
    batch = read_batch(store, "pool-0002")
    assert [(file.path, file.tries) for file in batch.files] == [(path, 2)] and "tries" not in read_batch(store, "pool-0001").record["files"][0]
    failed("pool-0002", Reject.TIMEOUT, 4, True)
    assert new_batches(store) == [] and poison_list(store) == ("x",)
    (root / "b.mp4").write_bytes(b"mended")
    assert new_batches(store) == ["pool-0003"]
