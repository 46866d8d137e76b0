"""What a planner is asked and what it answers. A planner sees representations of pixels and pose7, nothing else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from pipelines.recipes import Part


class World(Protocol):
    """The part of a world model that planners use. `calls` counts predictor evaluations, one per sample and step."""

    calls: int

    def predict(self, tokens: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
        """One step: tokens (B or 1, N, D), actions (B, 7), poses (B or 1, 7) -> the next frame's tokens (B, N, D)."""
        ...

    def rollout(self, tokens: Tensor, pose7: np.ndarray, actions: Tensor) -> Tensor:
        """H steps from tokens (N, D) and pose7 (7,) under actions (B, H, 7) -> tokens after the last step (B, N, D)."""
        ...


@dataclass(frozen=True)
class Visit:
    """A moment of this episode: where the arm's own sensor said it was, what was seen there and its measured energy."""

    pose7: np.ndarray
    tokens: Tensor
    energy: float


@dataclass(frozen=True)
class Problem:
    """One decision. tokens, goal_tokens (N, D) layer-normed; pose7 (7,) float64 (m, rad, 0..1), base frame.

    `visits` are this episode's moments, oldest first, the present one last. `steps_left` counts this command.
    `target`: where the last plan was heading (x, y, z), if it said so. `seed` makes random draws of this decision repeatable.
    """

    tokens: Tensor
    goal_tokens: Tensor
    pose7: np.ndarray
    visits: tuple[Visit, ...]
    steps_left: int
    seed: int = 0
    target: np.ndarray | None = None

    @property
    def measured_energy(self) -> float:
        """Energy of the present frame, measured, not predicted."""
        return self.visits[-1].energy


@dataclass(frozen=True)
class Plan:
    """action7 (7,) float64: the end-effector delta to execute now. `rule` says what chose it: plan, hold, return, travel.
    `target` (x, y, z) m, base frame: a place farther away that the command is a step towards; the next problem has it.

    `energy` is predicted after the plan, `hold_energy` after standing still; NaN where the planner predicts neither.
    """

    action7: np.ndarray
    energy: float
    hold_energy: float
    calls: int
    seconds: float
    rule: str = "plan"
    target: np.ndarray | None = None


class Planner(Protocol):
    """Anything that turns a problem into a command. Planners are frozen configurations: no state between decisions."""

    def plan(self, world: World, problem: Problem) -> Plan: ...


class PlannerConfig(Part, ABC):
    """Base of the planners: frozen, unknown keys are errors, and the configuration is what a bundle stores."""

    @abstractmethod
    def plan(self, world: World, problem: Problem) -> Plan:
        """Decide on the command to execute now."""


def still() -> np.ndarray:
    """The command that changes nothing."""
    return np.zeros(7)
