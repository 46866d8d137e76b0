"""The simulated arm as a robot. Its clock is simulation time, so that a slow computer makes no observation old."""

from __future__ import annotations

import numpy as np

from pipelines.simulation.arm import COMMAND_S, WORKSPACE, SimulatedArm
from planning.robots.robot import CommandResult, Observation, RobotError, RobotInfo
from planning.safety import SafetyLimits
from planning.setups import Setup, goal_image, place_at_start

PICTURE_SIDE = 192
"""Side of the pictures made for people, px; the robot's own camera has the size the world model reads."""


def simulated_limits() -> SafetyLimits:
    """Gate limits of the simulated cell: its workspace, and enough speed for one box diagonal a command."""
    return SafetyLimits(workspace=WORKSPACE)


class SimulatedRobot:
    """A robot in MuJoCo, placed by a `Setup`. `distance_to_goal` is ground truth, for evaluation only: the controller,
    the planner and the energy never call it."""

    def __init__(self, setup: Setup, *, size: tuple[int, int], arm: SimulatedArm | None = None) -> None:
        self.setup, self._size = setup, size  # (height, width) px
        self._owned = arm is None
        self._arm = arm
        self._sequence = 0
        self._stopped: str | None = None

    def info(self) -> RobotInfo:
        return RobotInfo(name="simulated", driver="simulated", real=False, step_s=COMMAND_S)

    def connect(self) -> None:
        """Build the scene and put the arm at the start."""
        if self._arm is None:
            self._arm = SimulatedArm(seed=0, height=self._size[0], width=self._size[1])
        place_at_start(self._arm, self.setup)

    @property
    def arm(self) -> SimulatedArm:
        """The simulation underneath; raises RobotError before `connect`."""
        if self._arm is None:
            raise RobotError("the simulated robot is not connected", remedy="call connect() first")
        return self._arm

    def goal_image(self) -> np.ndarray:
        """The goal as a picture (H, W, 3) uint8; leaves the arm at the start."""
        image = goal_image(self.arm, self.setup)
        place_at_start(self.arm, self.setup)
        return image

    def picture(self, side: int = PICTURE_SIDE) -> np.ndarray:
        """The same view in a size for people, (side, side, 3) uint8; the arm does not move."""
        arm = self.arm
        size = arm.height, arm.width
        arm.height = arm.width = side
        try:
            return arm.render()
        finally:
            arm.height, arm.width = size

    def goal_picture(self, side: int = PICTURE_SIDE) -> np.ndarray:
        """The goal in a size for people; leaves the arm at the start."""
        goal_image(self.arm, self.setup)
        image = self.picture(side)
        place_at_start(self.arm, self.setup)
        return image

    def distance_to_goal(self) -> float:
        """Ground truth, m: tool point to the place where the goal image was taken."""
        return float(np.linalg.norm(self.arm.pose7()[:3] - np.asarray(self.setup.goal)))

    def clock(self) -> float:
        return self.arm.time_s

    def observe(self) -> Observation:
        self._sequence += 1
        return Observation(self.arm.render(), self.arm.pose7(), self.arm.time_s, self._sequence)

    def apply(self, delta7: np.ndarray, deadline_s: float) -> CommandResult:
        if self._stopped is not None or self.clock() > deadline_s:
            return CommandResult(np.zeros(7), self.arm.pose7(), self.clock(), "late" if self._stopped is None else "stopped")
        pose = self.arm.command(delta7)
        return CommandResult(np.asarray(delta7, dtype=np.float64), pose, self.clock())

    def hold(self) -> None:
        self.arm.command(np.zeros(7))

    def stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason

    def close(self) -> None:
        if self._arm is not None and self._owned:
            self._arm.close()
            self._arm = None
