"""Ridge against scikit-learn, R2 and intervals against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from pipelines.evaluation.intervals import interval, r2, resample_weights, resampled_mean, resampled_r2, wilson
from pipelines.evaluation.ridge import STRENGTHS, choose_ridge, fit_ridge


def problem(samples: int, width: int, targets: int = 2, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(samples * 1000 + width)
    features = random.normal(size=(samples, width)) * random.uniform(0.1, 5.0, width) + random.normal(size=width)
    weights = random.normal(size=(width, targets)) / np.sqrt(width)
    return features, features @ weights + noise * random.normal(size=(samples, targets)), np.arange(samples) // 4


@pytest.mark.parametrize(("samples", "width"), [(60, 12), (20, 90)])
@pytest.mark.parametrize("strength", [0.1, 10.0, 1000.0])
def test_ridge_equals_scikit_learn_in_both_spaces(samples: int, width: int, strength: float) -> None:
    features, targets, _ = problem(samples, width)
    scaler = StandardScaler().fit(features)
    theirs = SklearnRidge(alpha=strength, solver="svd").fit(scaler.transform(features), targets)
    fresh = np.random.default_rng(0).normal(size=(7, width))
    ours = fit_ridge(features, targets, strength).predict(fresh)
    np.testing.assert_allclose(ours, theirs.predict(scaler.transform(fresh)), atol=1e-8)


@pytest.mark.parametrize(("samples", "width"), [(80, 10), (40, 120)])
def test_chosen_strength_is_the_best_on_the_held_out_episodes(samples: int, width: int) -> None:
    features, targets, episodes = problem(samples, width, noise=1.0)
    names = np.unique(episodes)
    held = np.isin(episodes, np.random.default_rng(5).choice(names, max(1, round(0.2 * len(names))), replace=False))
    scores = []
    for strength in STRENGTHS:
        wrong = fit_ridge(features[~held], targets[~held], strength).predict(features[held]) - targets[held]
        scores.append(float(((wrong**2).mean(0) / targets[held].var(0)).mean()))
    assert choose_ridge(features, targets, episodes, seed=5).strength == STRENGTHS[int(np.argmin(scores))]


def test_constant_features_do_not_break_the_fit() -> None:
    features, targets, episodes = problem(40, 6)
    features[:, 2] = 7.0
    ridge = choose_ridge(features, targets, episodes, seed=0)
    assert np.isfinite(ridge.predict(features)).all()


def test_r2_equals_scikit_learn() -> None:
    random = np.random.default_rng(2)
    truth, predicted = random.normal(size=(30, 3)), random.normal(size=(30, 3))
    np.testing.assert_allclose(r2(predicted, truth), r2_score(truth, predicted, multioutput="raw_values"))


def test_resampled_r2_is_the_r2_of_the_drawn_episodes() -> None:
    random = np.random.default_rng(3)
    truth, episodes = random.normal(size=(24, 2)) + 5.0, np.repeat(np.arange(6), 4)
    predicted = truth + 0.4 * random.normal(size=truth.shape)
    weights, owner = resample_weights(episodes, seed=1)
    found = resampled_r2(predicted, truth, weights, owner)
    for draw in (0, 17):
        rows = np.concatenate([np.flatnonzero(episodes == e) for e, n in enumerate(weights[draw].astype(int)) for _ in range(n)])
        np.testing.assert_allclose(found[draw], r2(predicted[rows], truth[rows]), rtol=1e-9)


def test_interval_of_independent_episodes_covers_the_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(4)
    covered = 0
    for trial in range(100):
        values, episodes = random.normal(1.0, 1.0, 40), np.arange(40)
        weights, owner = resample_weights(episodes, seed=trial)
        found = interval(values.mean(), resampled_mean(values, weights, owner))
        covered += found.low <= 1.0 <= found.high
    assert 85 <= covered <= 100


def test_unscored_rows_count_nowhere() -> None:
    values = np.array([1.0, np.nan, 0.0, np.nan])
    weights, owner = resample_weights(np.array([0, 0, 1, 1]), seed=0)
    assert set(np.unique(resampled_mean(values, weights, owner))) <= {0.0, 0.5, 1.0}


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 400), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_in_range(trials: int, share: float) -> None:
    found = wilson(round(share * trials), trials)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_wilson_matches_a_published_value() -> None:
    found = wilson(33, 50)
    assert (round(found.low, 2), round(found.high, 2)) == (0.52, 0.78)
