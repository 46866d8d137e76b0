"""Draws that the simple rules left without a place, placed by a linear programme.

One more draw may need others to move: out of a full group into one that is not. Such chains are what the rules of
`whole_draws` and the rounds of `nearest_law` miss in tight cases. Expected draws find a place wherever there is one; whole
ones by moves of at most CELLS cells. HiGHS is deterministic, so the result depends on the arguments alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, hstack, vstack

from pipelines.curation.quotas import Quota, Vector

UNPLACED = 1e4  # price of a draw without a place, far above that of any chain of moves
CELLS = 2000  # cells that may change in a programme of whole numbers; such a programme over 1e5 takes minutes
ROUNDING = 1e-6  # draws; sums of shares are not exact
NODES = 1000  # of the search for whole numbers; rarely more than the first is looked at


def placed(
    draws: Vector, expected: Vector, room: Vector, limits: Sequence[tuple[Quota, Vector]], shares: Sequence[tuple[Vector, float]], total: float, whole: bool
) -> Vector:
    """(J,) draws near to `draws` (J,) of which as many as possible, at most `total`, have a place; whole ones if asked for.

    A place is within `room` (J,), the `limits` (G,) of every quota, and the ceiling of each asker, who pays for `shares` (J,) of
    the draws. A move costs the more, the further it leads from `expected` (J,). Whole `draws` must keep the limits already.
    """
    up, down = np.clip(1 + draws - expected, 0.1, 10.0), np.clip(1 + expected - draws, 0.1, 10.0)
    cells = _cheapest(np.minimum(up, down), limits) if whole else np.arange(len(draws))
    quotas = [quota.indicator() for quota, _ in limits] + [csr_array(share[None]) for share, _ in shares]
    kept = vstack(quotas, format="csr") if quotas else csr_array((0, len(draws)))
    ceiling = np.concatenate([*(limit for _, limit in limits), np.array([most for _, most in shares])])
    slack = ceiling - kept @ draws
    slack[np.abs(slack) < ROUNDING] = 0.0
    inside, one = kept[:, cells], np.ones(len(cells))
    found = milp(
        np.concatenate([up[cells], down[cells], [UNPLACED]]),  # draws more, draws less, and draws without a place
        integrality=np.full(2 * len(cells) + 1, int(whole)),
        bounds=Bounds(0, np.concatenate([np.maximum(room - draws, 0.0)[cells], draws[cells], [np.inf]])),
        constraints=[
            LinearConstraint(hstack([inside, -inside, csr_array((kept.shape[0], 1))]), -np.inf, slack),
            LinearConstraint(np.concatenate([one, -one, [1.0]]), total - draws.sum(), total - draws.sum()),
        ],
        options={"node_limit": NODES, "mip_rel_gap": 0.5},
    )  # fmt: skip
    if found.x is None:
        return draws
    more, less, _ = np.split(found.x, [len(cells), 2 * len(cells)])
    moved = draws.copy()
    moved[cells] = np.maximum(draws[cells] + more - less, 0.0)
    return np.rint(moved) if whole else moved


def _cheapest(cost: Vector, limits: Sequence[tuple[Quota, Vector]]) -> NDArray[np.int64]:
    """At most CELLS cells, from every combination of groups first those that cost least."""
    combination = np.zeros(len(cost), np.int64)
    for quota, limit in limits:
        combination = np.unique(combination * (len(limit) + 1) + quota.group + 1, return_inverse=True)[1]
    order = np.lexsort((cost, combination))
    place = np.arange(len(cost)) - np.searchsorted(combination[order], combination[order])  # in its combination
    return np.sort(order[np.lexsort((cost[order], place))][:CELLS])
