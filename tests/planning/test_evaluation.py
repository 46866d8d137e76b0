"""Evaluation in closed loop: fresh paired episodes, the same numbers whatever the number of workers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import InputError
from pipelines.recipes import Recipe
from planning.evaluation import LandscapeJob, Outcome, Row, run_jobs, run_landscape, summarise, tasks_for
from planning.planners import make_planner
from planning.results import build_planning_results, check_planning
from planning.setups import CUBE_CLEARANCE_M, make_setup
from planning.statistics import wilson


def row(name: str, planner: str, world: str, episodes: int) -> Row:
    return Row(name, make_planner(planner).model_dump(mode="json"), world, episodes)  # type: ignore[arg-type]


def run(rows: list[Row], folder: Path, workers: int, steps: int = 3) -> list[Outcome]:
    tasks = tasks_for(rows, folder, seed=5, steps=steps, min_distance=0.1, success_distance=0.04)
    return run_jobs(tasks, workers=workers)


def test_outcomes_are_the_same_whatever_the_number_of_workers(random_world_model: Path) -> None:
    rows = [row("default", "gauss_newton", "trained", 2), row("control", "gauss_newton", "control", 1), row("random", "random", "trained", 1)]
    one, two = (run(rows, random_world_model, workers) for workers in (1, 2))
    assert [dataclasses.replace(outcome, seconds=0.0) for outcome in one] == [dataclasses.replace(outcome, seconds=0.0) for outcome in two]
    assert [outcome.row for outcome in one] == ["default", "default", "control", "random"]
    assert one[0].setup == one[2].setup == one[3].setup != one[1].setup  # paired


def test_the_oracle_reaches_goals_and_no_op_does_not(random_world_model: Path) -> None:
    rows = [row("oracle", "cem", "oracle", 2), row("no-op", "no_op", "trained", 2)]
    outcomes = run(rows, random_world_model, workers=1, steps=10)
    assert [outcome.success for outcome in outcomes] == [True, True, False, False]
    assert all(outcome.refused == 0 and outcome.stopped is None for outcome in outcomes)
    table = summarise(rows[0], outcomes[:2])
    assert table["success_final"] == 1.0 and table["median_cm"] < 1.0 and table["calls"] == 322
    json.dumps(table, allow_nan=False)


def test_set_ups_are_fresh_unsolved_and_keep_the_cube_out_of_the_way() -> None:
    setups = [make_setup(seed, min_distance=0.10, solved_distance=0.04) for seed in range(60)]
    assert len({setup.start for setup in setups}) == 60
    for setup in setups:
        assert setup.distance >= 0.1
        for place in (setup.start, setup.goal):
            assert np.linalg.norm(np.subtract(place[:2], setup.cube_xy)) >= CUBE_CLEARANCE_M
    assert make_setup(3, min_distance=0.10, solved_distance=0.04) == setups[3]


def test_a_distance_that_does_not_fit_on_the_table_is_an_error() -> None:
    with pytest.raises(InputError):
        make_setup(0, min_distance=2.0, solved_distance=0.04)


@given(trials=st.integers(1, 500), share=st.floats(0, 1))
def test_the_wilson_interval_holds_the_proportion_and_stays_in_the_unit_interval(trials: int, share: float) -> None:
    successes = round(share * trials)
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials + 1e-12 and successes / trials - 1e-12 <= high <= 1 and low < high


def test_wilson_gives_the_published_numbers() -> None:
    assert [round(value, 2) for value in wilson(26, 50)] == [0.39, 0.65]
    assert [round(value, 2) for value in wilson(42, 50)] == [0.71, 0.92]
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_landscape_knows_the_true_move(random_world_model: Path) -> None:
    found = run_landscape(LandscapeJob(str(random_world_model), 3, 0.075))
    assert 0.03 < np.abs(found.true_move[:2]).max() < 0.075 and abs(found.true_move[2]) < 0.01
    assert np.shape(found.energy) == (21, 21)
    lowest = np.unravel_index(np.argmin(found.energy), (21, 21))
    assert found.best_move[:2] == pytest.approx([found.offsets[lowest[1]], found.offsets[lowest[0]]], abs=1e-6)


def test_the_artefact_holds_table_landscape_and_animation(random_world_model: Path, smoke_recipe: Recipe, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = build_planning_results(tmp_path, random_world_model, smoke_recipe, progress=lambda done, total: seen.append((done, total)))
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "episodes.jsonl", "landscape.json", "landscape.png", "episode.gif"}
    assert [line["arm"] for line in summary["rows"]] == ["cem + stopping rule", "oracle", "default", "random encoder", "random actions", "no-op"]
    assert (tmp_path / "episode.gif").stat().st_size <= 400_000 and (tmp_path / "landscape.png").stat().st_size <= 100_000
    with Image.open(tmp_path / "episode.gif") as picture:
        assert picture.n_frames == smoke_recipe.planning.steps + 1  # type: ignore[attr-defined]
    assert seen[-1][0] == seen[-1][1] > summary["episodes"]
    checks = check_planning(summary)
    assert checks["no_safety_fault"].passed and checks["default_planner_reaches_goals"].passed
    assert not check_planning(summary, lower_bound=0.6)["default_planner_reaches_goals"].passed
