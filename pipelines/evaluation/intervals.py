"""R2, accuracies and their 95 % intervals: a jackknife over whole episodes or videos, Wilson for independent trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_Z = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def r2(predicted: Array, targets: Array) -> Array:
    """Coefficient of determination per target (k,) of (n, k): 1 - squared error over the targets' own spread."""
    return 1.0 - ((predicted - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)


def left_out_r2(predicted: Array, targets: Array, groups: NDArray[Any]) -> Array:
    """R2 (E, k) without one of the E groups (n,) each."""
    count, errors, first, second = (
        _without_each(part, groups) for part in (np.ones((len(targets), 1)), (predicted - targets) ** 2, targets, targets**2)
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # without the only group nothing is left
        return 1.0 - errors / np.maximum(second - first**2 / count, 1e-300)


def left_out_mean(values: Array, groups: NDArray[Any]) -> Array:
    """Mean (E,) of the values (n,) that are not NaN without one of the E groups (n,) each; NaN where nothing is left."""
    counted = ~np.isnan(values)
    total, count = _without_each(np.stack([np.where(counted, values, 0.0), counted], axis=1), groups).T
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0.5)


def _without_each(values: Array, groups: NDArray[Any]) -> Array:
    """Sums (E, k) of values (n, k) over all items but those of one group each."""
    names, owner = np.unique(groups, return_inverse=True)
    own = np.zeros((len(names), values.shape[1]))
    np.add.at(own, owner, values)
    return own.sum(0) - own


def jackknife(value: float, left_out: Array, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Value with Student's 95 % interval from its values (E,) with one group left out each (Tukey 1958), within `bounds`.

    Everything within the bounds for a single group, and where one group alone makes the value. With few groups a percentile bootstrap
    is too narrow: of two it takes every second difference of nothing for something, of one every one.
    """
    from scipy.stats import t

    groups = len(left_out)
    if groups < 2 or not np.isfinite(left_out).all():
        return Interval(float(value), *bounds)
    pseudo = groups * value - (groups - 1) * left_out
    half = float(t.ppf(0.975, groups - 1)) * float(pseudo.std(ddof=1)) / math.sqrt(groups)
    return Interval(float(value), max(bounds[0], value - half), min(bounds[1], value + half))


def paired_share(differences: Array, owners: NDArray[Any]) -> Interval:
    """Mean difference (n,) of two shares in 0..1 on the same items, with its 95 % interval over the `owners` (n,) of the items.

    Agresti and Min (2005): one gain, one loss of half a weight each and one tie are added, so that a few items that all went one
    way do not pass for certainty, nor none at all for an interval of no width. Items of one owner count as one observation.
    """
    names, owner = np.unique(owners, return_inverse=True)
    totals = np.bincount(owner, weights=differences) * len(names) / len(differences)
    count = len(names) + 2
    centre, square = totals.sum() / count, ((totals**2).sum() + 1.0) / count
    half = _Z * math.sqrt((square - centre**2) / count)
    mean = float(np.mean(differences))
    return Interval(mean, max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def paired_mean(differences: Array, owners: NDArray[Any]) -> Interval:
    """Mean difference (n,) of anything on the same items, with Student's 95 % interval over their `owners`; unbounded for one owner."""
    from scipy.stats import t

    names, owner = np.unique(owners, return_inverse=True)
    totals = np.bincount(owner, weights=differences) * len(names) / len(differences)
    mean = float(np.mean(differences))
    if len(names) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = float(t.ppf(0.975, len(names) - 1)) * float(totals.std(ddof=1)) / math.sqrt(len(names))
    return Interval(mean, mean - half, mean + half)


def clustered_share(values: Array, owners: NDArray[Any]) -> Interval:
    """Mean of values (n,) in 0..1 with Wilson's 95 % interval, the items of one owner (n,) together counting as one trial."""
    trials = len(np.unique(owners))
    found = wilson(float(np.mean(values)) * trials, trials)
    return Interval(float(np.mean(values)), found.low, found.high)


def wilson(successes: float, trials: int) -> Interval:
    """Share of successes with Wilson's 95 % interval; (nan, 0, 1) without trials."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share = successes / trials
    middle = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))
