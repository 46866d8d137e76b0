"""What people see of a curation: nothing is lost without a reason, every removal stands beside its twin, two curations compare."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curation.codebook import Codebook
from pipelines.curation.report import funnel
from pipelines.curation.report.chain import chain_of, created, folders
from pipelines.curation.report.comparison import changes_by, compare, curations, find_curation
from pipelines.curation.report.comparison_page import comparison_text, write_comparison
from pipelines.curation.report.costs import costs_of, totals
from pipelines.curation.report.facts import PageConfig, collect
from pipelines.curation.report.funnel import count_rows
from pipelines.curation.report.losses import losses_of, sums_of
from pipelines.curation.report.page import write_curation_page
from pipelines.curation.report.pool import read_pool, shares, spread_over_clusters
from pipelines.curation.report.sheets import MOST_BYTES, draw_contact_kept, draw_contact_removed, draw_funnel
from pipelines.curation.report.thumbnails import Thumbnail, ThumbnailConfig, thumbnails
from pipelines.errors import InputError, MissingArtefact
from pipelines.schemas import (
    ASSIGNMENTS,
    CLIPS,
    COSTS,
    QUARANTINE,
    REMOVALS,
    SELECTION,
    SHARD_INDEX,
    VIDEOS,
    read_table,
    table_of,
    write_table,
)
from pipelines.store import Artefact, Store
from pipelines.video.encode import write_video

NASTY = "/pool/<script>alert(1)</script>'\"&.mp4"
RATE, FRAMES = 10.0, 20
FILES = ("a", "b", "c", "copy_of_a", "still")
NO_PICTURES = PageConfig(thumbnails=ThumbnailConfig(budget_s=0.0))
ONE = ThumbnailConfig(workers=1)
KEPT = ("a-0", "a-1", "b-0", "c-0", "c-1")


def film(path: Path, shade: int) -> Path:
    """Two seconds in one colour that gets brighter."""
    frames = np.zeros((FRAMES, 48, 64, 3), np.uint8)
    frames[..., shade % 3] = (60 + 6 * np.arange(FRAMES))[:, None, None]
    frames[:, 8:24, 8 + 6 * shade : 20 + 6 * shade] = 220
    write_video(path, frames, RATE)
    return path


def clip_row(clip_id: str, path: Path, half: int, **facts: Any) -> dict[str, Any]:
    """A second of a film, by its clip_id; its time base is that of the file."""
    import av

    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
    assert base is not None
    start, end = (round(at / base) for at in (half * 1.0, half + 1.0))
    return {
        "clip_id": clip_id, "video_id": f"v-{path.stem.removeprefix('copy_of_')}", "batch": "pool-0001", "path": str(path), "start_pts": start, "end_pts": end,
        "time_base_num": base.numerator, "time_base_den": base.denominator, "start_s": float(half), "end_s": half + 1.0, "frames": 10, "width": 64,
        "height": 48, "frame_rate": RATE, "splitter": "x", "motion": 1.0, "brightness": 90.0, "fingerprint": "", "source": "pool", "licence": "CC0-1.0",
        "uploader": path.stem[0], "label": "", "language": "", **facts,
    }  # fmt: skip


def accept(store: Store, asset: str, write: Callable[[Path], dict[str, Any]], inputs: Sequence[Artefact] = (), **options: Any) -> Artefact:
    artefact = store.produce(asset, write, inputs=inputs, **options)
    store.accept(artefact, {})
    return artefact


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Five films of the pool and one of a target set, by name."""
    folder = tmp_path_factory.mktemp("films")
    paths = {name: film(folder / f"{name}.mp4", shade) for shade, name in enumerate(("a", "b", "c", "still", "held_out"))}
    paths["copy_of_a"] = Path(shutil.copy(paths["a"], folder / "copy_of_a.mp4"))
    return paths


