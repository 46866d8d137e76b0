"""A bundle is exactly what its name says, and an agent given nothing else drives the arm through the gate."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.episodes.droid import normalise_episodes
from pipelines.episodes.record import record_simulated
from pipelines.recipes import Recipe
from planning.agent import permission
from planning.bundle import BundleError, build_bundle, bundle_folder, check_bundle, verify_bundle
from planning.deployment import Target, check_deployment, current_bundle, load_targets, point, run_deployment

REPOSITORY = Path(__file__).parents[2]
EVIDENCE = {"rows": [{"arm": "default", "success_final": 0.0, "seconds_per_action": 0.1}], "seed": 1, "filmed": {"setup_seed": 11, "success": False}}


@pytest.fixture(scope="module")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def bundle_path(store_root: Path, random_world_model: Path, smoke_recipe: Recipe) -> Path:
    folder = store_root / "artefacts" / "robot_bundle"
    folder.mkdir(parents=True)
    summary = build_bundle(folder, random_world_model, smoke_recipe, {"parents": ["abc"]}, EVIDENCE)
    assert bundle_folder(folder) == folder / summary["folder"]
    return folder / summary["folder"]


def test_equal_contents_have_the_equal_name(bundle_path: Path, random_world_model: Path, smoke_recipe: Recipe, tmp_path: Path) -> None:
    slower = {**EVIDENCE, "rows": [{"arm": "default", "success_final": 0.0, "seconds_per_action": 9.9}]}
    again = build_bundle(tmp_path / "a", random_world_model, smoke_recipe, {"parents": ["abc"]}, slower)
    other = build_bundle(tmp_path / "b", random_world_model, smoke_recipe, {"parents": ["abd"]}, EVIDENCE)
    assert again["bundle"] == bundle_path.name != other["bundle"]
    assert check_bundle(bundle_path).digest == bundle_path.name


def test_sha256sum_agrees_with_the_sums(bundle_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle_path, check=True)


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (lambda folder: _flip(folder / "predictor.safetensors"), "predictor.safetensors was changed"),
        (lambda folder: _flip(folder / "goals/reach/goal.png"), "goal.png was changed"),
        (lambda folder: (folder / "safety.json").write_text("{}"), "safety.json was changed"),
        (lambda folder: (folder / "planner.json").unlink(), "planner.json is missing"),
        (lambda folder: (folder / "more.json").write_text("{}"), "more.json is not in the manifest"),
        (lambda folder: (folder / "encoder.pt").write_bytes(pickle.dumps(1)), "encoder.pt is no"),
        (lambda folder: (folder / "SHA256SUMS").write_text(""), "SHA256SUMS"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "manifest.json"),
        (
            lambda folder: (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace('"smoke"', '"other"')),
            "manifest.json was changed",
        ),
        (
            lambda folder: ((folder / "lineage.json").rename(folder.parent / "l"), (folder / "lineage.json").symlink_to(folder.parent / "l")),
            "lineage.json is a link",
        ),
    ],
)  # fmt: skip
def test_any_change_is_refused_and_named(bundle_path: Path, tmp_path: Path, tamper: Callable[[Path], Any], named: str) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / bundle_path.name)
    verify_bundle(copy)
    tamper(copy)
    with pytest.raises(BundleError) as refused:
        verify_bundle(copy)
    assert named in str(refused.value)


def test_a_bundle_under_another_name_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        verify_bundle(shutil.copytree(bundle_path, tmp_path / "renamed"))


@pytest.fixture(scope="module")
def deployed(bundle_path: Path, store_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("deployment")
    return folder, run_deployment(folder, bundle_path, Target(), repository=REPOSITORY, work_folder=tmp_path_factory.mktemp("work"))


def test_the_agent_reports_its_bundle_and_refuses_the_bad_command_without_motion(
    deployed: tuple[Path, dict[str, Any]], bundle_path: Path, smoke_recipe: Recipe
) -> None:
    folder, summary = deployed
    assert summary["bundle"] == bundle_path.name and summary["sent"]
    assert summary["refused"] == 1 and summary["injected_fault"]["moved_m"] < 0.005 and summary["stopped"] is None
    assert summary["commands"] == smoke_recipe.planning.steps and summary["moved_m"] > 0
    assert "evaluation only" in summary["simulator"]["meaning"]
    checks = check_deployment(summary)
    assert checks["agent_runs_this_bundle"].passed and checks["bad_command_refused"].passed
    assert {path.name for path in folder.iterdir()} == {"agent_report.json", "steps.jsonl", "goal.png", "episode.gif"}


def test_every_command_is_in_the_log_with_the_gates_decision(deployed: tuple[Path, dict[str, Any]]) -> None:
    events = [json.loads(line) for line in (deployed[0] / "steps.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "injected_fault", "command", "command", "end"]
    assert events[1]["raw"][0] == 1.0 and not events[1]["gate"]["allowed"] and "absurd" in events[1]["gate"]["reasons"][0]
    for event in events[2:-1]:
        assert event["gate"]["allowed"] and len(event["gate"]["action"]) == len(event["raw"]) == 7 and event["sent"]


def test_a_robot_marked_real_is_never_sent_a_command(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    summary = run_deployment(tmp_path / "out", bundle_path, Target(real=True), repository=REPOSITORY, work_folder=tmp_path / "work")
    assert not summary["sent"] and summary["path_m"] == 0.0 and summary["simulator"]["start_m"] == summary["simulator"]["end_m"]
    events = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert not any(event.get("sent") for event in events) and len(events) == 5
    assert all(check.passed for check in check_deployment(summary).values())


def test_only_the_operators_flag_on_this_machine_lets_a_real_robot_move(tmp_path: Path) -> None:
    flag = tmp_path / "operator-allows-motion"
    assert not permission(real=True, dry_run=False, operator_flag=None).send
    assert not permission(real=True, dry_run=False, operator_flag=flag).send
    flag.touch()
    assert permission(real=True, dry_run=False, operator_flag=flag).send
    assert not permission(real=True, dry_run=True, operator_flag=flag).send
    assert permission(real=False, dry_run=False, operator_flag=None).send


def test_the_agent_refuses_a_changed_bundle_before_anything_moves(bundle_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / bundle_path.name)
    _flip(copy / "encoder.safetensors")
    done = subprocess.run(
        [sys.executable, "-m", "planning.agent", "--bundle", str(copy), "--goal", str(copy / "goals/reach/goal.png"),
         "--report", str(tmp_path / "report.json"), "--log", str(tmp_path / "log.jsonl")],
        cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2 and "encoder.safetensors was changed" in done.stderr
    assert not (tmp_path / "report.json").exists()
    assert [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == ["refused"]


def test_the_pointer_moves_once_per_bundle_and_keeps_its_history(
    bundle_path: Path, store_root: Path, random_world_model: Path, smoke_recipe: Recipe
) -> None:
    assert current_bundle(store_root, "simulated") is None
    first = point(store_root, "simulated", bundle_path, reason="first")
    assert point(store_root, "simulated", bundle_path, reason="again") == first
    other = build_bundle(store_root / "other", random_world_model, smoke_recipe, {}, EVIDENCE)
    second = point(store_root, "simulated", store_root / "other" / other["folder"], reason="better")
    assert second["previous"]["bundle"] == bundle_path.name and current_bundle(store_root, "simulated") == second
    history = (store_root / "targets" / "simulated" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in history] == ["first", "better"]
    assert (store_root / second["path"]).name == other["bundle"]


def test_a_bundle_that_does_not_verify_never_becomes_current(store_root: Path, bundle_path: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / bundle_path.name)
    _flip(copy / "planner.json")
    with pytest.raises(BundleError):
        point(tmp_path, "simulated", copy, reason="no")
    assert current_bundle(tmp_path, "simulated") is None


def test_robots_are_registered_in_the_store_and_mistakes_are_refused(tmp_path: Path) -> None:
    assert load_targets(tmp_path) == {"simulated": Target()}
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets" / "robots.json").write_text('{"lab": {"driver": "simulated", "real": true}}')
    assert load_targets(tmp_path)["lab"].real
    (tmp_path / "targets" / "robots.json").write_text('{"lab": {"is_real": true}}')
    with pytest.raises(Exception, match="marked real"):
        load_targets(tmp_path)


def test_a_recording_can_be_planned_against_and_is_never_sent_to(bundle_path: Path, tmp_path: Path) -> None:
    record_simulated(tmp_path / "raw", episodes=1, steps=8, seed=3, height=48, width=48, workers=1)
    normalise_episodes(tmp_path / "raw", tmp_path / "episodes", source="simulated")
    (tmp_path / "out").mkdir()
    target = Target(driver="replay", real=True, episodes=tmp_path / "episodes")
    summary = run_deployment(tmp_path / "out", bundle_path, target, repository=REPOSITORY, work_folder=tmp_path / "work")
    assert not summary["sent"] and summary["commands"] == 2 and len(set(summary["energies"])) == 3
    assert summary["simulator"] is None and all(check.passed for check in check_deployment(summary).values())
