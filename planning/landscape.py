"""The energy landscape: what the planner sees when the next frame of a true transition is its goal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.identity import stable_seed
from pipelines.simulation.arm import SimulatedArm
from planning.energy import latent_energy
from planning.setups import make_setup, place_at_start
from planning.world_model import WorldModel

GRID = 21
"""Candidate moves per axis."""


@dataclass(frozen=True)
class Landscape:
    """energy[i][j] of the move (offsets[j], offsets[i], true dz); moves in m, base frame; hold is the energy of no move."""

    offsets: list[float]
    energy: list[list[float]]
    true_move: list[float]
    best_move: list[float]
    hold: float

    @property
    def error_m(self) -> float:
        """Distance in x and y between the least-energy move of the grid and the true one."""
        return float(np.linalg.norm(np.subtract(self.best_move[:2], self.true_move[:2])))

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "error_m": self.error_m}


def measure(world_model: WorldModel, seed: int, *, box: float, arm: SimulatedArm) -> Landscape:
    """Energy over dx, dy for one step: a true move in the table's plane, its next frame as the goal. Moves the arm."""
    random = np.random.default_rng(stable_seed("landscape", seed))
    setup = make_setup(stable_seed("landscape start", seed), min_distance=0.1, solved_distance=0.04)
    place_at_start(arm, setup)
    # Towards the goal of the set-up, so that the move stays on the table; 0.5 to 0.9 of the box.
    direction = np.subtract(setup.goal, setup.start) * [1, 1, 0]
    wanted = direction / max(np.abs(direction).max(), 1e-6) * box * random.uniform(0.5, 0.9)
    pose = arm.pose7()
    tokens = world_model.encode(arm.render())
    moved = arm.command(np.concatenate([wanted, np.zeros(4)]))
    goal_tokens = world_model.encode(arm.render())
    true_move = moved[:3] - pose[:3]
    offsets = np.linspace(-box, box, GRID)
    actions = torch.zeros(GRID * GRID + 1, 7)
    actions[:-1, 0] = torch.as_tensor(np.tile(offsets, GRID), dtype=torch.float32)
    actions[:-1, 1] = torch.as_tensor(np.repeat(offsets, GRID), dtype=torch.float32)
    actions[:-1, 2] = float(true_move[2])
    poses = torch.as_tensor(pose, dtype=torch.float32)[None]
    energy = latent_energy(world_model.predict(tokens[None], actions, poses), goal_tokens).double().numpy()
    best = actions[int(np.argmin(energy[:-1])), :3].double().tolist()
    return Landscape(offsets.tolist(), energy[:-1].reshape(GRID, GRID).tolist(), true_move.tolist(), best, float(energy[-1]))


def draw(landscape: Landscape, path: Path) -> None:
    """Write the figure (PNG, deterministic)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    centimetres = 100 * np.asarray(landscape.offsets)
    filled = axes.contourf(centimetres, centimetres, np.asarray(landscape.energy), levels=24, cmap="viridis")
    figure.colorbar(filled, ax=axes, label="energy (mean |predicted - goal|)")
    axes.plot(*(100 * value for value in landscape.true_move[:2]), "r*", markersize=13, label="true action")
    axes.plot(*(100 * value for value in landscape.best_move[:2]), "wx", markersize=9, mew=2, label="least energy")
    axes.set(xlabel="dx, cm", ylabel="dy, cm", title=f"one true step, least energy {100 * landscape.error_m:.1f} cm away")
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, dpi=80, metadata={"Software": None})

