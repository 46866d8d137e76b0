"""Curation after a takedown: what was taken down and whatever shows it stays out, however it comes again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from takedown_world import Video, World, embed, kept_ids, write_clips

from pipelines.checks import failed
from pipelines.curation.duplicates import build_distinct, check_distinct
from pipelines.curation.report.chain import chain_of
from pipelines.curation.report.losses import losses_of, sums_of
from pipelines.curation.report.sheets import draw_contact_removed
from pipelines.curation.report.thumbnails import ThumbnailConfig
from pipelines.curation.taken import TakenDown, read_taken_down
from pipelines.errors import Removal
from pipelines.lineage.takedown.match import Selector
from pipelines.lineage.takedown.take_down import take_down
from pipelines.schemas import REMOVALS, read_table, table_of, write_table
from pipelines.store import Artefact
from pipelines.tombstones import Tombstones

FIRST = (Video("a", (0, 1, 2)), Video("b", (10, 11, 12)))
SECOND = (Video("d", (0, 30, 31), copy=1, source="other"),)


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.ingest("pool-0001", FIRST)
    made.ingest("pool-0002", SECOND)
    made.distinct()
    return made


def removals_of(artefact: Artefact) -> dict[str, dict[str, Any]]:
    return {row["clip_id"]: row for row in read_table(artefact.path / "removals.parquet", REMOVALS).to_pylist()}


def test_a_dropped_twin_is_not_promoted(world: World) -> None:
    before = kept_ids(world.store.current("distinct_clips"))
    assert "c-a-0" in before and "c-d-0" not in before  # the better copy was kept
    name = take_down(world.store, Selector("video", "v-a"), "asked by its author")["takedown"]
    after = world.distinct()
    assert kept_ids(after) == before - {"c-a-0", "c-a-1", "c-a-2"}
    removed = removals_of(after)
    assert {clip: row["reason"] for clip, row in removed.items()} == dict.fromkeys(("c-a-0", "c-a-1", "c-a-2", "c-d-0"), Removal.TAKEN_DOWN)
    assert all(row["detail"] == f"taken down by {name}: asked by its author" and row["twin_id"] == "" for row in removed.values())


@pytest.mark.parametrize("copy", [0, 4])
def test_a_twin_that_arrives_later_stays_out_and_names_what_it_shows(world: World, copy: int) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    world.ingest("pool-0003", [Video("late", (1, 60, 2), copy=copy)])
    after = world.distinct()
    assert kept_ids(after) & {"c-late-0", "c-late-1", "c-late-2"} == {"c-late-1"}
    for clip, twin in (("c-late-0", "c-a-1"), ("c-late-2", "c-a-2")):
        row = removals_of(after)[clip]
        assert row["reason"] == Removal.TAKEN_DOWN and row["twin_id"] == twin and row["similarity"] > 0.8
        assert row["detail"] == f"shows what {twin} shows, which was taken down"


def test_the_same_stream_under_another_name_and_container_stays_out(world: World) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    world.ingest("pool-0003", [Video("a", (0, 1, 2), container="mkv", source="renamed")])
    after = world.distinct()
    assert not any(clip.startswith("c-a") for clip in kept_ids(after)) and "c-a-1-mkv-made" in removals_of(after)


def test_the_twins_stream_in_another_container_stays_out(world: World) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    world.ingest("pool-0003", [Video("d", (0, 30, 31), copy=1, container="mkv")])
    after = world.distinct()
    assert kept_ids(after) & {"c-d-0", "c-d-0-mkv-made"} == set() and {"c-d-1", "c-d-2"} <= kept_ids(after)
    row = removals_of(after)["c-d-0-mkv-made"]
    assert row["reason"] == Removal.TAKEN_DOWN and row["twin_id"] in {"c-d-0", "c-a-0"}


def test_a_taken_clip_covers_its_seconds_when_its_video_is_cut_anew(world: World) -> None:
    """The source of what was taken down is deleted, all clips are made anew, and no vector of before is left to compare with."""
    take_down(world.store, Selector("video", "v-a"), "r")
    for batch in ("pool-0001", "pool-0002"):
        shutil.rmtree(world.store.root / "artefacts" / "clip_embeddings" / batch)
    world.ingest("pool-0001", FIRST, config={"cut": 2}, lost=["a"])
    world.ingest("pool-0002", [Video("d", (0, 30, 31), copy=1, source="other", cut="new")], config={"cut": 2})
    kept = kept_ids(world.distinct())
    assert "c-d-0-mp4-new" not in kept and {"c-d-1-mp4-new", "c-d-2-mp4-new", "c-b-0"} <= kept


def test_a_late_twin_of_a_clip_that_the_pool_has_lost_stays_out(world: World) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    world.ingest("pool-0001", FIRST, config={"cut": 2}, lost=["a"])
    world.ingest("pool-0003", [Video("late", (1, 60, 2), copy=4)])
    pairs = [(world.store.current("clips", key), world.store.current("clip_embeddings", key)) for key in ("pool-0001", "pool-0002", "pool-0003")]
    assert len(read_taken_down(world.store, pairs).former) == 1
    after = world.distinct()
    assert kept_ids(after) & {"c-late-0", "c-late-1", "c-late-2"} == {"c-late-1"}
    assert removals_of(after)["c-late-0"]["twin_id"] == "c-a-1" and removals_of(after)["c-late-0"]["similarity"] > 0.8


def test_without_takedowns_nothing_changes(world: World, tmp_path: Path) -> None:
    before = world.store.current("distinct_clips")
    assert before.config == {} and world.distinct().path == before.path
    pairs = {key: (world.store.current("clips", key).path, world.store.current("clip_embeddings", key).path) for key in ("pool-0001", "pool-0002")}
    (tmp_path / "plain").mkdir()
    build_distinct(tmp_path / "plain", pairs, *(world.store.current(name).path for name in ("target_videos", "target_embeddings")))
    files = {path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    assert files == {path.name: path.read_bytes() for path in before.path.iterdir() if path.name != "MANIFEST.json"}
    assert not TakenDown() and not read_taken_down(world.store, [])


def test_another_takedown_is_another_identity_and_the_same_one_is_not(world: World) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    first = world.distinct()
    assert world.distinct().path == first.path and first.config["tombstones"]
    take_down(world.store, Selector("video", "v-a"), "asked again")
    assert world.distinct().path == first.path
    take_down(world.store, Selector("video", "v-b"), "r")
    assert world.distinct().path != first.path


def test_the_check_finds_what_was_taken_down_and_is_still_there(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "distinct"
    shutil.copytree(world.store.current("distinct_clips").path, folder)
    assert not failed(check_distinct(folder, Tombstones(("t",), frozenset({"c-x-0"}))))
    for tombstones in (Tombstones(("t",), frozenset({"c-b-0"})), Tombstones(("t",), frozenset(), frozenset({"v-b"}))):
        assert set(failed(check_distinct(folder, tombstones))) == {"removals_explained"}
    rows = read_table(folder / "removals.parquet", REMOVALS).to_pylist()
    promoted = [{**row, "reason": Removal.TAKEN_DOWN.value, "twin_id": "c-b-0"} for row in rows]
    write_table(table_of(REMOVALS, promoted), folder / "removals.parquet", REMOVALS)
    assert set(failed(check_distinct(folder, Tombstones(("t",), frozenset({"c-x-0"}))))) == {"removals_explained"}


def test_leaks_that_were_taken_down_are_counted_once(world: World, tmp_path: Path) -> None:
    targets = world._make("target_videos", lambda folder: _target(folder, world), config={"with": "targets"})
    world._make("target_embeddings", lambda folder: embed(folder, targets.path), [targets])
    assert removals_of(world.distinct())["c-b-0"]["reason"] == Removal.EVALUATION_LEAK
    take_down(world.store, Selector("video", "v-b"), "r")
    after = world.distinct()
    assert removals_of(after)["c-b-0"]["reason"] == Removal.TAKEN_DOWN
    assert json.loads((after.path / "leaks.json").read_text())["clips"] == 0


def _target(folder: Path, world: World) -> None:
    write_clips(folder, world.media, "targets", [Video("t", (10,), copy=6, source="push/eval")])


def test_reports_count_what_was_taken_down_and_show_no_picture_of_it(world: World, tmp_path: Path) -> None:
    take_down(world.store, Selector("video", "v-a"), "r")
    after = world.distinct()
    chain = chain_of(world.store)
    (loss,) = [loss for loss in losses_of(chain) if loss.reason == Removal.TAKEN_DOWN]
    assert loss.count == 4 and all(row["clip"] is None for row in loss.examples) and {Path(row["path"]).name for row in loss.examples} == {"a.mp4", "d.mp4"}
    (total,) = [item for item in sums_of(chain) if item.left[0] == "clips cut"]
    assert total.agrees and ("taken down", 4) in total.right and ("duplicates and leaks removed", 0) not in total.right
    clips = [item.path for item in chain.clips.values()]
    draw_contact_removed(tmp_path / "sheet.png", after.path, clips, world.store.current("target_videos").path, ThumbnailConfig())
    assert (tmp_path / "sheet.png").stat().st_size < 3_000  # the word "nothing"
