"""Takedown: what is meant is found in any table, its twins go with it, and the report tells what it touches."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from takedown_world import Video, World, data_of, kept_ids

from pipelines.errors import InputError, MissingArtefact, Removal, StoreError
from pipelines.lineage.exposure import read_spec
from pipelines.lineage.takedown import take_down as takedown
from pipelines.lineage.takedown.match import Selector, match_videos, selector_of
from pipelines.lineage.takedown.report import report_text
from pipelines.lineage.takedown.take_down import take_down
from pipelines.lineage.takedown.twins import find_twins
from pipelines.lineage.trainings import Trainings
from pipelines.schemas import REMOVALS, SHARD_INDEX, TOMBSTONES, read_table
from pipelines.shards.index import INDEX_FILE
from pipelines.tombstones import read_tombstones, takedown_names, tombstone_rows, write_tombstones

ANN = (Video("a", (0, 1, 2)), Video("b", (10, 11, 12)))
LATER = (
    Video("d", (0, 30, 31), copy=1, source="other", uploader="bob", licence="MIT"),  # its first clip is that of a
    Video("e", (0, 40, 11), copy=2, source="other", uploader="cid", licence="MIT"),  # that of a again, and one of b
    Video("f", (50, 51, 52), source="third/x", uploader="cid", licence="CC-BY"),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two batches with planted twins, up to a bundle. Not to be changed."""
    made = World(tmp_path_factory.mktemp("takedown"))
    made.ingest("pool-0001", ANN)
    made.ingest("pool-0002", LATER)
    return made.whole()


@pytest.fixture
def world(whole: World, tmp_path: Path) -> World:
    """A copy to take down in."""
    shutil.copytree(whole.root / "store", tmp_path / "store")
    made = World(tmp_path)
    made.media = whole.media
    return made


def tombstones_of(world: World) -> list[dict[str, Any]]:
    return tombstone_rows(world.store.root).to_pylist()


@pytest.mark.parametrize(
    ("rule", "value", "videos", "why"),
    [
        ("video", "v-a", {"v-a"}, "its video id is v-a"), ("source", "oth", {"v-d", "v-e"}, "its source is other"), ("source", "third/", {"v-f"}, "its source is third/x"),
        ("uploader", "ann", {"v-a", "v-b"}, "its uploader is ann"), ("licence", "MIT", {"v-d", "v-e"}, "its licence is MIT"),
    ],
)  # fmt: skip
def test_selectors_mean_videos_and_say_why(whole: World, rule: str, value: str, videos: set[str], why: str) -> None:
    found = match_videos(whole.store, Selector(rule, value))
    assert {match.video_id for match in found} == videos and all(why in match.why for match in found)


def test_a_path_and_the_beginning_of_a_path_mean_its_videos(whole: World) -> None:
    path = ANN[0].path(whole.media)
    (match,) = match_videos(whole.store, Selector("video", str(path)))
    assert match.video_id == "v-a" and match.paths == {str(path)} and match.uploaders == {"ann"} and match.licences == {"CC0"}
    assert {match.video_id for match in match_videos(whole.store, Selector("source", str(path.parent)))} == {"v-a", "v-b"}


def test_a_folder_that_ends_with_a_slash_means_no_other_that_begins_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.ingest("pool-0001", [Video("a", (0, 1), source="ann"), Video("b", (10, 11), source="annabelle")])
    for end, meant in (("", {"v-a", "v-b"}), ("/", {"v-a"})):
        assert {match.video_id for match in match_videos(world.store, Selector("source", str(world.media / "ann") + end))} == meant


def test_a_damaged_table_is_named_with_what_to_do_and_nothing_is_taken_down(world: World) -> None:
    damaged = world.store.current("videos", "pool-0001").path / "videos.parquet"
    damaged.write_bytes(b"PAR1" + bytes(40) + damaged.read_bytes()[44:])
    with pytest.raises(StoreError, match=r"videos\.parquet is damaged .* restore that file"):
        take_down(world.store, Selector("video", "v-f"), "asked")
    assert takedown_names(world.store.root) == ()


