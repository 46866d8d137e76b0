"""Hierarchical k-means with resampling, the codebook it makes of a pool, and balanced samples over its tree."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency
from vector_files import write_vectors

from pipelines.checks import failed
from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.balanced import balanced_quotas, balanced_sample, water_fill
from pipelines.curation.clustering import build_clusters, check_clusters, representatives
from pipelines.curation.codebook import Codebook
from pipelines.curation.embedding import unit_rows
from pipelines.curation.hierarchy import (
    ClustersConfig,
    FitReport,
    allot_centroids,
    fit_codebook,
    nearest_places,
    split_kmeans,
)
from pipelines.curation.kmeans import KMeansConfig, Rows, assign, lloyd, plus_plus, seeds, spherical_kmeans
from pipelines.errors import InputError
from pipelines.parts import open_parts
from pipelines.schemas import ASSIGNMENTS, CLIPS, read_table, table_of, write_table

THREE_LEVELS = ClustersConfig(levels=(24, 8, 3), rounds=(2,), round_rows=(4, 2, 1), starts=1)
WHOLE = st.integers(0, 40)


def blobs(count: int, groups: int, seed: int = 0, size: int = 24, noise: float = 0.15) -> np.ndarray:
    """Unit rows around `groups` directions, equally likely."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(groups, size))
    return unit_rows((centres[random.integers(0, groups, count)] + noise * random.normal(size=(count, size))).astype(np.float32))


def zipf_mixture(count: int, concepts: int, seed: int, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """(unit rows, concepts): concept k is met 1 / k as often as the first."""
    random = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, concepts + 1)
    concept = random.choice(concepts, count, p=share / share.sum())
    centres = random.normal(size=(concepts, 24))
    return unit_rows((centres[concept] + noise * random.normal(size=(count, 24))).astype(np.float32)), concept


def ids(count: int) -> list[str]:
    return [f"clip-{number:05d}" for number in range(count)]


def fit(vectors: np.ndarray, clip_ids: list[str], config: ClustersConfig) -> tuple[Codebook, FitReport]:
    with open_parts(None) as parts:
        return fit_codebook(vectors, clip_ids, "encoder", config, parts)


# --- k-means


@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 1000), st.floats(0.0, 1.0))
@settings(max_examples=40, deadline=None)
def test_objective_never_rises_but_after_a_repair(rows: int, clusters: int, seed: int, noise: float) -> None:
    vectors = blobs(rows, 5, seed, size=6, noise=noise)
    start = vectors[np.random.default_rng(seed).integers(0, rows, min(clusters, rows))]  # repeats: some clusters begin empty
    found = lloyd(Rows(vectors), start, KMeansConfig(iterations=30, tolerance=0.0))
    for before, after, repaired in zip(found.objectives[:-1], found.objectives[1:], found.repaired, strict=True):
        assert after <= before * (1 + 1e-6) + 1e-6 * rows or repaired
    assert found.objectives[-1] == pytest.approx(np.sum(2 - 2 * np.sum(vectors * found.centroids[found.cluster], axis=1)), abs=1e-5 * rows)


def test_labels_are_the_brute_force_nearest_centroids() -> None:
    vectors = blobs(1000, 40)
    found = spherical_kmeans(Rows(vectors), 40, seed=1)
    cosine = vectors.astype(np.float64) @ found.centroids.T.astype(np.float64)
    assert np.array_equal(found.cluster, cosine.argmax(axis=1)) and np.array_equal(assign(vectors, found.centroids)[0], found.cluster)
    assert np.allclose(found.cosine, cosine.max(axis=1), atol=1e-6)
    assert np.allclose(np.linalg.norm(found.centroids, axis=1), 1.0, atol=1e-6)


def test_as_many_clusters_as_rows_leave_no_distance() -> None:
    vectors = blobs(50, 50, noise=0.5)
    found = spherical_kmeans(Rows(vectors), 50, seed=0)
    assert found.objectives[-1] <= 1e-5 and len(set(found.cluster.tolist())) == 50


def test_rows_that_all_repeat_are_clustered_all_the_same() -> None:
    same = np.repeat(blobs(1, 1), 30, axis=0)
    found = spherical_kmeans(Rows(same), 4, seed=0)
    assert found.objectives[-1] <= 1e-4 and np.isfinite(found.centroids).all()
    codebook, _ = fit(same, ids(30), ClustersConfig(levels=(4, 2), round_rows=(4,), rounds=(2,)))
    assert [len(level) for level in codebook.centroids] == [4, 2]


