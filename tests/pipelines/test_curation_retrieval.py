"""The selection as a stage: what it writes and reports, its modes and options, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_files import write_vectors

from pipelines.checks import failed
from pipelines.curation.codebook import Codebook
from pipelines.curation.distribution import divergence
from pipelines.curation.embedding import unit_rows
from pipelines.curation.pictures import draw_distribution
from pipelines.curation.retrieval import build_selection, check_selection
from pipelines.curation.selection import SelectionConfig
from pipelines.errors import InputError
from pipelines.schemas import ASSIGNMENTS, CLIPS, REMOVALS, SELECTION, read_table, table_of, write_table

CLUSTERS, POOL = 16, 400
SETS = {"push": 0.75, "lift": 0.25}
FILES = ("selection.parquet", "distribution.json", "distribution.png")


@dataclass(frozen=True)
class Made:
    """Artefact folders of a made-up pool: 400 clips of 100 videos in 16 clusters, of which push and lift like three each."""

    distinct: Path
    clusters: Path
    targets: Path

    def select(self, folder: Path, work: Path | None = None, **options: Any) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        return build_selection(folder, self.distinct, self.clusters, self.targets, self.targets, SelectionConfig(**options), work)


def make(root: Path, order: np.ndarray | None = None) -> Made:
    """The artefacts, their pool's rows in `order`."""
    random = np.random.default_rng(3)
    leaves = unit_rows(random.normal(size=(CLUSTERS, 8)).astype(np.float32))
    sizes = 1.0 / np.arange(1, CLUSTERS)  # the last cluster stays empty
    cluster = random.choice(CLUSTERS - 1, POOL, p=sizes / sizes.sum())
    rows = [
        {
            "clip_id": f"{number * 7919 % 100_003:020x}", "video_id": f"video-{number // 4:03d}", "start_s": 10.0 * (number % 4), "source": "pool",
            "licence": ("cc-by", "cc-by-nc", "")[number % 3], "uploader": ("", "ann", "ben", "cat", "dan", "eve")[number // 4 % 6], "language": "en" if number % 5 else None,
        }
        for number in range(POOL)
    ]  # fmt: skip
    held = [
        {"clip_id": f"{name}-{split}-{number:02d}", "video_id": f"{name}-{split}-{number:02d}", "source": f"{name}/{split}", "label": "ab"[number % 2]}
        for name in SETS for split in ("train", "eval") for number in range(9)
    ]  # fmt: skip
    liked = [({"push": (1, 2, 15), "lift": (2, 9, 12)}[row["source"].split("/")[0]])[number % 3] for number, row in enumerate(held)]
    order = np.arange(POOL) if order is None else order
    made = Made(root / "distinct", root / "clusters", root / "targets")
    for folder, clips, places in ((made.distinct, [rows[row] for row in order], cluster[order]), (made.targets, held, np.array(liked))):
        folder.mkdir(parents=True)
        write_table(table_of(CLIPS, clips), folder / "clips.parquet", CLIPS)
        noise = np.random.default_rng(4).normal(scale=0.1, size=(POOL, 8)).astype(np.float32)[: len(clips)]
        write_vectors(folder, [row["clip_id"] for row in clips], unit_rows(leaves[places] + noise))
        (folder / "encoder.json").write_text('{"name": "x", "digest": "d"}')
    write_table(table_of(REMOVALS, []), made.distinct / "removals.parquet", REMOVALS)
    (made.targets / "targets.json").write_text(json.dumps([{"name": name, "weight": weight} for name, weight in SETS.items()]))
    made.clusters.mkdir()
    tops = unit_rows(random.normal(size=(4, 8)).astype(np.float32))
    Codebook((leaves, tops), ((np.arange(CLUSTERS) % 4).astype(np.int32),), "d").save(made.clusters)
    for name, clips, places in (("assignments", [rows[row] for row in order], cluster[order]), ("target_assignments", held, liked)):
        found = [
            {"clip_id": row["clip_id"], "cluster": int(leaf), "coarse_cluster": int(leaf) % 4, "similarity": 1.0 - int(row["clip_id"][-3:], 36) / 50_000, "novel": False}
            for row, leaf in zip(clips, places, strict=True)
        ]  # fmt: skip
        write_table(table_of(ASSIGNMENTS, found), made.clusters / f"{name}.parquet", ASSIGNMENTS)
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made"))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return read_table(folder / "selection.parquet", SELECTION).to_pylist()


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "distribution.json").read_text())
    return found


