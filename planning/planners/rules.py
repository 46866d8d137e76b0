"""When to stop: rules around any planner. They use predicted and measured energy and the arm's own pose sensor only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from planning.planners.one_step import as_action
from planning.planners.problem import Plan, PlannerConfig, Problem, World, still


class Stopping(PlannerConfig):
    """A planner that knows when it has arrived.

    hold: stand still in this step when the plan's predicted energy is not below that of standing still.
    back: keep enough of the step budget to end at the pose whose *measured* energy was least, and go back there; the
    steps this takes are charged against the budget.
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
        if self.back:
            home = min(problem.visits, key=lambda visit: visit.energy)
            way = home.pose7[:3] - problem.pose7[:3]
            distance = float(np.abs(way).max())
            needed = 0 if distance <= self.arrived else math.ceil(distance / self.box - 1e-6)
            if needed and problem.steps_left <= needed:
                return Plan(as_action(np.clip(way, -self.box, self.box)), home.energy, problem.measured_energy, 0, 0.0, "return")
            if not needed and problem.steps_left == 1:
                # Where the last step would end is never measured; here it was.
                return Plan(still(), problem.measured_energy, problem.measured_energy, 0, 0.0, "hold")
        plan = self.inner.plan(world, problem)
        if self.hold and not plan.energy < plan.hold_energy:
            return dataclasses.replace(plan, action7=still(), rule="hold")
        return plan
