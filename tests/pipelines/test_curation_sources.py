"""Registered roots and ingest batches: only new and changed files come in, and bad roots say what to do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from pipelines.curation.sources import (
    list_sources,
    new_batches,
    read_batch,
    register_source,
    source_digest,
    superseded,
)
from pipelines.errors import InputError, MissingArtefact
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
    assert "2 others ignored" in caplog.text and "1 .txt" in caplog.text and "not regular files" in caplog.text


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


def test_root_that_went_away_and_unknown_batch_are_errors(store: Store, root: Path) -> None:
    register_source(store, "pool", root)
    root.rename(root.with_name("moved"))
    with pytest.raises(InputError, match="is gone"):
        new_batches(store)
    with pytest.raises(MissingArtefact, match="no ingest batch"):
        read_batch(store, "pool-0009")
