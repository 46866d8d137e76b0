"""Planners behind one interface: `plan(world, problem) -> Plan`."""

from __future__ import annotations

from planning.planners.baselines import NoOp, RandomAction
from planning.planners.cem import CEM
from planning.planners.factory import PLANNERS, make_planner
from planning.planners.gauss_newton import GaussNewton
from planning.planners.imagined_map import MapNewton
from planning.planners.problem import Plan, Planner, Problem, Visit, World
from planning.planners.rules import Stopping

__all__ = [
    "CEM", "PLANNERS", "GaussNewton", "MapNewton", "NoOp", "Plan", "Planner", "Problem", "RandomAction", "Stopping", "Visit", "World",
    "make_planner",
]  # fmt: skip
