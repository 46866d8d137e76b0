"""Drift: statistics with their claimed properties, a null that is calibrated, and the decision that follows from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score

from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.codebook_drift import adjusted_mutual_information, codebook_drift, match_clusters
from pipelines.curation.decision import Findings, Novelty, Wear, decide
from pipelines.curation.drift import (
    DriftConfig,
    Measured,
    Side,
    fourier_features,
    jensen_shannon,
    mean_discrepancy,
    measure,
    movers,
    population_stability,
    smoothed,
    total_variation,
    wasserstein,
)
from pipelines.curation.drift_null import Column, VideoDraw, p_value, video_splits
from pipelines.curation.drift_picture import draw_drift
from pipelines.curation.embedding import unit_rows
from pipelines.curation.leaf_statistics import BINS, bin_centres
from pipelines.curation.target_drift import Asked, target_drift

CLIPS = DriftConfig(exchange="clips")
pairs_of_counts = st.integers(2, 12).flatmap(lambda size: st.tuples(*(st.lists(st.integers(0, 40), min_size=size, max_size=size).map(np.array) for _ in "pq")))


def unit(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors.astype(np.float32))


def side(random: np.random.Generator, clips: int, shares: np.ndarray, *, per_video: int = 1, sample: int = 24, farther: float = 1.0) -> Side:
    """Clips in clusters drawn by `shares`, distances near 0.14 times `farther`; videos of `per_video` clips agree in all of it."""
    videos = -(-clips // per_video)
    cluster = np.repeat(random.choice(len(shares), videos, p=shares), per_video)[:clips]
    distance = farther * np.exp(np.repeat(random.normal(-2.0, 0.3, videos), per_video)[:clips])
    video = np.arange(clips) // per_video
    taken = np.arange(min(sample, clips))
    vectors = unit(np.repeat(random.normal(size=(videos, 4)), per_video, axis=0)[taken])
    return Side(cluster, distance.astype(np.float32), distance > 0.25, video, vectors, video[taken])


@given(pairs_of_counts)
def test_divergences_are_zero_for_equals_symmetric_and_bounded(pair: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = smoothed(pair[0]), smoothed(pair[1])
    assert p.sum() == pytest.approx(1.0, abs=1e-12) and (p > 0).all()
    for divergence in (population_stability, jensen_shannon, total_variation):
        assert divergence(p, p) == 0.0
        assert divergence(p, q) == pytest.approx(float(divergence(q, p)), abs=1e-12) and divergence(p, q) >= 0
    assert jensen_shannon(p, q) <= np.log(2) + 1e-12 and total_variation(p, q) <= 1 + 1e-12


def test_jensen_shannon_of_disjoint_shares_approaches_ln_2() -> None:
    assert jensen_shannon(smoothed(np.array([10**9, 0])), smoothed(np.array([0, 10**9]))) == pytest.approx(np.log(2), rel=1e-6)


@given(st.lists(st.integers(0, BINS - 1), min_size=1, max_size=20), st.lists(st.integers(0, BINS - 1), min_size=1, max_size=20))
def test_wasserstein_on_the_grid_is_that_of_the_bins_middles(first: list[int], second: list[int]) -> None:
    from scipy.stats import wasserstein_distance

    a, b = (np.bincount(places, minlength=BINS) for places in (first, second))
    centres = bin_centres()
    assert wasserstein(a, b, centres) == pytest.approx(wasserstein_distance(centres[first], centres[second]), abs=1e-12)
    assert wasserstein(a, a, centres) == 0.0 and wasserstein(a, b, centres) == pytest.approx(float(wasserstein(b, a, centres)))


def test_kernel_discrepancy_is_the_unbiased_estimate_symmetric_and_near_the_exact_kernels() -> None:
    random = np.random.default_rng(0)
    first, second = unit(random.normal(size=(40, 5))), unit(random.normal(size=(30, 5)) + 0.7)
    pooled = np.concatenate([first, second])
    features = fourier_features(pooled, 4096, np.random.default_rng(1))
    assert np.allclose((features**2).sum(axis=1), 1.0)
    found = mean_discrepancy(features[:40].sum(axis=0), features[40:].sum(axis=0), (np.array(40), np.array(30)))
    turned = mean_discrepancy(features[40:].sum(axis=0), features[:40].sum(axis=0), (np.array(30), np.array(40)))
    assert found == pytest.approx(float(turned), abs=1e-12)
    squared = np.maximum(0, 2 - 2 * pooled.astype(np.float64) @ pooled.T)
    kernel = np.exp(-squared / (2 * np.median(squared[np.triu_indices(70, 1)])))
    within = [(kernel[a, a].sum() - n) / (n * (n - 1)) for a, n in ((slice(0, 40), 40), (slice(40, 70), 30))]
    assert found == pytest.approx(sum(within) - 2 * kernel[:40, 40:].mean(), abs=0.03)


def test_p_values_count_the_observed_split_and_two_ties_of_200_still_pass() -> None:
    assert p_value(5.0, np.zeros(200)) == pytest.approx(1 / 201)
    assert p_value(5.0, np.array([5.0] + [0.0] * 199)) == pytest.approx(2 / 201) and DriftConfig().p_below > 2 / 201
    assert p_value(0.0, np.zeros(200)) == 1.0


@pytest.mark.parametrize("exchange", ["clips", pytest.param("videos", marks=pytest.mark.soak)])
def test_false_alarms_come_at_the_rate_of_one_percent(exchange: str) -> None:
    """2,000 windows drawn as their reference is: p below .01 in 0.5 to 1.6 % of them, for every statistic of shares.

    The rate of novel clips takes few values, so ties make its rate lower, never higher.
    """
    random = np.random.default_rng(1)
    shares = 1 / np.arange(1, 9)
    config = DriftConfig(exchange=exchange, frequencies=8)  # type: ignore[arg-type]
    windows = 2000
    small: dict[str, int] = {}
    for number in range(windows):
        reference, window = (side(random, clips, shares / shares.sum(), sample=16) for clips in (150, 50))
        for name, found in measure(reference, window, len(shares), config, str(number)).items():
            small[name] = small.get(name, 0) + (found.p < config.p_below)
    rates = {name: count / windows for name, count in small.items()}
    assert all(0.005 <= rates[name] <= 0.016 for name in ("psi", "js", "distance", "mmd")), rates
    assert rates["novelty"] <= 0.016, rates


def test_clips_of_one_video_are_no_independent_evidence() -> None:
    """New videos like the old ones, 6 clips alike in each: drift for whoever takes clips one by one, none by videos."""
    random = np.random.default_rng(7)
    shares = np.full(8, 1 / 8)
    alarms = dict.fromkeys(("clips", "videos"), 0)
    for number in range(100):
        reference, window = (side(random, clips, shares, per_video=6, sample=60) for clips in (600, 120))
        for exchange in ("clips", "videos"):
            config = DriftConfig(exchange=exchange, frequencies=8)  # type: ignore[arg-type]
            found = measure(reference, window, 8, config, str(number))
            alarms[exchange] += any(statistic.flagged for statistic in found.values())
    assert alarms["clips"] > 50 and alarms["videos"] <= 10, alarms


def test_five_percent_of_a_new_concept_are_found_at_twenty_thousand_clips() -> None:
    random = np.random.default_rng(3)
    centres = unit(random.normal(size=(100, 24)))
    clips = 20_000

    def drawn(around: np.ndarray, count: int) -> np.ndarray:
        return unit(around[random.integers(len(around), size=count)] + 0.5 * random.normal(size=(count, 24)) / np.sqrt(24))

    ordinary, alien = drawn(centres, 2 * clips), drawn(unit(random.normal(size=(1, 24))), 1000)
    vectors = np.concatenate([ordinary, alien])
    near = nearest_leaf(vectors, centres)
    distance = (1.0 - near.cosine).astype(np.float32)
    bound = np.quantile(distance[: 2 * clips], 0.999)
    config = DriftConfig(exchange="clips", frequencies=32)

    def of(rows: np.ndarray) -> Side:
        return Side(near.leaf[rows], distance[rows], distance[rows] > bound, np.arange(len(rows)), vectors[rows[:200]], np.arange(200))

    flagged = {"alien": 0, "ordinary": 0}
    runs = 40
    for number in range(runs):
        order = random.permutation(2 * clips)
        reference, window = order[:clips], order[clips:]
        mixed = np.concatenate([window[1000:], 2 * clips + np.arange(1000)])
        for name, rows in (("ordinary", window), ("alien", random.permutation(mixed))):
            found = measure(of(reference), of(rows), 100, config, f"{name}{number}")
            flagged[name] += any(statistic.flagged for statistic in found.values())
    assert flagged["alien"] > 0.95 * runs and flagged["ordinary"] <= 2, flagged


@given(st.permutations(range(9)), st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_renumbering_the_clusters_alike_on_both_sides_changes_nothing(numbers: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    shares = np.arange(1.0, 10.0)
    reference, window = side(random, 300, shares / shares.sum()), side(random, 90, shares[::-1] / shares.sum())
    renumbered = [replace(one, cluster=np.array(numbers)[one.cluster]) for one in (reference, window)]
    for config in (CLIPS, DriftConfig()):
        before, after = measure(reference, window, 9, config, "w"), measure(*renumbered, 9, config, "w")
        for name, found in before.items():
            assert after[name].value == pytest.approx(found.value, rel=1e-9, abs=1e-12) and after[name].p == found.p


def test_a_report_repeats_with_its_seed_and_only_the_null_depends_on_it() -> None:
    random = np.random.default_rng(0)
    reference, window = side(random, 300, np.full(5, 0.2)), side(random, 90, np.array([0.4, 0.3, 0.1, 0.1, 0.1]))
    first, again = (measure(reference, window, 5, DriftConfig(), "w") for _ in range(2))
    other = measure(reference, window, 5, DriftConfig(seed=1), "w")
    for name, found in first.items():
        assert found.described(name) == again[name].described(name) and np.array_equal(found.null, again[name].null)
        if name != "mmd":  # its features are random too
            assert found.value == other[name].value
    assert any(not np.array_equal(first[name].null, other[name].null) for name in first)


def test_drift_must_be_both_significant_and_large() -> None:
    random = np.random.default_rng(1)
    many = [side(random, 20_000, np.array(shares)) for shares in ((0.5, 0.5), (0.48, 0.52))]
    found = measure(many[0], many[1], 2, CLIPS)["psi"]
    assert found.p < 0.01 and found.effect < 0.1 and not found.flagged
    few = [side(random, clips, np.full(4, 0.25)) for clips in (6, 4)]
    found = measure(replace(few[0], cluster=np.array([0, 0, 1, 1, 2, 2])), replace(few[1], cluster=np.array([0, 1, 3, 3])), 4, CLIPS)["psi"]
    assert found.effect > 0.1 and found.p > 0.01 and not found.flagged
    far = measure(side(random, 400, np.full(4, 0.25)), side(random, 100, np.full(4, 0.25), farther=2.0), 4, CLIPS)
    assert far["distance"].flagged and far["novelty"].flagged and not far["psi"].flagged


@pytest.mark.parametrize("cells", [2**20, 1])
def test_random_windows_are_of_whole_videos_of_either_side(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.curation.drift_null.CELLS", cells)  # 1: videos are drawn window by window
    reference, window = np.array([0, 1, 0, 2, 1, 3]), np.array([1, 0, 1])
    videos = np.concatenate([reference, window + 4])
    number, rows = VideoDraw(reference, window, np.random.default_rng(0)).windows(40)
    seen = set()
    for draw in range(40):
        inside = rows[number == draw]
        chosen = np.unique(videos[inside])
        assert len(chosen) == 2 and sorted(inside) == np.flatnonzero(np.isin(videos, chosen)).tolist()
        seen.update(chosen.tolist())
    assert seen == set(range(6))
    columns = {"bin": Column(np.arange(6) % 3, np.array([0, 1, 1]), 3)}
    chunks = list(video_splits(columns, reference, window, 7, np.random.default_rng(0)))
    assert sum(len(chunk["bin"]) for chunk in chunks) == 7


def test_the_largest_gains_and_losses_are_named_gains_first() -> None:
    random = np.random.default_rng(0)
    reference, window = side(random, 10, np.full(3, 1 / 3)), side(random, 10, np.full(3, 1 / 3))
    reference, window = replace(reference, cluster=np.repeat([0, 1, 2], [5, 4, 1])), replace(window, cluster=np.repeat([0, 1, 2], [2, 4, 4]))
    assert movers(reference, window, 3) == [
        {"cluster": 2, "reference": 0.1, "window": 0.4}, {"cluster": 0, "reference": 0.5, "window": 0.2},
    ]  # fmt: skip


# Targets


def asked(counts: list[list[int]], weights: tuple[float, ...]) -> Asked:
    names = tuple("ab"[: len(counts)])
    return Asked(names, np.array(counts), dict(zip(names, weights, strict=True)))


def test_demand_is_the_papers_formula_and_equal_targets_do_not_drift() -> None:
    old = asked([[3, 1, 0], [0, 2, 2]], (0.7, 0.3))
    assert np.allclose(old.demand, [0.525, 0.325, 0.15])
    found, report = target_drift(old, old, old.counts, np.array([5, 0, 5]), DriftConfig())
    assert found.value == 0 and found.p == 1 and not found.flagged
    assert report["unserved"] == pytest.approx(0.325)


def test_changed_weights_and_moved_targets_are_drift_and_more_clips_of_the_same_are_not() -> None:
    pool, none = np.full(4, 10), np.zeros((2, 4), np.int64)
    old = asked([[50, 50, 0, 0], [0, 0, 50, 50]], (0.5, 0.5))

    def drift(new: Asked, known: np.ndarray) -> Measured:
        return target_drift(old, new, known, pool, DriftConfig())[0]

    heavier = drift(asked([[50, 50, 0, 0], [0, 0, 50, 50]], (0.8, 0.2)), old.counts)
    assert heavier.flagged and heavier.value == pytest.approx(0.3) and not heavier.null.any()
    assert drift(asked([[50, 10, 40, 0], [0, 0, 50, 50]], (0.5, 0.5)), none).flagged
    added = asked([[50, 50, 60, 0], [0, 0, 50, 50]], (0.5, 0.5))
    assert drift(added, old.counts).flagged and drift(added, old.counts).value == pytest.approx(0.5 * 60 / 160)
    assert not drift(asked([[60, 60, 0, 0], [0, 0, 50, 50]], (0.5, 0.5)), old.counts).flagged
    assert not drift(asked([[110, 95, 0, 0], [0, 0, 96, 104]], (0.5, 0.5)), none).flagged
    gone, report = target_drift(old, asked([[50, 50, 0, 0]], (1.0,)), old.counts[:1], pool, DriftConfig())
    assert gone.flagged and report["sets"]["b"] == {"weight": [0.5, 0.0], "clips": [100, 0]}


# Codebooks


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_adjusted_mutual_information_is_scikit_learns(seed: int, clips: int, first: int, second: int) -> None:
    random = np.random.default_rng(seed)
    a = random.integers(first, size=clips)
    b = np.where(random.random(clips) < 0.5, a % second, random.integers(second, size=clips))
    assert adjusted_mutual_information(a, b) == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)


def test_a_renumbered_codebook_is_the_same_and_another_one_is_not() -> None:
    random = np.random.default_rng(0)
    tops = unit(random.normal(size=(4, 12)))
    leaves = unit(np.repeat(tops, 5, axis=0) + 0.3 * random.normal(size=(20, 12)))
    book = Codebook((leaves, tops), (np.repeat(np.arange(4), 5).astype(np.int32),), "e")
    order, top_order = random.permutation(20), random.permutation(4)
    renumbered = Codebook((leaves[order], tops[top_order]), (np.argsort(top_order)[book.parents[0]][order].astype(np.int32),), "e")
    anchors = random.integers(20, size=400)
    same = codebook_drift(book, renumbered, anchors, np.argsort(order)[anchors])
    assert same["churn"] == 0 and same["ami_leaves"] == pytest.approx(1) and same["centroid_shift"] == pytest.approx(0, abs=1e-6)
    other = codebook_drift(book, renumbered, anchors, random.integers(20, size=400))
    assert other["churn"] > 0.5 and abs(other["ami_leaves"]) < 0.1


def test_super_clusters_are_matched_one_to_one_also_when_one_is_new() -> None:
    tops = unit(np.eye(4)[:, :4])
    pairs, distance = match_clusters(tops[:3], tops[[3, 2, 0, 1]])
    assert pairs.tolist() == [[0, 2], [1, 3], [2, 1]] and np.allclose(distance, 0)


# Decisions

CALM = Wear(1.2, 0.1, 0.1)
NONE = Novelty(0, 0.0)


def measured(flagged: bool) -> Measured:
    return Measured(0.5, 0.4, 0.005 if flagged else 0.5, np.full(200, 0.1), flagged)


def test_every_decision_has_its_cause_and_says_so_with_numbers() -> None:
    calm = Findings(1000, 100, 0, CALM, NONE, {"psi": measured(False)}, measured(False))
    cases = {
        "none": (calm, "psi|stability"),
        "reweight": (replace(calm, measured={"psi": measured(True)}), "population stability index"),
        "append": (replace(calm, novelty=Novelty(60, 5.0, 0.8, 3), measured={"psi": measured(True)}), "3 new leaves describe 80%"),
    }
    cases["reweight by targets"] = (replace(calm, targets=measured(True)), "what the targets ask for")
    cases["reweight, as the buffer does not cluster"] = (replace(cases["append"][0], novelty=Novelty(60, 5.0, 0.2, 3)), "stay in the buffer")
    grown, shrunk = {"fit_sizes": (48, 6), "sizes": (2828, 53)}, {"fit_sizes": (48, 6), "sizes": (30, 6)}
    cases["refit by growth"] = (replace(calm, wear=Wear(4.0, 0.0, 0.0), **grown), "4.00 times the clips")
    cases["refit by growth, in numbers"] = (cases["refit by growth"][0], "2,828 / 53 clusters are asked for now, not 48 / 6")
    cases["refit by shrinking"] = (replace(calm, wear=Wear(0.2, 0.0, 0.0), **shrunk), "0.20 times the clips")
    cases["none, as a fit would make as many clusters again"] = (replace(calm, wear=Wear(4.0, 0.0, 0.0)), "distributed as the others")
    cases["refit by distance"] = (replace(calm, wear=Wear(1.5, 0.6, 0.1), measured={"psi": measured(True)}), "standard deviations farther")
    cases["refit by mixture"] = (replace(calm, wear=Wear(1.5, 0.0, 0.6), measured={"psi": measured(True)}), "Jensen-Shannon distance")
    cases["refit by novelty"] = (replace(calm, novelty=Novelty(150, 5.0, 0.9, 9)), "150 of 1000 clips are novel")
    cases["refit by options"] = (replace(calm, settings=("max_clusters was 48 and is 64",)), "max_clusters was 48 and is 64")
    for name, (findings, words) in cases.items():
        decision = decide(findings, DriftConfig())
        assert decision.action == name.split(" ")[0].rstrip(","), name
        assert any(word in reason for reason in decision.reasons for word in words.split("|")), (name, decision.reasons)


def test_wear_without_drift_beyond_chance_and_a_few_novel_clips_change_nothing() -> None:
    calm = Findings(300, 50, 0, Wear(1.2, 0.7, 0.7), Novelty(7, 0.0), {"psi": measured(False)}, measured(False))
    assert decide(calm, DriftConfig()).action == "none"  # 7 of 300 are more than 1 %, but fewer than 8
    nothing = decide(Findings(300, 0, 3, CALM, NONE, {}, measured(False)), DriftConfig())
    assert nothing.action == "none" and "3 fewer old ones" in nothing.reasons[0]


def test_the_picture_repeats_byte_for_byte(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    reference, window = side(random, 300, np.full(5, 0.2)), side(random, 90, np.array([0.4, 0.3, 0.1, 0.1, 0.1]))
    found = measure(reference, window, 5, DriftConfig(), "w")
    for name in ("a.png", "b.png"):
        draw_drift(tmp_path / name, "90 new clips", found, movers(reference, window, 5), DriftConfig())
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len((tmp_path / "a.png").read_bytes()) > 10_000
