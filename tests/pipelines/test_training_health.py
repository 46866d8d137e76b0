"""The measures of health say what they claim on features that are made for it, and the verdict follows from them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.training.metrics import (
    Health,
    halves_recall,
    health,
    label_accuracy,
    lidar,
    mean_cosine,
    rank_me,
    relative_distance,
)


@pytest.fixture
def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def alone(count: int) -> Tensor:
    """All clips are different ones."""
    return torch.eye(count, dtype=torch.bool)


def test_rank_me_counts_directions(source: torch.Generator) -> None:
    directions = torch.linalg.qr(torch.randn(32, 32, generator=source)).Q
    for rank in (1, 4, 32):
        features = torch.linalg.qr(torch.randn(256, rank, generator=source)).Q @ directions[:rank]
        assert rank_me(features) == pytest.approx(rank, rel=1e-3)


def test_lidar_counts_directions_that_tell_clips_apart_however_loud_the_others_are(source: torch.Generator) -> None:
    clips, views, told, noisy = 64, 8, 5, 20
    features = torch.zeros(clips, views, 32)
    features[..., :told] = torch.linalg.qr(torch.randn(clips, told, generator=source)).Q.unsqueeze(1)
    features[..., :told] += 0.01 * torch.randn(clips, views, told, generator=source)
    features[..., told : told + noisy] = 10 * torch.randn(clips, views, noisy, generator=source)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=source)).Q
    assert lidar(features @ turn) == pytest.approx(told, rel=0.1)
    assert rank_me((features @ turn).flatten(0, 1)) > told + noisy / 2
    assert lidar(features[:1].expand(clips, -1, -1)) == pytest.approx(1, rel=1e-3)  # views of one clip alone: nothing to tell apart


def test_mean_cosine_is_of_all_pairs_and_not_centred(source: torch.Generator) -> None:
    features = torch.randn(10, 6, generator=source) + 2
    pairs = torch.nn.functional.cosine_similarity(features.unsqueeze(0), features.unsqueeze(1), dim=2)
    assert mean_cosine(features) == pytest.approx(float(pairs[~torch.eye(10, dtype=torch.bool)].mean()), rel=1e-5)
    assert mean_cosine(torch.ones(10, 6)) == pytest.approx(1)


def test_halves_find_each_other_when_they_are_alike_and_by_chance_when_not(source: torch.Generator) -> None:
    clips = torch.randn(40, 1, 16, generator=source)
    halves = clips + 0.1 * torch.randn(40, 2, 16, generator=source)
    assert halves_recall(halves + 5, alone(40)) == 1
    assert halves_recall(torch.randn(40, 2, 16, generator=source), alone(40)) < 0.1


def test_samples_of_one_clip_need_not_be_told_apart(source: torch.Generator) -> None:
    clips = torch.randn(20, 1, 16, generator=source).repeat(2, 1, 1)
    halves = clips + 0.1 * torch.randn(40, 2, 16, generator=source)
    number = torch.arange(40) % 20
    assert halves_recall(halves, alone(40)) < 0.7
    assert halves_recall(halves, number.unsqueeze(0) == number.unsqueeze(1)) == 1


def test_neighbours_tell_labels_as_far_as_features_do(source: torch.Generator) -> None:
    labels = torch.arange(40) % 4 * 7
    features = torch.nn.functional.one_hot(labels // 7, 16) + 0.1 * torch.randn(40, 16, generator=source)
    assert label_accuracy(features, labels, alone(40)) == 1
    noise = label_accuracy(torch.randn(40, 16, generator=source), labels, alone(40))
    assert noise is not None and noise < 0.5
    rare = torch.cat([labels[:20] % 14, torch.arange(20) + 100])  # two labels of ten clips, and twenty of one
    assert label_accuracy(features, rare, alone(40)) == label_accuracy(features[:20], rare[:20], alone(20)) is not None
    assert label_accuracy(features, torch.zeros(40, dtype=torch.int64), alone(40)) is None


def test_a_clip_is_no_neighbour_of_itself_seen_again(source: torch.Generator) -> None:
    features = torch.randn(30, 16, generator=source).repeat(2, 1)
    labels = torch.randint(0, 3, (30,), generator=source).repeat(2)
    number = torch.arange(60) % 30
    found = label_accuracy(features, labels, alone(60)), label_accuracy(features, labels, number.unsqueeze(0) == number.unsqueeze(1))
    assert found[0] is not None and found[1] is not None and found[0] > 0.6 > found[1]


def test_relative_distance_is_over_all_tensors_together() -> None:
    first, second = [torch.tensor([3.0]), torch.tensor([[0.0, 8.0]])], [torch.zeros(1), torch.tensor([[0.0, 4.0]])]
    assert relative_distance(first, second) == pytest.approx(5 / 4)


def measured(**changes: float) -> Health:
    return {"rank_me": 40.0, "target_std": 0.75, "cosine": 0.5, "mean_loss": 0.4, "floor": 0.7, "data_wait": 0.1, **changes}


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({}, "healthy"),
        ({"rank_me": 9.0, "target_std": 0.5}, "healthy"),
        ({"rank_me": 5.0}, "collapsing"),
        ({"target_std": 0.15}, "collapsing"),
        ({"rank_me": 2.0, "mean_loss": 0.01}, "collapsed"),
        ({"target_std": 0.01, "rank_me": 60.0, "cosine": 1.0}, "collapsed"),  # what is left is noise, and noise has a high rank
        ({"data_wait": 0.8}, "starved"),
        ({"data_wait": 0.8, "target_std": 0.01}, "collapsed"),
    ],
)
def test_verdict_names_the_state_and_the_numbers_behind_it(last: dict[str, float], state: str) -> None:
    verdict = health([measured(), measured(), measured(**last)])
    assert verdict.state == state
    assert verdict.line.startswith(f"{state}: target std {last.get('target_std', 0.75):.2f} (first 0.75), cosine between clips")
    assert "RankMe" in verdict.line and "for a constant guess" in verdict.line and "data wait" in verdict.line


def test_dull_videos_are_not_called_a_collapse() -> None:
    assert health([measured(rank_me=1.5, target_std=0.02), measured(rank_me=1.4, target_std=0.02)]).state == "healthy"


def test_nothing_measured_yet_is_said_so() -> None:
    assert health([]).state == "healthy" and "nothing measured yet" in health([]).line


def test_measurements_of_before_there_was_a_cosine_are_still_judged() -> None:
    old = {name: value for name, value in measured().items() if name != "cosine"}
    assert health([old, {**old, "target_std": 0.01}]).state == "collapsed"
