"""Lineage: what a checkpoint has seen is told from files alone, and equals what the loader really served."""

from __future__ import annotations

import collections
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import schemas
from pipelines.errors import InputError, MissingArtefact, StoreError
from pipelines.lineage import ledger
from pipelines.lineage.exposure import ExposureSpec, expose, exposures
from pipelines.lineage.render import episodes_text, seconds_html
from pipelines.lineage.spans import merge_by_group
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.store import Artefact, Store
from pipelines.tombstones import write_tombstones

GEOMETRY = ClipGeometry(frames=4, fps=4, height=16, width=16, static_share=0.25)


def spec_of(phase: str, steps: int, shards_digest: str = "", **changes: Any) -> ExposureSpec:
    source = {"name": "training_shards", "weight": 1.0, "shards": "training_shards", "only": None, "still": False, "digest": shards_digest}
    return ExposureSpec(phase=phase, seed=5, steps=steps, global_batch=8, geometry=GEOMETRY.to_dict(), sources=[source], **changes)


def write_lineage(folder: Path, *phases: ExposureSpec) -> None:
    (folder / "lineage.json").write_text(json.dumps({"parents": {}, "exposures": [dataclasses.asdict(spec) for spec in phases]}))


@pytest.fixture(scope="module")
def chain(made_clips: Path, made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Artefact]]:
    """A store from videos to a bundle, with real shards and small stand-ins for the weights."""
    store = Store.open(tmp_path_factory.mktemp("lineage") / "store")
    made: dict[str, Artefact] = {}

    def produce(asset: str, fill: Any, inputs: list[str], partition: str | None = None, **summary: Any) -> None:
        def build(folder: Path) -> dict[str, Any]:
            fill(folder)
            return {"note": asset, **summary}

        made[asset] = store.produce(asset, build, inputs=[made[name] for name in inputs], partition=partition)
        store.accept(made[asset], {})

    def videos(folder: Path) -> None:
        clips = schemas.read_table(made_clips / "clips.parquet", schemas.CLIPS).to_pylist()
        paths = {row["video_id"]: row["path"] for row in clips}
        rows = [{"video_id": name, "path": path, "uploader": "someone", "duration_s": 3.0} for name, path in sorted(paths.items())]
        schemas.write_table(schemas.table_of(schemas.VIDEOS, rows), folder / "videos.parquet", schemas.VIDEOS)

    def train(phase: str, steps: int) -> Any:
        return lambda folder: write_lineage(folder, spec_of(phase, steps, shards_digest=made["training_shards"].digest))

    def episodes(folder: Path) -> None:
        rows = [{"episode_id": f"e{i}", "source": "sim", "steps": 10 + i, "step_s": 0.25, "licence": "MIT"} for i in range(3)]
        schemas.write_table(schemas.table_of(schemas.EPISODES, rows), folder / "episodes.parquet", schemas.EPISODES)

    def world_model(folder: Path) -> None:
        (folder / "lineage.json").write_text(json.dumps({"episodes": {"train": ["e0", "e1"], "validation": ["e2"]}}))

    produce("videos", videos, [], "made-0001")
    produce("training_shards", lambda folder: shutil.copytree(made_shards, folder, dirs_exist_ok=True), ["videos"], clips=7)
    produce("pretrained_encoder", train("pretrain", 40), ["training_shards"], "nano", loss=0.5)
    produce("cooled_encoder", train("cooldown", 10), ["training_shards", "pretrained_encoder"], "nano")
    produce("robot_episodes", episodes, [], "simulated")
    produce("world_model", world_model, ["cooled_encoder", "robot_episodes"], "nano")
    return store, made


def test_exposures_recomputed_equal_exposures_served(made_shards: Path, tmp_path: Path) -> None:
    served: collections.Counter[str] = collections.Counter()
    mixture = open_mixture(WHOLE, made_shards)
    loaders = [ClipLoader(mixture, GEOMETRY, seed=5, phase="p", global_batch=8, rank=rank, world=2) for rank in range(2)]
    for part in loaders:
        for batch in part.batches(0, 25):
            served.update(shown.clip_id for shown in batch.shown)  # told by the tar's member
    rows = exposures(mixture, expose(mixture, spec_of("p", 25), tmp_path)).to_pylist()
    assert {row["clip_id"]: row["samples"] for row in rows} == dict(served)
    assert sum(row["samples"] for row in rows) == 200


