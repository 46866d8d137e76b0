"""The robot agent: a process of its own that is given a bundle folder and a goal image, and nothing else.

    python -m planning.agent --bundle DIR --goal goal.png --report FILE --log steps.jsonl --robot simulated --seed N

It verifies the bundle, drives the robot to the goal image through the safety gate, logs every command before it is sent
and writes a report. A robot marked real moves only if the operator's flag file exists on this machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import TubeletError
from pipelines.episodes.episode import load_episodes
from pipelines.errors import InputError
from pipelines.identity import file_sha256
from pipelines.reporting import configure_logging
from pipelines.store import write_atomic
from planning.animation import write_episode_gif
from planning.bundle import Bundle, verify_bundle
from planning.controller import Command, EpisodeResult, dispatch, run_episode
from planning.goals import read_goal
from planning.robots.replay import ReplayRobot
from planning.robots.robot import Observation, Robot
from planning.robots.simulated import SimulatedRobot
from planning.safety import SafetyGate
from planning.setups import make_setup

logger = logging.getLogger("tubelet.agent")

DRIVERS = ("simulated", "replay")
ABSURD_JUMP_M = 1.0
EXIT_REFUSED = 2


@dataclass(frozen=True)
class Permission:
    """Whether this process may send commands, and why."""

    send: bool
    reason: str


def permission(*, real: bool, dry_run: bool, operator_flag: Path | None) -> Permission:
    """A dry run never sends. A robot marked real is only sent to when the operator's flag lies on this machine."""
    if dry_run:
        return Permission(False, "dry run")
    if not real:
        return Permission(True, "the robot is not real")
    if operator_flag is not None and operator_flag.is_file():
        return Permission(True, f"operator's flag {operator_flag}")
    return Permission(False, "real robot without the operator's flag on this machine: dry run")


class CommandLog:
    """steps.jsonl: one JSON object a line, on disk before the command goes out."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a")  # noqa: SIM115 - open for the whole episode, closed by `close`

    def write(self, event: str, values: dict[str, Any]) -> None:
        self._file.write(json.dumps({"event": event, "wall_time": time.time(), **values}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def open_robot(driver: str, bundle: Bundle, seed: int, episodes: Path | None) -> Robot:
    """A driver by name; raises InputError for one that does not exist or lacks its input."""
    if driver == "simulated":
        task, preprocess = bundle.json("planner.json"), bundle.json("preprocess.json")
        setup = make_setup(seed, min_distance=task["min_start_distance"], solved_distance=task["success_distance"])
        return SimulatedRobot(setup, size=(preprocess["height"], preprocess["width"]))
    if driver == "replay":
        if episodes is None:
            raise InputError("a replay needs recorded episodes", expected="--episodes FOLDER", found="none")
        recorded = load_episodes(episodes)
        return ReplayRobot(recorded[seed % len(recorded)])
    raise InputError(f"no driver {driver}", expected=", ".join(DRIVERS), found=driver)


def run_agent(
    bundle: Bundle, robot: Robot, goal: np.ndarray, allowed: Permission, log: CommandLog, *, seed: int, inject_fault: bool,
    gif: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One episode on a robot: returns the report. The robot is stopped and closed on every way out."""
    gate, pictures = SafetyGate(bundle.limits()), []
    try:
        robot.connect()
        log.write("start", {"bundle": bundle.digest, "robot": asdict(robot.info()), "send": allowed.send, "why": allowed.reason})
        simulated = robot if isinstance(robot, SimulatedRobot) else None
        start_m = simulated.distance_to_goal() if simulated else None
        injected = _inject(robot, gate, allowed.send, log) if inject_fault else None

        def picture(observation: Observation) -> np.ndarray:
            return simulated.picture() if simulated else observation.image

        if gif is not None:
            pictures.append(picture(robot.observe()))
        result = run_episode(
            robot, bundle.world_model(), bundle.planner(), goal, int(bundle.json("planner.json")["steps"]), gate, seed=seed,
            send=allowed.send, on_command=_logger(log),
            on_observation=lambda observation: pictures.append(picture(observation)) if gif is not None else None,
        )  # fmt: skip
        report = _report(bundle, robot, allowed, result, injected)
        if simulated:
            report["simulator"] = {
                "meaning": "ground truth of the simulation, for evaluation only: the agent's planner never sees it",
                "start_m": start_m, "end_m": simulated.distance_to_goal(),
            }  # fmt: skip
        if gif is not None:
            captions = [f"step {step}: energy {energy:.3f}" for step, energy in enumerate(result.energies)]
            write_episode_gif(gif, pictures[: len(captions)], goal, captions[: len(pictures)])
            report["gif"] = gif.name
        log.write("end", {"energies": result.energies, "stopped": result.stopped})
        return report
    finally:
        robot.stop("the agent ends")
        robot.close()


