"""Reaching tasks on the simulated table: where the arm starts, where the goal image was taken, where the cube lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.errors import InputError
from pipelines.simulation.arm import CUBE_REGION, WORKSPACE, SimulatedArm

CUBE_CLEARANCE_M = 0.12
"""Horizontal distance between the cube's centre and the gripper, at the start and at the goal."""
START_Z_ABOVE_FLOOR_M = 0.01
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Setup:
    """One episode's ground truth: start and goal of the tool point (m, base frame), cube on the table (x, y, yaw)."""

    seed: int
    start: Triple
    goal: Triple
    cube_xy: tuple[float, float]
    cube_yaw: float

    @property
    def distance(self) -> float:
        """Start to goal, m."""
        return float(np.linalg.norm(np.subtract(self.start, self.goal)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def make_setup(seed: int, *, min_distance: float, solved_distance: float) -> Setup:
    """One fresh task, a function of the seed alone: start and goal uniform in the workspace, at least `min_distance` m
    apart (and never within `solved_distance`: a start that is already solved teaches nothing), the cube clear of both."""
    random = np.random.default_rng(seed)
    low, high = np.transpose(WORKSPACE)
    low = low + np.array([0.0, 0.0, START_Z_ABOVE_FLOOR_M])
    cube_low, cube_high = np.transpose(CUBE_REGION)
    for _ in range(10_000):
        start, goal = random.uniform(low, high), random.uniform(low, high)
        cube, yaw = random.uniform(cube_low, cube_high), random.uniform(0.0, np.pi / 2)
        clear = min(np.linalg.norm(cube - start[:2]), np.linalg.norm(cube - goal[:2]))
        if np.linalg.norm(start - goal) >= max(min_distance, solved_distance) and clear >= CUBE_CLEARANCE_M:
            return Setup(seed, _triple(start), _triple(goal), (float(cube[0]), float(cube[1])), float(yaw))
    raise InputError(
        "no start and goal so far apart fit on the table", expected=f"under {np.linalg.norm(high - low):.2f} m",
        found=f"{min_distance} m", remedy="ask for a smaller distance",
    )  # fmt: skip


def goal_image(arm: SimulatedArm, setup: Setup) -> np.ndarray:
    """What the camera sees with the arm at the goal and the cube where it will lie: (H, W, 3) uint8. Moves the arm."""
    arm.reset(setup.goal, cube_xy=setup.cube_xy, cube_yaw=setup.cube_yaw)
    return arm.render()


def place_at_start(arm: SimulatedArm, setup: Setup) -> None:
    """Put the arm and the cube where the episode begins."""
    arm.reset(setup.start, cube_xy=setup.cube_xy, cube_yaw=setup.cube_yaw)


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