def test_a_disk_without_hard_links_keeps_tombstones_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    name = take_down(world.store, Selector("video", "v-f"), "asked")["takedown"]
    assert [path.name for path in (world.store.root / "tombstones").iterdir()] == [f"{name}.parquet"]
    with pytest.raises(StoreError, match="made before"):
        write_tombstones(world.store.root, name, [])
    assert read_tombstones(world.store.root).video_ids == {"v-f"}


@pytest.mark.parametrize(("rule", "value", "near"), [("licence", "mit", "MIT"), ("uploader", "anne", "ann"), ("source", "Othre", "other"), ("video", "elsewhere/a.mp4", "pool/a.mp4")])
def test_nothing_meant_is_an_error_that_names_near_misses(whole: World, rule: str, value: str, near: str) -> None:
    with pytest.raises(InputError, match=f"near misses: .*{near}"):
        match_videos(whole.store, Selector(rule, value))


def test_a_name_too_long_for_a_path_is_no_path(whole: World) -> None:
    with pytest.raises(InputError, match="there are 10 others"):
        match_videos(whole.store, Selector("video", 300 * "a"))


def test_exactly_one_selector_and_a_reason_are_asked_for(whole: World) -> None:
    for values in ({}, {"video": "a", "licence": "b"}, {"uploader": " "}):
        with pytest.raises(InputError, match="what to take down"):
            selector_of(**values)
    with pytest.raises(InputError, match="needs a reason"):
        take_down(whole.store, Selector("video", "v-a"), "  ", dry_run=True)


