"""When to stop: rules around any planner. They use predicted and measured energy and the arm's own pose sensor only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from planning.planners.one_step import as_action
from planning.planners.problem import Plan, PlannerConfig, Problem, Visit, World, still


class Stopping(PlannerConfig):
    """A planner that knows when it has arrived.

    hold: stand still in this step when the plan's predicted energy is not below that of standing still.
    back: keep enough of the step budget to end at the pose whose *measured* energy was least, and go back there; the
    steps this takes are charged against the budget. Where an unmeasured last step would end is never trusted.
    Without a rule CEM's averaged mean slides off a goal it had reached: 48 % end on it, 80 % with `back`
    (docs/findings.md). The paper names no rule.
    """

    name: Literal["stopping"] = "stopping"
    inner: Any
    hold: bool = False
    back: bool = True
    box: float = 0.075
    arrived: float = 0.003
    """A pose is reached when it is this near, m."""

    def plan(self, world: World, problem: Problem) -> Plan:
        """The inner planner's answer, or the rule's."""
        home = min(problem.visits, key=lambda visit: visit.energy)
        if self.back and problem.steps_left <= max(1, self._steps_between(problem.pose7[:3], home.pose7[:3])):
            return self._go_back(problem, home)
        plan = self.inner.plan(world, problem)
        if self.hold and plan.energy >= plan.hold_energy:  # never true of plans that predict neither (NaN)
            plan = dataclasses.replace(plan, action7=still(), rule="hold")
        reached = problem.pose7[:3] + plan.action7[:3]
        if self.back and self._steps_between(reached, home.pose7[:3]) > problem.steps_left - 1:
            back = self._go_back(problem, home)
            return dataclasses.replace(back, calls=plan.calls, seconds=plan.seconds)
        return plan

    def _steps_between(self, here: np.ndarray, there: np.ndarray) -> int:
        distance = float(np.abs(there - here).max())
        return 0 if distance <= self.arrived else math.ceil(distance / self.box - 1e-6)

    def _go_back(self, problem: Problem, home: Visit) -> Plan:
        way = home.pose7[:3] - problem.pose7[:3]
        if self._steps_between(problem.pose7[:3], home.pose7[:3]) == 0:
            return Plan(still(), home.energy, problem.measured_energy, 0, 0.0, "hold")
        return Plan(as_action(np.clip(way, -self.box, self.box)), home.energy, problem.measured_energy, 0, 0.0, "return")
