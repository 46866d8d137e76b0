"""Planners on worlds whose answer is known: tokens that are a smooth function of the arm's position."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines.errors import InputError
from planning.controller import run_episode
from planning.planners import CEM, PLANNERS, GaussNewton, MapNewton, Plan, Problem, Stopping, Visit, make_planner
from planning.planners.imagined_map import imagine
from planning.planners.problem import PlannerConfig, World
from planning.robots.robot import CommandResult, Observation, RobotInfo
from planning.safety import SafetyGate, SafetyLimits

WORKSPACE = ((0.3, 0.65), (-0.3, 0.3), (0.05, 0.4))


class ToyWorld:
    """Tokens (8, 6) are a gentle nonlinear function of position; predictions are blurred towards a mean by `blur`, as a
    real predictor's are, and drift by `drift` (m)."""

    def __init__(self, blur: float = 0.0, drift: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = torch.randn(3, 48, generator=generator) * 4
        self.blur, self.drift, self.calls = blur, torch.tensor(drift), 0

    def tokens_at(self, position: Tensor) -> Tensor:
        return torch.sin(position.float() @ self.weights).unflatten(-1, (8, 6))

    def encode(self, image: np.ndarray) -> Tensor:
        return self.tokens_at(torch.as_tensor(image).reshape(3))

    def predict(self, tokens: Tensor, actions: Tensor, poses: Tensor) -> Tensor:
        self.calls += len(actions)
        return (1 - self.blur) * self.tokens_at(poses[:, :3] + actions[:, :3] + self.drift)

    def rollout(self, tokens: Tensor, pose7: np.ndarray, actions: Tensor) -> Tensor:
        self.calls += actions.shape[0] * actions.shape[1]
        pose = torch.as_tensor(pose7, dtype=torch.float32)[:3]
        return (1 - self.blur) * self.tokens_at(pose + actions[..., :3].sum(dim=1) + self.drift)


class ToyRobot:
    """Moves exactly as told; its "image" is where it is."""

    def __init__(self, start: tuple[float, float, float], error: float = 0.0) -> None:
        self.pose, self.time, self.sequence, self.error = np.array([*start, 0, 0, 0, 0]), 0.0, 0, error
        self.stopped: str | None = None

    def info(self) -> RobotInfo:
        return RobotInfo("toy", "toy", False, 0.5)

    def connect(self) -> None:
        return None

    def clock(self) -> float:
        return self.time

    def observe(self) -> Observation:
        self.sequence += 1
        return Observation(self.pose[:3].copy(), self.pose.copy(), self.time, self.sequence)

    def apply(self, delta7: np.ndarray, deadline_s: float) -> CommandResult:
        self.pose = self.pose + delta7 + np.array([self.error, 0, 0, 0, 0, 0, 0])
        self.time += 0.5
        return CommandResult(delta7, self.pose.copy(), self.time)

    def hold(self) -> None:
        self.time += 0.5

    def stop(self, reason: str) -> None:
        self.stopped = reason

    def close(self) -> None:
        return None


def problem_at(world: ToyWorld, position: tuple[float, float, float], goal: tuple[float, float, float], seed: int = 0) -> Problem:
    pose = np.array([*position, 0, 0, 0, 0])
    tokens, goal_tokens = world.encode(np.array(position)), world.encode(np.array(goal))
    energy = float((tokens - goal_tokens).abs().mean())
    return Problem(tokens, goal_tokens, pose, (Visit(pose, tokens, energy),), 5, seed)


@pytest.mark.parametrize("name", ["map_newton", "gauss_newton", "gauss_newton_far", "cem", "cem_stopping"])
def test_every_planner_finds_a_goal_inside_its_box(name: str) -> None:
    world, start, goal = ToyWorld(), (0.45, 0.0, 0.2), (0.49, -0.03, 0.25)
    plan = make_planner(name).plan(world, problem_at(world, start, goal))
    assert np.linalg.norm(plan.action7[:3] - np.subtract(goal, start)) < (0.012 if "cem" in name else 0.003)
    assert plan.energy < plan.hold_energy
    assert plan.calls == world.calls


def test_gauss_newton_needs_a_tenth_of_the_calls_of_cem() -> None:
    world = ToyWorld()
    problem = problem_at(world, (0.45, 0.0, 0.2), (0.49, -0.03, 0.25))
    assert GaussNewton().plan(world, problem).calls <= 34
    assert CEM().plan(world, problem).calls == 64 * 5 + 2


def test_the_no_op_correction_makes_the_goal_a_place_to_stay() -> None:
    world, goal = ToyWorld(blur=0.3, drift=(0.02, 0.0, 0.0)), (0.45, 0.05, 0.2)
    problem = problem_at(world, goal, goal)
    stayed = GaussNewton(corrected=True).plan(world, problem)
    left = GaussNewton(corrected=False).plan(world, problem)
    assert stayed.rule == "hold" and not stayed.action7.any()
    assert np.linalg.norm(left.action7[:3]) > 0.01


def test_equal_seeds_give_equal_plans_and_other_seeds_other_draws() -> None:
    world = ToyWorld()
    plans = [CEM().plan(world, problem_at(world, (0.45, 0.0, 0.2), (0.5, 0.0, 0.2), seed)).action7 for seed in (3, 3, 4)]
    assert np.array_equal(plans[0], plans[1]) and not np.array_equal(plans[0], plans[2])


class Wanderer(PlannerConfig):
    """Walks in one direction whatever it sees, and says that this helps."""

    def plan(self, world: World, problem: Problem) -> Plan:
        return Plan(np.array([0.05, 0, 0, 0, 0, 0, 0]), 0.0, 1.0, 0, 0.0)


@pytest.mark.parametrize("steps", [4, 5, 6])
def test_stopping_returns_to_the_pose_of_least_measured_energy_within_the_budget(steps: int) -> None:
    world, robot, goal = ToyWorld(), ToyRobot((0.35, 0.0, 0.2)), np.array([0.40, 0.0, 0.2])
    gate = SafetyGate(SafetyLimits(workspace=WORKSPACE))
    result = run_episode(robot, world, Stopping(inner=Wanderer(), back=True), goal, steps, gate)
    assert np.allclose(robot.pose[:3], goal, atol=1e-6)
    assert len(result.commands) == steps and "return" in [command.plan.rule for command in result.commands if command.plan]
    without = ToyRobot((0.35, 0.0, 0.2))
    run_episode(without, world, Wanderer(), goal, steps, SafetyGate(SafetyLimits(workspace=WORKSPACE)))
    assert np.linalg.norm(without.pose[:3] - goal) > 0.1


def test_the_hold_rule_stands_still_when_no_plan_promises_less_energy() -> None:
    class Pessimist(Wanderer):
        def plan(self, world: World, problem: Problem) -> Plan:
            return Plan(np.array([0.05, 0, 0, 0, 0, 0, 0]), 1.0, 1.0, 0, 0.0)

    problem = problem_at(ToyWorld(), (0.45, 0.0, 0.2), (0.5, 0.0, 0.2))
    assert not Stopping(inner=Pessimist(), hold=True, back=False).plan(ToyWorld(), problem).action7.any()
    assert Stopping(inner=Pessimist(), hold=False, back=False).plan(ToyWorld(), problem).action7.any()


def test_an_episode_reaches_a_far_goal_and_logs_before_sending() -> None:
    world, robot, goal = ToyWorld(blur=0.2), ToyRobot((0.35, -0.1, 0.1)), np.array([0.55, 0.02, 0.3])
    seen: list[tuple[int, float]] = []
    result = run_episode(
        robot, world, GaussNewton(), goal, 8, SafetyGate(SafetyLimits(workspace=WORKSPACE)),
        on_command=lambda command: seen.append((command.step, robot.time)),
    )  # fmt: skip
    assert np.linalg.norm(robot.pose[:3] - goal) < 0.01
    assert seen == [(step, 0.5 * step) for step in range(8)]
    assert result.refused == 0 and len(result.energies) == 9 and result.energies[-1] < 0.1 * result.energies[0]


def test_a_dry_run_plans_everything_and_sends_nothing() -> None:
    world, robot, start = ToyWorld(), ToyRobot((0.35, 0.0, 0.2)), (0.35, 0.0, 0.2)
    result = run_episode(
        robot, world, GaussNewton(), np.array([0.5, 0.0, 0.2]), 3, SafetyGate(SafetyLimits(workspace=WORKSPACE)), send=False
    )
    assert np.array_equal(robot.pose[:3], start) and robot.time == 0.0
    assert [command.sent for command in result.commands] == [False] * 3
    assert all(command.decision.allowed for command in result.commands)


def test_a_robot_that_does_not_follow_is_stopped() -> None:
    world, robot = ToyWorld(), ToyRobot((0.35, 0.0, 0.2), error=0.05)
    gate = SafetyGate(SafetyLimits(workspace=WORKSPACE))
    result = run_episode(robot, world, GaussNewton(), np.array([0.36, 0.0, 0.2]), 6, gate)
    assert result.stopped is not None and robot.stopped == result.stopped and len(result.commands) == 2


@pytest.mark.parametrize("name", PLANNERS)
def test_a_planner_survives_the_round_trip_through_its_stored_configuration(name: str) -> None:
    planner = make_planner(name, box=0.05)
    assert make_planner(planner.model_dump(mode="json")) == planner


@pytest.mark.parametrize("config", ["magic", {"name": "cem", "sample": 3}, {"samples": 3}])
def test_an_unknown_planner_or_key_is_refused(config: object) -> None:
    with pytest.raises(InputError):
        make_planner(config)  # type: ignore[arg-type]


class LocalWorld(ToyWorld):
    """Frames of places more than some centimetres apart have nothing in common, as with a small arm in a large picture."""

    centres = torch.rand(3, 400, generator=torch.Generator().manual_seed(1)) * torch.tensor([[0.35], [0.6], [0.35]]) + torch.tensor([[0.3], [-0.3], [0.05]])

    def tokens_at(self, position: Tensor) -> Tensor:
        away = ((position.float()[..., :, None] - self.centres) ** 2).sum(dim=-2)
        return 4 * torch.exp(-away / (2 * 0.05**2)).unflatten(-1, (40, 10))


def test_the_map_holds_each_place_once_inside_the_region() -> None:
    world, pose = ToyWorld(), np.array([0.33, 0.1, 0.2, 0, 0, 0, 0])
    found = imagine(world, world.encode(pose[:3]), pose, spacing=0.075, region=WORKSPACE)
    low, high = np.transpose(WORKSPACE)
    assert len(np.unique(found.positions.round(6), axis=0)) == len(found.positions) == world.calls + 1
    assert (found.positions >= low - 0.026).all() and (found.positions <= high + 0.026).all()
    wanted = world.tokens_at(torch.as_tensor(found.positions))
    torch.testing.assert_close(found.tokens, wanted, atol=1e-4, rtol=0)


def test_the_map_finds_goals_that_local_search_is_blind_to() -> None:
    world, goal, ends = LocalWorld(), np.array([0.6, 0.22, 0.33]), []
    for planner in (MapNewton(region=WORKSPACE), GaussNewton()):
        robot = ToyRobot((0.33, -0.25, 0.08))
        run_episode(robot, world, planner, goal, 10, SafetyGate(SafetyLimits(workspace=WORKSPACE)))
        ends.append(float(np.linalg.norm(robot.pose[:3] - goal)))
    assert ends[0] < 0.01 and ends[1] > 0.1