def test_more_clusters_than_rows_are_refused() -> None:
    vectors = blobs(12, 12)
    with pytest.raises(InputError, match="13 clusters cannot be made of 12 vectors"):
        spherical_kmeans(Rows(vectors), 13, seed=0)
    with pytest.raises(InputError, match="cannot be made of 12 vectors"):
        split_kmeans(Rows(vectors), 13, 0, KMeansConfig())
    with pytest.raises(InputError, match="nothing to cluster"):
        fit(vectors[:0], [], ClustersConfig())


def test_empty_clusters_get_a_part_of_the_widest_one() -> None:
    tight, wide = blobs(40, 1, seed=1, noise=0.01), blobs(40, 2, seed=2, noise=0.05)
    vectors = np.concatenate([tight, wide])
    start = np.stack([tight[0], -tight[0], wide[0]])  # nothing is near the second
    found = lloyd(Rows(vectors), start, KMeansConfig())
    assert found.repaired[0] == 1 and sorted(np.bincount(found.cluster, minlength=3).tolist())[0] > 0
    assert len(set(found.cluster[:40].tolist())) == 1 and len(set(found.cluster[40:].tolist())) == 2


def test_seeds_are_different_rows_and_hit_every_far_group() -> None:
    vectors = blobs(400, 8, noise=0.02)
    group = spherical_kmeans(Rows(vectors), 8, seed=0, config=KMeansConfig(starts=5)).cluster
    for seed in range(10):
        places = plus_plus(vectors, 8, np.random.default_rng(seed))
        assert len(set(group[places].tolist())) == 8
    assert len(set(plus_plus(np.repeat(vectors[:2], 5, axis=0), 6, np.random.default_rng(0)).tolist())) == 6
    drawn = seeds(Rows(blobs(5000, 40)), 10, 3)  # of 320 rows
    assert np.array_equal(drawn, seeds(Rows(blobs(5000, 40)), 10, 3)) and len(np.unique(drawn, axis=0)) == 10


def test_seeds_drawn_in_batches_follow_the_law_of_drawing_one_by_one() -> None:
    angle = np.radians([0, 3, 10, 30, 34, 45, 120, 123, 129, 140])  # a far group that most candidates come from until one of it is taken
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    gaps = np.maximum(0.0, 1.0 - vectors.astype(np.float64) @ vectors.T)

    def one_by_one(random: np.random.Generator, count: int) -> tuple[int, ...]:
        chosen = [int(random.integers(len(vectors)))]
        while len(chosen) < count:
            gap = gaps[chosen].min(axis=0)
            tried = random.choice(len(vectors), 2 + int(np.log(count)), p=gap / gap.sum())
            chosen.append(int(min(tried, key=lambda row: np.minimum(gap, gaps[row]).sum())))
        return tuple(sorted(chosen))

    found: list[Counter[tuple[int, ...]]] = [Counter(), Counter()]
    for draw in range(1500):
        found[0][one_by_one(np.random.default_rng([10, draw]), 3)] += 1
        found[1][tuple(sorted(plus_plus(vectors, 3, np.random.default_rng([11, draw])).tolist()))] += 1
    common = [key for key, times in (found[0] + found[1]).items() if times >= 20]
    counts = np.array([[each[key] for key in common] + [1500 - sum(each[key] for key in common)] for each in found])
    assert chi2_contingency(counts).pvalue > 1e-3


def test_two_threads_agree_and_one_repeats_its_bytes() -> None:
    vectors, _ = zipf_mixture(3000, 60, seed=3)
    config = ClustersConfig(levels=(60, 10), rounds=(2,), starts=1)
    first, again, two = (fit(vectors, ids(3000), config.model_copy(update={"threads": threads}))[0] for threads in (1, 1, 2))
    assert first.version == again.version
    labels = [nearest_leaf(vectors, codebook.leaves).leaf for codebook in (first, two)]
    assert (labels[0] == labels[1]).mean() >= 0.999
    assert fit(vectors, ids(3000), config.model_copy(update={"seed": 1}))[0].version != first.version


