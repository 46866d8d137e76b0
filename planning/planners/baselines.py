"""Planners that do not plan: the floor every number has to be read against."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from planning.planners.one_step import as_action
from planning.planners.problem import Plan, PlannerConfig, Problem, World, still


class NoOp(PlannerConfig):
    """Never moves."""

    name: Literal["no_op"] = "no_op"

    def plan(self, world: World, problem: Problem) -> Plan:
        return Plan(still(), math.nan, math.nan, 0, 0.0, "hold")


class RandomAction(PlannerConfig):
    """A uniform draw from the box (m), from the decision's seed."""

    name: Literal["random"] = "random"
    box: float = 0.075

    def plan(self, world: World, problem: Problem) -> Plan:
        move = np.random.default_rng(problem.seed).uniform(-self.box, self.box, 3)
        return Plan(as_action(move), math.nan, math.nan, 0, 0.0)
