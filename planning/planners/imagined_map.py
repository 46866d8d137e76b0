"""A map of the whole workspace, imagined by the world model, so that a goal out of sight of the energy can be found.

One step from a far start, every move predicts nearly the same energy: the arm of the prediction and the arm of the goal
do not overlap, and any local search is lost. But the world model can be walked: predict the neighbours of the present
pose, then theirs, over a lattice, each pose once. Where the imagined frame is nearest to the goal frame, there the goal
is, to about one spacing, from anywhere on the table (docs/findings.md). One call per pose of the lattice.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from planning.energy import latent_energy
from planning.planners.gauss_newton import GaussNewton
from planning.planners.one_step import as_action
from planning.planners.problem import Plan, PlannerConfig, Problem, World

Region = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class ImaginedMap:
    """positions (K, 3) m, base frame; tokens (K, N, D): the frame imagined with the arm there."""

    positions: np.ndarray
    tokens: Tensor

    def energies(self, goal_tokens: Tensor) -> np.ndarray:
        """L1 energy (K,) of every imagined frame."""
        return latent_energy(self.tokens, goal_tokens).double().numpy()


def imagine(world: World, tokens: Tensor, pose7: np.ndarray, *, spacing: float, region: Region) -> ImaginedMap:
    """Walk the world model from tokens (N, D) at pose7 over the lattice of `spacing` m through the present position,
    inside `region` (a third of a spacing over its edge counts as inside).

    Each node is predicted from its neighbour one step nearer to the start, diagonals included, so that a node k steps
    away costs k predictions on its path and one call in all.
    """
    here, (low, high) = pose7[:3], np.transpose(region)
    first, last = np.ceil((low - here) / spacing - 1 / 3), np.floor((high - here) / spacing + 1 / 3)
    ranges = [range(min(0, int(a)), max(0, int(b)) + 1) for a, b in zip(first, last, strict=True)]
    nodes = np.array(sorted(itertools.product(*ranges), key=lambda node: (max(map(abs, node)), node)))
    rings = np.abs(nodes).max(axis=1)
    found = tokens[None]  # nodes are sorted by ring, so row i holds node i once its ring has been predicted
    index = {tuple(node): row for row, node in enumerate(nodes.tolist())}
    for ring in range(1, int(rings[-1]) + 1):
        children = nodes[rings == ring]
        parents = children - np.where(np.abs(children) == ring, np.sign(children), 0)
        actions = torch.zeros(len(children), 7)
        actions[:, :3] = torch.as_tensor((children - parents) * spacing, dtype=torch.float32)
        poses = np.tile(pose7, (len(children), 1))
        poses[:, :3] += parents * spacing
        rows = [index[tuple(parent)] for parent in parents.tolist()]
        found = torch.cat([found, world.predict(found[rows], actions, torch.as_tensor(poses, dtype=torch.float32))])
    return ImaginedMap(here + nodes * spacing, found)


class MapNewton(PlannerConfig):
    """Find the goal on an imagined map, travel there in straight commands, then Gauss-Newton steps.

    The map is drawn at the first command, and again when the episode is stalled: `patience` commands without lower
    measured energy, and a place on the new map promises less than what is seen here. Near the goal the measured energy
    is below anything the blurred map promises, so an arrived arm stays.
    """

    name: Literal["map_newton"] = "map_newton"
    newton: GaussNewton = GaussNewton(lattice=4)
    region: Region
    spacing: float = 0.075
    patience: int = 2

    def plan(self, world: World, problem: Problem) -> Plan:
        """Travel while the target is out of one command's reach, else the Gauss-Newton plan."""
        started, before = time.perf_counter(), world.calls
        here, target = problem.pose7[:3], problem.target
        if target is None and (len(problem.visits) == 1 or self._stalled(problem)):
            target = self._search(world, problem)
        box = self.newton.box
        if target is not None and np.abs(target - here).max() > box + 1e-6:
            way = target - here
            move = way * (box / np.abs(way).max())
            return Plan(as_action(move), float("nan"), float("nan"), world.calls - before, time.perf_counter() - started, "travel", target)
        starts = None if target is None else (target - here)[None]
        plan = self.newton.plan_from(world, problem, starts)
        return Plan(plan.action7, plan.energy, plan.hold_energy, world.calls - before, time.perf_counter() - started, plan.rule)

    def _search(self, world: World, problem: Problem) -> np.ndarray | None:
        """The most promising place of a fresh map, or None when staying promises as much."""
        found = imagine(world, problem.tokens, problem.pose7, spacing=self.spacing, region=self.region)
        energies = found.energies(problem.goal_tokens)
        best = int(np.argmin(energies))
        return found.positions[best] if energies[best] < problem.measured_energy else None

    def _stalled(self, problem: Problem) -> bool:
        energies = [visit.energy for visit in problem.visits]
        if len(energies) <= self.patience:
            return False
        return min(energies[-self.patience :]) >= min(energies[: -self.patience])