def test_many_rows_a_cluster_start_on_a_sample_and_end_as_well() -> None:
    vectors = blobs(3000, 4, noise=0.4)
    warm = spherical_kmeans(Rows(vectors), 4, seed=0)  # 750 rows a cluster
    cold = lloyd(Rows(vectors), seeds(Rows(vectors), 4, 0), KMeansConfig())
    assert warm.objectives[-1] <= cold.objectives[-1] * 1.01 and len(warm.objectives) <= len(cold.objectives)


def test_senseless_options_are_refused() -> None:
    for options in ({"starts": 0}, {"threads": 0}, {"iterations": 0}, {"rounds": ()}):
        with pytest.raises(pydantic.ValidationError):
            ClustersConfig(**options)
    with pytest.raises(pydantic.ValidationError, match="no hierarchy"):
        ClustersConfig(levels=(4, 8))


# --- hierarchy


def test_every_clip_is_in_one_leaf_and_sizes_add_up_on_every_level() -> None:
    vectors = blobs(500, 30)
    codebook, report = fit(vectors, ids(500), THREE_LEVELS)
    assert [len(level) for level in codebook.centroids] == [24, 8, 3] and len(codebook.parents) == 2
    leaf = nearest_leaf(vectors, codebook.leaves).leaf
    assert len(leaf) == 500 and set(leaf.tolist()) <= set(range(24))
    for level in range(1, 3):
        above, below = codebook.ancestors(level), codebook.ancestors(level - 1)
        sizes = np.bincount(above[leaf], minlength=len(codebook.centroids[level]))
        children = np.bincount(below[leaf], minlength=len(codebook.centroids[level - 1]))
        assert sizes.sum() == 500 and np.array_equal(sizes, np.bincount(codebook.parents[level - 1], weights=children, minlength=len(sizes)))
        nearest = nearest_leaf(codebook.centroids[level - 1], codebook.centroids[level]).leaf
        assert np.array_equal(codebook.parents[level - 1], nearest)  # a centroid's parent is the nearest of the level above
    assert [(level.clusters, level.rows, len(level.rounds)) for level in report.levels] == [(24, 500, 3), (8, 24, 3), (3, 8, 3)]
    assert all(np.allclose(np.linalg.norm(level, axis=1), 1.0, atol=1e-5) for level in codebook.centroids)


@given(st.permutations(range(300)))
@settings(max_examples=3, deadline=None)
def test_shuffled_clips_give_the_same_codebook(order: list[int]) -> None:
    vectors, clip_ids = blobs(300, 30), ids(300)
    codebook, report = fit(vectors, clip_ids, THREE_LEVELS)
    shuffled, again = fit(vectors[order], [clip_ids[row] for row in order], THREE_LEVELS)
    assert shuffled.version == codebook.version and again.as_dict() == report.as_dict()
    assert np.array_equal(nearest_leaf(vectors[order], codebook.leaves).leaf, nearest_leaf(vectors, codebook.leaves).leaf[order])


def test_memory_mapped_vectors_give_the_same_codebook(tmp_path: Path) -> None:
    vectors = blobs(400, 30)
    np.save(tmp_path / "embeddings.npy", vectors)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    assert fit(mapped, ids(400), THREE_LEVELS)[0].version == fit(vectors, ids(400), THREE_LEVELS)[0].version


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=40), st.integers(1, 5))
def test_a_round_takes_the_nearest_rows_of_every_cluster_and_the_earlier_of_equals(rows: list[tuple[int, int]], count: int) -> None:
    cluster, cosine = np.array([row[0] for row in rows]), np.array([row[1] / 4 for row in rows], np.float32)
    expected = [
        place
        for number in set(cluster.tolist())
        for place in sorted(np.flatnonzero(cluster == number), key=lambda row: (-cosine[row], row))[:count]
    ]
    assert nearest_places(cluster, cosine, count).tolist() == sorted(expected)


def test_rounds_follow_the_levels_and_stop_where_clusters_are_small() -> None:
    config = ClustersConfig(rounds=(5, 2), round_rows=(0, 3))
    assert config.resampling(0, 800, 100) == (5, 4) and config.resampling(0, 700, 100) == (0, 3)
    assert config.resampling(1, 100, 50) == (2, 3) and config.resampling(2, 50, 25) == (2, 3)


def test_cluster_count_follows_the_pool() -> None:
    pools = (1, 3, 40, 150, 209, 290, 5000, 50_000, 10**6)
    assert [ClustersConfig().sizes(clips) for clips in pools] == [
        (1, 1), (1, 1), (10, 6), (37, 6), (48, 6), (48, 6), (200, 14), (632, 25), (2828, 53),
    ]  # fmt: skip
    assert ClustersConfig(clips_per_cluster=210).sizes(316_000_000)[0] == 1_504_761  # a number decides alone
    assert ClustersConfig(clips_per_cluster=20, max_clusters=900, coarse_clusters=7).sizes(50_000) == (900, 7)


