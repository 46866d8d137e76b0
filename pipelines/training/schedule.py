"""Learning rate and EMA momentum as pure functions of the step, so that a resumed run has nothing to restore."""

from __future__ import annotations

import math

from pipelines.recipes import Curve


def learning_rate(curve: Curve, step: int, steps: int) -> float:
    """The learning rate of optimizer step number `step` (1 to `steps`).

    Linear from `start` to `peak` over the warm-up, then constant, or cosine or linear from `peak` to `final` at `steps`.
    Upstream's released cooldown stretches the decay over 1.25 times the steps it runs and so ends at 1.06e-4 instead of
    the paper's 1e-6: that is this function with a larger `steps`.
    """
    if step < curve.warmup_steps:
        return curve.start + (curve.peak - curve.start) * step / curve.warmup_steps
    share = min(1.0, (step - curve.warmup_steps) / max(1, steps - curve.warmup_steps))
    if curve.shape == "cosine":
        return curve.final + (curve.peak - curve.final) * 0.5 * (1.0 + math.cos(math.pi * share))
    if curve.shape == "linear":
        return curve.peak + (curve.final - curve.peak) * share
    return curve.peak


def ema_momentum(ends: tuple[float, float], step: int, steps: int) -> float:
    """Momentum applied after optimizer step number `step` (1 to `steps`): linear from ends[0], reaching ends[1] after the last."""
    return ends[0] + (ends[1] - ends[0]) * (step - 1) / steps
