"""Increments: a frozen codebook takes new clips in, bit for bit as if they had always been there, or says why it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_files import write_vectors

from pipelines.checks import failed
from pipelines.curation import increment
from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.drift import DriftConfig, jensen_shannon, population_stability, smoothed
from pipelines.curation.embedding import unit_rows
from pipelines.curation.frozen import Frozen
from pipelines.curation.held_out import held_out_distances, video_blocks
from pipelines.curation.hierarchy import ClustersConfig
from pipelines.curation.increment import check_increment, update_clusters
from pipelines.curation.leaf_statistics import EDGES, FIXED, LeafStatistics, distance_bin
from pipelines.curation.novelty import cluster_buffer, with_leaves
from pipelines.errors import InputError, StoreError
from pipelines.identity import digest_of
from pipelines.schemas import ASSIGNMENTS, CLIPS, read_table, table_of, write_table

DIMENSIONS = 16
CLUSTERS = ClustersConfig(clips_per_cluster=10, rounds=(0,), coarse_clusters=4)
KEEP = DriftConfig(on_drift="keep")
SAME = ("assignments.parquet", "target_assignments.parquet", "leaf_statistics.npz", "distances.npy", "codebook.json", "representatives.json")

Clip = tuple[str, str, np.ndarray]


def unit(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors.astype(np.float32))


class World:
    """Clips of 12 concepts of unequal weight, 4 clips alike in each video, and targets; folders as the stages write them."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self.root, self.random = root, np.random.default_rng(seed)
        self.concepts = unit(self.random.normal(size=(12, DIMENSIONS)))
        self.shares = 1 / np.arange(1, 13)
        self.shares /= self.shares.sum()
        self.videos = 0
        self.targets = [(f"target{number:03d}", f"{'ab'[number % 2]}/train", vector) for number, vector in enumerate(self.vectors(40, 1))]
        self.write_targets()

    def vectors(self, videos: int, clips: int, concepts: np.ndarray | None = None, spread: float = 0.5) -> np.ndarray:
        around = self.concepts[self.random.choice(12, videos, p=self.shares)] if concepts is None else concepts[np.arange(videos) % len(concepts)]
        means = np.repeat(around + spread * self.random.normal(size=(videos, DIMENSIONS)) / 4, clips, axis=0)
        return unit(means + spread / 2 * self.random.normal(size=means.shape) / 4)

    def batch(self, videos: int, concepts: np.ndarray | None = None) -> list[Clip]:
        found = self.vectors(videos, 4, concepts)
        first, self.videos = self.videos, self.videos + videos
        ids = [(digest_of(["clip", first, row], 20), digest_of(["video", first + row // 4], 20)) for row in range(len(found))]
        return [(clip, video, vector) for (clip, video), vector in zip(ids, found, strict=True)]

    def write_targets(self, weights: dict[str, float] | None = None, encoder: str = "encoder") -> None:
        self.target_clips, self.target_embeddings = self.root / "target_clips", self.root / "target_embeddings"
        for folder in (self.target_clips, self.target_embeddings):
            folder.mkdir(parents=True, exist_ok=True)
        rows = [{"clip_id": name, "video_id": name, "source": source} for name, source, _ in self.targets]
        write_table(table_of(CLIPS, rows), self.target_clips / "clips.parquet", CLIPS)
        shares = weights or {"a": 0.5, "b": 0.5}
        (self.target_clips / "targets.json").write_text(json.dumps([{"name": name, "weight": weight} for name, weight in shares.items()]))
        embedded(self.target_embeddings, [name for name, _, _ in self.targets], np.stack([vector for *_, vector in self.targets]), encoder)

    def elsewhere(self) -> np.ndarray:
        """(1, D) a concept far from all others."""
        directions = unit(np.random.default_rng(5).normal(size=(500, DIMENSIONS)))
        return directions[(directions @ self.concepts.T).max(axis=1).argmin()][None]

    def distinct(self, clips: Sequence[Clip], name: str = "distinct", encoder: str = "encoder") -> Path:
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        ordered = sorted(clips, key=lambda clip: clip[0])
        write_table(table_of(CLIPS, [{"clip_id": clip, "video_id": video} for clip, video, _ in ordered]), folder / "clips.parquet", CLIPS)
        embedded(folder, [clip for clip, _, _ in ordered], np.stack([vector for *_, vector in ordered]), encoder)
        return folder

    def update(self, name: str, previous: Path | None, clips: Sequence[Clip], **options: Any) -> tuple[Path, dict[str, Any]]:
        folder = self.root / name
        folder.mkdir()
        distinct = self.distinct(clips, f"{name}-distinct", options.pop("encoder", "encoder"))
        config, clusters = options.pop("drift", KEEP), options.pop("clusters", CLUSTERS)
        summary = update_clusters(folder, previous, distinct, self.target_clips, self.target_embeddings, clusters, config, **options)
        assert not failed(check_increment(folder))
        return folder, summary


def embedded(folder: Path, ids: list[str], vectors: np.ndarray, encoder: str) -> None:
    write_vectors(folder, ids, vectors)
    (folder / "encoder.json").write_text(json.dumps({"name": "test", "digest": encoder}))


def files(folder: Path, names: Sequence[str] = SAME) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def labels(folder: Path) -> dict[str, int]:
    table = read_table(folder / "assignments.parquet", ASSIGNMENTS)
    return dict(zip(table.column("clip_id").to_pylist(), table.column("cluster").to_pylist(), strict=True))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Clip], Path]:
    """A pool of 60 videos and its first codebook; tests add to it and leave it as it is."""
    world = World(tmp_path_factory.mktemp("pool"))
    clips = world.batch(60)
    folder, summary = world.update("first", None, clips)
    assert summary["decision"] == "fit"
    return world, clips, folder


# The nearest leaf


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 60))
@settings(deadline=None, max_examples=40)
def test_nearest_leaf_is_the_first_largest_cosine_in_float64(seed: int, leaves: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    codebook, vectors = unit(random.normal(size=(leaves, 7))), unit(random.normal(size=(rows, 7)))
    codebook = np.concatenate([codebook, codebook, codebook[:1].repeat(12, axis=0)])  # ties, some of them many
    vectors[: rows // 2] = codebook[random.integers(leaves, size=rows // 2)]
    exact = np.einsum("id,jd->ij", vectors.astype(np.float64), codebook.astype(np.float64))
    found = nearest_leaf(vectors, codebook)
    assert (found.leaf == exact.argmax(axis=1)).all()
    assert np.allclose(found.cosine, exact.max(axis=1), atol=1e-15)


def test_a_clip_has_the_same_bits_whatever_clips_come_with_it() -> None:
    random = np.random.default_rng(0)
    vectors, codebook = unit(random.normal(size=(600, 384))), unit(random.normal(size=(50, 384)))
    codebook[1] = unit(codebook[:1] + 1e-7 * random.normal(size=(1, 384)))[0]  # closer than float32 products can tell
    vectors[:200] = unit(codebook[0] + 0.02 * random.normal(size=(200, 384)))
    whole = nearest_leaf(vectors, codebook)
    assert len(np.unique(whole.leaf[:200])) == 2
    for size in (1, 3, 37, 100):
        for start in range(0, 600, 7 * size):
            part = nearest_leaf(vectors[start : start + size], codebook)
            for name in ("leaf", "cosine"):
                assert np.array_equal(getattr(part, name), getattr(whole, name)[start : start + size])


# Statistics of leaves


def statistics_of(vectors: np.ndarray, leaf: np.ndarray, distance: np.ndarray, leaves: int) -> LeafStatistics:
    found = LeafStatistics.empty(leaves, vectors.shape[1])
    found.add(vectors, leaf, distance)
    return found


def agree(one: LeafStatistics, two: LeafStatistics) -> bool:
    return all(np.array_equal(table, two.tables()[name]) for name, table in one.tables().items())


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_statistics_are_exact_in_any_order_and_batches_and_forget_exactly(seed: int, clips: int, batches: int) -> None:
    random = np.random.default_rng(seed)
    vectors, leaf = unit(random.normal(size=(clips, 5))), random.integers(4, size=clips)
    distance = random.random(clips).astype(np.float32)
    whole = statistics_of(vectors, leaf, distance, 4)
    order = random.permutation(clips)
    grown = LeafStatistics.empty(4, 5)
    for rows in np.array_split(order, batches):
        grown.add(vectors[rows], leaf[rows], distance[rows])
    assert agree(grown, whole)
    gone, stay = order[: clips // 2], order[clips // 2 :]
    whole.subtract(vectors[gone], leaf[gone], distance[gone])
    assert agree(whole, statistics_of(vectors[stay], leaf[stay], distance[stay], 4))
    assert whole.extended(6).counts.tolist() == [*whole.counts.tolist(), 0, 0]
    assert np.allclose(whole.sums[0] / FIXED, vectors[stay][leaf[stay] == 0].astype(np.float64).sum(axis=0), atol=1e-7)


def test_a_clip_that_was_never_counted_cannot_be_taken_out() -> None:
    vectors = unit(np.eye(3))
    found = statistics_of(vectors[:1], np.array([0]), np.array([0.1], np.float32), 2)
    with pytest.raises(InputError, match="not in"):
        found.subtract(vectors[1:2], np.array([1]), np.array([0.1], np.float32))


def test_quantiles_of_the_digest_are_upper_edges_of_its_bins() -> None:
    distance = np.linspace(0.01, 1.0, 200).astype(np.float32)
    found = statistics_of(unit(np.ones((200, 2))), np.zeros(200, np.int64), distance, 2)
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = np.sort(distance)[int(np.ceil(share * 200)) - 1]
        assert exact <= found.quantiles(share)[0] <= exact * (EDGES[1] / EDGES[0]) and (distance <= found.quantiles(share)[0]).mean() >= share
    assert found.quantiles(0.5)[1] == np.inf and found.overall_quantile(0.9) == found.quantiles(0.9)[0]
    assert distance_bin(np.array([0.0, 2.0], np.float32)).tolist() == [0, 255]


def test_staleness_is_what_moving_the_leaves_to_their_clips_would_save() -> None:
    random = np.random.default_rng(0)
    vectors, leaf = unit(random.normal(size=(200, 6)) + 1), random.integers(3, size=200)
    found = statistics_of(vectors, leaf, np.zeros(200, np.float32), 3)
    means = unit(found.sums / FIXED)
    assert abs(found.staleness(means)) < 1e-6
    other = unit(random.normal(size=(3, 6)))
    errors = [float((2 - 2 * np.einsum("ij,ij->i", vectors, leaves[leaf], dtype=np.float64)).sum()) for leaves in (other, means)]
    assert found.staleness(other) == pytest.approx(1 - errors[1] / errors[0], abs=1e-6)


# Distances without a clip's own video


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_held_out_distances_are_those_of_a_codebook_without_the_clips_video(seed: int) -> None:
    random = np.random.default_rng(seed)
    vectors, video = unit(random.normal(size=(120, 6))), np.unique(random.integers(25, size=120), return_inverse=True)[1]
    leaves = unit(random.normal(size=(30, 6)))
    leaf = nearest_leaf(vectors, leaves).leaf
    sums = np.zeros((30, 6))
    np.add.at(sums, leaf, vectors.astype(np.float64))
    leaves = np.where(np.bincount(leaf, minlength=30)[:, None] > 0, unit(sums), leaves).astype(np.float32)
    found = np.empty(120, np.float32)
    for rows in video_blocks(video, 40):
        found[rows] = held_out_distances(vectors[rows], leaf[rows], video[rows], leaves, sums, np.bincount(leaf, minlength=30))
    for row in range(120):
        others = video != video[row]
        expected = -1.0
        for number in range(30):
            mine = others & (leaf == number)
            cosine = float(vectors[row].astype(np.float64) @ leaves[number])
            if not (leaf[~others] == number).any():
                expected = max(expected, cosine)
            elif mine.any():
                rest = vectors[mine].astype(np.float64).sum(axis=0)
                expected = max(expected, min(cosine, float(vectors[row] @ rest / np.linalg.norm(rest))))
        assert found[row] == pytest.approx(1 - expected, abs=2e-6)


def test_a_pool_of_one_video_tells_nothing_of_new_ones() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(20, 4)))
    leaf = np.arange(20) % 3
    sums = np.stack([vectors[leaf == number].sum(axis=0, dtype=np.float64) for number in range(3)])
    found = held_out_distances(vectors, leaf, np.zeros(20, np.int64), unit(sums), sums, np.bincount(leaf))
    assert (found == 2.0).all()


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 20))
def test_blocks_hold_every_row_once_and_whole_videos(videos: list[int], most: int) -> None:
    video = np.unique(videos, return_inverse=True)[1]
    found = video_blocks(video, most)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(video)))
    assert sum(len(np.unique(video[rows])) for rows in found) == len(np.unique(video))
    assert all(len(rows) < most + np.bincount(video).max() for rows in found)


