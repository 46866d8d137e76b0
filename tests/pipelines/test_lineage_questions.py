"""The ledger's questions: what a name means, what stands behind an artefact, who saw a clip, a video, an uploader; from files alone."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import schemas
from pipelines.errors import InputError
from pipelines.lineage import ledger, trainings
from pipelines.lineage.answers.ask import ask
from pipelines.lineage.answers.page import folder_name, render, timeline, write_answer
from pipelines.lineage.answers.subject import subject_of
from pipelines.lineage.answers.tables import write_tables
from pipelines.lineage.exposure import ExposureSpec, expose, exposures
from pipelines.lineage.render import answer_text
from pipelines.lineage.spans import merge_by_group, spans_text
from pipelines.lineage.trainings import Trainings, phases
from pipelines.lineage.tree import descendants, fan_in
from pipelines.shards.geometry import ClipGeometry
from pipelines.store import Artefact, Store
from pipelines.tombstones import write_tombstones

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=16, static_share=0.25)
UPLOADERS = {"video-a": "ann", "video-b": "bob", "video-c": None}
EVIL = "<script>alert(1)</script>"


class Chain:
    """A store from three batches of really encoded videos to a deployed robot, with small stand-ins for the weights."""

    def __init__(self, root: Path, made_clips: Path, made_shards: Path) -> None:
        self.store, self.made, self.made_shards = Store.open(root), {}, made_shards
        self.clips = schemas.read_table(made_clips / "clips.parquet", schemas.CLIPS).to_pylist()
        for clip in self.clips:
            clip.update(batch=f"batch-{clip['video_id'][-1]}", uploader=UPLOADERS[clip["video_id"]])
        self.twin = next(clip for clip in self.clips if clip["video_id"] == "video-a")
        self.gone = {**self.twin, "clip_id": "0123456789abcdef0123"}  # a near-duplicate that was removed
        for name in UPLOADERS:
            self.batch(name)
        merged = [self.made[f"{asset}[batch-{name[-1]}]"] for name in UPLOADERS for asset in ("clips", "clip_embeddings")]
        self.produce("distinct_clips", self._distinct, merged)
        self.produce("clip_clusters", self._clusters, [self.made["distinct_clips"]])
        self.produce("curated_clips", self._selection, [self.made["distinct_clips"], self.made["clip_clusters"]])
        self.produce("training_shards", self._shards, [self.made["distinct_clips"], self.made["curated_clips"]])
        self.train("pretrained_encoder", "pretrain", 40, [])
        self.train("cooled_encoder", "cooldown", 10, ["pretrained_encoder"], replaced=[(3, 1), (9, 1)])
        self.produce("world_model", lambda folder: (folder / "lineage.json").write_text('{"episodes": {}}'), [self.made["cooled_encoder"]], "nano")
        self.produce("robot_bundle", lambda folder: None, [self.made["world_model"]], "nano", bundle="feedfacefeedfacefeedfacefeedface")
        self.produce("robot_deployment", lambda folder: None, [self.made["robot_bundle"]], "sim")

    def produce(self, asset: str, fill: Callable[[Path], Any], inputs: list[Artefact], partition: str | None = None, **summary: Any) -> Artefact:
        def build(folder: Path) -> dict[str, Any]:
            fill(folder)
            return {"note": asset, **summary}

        item = self.store.produce(asset, build, inputs=inputs, partition=partition, config=summary)
        self.store.accept(item, {})
        self.made[asset if partition in (None, "nano", "sim") else item.key] = item
        return item

    def batch(self, name: str) -> None:
        key, own = f"batch-{name[-1]}", [clip for clip in [*self.clips, self.gone] if clip["video_id"] == name]
        row = {
            "video_id": name, "batch": key, "source": "made", "path": own[0]["path"], "licence": "CC0-1.0", "uploader": UPLOADERS[name], "duration_s": 3.0,
            "frames": 60, "codec": "h264", "width": 64, "height": 48,
        }  # fmt: skip
        broken = [{"path": "/films/broken.mp4", "batch": key, "source": "made", "code": "truncated", "detail": "ends early"}] if name == "video-a" else []

        def videos(folder: Path) -> None:
            schemas.write_table(schemas.table_of(schemas.VIDEOS, [row]), folder / "videos.parquet", schemas.VIDEOS)
            schemas.write_table(schemas.table_of(schemas.QUARANTINE, broken), folder / "quarantine.parquet", schemas.QUARANTINE)

        def vectors(folder: Path) -> None:
            (folder / "clip_ids.json").write_text(json.dumps([clip["clip_id"] for clip in own]))

        self.produce("videos", videos, [], key)
        self.produce("clips", lambda folder: self._write(schemas.CLIPS, own, folder / "clips.parquet"), [self.made[f"videos[{key}]"]], key, clips=len(own))
        self.produce("clip_embeddings", vectors, [self.made[f"clips[{key}]"]], key, clips=len(own))

    def train(self, asset: str, phase: str, steps: int, parents: list[str], **changes: Any) -> None:
        spec = spec_of(phase, steps, self.made["training_shards"].digest, **changes)
        inputs = [self.made[name] for name in ("training_shards", *parents)]
        self.produce(asset, lambda folder: (folder / "lineage.json").write_text(json.dumps({"exposures": [dataclasses.asdict(spec)]})), inputs, "nano")

    @staticmethod
    def _write(schema: Any, rows: list[dict[str, Any]], path: Path) -> None:
        schemas.write_table(schemas.table_of(schema, rows), path, schema)

    def _shards(self, folder: Path) -> None:
        shutil.copytree(self.made_shards, folder, dirs_exist_ok=True)
        rows = schemas.read_table(folder / "shard_index.parquet", schemas.SHARD_INDEX).to_pylist()
        self._write(schemas.SHARD_INDEX, [{**row, "uploader": None} for row in rows], folder / "shard_index.parquet")  # as older shards are

    def _distinct(self, folder: Path) -> None:
        removed = {"clip_id": self.gone["clip_id"], "video_id": "video-a", "reason": "near_duplicate", "twin_id": self.twin["clip_id"], "similarity": 0.97, "detail": "seen before"}
        self._write(schemas.CLIPS, self.clips, folder / "clips.parquet")
        self._write(schemas.REMOVALS, [removed], folder / "removals.parquet")

    def _clusters(self, folder: Path) -> None:
        rows = [{"clip_id": clip["clip_id"], "cluster": 3, "coarse_cluster": 1, "similarity": 0.5, "novel": False} for clip in self.clips]
        self._write(schemas.ASSIGNMENTS, rows, folder / "assignments.parquet")

    def _selection(self, folder: Path) -> None:
        rows = [
            {"clip_id": clip["clip_id"], "video_id": clip["video_id"], "cluster": 3, "weight": 0.1, "target": "knots", "uniform_weight": 0.05,
             "credit_targets": ["knots", "uniform"], "credit_shares": [0.75, 0.25]}
            for clip in self.clips
        ]  # fmt: skip
        self._write(schemas.SELECTION, rows, folder / "selection.parquet")


def spec_of(phase: str, steps: int, shards: str, **changes: Any) -> ExposureSpec:
    sources = [{"name": "training_shards", "weight": 1.0, "shards": "training_shards", "only": None, "still": False, "digest": shards}]
    return ExposureSpec(phase=phase, seed=5, steps=steps, global_batch=8, geometry=GEOMETRY.to_dict(), sources=sources, **changes)


@pytest.fixture(scope="module")
def whole(made_clips: Path, made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("questions") / "store", made_clips, made_shards)


@pytest.fixture
def chain(whole: Chain, tmp_path: Path) -> Chain:
    """A copy of the store that a test may change."""
    own = copy.copy(whole)
    own.store = Store(Path(shutil.copytree(whole.store.root, tmp_path / "store")))
    own.made = {name: own.store.load(own.store.root / item.path.relative_to(whole.store.root)) for name, item in whole.made.items()}
    return own


def content(chain: Chain, name: str | None = None, **groups: str) -> dict[str, Any]:
    return ask(chain.store, name, groups).content  # type: ignore[arg-type]


# -- names -------------------------------------------------------------------------------------------------------


def test_names_of_artefacts_clips_videos_and_files_mean_what_they_name(whole: Chain) -> None:
    clip, cooled, bundle = whole.clips[1], whole.made["cooled_encoder"], whole.made["robot_bundle"]
    work = whole.store.work_folder("cooled_encoder", "nano", cooled.identity) / "checkpoints" / "step-000000005"
    work.mkdir(parents=True, exist_ok=True)
    (work / "MANIFEST.json").write_text('{"files": {}}')
    names = {
        cooled.digest: ("artefact", "cooled_encoder[nano]"), cooled.digest[:8]: ("artefact", "cooled_encoder[nano]"), str(cooled.path): ("artefact", "cooled_encoder[nano]"),
        str(work): ("artefact", "cooled_encoder[nano]"), cooled.identity: ("artefact", "cooled_encoder[nano]"), "clips[batch-b]": ("artefact", "clips[batch-b]"),
        bundle.summary["bundle"][:10]: ("artefact", "robot_bundle[nano]"), clip["clip_id"]: ("clip", clip["clip_id"]), clip["clip_id"][:8]: ("clip", clip["clip_id"]),
        "video-b": ("video", "video-b"), "b.mp4": ("video", "video-b"), clip["path"]: ("video", clip["video_id"]),
        "/".join(Path(clip["path"]).parts[-2:]): ("video", clip["video_id"]),
    }  # fmt: skip
    for name, (kind, meant) in names.items():
        subject = subject_of(whole.store, name)
        assert (subject.kind, subject.name) == (kind, meant), name


def test_relative_path_of_a_source_is_taken_from_the_current_folder(whole: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(whole.clips[0]["path"]).parent
    monkeypatch.chdir(folder.parent)
    assert subject_of(whole.store, f"{folder.name}/c.mp4").name == "video-c"
    assert subject_of(whole.store, f"./{folder.name}/c.mp4").name == "video-c"


def test_unknown_and_ambiguous_names_list_what_may_be_meant(chain: Chain) -> None:
    for name, nearest in (("cooled_encode", r"cooled_encoder\[nano\]"), ("bb.mp4", r"b\.mp4"), (chain.clips[0]["clip_id"][:9] + "ffffff", chain.clips[0]["clip_id"])):
        with pytest.raises(InputError, match=nearest):
            subject_of(chain.store, name)
    with pytest.raises(InputError, match="nothing in"):
        subject_of(chain.store, "video-")  # too short for a start
    twins = [{**chain.clips[0], "clip_id": f"aaaaaaaa{number}", "path": f"/films/{number}/same.mp4", "video_id": f"bbbbbbbb{number}"} for number in range(2)]
    chain.produce("clips", lambda folder: chain._write(schemas.CLIPS, twins, folder / "clips.parquet"), [], "batch-z")
    for name, meant in (("aaaaaaaa", "clip aaaaaaaa0, clip aaaaaaaa1"), ("same.mp4", "video bbbbbbbb0, video bbbbbbbb1")):
        with pytest.raises(InputError, match=meant):
            subject_of(chain.store, name)
    assert subject_of(chain.store, "1/same.mp4").name == "bbbbbbbb1"


def test_file_that_never_became_a_video_is_told_with_its_reason(whole: Chain) -> None:
    with pytest.raises(InputError, match=r"videos\[batch-a\].*truncated \(ends early\)"):
        subject_of(whole.store, "broken.mp4")


def test_training_that_has_not_ended_is_named(chain: Chain) -> None:
    work = chain.store.work_folder("cooled_encoder", "nano", "0" * 16)
    with pytest.raises(InputError, match=r"has not ended.*cooled_encoder\[nano\]"):
        subject_of(chain.store, str(work))


# -- an artefact -------------------------------------------------------------------------------------------------


def test_deployed_bundle_answers_with_source_files_and_seconds(whole: Chain) -> None:
    told = content(whole)
    assert told["subject"]["name"] == "robot_deployment[sim]" and told["untold"] == []
    assert {Path(row["path"]).name for row in told["videos"]} == {"a.mp4", "b.mp4", "c.mp4"}
    for row in told["videos"]:
        spans = np.array(row["spans_s"])
        assert spans.min() >= 0 and spans.max() <= 3.0 + 1e-3 and (spans[1:, 0] > spans[:-1, 1]).all()
        assert row["distinct_seconds"] == pytest.approx((spans[:, 1] - spans[:, 0]).sum())
    assert told["total"]["samples"] == 400 and told["total"]["stand_ins"] == 2 and told["total"]["stand_in_share"] == 2 / 400
    text = answer_text(told)
    assert "a.mp4" in text and spans_text(told["videos"][0]["spans_s"]) in text and "400 samples" in text


def test_sums_by_source_licence_and_uploader_agree_with_the_exposures(whole: Chain) -> None:
    told = content(whole, "cooled_encoder")
    expected: dict[str, int] = {}
    for _, spec, pool in phases(whole.store, whole.made["cooled_encoder"]):
        for row in exposures(pool, expose(pool, spec, whole.store.root)).to_pylist():
            name = UPLOADERS[row["video_id"]] or "unknown"
            expected[name] = expected.get(name, 0) + row["samples"]
    assert {row["name"]: row["samples"] for row in told["uploaders"]} == expected
    for group in ("sources", "licences", "uploaders"):
        for column in ("samples", "seconds", "distinct_seconds"):
            assert sum(row[column] for row in told[group]) == pytest.approx(told["total"][column])
        assert sum(row["share_of_samples"] for row in told[group]) == pytest.approx(1)
    assert sum(row["seconds"] for row in told["videos"]) == pytest.approx(sum(row["seconds"] for row in told["phases"]))


def test_takedown_that_touches_a_checkpoint_is_told_with_what_was_shown(chain: Chain) -> None:
    before = {row["video_id"]: row for row in content(chain, "cooled_encoder")["videos"]}
    stone = {"clip_id": None, "video_id": "video-a", "reason": "asked", "added": "2026-01-02", "takedown": "first", "rule": "uploader", "value": "ann"}
    write_tombstones(chain.store.root, "first", [stone])
    (row,) = content(chain, "cooled_encoder")["takedowns"]
    assert (row["takedown"], row["asked"], row["clips"], row["samples"]) == ("first", "uploader ann", 2, before["video-a"]["samples"])
    told = content(chain, "video-a")
    assert any("taken down by uploader ann (asked)" in note for note in told["notes"]) and all(clip["taken_down"] for clip in told["clips"])
    assert content(chain, "video-b")["notes"] == []


def test_clip_whose_bytes_were_overwritten_is_told_as_such(chain: Chain) -> None:
    folder, clip = chain.made["training_shards"].path, chain.twin["clip_id"]
    shard = next(row["shard"] for row in schemas.read_table(folder / "shard_index.parquet", schemas.SHARD_INDEX).to_pylist() if row["clip_id"] == clip)
    (folder / "REDACTIONS.json").write_text(json.dumps({shard: {"sha256": "0" * 64, "clips": [clip], "takedown": "first"}}))
    says = next(row["says"] for row in content(chain, clip)["stages"] if row["stage"] == "sharded")
    assert says.endswith("1 of 1 overwritten with zeros by takedown first")
    assert "1 of 2 overwritten" in next(row["says"] for row in content(chain, "video-a")["stages"] if row["stage"] == "sharded")


def test_lineage_that_cannot_be_drawn_again_still_shows_its_tree_and_says_why(chain: Chain) -> None:
    path = chain.made["pretrained_encoder"].path / "lineage.json"
    old = json.loads(path.read_text())
    del old["exposures"][0]["order"]
    path.write_text(json.dumps(old))
    told = content(chain, "cooled_encoder")
    assert told["untold"] and "order" in told["untold"][0]["why"] and told["tree"]["children"]
    assert "cannot be told" in answer_text(told) and "cannot be told" in render(told)
    (untold,) = {row["checkpoint"] for row in content(chain, "video-a")["untold"]} - {f"cooled_encoder[nano] {chain.made['cooled_encoder'].digest}"}
    assert untold.startswith("pretrained_encoder[nano]")
    assert "none has seen it" not in answer_text(content(chain, "video-a"))


def test_weights_from_elsewhere_are_named_wherever_they_may_have_seen_what_is_asked_about(chain: Chain) -> None:
    encoder = chain.made["pretrained_encoder"]
    content_before = json.loads((encoder.path / "lineage.json").read_text())
    record = {"name": "<vitl>.pt", "digest": "0123456789abcdef" * 4, "licence": "MIT", "training_data": "no record"}
    (encoder.path / "lineage.json").write_text(json.dumps({**content_before, "start_from": record}))
    line = "<vitl>.pt 0123456789abcdef, licence MIT; their training data: no record"
    told = content(chain, "world_model")
    assert [row["checkpoints"] for row in told["borrowed"]] == [[f"pretrained_encoder[nano] {encoder.digest}"]] and told["untold"] == []
    assert f"begun at the weights {line}" in answer_text(told) and html.escape(line) in render(told)
    gone = content(chain, chain.gone["clip_id"])
    text, page = answer_text(gone), render(gone)
    assert "1 cannot be told, or not wholly" in text and "none has seen it" not in text
    for place in (text, page):
        assert f"pretrained_encoder[nano] {encoder.digest}" in place and "their training data: no record" in place
    own = {**record, "digest": chain.made["curated_clips"].digest}  # an artefact of the store is told by its own lineage
    (encoder.path / "lineage.json").write_text(json.dumps({**content_before, "start_from": own}))
    assert content(chain, "world_model")["borrowed"] == [] and "none has seen it" in answer_text(content(chain, chain.gone["clip_id"]))


# -- a clip, a video, a group ------------------------------------------------------------------------------------


def test_clip_is_followed_through_every_stage_to_the_robot(whole: Chain) -> None:
    clip = whole.twin
    told = content(whole, clip["clip_id"])
    stages = {row["stage"]: row for row in told["stages"]}
    assert list(stages) == ["probed", "cut", "embedded", "compared", "clustered", "selected", "sharded"]
    for stage, asset in (("cut", f"clips[{clip['batch']}]"), ("compared", "distinct_clips"), ("selected", "curated_clips"), ("sharded", "training_shards")):
        assert stages[stage]["digest"] == whole.made[asset].digest
    assert "kept; stands for 1 removed (near duplicate): 0123456789abcdef0123" in stages["compared"]["says"]
    assert "weight 0.100000" in stages["selected"]["says"] and "knots 75%, uniform 25%" in stages["selected"]["says"]
    (row,) = stages["sharded"]["rows"]
    tar = (whole.made["training_shards"].path / row["shard"]).read_bytes()
    assert hashlib.sha256(tar[row["offset"] : row["offset"] + row["length"]]).hexdigest() == row["sha256"] and row["sha256"] in stages["sharded"]["says"]
    assert (told["subject"]["path"], told["subject"]["start_s"], told["subject"]["end_s"]) == (clip["path"], clip["start_s"], clip["end_s"])
    assert [row["artefact"] for row in told["stands_on_them"]] == ["world_model[nano]", "robot_bundle[nano]", "robot_deployment[sim]"]
    spans = np.array(told["spans_s"])
    assert spans.min() >= clip["start_s"] - 1e-6 and spans.max() <= clip["end_s"] + 1e-3


def test_clip_counts_equal_the_exposures_of_each_checkpoint(whole: Chain) -> None:
    for clip in whole.clips:
        told = {row["checkpoint"]: row for row in content(whole, clip["clip_id"])["checkpoints"]}
        counts: dict[str, int] = {}
        for checkpoint, spec, pool in phases(whole.store, whole.made["cooled_encoder"]):
            rows = {row["clip_id"]: row for row in exposures(pool, expose(pool, spec, whole.store.root)).to_pylist()}
            counts[spec.phase] = rows.get(clip["clip_id"], {"samples": 0})["samples"]
            assert told[checkpoint.key]["phases"].get(spec.phase, 0) == counts[spec.phase]
        assert told["cooled_encoder[nano]"]["samples"] == sum(counts.values())


def test_removed_clip_is_told_with_its_twin_and_was_seen_by_none(whole: Chain) -> None:
    told = content(whole, whole.gone["clip_id"])
    assert any(f"removed: near duplicate, twin {whole.twin['clip_id']}, similarity 0.970" in row["says"] for row in told["stages"])
    assert told["checkpoints"] == [] and "none has seen it" in answer_text(told)


def test_video_is_the_sum_of_its_clips(whole: Chain) -> None:
    told = content(whole, "a.mp4")
    own = [clip["clip_id"] for clip in [*whole.clips, whole.gone] if clip["video_id"] == "video-a"]
    assert {row["clip_id"] for row in told["clips"]} == set(own)
    assert sum(row["samples"] for row in told["clips"]) == told["total"]["samples"] == told["checkpoints"][0]["samples"] > 0
    assert {row["verdict"] for row in told["clips"]} == {"kept", "removed: near duplicate"}


def test_checkpoints_that_are_not_current_count_too(chain: Chain) -> None:
    older = chain.made["cooled_encoder"]
    chain.train("cooled_encoder", "cooldown", 20, ["pretrained_encoder"])
    told = content(chain, "video-a")
    digests = {row["digest"]: row["current"] for row in told["checkpoints"] if row["checkpoint"] == "cooled_encoder[nano]"}
    assert digests == {older.digest: False, chain.made["cooled_encoder"].digest: True}
    # Each phase counts once, however many checkpoints stand on it.
    assert {row["phases"]["pretrain"] for row in told["checkpoints"]} == {told["checkpoints"][-1]["samples"]}
    assert told["total"]["samples"] == told["checkpoints"][-1]["samples"] + sum(row["phases"].get("cooldown", 0) for row in told["checkpoints"])


def test_clip_that_only_older_artefacts_know_is_told_as_such(chain: Chain) -> None:
    chain.produce("clips", lambda folder: chain._write(schemas.CLIPS, [], folder / "clips.parquet"), [], "batch-a")
    chain.produce("videos", lambda folder: chain._write(schemas.VIDEOS, [], folder / "videos.parquet"), [], "batch-a", again=True)
    clip = next(clip for clip in chain.clips if clip["video_id"] == "video-a")
    told = content(chain, clip["clip_id"])
    assert told["notes"] == ["this clip is known from older artefacts only: no current batch has it"] and told["checkpoints"][0]["samples"] > 0
    for name in ("clips", "videos", "distinct_clips"):
        shutil.rmtree(chain.store.root / "artefacts" / name)
    assert subject_of(chain.store, clip["clip_id"]).kind == "clip"  # the shards still name it


def test_checkpoints_that_saw_an_uploader_a_licence_or_a_source(whole: Chain) -> None:
    by_video = {row["video_id"]: row for row in content(whole, "cooled_encoder")["videos"]}
    for column, value, videos in (("uploader", "ann", ["video-a"]), ("uploader", "unknown", ["video-c"]), ("licence", "CC0-1.0", list(by_video)), ("source", "made", list(by_video))):
        told = content(whole, **{column: value})
        (row,) = [row for row in told["checkpoints"] if row["checkpoint"] == "cooled_encoder[nano]"]
        assert row["samples"] == sum(by_video[name]["samples"] for name in videos) and row["videos"] == len(videos)
        assert row["seconds"] == pytest.approx(sum(by_video[name]["seconds"] for name in videos))
    with pytest.raises(InputError, match="nearest: ann"):
        content(whole, uploader="anna")
    with pytest.raises(InputError, match="more than one question"):
        ask(whole.store, "video-a", {"uploader": "ann"})


def test_uploader_corrected_after_the_shards_were_cut_is_found_by_both_names(chain: Chain) -> None:
    path = chain.made["training_shards"].path / "shard_index.parquet"
    rows = schemas.read_table(path, schemas.SHARD_INDEX).to_pylist()
    chain._write(schemas.SHARD_INDEX, [{**row, "uploader": "ann's old name" if row["video_id"] == "video-a" else row["uploader"]} for row in rows], path)
    first, second = content(chain, uploader="ann")["checkpoints"], content(chain, uploader="ann's old name")["checkpoints"]
    assert first == second and first[0]["samples"] > 0


# -- fan-in, files, pages ----------------------------------------------------------------------------------------


def test_merged_batches_are_recorded_and_shown_one_by_one(whole: Chain) -> None:
    distinct = whole.made["distinct_clips"]
    assert sorted(distinct.inputs) == sorted(f"{asset}[batch-{letter}]" for letter in "abc" for asset in ("clips", "clip_embeddings"))
    told = content(whole)
    assert [row["batch"] for row in told["batches"]] == ["batch-a", "batch-b", "batch-c"] and told["batches"] == fan_in(whole.store, distinct)
    for row in told["batches"]:
        for asset in ("clips", "clip_embeddings"):
            assert row["inputs"][asset] == whole.made[f"{asset}[{row['batch']}]"].digest
            assert row["inputs"][asset] in answer_text(told) and row["inputs"][asset] in render(told)
    tree = ask(whole.store, None, {}).text
    assert all(f"clips[batch-{letter}]  {whole.made[f'clips[batch-{letter}]'].digest}" in tree for letter in "abc")


def test_descendants_are_everything_made_from_an_artefact(whole: Chain) -> None:
    found = {item.asset for item in descendants(whole.store, [whole.made["clips[batch-b]"]])}
    assert {"distinct_clips", "training_shards", "robot_deployment"} <= found and "videos" not in found and "clips" not in found


def test_everything_from_the_store_is_escaped_on_the_pages(chain: Chain) -> None:
    path = chain.made["training_shards"].path / "shard_index.parquet"
    table = schemas.read_table(path, schemas.SHARD_INDEX)
    rows = [{**row, "licence": EVIL, "source": EVIL, "uploader": EVIL} for row in table.to_pylist()]
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), path, schemas.SHARD_INDEX)
    videos = [{**row, "path": f"/films/{EVIL}", "batch": EVIL} for row in schemas.read_table(chain.made["videos[batch-a]"].path / "videos.parquet", schemas.VIDEOS).to_pylist()]
    chain._write(schemas.VIDEOS, videos, chain.made["videos[batch-a]"].path / "videos.parquet")
    write_tombstones(chain.store.root, "evil", [{"clip_id": None, "video_id": "video-a", "reason": EVIL, "added": EVIL, "takedown": EVIL, "rule": EVIL, "value": EVIL}])
    for told in (content(chain), content(chain, "video-a"), content(chain, chain.clips[0]["clip_id"]), content(chain, uploader=EVIL)):
        page = render(told)
        assert "<script>alert" not in page and "&lt;script&gt;alert" in page
        assert page.count("<details") == page.count("</details>") and page.count("<table") == page.count("</table>")
        assert "src=" not in page and "href='#" in page and not re.search(r"https?://", page)


def test_every_video_on_the_page_stands_beside_its_own_length(whole: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    told = content(whole)
    lengths = {"a.mp4": 3.5, "b.mp4": 4.5, "c.mp4": 5.5}
    for row in told["videos"]:
        row["duration_s"] = lengths[Path(row["path"]).name]
    for unfolded in (20, 1):
        monkeypatch.setattr("pipelines.lineage.answers.page.OPEN", unfolded)
        rows = re.findall(r"<tr>.*?</tr>", render(told))
        for name, length in lengths.items():
            assert any(f"{name}</td>" in row and f"of {length} s" in row for row in rows), (name, unfolded)


def test_page_and_numbers_are_written_beside_each_other(whole: Chain, tmp_path: Path) -> None:
    for name in (None, "video-a", whole.clips[0]["clip_id"]):
        told = content(whole, name)
        page, numbers = write_answer(whole.store, told, tmp_path / folder_name(told["subject"]))
        assert json.loads(numbers.read_text()) == json.loads(json.dumps(told)) and page.read_text().startswith("<!doctype html>")
    page, _ = write_answer(whole.store, content(whole))
    assert page.is_relative_to(whole.store.root / "lineage")
    assert len({folder_name({"kind": "licence", "name": name}) for name in ("MIT", "MIT ", "M/T", "M T")}) == 4


def test_answers_need_no_database(chain: Chain) -> None:
    (chain.store.root / "dagster" / "history").mkdir(parents=True)
    with_it = [content(chain), content(chain, "video-a"), content(chain, uploader="ann")]
    shutil.rmtree(chain.store.root / "dagster")
    assert [content(chain), content(chain, "video-a"), content(chain, uploader="ann")] == with_it
    assert not (chain.store.root / "dagster").exists()


def test_tables_hold_checkpoints_exposures_selections_and_shards(whole: Chain, tmp_path: Path) -> None:
    answer = ask(whole.store, "world_model", {})
    written = {path.name: path for path in write_tables(whole.store, answer.trainings, tmp_path)}
    made = whole.made
    assert set(written) == {
        "checkpoints.parquet", f"exposures-pretrain-{made['pretrained_encoder'].digest}.parquet", f"exposures-cooldown-{made['cooled_encoder'].digest}.parquet",
        f"selections-{made['curated_clips'].digest}.parquet", f"shards-{made['training_shards'].digest}.parquet",
    }  # fmt: skip
    checkpoints = schemas.read_table(written["checkpoints.parquet"], schemas.CHECKPOINTS).to_pylist()
    assert [(row["asset"], row["step"]) for row in checkpoints] == [("pretrained_encoder", 40), ("cooled_encoder", 10)]
    shown = schemas.read_table(written[f"exposures-cooldown-{made['cooled_encoder'].digest}.parquet"], schemas.EXPOSURES)
    assert sum(shown["samples"].to_pylist()) == 80


def test_one_phase_is_drawn_once_however_many_checkpoints_stand_on_it(whole: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = trainings.expose
    monkeypatch.setattr(trainings, "expose", lambda *arguments: drawn.append(arguments[1].phase) or original(*arguments))
    ask(whole.store, "video-a", {})
    assert sorted(drawn) == ["cooldown", "pretrain"]
    assert ledger.source_seconds(whole.store, whole.made["robot_deployment"])


def test_artefact_below_any_training_says_so(whole: Chain) -> None:
    for name, words in (("training_shards", "its shards hold"), ("clips[batch-a]", "no training")):
        told = content(whole, name)
        assert told["total"]["samples"] == 0 and words in answer_text(told) and render(told)
    assert Trainings(whole.store).behind(whole.made["curated_clips"]) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40), st.integers(1, 15)), max_size=30))
@settings(deadline=None)
def test_spans_merged_by_group_cover_each_groups_seconds_once(pieces: list[tuple[int, int, int]]) -> None:
    group = np.array([piece[0] for piece in pieces], np.int64)
    spans = np.array([(start, start + length) for _, start, length in pieces], float).reshape(-1, 2)
    of, merged = merge_by_group(group, spans)
    for one in range(4):
        seconds = {second for start, end in spans[group == one] for second in range(int(start), int(end))}
        mine = merged[of == one]
        assert seconds == {second for start, end in mine for second in range(int(start), int(end))} and (mine[1:, 0] > mine[:-1, 1]).all()


def test_spans_read_as_seconds_and_timelines_stay_inside_their_line() -> None:
    assert spans_text([(12.0, 18.5), (31.0, 40.2)]) == "12.0-18.5 s, 31.0-40.2 s"
    assert spans_text([(0, 3.6), (3.6004, 6.7)]) == "0.0-6.7 s" and spans_text([(second, second + 0.5) for second in range(6)]).endswith("and 2 more")
    drawn = timeline([(-5.0, 1.0), (9.0, 1e9)], 10.0, 100)
    assert "x='0.0'" in drawn and all(float(x) + float(width) <= 100 + 1 for x, width in re.findall(r"x='([\d.]+)' width='([\d.]+)'", drawn))
