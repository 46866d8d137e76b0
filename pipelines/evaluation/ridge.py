"""Ridge regression in closed form, its strength chosen on episodes held out of the training side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STRENGTHS = tuple(10.0**power for power in np.arange(-1.0, 5.5, 0.5))
INNER_SHARE = 0.2
_FLAT = 1e-8
"""Features whose spread is below this share of the largest one carry rounding noise only."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """A fitted map from features (n, d) to targets (n, k). `strength` multiplies the squared weights of standardised
    features (alpha of scikit-learn's Ridge behind a StandardScaler)."""

    centre: Array
    scale: Array
    weights: Array
    intercept: Array
    strength: float

    def predict(self, features: Array) -> Array:
        """(n, d) -> (n, k)."""
        return (np.asarray(features, np.float64) - self.centre) / self.scale @ self.weights + self.intercept


def fit_ridge(features: Array, targets: Array, strength: float) -> Ridge:
    """Least squares with penalty `strength`, solved in the smaller of feature and sample space."""
    centre, scale = _standard(features)
    rows = (np.asarray(features, np.float64) - centre) / scale
    intercept = targets.mean(0)
    if rows.shape[1] <= rows.shape[0]:
        matrix = rows.T @ rows
        matrix[np.diag_indices_from(matrix)] += strength
        weights = np.linalg.solve(matrix, rows.T @ (targets - intercept))
    else:
        matrix = rows @ rows.T
        matrix[np.diag_indices_from(matrix)] += strength
        weights = rows.T @ np.linalg.solve(matrix, targets - intercept)
    return Ridge(centre, scale, weights, intercept, strength)


def choose_ridge(features: Array, targets: Array, episodes: NDArray[Any], seed: int) -> Ridge:
    """The ridge whose strength predicts a held-out fifth of the episodes best (mean R2), fitted to all of them.

    features (n, d), targets (n, k), episodes (n,): rows of one episode stay on one side. With a single episode the
    middle strength is taken.
    """
    targets = np.asarray(targets, np.float64)
    names = np.unique(episodes)
    if len(names) < 2:
        return fit_ridge(features, targets, STRENGTHS[len(STRENGTHS) // 2])
    count = min(len(names) - 1, max(1, round(INNER_SHARE * len(names))))
    inside = ~np.isin(episodes, np.random.default_rng(seed).choice(names, count, replace=False))
    centre, scale = _standard(features[inside])
    rows, held = ((np.asarray(features[side], np.float64) - centre) / scale for side in (inside, ~inside))
    mean = targets[inside].mean(0)
    small = rows.shape[1] <= rows.shape[0]
    values, vectors = np.linalg.eigh(rows.T @ rows if small else rows @ rows.T)
    values = np.maximum(values, 0.0)
    if small:
        left, right = held @ vectors, vectors.T @ (rows.T @ (targets[inside] - mean))
    else:
        left, right = held @ (rows.T @ vectors), vectors.T @ (targets[inside] - mean)
    errors = []
    for strength in STRENGTHS:
        wrong = left @ (right / (values + strength)[:, None]) + mean - targets[~inside]
        spread = targets[~inside].var(0)
        errors.append(float(np.mean(wrong.var(0) / np.maximum(spread, 1e-12) + wrong.mean(0) ** 2 / np.maximum(spread, 1e-12))))
    return fit_ridge(features, targets, STRENGTHS[int(np.argmin(errors))])


def _standard(features: Array) -> tuple[Array, Array]:
    centre, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    return centre, np.where(scale > _FLAT * max(float(scale.max()), 1e-300), scale, 1.0)
