"""Predicted frames as a function of the three translation numbers of one command."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from planning.energy import latent_energy, squared_energy
from planning.planners.problem import Problem, World


class OneStep:
    """Predictions for candidate translations, in batches, from the state in `problem`.

    corrected: z0 + P(u) - P(0) in place of P(u). A predictor blurs what does not move, so P(0) differs from z0 and the
    least energy lies beside the goal; the difference makes standing still on the goal an exact zero of the energy
    (docs/findings.md). Costs the one call of P(0), which `hold` reports too.
    """

    def __init__(self, world: World, problem: Problem, *, corrected: bool) -> None:
        self._world, self._problem = world, problem
        self._pose = torch.as_tensor(problem.pose7, dtype=torch.float32)[None]
        self._calls_before = world.calls
        self._raw_hold = self._raw(np.zeros((1, 3)))
        self._offset = problem.tokens - self._raw_hold if corrected else None
        self.hold = problem.tokens[None] if corrected else self._raw_hold

    @property
    def calls(self) -> int:
        return self._world.calls - self._calls_before

    def _raw(self, moves: np.ndarray) -> Tensor:
        actions = torch.zeros(len(moves), 7)
        actions[:, :3] = torch.as_tensor(moves, dtype=torch.float32)
        return self._world.predict(self._problem.tokens[None], actions, self._pose)

    def predict(self, moves: np.ndarray) -> Tensor:
        """moves (B, 3) m -> tokens (B, N, D)."""
        tokens = self._raw(moves)
        return tokens if self._offset is None else tokens + self._offset

    def energy(self, tokens: Tensor) -> np.ndarray:
        """L1 energy (B,) of predicted tokens (B, N, D)."""
        return latent_energy(tokens, self._problem.goal_tokens).double().numpy()

    def cost(self, tokens: Tensor) -> np.ndarray:
        """Squared energy (B,) of predicted tokens (B, N, D)."""
        return squared_energy(tokens, self._problem.goal_tokens).double().numpy()


def as_action(move: np.ndarray) -> np.ndarray:
    """A translation (3,) as a command (7,) that turns nothing and leaves the gripper."""
    return np.concatenate([move, np.zeros(4)])