class Made:
    """A store whose curation is made by hand: one batch, every kind of loss in it."""

    def __init__(self, root: Path, films: dict[str, Path]) -> None:
        self.store, self.films = Store.open(root / "store"), films

    def up_to(self, last: str) -> Made:
        """Every stage up to `last`."""
        for stage in ("videos", "clips", "target_videos", "distinct_clips", "clip_clusters", "curated_clips"):
            getattr(self, stage)()
            if stage == last:
                break
        return self

    def videos(self) -> Artefact:
        def write(folder: Path) -> dict[str, Any]:
            rows = [{"video_id": f"v-{name}", "path": str(self.films[name])} for name in FILES]
            bad = [
                {"path": NASTY, "code": "not_a_video", "detail": "no <b>format</b>", "attempts": 1, "poison": False},
                {"path": "/pool/hangs.mp4", "code": "timeout", "detail": "no answer within 30 s", "attempts": 2, "poison": True},
            ]
            write_table(table_of(VIDEOS, rows), folder / "videos.parquet", VIDEOS)
            write_table(table_of(QUARANTINE, bad), folder / "quarantine.parquet", QUARANTINE)
            return {"files": 7, "video_seconds": 10.0, "cost": {"items": 7, "unit": "files", "wall_s": 2.0, "cpu_s": 3.5, "parts": 1, "parts_found": 0}}

        return accept(self.store, "videos", write, partition="pool-0001")

    def clips(self) -> Artefact:
        films = self.films
        rows = [clip_row(f"{name}-{half}", films[name], half) for name in ("a", "b", "c") for half in (0, 1)]
        rows += [clip_row(f"a-{half}", films["copy_of_a"], half) for half in (0, 1)] + [clip_row("still-0", films["still"], 0, motion=0.0)]

        def write(folder: Path) -> dict[str, Any]:
            short = {"path": str(films["still"]), "code": "too_short", "detail": "scene 1.00-2.00 s is shorter than a clip", "attempts": 1, "poison": False}
            write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
            write_table(table_of(QUARANTINE, [short]), folder / "quarantine.parquet", QUARANTINE)
            return {"clips": len(rows), "videos": 5}

        return accept(self.store, "clips", write, [self.store.current("videos", "pool-0001")], partition="pool-0001")

    def target_videos(self) -> Artefact:
        def write(folder: Path) -> dict[str, Any]:
            path = self.films["held_out"]
            rows = [clip_row("t-train", path, 0, source="push/train"), clip_row("t-eval", path, 1, source="push/eval")]
            write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
            (folder / "targets.json").write_text(json.dumps([{"name": "push", "weight": 1.0}]))
            return {"clips": 2}

        return accept(self.store, "target_videos", write)

    def distinct_clips(self, **config: Any) -> Artefact:
        clips, targets = self.store.current("clips", "pool-0001"), self.store.current("target_videos")
        removals = [
            {"clip_id": "a-0", "reason": "exact", "twin_id": "a-0", "similarity": 1.0}, {"clip_id": "a-1", "reason": "exact", "twin_id": "a-1", "similarity": 1.0},
            {"clip_id": "b-1", "reason": "evaluation_leak", "twin_id": "t-eval", "similarity": 0.91, "distance": 0.04, "detail": "shows push"},
            {"clip_id": "still-0", "reason": "filtered_static", "twin_id": "", "similarity": 0.0},
        ]  # fmt: skip

        def write(folder: Path) -> dict[str, Any]:
            rows = {row["clip_id"]: row for row in reversed(read_table(clips.file("clips.parquet"), CLIPS).to_pylist())}
            write_table(table_of(CLIPS, [rows[name] for name in KEPT]), folder / "clips.parquet", CLIPS)
            write_table(table_of(REMOVALS, [{"video_id": "v", **row} for row in removals]), folder / "removals.parquet", REMOVALS)
            (folder / "encoder.json").write_text('{"name": "made", "digest": "d"}')
            (folder / "clip_ids.json").write_text(json.dumps(KEPT))
            np.save(folder / "embeddings.npy", np.eye(len(KEPT), 8, dtype=np.float32))
            return {"clips": len(KEPT), "clips_in": 9, "superseded_clips": 0}

        return accept(self.store, "distinct_clips", write, [clips, targets], config=config)

    def stricter(self) -> Artefact:
        """The distinct clips again, without b-0."""
        distinct = self.store.current("distinct_clips")

        def write(folder: Path) -> dict[str, Any]:
            shutil.copytree(distinct.path, folder, dirs_exist_ok=True)
            (folder / "MANIFEST.json").unlink()
            write_table(read_table(distinct.file("clips.parquet"), CLIPS).take([0, 1, 3, 4]), folder / "clips.parquet", CLIPS)
            gone = {"clip_id": "b-0", "video_id": "v-b", "reason": "near_duplicate", "twin_id": "c-0", "similarity": 0.98}
            removals = [*read_table(distinct.file("removals.parquet"), REMOVALS).to_pylist(), gone]
            write_table(table_of(REMOVALS, removals), folder / "removals.parquet", REMOVALS)
            return {"clips": 4, "superseded_clips": 0}

        inputs = [self.store.current("clips", "pool-0001"), self.store.current("target_videos")]
        return accept(self.store, "distinct_clips", write, inputs, config={"stricter": True})

    def clip_clusters(self, leaves: Sequence[int] = (0, 0, 1, 1, 1), shift: int = 0) -> Artefact:
        distinct, targets = self.store.current("distinct_clips"), self.store.current("target_videos")

        def write(folder: Path) -> dict[str, Any]:
            rows = [{"clip_id": name, "cluster": leaf, "coarse_cluster": 0, "similarity": 1.0} for name, leaf in zip(KEPT, leaves, strict=True)]
            write_table(table_of(ASSIGNMENTS, rows), folder / "assignments.parquet", ASSIGNMENTS)
            target = [{"clip_id": name, "cluster": 1, "coarse_cluster": 0, "similarity": 0.9} for name in ("t-train", "t-eval")]
            write_table(table_of(ASSIGNMENTS, target), folder / "target_assignments.parquet", ASSIGNMENTS)
            (folder / "representatives.json").write_text(json.dumps({"0": ["a-0"], "1": ["c-0", "b-0"], "2": []}))
            (folder / "decision.json").write_text(json.dumps({"action": "reweight", "carried_out": "none", "reasons": ["clusters moved & <more>"], "thresholds": {"p_below": 0.01}}))
            statistics = {"psi": {"value": 0.4, "effect": 0.3, "p": 0.005, "flagged": True, "effect_is": "PSI above chance"}}
            (folder / "drift.json").write_text(json.dumps({"statistics": statistics, "movers": [{"cluster": 1, "reference": 0.1, "window": 0.5}]}))
            Codebook((np.roll(np.eye(3, 8, dtype=np.float32), shift, axis=1), np.ones((1, 8), np.float32)), (np.zeros(3, np.int32),), "d").save(folder)
            return {"clips": len(KEPT)}

        return accept(self.store, "clip_clusters", write, [distinct, targets], config={"shift": shift})

    def curated_clips(self, weights: Sequence[float] = (0.1, 0.1, 0.2, 0.6, 0.0), **config: Any) -> Artefact:
        inputs = [self.store.current(name) for name in ("distinct_clips", "clip_clusters", "target_videos")]

        def write(folder: Path) -> dict[str, Any]:
            rows = [
                {"clip_id": name, "video_id": f"v-{name[0]}", "cluster": 0 if name[0] == "a" else 1, "weight": weight, "uniform_weight": 0.2,
                 "target": "push" if weight > 0.1 else "uniform", "credit_targets": ["push", "uniform"], "credit_shares": [0.75, 0.25]}
                for name, weight in zip(KEPT, weights, strict=True) if weight > 0
            ]  # fmt: skip
            write_table(table_of(SELECTION, rows), folder / "selection.parquet", SELECTION)
            clusters = [{"cluster": 0, "uniform": 0.4, "requested": 0.0, "achieved": 0.2}, {"cluster": 1, "uniform": 0.6, "requested": 1.0, "achieved": 0.8}]
            report = {"kl_clips": 0.3, "evaluation_leaks": [], "clusters": clusters, "targets": {"push": {"requested": 1.0, "achieved": 0.8, "uniform": 0.6}}}
            (folder / "distribution.json").write_text(json.dumps(report))
            return {"clips": len(rows)}

        return accept(self.store, "curated_clips", write, inputs, config={"weights": list(weights), **config})