def test_a_file_of_the_same_stream_under_another_name_is_recognised(whole: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "renamed.mkv"
    copy.write_bytes(b"a copy")
    monkeypatch.setattr("pipelines.video.probe.probe_file", lambda path: {"video_id": "v-a"} if path == str(copy) else {})
    (match,) = match_videos(whole.store, Selector("video", str(copy)))
    assert match.video_id == "v-a" and match.why == {f"is the stream of {copy}"}


def test_a_video_is_found_by_a_shard_index_alone(world: World) -> None:
    for asset in ("videos", "clips", "distinct_clips"):
        shutil.rmtree(world.store.root / "artefacts" / asset)
    (match,) = match_videos(world.store, Selector("video", "v-f"))
    assert match.video_id == "v-f" and match.licences == {"CC-BY"} and match.uploaders == {"cid"}


def test_twins_are_found_through_the_kept_one_in_both_directions(whole: World) -> None:
    # a, d and e show one thing: one is kept, the others were dropped for it; whichever is taken, both others go.
    for taken, twins in (("v-a", {"c-d-0", "c-e-0"}), ("v-d", {"c-a-0", "c-e-0"}), ("v-e", {"c-a-0", "c-d-0", "c-b-1"}), ("v-f", set())):
        found = find_twins(whole.store, [taken])
        assert {twin.clip_id for twin in found} == twins
        for twin in found:
            assert twin.video_id == f"v-{twin.clip_id[2]}" and twin.twin_of.startswith("c-") and twin.similarity is not None and twin.similarity > 0.8
            assert twin.path and (twin.start_s, twin.end_s) == (2.0 * int(twin.clip_id[-1]), 2.0 * int(twin.clip_id[-1]) + 2.0)
    assert {"near_duplicate", "fingerprint"} & {twin.link for taken in ("v-a", "v-d", "v-e") for twin in find_twins(whole.store, [taken])}


def test_removals_alone_tell_the_twins(world: World) -> None:
    (world.store.current("distinct_clips").path / "pairs.parquet").unlink()  # as artefacts of older versions are
    for taken, twins in (("v-a", {"c-d-0", "c-e-0"}), ("v-d", {"c-a-0", "c-e-0"}), ("v-e", {"c-a-0", "c-d-0", "c-b-1"})):
        found = find_twins(world.store, [taken])
        assert {twin.clip_id for twin in found} == twins and {twin.link for twin in found} <= {"near_duplicate", "fingerprint"}


def test_a_twin_that_came_after_the_takedown_is_named_when_it_is_asked_again(world: World) -> None:
    first = take_down(world.store, Selector("video", "v-f"), "r")
    world.ingest("pool-0003", [Video("late", (51, 60), copy=4)])
    world.distinct()
    (world.store.current("distinct_clips").path / "pairs.parquet").unlink()  # found by comparing with what the pool has lost, say
    again = take_down(world.store, Selector("video", "v-f"), "r")
    assert again["new"] == {"videos": [], "twins": ["c-late-0"]} and again["earlier_takedowns"] == [first["takedown"]]


def test_twins_in_another_container_and_in_other_cuts_go_too(whole: World, world: World) -> None:
    world.ingest("pool-0003", [Video("d", (0, 30, 31), copy=1, container="mkv"), Video("d", (0, 30, 31), copy=1, cut="new")])
    assert {twin.clip_id for twin in find_twins(world.store, ["v-a"])} == {"c-d-0", "c-e-0", "c-d-0-mkv-made", "c-d-0-mp4-new"}


def test_tombstones_name_videos_whole_and_twins_clip_by_clip(world: World) -> None:
    report = take_down(world.store, Selector("video", "v-a"), "asked by its author")
    rows = tombstones_of(world)
    assert [(row["clip_id"], row["video_id"], row["rule"], row["value"]) for row in rows if row["rule"] == "video"] == [(None, "v-a", "video", "v-a")]
    twins = {row["clip_id"]: row for row in rows if row["rule"] == "twin"}
    assert set(twins) == {"c-d-0", "c-e-0"} and all(row["twin_of"] and row["similarity"] > 0.8 for row in twins.values())
    assert {row["reason"] for row in rows} == {"asked by its author"} and {row["takedown"] for row in rows} == {report["takedown"]}
    assert takedown_names(world.store.root) == (report["takedown"],) and report["takedown"][8] == "T" and report["takedown"][15:17] == "Z-"
    found = read_tombstones(world.store.root)
    assert found.covers("anything", "v-a") and found.covers("c-d-0", "v-d") and not found.covers("c-d-1", "v-d")
    assert read_table(world.store.root / "tombstones" / f"{report['takedown']}.parquet", TOMBSTONES).num_rows == 3


def test_a_rehearsal_tells_everything_and_writes_nothing(world: World) -> None:
    before = {path: path.read_bytes() for path in world.store.root.rglob("*") if path.is_file()}
    report = take_down(world.store, Selector("uploader", "ann"), "r", compact=True, dry_run=True)
    assert before == {path: path.read_bytes() for path in world.store.root.rglob("*") if path.is_file()}
    assert len(report["clips"]) == 6 and len(report["twins"]) == 3 and report["redaction"]["bytes"] > 0 and report["trainings"]
    text = report_text(report)
    assert "rehearsal, nothing is written" in text and "without --dry-run" in text


def test_asked_again_with_nothing_new_it_says_so_and_keeps_the_report(world: World) -> None:
    first = take_down(world.store, Selector("video", "v-a"), "r")
    page = world.store.root / "takedowns" / first["takedown"] / "report.json"
    before = page.read_bytes()
    for selector in (Selector("video", "v-a"), Selector("video", str(ANN[0].path(world.media)))):
        again = take_down(world.store, selector, "another reason")
        assert again["takedown"] == first["takedown"] and again["new"] == {"videos": [], "twins": []}
        assert f"nothing new: all of it is taken down already, by {first['takedown']}" in report_text(again)
    assert takedown_names(world.store.root) == (first["takedown"],) and page.read_bytes() == before
    more = take_down(world.store, Selector("uploader", "ann"), "r")
    assert more["new"]["videos"] == ["v-b"] and more["earlier_takedowns"] == [first["takedown"]]
    assert len(takedown_names(world.store.root)) == 2


def test_a_report_that_a_kill_kept_from_being_written_is_written_by_the_next_call(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(takedown, "_write", killed)
    with pytest.raises(RuntimeError, match="killed"):
        take_down(world.store, Selector("video", "v-a"), "the reason")
    monkeypatch.undo()
    (name,) = takedown_names(world.store.root)
    assert not (world.store.root / "takedowns" / name / "report.json").exists()
    take_down(world.store, Selector("video", "v-a"), "asked again")
    told = json.loads((world.store.root / "takedowns" / name / "report.json").read_text())
    assert told["asked"]["reason"] == "the reason" and told["new"] == {"videos": ["v-a"], "twins": ["c-d-0", "c-e-0"]} and told["earlier_takedowns"] == []


def test_bytes_may_be_overwritten_later_and_the_report_follows(world: World) -> None:
    first = take_down(world.store, Selector("video", "v-a"), "r")
    assert any("--compact" in step for step in first["next"])
    later = take_down(world.store, Selector("video", "v-a"), "r", compact=True)
    told = json.loads((world.store.root / "takedowns" / first["takedown"] / "report.json").read_text())
    assert told["redaction"] == later["redaction"] and told["compact"] and not any("--compact" in step for step in told["next"])
    assert told["new"] == first["new"] and {"c-a-1", "c-a-2"} < set(told["redaction"]["clips"]) <= {"c-a-0", "c-a-1", "c-a-2", "c-d-0", "c-e-0"}


def test_a_tar_that_was_damaged_and_restored_is_overwritten_and_the_report_follows(world: World) -> None:
    shards = world.store.current("training_shards").path
    index = read_table(shards / INDEX_FILE, SHARD_INDEX).to_pylist()
    tar = shards / next(row["shard"] for row in index if row["clip_id"] == "c-f-2")
    whole = tar.read_bytes()
    tar.write_bytes(b"no tar" * 400)
    first = take_down(world.store, Selector("video", "v-f"), "asked", compact=True)
    assert len(first["redaction"]["damaged"]) == 1 and any("could not be searched" in step for step in first["next"])
    tar.write_bytes(whole)
    take_down(world.store, Selector("video", "v-f"), "asked", compact=True)
    told = json.loads((world.store.root / "takedowns" / first["takedown"] / "report.json").read_text())
    assert told["redaction"]["damaged"] == [] and set(told["redaction"]["clips"]) == {"c-f-0", "c-f-1", "c-f-2"}
    assert not any("could not be searched" in step for step in told["next"]) and data_of("c-f-2")[:64] not in tar.read_bytes()


def test_only_one_takedown_is_made_at_a_time(world: World) -> None:
    with takedown._alone(world.store), pytest.raises(StoreError, match="another takedown"):
        take_down(world.store, Selector("video", "v-a"), "r")


def test_the_report_tells_mass_shards_trainings_and_what_stands_on_them(world: World) -> None:
    report = take_down(world.store, Selector("uploader", "ann"), "r")
    kept = kept_ids(world.store.current("distinct_clips"))
    taken = {clip for clip in kept if clip[2] in "ab"} | ({"c-d-0", "c-e-0", "c-e-2"} & kept)
    assert report["selection"]["unserved_mass"] == pytest.approx(len(taken) / len(kept)) and report["selection"]["by_target"] == {"push": pytest.approx(len(taken) / len(kept))}
    (shards,) = report["shards"]
    assert shards["clips"] == len(taken) and shards["bytes"] == sum(len(data_of(clip)) for clip in taken) and shards["unserved_mass"] == pytest.approx(len(taken) / len(kept))
    names = {row["artefact"]: row for row in report["trainings"]}
    assert set(names) == {"pretrained_encoder[nano]", "cooled_encoder[nano]"}
    cooled = names["cooled_encoder[nano]"]
    assert (cooled["first_phase"], cooled["last_phase"]) == ("pretrain", "cooldown") and [phase["phase"] for phase in cooled["phases"]] == ["pretrain", "cooldown"]
    assert {row["artefact"] for row in report["standing"]} == {"world_model[nano]", "robot_bundle[nano]"}
    assert {Path(row["path"]).name for row in report["files"]} == {"a.mp4", "b.mp4"} and {Path(row["path"]).name for row in report["twin_files"]} == {"d.mp4", "e.mp4"}
    held = {row["artefact"] for row in report["derived"]}
    assert {"videos[pool-0001]", "clips[pool-0001]", "clip_embeddings[pool-0001]", "clip_embeddings[pool-0002]", "distinct_clips", "curated_clips"} <= held
    text, page = report_text(report), (world.store.root / "takedowns" / report["takedown"] / "index.html").read_text()
    for words in ("unserved mass", "pretrained_encoder[nano]", "robot_bundle[nano]", "yours to delete", "tubelet curate"):
        assert words in text
    assert "http" not in page and "c-d-0" in page and "cooled_encoder[nano]" in page


def test_a_training_whose_lineage_cannot_be_told_is_counted_in(world: World) -> None:
    cooled = world.store.current("cooled_encoder", "nano")
    (cooled.path / "lineage.json").write_text(json.dumps({"exposures": [{"phase": "cooldown"}]}))
    report = take_down(world.store, Selector("video", "v-a"), "r")
    rows = {row["artefact"]: row for row in report["trainings"]}
    assert "problem" in rows["cooled_encoder[nano]"] and rows["pretrained_encoder[nano]"]["samples"] > 0
    assert "cannot be told, so count it in" in report_text(report)
    assert "robot_bundle[nano]" in {row["artefact"] for row in report["standing"]}


def test_makers_of_weights_from_elsewhere_are_to_be_asked(world: World) -> None:
    path = world.store.current("cooled_encoder", "nano").path / "lineage.json"
    record = {"name": "vitl.pt", "digest": "5" * 64, "licence": "MIT", "training_data": "no record"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "start_from": record}))
    report = take_down(world.store, Selector("video", "v-a"), "r")
    (step,) = [step for step in report["next"] if "vitl.pt" in step]
    assert "ask whoever made the weights vitl.pt 5555555555555555" in step and "cooled_encoder[nano]" in step and step in report_text(report)