def _logger(log: CommandLog, event: str = "command") -> Callable[[Command], None]:
    return lambda command: log.write(event, command.to_dict())


def _inject(robot: Robot, gate: SafetyGate, send: bool, log: CommandLog) -> dict[str, Any]:
    """Send one deliberately bad command (a jump of a metre) by the usual way: the gate must refuse it, which counts as
    one of its faults, and nothing may move."""
    before = robot.observe()
    bad = np.array([ABSURD_JUMP_M, 0, 0, 0, 0, 0, 0])
    command = dispatch(robot, gate, before, bad, send=send, on_command=_logger(log, "injected_fault"))
    moved = float(np.linalg.norm(robot.observe().pose7[:3] - before.pose7[:3]))
    return {"refused": not command.decision.allowed, "reasons": list(command.decision.reasons), "moved_m": moved}


def _report(
    bundle: Bundle, robot: Robot, allowed: Permission, result: EpisodeResult, injected: dict[str, Any] | None
) -> dict[str, Any]:
    positions = np.array([observation.pose7[:3] for observation in result.observations])
    return {
        "bundle": bundle.digest, "recipe": bundle.recipe, "robot": asdict(robot.info()), "sent": allowed.send,
        "permission": allowed.reason, "commands": len(result.commands),
        "refused": result.refused + (1 if injected and injected["refused"] else 0), "clipped": result.clipped,
        "injected_fault": injected, "stopped": result.stopped, "energies": result.energies,
        "moved_m": float(np.linalg.norm(positions[-1] - positions[0])),
        "path_m": float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum()),
        "calls": result.calls, "seconds_per_action": result.seconds / max(1, len(result.commands)),
    }  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="planning.agent", description="Drive a robot to a goal image with a bundle.")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle folder; verified before anything else")
    parser.add_argument("--goal", type=Path, required=True, help="goal image (PNG)")
    parser.add_argument("--report", type=Path, required=True, help="report to write (JSON)")
    parser.add_argument("--log", type=Path, required=True, help="command log to append to (JSON lines)")
    parser.add_argument("--gif", type=Path, help="animated picture of the episode to write")
    parser.add_argument("--robot", default="simulated", help=f"driver: {', '.join(DRIVERS)}")
    parser.add_argument("--seed", type=int, default=0, help="simulated: the task; replay: which episode")
    parser.add_argument("--episodes", type=Path, help="replay: a robot_episodes folder")
    parser.add_argument("--real", action="store_true", help="this robot is marked real: dry run without the operator's flag")
    parser.add_argument("--operator-flag", type=Path, help="file that an operator puts on this machine to allow motion")
    parser.add_argument("--dry-run", action="store_true", help="plan, gate and log, send nothing")
    parser.add_argument("--inject-fault", action="store_true", help="first send one bad command that the gate must refuse")
    parser.add_argument("--time-limit", type=int, default=0, help="end this process after so many seconds (0: never)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code (0 done, 2 refused with the reason in the log)."""
    options = parse(arguments)
    configure_logging()
    signal.signal(signal.SIGTERM, _interrupt)
    if options.time_limit:
        signal.alarm(options.time_limit)  # the default action ends the process even inside native code
    import torch

    torch.set_num_threads(1)
    log = CommandLog(options.log)
    try:
        bundle = verify_bundle(options.bundle)
        logger.info("bundle %s verified", bundle.digest)
        goal = read_goal(options.goal)
        robot = open_robot(options.robot, bundle, options.seed, options.episodes)
        real = options.real or robot.info().real
        dry_run = options.dry_run or options.robot == "replay"  # nothing moves there, and the gate would see that
        allowed = permission(real=real, dry_run=dry_run, operator_flag=options.operator_flag)
        report = run_agent(
            bundle, robot, goal, allowed, log, seed=options.seed, inject_fault=options.inject_fault, gif=options.gif
        )
        write_atomic(options.report, json.dumps({**report, "goal_sha256": file_sha256(options.goal)}, indent=1))
        logger.info("moved %.1f cm in %d commands, %d refused", 100 * report["moved_m"], report["commands"], report["refused"])
        return 0
    except TubeletError as error:
        log.write("refused", {"error": str(error)})
        logger.error("%s", error)
        return EXIT_REFUSED
    finally:
        log.close()


def _interrupt(number: int, frame: object) -> None:
    # As Ctrl-C: unwinds through the `finally` that stops the robot.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
