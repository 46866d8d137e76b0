"""The safety gate: every command passes it on its way to a robot, in the robot's own process, simulated or not.

A gate in software is no safety function: a real cell needs its hardware stop button.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pydantic

from pipelines.errors import InputError
from pipelines.recipes import Part

Bounds = tuple[float, float]


class SafetyLimits(Part):
    """What a command may be. Lengths m, angles rad, times s of the robot's own clock, base frame.

    max_delta and max_norm are the paper's box and its diagonal (0.075, sqrt(3) * 0.075 = 0.130).
    """

    workspace: tuple[Bounds, Bounds, Bounds]
    """Where the tool point may go, z floor included. No default: a gate without a box must not exist."""
    max_delta: float = 0.075
    max_norm: float = 0.13
    max_rotation: float = 0.15
    max_gripper: float = 0.75
    absurd: float = 10.0
    """A component beyond this many times its limit is a fault of the sender: refused, never clipped."""
    max_speed: float = 0.3
    """m/s, over the duration of one command."""
    max_age: float = 1.0
    """Oldest observation a command may rest on, s from capture, in the robot's time (simulation time if simulated)."""
    workspace_slack: float = 0.02
    """How far outside the box the arm may be found before the gate refuses to move it at all, m."""
    max_tracking_error: float = 0.03
    """Commanded against measured motion, m."""
    faults_to_latch: int = 3

    @pydantic.model_validator(mode="after")
    def _usable(self) -> SafetyLimits:
        numbers = [*np.ravel(self.workspace), self.max_delta, self.max_norm, self.max_rotation, self.max_gripper, self.max_speed, self.max_age]
        if not np.isfinite(numbers).all() or min(numbers[6:]) <= 0 or any(low >= high for low, high in self.workspace):
            raise ValueError("safety limits must be finite and positive, and each side of the workspace low < high")
        return self


@dataclass(frozen=True)
class Order:
    """A command on its way: delta7 as planned, and the observation it rests on (pose7, capture time, sequence number)."""

    action7: np.ndarray
    pose7: np.ndarray
    captured_s: float
    now_s: float
    sequence: int
    duration_s: float


@dataclass(frozen=True)
class Decision:
    """allowed: `action` (7,) may be sent. Otherwise `action` is None and the robot stays where it is.

    `clipped` and `reasons` name what was cut, or why it was refused.
    """

    allowed: bool
    action: np.ndarray | None
    clipped: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        values = dataclasses.asdict(self)
        return {**values, "action": None if self.action is None else [float(value) for value in self.action]}


