"""The benchmark compares like with like: its contestants agree on a tiny setting. No time is looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.contests import Plans, forward_contests, rollout_contest, step_contest, step_losses
from benchmarks.gpu import half_step_contest
from benchmarks.subjects import Setting, Subject, same_features, same_steps
from benchmarks.timing import Contest, Result, hold, lines
from models.action_predictor import ActionPredictorConfig
from models.encoder import EncoderConfig
from models.predictor import PredictorConfig

ROOT = Path(__file__).resolve().parents[2]
TINY = Setting(
    name="tiny",
    encoder=EncoderConfig(embed_dim=64, depth=2, num_heads=2, img_size=(64, 64), num_frames=4),
    predictor=PredictorConfig(
        embed_dim=64, predictor_embed_dim=96, depth=2, num_heads=3, img_size=(64, 64), num_frames=4
    ),
    batch=2,
    context=(10, 6),
    target=(20, 24),
    share=1.0,
)


def test_forward_contestants_compute_the_same_features() -> None:
    pytest.importorskip("transformers")
    for contest in forward_contests(TINY, None):
        assert contest.check().startswith("features ")
        assert list(contest.contestants) == ["ours", "transformers"]


def test_step_contestants_reach_the_same_loss_and_gradients() -> None:
    contest = step_contest(TINY, None)
    assert "gradients" in contest.check()
    assert list(contest.contestants) == ["ours", "plain reference", "ours, torch linears"]


def test_bfloat16_step_is_proved_in_float32_first() -> None:
    assert half_step_contest(TINY, None, "cpu", compiled=False).check().startswith("float32: loss ")


@pytest.mark.parametrize("horizon", [1, 3])
def test_rollout_contestants_imagine_the_same_frame(horizon: int) -> None:
    config = ActionPredictorConfig(embed_dim=48, depth=2, num_heads=2, predictor_embed_dim=64, img_size=(32, 32))
    contest = rollout_contest(Plans(config=config, candidates=3, horizon=horizon, share=1.0), None)
    assert contest.check().startswith("features ")


def test_a_contestant_that_computes_something_else_is_refused() -> None:
    losses = step_losses(Subject(TINY), None)
    networks, _ = losses["plain reference"]
    with torch.no_grad():
        networks.get_parameter("encoder.blocks.1.mlp.fc1.bias")[0] += 0.05
    with pytest.raises(AssertionError, match="plain reference"):
        same_steps(losses)()
    tokens = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="other: relative difference"):
        same_features({"ours": lambda: tokens, "other": lambda: tokens * 1.001})()


def test_contestants_take_turns_and_parity_comes_first() -> None:
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)

    def check() -> str:
        calls.append("check")
        return "equal"

    contest = Contest(name="order", contestants={"ours": lambda: run("a"), "theirs": lambda: run("b")}, check=check)
    ticks = iter(range(1000))
    result = hold(contest, repeats=4, clock=lambda: float(next(ticks)))
    assert calls == ["check"] + ["a", "b"] * 5  # one round of warm-up
    assert result.seconds == {"ours": [1.0] * 4, "theirs": [1.0] * 4}


def test_ratios_are_of_medians_and_their_spread_of_single_rounds() -> None:
    result = Result(name="sums", seconds={"ours": [1.0, 2.0, 4.0], "theirs": [3.0, 4.0, 4.0]}, parity="", flops=10**9)
    assert result.ratio("theirs") == 2.0
    assert result.spread("theirs") == pytest.approx((1.2, 2.8))
    assert "2.00" in lines(result, peak=1e9)


def test_the_script_starts_from_any_folder(tmp_path: Path) -> None:
    """Its own file is called models.py, as the package it measures."""
    command = [sys.executable, str(ROOT / "benchmarks" / "models.py"), "--help"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    assert "--official" in found.stdout
