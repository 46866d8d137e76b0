"""Ranged reads from stores that fail, stall or lie; the index's size; and caches that keep within their bounds."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipelines import schemas
from pipelines.errors import InputError
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import INDEX_FILE, ShardError, ShardIndex
from pipelines.shards.loader import ClipLoader, Reading
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.shards.storage import OPEN_FILES, BoundedCache, LocalStorage, Patience, RemoteStorage, open_storage

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=24)
QUICK = Patience(attempts=4, timeout_s=0.3, pause_s=0.001)


class Unreliable(MemoryFileSystem):
    """A store in memory that misbehaves as told: `fault(number of the read, data)` gives the data back, or raises, or waits."""

    protocol = "unreliable"
    cachable = False
    fault: Callable[[int, bytes], bytes] = staticmethod(lambda _, data: data)
    reads = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(str(path).replace("unreliable://", "memory://", 1))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        type(self).reads += 1
        return type(self).fault(type(self).reads, super().cat_file(path, start=start, end=end, **options))


@pytest.fixture
def remote(made_shards: Path) -> Iterator[str]:
    """URL of the made shards in a store that can be told to misbehave."""
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    system = Unreliable()
    for path in made_shards.iterdir():
        if path.is_file():
            system.pipe_file(f"/shards/{path.name}", path.read_bytes())
    Unreliable.reads, Unreliable.fault = 0, staticmethod(lambda _, data: data)
    yield "unreliable:///shards"
    system.rm("/shards", recursive=True)


def batches(folder: Path | str, steps: int = 12, patience: Patience = QUICK, **reading: Any) -> list[tuple[list[str], bytes]]:
    loader = ClipLoader(
        open_mixture(WHOLE, folder, patience), GEOMETRY, seed=3, phase="p", global_batch=8, reading=Reading(**reading)
    )  # fmt: skip
    return [(batch.clip_ids, batch.video.numpy().tobytes()) for batch in loader.batches(0, steps)]


def test_a_remote_store_gives_the_same_batches_as_a_folder(made_shards: Path, remote: str) -> None:
    assert isinstance(open_storage(remote), RemoteStorage) and isinstance(open_storage(f"file://{made_shards}"), LocalStorage)
    assert batches(remote, workers=2) == batches(made_shards) == batches(f"file://{made_shards}")


def test_one_read_in_fifty_that_fails_costs_a_second_try_and_nothing_else(
    made_shards: Path, remote: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(number: int, data: bytes) -> bytes:
        if number % 50 == 0:
            raise ConnectionResetError("planted")
        return data

    Unreliable.fault = staticmethod(fail)
    assert batches(remote, steps=30, cache_bytes=0) == batches(made_shards, steps=30)
    assert Unreliable.reads > 200 and "planted" in caplog.text


def test_a_read_that_stalls_is_given_up_and_tried_again(made_shards: Path, remote: str, caplog: pytest.LogCaptureFixture) -> None:
    release = threading.Event()

    def stall(number: int, data: bytes) -> bytes:
        if number % 20 == 0:
            release.wait(20)
        return data

    Unreliable.fault = staticmethod(stall)
    started = time.monotonic()
    assert batches(remote, cache_bytes=0) == batches(made_shards)
    assert "no answer within 0.3 s" in caplog.text and time.monotonic() - started < 20
    release.set()


def test_a_read_that_comes_damaged_once_is_read_again_and_twice_is_refused(made_shards: Path, remote: str) -> None:
    def flip(data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1])

    damaged: set[bytes] = set()

    def once(_: int, data: bytes) -> bytes:
        if data in damaged:
            return data
        damaged.add(data)
        return flip(data)

    Unreliable.fault = staticmethod(once)
    assert batches(remote, steps=4, cache_bytes=0, prefetch=0, workers=1) == batches(made_shards, steps=4) and damaged
    Unreliable.fault = staticmethod(lambda _, data: flip(data))
    with pytest.raises(ShardError, match="is damaged"):
        batches(remote)


def test_a_store_that_never_answers_is_named(remote: str) -> None:
    def fail(_: int, data: bytes) -> bytes:
        raise OSError("no route to host")

    Unreliable.fault = staticmethod(fail)
    with pytest.raises(ShardError, match=r"cannot be read.*within 4 tries.*no route to host"):
        batches(remote)


def test_a_store_that_fails_is_not_asked_for_all_that_was_wanted_ahead(remote: str) -> None:
    mixture = open_mixture(WHOLE, remote, Patience(attempts=1, timeout_s=10))
    loader = ClipLoader(mixture, GEOMETRY, seed=3, phase="p", global_batch=200, reading=Reading(cache_bytes=0, prefetch=3))
    asked = Unreliable.reads

    def fault(_: int, data: bytes) -> bytes:
        time.sleep(0.02)
        raise OSError("away")

    Unreliable.fault = staticmethod(fault)
    with pytest.raises(ShardError, match="away"):
        next(loader.batches(0, 10))
    assert Unreliable.reads - asked < 200


def test_what_was_read_is_kept_within_bounds(remote: str, made_shards: Path) -> None:
    whole = sum(ShardIndex(made_shards).length.tolist())
    loader = ClipLoader(
        open_mixture(WHOLE, remote), GEOMETRY, seed=3, phase="p", global_batch=8, reading=Reading(cache_bytes=int(whole * 0.8))
    )  # fmt: skip
    assert not loader.keeps_decoded
    for _ in loader.batches(0, 20):
        assert loader.stored.nbytes <= loader.stored.max_bytes
    assert 0 < Unreliable.reads < 160  # some came from memory


def test_the_cache_drops_what_was_not_used_for_longest() -> None:
    cache: BoundedCache[str, int] = BoundedCache(10)
    for key in "abc":
        cache.put(key, ord(key), 4)
    assert cache.get("a") is None and cache.get("b") == ord("b")
    cache.put("d", 1, 4)
    assert cache.get("c") is None and cache.get("b") is not None and cache.nbytes == 8
    cache.put("e", 1, 11)
    assert cache.get("e") is None


def test_an_index_entry_tells_what_the_table_tells(made_shards: Path) -> None:
    index = ShardIndex(made_shards)
    for row, expected in enumerate(schemas.read_table(made_shards / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()):
        entry = index.entry(row)
        assert {name: getattr(entry, name) for name in ("clip_id", "shard", "offset", "length", "sha256", "frames")} == {
            name: expected[name] for name in ("clip_id", "shard", "offset", "length", "sha256", "frames")
        }  # fmt: skip
        assert len(index.read(entry)) == entry.length


def test_a_large_index_costs_under_a_hundred_bytes_a_clip(tmp_path: Path) -> None:
    count, random = 30_000, np.random.default_rng(0)
    ids, digests = (np.frombuffer(random.bytes(count * size), np.uint8).reshape(count, size) for size in (10, 32))
    rows = [
        {
            "clip_id": ids[row].tobytes().hex(), "sha256": digests[row].tobytes().hex(), "shard": f"shard-{row // 100:06d}.tar", "offset": row % 100,
            "length": 10, "frames": 30, "first_pts_s": 0.0, "last_pts_s": 1.0, "weight": 1.0,
        }
        for row in range(count)
    ]  # fmt: skip
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), tmp_path / INDEX_FILE, schemas.SHARD_INDEX)
    index = ShardIndex(tmp_path)
    assert index.nbytes <= 100 * count and index.entry(12_345).sha256 == rows[12_345]["sha256"]


def test_an_index_of_an_older_version_is_read(made_shards: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    folder = Path(shutil.copytree(made_shards, tmp_path / "old"))
    table = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).drop_columns(["width", "height", "form", "uploader"])
    pq.write_table(table.replace_schema_metadata({"tubelet.table": "shard_index", "tubelet.version": "1"}), folder / INDEX_FILE)
    assert open_mixture(WHOLE, folder).decoded_bytes() is None  # so nothing is kept decoded
    assert batches(folder) == batches(made_shards)


def test_more_shards_than_a_process_may_hold_open_are_read_by_many_threads(tmp_path: Path) -> None:
    names = [f"{number}.tar" for number in range(3 * OPEN_FILES)]
    for name in names:
        (tmp_path / name).write_text(name)
    storage = LocalStorage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: storage.read(name, 0, 100).decode(), names * 20)) == names * 20
    held = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]
    assert sum(Path(path).parent == tmp_path for path in held) == OPEN_FILES
    storage.close()
    with pytest.raises(FileNotFoundError):
        storage.read("none.tar", 0, 1)


def test_a_url_that_nothing_can_read_says_what_to_install() -> None:
    with pytest.raises(InputError, match="s3fs"):
        open_storage("nosuch://bucket/shards")


def test_a_disk_that_fails_a_read_is_named_with_the_clip(made_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = ShardIndex(made_shards)
    entry = index.entry(0)
    monkeypatch.setattr(index.storage, "read", mock.Mock(side_effect=OSError(5, "Input/output error")))
    with pytest.raises(ShardError, match=f"{entry.shard}.*{entry.clip_id}.*Input/output error"):
        index.read(entry)


def test_local_files_go_without_fsspec(made_shards: Path) -> None:
    assert isinstance(fsspec.core.url_to_fs(str(made_shards))[0], LocalFileSystem)
    storage = open_storage(made_shards)
    assert not storage.remote and storage.read(INDEX_FILE, 0, 4) == b"PAR1"
    storage.close()
    assert storage.read(INDEX_FILE, 0, 4) == b"PAR1"
