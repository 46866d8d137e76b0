"""Draws under quotas: the paper's formula, exact redistribution, whole numbers, and what holds whatever is asked."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import chisquare

from pipelines.curation.allotment import Allotment, Candidates, Group, allot, clip_keys, divide, spread_in_time
from pipelines.curation.demand import Demand, Hits, count_hits, demand_of, spread_hits, training_sets
from pipelines.curation.quotas import Cells, Quota, Room, fill_levels, nearest_law, pour
from pipelines.curation.selection import SelectionConfig
from pipelines.curation.whole_draws import systematic
from pipelines.errors import InputError

PAPER = SelectionConfig(uniform_mix=0.0, repeat_cap=None)


def drawn(seed: int, clips: int = 300, clusters: int = 12, targets: int = 3, empty: int = 0) -> tuple[Candidates, Demand]:
    """A pool of Zipf clusters, of which the last `empty` have no clip, with uploaders and licences; targets that prefer some."""
    random = np.random.default_rng(seed)
    sizes = 1.0 / np.arange(1, clusters - empty + 1)
    cluster = random.choice(clusters - empty, clips, p=sizes / sizes.sum())
    groups = {
        "uploader": Group(("", "a", "b", "c", "d", "e", "f", "g"), random.integers(0, 8, clips)), "licence": Group(("", "by", "nc"), random.integers(0, 3, clips)),
        "language": Group(("en",), np.zeros(clips, np.int64)), "source": Group(("pool",), np.zeros(clips, np.int64)),
    }  # fmt: skip
    counts = random.poisson(random.gamma(0.4, 8.0, (targets, clusters)))
    counts[:, 0] += 1
    weights = random.dirichlet(np.ones(targets))
    names = tuple("abcdefgh"[:targets])
    return Candidates(cluster, clusters, groups), demand_of(Hits(names, counts, counts.astype(float)), dict(zip(names, weights, strict=True)), 1)


def alike(clips: int, **groups: list[str]) -> Candidates:
    """Clips of one cluster that only `groups` tell apart."""
    names = {name: tuple(sorted(set(values))) for name, values in groups.items()}
    known = {name: Group(names[name], np.array([names[name].index(value) for value in values])) for name, values in groups.items()}
    free = {name: Group(("",), np.zeros(clips, np.int64)) for name in ("uploader", "licence", "language", "source")}
    return Candidates(np.zeros(clips, np.int64), 1, {**free, **known})


def crossed(seed: int, clips: int, clusters: int) -> tuple[Candidates, Demand]:
    """Clips whose clusters, uploaders, licences and sources have nothing to do with each other, and three targets."""
    random = np.random.default_rng(seed)
    groups = {
        name: [f"{name[0]}{number}" for number in random.choice(many, clips, p=random.dirichlet(np.ones(many)))]
        for name, many in (("uploader", 6), ("licence", 3), ("source", 3))
    }  # fmt: skip
    share = random.dirichlet(np.full(clusters, 0.5), 3)
    cluster = random.integers(0, clusters, clips)
    return replace(alike(clips, **groups), cluster=cluster, clusters=clusters), Demand(("a", "b", "c"), random.dirichlet(np.ones(3)), share)


def by_cluster(candidates: Candidates, values: np.ndarray) -> np.ndarray:
    return np.bincount(candidates.cluster, values, minlength=candidates.clusters)


def credited(found: Allotment, candidates: Candidates, values: np.ndarray) -> np.ndarray:
    """(D + 1,) of the draws `values` (N,) what each asker pays for."""
    return found.law.credit @ by_cluster(candidates, values)


seeds = st.integers(0, 10_000)


# The demand


@given(seeds, st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_demand_sums_to_one_and_every_target_keeps_its_weight(seed: int, targets: int) -> None:
    _, demand = drawn(seed, targets=targets)
    clusters = demand.clusters
    assert clusters.sum() == pytest.approx(1.0, abs=1e-12) and np.allclose(demand.share.sum(axis=1), 1.0, atol=1e-12)
    paid = np.divide(demand.weights[:, None] * demand.share, clusters, out=np.zeros_like(demand.share), where=clusters > 0)
    assert np.allclose(paid @ clusters, demand.weights, atol=1e-12)
    if targets == 1:
        assert np.array_equal(clusters, demand.share[0])


def test_disjoint_targets_give_their_clusters_exactly_their_weight() -> None:
    counts = np.array([[3, 1, 0, 0], [0, 0, 2, 2]])
    demand = demand_of(Hits(("a", "b"), counts, counts.astype(float)), {"a": 0.7, "b": 0.3}, 1)
    assert demand.clusters[:2].sum() == pytest.approx(0.7, abs=1e-12) and demand.clusters[2:].sum() == pytest.approx(0.3, abs=1e-12)


@given(seeds, st.integers(2, 5))
@settings(deadline=None, max_examples=60)
def test_duplicating_every_target_clip_changes_nothing_and_weight_zero_removes_a_target(seed: int, times: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 5, (2, 6)) + np.eye(2, 6, dtype=np.int64)
    one, many = (Hits(("a", "b"), factor * counts, float(factor) * counts) for factor in (1, times))
    weights = {"a": 0.25, "b": 0.75}
    assert np.allclose(demand_of(one, weights, 1).clusters, demand_of(many, weights, 1).clusters, atol=1e-15)
    alone = demand_of(one, {"a": 0.0, "b": 1.0}, 1)
    assert alone.names == ("b",) and np.array_equal(alone.clusters, counts[1] / counts[1].sum())


def test_support_drops_thin_clusters_and_renormalises_the_others() -> None:
    counts = np.array([[6, 2, 1], [0, 3, 1]])
    hits = Hits(("a", "b"), counts, counts.astype(float))
    assert np.allclose(demand_of(hits, {"a": 0.5, "b": 0.5}, 2).share, [[0.75, 0.25, 0], [0, 1, 0]])
    with pytest.raises(InputError, match=r"target set b has no cluster with 4 of its clips .*at most 3"):
        demand_of(hits, {"a": 0.5, "b": 0.5}, 4)


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.2}, {"a": 1.2, "b": -0.2}, {"a": 1.0}, {"a": 0.5, "b": 0.25, "c": 0.25}, {}])
def test_weights_that_do_not_divide_the_draws_among_the_sets_are_refused(weights: dict[str, float]) -> None:
    counts = np.ones((2, 3), np.int64)
    with pytest.raises(InputError, match="numbers of 0 or more that sum to 1 for a, b"):
        demand_of(Hits(("a", "b"), counts, counts.astype(float)), weights, 1)


@given(seeds, st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_smoothing_is_the_softmax_over_the_nearest_clusters_whatever_the_order_of_clips(seed: int, nearest: int) -> None:
    random = np.random.default_rng(seed)
    vectors, centroids = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (random.normal(size=(9, 4)), random.normal(size=(6, 4))))
    of_clip = random.integers(-1, 2, 9)
    found = spread_hits(("a", "b"), of_clip, vectors.astype(np.float32), centroids.astype(np.float32), nearest, 0.1)
    wanted = np.zeros((2, 6))
    for row in np.flatnonzero(of_clip >= 0):
        distance = np.square(vectors[row] - centroids).sum(axis=1)
        near = np.argsort(distance)[:nearest]
        pull = np.exp(-distance[near] / 0.2)
        wanted[of_clip[row], near] += pull / pull.sum()
    assert np.allclose(found.mass, wanted, atol=1e-5) and np.array_equal(found.counts, np.where(wanted > 0, found.counts, 0))
    assert found.counts.sum() == nearest * (of_clip >= 0).sum()


def test_training_clips_are_told_from_held_out_ones_by_their_source() -> None:
    names, of_clip = training_sets(pa.chunked_array([["b/train", "a/eval", "a/train", "b/eval", "b/train"]]))
    assert names == ("a", "b") and of_clip.tolist() == [1, -1, 0, -1, 1]
    assert count_hits(names, of_clip, np.array([0, 1, 1, 1, 0]), 3).counts.tolist() == [[0, 1, 0], [2, 0, 0]]


# Expected draws


@given(seeds)
@settings(deadline=None, max_examples=60)
def test_without_caps_the_draws_are_the_papers_formula(seed: int) -> None:
    candidates, demand = drawn(seed)
    sizes = np.bincount(candidates.cluster, minlength=candidates.clusters)
    assume((sizes[demand.clusters > 0] > 0).all())
    found = allot(candidates, demand, PAPER, 1000)
    assert np.allclose(found.expected, (1000 * demand.clusters / np.maximum(sizes, 1))[candidates.cluster], rtol=1e-12)
    assert not found.expected[demand.clusters[candidates.cluster] == 0].any()
    assert np.allclose(credited(found, candidates, found.expected), [*(1000 * demand.weights), 0.0])


@given(seeds, st.floats(1.0, 6.0), st.integers(10, 2000))
@settings(deadline=None, max_examples=60)
def test_repeat_cap_holds_the_sum_is_exact_and_what_is_not_full_keeps_its_proportions(seed: int, cap: float, draws: int) -> None:
    candidates, demand = drawn(seed, empty=2)
    config = SelectionConfig(uniform_mix=0.0, repeat_cap=cap)
    room = cap * (demand.clusters[candidates.cluster] > 0).sum()
    assume(draws <= room)
    found = allot(candidates, demand, config, draws)
    assert found.expected.sum() == pytest.approx(draws, rel=1e-12) and found.expected.max() <= cap * (1 + 1e-9)
    assert not found.expected[demand.clusters[candidates.cluster] == 0].any()
    masses, sizes = by_cluster(candidates, found.expected), np.bincount(candidates.cluster, minlength=candidates.clusters)
    wanted = (demand.clusters > 0) & (sizes > 0)
    assert np.allclose(masses[wanted], np.minimum(found.law.scale * draws * demand.clusters, cap * sizes)[wanted], rtol=1e-9)
    assert found.law.scale >= 1 - 1e-9 and found.law.rounds == 1


@given(seeds, st.floats(1.0, 4.0), st.integers(10, 400), st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_lambda_grows_with_the_draws(seed: int, cap: float, draws: int, more: int) -> None:
    candidates, demand = drawn(seed)
    assume(draws + more <= cap * (demand.clusters[candidates.cluster] > 0).sum())
    config = SelectionConfig(uniform_mix=0.0, repeat_cap=cap)
    few, many = (allot(candidates, demand, config, total).law.scale * total for total in (draws, draws + more))
    assert many >= few * (1 - 1e-9)


@given(seeds, st.floats(0.5, 3.0))
@settings(deadline=None, max_examples=60)
def test_too_many_draws_are_refused_with_the_largest_number_that_is_possible(seed: int, cap: float) -> None:
    candidates, demand = drawn(seed)
    config = SelectionConfig(uniform_mix=0.0, repeat_cap=cap)
    most = int(cap * (demand.clusters[candidates.cluster] > 0).sum() * (1 + 1e-12))
    assert allot(candidates, demand, config, most).expected.sum() == pytest.approx(most)
    with pytest.raises(InputError, match=f"at most {most} draws, for which repeat_cap leaves room"):
        allot(candidates, demand, config, most + 1)


def test_demand_on_clusters_without_clips_is_told_not_hidden() -> None:
    candidates, demand = drawn(3, clusters=4, targets=2)
    candidates = replace(candidates, cluster=np.where(candidates.cluster == 0, 1, candidates.cluster))
    found = allot(candidates, demand, PAPER, 100)
    assert demand.clusters[0] > 0 and found.asked[:, 0].sum() == pytest.approx(100 * demand.clusters[0])
    assert found.law.scale == pytest.approx(1 / (1 - demand.clusters[0])) and found.expected.sum() == pytest.approx(100)
    nobody = Demand(demand.names, demand.weights, np.tile([1.0, 0, 0, 0], (2, 1)))
    with pytest.raises(InputError, match="no clip lies in a cluster that a target asks for"):
        allot(candidates, nobody, PAPER, 100)
    assert np.allclose(allot(candidates, nobody, SelectionConfig(uniform_mix=0.3), 300).expected, 1.0)


@given(seeds, st.floats(0.05, 1.0), st.floats(1.0, 6.0))
@settings(deadline=None, max_examples=60)
def test_uniform_part_is_a_floor_under_every_clip(seed: int, mix: float, cap: float) -> None:
    candidates, demand = drawn(seed, empty=1)
    found = allot(candidates, demand, SelectionConfig(uniform_mix=mix, repeat_cap=cap), 300)
    assert found.expected.min() >= mix * (1 - 1e-9) and found.expected.max() <= cap * (1 + 1e-9)


@given(seeds, st.integers(0, 2), st.floats(0.5, 4.0), st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_more_pool_clips_never_lower_how_much_of_its_demand_a_target_gets(seed: int, empty: int, cap: float, more: int) -> None:
    candidates, demand = drawn(seed, empty=empty)
    assume(cap * (demand.clusters[candidates.cluster] > 0).sum() >= 200)
    config, random = SelectionConfig(uniform_mix=0.0, repeat_cap=cap), np.random.default_rng(seed + 1)
    groups = {name: Group(group.names, np.concatenate([group.codes, np.zeros(more, np.int64)])) for name, group in candidates.groups.items()}
    larger = replace(candidates, cluster=np.concatenate([candidates.cluster, random.integers(0, candidates.clusters, more)]), groups=groups)
    before, after = (
        np.minimum(found.law.credit * by_cluster(pool, found.expected), found.asked).sum(axis=1)
        for pool, found in ((pool, allot(pool, demand, config, 200)) for pool in (candidates, larger))
    )
    assert (after >= before * (1 - 1e-9)).all()


@given(seeds, st.floats(1.0, 4.0), st.integers(100, 400))
@settings(deadline=None, max_examples=60)
def test_no_target_gets_less_in_a_cluster_than_it_asks_or_than_its_part_of_the_room(seed: int, cap: float, draws: int) -> None:
    candidates, demand = drawn(seed)
    assume(draws <= cap * (demand.clusters[candidates.cluster] > 0).sum())
    found = allot(candidates, demand, SelectionConfig(uniform_mix=0.0, repeat_cap=cap), draws)
    room = found.law.credit * cap * np.bincount(candidates.cluster, minlength=candidates.clusters)
    given_ = found.law.credit * by_cluster(candidates, found.expected)
    assert (given_ >= np.minimum(found.asked, room) * (1 - 1e-9)).all()


@given(seeds, st.floats(0.5, 1.0))
@settings(deadline=None, max_examples=40)
def test_target_floor_is_kept_or_refused_by_name(seed: int, floor: float) -> None:
    candidates, demand = drawn(seed)
    config = SelectionConfig(uniform_mix=0.2, repeat_cap=3.0, target_floor=floor)
    try:
        found = allot(candidates, demand, config, 300)
    except InputError as error:
        assert any(f"target {name} cannot be drawn as often as target_floor wants" in str(error) for name in demand.names)
        return
    paid = credited(found, candidates, found.expected)[:-1]
    assert (paid >= floor * 300 * 0.8 * demand.weights - 1e-3 * 300).all() and found.law.residual <= 1e-3


@pytest.mark.parametrize(
    ("clips", "groups", "options"),
    [
        (101, {"licence": ["a", "b"]}, {"licence_shares": {"a": 0.5, "b": 0.5}}),
        (103, {"uploader": ["a", "b", "c", "d"]}, {"uploader_share": 0.25}),
        (100, {"source": ["a", "b", "c"]}, {"source_shares": {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}}),
    ],
)  # fmt: skip
def test_shares_that_sum_to_one_suit_a_pool_of_any_size(clips: int, groups: dict[str, list[str]], options: dict[str, Any]) -> None:
    candidates = alike(clips, **{name: [values[row % len(values)] for row in range(clips)] for name, values in groups.items()})
    found = allot(candidates, None, SelectionConfig(mode="uniform", **options), clips)
    (codes,) = (candidates.groups[name].codes for name in groups)
    even = clips / (codes.max() + 1)
    assert np.allclose(np.bincount(codes, found.expected), even) and np.abs(np.bincount(codes, found.repeats(np.arange(clips, dtype=np.uint64), 0)) - even).max() < 1


@given(st.integers(1, 400), st.sampled_from([0.05, 0.25, 1 / 3, 0.45, 0.5]), st.integers(0, 40))
@settings(deadline=None, max_examples=60)
def test_the_number_of_draws_that_shares_are_said_to_leave_room_for_is_the_largest(draws: int, share: float, free: int) -> None:
    candidates = alike(200 + free, licence=["a"] * 100 + ["b"] * 100 + ["c"] * free)
    config = SelectionConfig(mode="uniform", repeat_cap=1.0, licence_shares={"a": share, "b": share})
    try:
        allot(candidates, None, config, draws)
    except InputError as error:
        told = re.search(r"at most (\d+) draws, for which (\w+) leaves room", str(error))
        assert told is not None
        most = int(told[1])
        assert most < draws and (most == 0 or allot(candidates, None, config, most).expected.sum() == pytest.approx(most))
        for more in np.linspace(most + 1, draws, 8).astype(int):
            with pytest.raises(InputError):
                allot(candidates, None, config, int(more))


def test_quotas_are_refused_only_where_a_linear_programme_finds_no_draws_either() -> None:
    refused = taken = 0
    for seed in range(250):
        random = np.random.default_rng(seed)
        clips = int(random.integers(6, 40))
        candidates, demand = crossed(seed, clips, int(random.integers(1, 5)))
        draws, cap = int(random.integers(5, 2 * clips)), float(random.choice([1.0, 2.0, 4.0]))
        config = SelectionConfig(
            uniform_mix=float(random.choice([0.0, 0.3])), repeat_cap=cap, uploader_share=float(random.choice([0.25, 0.3, 0.5])),
            licence_shares={"l0": float(random.choice([0.1, 0.3, 0.5]))}, source_shares={"s0": float(random.choice([0.1, 0.3])), "s1": 0.5},
            cluster_max=int(random.integers(draws // 4 + 1, draws + 1)),
        )  # fmt: skip
        cells, quotas = divide(candidates, config, draws)
        held = np.concatenate([[quota.group == group for group in range(len(quota.limit))] for quota in quotas if len(quota.limit)]).astype(float)
        most = -linprog(
            -np.ones(len(cells.size)), held, np.concatenate([quota.ceilings(draws) for quota in quotas]), bounds=[(0, cap * size) for size in cells.size]
        ).fun  # fmt: skip
        try:
            found = allot(candidates, demand, config, draws)
        except InputError as error:
            refused += 1
            assert most < draws - 1e-6 and f"{draws} draws" in str(error)
        else:
            taken += 1
            assert most >= draws * (1 - 1e-3) and found.expected.sum() == pytest.approx(draws) and found.repeats(np.arange(clips, dtype=np.uint64), 0).sum() == draws
    assert refused > 20 and taken > 20


def quotas_of(seed: int, cells: Cells, draws: int) -> list[Quota]:
    random = np.random.default_rng(seed)
    uploader, licence = random.integers(0, 5, len(cells.size)), random.integers(-1, 2, len(cells.size))
    return [
        Quota("uploader_share", list("abcde"), uploader, np.full(5, 0.3), share=True),
        Quota("licence_shares", ["nc", "by"], licence, np.array([0.25, 0.5]), share=True),
        Quota("cluster_max", [str(number) for number in range(8)], cells.cluster, np.full(8, 0.4 * draws)),
    ]


@given(seeds)
@settings(deadline=None, max_examples=30)
def test_nearest_law_is_the_same_for_every_order_of_the_quotas(seed: int) -> None:
    random = np.random.default_rng(seed)
    cells = Cells(np.repeat(np.arange(8), 5), random.integers(1, 12, 40), np.empty(0, np.int64))
    asked, draws = random.dirichlet(np.full(8, 0.8), 2) * 100, 200
    quotas, room = quotas_of(seed, cells, draws), 4.0 * cells.size
    laws = [nearest_law(asked, cells, order, Room(room, tuple(quota.ceilings(draws) for quota in order)), draws) for order in permutations(quotas)]
    assume(max(law.residual for law in laws) < 1e-8 and min(law.draws.sum() for law in laws) > draws - 1e-6)
    assert max(np.abs(law.draws - laws[0].draws).max() for law in laws) < 0.01
    for quota in quotas:
        assert (quota.sums(laws[0].draws) <= quota.ceilings(draws) + 1e-5).all()


@given(seeds)
@settings(deadline=None, max_examples=50)
def test_nearest_law_shrinks_only_what_is_full(seed: int) -> None:
    random = np.random.default_rng(seed)
    cells = Cells(np.repeat(np.arange(8), 5), random.integers(1, 12, 40), np.empty(0, np.int64))
    asked, draws = random.dirichlet(np.full(8, 0.8), 2) * 100, 200
    quotas, room = quotas_of(seed, cells, draws), 4.0 * cells.size
    law = nearest_law(asked, cells, quotas, Room(room, tuple(quota.ceilings(draws) for quota in quotas)), draws)
    assume(law.rounds < 50 and law.draws.sum() > draws - 1e-6)
    plain = asked.sum(axis=0)[cells.cluster] * cells.size / np.bincount(cells.cluster, cells.size)[cells.cluster]
    full = law.draws >= room * (1 - 1e-6)
    for quota in quotas:
        ceilings = quota.ceilings(draws)
        full |= quota.spread((quota.sums(law.draws) >= ceilings * (1 - 1e-6)).astype(float), 0.0) > 0
    rate = law.draws / plain
    assert np.allclose(rate[~full], rate.max(), rtol=1e-5) or full.all()


@given(st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 20), st.floats(0, 1)), min_size=1, max_size=12), st.floats(0.01, 0.999))
@settings(deadline=None, max_examples=60)
def test_pour_reaches_the_total_between_floors_and_ceilings(rows: list[tuple[float, float, float]], part: float) -> None:
    amounts, ceilings, floors = (np.array(column) for column in zip(*rows, strict=True))
    floors = floors * ceilings
    usable = (amounts > 0) & (ceilings > 0)
    assume(usable.any())
    total = floors[usable].sum() + part * (ceilings - floors)[usable].sum()
    scale, poured = pour(amounts, ceilings, total, floors)
    assert poured.sum() == pytest.approx(total, rel=1e-9, abs=1e-12)
    assert np.allclose(poured[usable], np.clip(scale * amounts, floors, ceilings)[usable]) and not poured[~usable].any()


@given(seeds)
@settings(deadline=None, max_examples=60)
def test_fill_levels_are_where_each_group_reaches_its_limit(seed: int) -> None:
    random = np.random.default_rng(seed)
    amounts, ceilings, group = random.gamma(0.3, 1.0, 30) + 1e-9, random.gamma(1.0, 2.0, 30), random.integers(-1, 4, 30)
    limits = random.gamma(1.0, 3.0, 4)
    for number, level in enumerate(fill_levels(amounts, ceilings, group, limits)):
        inside = group == number
        if np.isfinite(level):
            assert np.minimum(level * amounts, ceilings)[inside].sum() == pytest.approx(limits[number], rel=1e-6)
        else:
            assert ceilings[inside].sum() <= limits[number] * (1 + 1e-9)


# Whole draws


@given(st.lists(st.floats(0.0, 5.0), min_size=1, max_size=40), st.integers(1, 200), st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_systematic_draws_round_down_or_up_and_add_up(parts: list[float], total: int, offset: float) -> None:
    expected = np.array(parts)
    assume(expected.sum() > 0.01)
    expected *= total / expected.sum()
    whole = systematic(expected, total, offset)
    assert whole.sum() == total and (np.abs(whole - expected) < 1 + 1e-6).all() and (whole >= 0).all()


def test_systematic_draws_are_unbiased_over_the_offset() -> None:
    expected = np.array([0.3, 1.7, 2.25, 0.05, 5.7])
    mean = np.mean([systematic(expected, 10, (step + 0.5) / 2000) for step in range(2000)], axis=0)
    assert np.allclose(mean, expected, atol=2e-3)


configs = st.builds(
    SelectionConfig,
    uniform_mix=st.sampled_from([0.0, 0.1, 0.5]),
    repeat_cap=st.sampled_from([None, 2.0, 4.0, 7.0]),
    cluster_max=st.sampled_from([None, 60, 120]),
    target_max=st.sampled_from([None, 100, 170]),
    uploader_share=st.sampled_from([None, 0.2, 0.3]),
    licence_shares=st.sampled_from([{}, {"nc": 0.1}, {"nc": 0.2, "": 0.3}]),
    seed=st.integers(0, 3),
)


@given(seeds, configs, st.integers(50, 600))
@settings(deadline=None, max_examples=120)
def test_whole_draws_add_up_and_keep_every_quota(seed: int, config: SelectionConfig, draws: int) -> None:
    candidates, demand = drawn(seed, clips=400)
    try:
        found = allot(candidates, demand, config, draws)
        repeats = found.repeats(clip_keys(pa.chunked_array([[f"clip {row}" for row in range(400)]]), config.seed), config.seed)
    except InputError:
        assume(False)
    assert repeats.sum() == draws and repeats.min() >= 0
    if config.repeat_cap is not None:
        assert repeats.max() <= config.repeat_cap
    if config.cluster_max is not None:
        assert by_cluster(candidates, repeats).max() <= config.cluster_max
    for name, share in config.licence_shares.items():
        assert repeats[candidates.groups["licence"].codes == ("", "by", "nc").index(name)].sum() <= np.ceil(share * draws - 1e-9)
    if config.uploader_share is not None:
        assert np.bincount(candidates.groups["uploader"].codes, repeats, minlength=8)[1:].max() <= np.ceil(config.uploader_share * draws - 1e-9)
    paid = credited(found, candidates, repeats)
    assert paid.sum() == pytest.approx(draws, rel=1e-9) and np.allclose(found.law.credit.sum(axis=0)[by_cluster(candidates, repeats) > 0], 1.0)
    if config.target_max is not None:
        assert paid[:-1].max() <= config.target_max + 1 + 1e-5
    asked = (1 - config.uniform_mix) * demand.clusters[candidates.cluster] + config.uniform_mix
    assert not repeats[asked == 0].any()


@given(seeds, st.integers(20, 1500))
@settings(deadline=None, max_examples=60)
def test_repeats_of_a_cluster_differ_by_one_at_most_and_clusters_are_rounded(seed: int, draws: int) -> None:
    candidates, demand = drawn(seed)
    found = allot(candidates, demand, PAPER, draws)
    repeats = found.repeats(clip_keys(pa.chunked_array([[str(row) for row in range(300)]]), 0), seed)
    for number in np.unique(candidates.cluster):
        inside = repeats[candidates.cluster == number]
        assert inside.max() - inside.min() <= 1
    assert (np.abs(by_cluster(candidates, repeats) - by_cluster(candidates, found.expected)) < 1 + 1e-6).all()


def test_a_million_draws_by_weight_and_by_repeats_follow_the_law() -> None:
    candidates, demand = drawn(11, clips=2000, clusters=40)
    found = allot(candidates, demand, SelectionConfig(uniform_mix=0.1, repeat_cap=None), 1_000_000)
    weights = found.expected / found.expected.sum()
    random = np.random.default_rng(5)
    rows = np.searchsorted(np.cumsum(weights), random.random(1_000_000), side="right").clip(max=1999)
    assert chisquare(np.bincount(rows, minlength=2000), weights * 1_000_000).pvalue > 1e-3
    repeats = found.repeats(clip_keys(pa.chunked_array([[str(row) for row in range(2000)]]), 0), 0)
    assert repeats.sum() == 1_000_000 and np.abs(repeats - weights * 1_000_000).max() < 2


def test_lots_depend_on_the_seed_and_the_clip_alone() -> None:
    ids = [f"{number:020x}" for number in range(0, 5000, 7)]
    keys = clip_keys(pa.chunked_array([ids]), 0)
    assert np.array_equal(clip_keys(pa.chunked_array([ids[::-1]]), 0)[::-1], keys) and len(np.unique(keys)) == len(ids)
    assert clip_keys(pa.chunked_array([ids[3:4]]), 0)[0] == keys[3] and not np.array_equal(clip_keys(pa.chunked_array([ids]), 1), keys)
    assert np.abs(np.corrcoef(np.argsort(np.argsort(keys)), np.arange(len(ids)))[0, 1]) < 0.15


@pytest.mark.parametrize("clips", [40, 100, 400])
def test_target_max_alone_finds_whole_draws_for_every_seed(clips: int) -> None:
    random = np.random.default_rng(clips)
    candidates = replace(alike(clips), cluster=random.integers(0, 8, clips), clusters=8)
    demand = Demand(("a", "b"), np.array([0.6, 0.4]), random.dirichlet(np.ones(8), 2))
    found = allot(candidates, demand, SelectionConfig(target_max=int(0.3 * clips)), clips)
    for seed in range(20):
        repeats = found.repeats(np.arange(clips, dtype=np.uint64), seed)
        assert repeats.sum() == clips and credited(found, candidates, repeats)[:-1].max() <= int(0.3 * clips) + 1 + 1e-5


@pytest.mark.parametrize("target_max", [None, 0.3])
def test_quotas_that_cross_each_other_find_whole_draws_in_any_order_of_the_clips(target_max: float | None) -> None:
    tried = 0
    for seed in range(40):
        clips = 300 + 25 * seed
        candidates, demand = crossed(seed, clips, 20)
        most = None if target_max is None else int(target_max * clips)
        config = SelectionConfig(uploader_share=0.25, licence_shares={"l0": 0.1}, source_shares={"s0": 0.2, "s1": 0.5}, target_max=most)
        try:
            found = allot(candidates, demand, config, clips)
        except InputError:
            continue
        keys, order = np.arange(clips, dtype=np.uint64), np.random.default_rng(seed).permutation(clips)
        repeats, tried = found.repeats(keys, seed), tried + 1
        for quota in found.quotas:
            assert (quota.sums(np.bincount(found.cells.of_clip, repeats)) <= np.ceil(quota.ceilings(clips) - 1e-9)).all()
        moved = replace(candidates.only(np.ones(clips, bool)), cluster=candidates.cluster[order])
        moved = replace(moved, groups={name: Group(group.names, group.codes[order]) for name, group in candidates.groups.items()})
        assert np.array_equal(allot(moved, demand, config, clips).repeats(keys[order], seed), repeats[order])
    assert tried >= 20


@given(seeds, st.sampled_from([1.5, 2.5, 3.2]))
@settings(deadline=None, max_examples=40)
def test_no_clip_is_drawn_more_often_than_its_cap_says(seed: int, cap: float) -> None:
    candidates, demand = drawn(seed)
    draws = int(np.floor(cap) * (demand.clusters[candidates.cluster] > 0).sum())
    found = allot(candidates, demand, SelectionConfig(uniform_mix=0.0, repeat_cap=cap), draws)
    assert found.repeats(np.arange(300, dtype=np.uint64), 0).max() <= cap


# Clips of one video


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 6), seeds)
@settings(deadline=None, max_examples=60)
def test_video_keeps_its_number_spread_through_its_length_and_those_asked_for_first(videos: list[int], limit: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    video, start_s = np.array(videos), random.permutation(len(videos)).astype(float)
    first = random.random(len(videos)) < 0.4
    kept = spread_in_time(video, start_s, first, limit)
    for number in np.unique(video):
        inside = video == number
        assert kept[inside].sum() == min(limit, inside.sum()) and (kept & first)[inside].sum() == min(limit, (inside & first).sum())
    alone = spread_in_time(np.zeros(len(videos), np.int64), start_s, np.ones(len(videos), bool), limit)
    gaps = np.diff(np.flatnonzero(alone[np.argsort(start_s)]))
    assert not len(gaps) or gaps.max() - gaps.min() <= 1
