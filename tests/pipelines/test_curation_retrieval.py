"""Clustering and target-weighted retrieval: exact redistribution, the paper's formula, and the whole chain's report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.checks import failed
from pipelines.curation.clustering import ClustersConfig, build_clusters, check_clusters
from pipelines.curation.duplicates import build_distinct
from pipelines.curation.embedding import unit_rows, write_vectors
from pipelines.curation.kmeans import assign, plus_plus_rows, spherical_kmeans
from pipelines.curation.report import funnel
from pipelines.curation.retrieval import (
    SelectionConfig,
    allot,
    build_selection,
    capped,
    check_selection,
    demand_of,
    divergence,
)
from pipelines.errors import InputError
from pipelines.schemas import ASSIGNMENTS, CLIPS, QUARANTINE, SELECTION, VIDEOS, read_table, table_of, write_table
from pipelines.store import Store

masses = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12).map(np.array)
problems = st.integers(1, 10).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(1e-6, 1.0), min_size=count, max_size=count).map(lambda values: np.array(values) / sum(values)),
        st.lists(st.integers(0, 30), min_size=count, max_size=count).map(lambda values: np.array(values, np.int64)),
        st.floats(0.001, 1.0),
    )
)


@given(problems)
def test_capped_mass_is_whole_and_no_cluster_exceeds_its_room(problem: tuple[np.ndarray, np.ndarray, float]) -> None:
    shares, counts, ceiling = problem
    placed, excess = capped(shares, counts, ceiling)
    assert placed.sum() + excess == pytest.approx(1.0, abs=1e-9)
    assert (placed <= ceiling * counts + 1e-12).all() and (placed >= 0).all()
    unsaturated = (placed > 0) & (placed < ceiling * counts * (1 - 1e-9))
    ratios = placed[unsaturated] / shares[unsaturated]
    assert np.allclose(ratios, ratios[:1], rtol=1e-6)  # what is not full keeps the requested proportions
    if excess > 1e-9:
        assert np.allclose(placed, np.where(shares > 0, ceiling * counts, 0.0))


@given(problems, st.randoms(use_true_random=False))
def test_capped_mass_does_not_depend_on_the_order_of_clusters(problem: tuple[np.ndarray, np.ndarray, float], random: Any) -> None:
    shares, counts, ceiling = problem
    order = list(range(len(shares)))
    random.shuffle(order)
    assert np.allclose(capped(shares, counts, ceiling)[0][order], capped(shares[order], counts[order], ceiling)[0], atol=1e-12)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=60), st.lists(st.floats(0, 1), min_size=8, max_size=8), st.floats(1, 10), st.floats(0, 1))
def test_weights_are_a_distribution_below_the_cap_whatever_is_asked(clusters: list[int], asked: list[float], cap: float, mix: float) -> None:
    demand = (np.array(asked) + 1e-3) / (np.array(asked) + 1e-3).sum()
    found = allot(np.array(clusters), demand, SelectionConfig(repeat_cap=cap, uniform_mix=mix))
    assert found.weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert found.weights.max() * len(clusters) <= cap * (1 + 1e-6)
    assert found.weights.min() * len(clusters) >= mix * (1 - 1e-9)
    assert found.unserved == pytest.approx(demand[np.bincount(clusters, minlength=8) == 0].sum())


def test_without_cap_and_mix_the_weights_are_the_papers_formula() -> None:
    hits = {"a": np.array([3.0, 1.0, 0.0, 0.0]), "b": np.array([0.0, 2.0, 2.0, 0.0])}
    demand = demand_of(hits, {"a": 0.7, "b": 0.3}, support=1)
    assert np.allclose(demand.clusters, [0.525, 0.325, 0.15, 0.0])
    cluster = np.array([0, 0, 0, 1, 2, 2, 3])
    found = allot(cluster, demand.clusters, SelectionConfig(repeat_cap=1e9, uniform_mix=0.0))
    assert np.allclose(found.weights, [0.175, 0.175, 0.175, 0.325, 0.075, 0.075, 0.0])


def test_support_weight_zero_and_duplicated_targets_act_as_documented() -> None:
    hits = {"a": np.array([5.0, 1.0, 0.0]), "b": np.array([0.0, 0.0, 9.0])}
    assert np.allclose(demand_of(hits, {"a": 1.0, "b": 1.0}, support=4).share["a"], [1, 0, 0])
    assert np.allclose(demand_of(hits, {"a": 1.0, "b": 0.0}, support=1).clusters, [5 / 6, 1 / 6, 0])
    doubled = {name: 2 * values for name, values in hits.items()}
    both = {"a": 0.4, "b": 0.6}
    assert np.allclose(demand_of(hits, both, 1).clusters, demand_of(doubled, both, 1).clusters)
    with pytest.raises(InputError, match="no cluster with 10"):
        demand_of(hits, both, support=10)
    with pytest.raises(InputError, match="no target set has a weight"):
        demand_of(hits, {"a": 0.0, "b": 0.0}, support=1)


def test_demand_on_empty_clusters_is_reported_and_mass_the_cap_refuses_is_spilled() -> None:
    found = allot(np.array([0, 0, 1, 1]), np.array([0.5, 0.0, 0.5]), SelectionConfig(repeat_cap=1.5, uniform_mix=0.0))
    assert found.unserved == pytest.approx(0.5) and found.spilled == pytest.approx(0.25)
    assert np.allclose(found.weights, [0.375, 0.375, 0.125, 0.125])


@given(masses, masses)
def test_divergence_is_zero_only_for_equals_and_never_negative(first: np.ndarray, second: np.ndarray) -> None:
    size = min(len(first), len(second))
    a, b = first[:size] + 1e-3, second[:size] + 1e-3
    a, b = a / a.sum(), b / b.sum()
    assert divergence(a, a) == pytest.approx(0.0, abs=1e-12) and divergence(a, b) >= -1e-12
    assert divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


def blobs(count: int, groups: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(groups, 24))
    return unit_rows((centres[random.integers(0, groups, count)] + 0.15 * random.normal(size=(count, 24))).astype(np.float32))


def test_kmeans_repeats_its_bytes_finds_blobs_and_assigns_to_the_nearest() -> None:
    vectors = blobs(300, 8)
    first, second = (spherical_kmeans(vectors, 8, seed=3) for _ in range(2))
    assert first.centroids.tobytes() == second.centroids.tobytes() and first.objective > 0.8
    cluster, cosine = assign(vectors, first.centroids)
    assert np.array_equal(cluster, (vectors @ first.centroids.T).argmax(axis=1)) and len(set(cluster.tolist())) == 8
    assert np.allclose(cosine, (vectors @ first.centroids.T).max(axis=1), atol=1e-5)


def test_kmeans_bears_duplicates_only_and_as_many_clusters_as_rows() -> None:
    same = np.repeat(blobs(1, 1), 6, axis=0)
    assert len(set(plus_plus_rows(same, 4, 0).tolist())) == 4
    assert spherical_kmeans(same, 3, seed=0).objective == pytest.approx(1.0, abs=1e-5)
    vectors = blobs(12, 12)
    assert spherical_kmeans(vectors, 12, seed=0).objective == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(InputError, match="cannot be made"):
        spherical_kmeans(vectors, 13, seed=0)


def clip_row(number: int, source: str, label: str = "") -> dict[str, Any]:
    return {
        "clip_id": f"{source}-{number:04d}".replace("/", "-"), "video_id": f"v-{source}-{number}", "batch": "b", "path": f"/{source}/{number}.mp4",
        "start_pts": 0, "end_pts": 10, "time_base_num": 1, "time_base_den": 10, "start_s": 0.0, "end_s": 1.0 + number / 1000,
        "frames": 10, "width": 64, "height": 64, "frame_rate": 10.0, "splitter": "x", "motion": 1.0, "brightness": 90.0,
        "fingerprint": np.random.default_rng(hash_of(source, number)).bytes(160).hex(), "source": source, "licence": "", "uploader": "", "label": label,
    }  # fmt: skip


def hash_of(source: str, number: int) -> int:
    return sum(map(ord, source)) * 10_000 + number


def write_clips(folder: Path, rows: list[dict[str, Any]], vectors: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    write_table(table_of(CLIPS, rows), folder / "clips.parquet", CLIPS)
    write_table(table_of(QUARANTINE, []), folder / "quarantine.parquet", QUARANTINE)
    write_vectors(folder, [row["clip_id"] for row in rows], vectors)
    (folder / "encoder.json").write_text('{"name": "x", "digest": "d"}')


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store whose curation stages ran on 160 made-up clips; two target sets live in three of the twelve blobs."""
    root = tmp_path_factory.mktemp("chain")
    store = Store.open(root / "store")
    vectors = blobs(160, 12)
    labels = (vectors @ vectors[:1].T)[:, 0]
    near = np.argsort(-labels)
    target_rows = [clip_row(number, f"{name}/{split}", "ab"[number % 2]) for name in ("push", "lift") for split in ("train", "eval") for number in range(4)]
    places = [near[number] if row["source"].startswith("push") else near[-1 - number] for number, row in enumerate(target_rows)]
    noise = np.random.default_rng(5).normal(scale=0.03, size=(len(places), 24)).astype(np.float32)

    def videos(folder: Path) -> dict[str, Any]:
        write_table(table_of(VIDEOS, [{"video_id": str(number)} for number in range(160)]), folder / "videos.parquet", VIDEOS)
        write_table(table_of(QUARANTINE, [{"code": "not_a_video"}]), folder / "quarantine.parquet", QUARANTINE)
        return {}

    def pool(folder: Path) -> dict[str, Any]:
        write_clips(folder, [clip_row(number, "pool") for number in range(160)], vectors)
        return {}

    def targets(folder: Path) -> dict[str, Any]:
        write_clips(folder, target_rows, unit_rows(vectors[places] + noise))
        (folder / "targets.json").write_text(json.dumps([{"name": "push", "weight": 0.75}, {"name": "lift", "weight": 0.25}]))
        return {}

    def accept(asset: str, build: Any, inputs: Any = (), partition: str | None = None) -> Path:
        artefact = store.produce(asset, build, inputs=inputs, partition=partition)
        store.accept(artefact, {})
        return artefact.path

    accept("videos", videos, partition="pool-0001")
    clips = accept("clips", pool, partition="pool-0001")
    target = accept("target_videos", targets)
    distinct = accept("distinct_clips", lambda folder: build_distinct(folder, {"pool-0001": (clips, clips)}, target, target))
    clusters = accept("clip_clusters", lambda folder: build_clusters(folder, distinct, target, target))
    accept("curated_clips", lambda folder: build_selection(folder, distinct, clusters, target))
    return store