@pytest.fixture
def made(tmp_path: Path, films: dict[str, Path]) -> Made:
    return Made(tmp_path, films)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, films: dict[str, Path]) -> Made:
    """A whole chain. Not to be changed."""
    return Made(tmp_path_factory.mktemp("whole"), films).up_to("curated_clips")


@pytest.fixture(scope="module")
def written(whole: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain's page. Not to be changed."""
    return write_curation_page(whole.store, tmp_path_factory.mktemp("page"), PageConfig(thumbnails=ONE))


def test_every_file_and_clip_is_accounted_for_by_reason(whole: Made) -> None:
    chain = chain_of(whole.store)
    assert all(item.agrees for item in sums_of(chain)) and len(sums_of(chain)) == 4
    losses = {(loss.stage, loss.reason): loss.count for loss in losses_of(chain)}
    assert losses == {
        ("videos", "not_a_video"): 1, ("videos", "timeout"): 1, ("clips", "too_short"): 1, ("distinct", "exact"): 2, ("distinct", "evaluation_leak"): 1,
        ("distinct", "filtered_static"): 1, ("selected", "not chosen"): 1,
    }  # fmt: skip
    rows = {(row["stage"], row["reason"]): row["count"] for row in funnel(whole.store)}
    assert rows["files", "found"] == 7 and rows["clips", "cut"] == 9 and rows["distinct", "kept"] == 5 and rows["selected", "with a weight"] == 4


def test_sum_that_does_not_agree_is_said(made: Made, tmp_path: Path) -> None:
    made.up_to("distinct_clips")
    path = made.store.current("distinct_clips").file("removals.parquet")
    write_table(read_table(path, REMOVALS).slice(1), path, REMOVALS)
    assert [item.agrees for item in sums_of(chain_of(made.store))] == [True, True, False]
    assert ">differs<" in write_curation_page(made.store, tmp_path / "page", NO_PICTURES).read_text()


def test_clips_without_a_vector_and_clips_that_could_not_be_cut_are_counted_too(made: Made) -> None:
    made.up_to("curated_clips")
    store = made.store

    def lost(code: str, rows: int) -> list[dict[str, Any]]:
        return [{"path": str(made.films["a"]), "code": code, "detail": f"a-{row}: it is gone", "attempts": 1, "poison": False} for row in range(rows)]

    def embeddings(folder: Path) -> dict[str, Any]:
        write_table(table_of(QUARANTINE, lost("unreadable", 2)), folder / "quarantine.parquet", QUARANTINE)
        return {"clips": 7}

    def shards(folder: Path) -> dict[str, Any]:
        write_table(table_of(SHARD_INDEX, [{"clip_id": name} for name in KEPT[:3]]), folder / "shard_index.parquet", SHARD_INDEX)
        write_table(table_of(QUARANTINE, lost("timeout", 1)), folder / "quarantine.parquet", QUARANTINE)
        return {"clips": 3}

    accept(store, "clip_embeddings", embeddings, [store.current("clips", "pool-0001")], partition="pool-0001")
    accept(store, "training_shards", shards, [store.current("curated_clips")])
    chain = chain_of(store)
    assert {(loss.stage, loss.reason): loss.count for loss in losses_of(chain)}.items() >= {("embedded", "unreadable"): 2, ("sharded", "timeout"): 1}.items()
    sums = {item.left[0]: item for item in sums_of(chain)}
    assert ("clips without a vector", 2) in sums["clips cut"].right and not sums["clips cut"].agrees  # this store's nine clips have one all the same
    assert sums["clips with a weight"].agrees and sums["clips with a weight"].right == (("clips in shards", 3), ("clips that could not be cut", 1))
    rows = {(row["stage"], row["reason"]): row["count"] for row in funnel(store)}
    assert rows["sharded", "not cut: timeout"] == 1 and rows["embedded", "without a vector: unreadable"] == 2 and rows["sharded", "written"] == 3
    made.curated_clips((0.2, 0.2, 0.2, 0.2, 0.2))
    assert chain_of(store).shards is None  # they were cut from the selection before


def test_every_removal_names_the_clip_and_its_twin_also_for_copies_of_one_id(whole: Made) -> None:
    losses = {loss.reason: loss.examples for loss in losses_of(chain_of(whole.store))}
    for row in losses["exact"]:
        assert Path(row["clip"]["path"]).name == "copy_of_a.mp4" and Path(row["twin"]["path"]).name == "a.mp4" and row["start_s"] == row["twin"]["start_s"]
    (leak,) = losses["evaluation_leak"]
    assert leak["clip"]["clip_id"] == "b-1" and leak["twin"]["clip_id"] == "t-eval"
    (static,) = losses["filtered_static"]
    assert static["clip"]["path"] == str(whole.films["still"]) and static["twin"] is None


def test_page_needs_nothing_outside_itself_and_runs_no_foreign_code(written: Path) -> None:
    text = written.read_text()
    sources = re.findall(r"(?:src|href)=[\"']([^\"']*)", text)
    assert sources and all(source.startswith(("data:image/", "#")) for source in sources)
    assert "<link" not in text and "@import" not in text and "url(" not in text and text.count("<script>") == 1
    assert "&lt;script&gt;alert(1)" in text and "no &lt;b&gt;format" in text
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_page_tells_what_was_dropped_and_why_with_pictures(written: Path, whole: Made) -> None:
    text = written.read_text()
    for words in ("no answer within 30 s", "2 (poison)", "shorter than a clip", "shows push", "filtered static", "nobody asks for it", "agrees"):
        assert words in text, words
    assert "differs<" not in text and text.count("<b>removed</b>") == 4 and text.count("<b>evaluated on</b>") == 1
    pictured = {row["clip_id"] for row in collect(chain_of(whole.store), PageConfig()).pictured()}
    assert {path.stem for path in written.parent.glob("thumbnails/*/*.jpg")} == pictured
    numbers = json.loads((written.parent / "curation.json").read_text())
    assert numbers["artefacts"]["curated_clips"] == whole.store.current("curated_clips").digest
    assert sum(leaf["clips"] for leaf in numbers["leaves"]) == 5 and all(item["agrees"] for item in numbers["sums"])


@pytest.mark.parametrize("last", ["videos", "clips", "target_videos", "distinct_clips", "clip_clusters"])
def test_page_of_an_unfinished_curation_says_what_is_missing(made: Made, tmp_path: Path, last: str) -> None:
    text = write_curation_page(made.up_to(last).store, tmp_path / "page", NO_PICTURES).read_text()
    missing = {"videos": "distinct_clips", "clips": "distinct_clips", "target_videos": "distinct_clips", "distinct_clips": "clip_clusters"}
    assert f"materialize {missing.get(last, 'curated_clips')}" in text


def test_page_of_an_empty_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(MissingArtefact, match="make demo"):
        write_curation_page(Store.open(tmp_path / "store"), tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_page_follows_the_selection_and_names_what_is_newer(made: Made, tmp_path: Path) -> None:
    made.up_to("curated_clips")
    old = made.store.current("distinct_clips")
    made.stricter()
    chain = chain_of(made.store)
    assert chain.distinct is not None and chain.distinct.digest == old.digest and chain.newer == ("distinct_clips",)
    assert "Made again since this curation, which does not use it: distinct_clips" in write_curation_page(made.store, tmp_path / "page", NO_PICTURES).read_text()
    path = made.store.root / "artefacts" / "clips" / "pool-0002"
    shutil.copytree(made.store.current("clips", "pool-0001").path.parent, path)
    second = next(path.iterdir())
    manifest = json.loads((second / "MANIFEST.json").read_text())
    (second / "MANIFEST.json").write_text(json.dumps({**manifest, "partition": "pool-0002"}))
    made.store.accept(made.store.load(second), {})
    assert chain_of(made.store).waiting == ("pool-0002",)


def test_second_write_decodes_nothing_and_pictures_of_other_clips_go(
    whole: Made, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(written.parent, tmp_path / "page"))
    stale = next(folder.glob("thumbnails/*/*.jpg")).with_name("taken-down.jpg")
    stale.write_bytes(b"a picture of a clip that is no longer here")
    monkeypatch.setattr("pipelines.curation.report.thumbnails.SHOOT", "no_such_module:nothing")
    assert write_curation_page(whole.store, folder, PageConfig(thumbnails=ONE)).read_text() == written.read_text()
    assert not stale.exists()


def test_missing_source_and_hanging_decoder_leave_a_grey_tile_that_says_so(
    films: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = clip_row("gone", films["a"], 0) | {"path": "/no/such/file.mp4"}
    assert thumbnails([gone], tmp_path)["gone"] == Thumbnail(missing="source is gone")
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    assert thumbnails([gone | {"path": str(broken)}], None, ONE)["gone"].missing == "cannot be decoded"
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setattr("pipelines.curation.report.thumbnails.SHOOT", "test_curation_report:hang")
    found = thumbnails([clip_row("slow", films["a"], 0)], None, ThumbnailConfig(seconds_per_clip=0.3, workers=1))
    assert found["slow"].missing == "decoder hangs or dies"


def hang(_: Any) -> None:
    time.sleep(600)


def test_thumbnail_is_the_middle_frame_in_the_size_of_the_form(films: dict[str, Path], tmp_path: Path) -> None:
    import io

    from PIL import Image

    found = thumbnails([clip_row("a-1", films["a"], 1)], tmp_path, ThumbnailConfig(width=80, workers=1))
    image = np.asarray(Image.open(io.BytesIO(found["a-1"].data)))
    assert image.shape == (60, 80, 3)
    level = 60 + 6 * 15  # red of frame 15, half way from 10 to 20
    assert abs(float(image[50:, :, 0].mean()) - level) < 12


def test_drift_is_shown_with_the_decision_and_older_artefacts_say_what_they_lack(written: Path, made: Made, tmp_path: Path) -> None:
    text = written.read_text()
    for words in (">reweight<", "Only advised: what was carried out is none", "clusters moved &amp; &lt;more&gt;", ">drift<", "PSI above chance", "movers (1)"):
        assert words in text, words
    assert "carries no leaks.json" in text
    folder = made.up_to("curated_clips").store.current("clip_clusters").path
    for name in ("drift.json", "decision.json", "codebook.json"):
        (folder / name).unlink()
    (made.store.current("distinct_clips").path / "leaks.json").write_text('{"evaluation_clips": 1, "found": [{"clip_id": "b-1", "cosine": 0.91}]}')
    text = write_curation_page(made.store, tmp_path / "page", NO_PICTURES).read_text()
    assert "there is no earlier one to compare with" in text and "carries no leaks.json" not in text and "found (1)" in text


def test_only_so_many_leaves_have_pictures_and_the_page_says_so(whole: Made, tmp_path: Path) -> None:
    text = write_curation_page(whole.store, tmp_path, PageConfig(leaves=1, leaf_rows=1, thumbnails=ThumbnailConfig(budget_s=0.0))).read_text()
    assert text.count("<article class='leaf'") == 1 and "1 more as rows below; 1 are left out here" in text
    assert "no time left for it" in text


def test_costs_are_those_of_the_artefacts_one_row_a_batch(written: Path, whole: Made) -> None:
    table = read_table(written.parent / "costs.parquet", COSTS)
    rows = {row["stage"]: row for row in table.to_pylist()}
    assert set(rows) == {"videos", "clips", "target_videos", "distinct_clips", "clip_clusters", "curated_clips"}
    assert rows["videos"]["cpu_s"] == 3.5 and rows["videos"]["items_per_cpu_s"] == 2.0 and rows["videos"]["batch"] == "pool-0001"
    older = rows["clips"]
    assert older["cpu_s"] is None and older["items"] == 5 and older["wall_s"] == whole.store.current("clips", "pool-0001").seconds
    twice = totals(costs_of([*chain_of(whole.store).artefacts(), *chain_of(whole.store).artefacts()]))
    assert twice[0]["items"] == 14 and twice[0]["batches"] == 2 and twice[1]["cpu_s"] is None


def test_pictures_for_the_catalogue_are_small_and_the_same_every_time(whole: Made, tmp_path: Path) -> None:
    chain = chain_of(whole.store)
    assert chain.distinct is not None and chain.selection is not None and chain.targets is not None
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        draw_funnel(folder / "funnel.png", count_rows(folders(chain.videos), folders(chain.clips), (), chain.distinct.path))
        draw_contact_kept(folder / "kept.png", chain.distinct.path, chain.selection.path, ONE)
        draw_contact_removed(folder / "removed.png", chain.distinct.path, folders(chain.clips), chain.targets.path, ONE)
    for name in ("funnel.png", "kept.png", "removed.png"):
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes() and 1000 < len(data) <= MOST_BYTES


def test_shares_of_groups_add_up_and_unknown_is_a_group(whole: Made) -> None:
    chain = chain_of(whole.store)
    assert chain.distinct and chain.clusters and chain.selection
    pool = read_pool(chain.distinct.path, chain.clusters.path, chain.selection.path)
    for name in pool.groups:
        rows = shares(pool, name)
        assert sum(row["uniform"] for row in rows) == pytest.approx(1) and sum(row["achieved"] for row in rows) == pytest.approx(1)
    assert [row["name"] for row in shares(pool, "language")] == ["not known"]
    assert {row["name"]: row["achieved"] for row in shares(pool, "uploader")} == pytest.approx({"a": 0.2, "b": 0.2, "c": 0.6})


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 12))
def test_spread_takes_each_cluster_once_before_any_twice(clusters: list[int], count: int) -> None:
    class Stub:
        cluster = np.array(clusters)

    chosen = spread_over_clusters(Stub(), range(len(clusters)), count)  # type: ignore[arg-type]
    assert len(chosen) == len(set(chosen)) == min(count, len(clusters))
    assert len({clusters[row] for row in chosen}) == min(count, len(set(clusters)))


def test_comparison_names_who_gained_and_who_lost_and_by_how_much(made: Made, tmp_path: Path) -> None:
    made.up_to("curated_clips")
    made.curated_clips((0.0, 0.4, 0.2, 0.2, 0.2), cap=2)
    found = compare(made.store)
    assert (found.jaccard, found.both) == (3 / 5, 3) and found.overlap == pytest.approx(0.5) and found.video_overlap == pytest.approx(0.2 + 0.2 + 0.4)
    assert [row.clip["clip_id"] for row in found.gained] == ["a-1", "c-1"] and {row.clip["clip_id"] for row in found.lost} == {"c-0", "a-0"}
    assert found.reasons == {"gained": {"in the pool, not chosen": (1, pytest.approx(0.2))}, "lost": {"in the pool, not chosen": (1, pytest.approx(0.1))}}
    for changes in found.groups.values():
        assert sum(row.before for row in changes) == pytest.approx(1) and sum(row.after for row in changes) == pytest.approx(1)
    assert {row.name: row.change for row in found.groups["cluster"]} == pytest.approx({"0": 0.2, "1": -0.2})
    assert {row.name: row.before for row in found.groups["target"]} == pytest.approx({"push": 0.75, "uniform": 0.25})
    assert ("curated_clips", "cap", "not there", "2") in found.differences
    text = write_comparison(made.store, found, tmp_path / "comparison", ThumbnailConfig(budget_s=0.0)).read_text()
    assert "Who gained" in text and "http" not in text and "50.0%" in text
    assert json.loads((tmp_path / "comparison" / "comparison.json").read_text())["overlap"] == pytest.approx(0.5)
    assert "total variation 0.500" in comparison_text(found)


def test_comparison_says_why_a_clip_is_drawn_by_one_alone(made: Made) -> None:
    made.up_to("curated_clips")
    before = made.store.current("curated_clips").digest
    made.stricter()
    made.clip_clusters(shift=1)  # another codebook: its leaves are unit vectors 1, 2, 3
    made.curated_clips((0.25, 0.25, 0.0, 0.25, 0.25))
    found = compare(made.store, before[:6], "current")
    assert found.reasons["lost"] == {"removed: near duplicate": (1, pytest.approx(0.2))}
    assert any("were placed at the nearest leaf" in words for words in found.notes)  # b-0 is unit vector 2: leaf 1
    assert {row.name: row.clips_before for row in found.groups["cluster"]} == {"0": 2, "1": 2}


def test_names_of_curations_are_the_pointer_the_one_before_and_digests(made: Made) -> None:
    with pytest.raises(MissingArtefact, match="materialize curated_clips"):
        compare(made.store)
    first = made.up_to("curated_clips").store.current("curated_clips")
    with pytest.raises(InputError, match="no one selection is called previous"):
        compare(made.store)
    second = made.curated_clips((0.2, 0.2, 0.2, 0.2, 0.2))
    assert [item.artefact.digest for item in curations(made.store)] == [second.digest, first.digest] and created(first) <= created(second)
    assert find_curation(made.store, "previous").artefact.digest == first.digest == find_curation(made.store, first.digest[:4]).artefact.digest
    for names in (("current", second.digest), ("nope", "current"), ("", "current")):
        with pytest.raises(InputError) as error:
            compare(made.store, *names)
        assert first.digest in str(error.value) and "UTC" in str(error.value)


weights = st.lists(st.integers(0, 9), min_size=5, max_size=5).filter(any).map(lambda values: np.array(values) / sum(values))


@given(weights, weights)
def test_changes_of_groups_cancel_and_turn_their_signs_the_other_way_round(before: np.ndarray, after: np.ndarray) -> None:
    rows, back = changes_by(list("aabbc"), before, after), changes_by(list("aabbc"), after, before)
    assert sum(row.change for row in rows) == pytest.approx(0, abs=1e-12) and sum(row.before for row in rows) == pytest.approx(1)
    assert {row.name: row.change for row in rows} == pytest.approx({row.name: -row.change for row in back}, abs=1e-15)
    assert [abs(row.change) for row in rows] == sorted((abs(row.change) for row in rows), reverse=True)