# The frozen codebook


def test_batch_by_batch_gives_the_bytes_of_all_at_once_in_any_order(fitted: tuple[World, list[Clip], Path], tmp_path: Path) -> None:
    world, old, first = fitted
    a, b = world.batch(10), world.batch(15)
    found = {}
    for name, (early, late) in {"ab": (a, b), "ba": (b, a)}.items():
        middle, _ = world.update(f"{name}-middle", first, old + early)
        found[name], _ = world.update(name, middle, old + early + late)
    found["together"], _ = world.update("together", first, old + a + b)
    for name in SAME:
        assert len({files(folder, [name])[name] for folder in found.values()}) == 1, name
    codebook = Codebook.load(first)
    vectors = {clip: vector for clip, _, vector in a + b}
    near = nearest_leaf(np.stack(list(vectors.values())), codebook.leaves)
    after = labels(found["ab"])
    assert [after[clip] for clip in vectors] == near.leaf.tolist()
    assert {clip: after[clip] for clip in labels(first)} == labels(first)


def test_the_same_videos_again_change_nothing(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    again, summary = world.update("again", first, old)
    assert files(again) == files(first) and summary["decision"] == "none" and summary["new_clips"] == 0
    assert (again / "centroids_0.npy").read_bytes() == (first / "centroids_0.npy").read_bytes() and not (again / "drift.png").exists()


def test_after_a_takedown_all_counts_are_those_of_a_rebuild(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    more = world.batch(12)
    both, _ = world.update("with-all", first, old + more)
    taken = {old[0][1], old[100][1], more[0][1]}
    kept = [clip for clip in old + more if clip[1] not in taken]
    after, _ = world.update("taken-down", both, kept)
    frozen = Frozen.load(after)
    leaf = frozen.assignments.column("cluster").to_numpy().astype(np.int64)
    vectors = np.load(world.root / "taken-down-distinct" / "embeddings.npy")
    assert agree(frozen.statistics, statistics_of(vectors, leaf, frozen.distances, len(frozen.codebook.leaves)))
    assert len(frozen.assignments) == len(kept) and set(labels(after)) == {clip for clip, _, _ in kept}
    never, _ = world.update("never-there", first, [clip for clip in old if clip[1] not in taken])
    later, _ = world.update("never-there-later", never, kept)
    assert files(after) == files(later)
    shown = json.loads((after / "representatives.json").read_text())
    assert all(clip in labels(after) for found in shown.values() for clip in found)


def test_another_encoder_forces_a_new_codebook_and_two_encoders_never_mix(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    turned = [(clip, video, vector[::-1].copy()) for clip, video, vector in old]
    with pytest.raises(InputError, match="different encoders"):
        world.update("mixed", first, turned, encoder="other")
    world.write_targets(encoder="other")
    after, summary = world.update("re-embedded", first, turned, encoder="other")
    assert summary["decision"] == "re-embed" and Codebook.load(after).version != Codebook.load(first).version
    assert "encoder other" in json.loads((after / "decision.json").read_text())["reasons"][0]
    with pytest.raises(InputError, match="another encoder"):
        world.update("targets-of-another", first, old)
    world.write_targets()


def test_ordinary_new_videos_after_a_real_fit_are_no_drift(tmp_path: Path) -> None:
    for seed in range(4):
        world = World(tmp_path / str(seed), seed)
        clips = world.batch(60)
        first, _ = world.update("first", None, clips, clusters=ClustersConfig(clips_per_cluster=5))
        _, summary = world.update("second", first, clips + world.batch(15), clusters=ClustersConfig(clips_per_cluster=5), drift=DriftConfig())
        assert summary["decision"] == "none", summary["reasons"]


def test_the_report_is_what_the_tables_say(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    new = world.batch(30)
    after, _ = world.update("reported", first, old + new)
    report = json.loads((after / "drift.json").read_text())
    codebook = Codebook.load(after)
    assert report["level"] == 0 if report["clusters"] == len(codebook.leaves) else report["clusters"] == len(codebook.centroids[1])
    parent = codebook.ancestors(report["level"])
    label = labels(after)
    counts = [
        np.bincount(parent[[label[clip] for clip, _, _ in side]], minlength=report["clusters"]) for side in (old, new)
    ]  # fmt: skip
    p, q = (smoothed(side) for side in counts)
    assert report["statistics"]["psi"]["value"] == pytest.approx(float(population_stability(p, q)), rel=1e-9)
    assert report["statistics"]["js"]["value"] == pytest.approx(float(jensen_shannon(p, q)), rel=1e-9)
    frozen = Frozen.load(after)
    thresholds = dict(zip(frozen.assignments.column("clip_id").to_pylist(), frozen.distances > frozen.basis.thresholds[list(label.values())], strict=True))
    assert report["statistics"]["novelty"]["value"] == pytest.approx(np.mean([thresholds[clip] for clip, _, _ in new]))
    assert (report["reference"]["clips"], report["window"]["clips"], report["window"]["videos"]) == (len(old), len(new), 30)
    again, _ = world.update("reported-again", first, old + new)
    assert files(after, ["drift.json", "drift.png", "decision.json"]) == files(again, ["drift.json", "drift.png", "decision.json"])


def test_a_new_concept_gets_leaves_of_its_own_behind_the_old_ones(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    alien = world.batch(5, world.elsewhere())
    world.targets.append(("target999", "a/train", alien[0][2]))
    world.write_targets()
    kept, told = world.update("only-told", first, old + alien)
    assert told["decision"] == "append" and told["carried_out"] == "none" and Codebook.load(kept).version == Codebook.load(first).version
    assert sum(read_table(kept / "assignments.parquet", ASSIGNMENTS).column("novel").to_pylist()) >= 8
    after, summary = world.update("appended", kept, old + alien, drift=DriftConfig())
    world.targets.pop()
    world.write_targets()
    assert summary["carried_out"] == "append", summary["reasons"]
    before, grown = Codebook.load(first), Codebook.load(after)
    leaves = len(before.leaves)
    assert len(grown.leaves) > leaves and np.array_equal(grown.leaves[:leaves], before.leaves) and np.array_equal(grown.parents[0][:leaves], before.parents[0])
    label = labels(after)
    assert {clip: label[clip] for clip in labels(first)} == labels(first)
    assert np.mean([label[clip] >= leaves for clip, _, _ in alien]) > 0.8
    frozen = Frozen.load(after)
    vectors = np.load(world.root / "appended-distinct" / "embeddings.npy")
    leaf = frozen.assignments.column("cluster").to_numpy().astype(np.int64)
    assert agree(frozen.statistics, statistics_of(vectors, leaf, frozen.distances, len(grown.leaves)))
    targets = read_table(after / "target_assignments.parquet", ASSIGNMENTS)
    assert targets.column("cluster").to_pylist()[-1] >= leaves
    # The new leaves are leaves like others from now on.
    more = world.batch(3, world.elsewhere())
    later, _ = world.update("after-append", after, old + alien + more)
    assert Codebook.load(later).version == grown.version
    assert [labels(later)[clip] for clip, _, _ in more] == nearest_leaf(np.stack([vector for *_, vector in more]), grown.leaves).leaf.tolist()


def test_a_buffer_that_did_not_cluster_is_not_tried_again_until_it_has_grown(
    fitted: tuple[World, list[Clip], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, old, first = fitted
    tried: list[int] = []

    def in_vain(vectors: np.ndarray, *_: Any) -> None:
        tried.append(len(vectors))

    monkeypatch.setattr(increment, "cluster_buffer", in_vain)
    pool, previous = list(old), first
    for number, videos in enumerate((4, 1, 4)):
        pool += world.batch(videos, world.elsewhere())
        previous, summary = world.update(f"vain-{number}", previous, pool, drift=DriftConfig(refit_novel=0.5))
        assert summary["decision"] in ("none", "reweight") and any("novel" in reason for reason in summary["reasons"])
    assert len(tried) == 2 and tried[1] >= tried[0] + 8


def test_novel_clips_that_are_unlike_each_other_get_no_leaves() -> None:
    random = np.random.default_rng(0)
    leaves = unit(random.normal(size=(10, 32)))
    book = Codebook((leaves, leaves[:2]), (np.zeros(10, np.int32),), "e")
    scattered = unit(random.normal(size=(60, 32)))
    found = cluster_buffer(scattered, np.arange(60), np.zeros(60, np.int64), book, 0.3, 10.0, DriftConfig())
    assert found is None or found.explained < 0.5
    # One video's clips agree, but say nothing of other videos.
    alike = unit(random.normal(size=(1, 32)) + 0.1 * random.normal(size=(60, 32)))
    assert cluster_buffer(alike, np.zeros(60, np.int64), np.zeros(60, np.int64), book, 0.3, 10.0, DriftConfig()) is None
    several = cluster_buffer(alike, np.arange(60) // 4, np.zeros(60, np.int64), book, 0.3, 10.0, DriftConfig())
    assert several is not None and several.explained == 1.0 and (several.leaf >= 10).all()


def test_appended_leaves_find_near_parents_or_found_families_up_to_the_top() -> None:
    random = np.random.default_rng(1)
    tops = unit(random.normal(size=(3, 24)))
    middle = unit(np.repeat(tops, 4, axis=0) + 0.15 * random.normal(size=(12, 24)))
    leaves = unit(np.repeat(middle, 5, axis=0) + 0.08 * random.normal(size=(60, 24)))
    book = Codebook((leaves, middle, tops), (np.repeat(np.arange(12), 5).astype(np.int32), np.repeat(np.arange(3), 4).astype(np.int32)), "e")
    far = unit(random.normal(size=(1, 24)))
    young = np.concatenate([unit(middle[4:5] + 0.05 * random.normal(size=(1, 24))), unit(far + 0.03 * random.normal(size=(3, 24)))])
    grown = with_leaves(book, young)
    for level in range(3):
        assert np.array_equal(grown.centroids[level][: len(book.centroids[level])], book.centroids[level])
    assert grown.parents[0][60] == 4 and grown.parents[0][61:].tolist() == [12, 12, 12] and grown.parents[1][12] == 3
    assert grown.ancestors(-1)[60:].tolist() == [1, 3, 3, 3] and np.allclose(np.linalg.norm(grown.centroids[2], axis=1), 1, atol=1e-5)


def test_changed_options_refit_and_the_change_of_codebook_is_measured(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    new = world.batch(10)
    wider = ClustersConfig(clips_per_cluster=8, rounds=(0,), coarse_clusters=4)
    after, summary = world.update("refitted", first, old + new, clusters=wider)  # also when drift is only reported
    assert summary["carried_out"] == "refit" and Codebook.load(after).version != Codebook.load(first).version
    assert any("clips_per_cluster was 10 and is 8" in reason for reason in summary["reasons"])
    report = json.loads((after / "drift.json").read_text())
    assert 0 < report["codebooks"]["churn"] < 1 and 0 < report["codebooks"]["ami_leaves"] < 1 and report["codebooks"]["anchors"] == len(old)
    threads, _ = world.update("other-threads", after, old + new, clusters=wider.model_copy(update={"threads": 2}))
    assert Codebook.load(threads).version == Codebook.load(after).version


def test_a_pool_that_outgrew_its_codebook_is_fitted_again_unless_drift_is_only_reported(tmp_path: Path) -> None:
    world = World(tmp_path)
    clips = world.batch(12)
    first, _ = world.update("first", None, clips)
    clips += world.batch(40)
    kept, told = world.update("kept", first, clips)
    assert told["decision"] == "refit" and told["carried_out"] == "none" and Codebook.load(kept).version == Codebook.load(first).version
    _, summary = world.update("refit", first, clips, drift=DriftConfig())
    assert summary["carried_out"] == "refit" and summary["clusters"] > told["clusters"]


def test_a_pool_outgrows_no_codebook_that_another_fit_would_make_as_large_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    clips = world.batch(12)
    most = ClustersConfig(max_clusters=4, rounds=(0,))
    first, _ = world.update("first", None, clips, clusters=most)
    after, summary = world.update("grown", first, clips + world.batch(40), clusters=most, drift=DriftConfig())
    assert summary["decision"] != "refit" and Codebook.load(after).leaves[:4].tobytes() == Codebook.load(first).leaves.tobytes()


def test_other_targets_are_drift_of_the_demand(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    world.write_targets({"a": 0.95, "b": 0.05})
    after, summary = world.update("reweighted", first, old, drift=DriftConfig())
    assert summary["decision"] == "reweight" and labels(after) == labels(first)
    world.write_targets()


def test_a_kill_between_parts_costs_no_more_than_a_part_and_no_byte(
    fitted: tuple[World, list[Clip], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    world, old, first = fitted
    new = world.batch(20)
    whole, _ = world.update("undisturbed", first, old + new)
    monkeypatch.setattr("pipelines.curation.pool.ASSIGN_ROWS", 16)
    done: list[int] = []

    class Killed(BaseException):
        pass

    def kill(number: int, total: int, text: str = "") -> None:
        done.append(number)
        if len(done) == 3:
            raise Killed

    with pytest.raises(Killed):
        world.update("killed", first, old + new, work=tmp_path / "work", progress=kill)
    assert not (world.root / "killed" / "assignments.parquet").exists()
    shutil.rmtree(world.root / "killed")
    folder, summary = world.update("killed", first, old + new, work=tmp_path / "work")
    assert files(folder) == files(whole) and summary["cost"]["parts_found"] == 3


def test_artefacts_that_do_not_belong_together_are_refused(fitted: tuple[World, list[Clip], Path], tmp_path: Path) -> None:
    world, old, first = fitted
    broken = tmp_path / "broken"
    shutil.copytree(first, broken)
    np.save(broken / "distances.npy", np.zeros(3, np.float32))
    with pytest.raises(StoreError, match="is damaged"):
        world.update("from-broken", broken, old)
    shutil.copyfile(first / "distances.npy", broken / "distances.npy")
    table = read_table(broken / "assignments.parquet", ASSIGNMENTS).to_pylist()
    table[0]["cluster"] = (table[0]["cluster"] + 1) % 5
    write_table(table_of(ASSIGNMENTS, table), broken / "assignments.parquet", ASSIGNMENTS)
    assert "statistics_agree" in failed(check_increment(broken))
    bare = tmp_path / "bare"
    shutil.copytree(first, bare)
    (bare / "leaf_statistics.npz").unlink()
    _, summary = world.update("from-bare", bare, old)
    assert summary["decision"] == "fit" and "without statistics" in summary["reasons"][0]


def test_least_clips_on_either_side(fitted: tuple[World, list[Clip], Path]) -> None:
    world, old, first = fitted
    after, summary = world.update("one-more", first, old + world.batch(1)[:1], drift=DriftConfig())
    assert summary["decision"] == "none" and "too few to compare" in summary["reasons"][0] and increment.LEAST_CLIPS == 2
    assert list(json.loads((after / "drift.json").read_text())["statistics"]) == ["targets"]