def test_no_level_has_more_clusters_than_there_are_clips() -> None:
    assert ClustersConfig(levels=(1_500_000, 20, 3)).sizes(12) == (12, 12, 3)
    codebook, _ = fit(blobs(12, 12), ids(12), ClustersConfig(levels=(1_500_000, 3)))
    assert [len(level) for level in codebook.centroids] == [12, 3]


@given(st.lists(st.tuples(WHOLE, st.floats(0.0, 5.0)), min_size=1, max_size=10), st.data())
def test_centroids_are_allotted_whole_between_one_and_the_rows_of_a_cluster(clusters: list[tuple[int, float]], data: st.DataObject) -> None:
    sizes, weights = np.array([row[0] for row in clusters]), np.array([row[0] and row[1] for row in clusters], np.float64)
    if sizes.sum() == 0:
        return
    total = data.draw(st.integers(int((sizes > 0).sum()), int(sizes.sum())))
    parts = allot_centroids(weights, sizes, total)
    assert parts.sum() == total and (parts <= sizes).all() and (parts >= np.minimum(sizes, 1)).all()
    free = (parts > 1) & (parts < sizes) & (weights > 1e-6)
    for first in np.flatnonzero(free):  # what is not at a bound is in proportion, to one centroid
        for second in np.flatnonzero(free):
            assert (parts[first] - 1) / weights[first] <= (parts[second] + 1) / weights[second] * (1 + 1e-6)


def test_two_steps_make_as_many_clusters_nearly_as_good() -> None:
    vectors, _ = zipf_mixture(4000, 50, seed=5)
    flat = spherical_kmeans(Rows(vectors), 100, seed=0)
    centroids, first = split_kmeans(Rows(vectors), 100, 0, KMeansConfig())
    assert centroids.shape == flat.centroids.shape and len(first.centroids) == 10
    objective = np.sum(2 - 2 * assign(vectors, centroids)[1].astype(np.float64))
    assert objective <= flat.objectives[-1] * 1.05
    codebook, report = fit(vectors, ids(4000), ClustersConfig(levels=(100, 9), split_from=50, rounds=(2, 0), starts=1))
    assert len(codebook.leaves) == 100 and report.levels[0].rounds[0].objective == pytest.approx(objective, rel=0.05)


def test_a_killed_fit_goes_on_at_its_round_and_ends_the_same(tmp_path: Path) -> None:
    vectors, clip_ids = blobs(400, 30), ids(400)
    undisturbed, report = fit(vectors, clip_ids, THREE_LEVELS)

    def killed(done: int, total: int, what: str) -> None:
        assert total == 9
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_parts(tmp_path) as parts:
        fit_codebook(vectors, clip_ids, "encoder", THREE_LEVELS, parts, killed)
    with open_parts(tmp_path) as parts:
        codebook, again = fit_codebook(vectors, clip_ids, "encoder", THREE_LEVELS, parts)
    assert codebook.version == undisturbed.version and again.as_dict() == report.as_dict()
    assert parts.cost(400, "clips")["parts_found"] == 5 and len(parts.made) == 9


# --- balanced samples


@given(st.lists(WHOLE, min_size=1, max_size=12).map(np.array), st.integers(0, 300), st.integers(0, 5))
def test_water_filling_is_whole_level_and_never_falls(room: np.ndarray, total: int, seed: int) -> None:
    share, more = water_fill(room, total, seed), water_fill(room, total + 1, seed)
    assert share.sum() == min(total, room.sum()) and (share >= 0).all() and (share <= room).all()
    assert (more >= share).all()
    if (share < room).any():
        level = share[share < room]
        assert level.max() - level.min() <= 1 and share.max() <= level.min() + 1


def tree(seed: int, leaves: int = 12, middle: int = 5, top: int = 2) -> Codebook:
    """A codebook with branches of unlike size; its centroids do not matter here."""
    random = np.random.default_rng(seed)
    parents = tuple(random.integers(0, above, below).astype(np.int32) for below, above in ((leaves, middle), (middle, top)))
    return Codebook(tuple(np.ones((size, 2), np.float32) for size in (leaves, middle, top)), parents, "encoder")


