"""Which bundle a robot runs: the atomic pointer, its history, and the agent run that proves it."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic

from pipelines.checks import Check
from pipelines.errors import InputError, TrainingError
from pipelines.recipes import Part
from pipelines.store import write_atomic
from pipelines.training.launcher import Job, launch
from planning.bundle import GOAL, GOAL_TASK, verify_bundle

AGENT_LIMIT_S = 240
SMALLEST_MOVE_M = 0.05
LARGEST_END_M = 0.04
STILL_M = 0.005


class Target(Part):
    """A robot one can deploy to. `real`: nothing here may move it; its agent is only ever started dry from here."""

    driver: Literal["simulated", "replay"] = "simulated"
    real: bool = False
    episodes: Path | None = None


def load_targets(store_root: Path) -> dict[str, Target]:
    """Robots by name from `<store>/targets/robots.json`; always with `simulated`. Raises InputError on unknown keys."""
    path = store_root / "targets" / "robots.json"
    try:
        registered = json.loads(path.read_text()) if path.is_file() else {}
        return {"simulated": Target()} | {name: Target.model_validate(values) for name, values in registered.items()}
    except (json.JSONDecodeError, pydantic.ValidationError, AttributeError) as error:
        raise InputError(
            f"{path} cannot be used", expected='{"name": {"driver": "simulated", "real": true}}', found=str(error),
            remedy="mend the file; a robot that is not certainly simulated must be marked real",
        ) from error  # fmt: skip


def run_deployment(
    folder: Path, bundle_path: Path, target: Target, *, repository: Path, work_folder: Path,
    on_line: Callable[[str], None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Start the agent as a process of its own with nothing but the bundle and its goal image; returns its report.

    Fills `folder` with agent_report.json, steps.jsonl, goal.png and episode.gif. One bad command is sent first, which
    the gate must refuse. For a target marked real the agent is started dry, whatever flag lies anywhere: no step of the
    graph may move a real robot. The agent ends after `AGENT_LIMIT_S` and never outlives this call.
    Raises BundleError for a bundle that does not verify, TrainingError when the agent fails.
    """
    bundle = verify_bundle(bundle_path)
    seed = int(bundle.json(GOAL_TASK)["setup_seed"])
    shutil.copyfile(bundle_path / GOAL, folder / "goal.png")
    report = folder / "agent_report.json"
    command = [
        sys.executable, "-m", "planning.agent", "--bundle", str(bundle_path.resolve()), "--goal", str(folder / "goal.png"),
        "--report", str(report), "--log", str(folder / "steps.jsonl"), "--gif", str(folder / "episode.gif"),
        "--robot", target.driver, "--seed", str(seed), "--inject-fault", "--time-limit", str(AGENT_LIMIT_S),
        *(["--real", "--dry-run"] if target.real else []),
        *(["--episodes", str(target.episodes)] if target.episodes else []),
    ]  # fmt: skip
    lines: list[str] = []

    def relay(line: str) -> None:
        lines.append(line)
        if on_line:
            on_line(line)

    (code,) = launch([Job(command, {"OMP_NUM_THREADS": "1"}, "agent")], cwd=repository, work_folder=work_folder, on_line=relay, grace_s=5)
    if code != 0 or not report.is_file():
        raise TrainingError(
            "the robot agent did not finish its episode", expected="exit code 0 and a report",
            found=f"exit code {code}: {' | '.join(lines[-3:])}", remedy="its log is steps.jsonl; its words are above",
        )  # fmt: skip
    told = json.loads(report.read_text())
    return {
        "expected_bundle": bundle.digest, "real": target.real, "pictures": ["episode.gif", "goal.png"],
        **{name: told[name] for name in ("bundle", "sent", "permission", "commands", "refused", "clipped", "moved_m", "path_m", "stopped", "injected_fault", "energies", "seconds_per_action")},
        "simulator": told.get("simulator"),
    }  # fmt: skip


def check_deployment(summary: dict[str, Any]) -> dict[str, Check]:
    """Blocking checks on an agent's report: it runs this bundle, refused the bad command, and (sent) reached the goal."""
    injected, truth = summary["injected_fault"], summary["simulator"]
    # In a dry run what moves, a recording or a person's hand, does not move by the command.
    still = bool(injected) and (not summary["sent"] or injected["moved_m"] < STILL_M)
    checks = {
        "agent_runs_this_bundle": Check(
            summary["bundle"] == summary["expected_bundle"], expected=summary["expected_bundle"], found=summary["bundle"],
            remedy="the agent was given another folder: deploy again",
        ),
        "bad_command_refused": Check(
            still and injected["refused"] and summary["refused"] == 1 and summary["stopped"] is None,
            expected="exactly the one bad command refused, without motion",
            found=f"{summary['refused']} refused, injected: {injected}", remedy="read steps.jsonl: the gate's reasons are there",
        ),
    }  # fmt: skip
    if summary["real"]:
        checks["real_robot_not_moved"] = Check(not summary["sent"], expected="dry run", found=summary["permission"])
    elif truth is not None:
        checks["arm_reached_the_goal"] = Check(
            summary["moved_m"] >= SMALLEST_MOVE_M and truth["end_m"] < LARGEST_END_M,
            expected=f"moves at least {100 * SMALLEST_MOVE_M:.0f} cm, ends under {100 * LARGEST_END_M:.0f} cm from the goal",
            found=f"moved {100 * summary['moved_m']:.1f} cm, ended {100 * truth['end_m']:.1f} cm from it",
            remedy="see planning_results: does the default planner reach its goals there?",
        )  # fmt: skip
    return checks


def current_bundle(store_root: Path, robot: str) -> dict[str, Any] | None:
    """What `targets/<robot>/current.json` says: bundle, path (relative to the store), since, previous. None before."""
    path = store_root / "targets" / robot / "current.json"
    return json.loads(path.read_text()) if path.is_file() else None


def point(store_root: Path, robot: str, bundle_path: Path, *, reason: str) -> dict[str, Any]:
    """Make a robot's pointer name a verified bundle of this store; atomic, and every change is a line of history.jsonl.

    Pointing at what is already current changes nothing. The pointer keeps the one before it, for the way back.
    """
    bundle, before = verify_bundle(bundle_path), current_bundle(store_root, robot)
    if before is not None and before["bundle"] == bundle.digest:
        return before
    folder = store_root / "targets" / robot
    folder.mkdir(parents=True, exist_ok=True)
    previous = {name: before[name] for name in ("bundle", "path")} if before else None
    pointer = {
        "robot": robot, "bundle": bundle.digest, "path": str(bundle_path.resolve().relative_to(store_root.resolve())),
        "since": time.time(), "previous": previous, "reason": reason,
    }  # fmt: skip
    # History first: a pointer without its line would be a change nobody can trace.
    with open(folder / "history.jsonl", "a") as history:
        history.write(json.dumps(pointer) + "\n")
    write_atomic(folder / "current.json", json.dumps(pointer, indent=1))
    return pointer
