"""Shards that follow the selection: what is there is carried, only what is new is cut, and what is taken down is gone."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import pytest
import webdataset
from conftest import LENGTHS, clip_rows, numbered_frames
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import schemas
from pipelines.shards import filling
from pipelines.shards.form import CutClip, CutFailure, ShardConfig
from pipelines.shards.index import INDEX_FILE, ShardError
from pipelines.shards.tars import shard_number
from pipelines.shards.verify import verify_shards
from pipelines.shards.writer import build_shards, check_shards
from pipelines.store import Store
from pipelines.tombstones import Tombstones, write_tombstones
from pipelines.video.encode import write_video

CONFIG = ShardConfig(short_side=32, shard_bytes=30_000)


def quiet(*_: object) -> None:
    return None


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist()}


def read_by_webdataset(folder: Path) -> dict[str, bytes]:
    tars = sorted(map(str, folder.glob("*.tar")))
    return {sample["__key__"]: sample["mp4"] for sample in webdataset.WebDataset(tars, shardshuffle=False)}


class Pool:
    """21 clips of 3 videos, and shards made of some of them, one set after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cuts, self._cache, self._made = folder, [], {}, 0
        self.rows: dict[str, dict[str, Any]] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conftest, "SPLIT", 8)
            for name, (frames, rate) in LENGTHS.items():
                write_video(folder / f"{name}.mp4", numbered_frames(frames), rate, bframes=2, gop=40)
                self.rows |= {row["clip_id"]: row for row in clip_rows(folder / f"{name}.mp4", f"video-{name}", frames, rate)}
        schemas.write_table(schemas.table_of(schemas.CLIPS, [*self.rows.values()]), folder / "clips.parquet", schemas.CLIPS)
        self.names = sorted(self.rows)

    def select(self, weights: dict[str, float]) -> Path:
        self._made += 1
        out = self.folder / f"selection-{self._made}"
        out.mkdir()
        rows = [
            {"clip_id": name, "video_id": self.rows[name]["video_id"], "cluster": 0, "weight": weight, "target": "t", "uniform_weight": 1.0}
            for name, weight in weights.items()
        ]
        schemas.write_table(schemas.table_of(schemas.SELECTION, rows), out / "selection.parquet", schemas.SELECTION)
        return out

    def build(self, weights: dict[str, float], base: Path | None = None, **options: Any) -> tuple[Path, dict[str, Any]]:
        """(folder, summary); `cuts` are the clips that were cut for it."""
        selection = self.select(weights)
        out = self.folder / f"shards-{self._made}"
        out.mkdir()
        self.cuts = []
        options = {"config": CONFIG, **options}
        return out, build_shards(out, self.folder, selection, base=base, progress=quiet, **options)

    def cut(self, clip: dict[str, Any], target: Path, config: ShardConfig, really: Callable[..., CutClip | CutFailure]) -> CutClip | CutFailure:
        """Count, and cut each clip once for all tests."""
        self.cuts.append(clip["clip_id"])
        key = clip["clip_id"], config.short_side, clip["path"]
        if key not in self._cache:
            self._cache[key] = really(clip, target, config)
        return self._cache[key]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    made = Pool(tmp_path_factory.mktemp("pool"))
    really = filling.cut_clip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "cut_clip", lambda clip, target, config: made.cut(clip, target, config, really))
        yield made


def evenly(names: list[str]) -> dict[str, float]:
    return dict.fromkeys(names, 1.0)


def test_reweighting_cuts_nothing_and_copies_nothing(pool: Pool) -> None:
    first, _ = pool.build(evenly(pool.names))
    second, summary = pool.build({name: 2.0 + place for place, name in enumerate(pool.names)}, first)
    assert pool.cuts == [] and summary["clips_cut"] == summary["clips_moved"] == summary["delta_shards"] == summary["compacted_shards"] == 0
    assert summary["carried_shards"] == summary["shards"] == len(list(first.glob("*.tar"))) >= 3
    for tar in first.glob("*.tar"):
        assert (second / tar.name).samefile(tar)
    assert [row["weight"] for row in rows_of(second).values()] == [2.0 + place for place in range(len(pool.names))]


