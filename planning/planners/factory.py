"""Planners by name, for recipes, and from the configuration a bundle stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from pipelines.errors import InputError
from pipelines.simulation.arm import WORKSPACE
from planning.planners.baselines import NoOp, RandomAction
from planning.planners.cem import CEM
from planning.planners.gauss_newton import GaussNewton
from planning.planners.imagined_map import MapNewton, Region
from planning.planners.problem import PlannerConfig
from planning.planners.rules import Stopping

KINDS: dict[str, type[PlannerConfig]] = {
    "cem": CEM, "gauss_newton": GaussNewton, "map_newton": MapNewton, "stopping": Stopping, "no_op": NoOp, "random": RandomAction,
}  # fmt: skip


def named_planners(box: float, region: Region = WORKSPACE) -> dict[str, PlannerConfig]:
    """The planners a recipe may name; `box` is the largest move per axis and command, `region` the workspace, m."""
    far = CEM(samples=32, iterations=2, box=box)
    return {
        "map_newton": MapNewton(newton=GaussNewton(box=box, lattice=4), region=region, spacing=box),
        "gauss_newton": GaussNewton(box=box),
        "gauss_newton_far": GaussNewton(box=box, far_search=far),
        "cem": CEM(box=box),
        "cem_stopping": Stopping(inner=CEM(box=box), box=box),
        "no_op": NoOp(),
        "random": RandomAction(box=box),
    }


PLANNERS = tuple(named_planners(0.075))


def make_planner(config: str | Mapping[str, Any], box: float = 0.075) -> PlannerConfig:
    """A planner by the name a recipe uses, or from stored values with a `name` key. Raises InputError."""
    if isinstance(config, str):
        named = named_planners(box)
        if config not in named:
            raise InputError(f"no planner {config}", expected=", ".join(named), found=config, remedy="name one of these")
        return named[config]
    values = dict(config)
    kind = KINDS.get(str(values.get("name")))
    try:
        if kind is None:
            raise ValueError(f"name {values.get('name')!r} is none of {', '.join(KINDS)}")
        for part in ("inner", "newton"):
            if isinstance(values.get(part), Mapping):
                values[part] = make_planner(values[part])
        return kind.model_validate(values)
    except (pydantic.ValidationError, ValueError) as error:
        raise InputError("this planner configuration cannot be used", found=str(error), remedy="mend the keys named above") from error
