"""Motions of the simulated arm: random smooth ones, and any list of commands filmed at a frame rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from pipelines.simulation.arm import WORKSPACE, SimulatedArm
from pipelines.simulation.scene import TIMESTEP_S

MAX_DELTA_M = 0.075


def smooth_moves(
    random: np.random.Generator, start: np.ndarray, steps: int, max_delta: float = MAX_DELTA_M
) -> np.ndarray:
    """Random smooth motion `(steps, 3)` m from `start` (3,): each move within +-`max_delta` per axis, inside WORKSPACE.

    Each move keeps half of the last one; a coordinate that would leave the workspace turns round.
    """
    low, high = np.transpose(WORKSPACE)
    position, moves = np.asarray(start, dtype=np.float64), np.empty((steps, 3))
    velocity = random.uniform(-max_delta, max_delta, 3)
    for step in range(steps):
        velocity = 0.5 * velocity + random.normal(0.0, 0.62 * max_delta, 3)
        velocity = np.clip(velocity, -max_delta, max_delta)
        outside = (position + velocity < low) | (position + velocity > high)
        velocity = np.where(outside, -velocity, velocity)
        moves[step] = np.clip(position + velocity, low, high) - position
        position = position + moves[step]
    return moves


def filmed(
    arm: SimulatedArm, commands: Iterable[tuple[np.ndarray, float]], frame_rate: float, seconds: float
) -> Iterator[np.ndarray]:
    """Frames `(H, W, 3)` uint8 at `frame_rate` for `seconds`, while the arm carries out (delta7, duration in s) in turn.

    Each command moves during the whole of its duration; when they are over, the arm rests.
    """
    due = [round(index / frame_rate / TIMESTEP_S) for index in range(round(seconds * frame_rate))]
    queue, step, left, whole = iter(commands), 0, 0, 1
    for when in due:
        while step < when:
            if left == 0:
                delta, duration = next(queue, (np.zeros(7), seconds))
                arm.begin(delta, moving_share=1.0)
                left = whole = max(1, round(duration / TIMESTEP_S))
            count = min(left, when - step)
            arm.advance(count, whole)
            left, step = left - count, step + count
        yield arm.render()
