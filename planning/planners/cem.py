"""The paper's planner: the cross-entropy method over end-effector deltas (arXiv 2506.09985 section 3.3 and 4.2)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from planning.energy import latent_energy
from planning.planners.problem import Plan, PlannerConfig, Problem, World

GRIPPER_LIMIT = 0.75
GRIPPER_DEAD_ZONE = 0.25


@dataclass(frozen=True)
class Search:
    """actions (H, 7): the returned trajectory; energies (iterations, samples) of what was drawn; best (7,): first
    action of the least-energy sample met."""

    actions: Tensor
    energies: Tensor
    best: Tensor


class CEM(PlannerConfig):
    """Cross-entropy method. Draws are clipped to a box of +-box per axis (m): the paper calls it an L1 ball, the released
    code clips each axis; rotation is never searched there. The answer is the mean of the elites.

    Paper on robots: 800 samples, 10 iterations, 10 elites, horizon 1. Momentum as in the released world-model class.
    """

    name: Literal["cem"] = "cem"
    samples: int = 64
    iterations: int = 5
    elites: int = 10
    horizon: int = 1
    box: float = 0.075
    momentum_mean: float = 0.15
    momentum_std: float = 0.15
    momentum_gripper: float = 0.15
    gripper: bool = False
    """Search the gripper too (draws clipped to +-0.75; means under 0.25 become 0). Paper: yes. Reaching needs none."""

    def search(self, world: World, problem: Problem, noise: Tensor | None = None) -> Search:
        """Search trajectories by rolling the world model out over the horizon; `noise` as for `minimise`."""

        def energies_of(actions: Tensor) -> Tensor:
            return latent_energy(world.rollout(problem.tokens, problem.pose7, actions), problem.goal_tokens)

        return self.minimise(energies_of, problem.seed, noise)

    def minimise(self, energies_of: Callable[[Tensor], Tensor], seed: int, noise: Tensor | None = None) -> Search:
        """Run the iterations on any energy of actions (B, H, 7) -> (B,).

        noise (iterations, horizon, samples, 4) standard normal, drawn from the seed when None.
        """
        if noise is None:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(self.iterations, self.horizon, self.samples, 4, generator=generator)
        mean = torch.zeros(self.horizon, 4)
        std = torch.tensor([self.box] * 3 + [1.0]).expand(self.horizon, 4).clone()
        limit = torch.tensor([self.box] * 3 + [GRIPPER_LIMIT])
        momentum_mean = torch.tensor([self.momentum_mean] * 3 + [self.momentum_gripper])
        momentum_std = torch.tensor([self.momentum_std] * 3 + [self.momentum_gripper])
        history, best, least = [], torch.zeros(7), float("inf")
        for draws in noise:
            drawn = (mean[:, None] + std[:, None] * draws).clamp(-limit, limit)  # (H, samples, 4)
            actions = self._actions(drawn.transpose(0, 1))
            energies = energies_of(actions)
            kept = torch.topk(energies, self.elites, largest=False).indices
            if float(energies[kept[0]]) < least:
                least, best = float(energies[kept[0]]), actions[kept[0], 0]
            elite = drawn[:, kept]
            mean = elite.mean(dim=1) * (1 - momentum_mean) + mean * momentum_mean
            std = elite.std(dim=1) * (1 - momentum_std) + std * momentum_std
            history.append(energies)
        mean[:, 3] = torch.where(mean[:, 3].abs() < GRIPPER_DEAD_ZONE, 0.0, mean[:, 3])
        return Search(self._actions(mean), torch.stack(history), best)

    def _actions(self, drawn: Tensor) -> Tensor:
        """(..., 4) xyz and gripper as (..., 7) commands without rotation."""
        actions = torch.zeros(*drawn.shape[:-1], 7)
        actions[..., :3] = drawn[..., :3]
        if self.gripper:
            actions[..., 6] = drawn[..., 3]
        return actions

    def plan(self, world: World, problem: Problem) -> Plan:
        """The first action of the searched trajectory, with the predicted energies of it and of standing still."""
        started, before = time.perf_counter(), world.calls
        actions = self.search(world, problem).actions
        both = torch.stack([actions, torch.zeros_like(actions)])
        energy, hold = latent_energy(world.rollout(problem.tokens, problem.pose7, both), problem.goal_tokens).tolist()
        action = actions[0].double().numpy()
        return Plan(np.asarray(action), energy, hold, world.calls - before, time.perf_counter() - started)