def test_clips_left_out_stay_in_their_tar_with_weight_0_and_come_back_for_nothing(pool: Pool) -> None:
    first, _ = pool.build(evenly(pool.names))
    some = [name for place, name in enumerate(pool.names) if place % 3]
    second, summary = pool.build(evenly(some), first)
    rows = rows_of(second)
    assert {name for name, row in rows.items() if row["weight"] > 0} == set(some) and set(rows) == set(pool.names)
    assert (summary["clips"], summary["clips_stored"]) == (len(some), len(pool.names)) and summary["dead_megabytes"] > 0
    third, _ = pool.build(evenly(pool.names), second)
    assert pool.cuts == [] and all(row["weight"] == 1.0 for row in rows_of(third).values())
    assert verify_shards(second, progress=quiet) == []


def test_new_clips_come_in_delta_tars_with_the_next_numbers(pool: Pool) -> None:
    first, _ = pool.build(evenly(pool.names[::2]))
    second, summary = pool.build(evenly(pool.names), first)
    assert sorted(pool.cuts) == pool.names[1::2] and summary["clips_cut"] == len(pool.names[1::2])
    former = [shard_number(tar.name) for tar in first.glob("*.tar")]
    numbers = sorted(shard_number(tar.name) for tar in second.glob("*.tar"))
    assert numbers == list(range(len(former) + summary["delta_shards"])) and summary["delta_shards"] >= 1
    assert set(read_by_webdataset(second)) == set(pool.names)


def test_a_tar_mostly_unused_is_written_anew_without_the_rest_byte_for_byte(pool: Pool) -> None:
    first, _ = pool.build(evenly(pool.names))
    before, tars = rows_of(first), read_by_webdataset(first)
    by_tar: dict[str, list[str]] = {}
    for name, row in before.items():
        by_tar.setdefault(row["shard"], []).append(name)
    shrunk = sorted(by_tar)[0]
    left = by_tar[shrunk][0]
    wanted = [name for name in pool.names if before[name]["shard"] != shrunk or name == left]
    second, summary = pool.build(evenly(wanted), first)
    assert pool.cuts == [] and (summary["compacted_shards"], summary["clips_moved"], summary["delta_shards"]) == (1, 1, 1)
    assert not (second / shrunk).exists() and set(rows_of(second)) == set(wanted)
    assert read_by_webdataset(second) == {name: tars[name] for name in wanted}
    moved = rows_of(second)[left]
    both = [(folder / row["shard"]).read_bytes() for folder, row in ((first, before[left]), (second, moved))]
    sizes = [row["offset"] + row["length"] for row in (before[left], moved)]
    assert moved["offset"] == before[by_tar[shrunk][0]]["offset"] and both[0][: sizes[0]] == both[1][: sizes[1]]  # the sidecar too
    kept, summary = pool.build(evenly(wanted), first, config=CONFIG.model_copy(update={"compact_below": 0.0}))
    assert summary["compacted_shards"] == 0 and (kept / shrunk).exists()


def test_what_is_taken_down_is_neither_drawn_nor_stored_nor_cut(pool: Pool) -> None:
    first, _ = pool.build(evenly(pool.names))
    bytes_of, before = read_by_webdataset(first), rows_of(first)
    gone = Tombstones(("t",), frozenset({pool.names[4]}), frozenset({"video-c"}))
    covered = [name for name in pool.names if gone.covers(name, pool.rows[name]["video_id"])]
    assert len(covered) == 4
    second, summary = pool.build(evenly(pool.names), first, tombstones=gone)
    assert pool.cuts == [] and summary["weight_taken_down"] == 4.0 and summary["weight_lost"] == 0.0
    assert summary["compacted_shards"] == len({before[name]["shard"] for name in covered})
    assert set(rows_of(second)) == set(pool.names) - set(covered)
    stored = b"".join(tar.read_bytes() for tar in second.glob("*.tar"))
    assert not any(bytes_of[name] in stored or name.encode() in stored for name in covered)
    assert all(check.passed for check in check_shards(second, tombstones=gone).values())
    refused = {name for name, check in check_shards(first, tombstones=gone).items() if not check.passed}
    assert refused == {"nothing_taken_down"}