def test_selection_reaches_the_targets_and_passes_its_checks(made: Made, tmp_path: Path) -> None:
    summary = made.select(tmp_path)
    assert not failed(check_selection(tmp_path))
    rows, report = rows_of(tmp_path), report_of(tmp_path)
    weights = np.array([row["weight"] for row in rows])
    assert len(rows) == POOL and abs(weights.sum() - 1) < 1e-9 and weights.max() * POOL <= 4 + 1e-6 and summary["kl"] > 0.1
    assert all(row["achieved"] > 1.5 * row["uniform"] for row in report["targets"].values())
    assert {row["target"] for row in rows} == {"push", "lift", "uniform"} and summary["cost"]["items"] == POOL
    assert report["effective_clips"] == pytest.approx(1 / np.square(weights).sum()) and report["pool_clips"] == report["draws"] == POOL


def test_repeats_and_credits_add_up_to_the_draws(made: Made, tmp_path: Path) -> None:
    made.select(tmp_path, draws=1000, repeat_cap=6.0)
    rows = rows_of(tmp_path)
    assert sum(row["repeats"] for row in rows) == 1000 and max(row["repeats"] for row in rows) <= 6
    for row in rows:
        assert sum(row["credit_shares"]) == pytest.approx(1.0, abs=1e-6) and row["credit_targets"][-1] == "uniform"
        assert row["target"] == "uniform" if row["credit_targets"] == ["uniform"] else row["target"] in row["credit_targets"][:-1]
    paid: dict[str, float] = {}
    for row in rows:
        for name, share in zip(row["credit_targets"], row["credit_shares"], strict=True):
            paid[name] = paid.get(name, 0.0) + row["repeats"] * share
    balance = report_of(tmp_path)["balance"]
    assert sum(paid.values()) == pytest.approx(1000, abs=1e-3) and all(abs(paid[name] / 1000 - row["credited"]) < 0.01 for name, row in balance.items())


def test_report_tells_where_unserved_and_spilled_mass_went(made: Made, tmp_path: Path) -> None:
    made.select(tmp_path, uniform_mix=0.0, repeat_cap=1.0, draws=126)
    report = report_of(tmp_path)
    assert report["unserved_mass"] == pytest.approx(0.75 / 3) and report["unserved_clusters"] == [15] and report["coverage"] == pytest.approx(4 / 5)
    assert report["targets"]["push"]["coverage"] == pytest.approx(2 / 3) and report["targets"]["lift"]["coverage"] == 1.0
    for row in report["balance"].values():
        assert row["credited"] == pytest.approx(row["asked"] - row["unserved"] - row["spilled"] + row["gained"], abs=1e-9)
    gained, lost = (sum(row[name] for row in report["balance"].values()) for name in ("gained", "unserved"))
    assert gained == pytest.approx(lost + report["spilled_mass"]) and report["spilled_mass"] > 0
    assert next(row for row in report["quotas"] if row["quota"] == "repeat_cap")["full"] > 0


def test_report_tells_what_each_option_changed(made: Made, tmp_path: Path) -> None:
    made.select(tmp_path / "many", smoothing=3, smoothing_temperature=0.3, support=2, uploader_share=0.18, licence_shares={"cc-by-nc": 0.2})
    effects = report_of(tmp_path / "many")["effects"]
    assert set(effects) == {"smoothing", "support", "uniform_mix", "repeat_cap", "uploader_share", "licence_shares"}
    assert all(0 <= value <= 1 for value in effects.values()) and effects["smoothing"] > 0.01
    made.select(tmp_path / "tight", repeat_cap=2.0)
    assert report_of(tmp_path / "tight")["effects"]["uniform_mix"] is None  # without it the cap leaves no room


