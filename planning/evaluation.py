"""Closed-loop evaluation: rows of planners and world models over the same fresh episodes, in worker processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.errors import TrainingError
from pipelines.identity import stable_seed
from pipelines.simulation.arm import SimulatedArm
from pipelines.video.workers import map_killable
from planning import landscape
from planning.controller import SeeingWorld, run_episode
from planning.oracle import OracleRobot, OracleWorld
from planning.planners import make_planner
from planning.robots.simulated import SimulatedRobot, simulated_limits
from planning.safety import SafetyGate
from planning.setups import Setup, make_setup
from planning.statistics import wilson
from planning.world_model import WorldModel

JOB_LIMIT_S = 300.0
WorldKind = Literal["trained", "control", "oracle"]


@dataclass(frozen=True)
class Row:
    """One row of the table: a planner (its stored configuration) on a world model, over the first `episodes` set-ups."""

    name: str
    planner: dict[str, Any]
    world: WorldKind
    episodes: int


@dataclass(frozen=True)
class Task:
    """One episode of one row, as a worker gets it. Distances in m."""

    row: Row
    folder: str
    setup_seed: int
    min_distance: float
    steps: int
    success_distance: float
    film: bool = False


@dataclass(frozen=True)
class LandscapeJob:
    """One energy landscape, as a worker gets it; box in m."""

    folder: str
    seed: int
    box: float


@dataclass(frozen=True)
class Outcome:
    """One episode. distances (steps + 1,) m are ground truth, energies measured; seconds are seeing and planning."""

    row: str
    setup: Setup
    distances: list[float]
    energies: list[float]
    calls: int
    seconds: float
    commands: int
    refused: int
    clipped: int
    stopped: str | None
    success: bool
    reached: bool
    pictures: tuple[np.ndarray, ...] = ()
    goal_picture: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without pictures."""
        values = asdict(self)
        del values["pictures"], values["goal_picture"]
        return values


@lru_cache(maxsize=4)
def _world(folder: str, kind: WorldKind) -> SeeingWorld:
    if kind == "oracle":
        return OracleWorld()
    return WorldModel.load(Path(folder), Path(folder) / "control" if kind == "control" else None)


@lru_cache(maxsize=1)
def _arm(height: int, width: int) -> SimulatedArm:
    # Kept by a worker over its episodes; `reset` is told everything, so nothing passes between them.
    return SimulatedArm(0, height=height, width=width)


def run_task(task: Task) -> Outcome:
    """Run one episode in this process: a function of the task alone (times apart)."""
    world = _world(task.folder, task.row.world)
    setup = make_setup(task.setup_seed, min_distance=task.min_distance, solved_distance=task.success_distance)
    preprocess = world.preprocess if isinstance(world, WorldModel) else None
    size = (preprocess.height, preprocess.width) if preprocess else (96, 96)
    robot = (OracleRobot if task.row.world == "oracle" else SimulatedRobot)(setup, size=size, arm=_arm(*size))
    robot.connect()
    goal = robot.goal_image()
    goal_picture = robot.goal_picture() if task.film else None
    distances = [robot.distance_to_goal()]
    pictures = [robot.picture()] if task.film else []

    def after(_observation: object) -> None:
        distances.append(robot.distance_to_goal())
        if task.film:
            pictures.append(robot.picture())

    result = run_episode(
        robot, world, make_planner(task.row.planner), goal, task.steps, SafetyGate(simulated_limits()),
        seed=setup.seed, on_observation=after,
    )  # fmt: skip
    return Outcome(
        row=task.row.name, setup=setup, distances=[round(value, 6) for value in distances],
        energies=[round(value, 6) for value in result.energies], calls=result.calls, seconds=result.seconds,
        commands=len(result.commands), refused=result.refused, clipped=result.clipped, stopped=result.stopped,
        success=distances[-1] < task.success_distance, reached=min(distances[1:], default=1.0) < task.success_distance,
        pictures=tuple(pictures), goal_picture=goal_picture,
    )  # fmt: skip


def run_job(job: Task | LandscapeJob) -> Outcome | landscape.Landscape:
    """What a worker process does with one item."""
    return run_task(job) if isinstance(job, Task) else run_landscape(job)


def run_landscape(job: LandscapeJob) -> landscape.Landscape:
    """Measure one energy landscape in this process: a function of the job alone."""
    world = _world(job.folder, "trained")
    assert isinstance(world, WorldModel)
    return landscape.measure(world, job.seed, box=job.box, arm=_arm(world.preprocess.height, world.preprocess.width))


def run_jobs(jobs: Sequence[Task | LandscapeJob], *, workers: int, progress: Callable[..., None] | None = None) -> list[Any]:
    """Run jobs in worker processes of one thread each; answers in the order of `jobs`, whatever `workers` is."""
    outcomes = map_killable("planning.evaluation:run_job", jobs, workers=workers, timeout_s=JOB_LIMIT_S, progress=progress)
    for job, outcome in zip(jobs, outcomes, strict=True):
        if outcome.failure is not None:
            what = f"an episode of row {job.row.name}" if isinstance(job, Task) else "an energy landscape"
            raise TrainingError(
                f"evaluating {what} failed", expected="an episode that ends", found=f"{outcome.failure}: {outcome.detail}",
                remedy="read the worker's message above",
            )  # fmt: skip
    return [outcome.value for outcome in outcomes]


def tasks_for(
    rows: Sequence[Row], folder: Path, *, seed: int, steps: int, min_distance: float, success_distance: float
) -> list[Task]:
    """Every row over the same fresh set-ups (paired); the world model and its control come from `folder`."""
    return [
        Task(row, str(folder), stable_seed("episode", seed, index), min_distance, steps, success_distance)
        for row in rows
        for index in range(row.episodes)
    ]


def summarise(row: Row, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One line of the table, JSON-able: success at the end with its Wilson interval, reached at some step, costs."""
    count, commands = len(outcomes), max(1, sum(outcome.commands for outcome in outcomes))
    final = [100 * outcome.distances[-1] for outcome in outcomes]
    successes, reached = sum(outcome.success for outcome in outcomes), sum(outcome.reached for outcome in outcomes)
    low, high = wilson(successes, count)
    any_low, any_high = wilson(reached, count)
    return {
        "arm": row.name, "planner": row.planner["name"], "world": row.world, "episodes": count, "successes": successes,
        "success_final": successes / count, "low": low, "high": high, "success_any": reached / count, "any_low": any_low,
        "any_high": any_high, "median_cm": float(np.median(final)),
        "start_cm": float(np.median([100 * outcome.distances[0] for outcome in outcomes])),
        "calls": sum(outcome.calls for outcome in outcomes) / commands,
        "seconds_per_action": sum(outcome.seconds for outcome in outcomes) / commands,
        "refused": sum(outcome.refused for outcome in outcomes), "clipped": sum(outcome.clipped for outcome in outcomes),
        "stopped": sum(outcome.stopped is not None for outcome in outcomes),
    }  # fmt: skip