def test_seconds_shown_are_those_between_the_frames_served(made_shards: Path, tmp_path: Path) -> None:
    mixture = open_mixture(WHOLE, made_shards)
    clips = ClipLoader(mixture, GEOMETRY, seed=5, phase="p", global_batch=8)
    rate = dict(zip(mixture.column("clip_id"), mixture.frame_rate, strict=True))
    shown: collections.Counter[str] = collections.Counter()
    for batch in clips.batches(0, 25):
        for clip_id, times in zip(batch.clip_ids, batch.times_s, strict=True):
            shown[clip_id] += float(np.ptp(times) + 1 / rate[clip_id])
    for row in exposures(mixture, expose(mixture, spec_of("p", 25), tmp_path)).to_pylist():
        assert row["seconds"] == pytest.approx(shown[row["clip_id"]], rel=0.03)  # served instants are rounded to whole frames


def test_stand_ins_of_failed_samples_are_counted_as_served(made_shards: Path, tmp_path: Path) -> None:
    mixture = open_mixture(WHOLE, made_shards)
    plain, replaced = (expose(mixture, spec_of("p", 4, replaced=pairs), tmp_path) for pairs in ([], [(3, 1), (9, 1), (30, 2)]))
    assert plain.samples.sum() == replaced.samples.sum() == 32
    assert not np.array_equal(plain.seconds, replaced.seconds)


