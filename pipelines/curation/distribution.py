"""Achieved against requested: what the selection draws, what it was asked for, where the difference went, and what each option did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.curation.allotment import Allotment, Group
from pipelines.curation.demand import Demand
from pipelines.curation.quotas import Index, Vector, sums_by
from pipelines.curation.selection import SelectionConfig

LISTED = 50  # values of a column, and full groups of a quota, that are listed; largest first
CLUSTERS = 100_000  # clusters that are listed
FULL = 1e-6  # relative distance from its ceiling at which a group counts as full


@dataclass(frozen=True)
class Drawn:
    """What is drawn of N distinct clips: `cluster` (N,), `weight` (N,) summing to 1 and `repeats` (N,), 0 where not chosen."""

    cluster: Index
    weight: Vector
    repeats: Index


def divergence(first: Vector, second: Vector) -> float:
    """KL(first || second) in nats; 0 log 0 is 0."""
    inside = first > 0
    return float(np.sum(first[inside] * np.log(first[inside] / second[inside])))


def total_variation(first: Vector, second: Vector) -> float:
    """Half the sum of absolute differences: the share of the draws that are made elsewhere."""
    return float(np.abs(first - second).sum() / 2)


def distribution(drawn: Drawn, found: Allotment, requested: Vector, targets: Demand, config: SelectionConfig) -> dict[str, Any]:
    """The report: per cluster, target and quota, and in figures (KL in nats, coverage, repeats, mass in shares of the draws).

    `requested` (K,) is what was asked of the clusters, by the `targets` or else; the targets are told of in any mode.
    """
    count, clusters = len(drawn.cluster), len(requested)
    uniform = np.bincount(drawn.cluster, minlength=clusters) / count
    achieved = sums_by(drawn.cluster, drawn.weight, clusters)
    wanted = requested > 0
    credited = _credited(found, achieved)
    return {
        "config": config.model_dump(mode="json"), "draws": found.draws, "clips": int((drawn.weight > 0).sum()), "pool_clips": count,
        "kl_clips": divergence(drawn.weight, np.full(count, 1.0 / count)), "kl_clusters": divergence(achieved, uniform),
        "effective_clips": float(1.0 / np.square(drawn.weight).sum()),
        "coverage": float((achieved[wanted] > 0).mean()) if wanted.any() else None, "supported_clusters": int(wanted.sum()),
        "largest_repeat": float(drawn.weight.max() * found.draws), "repeats": _counts(drawn.repeats),
        **_balance(found, requested), "targets": _targets(targets, achieved, uniform, credited, found),
        "rounds": found.law.rounds, "residual": found.law.residual, "quotas": _quotas(found),
        **_clusters(uniform, requested, achieved),
    }  # fmt: skip


def _credited(found: Allotment, achieved: Vector) -> Vector:
    """(D + 1, K) share of all draws that each asker pays for in each cluster."""
    if found.asked.shape[1] == len(achieved):
        return found.law.credit * achieved
    return np.asarray(achieved[None])  # one draw of lots over all clusters, for one asker


def _balance(found: Allotment, requested: Vector) -> dict[str, Any]:
    """Where asked mass went: `unserved` on clusters without a clip, `spilled` over from full groups, and who `gained` it.

    For every asker credited = asked - unserved - spilled + gained, in shares of the draws.
    """
    sizes = sums_by(found.cells.cluster, found.cells.size, found.asked.shape[1])
    asked = found.asked / found.draws
    given = found.law.credit * sums_by(found.cells.cluster, found.law.draws, asked.shape[1]) / found.draws
    unserved = np.where(sizes > 0, 0.0, asked).sum(axis=1)
    spilled = np.where(sizes > 0, np.maximum(asked - given, 0.0), 0.0).sum(axis=1)
    gained = np.maximum(given - asked, 0.0).sum(axis=1)
    named = {
        name: {"asked": float(a), "unserved": float(u), "spilled": float(s), "gained": float(g), "credited": float(c)}
        for name, a, u, s, g, c in zip(found.names, asked.sum(axis=1), unserved, spilled, gained, given.sum(axis=1), strict=True)
    }  # fmt: skip
    empty = np.flatnonzero((sizes == 0) & (requested > 0)) if len(sizes) == len(requested) else np.empty(0, np.int64)
    return {
        "unserved_mass": float(unserved.sum()), "spilled_mass": float(spilled.sum()), "balance": named,
        "unserved_clusters": empty[np.argsort(-requested[empty], kind="stable")][:LISTED].tolist(),
    }  # fmt: skip


def _targets(demand: Demand, achieved: Vector, uniform: Vector, credited: Vector, found: Allotment) -> dict[str, Any]:
    """Per target: its weight, the share drawn from its part of the clusters, the same for all clips alike, and its credit."""
    owed = demand.weights[:, None] * demand.share
    part = np.divide(owed, owed.sum(axis=0), out=np.zeros_like(owed), where=owed.sum(axis=0) > 0)
    paid = dict(zip(found.names, credited.sum(axis=1), strict=True))
    return {
        name: {
            "requested": float(demand.weights[row]), "achieved": float(part[row] @ achieved), "uniform": float(part[row] @ uniform),
            "credited": float(paid.get(name, 0.0)), "coverage": float(demand.share[row] @ (achieved > 0)),
        }
        for row, name in enumerate(demand.names)
    }  # fmt: skip


def _quotas(found: Allotment) -> list[dict[str, Any]]:
    """What each quota allows (draws) and what it came to; of quotas with many groups the fullest."""
    rows = [
        {
            "quota": "repeat_cap", "group": "clips", "full": int(found.cells.size[_full(found.law.draws, found.room)].sum()),
            "draws": float(found.law.draws[_full(found.law.draws, found.room)].sum()), "ceiling": None,
        }
    ] if np.isfinite(found.room).any() else []  # fmt: skip
    for quota in found.quotas:
        ceilings, sums = quota.ceilings(found.draws), quota.sums(found.law.draws)
        full = _full(sums, ceilings)
        for group in np.lexsort((-sums, ~full))[:LISTED]:
            rows.append({"quota": quota.name, "group": quota.labels[group], "full": int(full[group]), "draws": float(sums[group]), "ceiling": float(ceilings[group])})
    given = (found.law.credit * sums_by(found.cells.cluster, found.law.draws, found.asked.shape[1])).sum(axis=1)
    for row in np.flatnonzero(np.isfinite(found.ceilings)):
        full = _full(given[row], found.ceilings[row])
        rows.append({"quota": "target_max", "group": found.names[row], "full": int(full), "draws": float(given[row]), "ceiling": float(found.ceilings[row])})
    return rows


def _full(amounts: Any, ceilings: Any) -> Any:
    return (amounts >= ceilings * (1 - FULL)) & (amounts > 0)


def _counts(repeats: Index) -> dict[str, int]:
    """Number of clips for every number of whole draws that occurs."""
    values, times = np.unique(repeats, return_counts=True)
    return {str(value): int(many) for value, many in zip(values.tolist(), times.tolist(), strict=True)}


def _clusters(uniform: Vector, requested: Vector, achieved: Vector) -> dict[str, Any]:
    """Shares of the clusters that have or ask for anything, in the order of their numbers; of very many those asked for most."""
    rows = np.flatnonzero((uniform > 0) | (requested > 0))
    kept = np.sort(rows[np.lexsort((-uniform[rows], -achieved[rows], -requested[rows]))][:CLUSTERS])
    return {
        "clusters_left_out": len(rows) - len(kept),
        "clusters": [
            {"cluster": number, "uniform": alike, "requested": asked, "achieved": got}
            for number, alike, asked, got in zip(kept.tolist(), uniform[kept].tolist(), requested[kept].tolist(), achieved[kept].tolist(), strict=True)
        ],
    }  # fmt: skip


def group_shares(group: Group, weight: Vector, repeats: Index) -> list[dict[str, Any]]:
    """Values of a column, most drawn first: clips in the pool, share of it, share of the draws, and whole draws."""
    size = len(group.names)
    clips, drawn = np.bincount(group.codes, minlength=size), sums_by(group.codes, weight, size)
    whole = sums_by(group.codes, repeats, size)
    order = np.lexsort((np.arange(size), -clips, -drawn))[:LISTED]
    return [
        {"value": group.names[row], "clips": int(clips[row]), "pool": float(clips[row] / max(1, clips.sum())), "achieved": float(drawn[row]), "draws": int(whole[row])}
        for row in order.tolist()
    ]  # fmt: skip