class SafetyGate:
    """Checks orders one by one: latch, shape and finiteness, age, sequence, pose, absurdity, then clips.

    A refusal moves nothing and is one fault; the episode may go on. `faults_to_latch` faults since the last `reset`, or
    one `trip`, latch the gate: everything is refused until a person calls `reset`. Clipping is no fault.
    Targets outside the workspace are clipped to its surface, not refused: a planner at the edge slides along it. An arm
    found outside the box by more than `workspace_slack` is refused any motion.
    """

    def __init__(self, limits: SafetyLimits) -> None:
        self.limits = limits
        self.faults = self.tracking_errors = 0
        self.latched: str | None = None
        self._last_sequence: int | None = None

    def check(self, order: Order) -> Decision:
        """Decide on one order; never raises on what the order holds."""
        if self.latched is not None:
            return Decision(False, None, reasons=(f"latched: {self.latched}",))
        reason = self._refusal(order)
        if reason is not None:
            self.faults += 1
            if self.faults >= self.limits.faults_to_latch:
                self.latched = f"{self.faults} refused orders, the last: {reason}"
            return Decision(False, None, reasons=(reason,))
        self._last_sequence = order.sequence
        action, clipped = self._clip(np.asarray(order.action7, dtype=np.float64).copy(), np.asarray(order.pose7), order.duration_s)
        return Decision(True, action, clipped=tuple(clipped))

    def confirm(self, action7: np.ndarray, before: np.ndarray, after: np.ndarray) -> None:
        """Compare a sent command with the measured motion; the second error in a row latches (lost command, collision)."""
        error = float(np.linalg.norm(after[:3] - before[:3] - action7[:3]))
        self.tracking_errors = self.tracking_errors + 1 if not error <= self.limits.max_tracking_error else 0
        if self.tracking_errors >= 2:
            self.trip(f"the arm did not follow: {100 * error:.1f} cm from the commanded place")

    def trip(self, reason: str) -> None:
        """Latch now."""
        self.latched = self.latched or reason

    def reset(self) -> None:
        """Unlatch and forget faults. Only a person, or a test harness in a person's place, may call this."""
        self.faults = self.tracking_errors = 0
        self.latched = None

    def _refusal(self, order: Order) -> str | None:
        limits = self.limits
        try:
            action, pose = (np.asarray(values, dtype=np.float64) for values in (order.action7, order.pose7))
        except (TypeError, ValueError):
            return "not numbers"
        if action.shape != (7,) or pose.shape != (7,):
            return f"wrong shape: order {action.shape}, pose {pose.shape}"
        if not (np.isfinite(action).all() and np.isfinite(pose).all() and np.isfinite([order.captured_s, order.now_s]).all()):
            return "not finite"
        if not order.duration_s > 0:
            return "no duration"
        age = order.now_s - order.captured_s
        if age < 0:
            return f"observation from the future: {-age:.2f} s"
        if age > limits.max_age:
            return f"observation too old: {age:.2f} s"
        if self._last_sequence is not None and order.sequence <= self._last_sequence:
            return f"out of order: observation {order.sequence} after {self._last_sequence}"
        low, high = np.transpose(limits.workspace)
        if (pose[:3] < low - limits.workspace_slack).any() or (pose[:3] > high + limits.workspace_slack).any():
            return "the arm is outside its workspace"
        if np.abs(pose[3:6]).max() > 2 * np.pi or not 0 <= pose[6] <= 1:
            return "pose not in radians and 0..1 gripper"
        for part, limit, name in ((action[:3], limits.max_delta, "move"), (action[3:6], limits.max_rotation, "turn"), (action[6:], limits.max_gripper, "gripper")):
            if np.abs(part).max() > limits.absurd * limit:
                return f"absurd {name}: {np.abs(part).max():.3g}"
        return None

    def _clip(self, action: np.ndarray, pose: np.ndarray, duration_s: float) -> tuple[np.ndarray, list[str]]:
        limits, clipped = self.limits, []

        def note(name: str, before: np.ndarray, after: np.ndarray) -> np.ndarray:
            if not np.allclose(before, after, rtol=0, atol=1e-9):
                clipped.append(name)
            return after

        action[:3] = note("delta", action[:3], np.clip(action[:3], -limits.max_delta, limits.max_delta))
        action[3:6] = note("rotation", action[3:6], np.clip(action[3:6], -limits.max_rotation, limits.max_rotation))
        grip = np.clip(action[6:], -limits.max_gripper, limits.max_gripper)
        action[6:] = note("gripper", action[6:], np.clip(grip, -pose[6], 1.0 - pose[6]))
        low, high = np.transpose(limits.workspace)
        inside = np.clip(action[:3], low - pose[:3], high - pose[:3])
        # From just outside the way back in may be longer than a delta.
        action[:3] = note("workspace", action[:3], np.clip(inside, -limits.max_delta, limits.max_delta))
        # Shortening last keeps the target inside: the workspace is convex.
        for name, longest in (("norm", limits.max_norm), ("speed", limits.max_speed * duration_s)):
            length = float(np.linalg.norm(action[:3]))
            if length > longest:
                action[:3] = note(name, action[:3], action[:3] * (longest / length))
        return action, clipped


def limits_from(values: dict[str, Any]) -> SafetyLimits:
    """Limits from stored values; raises InputError: a robot without readable limits must not start."""
    try:
        return SafetyLimits.model_validate(values)
    except pydantic.ValidationError as error:
        raise InputError("these safety limits cannot be used", found=str(error), remedy="write safety.json anew with all limits") from error
