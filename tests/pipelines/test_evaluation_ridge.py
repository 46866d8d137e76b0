"""Ridge against scikit-learn, R2 and intervals against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from pipelines.evaluation.intervals import clustered_share, jackknife, left_out_mean, left_out_r2, r2, wilson
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


def test_r2_without_an_episode_is_the_r2_of_the_others() -> None:
    random = np.random.default_rng(3)
    truth, episodes = random.normal(size=(24, 2)) + 5.0, np.repeat(np.arange(6), 4)
    predicted = truth + 0.4 * random.normal(size=truth.shape)
    found = left_out_r2(predicted, truth, episodes)
    for episode in range(6):
        rest = episodes != episode
        np.testing.assert_allclose(found[episode], r2(predicted[rest], truth[rest]), rtol=1e-9)


@pytest.mark.parametrize("episodes", [2, 3, 5, 12])
def test_two_equally_good_encoders_differ_no_more_often_than_the_interval_says(episodes: int) -> None:
    random = np.random.default_rng(4)
    differ = 0
    for _ in range(300):
        owners = np.repeat(np.arange(episodes), 10)
        truth = random.normal(size=(len(owners), 3))
        errors = random.normal(scale=0.3, size=(2, episodes, 1, 3)) + random.normal(scale=0.3, size=(2, episodes, 10, 3))
        one, other = (truth + error.reshape(-1, 3) for error in errors)
        value = r2(one, truth).mean() - r2(other, truth).mean()
        found = jackknife(value, left_out_r2(one, truth, owners).mean(1) - left_out_r2(other, truth, owners).mean(1))
        differ += found.low > 0 or found.high < 0
    assert differ <= 24  # 5 % are 15


def test_one_episode_shows_nothing_of_others() -> None:
    values, one = np.array([0.0, 1.0, 1.0]), np.zeros(3, int)
    found = jackknife(values.mean(), left_out_mean(values, one), (0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0)
    truth = np.arange(6.0).reshape(3, 2)
    found = jackknife(0.5, left_out_r2(truth + 0.1, truth, one).mean(1))
    assert (found.low, found.high) == (-np.inf, np.inf)


def test_unscored_rows_count_nowhere() -> None:
    values = np.array([1.0, np.nan, 0.0, np.nan])
    assert left_out_mean(values, np.array([0, 0, 1, 1])).tolist() == [0.0, 1.0]
    assert np.isnan(left_out_mean(values, np.array([0, 1, 0, 1]))[0])


def test_clips_of_one_video_are_one_trial() -> None:
    right, videos = np.repeat([1.0, 1.0, 0.0, 1.0], 25), np.repeat(["a", "b", "c", "d"], 25)
    found, alone = clustered_share(right, videos), clustered_share(right, np.arange(100))
    assert found.value == alone.value == 0.75 and (found.low, found.high) == pytest.approx((wilson(3, 4).low, wilson(3, 4).high))
    assert alone.high - alone.low < 0.2 < found.high - found.low


@settings(max_examples=60, deadline=None)
@given(trials=st.integers(1, 400), share=st.floats(0, 1))
def test_wilson_interval_holds_the_share_and_stays_in_range(trials: int, share: float) -> None:
    found = wilson(round(share * trials), trials)
    assert 0.0 <= found.low <= found.value <= found.high <= 1.0


def test_wilson_matches_a_published_value() -> None:
    found = wilson(33, 50)
    assert (round(found.low, 2), round(found.high, 2)) == (0.52, 0.78)
