"""Which rows of a graph stay: the star cover's promises, components that only grow, and leaks that take whole components."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.curation.cover import component_cover, component_leaks, star_cover

Graph = tuple[int, set[tuple[int, int]], list[int]]

graphs = st.integers(1, 14).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.sets(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] < pair[1])),
        st.permutations(range(count)),
    )
)


@given(graphs)
def test_every_removed_row_is_covered_by_a_kept_direct_neighbour(graph: Graph) -> None:
    count, edges, order = graph
    cover = star_cover(count, edges, order)
    for row, keeper in enumerate(cover):
        assert cover[keeper] == keeper
        assert keeper == row or (min(row, keeper), max(row, keeper)) in edges


@given(graphs)
def test_no_two_kept_rows_are_neighbours_and_a_second_pass_removes_nothing(graph: Graph) -> None:
    count, edges, order = graph
    kept = {row for row, keeper in enumerate(star_cover(count, edges, order)) if row == keeper}
    inner = [pair for pair in edges if kept.issuperset(pair)]
    assert not inner
    assert all(star_cover(count, inner, order)[row] == row for row in kept)


@given(graphs)
def test_cover_does_not_depend_on_the_order_in_which_pairs_were_found(graph: Graph) -> None:
    count, edges, order = graph
    backwards = np.array(sorted(edges, reverse=True), np.int64).reshape(-1, 2)[:, ::-1]
    for cover in (star_cover, component_cover):
        assert cover(count, edges, order) == cover(count, backwards, order)


@given(graphs, st.permutations(range(14)))
def test_cover_does_not_depend_on_how_rows_are_numbered(graph: Graph, names: list[int]) -> None:
    count, edges, order = graph
    new = [name for name in names if name < count]
    renamed = {(min(new[a], new[b]), max(new[a], new[b])) for a, b in edges}
    for cover in (star_cover, component_cover):
        before, after = cover(count, edges, order), cover(count, renamed, [new[row] for row in order])
        assert [new[keeper] for keeper in before] == [after[new[row]] for row in range(count)]


@given(graphs, st.data())
def test_components_remove_more_with_more_pairs(graph: Graph, data: st.DataObject) -> None:
    """A looser rule finds a superset of pairs; nothing that the stricter one removed comes back."""
    count, edges, order = graph
    fewer = data.draw(st.sets(st.sampled_from(sorted(edges)))) if edges else set()
    strict, loose = component_cover(count, fewer, order), component_cover(count, edges, order)
    assert all(loose[row] != row for row in range(count) if strict[row] != row)


def test_a_looser_rule_may_give_rows_back_under_the_star_cover() -> None:
    """Why no such promise is made: 2 covered 3, and is itself covered now."""
    order = [0, 1, 2, 3]
    assert star_cover(4, [(2, 3)], order) == [0, 1, 2, 2]
    assert star_cover(4, [(2, 3), (0, 2)], order) == [0, 1, 0, 3]


def test_chain_keeps_its_far_end() -> None:
    assert star_cover(3, [(0, 1), (1, 2)], [0, 1, 2]) == [0, 0, 2]
    assert component_cover(3, [(0, 1), (1, 2)], [0, 1, 2]) == [0, 0, 0]


def test_rows_left_out_of_the_order_neither_stay_nor_cover() -> None:
    assert star_cover(3, [(0, 1), (1, 2)], [0, 2]) == [0, -1, 2]
    assert component_cover(3, [(0, 1), (1, 2)], [0, 2]) == [0, -1, 2]


@given(graphs, st.sets(st.integers(0, 13)))
def test_leaks_take_the_whole_component_and_nothing_else(graph: Graph, seeds: set[int]) -> None:
    count, edges, _ = graph
    direct = {row: 100 + row for row in seeds if row < count}
    reached = component_leaks(count, edges, direct)
    assert direct.items() <= reached.items()
    assert all((first in reached) == (second in reached) for first, second in edges)
    assert set(reached.values()) <= set(direct.values())