def test_unfinished_trainings_on_the_shards_are_named(world: World) -> None:
    shards = world.store.current("training_shards")
    folder = world.store.root / "work" / "pretrained_encoder" / "big" / "x"
    (folder / "checkpoints" / "step-000040").mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"recipe": {"name": "big"}, "shards_folder": str(shards.path)}))
    (row,) = take_down(world.store, Selector("video", "v-f"), "r")["unfinished"]
    assert row["training"] == "pretrained_encoder[big]" and row["newest_checkpoint"] == "step-000040"


def test_long_words_in_what_a_training_was_asked_for_are_no_paths(world: World) -> None:
    work = world.store.root / "work" / "pretrained_encoder" / "nano" / "later"
    work.mkdir(parents=True)
    (work / "spec.json").write_text(json.dumps({"notes": 400 * "a"}))
    assert take_down(world.store, Selector("video", "v-f"), "asked", dry_run=True)["unfinished"] == []


def test_html_escapes_what_the_store_and_the_reason_say(world: World) -> None:
    report = take_down(world.store, Selector("video", "v-f"), "<script>alert(1)</script>")
    page = (world.store.root / "takedowns" / report["takedown"] / "index.html").read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


FOOTAGE = st.integers(0, 5)
VIDEOS = st.lists(st.tuples(FOOTAGE, FOOTAGE, st.integers(0, 3)), min_size=3, max_size=5)


