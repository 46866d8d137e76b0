"""Damped Gauss-Newton on the three translation numbers of one command: a tenth of the paper's predictor calls."""

from __future__ import annotations

import itertools
import time
from typing import Literal

import numpy as np
import torch

from planning.planners.cem import CEM
from planning.planners.one_step import OneStep, as_action
from planning.planners.problem import Plan, PlannerConfig, Problem, World


class GaussNewton(PlannerConfig):
    """Levenberg-Marquardt in latent space: residual = predicted tokens - goal tokens, unknowns = (dx, dy, dz) in a box.

    Starts: a lattice over the box of `lattice` points per axis (2: its corners), standing still and the last command, in
    one batch; one start alone fails (local minima). Derivatives are forward differences of `difference` m, three calls
    in one batch; every damping of `dampings` is tried in one batch and the best kept. Along the camera's line of sight
    the energy is a long curved valley in which steps from the corners creep: a lattice of 4 finds its floor. Far from
    the goal one look misleads, so with `far_search` the start comes from a small CEM while the measured energy is above
    `far_share` of the episode's first one. Reasons and measurements: docs/findings.md.
    """

    name: Literal["gauss_newton"] = "gauss_newton"
    box: float = 0.075
    iterations: int = 3
    lattice: int = 2
    dampings: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0)
    difference: float = 0.015
    corrected: bool = True
    far_search: CEM | None = None
    far_share: float = 0.5

    def plan(self, world: World, problem: Problem) -> Plan:
        """The translation of least squared latent distance found; its energy and hold_energy are L1."""
        return self.plan_from(world, problem, None)

    def plan_from(self, world: World, problem: Problem, more_starts: np.ndarray | None) -> Plan:
        """As `plan`, with further starts (S, 3) m beside its own."""
        started = time.perf_counter()
        step = OneStep(world, problem, corrected=self.corrected)
        far = self.far_search is not None and problem.measured_energy > self.far_share * problem.visits[0].energy
        if far and self.far_search is not None:
            starts, iterations = _far_starts(self.far_search, step, problem.seed), 1
        else:
            starts, iterations = self._starts(problem), self.iterations
        if more_starts is not None:
            starts = np.concatenate([starts, np.clip(more_starts, -self.box, self.box)])
        move, tokens, cost = self._best(step, starts)
        hold_cost = float(step.cost(step.hold)[0])
        if hold_cost <= cost:
            move, tokens, cost = np.zeros(3), step.hold[0], hold_cost
        for _ in range(iterations):
            candidates = self._steps(step, move, tokens, problem)
            better, better_tokens, better_cost = self._best(step, candidates)
            if better_cost >= cost:
                break
            move, tokens, cost = better, better_tokens, better_cost
        energy, hold = step.energy(torch.stack([tokens, step.hold[0]]))
        rule = "plan" if move.any() else "hold"
        return Plan(as_action(move), float(energy), float(hold), step.calls, time.perf_counter() - started, rule)

    def _starts(self, problem: Problem) -> np.ndarray:
        points = np.array(list(itertools.product(np.linspace(-self.box, self.box, self.lattice), repeat=3)))
        if len(problem.visits) < 2:
            return points
        last = problem.visits[-1].pose7[:3] - problem.visits[-2].pose7[:3]
        return np.concatenate([points, np.clip(last, -self.box, self.box)[None]])

    def _best(self, step: OneStep, moves: np.ndarray) -> tuple[np.ndarray, torch.Tensor, float]:
        tokens = step.predict(moves)
        costs = step.cost(tokens)
        index = int(np.argmin(costs))
        return moves[index], tokens[index], float(costs[index])

    def _steps(self, step: OneStep, move: np.ndarray, tokens: torch.Tensor, problem: Problem) -> np.ndarray:
        """One damped Gauss-Newton step from `move` per damping, (dampings, 3), inside the box."""
        signs = np.where(move > 0, -1.0, 1.0)  # differences look into the box
        offsets = np.diag(signs * self.difference)
        columns = (step.predict(move + offsets) - tokens).flatten(1).double() / torch.as_tensor(signs * self.difference)[:, None]
        residual = (tokens - problem.goal_tokens).flatten().double()
        normal, slope = (columns @ columns.T).numpy(), (columns @ residual).numpy()
        scale = np.maximum(np.diag(normal), 1e-12)
        steps = [np.linalg.solve(normal + damping * np.diag(scale), -slope) for damping in self.dampings]
        return np.clip(move + np.stack(steps), -self.box, self.box)


def _far_starts(search: CEM, step: OneStep, seed: int) -> np.ndarray:
    """The mean and the least-energy draw of a one-step CEM on the same (corrected) predictions, (2, 3)."""

    def energies_of(actions: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(step.energy(step.predict(actions[:, 0, :3].numpy())))

    found = search.minimise(energies_of, seed)
    return torch.stack([found.actions[0, :3], found.best[:3]]).double().numpy()
