"""R2, accuracies and their 95 % intervals: bootstrap over whole episodes, Wilson for independent trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
RESAMPLES = 1000
_Z = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


def resample_weights(episodes: NDArray[Any], seed: int) -> tuple[Array, NDArray[np.int64]]:
    """((RESAMPLES, E) how often each episode is drawn, (n,) which of the E each row belongs to)."""
    names, owner = np.unique(episodes, return_inverse=True)
    random = np.random.default_rng(seed)
    return random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES).astype(float), owner


def r2(predicted: Array, targets: Array) -> Array:
    """Coefficient of determination per target (k,) of (n, k): 1 - squared error over the targets' own spread."""
    return 1.0 - ((predicted - targets) ** 2).sum(0) / ((targets - targets.mean(0)) ** 2).sum(0)


def resampled_r2(predicted: Array, targets: Array, weights: Array, owner: NDArray[np.int64]) -> Array:
    """R2 (RESAMPLES, k) on each bootstrap draw of episodes."""

    def per_episode(values: Array) -> Array:
        total = np.zeros((weights.shape[1], values.shape[1]))
        np.add.at(total, owner, values)
        return weights @ total

    count = weights @ np.bincount(owner, minlength=weights.shape[1])[:, None]
    errors, first, second = (per_episode(part) for part in ((predicted - targets) ** 2, targets, targets**2))
    return 1.0 - errors / np.maximum(second - first**2 / count, 1e-300)


def resampled_mean(values: Array, weights: Array, owner: NDArray[np.int64]) -> Array:
    """Mean of the values (n,) that are not NaN on each bootstrap draw (RESAMPLES,)."""
    counted = ~np.isnan(values)
    size = weights.shape[1]
    total = np.bincount(owner, weights=np.where(counted, values, 0.0), minlength=size)
    count = np.bincount(owner, weights=counted.astype(float), minlength=size)
    drawn = weights @ count
    return np.divide(weights @ total, drawn, out=np.full(len(drawn), np.nan), where=drawn > 0)


def interval(value: float, resampled: Array) -> Interval:
    """Value with the central 95 % of its bootstrap draws."""
    finite = resampled[np.isfinite(resampled)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (float("nan"), float("nan"))
    return Interval(float(value), float(low), float(high))


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


def wilson(successes: int, trials: int) -> Interval:
    """Share of successes with Wilson's 95 % interval; (nan, 0, 1) without trials."""
    if trials == 0:
        return Interval(float("nan"), 0.0, 1.0)
    share = successes / trials
    middle = (share + _Z**2 / (2 * trials)) / (1 + _Z**2 / trials)
    half = _Z / (1 + _Z**2 / trials) * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    return Interval(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))
