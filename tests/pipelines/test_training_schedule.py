"""Learning rate and EMA: the released schedules, value by value."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from pipelines.recipes import Curve
from pipelines.training.ema import make_target, update_
from pipelines.training.schedule import ema_momentum, learning_rate

SHARED = os.environ.get("TUBELET_SHARED")
needs_golden = pytest.mark.skipif(not SHARED, reason="TUBELET_SHARED is not set")


def golden() -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(Path(SHARED or "") / "golden" / "schedules.io.safetensors", "pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, json.loads(handle.metadata()["config"])  # noqa: SIM118


@needs_golden
def test_pretraining_schedule_is_the_released_one() -> None:
    values, config = golden()
    pretrain = config["pretrain"]
    warmup, steps = pretrain["warmup"] * pretrain["ipe"], pretrain["epochs"] * pretrain["ipe"]
    curve = Curve(start=pretrain["start_lr"], peak=pretrain["lr"], final=pretrain["final_lr"], warmup_steps=warmup, shape="cosine")
    for step, rate, momentum in zip(values["pretrain.step"], values["pretrain.lr"], values["pretrain.ema"], strict=True):
        assert learning_rate(curve, int(step), steps) == pytest.approx(float(rate), rel=1e-12)
        assert ema_momentum(tuple(pretrain["ema"]), int(step), steps) == pytest.approx(float(momentum), rel=1e-12)


@needs_golden
def test_cooldown_schedule_is_the_released_one_over_its_stretched_horizon_and_the_papers_over_its_steps() -> None:
    values, config = golden()
    cooldown = config["cooldown"]
    steps = cooldown["epochs"] * cooldown["ipe"]
    curve = Curve(start=cooldown["start_lr"], peak=cooldown["lr"], final=cooldown["final_lr"], shape="linear")
    for step, rate in zip(values["cooldown.step"], values["cooldown.lr"], strict=True):
        assert learning_rate(curve, int(step), int(steps * cooldown["ipe_scale"])) == pytest.approx(float(rate), rel=1e-12)
    assert learning_rate(curve, steps, steps) == pytest.approx(1e-6)


@needs_golden
def test_warm_up_and_linear_decay_of_post_training_are_the_released_ones() -> None:
    values, config = golden()
    droid = config["droid"]
    warmup, steps, anneal = droid["warmup"] * droid["ipe"], droid["epochs"] * droid["ipe"], droid["anneal"] * droid["ipe"]
    rising = Curve(start=droid["start_lr"], peak=droid["lr"], final=droid["lr"], warmup_steps=warmup)
    falling = Curve(start=droid["lr"], peak=droid["lr"], final=droid["final_lr"], shape="linear")
    for step, rate in zip(values["droid.step"].tolist(), values["droid.lr"].tolist(), strict=True):
        begin = steps - anneal
        ours = learning_rate(rising, step, steps) if step < begin else learning_rate(falling, step - begin, anneal)
        assert ours == pytest.approx(rate, rel=1e-9, abs=1e-12)


@given(st.integers(1, 500), st.integers(0, 100), st.sampled_from(["constant", "cosine", "linear"]))
def test_learning_rate_stays_between_its_ends(step: int, warmup: int, shape: str) -> None:
    curve = Curve(start=1e-4, peak=1e-3, final=1e-5, warmup_steps=warmup, shape=shape)  # type: ignore[arg-type]
    assert 1e-5 <= learning_rate(curve, step, 500) <= 1e-3


def test_target_follows_the_student_by_the_momentum_in_float32() -> None:
    student = torch.nn.Linear(4, 3).to(torch.bfloat16)
    target = make_target(student)
    before = [value.clone() for value in target.parameters()]
    with torch.no_grad():
        for value in student.parameters():
            value.add_(1.0)
    update_(list(target.parameters()), list(student.parameters()), 0.99925)
    for old, new, now in zip(before, student.parameters(), target.parameters(), strict=True):
        assert now.dtype == torch.float32 and not now.requires_grad
        torch.testing.assert_close(now, 0.99925 * old + 0.00075 * new.float())