@given(VIDEOS, st.data())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_after_any_takedown_nothing_taken_is_served_and_nothing_else_is_lost(tmp_path_factory: pytest.TempPathFactory, planted: list[tuple[int, int, int]], data: st.DataObject) -> None:
    """Videos of two clips, the first of each from a few pieces of footage that others show too, the second its own."""
    letters = "ghijk"
    videos = [Video(letters[at], (first, 100 + at), copy=at, uploader=f"u{second % 2}", source=f"s{copy % 2}") for at, (first, second, copy) in enumerate(planted)]
    shown = {video.clip_id(number): footage for video in videos for number, footage in enumerate(video.footage)}
    world = World(tmp_path_factory.mktemp("any"))
    world.ingest("pool-0001", videos[:2])
    world.ingest("pool-0002", videos[2:])
    world.whole()
    rule, value = data.draw(st.sampled_from([("video", videos[0].video_id), ("video", videos[-1].video_id), ("uploader", videos[0].uploader), ("source", videos[1].source)]))
    chosen = [video for video in videos if value in (video.video_id, getattr(video, rule, None))]
    report = take_down(world.store, Selector(rule, value), "r", compact=True)
    gone = {footage for video in chosen for footage in video.footage}

    taken = {clip for clip, footage in shown.items() if footage in gone}
    own = {video.clip_id(number) for video in chosen for number in range(2)}
    assert {row["clip_id"] for row in report["clips"]} == own and {row["clip_id"] for row in report["twins"]} == taken - own

    found = read_tombstones(world.store.root)
    index = read_table(world.store.current("training_shards").path / INDEX_FILE, SHARD_INDEX)
    assert {clip for clip, video in zip(index["clip_id"].to_pylist(), index["video_id"].to_pylist(), strict=True) if found.covers(clip, video)} == taken & set(index["clip_id"].to_pylist())
    everything = [path.read_bytes() for path in world.store.root.rglob("*.tar")]
    assert not any(data_of(clip) in tar or data_of(clip)[:64] in tar for clip in taken for tar in everything)
    assert all(any(data_of(clip) in tar for tar in everything) for clip in set(index["clip_id"].to_pylist()) - taken)

    again = [Video(video.name, video.footage, copy=video.copy, source="renamed", uploader="other", container="mkv") for video in chosen]
    late = Video("z", (videos[0].footage[0], 200), copy=9, uploader="other")
    world.ingest("pool-0003", [*again, late])
    if len(taken) < len(shown):
        _check_rebuilt(world, shown, gone, taken, late)
    _check_exposures(world, report, taken)