def test_selection_reaches_the_targets_and_passes_its_checks(chain: Store) -> None:
    clusters, selection = chain.current("clip_clusters"), chain.current("curated_clips")
    assert clusters.summary["clusters"] == 40 and not failed(check_clusters(clusters.path))
    assert not failed(check_selection(selection.path))
    table = read_table(selection.file("selection.parquet"), SELECTION)
    weights = table.column("weight").to_numpy()
    assert abs(weights.sum() - 1) < 1e-9 and weights.max() * 160 <= 6 + 1e-6 and selection.summary["kl"] > 0.1
    targets = json.loads(selection.file("distribution.json").read_text())["targets"]
    assert all(row["achieved"] > 1.5 * row["uniform"] for row in targets.values())
    earned = set(table.column("target").to_pylist())
    assert {"push", "lift", "uniform"} == earned


def test_whole_chain_repeats_its_bytes(chain: Store, tmp_path: Path) -> None:
    distinct, clusters, target = (chain.current(name).path for name in ("distinct_clips", "clip_clusters", "target_videos"))
    for name in ("clusters", "selection"):
        (tmp_path / name).mkdir()
    build_clusters(tmp_path / "clusters", distinct, target, target)
    build_selection(tmp_path / "selection", distinct, tmp_path / "clusters", target)
    for made, artefact in (("clusters", clusters), ("selection", chain.current("curated_clips").path)):
        for path in sorted((tmp_path / made).iterdir()):
            assert path.read_bytes() == (artefact / path.name).read_bytes(), path.name
            assert not path.name.endswith(".png") or path.stat().st_size <= 100_000


