"""Whether the targets ask for other clusters than before: their clips changed, or their weights did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.drift import DriftConfig, Measured, Vector, judged, total_variation
from pipelines.identity import stable_seed

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Asked:
    """Training clips of each target set in every leaf, `counts` (D, K), the sets' `names` (D,) and their weights (sum 1)."""

    names: tuple[str, ...]
    counts: Counts
    weights: Mapping[str, float]

    @property
    def demand(self) -> Vector:
        """w_c = sum_d w_d N_dc / N_d (K,): V-JEPA 2's formula at support 1."""
        weights = np.array([self.weights.get(name, 0.0) for name in self.names])
        return weights @ (self.counts / np.maximum(1, self.counts.sum(axis=1, keepdims=True)))

    def over(self, leaves: int) -> Asked:
        """The same over `leaves` leaves, of which those that were appended since were asked for by nobody."""
        return Asked(self.names, np.pad(self.counts, ((0, 0), (0, leaves - self.counts.shape[1]))), self.weights)

    def of(self, name: str) -> Counts:
        """(K,) clips of one set, none when there is no such set."""
        return self.counts[self.names.index(name)] if name in self.names else np.zeros(self.counts.shape[1], np.int64)


def target_drift(old: Asked, new: Asked, known: Counts, pool: Counts, config: DriftConfig) -> tuple[Measured, dict[str, Any]]:
    """Total variation between the demands w_c of the old and the new targets on one codebook, and what is unserved.

    `known` (D, K) are the clips of `new` that were among the old ones already; `pool` (K,) counts the pool's clips in each
    leaf. The null deals the clips of a set anew to those that stayed, were lost and were gained, as many as there are of
    each. Changed weights, and sets that came or went, are decisions and no chance.
    """
    old = old.over(len(pool))
    before, after = old.demand, new.demand
    names = sorted({*old.names, *new.names})
    weights = {name: (old.weights.get(name, 0.0), new.weights.get(name, 0.0)) for name in names}
    clips = {name: (int(old.of(name).sum()), int(new.of(name).sum())) for name in names}
    random = np.random.default_rng(stable_seed("target-drift", config.seed))
    shift = np.zeros((config.splits, len(pool)))
    both = [name for name in names if min(clips[name]) > 0]
    total = sum(sum(weights[name]) for name in both)
    for name in both:
        stayed = np.minimum(known[new.names.index(name)], old.of(name))
        union, lost, gained = old.of(name) + new.of(name) - stayed, clips[name][0] - stayed.sum(), clips[name][1] - stayed.sum()
        moved = random.multivariate_hypergeometric(union, int(lost + gained), size=config.splits, method="marginals")
        came = np.stack([random.multivariate_hypergeometric(row, int(gained), method="marginals") for row in moved])
        now, then = (union - moved + came) / clips[name][1], (union - came) / clips[name][0]
        shift += sum(weights[name]) / max(total, 1e-12) * (now - then)
    null = np.abs(shift).sum(axis=1) / 2
    value = float(total_variation(before, after))
    found = judged(value, max(0.0, value - float(null.mean())), null, config)
    sets = {name: {"weight": list(weights[name]), "clips": list(clips[name])} for name in names}
    return found, {"unserved_before": float(before[pool == 0].sum()), "unserved": float(after[pool == 0].sum()), "sets": sets}
