"""The `planning_results` artefact: which rows are run, what is written, and what must hold before it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.checks import Check
from pipelines.identity import stable_seed
from pipelines.recipes import Recipe
from planning import landscape
from planning.animation import write_episode_gif
from planning.evaluation import LandscapeJob, Outcome, Row, Task, run_jobs, summarise, tasks_for
from planning.planners import make_planner
from planning.statistics import wilson

LANDSCAPES = 12
FLOOR_SUCCESS = 0.05


def default_rows(recipe: Recipe, *, control: bool) -> list[Row]:
    """The default planner and the floors over all episodes; comparisons over fewer. Slow rows first."""
    planning, full, fewer = recipe.planning, recipe.planning.episodes, recipe.planning.comparison_episodes

    def row(name: str, planner: str, world: Any, episodes: int) -> Row:
        return Row(name, make_planner(planner, planning.box).model_dump(mode="json"), world, episodes)

    rows = [
        row("cem + stopping rule", "cem_stopping", "trained", fewer),
        row("oracle", "cem", "oracle", fewer),
        row("default", planning.planner, "trained", full),
    ]
    if control:
        rows.append(row("random encoder", planning.planner, "control", fewer))
    return [*rows, row("random actions", "random", "trained", full), row("no-op", "no_op", "trained", full)]


def build_planning_results(
    folder: Path, world_model_folder: Path, recipe: Recipe, *, workers: int = 2, progress: Callable[..., None] | None = None
) -> dict[str, Any]:
    """Evaluate in closed loop and fill `folder`: results.json, episodes.jsonl, landscape.json and .png, episode.gif.

    Start and goal are fresh draws of `recipe.planning.seed`; the control row needs the folder's `control/` networks.
    """
    planning = recipe.planning
    rows = default_rows(recipe, control=(world_model_folder / "control").is_dir())
    tasks = tasks_for(
        rows, world_model_folder, seed=planning.seed, steps=planning.steps, min_distance=planning.min_start_distance,
        success_distance=planning.success_distance,
    )  # fmt: skip
    seeds = [stable_seed("landscape", planning.seed, index) for index in range(LANDSCAPES)]
    surveys = [LandscapeJob(str(world_model_folder), seed, planning.box) for seed in seeds]
    answers = run_jobs([*tasks, *surveys], workers=workers, progress=progress)
    outcomes: list[Outcome] = answers[: len(tasks)]
    landscapes: list[landscape.Landscape] = answers[len(tasks) :]
    table = [summarise(row, [outcome for outcome in outcomes if outcome.row == row.name]) for row in rows]
    landscape.draw(landscapes[0], folder / "landscape.png")
    (folder / "landscape.json").write_text(json.dumps(landscapes[0].to_dict()))
    with open(folder / "episodes.jsonl", "w") as lines:
        for outcome in outcomes:
            lines.write(json.dumps(outcome.to_dict()) + "\n")
    default = next(row for row in rows if row.name == "default")
    filmed = _film(folder / "episode.gif", world_model_folder, recipe, default, [o for o in outcomes if o.row == "default"])
    summary = {
        "rows": table, "seed": planning.seed, "steps": planning.steps, "success_cm": 100 * planning.success_distance,
        "min_start_cm": 100 * planning.min_start_distance, "episodes": len(outcomes),
        "landscape_error_cm": float(np.median([100 * item.error_m for item in landscapes])),
        "landscape_moves": len(landscapes), "filmed": filmed, "pictures": ["landscape.png", "episode.gif"],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(summary, indent=1))
    return summary


def _film(path: Path, world_model_folder: Path, recipe: Recipe, row: Row, outcomes: list[Outcome]) -> dict[str, Any]:
    """Run one episode of the default planner again with pictures: the success that started farthest away, or, when none
    succeeded, the one that ended nearest. Returns which it was."""
    planning = recipe.planning
    won = [outcome for outcome in outcomes if outcome.success]
    chosen = max(won, key=lambda o: o.distances[0]) if won else min(outcomes, key=lambda o: o.distances[-1])
    task = Task(
        row, str(world_model_folder), chosen.setup.seed, planning.min_start_distance, planning.steps,
        planning.success_distance, film=True,
    )  # fmt: skip
    (outcome,) = run_jobs([task], workers=1)
    captions = [f"step {step}: {100 * distance:.1f} cm" for step, distance in enumerate(outcome.distances)]
    assert outcome.goal_picture is not None
    write_episode_gif(path, outcome.pictures, outcome.goal_picture, captions)
    return {"setup_seed": chosen.setup.seed, "success": chosen.success, "chosen": "farthest start that succeeded" if won else "nearest end"}


def check_planning(summary: dict[str, Any], *, lower_bound: float = 0.0) -> dict[str, Check]:
    """Blocking checks: the gate saw no fault, the default planner's Wilson interval starts at `lower_bound` or above (0:
    told, not judged), and the floors are floors."""
    rows = {row["arm"]: row for row in summary["rows"]}
    default, faults = rows["default"], sum(row["refused"] + row["stopped"] for row in summary["rows"])
    low, high = wilson(default["successes"], default["episodes"])
    floors = {name: rows[name]["success_final"] for name in ("no-op", "random actions")}
    return {
        "no_safety_fault": Check(
            faults == 0, expected="no order refused and no gate latched in any row", found=f"{faults} refusals or latches",
            remedy="read episodes.jsonl: which row, and the reasons in its commands",
        ),
        "default_planner_reaches_goals": Check(
            low >= lower_bound, expected=f"Wilson lower bound at least {lower_bound:.2f}",
            found=f"{default['successes']}/{default['episodes']} under {summary['success_cm']:.0f} cm, interval [{low:.2f}, {high:.2f}]",
            remedy="look at the world model's losses: true actions must beat shuffled ones by far; then train it longer",
        ),
        "floors_stay_floors": Check(
            max(floors.values()) < FLOOR_SUCCESS, expected=f"no-op and random actions under {FLOOR_SUCCESS:.0%}",
            found=", ".join(f"{name} {value:.0%}" for name, value in floors.items()),
            remedy="the task is too easy: raise min_start_distance or use more episodes",
        ),
    }  # fmt: skip