def test_all_that_was_selected_taken_down_is_an_error(pool: Pool) -> None:
    with pytest.raises(ShardError, match="taken down"):
        pool.build(evenly(pool.names[:3]), tombstones=Tombstones(("t",), frozenset(pool.names[:3])))


def test_a_damaged_tar_is_not_carried_and_its_clips_are_cut_again(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = pool.build(evenly(pool.names))
    before = rows_of(first)
    broken = before[pool.names[7]]
    lost = sorted(name for name, row in before.items() if row["shard"] == broken["shard"])
    data = bytearray((first / broken["shard"]).read_bytes())
    data[broken["offset"] + 100] ^= 4
    (first / broken["shard"]).write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="tubelet.shards"):
        logging.getLogger("tubelet").propagate = True
        second, summary = pool.build(evenly(pool.names), first)
    assert sorted(pool.cuts) == lost and broken["shard"] in caplog.text and all(name in caplog.text for name in lost)
    assert not (second / broken["shard"]).exists() and summary["compacted_shards"] == 0
    assert {name: row["sha256"] for name, row in rows_of(second).items()} == {name: row["sha256"] for name, row in before.items()}
    assert verify_shards(second, progress=quiet) == []


def test_a_base_whose_index_is_gone_is_given_up_aloud(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    first, _ = pool.build(evenly(pool.names[:4]))
    (first / INDEX_FILE).write_bytes(b"PAR1 not a table")
    with caplog.at_level(logging.WARNING, logger="tubelet.shards"):
        logging.getLogger("tubelet").propagate = True
        pool.build(evenly(pool.names[:4]), first)
    assert sorted(pool.cuts) == pool.names[:4] and "cannot be carried over" in caplog.text


def test_across_file_systems_tars_are_copied(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    first, _ = pool.build(evenly(pool.names))

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    second, _ = pool.build(evenly(pool.names), first)
    for tar in first.glob("*.tar"):
        assert (second / tar.name).read_bytes() == tar.read_bytes() and not (second / tar.name).samefile(tar)


STEPS = st.lists(
    st.tuples(
        st.sets(st.integers(0, 20), min_size=1), st.sets(st.integers(0, 20), max_size=2), st.sampled_from([0.0, 0.5, 1.0]), st.integers(1, 3),
    ),
    min_size=2, max_size=5,
)  # fmt: skip


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], derandomize=True)
@given(STEPS)
def test_any_history_ends_in_what_a_fresh_build_holds_and_cuts_nothing_twice(pool: Pool, steps: list[tuple[set[int], set[int], float, int]]) -> None:
    """Steps: which clips are selected, which are taken down on top, how eagerly tars are compacted, and how many workers."""
    whole = rows_of(pool.build(evenly(pool.names))[0])
    base: Path | None = None
    there: set[str] = set()
    gone: frozenset[str] = frozenset()
    for number, (picked, taken, eager, workers) in enumerate(steps):
        gone |= {pool.names[place] for place in taken}
        weights = {pool.names[place]: 1.0 + place + number for place in picked}
        wanted = set(weights) - gone
        if not wanted:
            continue
        folder, summary = pool.build(
            weights, base, tombstones=Tombstones(("t",), gone) if gone else None, workers=workers, config=CONFIG.model_copy(update={"compact_below": eager})
        )
        rows = rows_of(folder)
        drawn = {name: row for name, row in rows.items() if row["weight"] > 0}
        assert {name: row["weight"] for name, row in drawn.items()} == {name: weights[name] for name in wanted}
        fixed = set(schemas.SHARD_INDEX.names) - {"shard", "offset", "weight"}
        assert all({name: row[name] for name in fixed} == {name: whole[clip][name] for name in fixed} for clip, row in rows.items())
        assert sorted(pool.cuts) == sorted(wanted - there), "a clip was cut that was there, or not cut that was not"
        assert not set(rows) & gone and set(read_by_webdataset(folder)) == set(rows) and verify_shards(folder, progress=quiet) == []
        if base is not None:
            for tar in folder.glob("*.tar"):
                inside = [row for row in rows.values() if row["shard"] == tar.name]
                live = sum(row["length"] for row in inside if row["weight"] > 0)
                assert live >= eager * sum(row["length"] for row in inside) and (not (base / tar.name).exists() or tar.samefile(base / tar.name))
            assert summary["carried_shards"] + summary["delta_shards"] == summary["shards"]
        base, there = folder, set(rows)


