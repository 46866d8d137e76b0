"""The ceiling of an evaluation: the true dynamics and the true distance in place of the world model and its energy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from planning.robots.robot import Observation
from planning.robots.simulated import SimulatedRobot


class OracleWorld:
    """Its "image" is the tool point's true position (1, 3) m, so its "tokens" are too, and a command simply adds."""

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, image: np.ndarray) -> Tensor:
        return torch.as_tensor(image, dtype=torch.float32).reshape(1, 3)

    def predict(self, tokens: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
        self.calls += len(actions)
        return tokens + actions[:, None, :3]

    def rollout(self, tokens: Tensor, pose7: np.ndarray, actions: Tensor) -> Tensor:
        self.calls += actions.shape[0] * actions.shape[1]
        return tokens[None] + actions[..., :3].sum(dim=1, keepdim=True)


class OracleRobot(SimulatedRobot):
    """The simulated robot whose camera shows coordinates."""

    def observe(self) -> Observation:
        self._sequence += 1
        pose = self.arm.pose7()
        return Observation(pose[None, :3], pose, self.arm.time_s, self._sequence)

    def goal_image(self) -> np.ndarray:
        return np.asarray([self.setup.goal])