def test_smoothing_spreads_demand_and_needs_the_vectors(chain: Store, tmp_path: Path) -> None:
    distinct, clusters, target = (chain.current(name).path for name in ("distinct_clips", "clip_clusters", "target_videos"))
    with pytest.raises(InputError, match="smoothing needs"):
        build_selection(tmp_path, distinct, clusters, target, config=SelectionConfig(smoothing=3))
    build_selection(tmp_path, distinct, clusters, target, target, SelectionConfig(smoothing=3, support=0))
    plain = json.loads(chain.current("curated_clips").file("distribution.json").read_text())
    assert json.loads((tmp_path / "distribution.json").read_text())["supported_clusters"] > plain["supported_clusters"]


def test_evaluation_video_in_the_selection_and_uniform_selection_fail_the_checks(chain: Store, tmp_path: Path) -> None:
    distinct, clusters, target = (chain.current(name).path for name in ("distinct_clips", "clip_clusters", "target_videos"))
    build_selection(tmp_path, distinct, clusters, target, config=SelectionConfig(uniform_mix=1.0))
    assert set(failed(check_selection(tmp_path))) == {"differs_from_uniform"}
    leaky = tmp_path / "leaky"
    shutil.copytree(target, leaky)
    rows = read_table(target / "clips.parquet", CLIPS).to_pylist()
    pool_video = read_table(distinct / "clips.parquet", CLIPS).column("video_id").to_pylist()[0]
    rows[-1]["video_id"] = pool_video
    write_table(table_of(CLIPS, rows), leaky / "clips.parquet", CLIPS)
    build_selection(tmp_path, distinct, clusters, leaky)
    assert set(failed(check_selection(tmp_path))) == {"no_evaluation_leak"}