def _check_rebuilt(world: World, shown: dict[str, int], gone: set[int], taken: set[str], late: Video) -> None:
    distinct = world.distinct()
    kept = kept_ids(distinct)
    assert not any(shown.get(clip) in gone for clip in kept) and not any("mkv" in clip for clip in kept)
    assert {shown[clip] for clip in kept & set(shown)} | ({late.footage[0]} if late.clip_id(0) in kept else set()) == set(shown.values()) - gone
    assert late.clip_id(1) in kept and (late.clip_id(0) in kept) <= (late.footage[0] not in gone)
    reasons = {row["clip_id"]: row["reason"] for row in read_table(distinct.path / "removals.parquet", REMOVALS).to_pylist()}
    assert {clip for clip in reasons if clip in taken} == taken and all(reasons[clip] == Removal.TAKEN_DOWN for clip in taken)


def _check_exposures(world: World, report: dict[str, Any], taken: set[str]) -> None:
    trainings = Trainings(world.store)
    told = {row["digest"]: row for row in report["trainings"]}
    for asset in ("pretrained_encoder", "cooled_encoder"):
        artefact = world.store.current(asset, "nano")
        assert read_spec(artefact.path) is not None
        samples, seconds = 0, 0.0
        for training in trainings.behind(artefact):
            own = np.isin(training.pool.column("clip_id"), sorted(taken))
            samples, seconds = samples + int(training.shown.samples[own].sum()), seconds + float(training.shown.seconds[own].sum())
        assert told.get(artefact.digest, {"samples": 0})["samples"] == samples and told.get(artefact.digest, {"seconds": 0.0})["seconds"] == pytest.approx(seconds)


def test_a_store_without_what_is_asked_for_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(InputError, match="nothing in the store"):
        match_videos(world.store, Selector("video", "v-a"))
    with pytest.raises(MissingArtefact):
        world.store.current("curated_clips")