def produce(store: Store, pool: Pool, weights: dict[str, float]) -> None:
    """The two inputs of training_shards into a store."""
    selection = pool.select(weights)
    for asset, source in (("distinct_clips", pool.folder / "clips.parquet"), ("curated_clips", selection / "selection.parquet")):
        made = store.produce(asset, lambda folder, source=source: {"n": str(shutil.copy(source, folder))[:0]}, config={"of": str(sorted(weights.items()))})
        store.accept(made, {})


def test_asking_twice_is_one_request_and_other_forms_or_rewrite_give_up_the_base(pool: Pool, tmp_path: Path) -> None:
    from assets.shards import ShardsConfig, plan_training_shards

    store = Store.open(tmp_path / "store")

    def materialize(**options: Any) -> Any:
        plan = plan_training_shards(store, ShardsConfig(short_side=32, **options))
        pool.cuts = []
        work = store.folder("work", plan.asset, None, plan.identity)
        artefact = store.produce(
            plan.asset, lambda folder: plan.build(SimpleNamespace(folder=folder, work_folder=work, progress=quiet)), inputs=plan.inputs, config=plan.config,
            code_version=plan.code_version,
        )  # fmt: skip
        checks = plan.check(artefact)
        assert all(check.passed for check in checks.values()), checks
        store.accept(artefact, {name: check.to_dict() for name, check in checks.items()})
        return artefact

    produce(store, pool, evenly(pool.names[:6]))
    first = materialize()
    assert materialize().reused and first.config["base"] is None and len(pool.cuts) == 0
    produce(store, pool, evenly(pool.names[:9]))
    second = materialize()
    assert second.config["base"] == first.digest and sorted(pool.cuts) == pool.names[6:9] and "training_shards" not in second.inputs
    assert materialize().reused and materialize(workers=1).reused
    assert materialize(frame_rate=100.0).config["base"] is None and sorted(pool.cuts) == pool.names[:9]
    produce(store, pool, evenly(pool.names[:8]))
    third = materialize(frame_rate=100.0, compact_below=0.9)
    assert third.config["base"] and pool.cuts == []
    rewritten = materialize(frame_rate=100.0, rewrite=True)
    assert rewritten.config["base"] is None and sorted(pool.cuts) == pool.names[:8]
    assert materialize(frame_rate=100.0).path == rewritten.path
    tar = min(rewritten.path.glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[:4000])  # what rewrite is for: the same request would find the damaged ones made
    again = materialize(frame_rate=100.0, rewrite=True)
    assert again.path != rewritten.path and again.digest == rewritten.digest and sorted(pool.cuts) == pool.names[:8]
    write_tombstones(store.root, "t1", [{"clip_id": pool.names[0], "video_id": "video", "reason": "r", "added": "now", "takedown": "t1", "rule": "video", "value": "x"}])
    purged = materialize(frame_rate=100.0)
    assert not purged.reused and pool.names[0] not in rows_of(purged.path) and pool.cuts == [] and "tombstones" in purged.config