def test_clusters_of_other_clips_are_refused(chain: Store, tmp_path: Path) -> None:
    distinct, clusters, target = (chain.current(name).path for name in ("distinct_clips", "clip_clusters", "target_videos"))
    other = tmp_path / "clusters"
    shutil.copytree(clusters, other)
    write_table(read_table(clusters / "assignments.parquet", ASSIGNMENTS).slice(1), other / "assignments.parquet", ASSIGNMENTS)
    with pytest.raises(InputError, match="of other clips"):
        build_selection(tmp_path, distinct, other, target)


def test_cluster_count_follows_the_pool() -> None:
    assert [ClustersConfig().clusters(clips) for clips in (1, 3, 40, 150, 5000)] == [1, 1, 10, 37, 48]


def test_funnel_is_read_from_the_artefacts_alone(chain: Store) -> None:
    rows = {(row["stage"], row["reason"]): row["count"] for row in funnel(Store.open(chain.root, create=False))}
    assert rows[("files", "found")] == 161 and rows[("videos", "quarantined: not a video")] == 1
    assert rows[("videos", "decodable")] == rows[("clips", "cut")] == rows[("distinct", "kept")] == rows[("selected", "with a weight")] == 160
    assert funnel(Store.open(chain.root.parent / "empty")) == []