def test_nothing_depends_on_the_order_of_the_rows(made: Made, tmp_path: Path) -> None:
    other = make(tmp_path / "other", np.random.default_rng(0).permutation(POOL))
    options: list[dict[str, Any]] = [{"size": 60}, {"mode": "balanced", "size": 60}, {"video_max": 2, "uploader_share": 0.2, "smoothing": 2}]
    for number, option in enumerate(options):
        for name, artefacts in (("a", made), ("b", other)):
            artefacts.select(tmp_path / f"{name}{number}", **option)
        one, two = ({row["clip_id"]: row for row in rows_of(tmp_path / f"{name}{number}")} for name in "ab")
        assert one == two


def test_a_selection_that_was_killed_goes_on_to_the_same_bytes(made: Made, tmp_path: Path) -> None:
    options: dict[str, Any] = {"smoothing": 3}
    made.select(tmp_path / "undisturbed", **options)
    work = tmp_path / "work"
    made.select(tmp_path / "first", work, **options)
    shutil.rmtree(work / "selection")  # killed after the smoothing, while the selection was written
    (work / ".selection.0badcafe").mkdir()
    again = made.select(tmp_path / "second", work, **options)
    assert again["cost"]["parts"] == 2 and again["cost"]["parts_found"] == 1
    for name in FILES:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def test_sets_of_one_size_can_be_compared(made: Made, tmp_path: Path) -> None:
    for mode in ("retrieval", "uniform", "balanced"):
        made.select(tmp_path / mode, mode=mode, size=80, uniform_mix=0.0 if mode == "retrieval" else 0.3)
        rows = rows_of(tmp_path / mode)
        assert len(rows) == 80 and {row["repeats"] for row in rows} == {1} and {row["weight"] for row in rows} == {1 / 80}
        assert not failed(check_selection(tmp_path / mode)) and report_of(tmp_path / mode)["draws"] == 80
    served = {mode: sum(row["achieved"] for row in report_of(tmp_path / mode)["targets"].values()) for mode in ("retrieval", "uniform")}
    assert served["retrieval"] == pytest.approx(1.0) and served["uniform"] < 0.5
    assert {row["target"] for row in rows_of(tmp_path / "balanced")} == {"balanced"}
    assert report_of(tmp_path / "balanced")["kl_clusters"] > report_of(tmp_path / "uniform")["kl_clusters"]


def test_a_larger_random_set_contains_the_smaller_one(made: Made, tmp_path: Path) -> None:
    for size in (50, 120):
        made.select(tmp_path / str(size), mode="uniform", size=size)
    small, large = ({row["clip_id"] for row in rows_of(tmp_path / str(size))} for size in (50, 120))
    assert small < large
    made.select(tmp_path / "other", mode="uniform", size=50, seed=1)
    assert small != {row["clip_id"] for row in rows_of(tmp_path / "other")}


def test_balanced_weights_need_no_targets_and_even_out_every_level(made: Made, tmp_path: Path) -> None:
    alone = Made(made.distinct, tmp_path / "clusters", tmp_path / "targets")
    shutil.copytree(made.clusters, alone.clusters)
    alone.targets.mkdir()
    write_table(table_of(CLIPS, []), alone.targets / "clips.parquet", CLIPS)
    write_table(table_of(ASSIGNMENTS, []), alone.clusters / "target_assignments.parquet", ASSIGNMENTS)
    (alone.targets / "targets.json").write_text("[]")
    alone.select(tmp_path / "balanced", mode="balanced", uniform_mix=0.0, repeat_cap=None)
    rows, report = rows_of(tmp_path / "balanced"), report_of(tmp_path / "balanced")
    tops = np.bincount([row["cluster"] % 4 for row in rows], [row["weight"] for row in rows])
    assert np.allclose(tops, 0.25, atol=0.01) and {row["target"] for row in rows} == {"balanced"} and report["targets"] == {}
    assert not failed(check_selection(tmp_path / "balanced")) and sum(row["repeats"] for row in rows) == POOL
    alone.select(tmp_path / "capped", mode="balanced")
    assert report_of(tmp_path / "capped")["largest_repeat"] <= 4 + 1e-9
    with pytest.raises(InputError, match=r"no target set that could ask .*mode=balanced"):
        alone.select(tmp_path / "retrieved")