def test_drawing_in_stretches_changes_nothing(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = open_mixture(WHOLE, made_shards)
    write_tombstones(tmp_path, "one", [{"clip_id": mixture.clip_id(0), "reason": "asked"}])
    spec = spec_of("p", 30, replaced=[(101, 1)], exclusions=[(11, ["one"])])
    whole = expose(mixture, spec, tmp_path)
    monkeypatch.setattr("pipelines.lineage.exposure.STRETCH", 7)
    monkeypatch.setattr("pipelines.lineage.exposure.GATHERED", 20)
    parts = expose(mixture, spec, tmp_path)
    assert np.array_equal(whole.samples, parts.samples) and np.allclose(whole.seconds, parts.seconds)
    assert np.array_equal(whole.span_row, parts.span_row) and np.array_equal(whole.spans, parts.spans)


def test_a_lineage_of_another_order_or_without_its_tombstones_is_refused(made_shards: Path, tmp_path: Path) -> None:
    values = dataclasses.asdict(spec_of("p", 3, exclusions=[(1, ["gone"])]))
    for other in ({**values, "order": 1}, {name: value for name, value in values.items() if name != "sources"}):
        with pytest.raises(StoreError, match="does not say what was drawn"):
            ExposureSpec.from_dict(other)
    with pytest.raises(StoreError, match="gone from the store"):
        expose(open_mixture(WHOLE, made_shards), ExposureSpec.from_dict(values), tmp_path)


def test_the_last_phase_in_the_file_is_the_one_that_made_the_checkpoint(tmp_path: Path) -> None:
    last = spec_of("cooldown", 3, replaced=[(1, 2)], shards_digest="d")
    write_lineage(tmp_path, spec_of("pretrain", 9), last)
    assert ledger.read_spec(tmp_path) == last
    (tmp_path / "lineage.json").write_text('{"episodes": {}}')
    assert ledger.read_spec(tmp_path) is None


def test_source_seconds_of_the_cooled_encoder_include_both_phases(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    for asset in ("cooled_encoder", "world_model"):
        rows = ledger.source_seconds(store, made[asset])
        assert [Path(row["path"]).name for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
        assert sum(row["phases"]["pretrain"] for row in rows) == 320 and sum(row["phases"]["cooldown"] for row in rows) == 80
        assert sum(row["samples"] for row in rows) == 400
        for row in rows:
            assert row["licence"] == "CC0-1.0" and row["uploader"] == "tests"  # by the shards, before the batch
            assert 0 < row["distinct_seconds"] <= row["clip_seconds"] + 1e-6 <= 3 + 1e-3
            assert row["distinct_seconds"] <= row["seconds"]
    earlier = ledger.source_seconds(store, made["pretrained_encoder"])
    assert sum(row["samples"] for row in earlier) == 320
    untrained = ledger.source_seconds(store, made["training_shards"])
    assert sum(row["samples"] for row in untrained) == 0 and sum(row["clips"] for row in untrained) == 6


def test_episode_seconds_tell_training_from_validation(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    rows = ledger.episode_seconds(store, made["world_model"])
    assert [(row["episode_id"], row["role"], row["seconds"]) for row in rows] == [
        ("e0", "train", 2.5), ("e1", "train", 2.75), ("e2", "validation", 3.0),
    ]  # fmt: skip
    assert episodes_text(rows) == "robot episodes: 2 train (5.2 s), 1 validation (3.0 s)"
    assert ledger.episode_seconds(store, made["cooled_encoder"]) == [] and "none" in episodes_text([])


def test_trace_reaches_the_sources_and_shows_shared_parents_once(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    node = ledger.trace(Store.open(store.root), made["world_model"])
    text = ledger.render_text(node)
    assert node.key == "world_model[nano]"
    assert text.count("videos[made-0001]") == 1 and text.count("training_shards  ") == 2 and text.count("(above)") == 1
    for artefact in made.values():
        assert artefact.digest in text
    assert json.loads(json.dumps(node.to_dict()))["children"]


def test_html_escapes_what_the_store_says(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    rows = ledger.source_seconds(store, made["cooled_encoder"])
    rows[0]["path"] = "<script>alert(1)</script>.mp4"
    assert "<script>" not in seconds_html(rows) and "&lt;script&gt;" in seconds_html(rows)
    page = ledger.render_html(ledger.trace(store, made["cooled_encoder"]).to_dict())
    assert page.count("<details") == page.count("</details>") and made["training_shards"].digest in page


def test_artefacts_are_found_by_key_and_by_digest(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    wanted = made["cooled_encoder"]
    for name in ("cooled_encoder", "cooled_encoder[nano]", wanted.digest, wanted.digest[:9], str(wanted.path)):
        assert ledger.find(store, name).digest == wanted.digest
    assert ledger.find(store, "training_shards").digest == made["training_shards"].digest
    with pytest.raises(InputError, match="cooled_encoder"):
        ledger.find(store, "no_such_thing")


def test_a_checkpoint_row_names_parents_and_shards(chain: tuple[Store, dict[str, Artefact]]) -> None:
    store, made = chain
    row = ledger.checkpoint_row(store, made["cooled_encoder"])
    assert row["step"] == 10 and row["shards_digest"] == made["training_shards"].digest
    assert json.loads(row["parents"])["pretrained_encoder[nano]"] == made["pretrained_encoder"].digest
    assert len(schemas.table_of(schemas.CHECKPOINTS, [row])) == 1


def test_a_lost_input_is_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    first = store.produce("videos", lambda folder: {}, partition="a")
    second = store.produce("clips", lambda folder: {}, inputs=[first], partition="a")
    shutil.rmtree(first.path)
    with pytest.raises(MissingArtefact, match=r"clips\[a\]"):
        ledger.trace(store, second)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=25))
@settings(deadline=None)
def test_merged_spans_cover_the_same_seconds_without_overlap(pairs: list[tuple[int, int]]) -> None:
    spans = np.array([(start, start + length) for start, length in pairs], float).reshape(-1, 2)
    merged = merge_by_group(np.zeros(len(spans), np.int64), spans)[1]
    covered = {second for start, length in pairs for second in range(start, start + length)}
    assert covered == {second for start, end in merged for second in range(int(start), int(end))}
    assert (merged[1:, 0] > merged[:-1, 1]).all()