@given(st.integers(0, 50), st.lists(st.integers(0, 11), min_size=1, max_size=200).map(np.array), st.integers(0, 220))
@settings(max_examples=60, deadline=None)
def test_balanced_sample_pours_evenly_through_the_tree(seed: int, leaf: np.ndarray, size: int) -> None:
    codebook, clip_ids = tree(seed), ids(len(leaf))
    sizes = np.bincount(leaf, minlength=12)
    quotas = balanced_quotas(codebook, sizes, size, seed)
    assert [len(level) for level in quotas] == [12, 5, 2] and all(level.sum() == min(size, len(leaf)) for level in quotas)
    for level, parents in enumerate(codebook.parents):
        assert np.array_equal(np.bincount(parents, weights=quotas[level], minlength=len(quotas[level + 1])), quotas[level + 1])
    rows = balanced_sample(codebook, leaf, clip_ids, size, seed)
    assert np.array_equal(np.bincount(leaf[rows], minlength=12), quotas[0]) and len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(balanced_sample(codebook, leaf, clip_ids, size + 7, seed).tolist())  # larger samples contain smaller ones
    order = np.random.default_rng(seed).permutation(len(leaf))
    shuffled = balanced_sample(codebook, leaf[order], [clip_ids[row] for row in order], size, seed)
    assert sorted(order[shuffled].tolist()) == rows.tolist()


def test_nearest_picks_are_nearest_and_need_the_similarities() -> None:
    codebook, leaf = tree(1), np.repeat(np.arange(12), 10)
    similarity = np.random.default_rng(0).random(120).astype(np.float32)
    rows = balanced_sample(codebook, leaf, ids(120), 40, 3, "nearest", similarity)
    taken = np.zeros(120, bool)
    taken[rows] = True
    for number in range(12):
        inside = leaf == number
        assert not taken[inside].any() or taken[inside].all() or similarity[inside & taken].min() >= similarity[inside & ~taken].max()
    with pytest.raises(InputError, match="cannot be drawn"):
        balanced_sample(codebook, leaf, ids(120), 40, 3, "nearest")
    with pytest.raises(InputError, match="do not fit the codebook"):
        balanced_sample(codebook, leaf + 1, ids(120), 40, 3)
    assert len(balanced_sample(codebook, leaf[:0], [], 40, 3)) == 0


def test_hierarchy_is_nearer_to_uniform_over_concepts_than_flat_clusters_and_these_than_chance() -> None:
    away: dict[str, list[float]] = {"hierarchy": [], "flat": [], "random": []}
    for seed in range(3):
        vectors, concept = zipf_mixture(6000, 60, seed)
        clip_ids = ids(6000)

        def divergence(rows: np.ndarray, concept: np.ndarray = concept) -> float:
            share = np.bincount(concept[rows], minlength=60) / len(rows)
            return float(np.sum(share[share > 0] * np.log(60 * share[share > 0])))

        for name, config in (
            ("hierarchy", ClustersConfig(levels=(60, 12), rounds=(5,), starts=1, seed=seed)),
            ("flat", ClustersConfig(levels=(60,), rounds=(0,), starts=1, seed=seed)),
        ):
            codebook, _ = fit(vectors, clip_ids, config)
            leaf = nearest_leaf(vectors, codebook.leaves).leaf
            away[name].append(divergence(balanced_sample(codebook, leaf, clip_ids, 600, seed)))
        away["random"].append(divergence(np.random.default_rng(seed).choice(6000, 600, replace=False)))
    assert all(first < second < third for first, second, third in zip(away["hierarchy"], away["flat"], away["random"], strict=True)), away


# --- the stage