def test_balanced_set_can_take_the_clips_nearest_their_centroids(made: Made, tmp_path: Path) -> None:
    similarity = {row["clip_id"]: row["similarity"] for row in read_table(made.clusters / "assignments.parquet", ASSIGNMENTS).to_pylist()}
    means = []
    for pick in ("nearest", "random"):
        made.select(tmp_path / pick, mode="balanced", size=80, pick=pick)
        means.append(np.mean([similarity[row["clip_id"]] for row in rows_of(tmp_path / pick)]))
    assert means[0] > means[1]


def test_quotas_hold_for_whole_draws(made: Made, tmp_path: Path) -> None:
    made.select(
        tmp_path, uniform_mix=0.5, draws=400, video_max=2, uploader_share=0.19, licence_shares={"cc-by-nc": 0.2, "": 0.0}, language_shares={"": 0.1}, target_max=150, cluster_max=200
    )
    rows, clips = rows_of(tmp_path), {row["clip_id"]: row for row in read_table(made.distinct / "clips.parquet", CLIPS).to_pylist()}

    def drawn(name: str, value: Any) -> int:
        return sum(row["repeats"] for row in rows if (clips[row["clip_id"]][name] or "") == value)

    assert sum(row["repeats"] for row in rows) == 400 and drawn("licence", "cc-by-nc") <= 80 and drawn("language", "") <= 40
    assert max(drawn("uploader", name) for name in ("ann", "ben", "cat", "dan", "eve")) <= 76 < drawn("uploader", "")
    assert "" not in {clips[row["clip_id"]]["licence"] for row in rows}
    assert max(np.unique([row["video_id"] for row in rows], return_counts=True)[1]) <= 2
    assert max(sum(row["repeats"] for row in rows if row["cluster"] == number) for number in range(CLUSTERS)) <= 200
    report = report_of(tmp_path)
    assert {row["quota"] for row in report["quotas"]} == {"repeat_cap", "uploader_share", "licence_shares", "language_shares", "cluster_max", "target_max"}
    assert {row["value"] for row in report["groups"]["licence"]} == {"cc-by", "cc-by-nc", ""} and report["residual"] <= 1e-3
    for name, shares in report["groups"].items():
        assert sum(row["achieved"] for row in shares) == pytest.approx(1.0) and sum(row["draws"] for row in shares) == 400, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"uniform_mix": 0.0, "repeat_cap": 1.0}, r"400 draws cannot be made .*at most \d+ draws, for which repeat_cap leaves room"),
        ({"source_shares": {"pool": 0.5}}, "cannot be made .*at most 0 draws, for which source_shares"),
        ({"uniform_mix": 0.0, "cluster_max": 50}, r"at most \d+ draws, for which cluster_max leaves room"),
        ({"uniform_mix": 0.0, "target_max": 150}, "at most 300 draws, for which target_max leaves room"),
        ({"uniform_mix": 0.3, "target_floor": 1.0, "repeat_cap": 1.0}, "target push cannot be drawn as often as target_floor wants .*at least 210.0 draws; found [0-9.]+ under the quotas"),
        ({"size": 401}, "401 clips cannot be kept .*a size of at most 400"),
        ({"source_shares": {"pool": 0.0}}, "any clips cannot be kept .*at most 0"),
        ({"size": 50, "draws": 100}, "no draws beside a size"),
        ({"uniform_mix": 1.5}, "0 <= uniform_mix <= 1"),
        *[({"repeat_cap": cap}, "a whole repeat_cap of 1 or more, or none") for cap in (0.0, 0.5, 1.5, float("inf"))],
        ({"licence_shares": {"cc-by": 2.0}}, "shares between 0 and 1"),
        ({"support": 5}, "target set lift has no cluster with 5 of its clips"),
        ({"target_weights": {"push": 0.5, "lift": 0.4}}, "sum to 1, or none; found .*sum 0.9"),
        ({"target_weights": {"push": 0.5, "twist": 0.5}}, "sum to 1 for lift, push"),
    ],
)  # fmt: skip
def test_what_cannot_be_met_is_refused_with_numbers(made: Made, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        made.select(tmp_path, **options)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("weights", [{"push": 0.5, "lift": 0.4}, {"push": 1.2, "lift": -0.2}, {"push": float("nan"), "lift": 1.0}, {}])
def test_target_weights_that_do_not_sum_to_one_are_refused_before_anything_is_read(weights: dict[str, float]) -> None:
    with pytest.raises(InputError, match="target_weights of 0 or more that sum to 1, or none"):
        SelectionConfig(target_weights=weights).insist()


def test_target_weights_may_come_from_the_options(made: Made, tmp_path: Path) -> None:
    made.select(tmp_path, target_weights={"push": 0.0, "lift": 1.0}, uniform_mix=0.0, repeat_cap=None)
    assert {row["cluster"] for row in rows_of(tmp_path)} == {2, 9, 12} and list(report_of(tmp_path)["targets"]) == ["lift"]


def test_smoothing_spreads_demand_and_needs_the_vectors(made: Made, tmp_path: Path) -> None:
    for smoothing in (1, 3):
        made.select(tmp_path / str(smoothing), smoothing=smoothing, smoothing_temperature=0.3)
    assert report_of(tmp_path / "3")["supported_clusters"] > report_of(tmp_path / "1")["supported_clusters"]
    with pytest.raises(InputError, match="smoothing needs"):
        build_selection(tmp_path, made.distinct, made.clusters, made.targets, config=SelectionConfig(smoothing=3))


def test_evaluation_video_in_the_selection_and_uniform_selection_fail_the_checks(made: Made, tmp_path: Path) -> None:
    made.select(tmp_path / "alike", uniform_mix=1.0)
    assert set(failed(check_selection(tmp_path / "alike"))) == {"differs_from_uniform"}
    made.select(tmp_path / "asked", mode="uniform")  # who asks for it gets it
    assert not failed(check_selection(tmp_path / "asked"))
    leaky = Made(tmp_path / "distinct", made.clusters, tmp_path / "targets")
    shutil.copytree(made.distinct, leaky.distinct)
    shutil.copytree(made.targets, leaky.targets)
    rows = read_table(made.targets / "clips.parquet", CLIPS).to_pylist()
    rows[-1]["video_id"] = "video-000"
    write_table(table_of(CLIPS, rows), leaky.targets / "clips.parquet", CLIPS)
    leaky.select(tmp_path / "leaky")
    assert set(failed(check_selection(tmp_path / "leaky"))) == {"no_evaluation_leak"} and len(report_of(tmp_path / "leaky")["evaluation_leaks"]) == 4


def test_clusters_of_other_clips_or_of_another_encoder_are_refused(made: Made, tmp_path: Path) -> None:
    other = Made(made.distinct, tmp_path / "clusters", made.targets)
    shutil.copytree(made.clusters, other.clusters)
    write_table(read_table(made.clusters / "assignments.parquet", ASSIGNMENTS).slice(1), other.clusters / "assignments.parquet", ASSIGNMENTS)
    with pytest.raises(InputError, match="of other clips"):
        other.select(tmp_path / "selection")
    stale = Made(tmp_path / "distinct", made.clusters, made.targets)
    shutil.copytree(made.distinct, stale.distinct)
    (stale.distinct / "encoder.json").write_text('{"name": "y", "digest": "e"}')
    with pytest.raises(InputError, match="another encoder"):
        stale.select(tmp_path / "selection")


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12), st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
def test_divergence_is_zero_only_for_equals_and_never_negative(first: list[float], second: list[float]) -> None:
    size = min(len(first), len(second))
    a, b = (np.array(values[:size]) + 1e-3 for values in (first, second))
    a, b = a / a.sum(), b / b.sum()
    assert divergence(a, a) == pytest.approx(0.0, abs=1e-12) and divergence(a, b) >= -1e-12
    assert divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))


@pytest.mark.parametrize("clusters", [1, 30, 5000])
def test_picture_of_the_distribution_is_small_and_the_same_twice(tmp_path: Path, clusters: int) -> None:
    random = np.random.default_rng(0)
    shares = [np.append(random.dirichlet(np.full(clusters, 0.5)), 0.0) for _ in range(3)]
    for name in ("a.png", "b.png"):
        draw_distribution(tmp_path / name, *shares)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes() and (tmp_path / "a.png").stat().st_size <= 100_000
