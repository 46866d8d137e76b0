"""Receding horizon: look, plan, pass the gate, execute one command, look again. Evaluation and the agent both run this."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipelines.identity import stable_seed
from planning.energy import latent_energy
from planning.planners.problem import Plan, Planner, Problem, Visit, World
from planning.robots.robot import Observation, Robot
from planning.safety import Decision, Order, SafetyGate

DEADLINE_STEPS = 1.0
"""A command that could not start within this many command durations of its decision is not carried out."""


class SeeingWorld(World, Protocol):
    """A world model that also reads images."""

    def encode(self, image: np.ndarray) -> Tensor: ...


@dataclass(frozen=True)
class Command:
    """One command as it is logged before it is sent. Poses and actions (7,), energy measured now and predicted."""

    step: int
    pose7: np.ndarray
    raw: np.ndarray
    decision: Decision
    energy: float
    plan: Plan | None
    sent: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; numbers that are not finite become text, so that the log stays readable JSON."""
        plan = self.plan
        return {
            "step": self.step, "pose7": _plain(self.pose7), "raw": _plain(self.raw), "gate": self.decision.to_dict(),
            "energy": _number(self.energy), "sent": self.sent,
            "rule": plan.rule if plan else None, "predicted_energy": _number(plan.energy) if plan else None,
            "predicted_hold_energy": _number(plan.hold_energy) if plan else None,
            "calls": plan.calls if plan else 0, "plan_seconds": plan.seconds if plan else 0.0,
        }  # fmt: skip


@dataclass
class EpisodeResult:
    """What happened. `observations` has one entry more than `commands`; `energies` are measured, one per observation."""

    commands: list[Command] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    energies: list[float] = field(default_factory=list)
    encode_seconds: float = 0.0
    stopped: str | None = None

    @property
    def refused(self) -> int:
        return sum(not command.decision.allowed for command in self.commands)

    @property
    def clipped(self) -> int:
        return sum(bool(command.decision.clipped) for command in self.commands)

    @property
    def calls(self) -> int:
        return sum(command.plan.calls for command in self.commands if command.plan)

    @property
    def seconds(self) -> float:
        """Time spent seeing and planning, s."""
        return self.encode_seconds + sum(command.plan.seconds for command in self.commands if command.plan)


def dispatch(
    robot: Robot, gate: SafetyGate, observation: Observation, raw: np.ndarray, *, step: int = -1, energy: float = math.nan,
    plan: Plan | None = None, send: bool = True, on_command: Callable[[Command], None] | None = None,
) -> Command:  # fmt: skip
    """The only way a command reaches a robot: gate, log, then send. A refused command makes the robot hold; with `send`
    False (dry run) nothing at all is sent."""
    info, now = robot.info(), robot.clock()
    decision = gate.check(Order(raw, observation.pose7, observation.time_s, now, observation.seq, info.step_s))
    sent = send and decision.allowed
    command = Command(step, observation.pose7, np.asarray(raw), decision, energy, plan, sent)
    if on_command:
        on_command(command)
    if sent and decision.action is not None:
        result = robot.apply(decision.action, now + DEADLINE_STEPS * info.step_s)
        gate.confirm(decision.action, observation.pose7, result.pose7)
    elif send:
        robot.hold()
    return command


def run_episode(
    robot: Robot, world_model: SeeingWorld, planner: Planner, goal_image: np.ndarray, steps: int, gate: SafetyGate, *,
    seed: int = 0, send: bool = True, on_command: Callable[[Command], None] | None = None,
    on_observation: Callable[[Observation], None] | None = None,
) -> EpisodeResult:  # fmt: skip
    """Drive a connected robot towards a goal image for at most `steps` commands.

    `send` False is a dry run: everything is planned, gated and logged, nothing moves. `on_command` is called before a
    command is sent, `on_observation` when the robot is at rest again after each. A latched gate stops the robot and ends
    the episode.
    """
    result, goal_tokens, visits = EpisodeResult(), world_model.encode(goal_image), []

    def look() -> Tensor:
        observation = robot.observe()
        started = time.perf_counter()
        tokens = world_model.encode(observation.image)
        result.encode_seconds += time.perf_counter() - started
        result.observations.append(observation)
        result.energies.append(float(latent_energy(tokens[None], goal_tokens)))
        visits.append(Visit(observation.pose7, tokens, result.energies[-1]))
        return tokens

    tokens, target = look(), None
    for step in range(steps):
        observation = result.observations[-1]
        problem = Problem(tokens, goal_tokens, observation.pose7, tuple(visits), steps - step, stable_seed("plan", seed, step), target)
        plan = planner.plan(world_model, problem)
        target = plan.target
        result.commands.append(
            dispatch(
                robot, gate, observation, plan.action7, step=step, energy=result.energies[-1], plan=plan, send=send,
                on_command=on_command,
            )
        )  # fmt: skip
        if gate.latched is not None:
            robot.stop(gate.latched)
            result.stopped = gate.latched
            break
        tokens = look()
        if on_observation:
            on_observation(result.observations[-1])
    return result


def _plain(values: np.ndarray) -> list[Any]:
    return [_number(value) for value in np.ravel(values)]


def _number(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))