def write_pool(folder: Path, vectors: np.ndarray, source: str, encoder: str = "d") -> Path:
    folder.mkdir()
    rows = [{"clip_id": f"{source[:4]}-{number:04d}", "video_id": f"v{number}", "source": source} for number in range(len(vectors))]
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    write_vectors(folder, [row["clip_id"] for row in rows], vectors)
    (folder / "encoder.json").write_text(json.dumps({"name": "x", "digest": encoder}))
    return folder


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Runs the stage on 260 clips and 20 target clips into a folder of the name given."""
    vectors = blobs(260, 50)
    pool, targets = write_pool(tmp_path / "pool", vectors, "pool"), write_pool(tmp_path / "targets", blobs(20, 50, seed=9), "push/train")

    def run(name: str, **options: Any) -> tuple[Path, dict[str, Any]]:
        (tmp_path / name).mkdir()
        return tmp_path / name, build_clusters(tmp_path / name, pool, targets, targets, **options)

    return run


def test_stage_writes_a_codebook_and_where_everything_lies(stage: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    folder, summary = stage("made")
    assert summary["clusters"] == 48 and summary["coarse_clusters"] == 6 and summary["levels"] == [48, 6] and not failed(check_clusters(folder))
    codebook = Codebook.load(folder)
    table = read_table(folder / "assignments.parquet", ASSIGNMENTS)
    vectors = np.load(tmp_path / "pool" / "embeddings.npy")
    brute = (vectors.astype(np.float64) @ codebook.leaves.T.astype(np.float64)).argmax(axis=1)
    assert np.array_equal(table.column("cluster").to_numpy(), brute) and not any(table.column("novel").to_pylist())
    assert np.array_equal(table.column("coarse_cluster").to_numpy(), codebook.parents[0][brute])
    note = json.loads((folder / "objective.json").read_text())
    assert note["codebook"] == codebook.version == summary["codebook"] and note["levels"][0]["rounds"][0]["objectives"]
    assert note["objective"] == pytest.approx(note["levels"][0]["rounds"][-1]["objective"], rel=1e-5)
    shown = json.loads((folder / "representatives.json").read_text())
    assert len(shown) == 48 and all(len(found) == min(3, size) for found, size in zip(shown.values(), np.bincount(brute, minlength=48), strict=True))
    assert (folder / "cluster_map.png").stat().st_size <= 100_000 and summary["cost"]["items"] == 260


def test_stage_repeats_its_bytes_and_finds_its_parts(stage: Callable[..., tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    first, _ = stage("first", work=tmp_path / "work")
    second, summary = stage("second", work=tmp_path / "work")
    third, _ = stage("third")
    assert summary["cost"]["parts_found"] == summary["cost"]["parts"]
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes() == (third / path.name).read_bytes(), path.name


def test_a_pool_without_targets_is_clustered(tmp_path: Path) -> None:
    pool, targets = write_pool(tmp_path / "pool", blobs(60, 9), "pool"), write_pool(tmp_path / "targets", np.empty((0, 24), np.float32), "none")
    (tmp_path / "made").mkdir()
    summary = build_clusters(tmp_path / "made", pool, targets, targets)
    assert summary["clusters_with_targets"] == 0 and summary["target_mean_cosine"] is None and not failed(check_clusters(tmp_path / "made"))


def test_stage_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    pool, targets = write_pool(tmp_path / "pool", blobs(60, 9), "pool"), write_pool(tmp_path / "targets", blobs(9, 9), "push/train", "other")
    with pytest.raises(InputError, match="different encoders"):
        build_clusters(tmp_path, pool, targets, targets)
    with pytest.raises(InputError, match="does not embed the clips"):
        build_clusters(tmp_path, pool, pool, targets)
    empty = write_pool(tmp_path / "empty", np.empty((0, 24), np.float32), "pool")
    with pytest.raises(InputError, match="no distinct clip"):
        build_clusters(tmp_path, empty, empty, empty)


def test_check_finds_clips_outside_their_leaves_and_centroids_of_wrong_length(stage: Callable[..., tuple[Path, dict[str, Any]]]) -> None:
    folder, _ = stage("made")
    table = read_table(folder / "assignments.parquet", ASSIGNMENTS)
    wrong = table.set_column(2, "coarse_cluster", table.column("cluster"))
    write_table(wrong, folder / "assignments.parquet", ASSIGNMENTS)
    assert set(failed(check_clusters(folder))) == {"not_empty"}
    write_table(table, folder / "assignments.parquet", ASSIGNMENTS)
    codebook = Codebook.load(folder)
    Codebook((2 * codebook.leaves, codebook.centroids[1]), codebook.parents, "d").save(folder)
    assert set(failed(check_clusters(folder))) == {"not_empty"}


def test_representatives_are_nearest_first_and_by_id_among_equals() -> None:
    found = representatives(["d", "c", "b", "a", "e"], np.array([1, 1, 1, 1, 0]), np.array([0.5, 0.9, 0.5, 0.5, 0.1]), 3)
    assert found == {"0": ["e"], "1": ["c", "a", "b"], "2": []}
