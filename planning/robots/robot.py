"""What a robot is to the controller: observe, apply a bounded delta, hold, stop. Base frame, m, rad, gripper 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from models.errors import TubeletError


class RobotError(TubeletError):
    """A driver cannot do what it was asked."""


@dataclass(frozen=True)
class RobotInfo:
    """`real`: a body that can hurt somebody. `step_s`: duration of one command, s, blocking (the next observation is at rest)."""

    name: str
    driver: str
    real: bool
    step_s: float
    base_frame: str = "base"


@dataclass(frozen=True)
class Observation:
    """image (H, W, 3) uint8 RGB; pose7 (7,) float64 measured; time_s of capture in the robot's clock; seq grows."""

    image: np.ndarray
    pose7: np.ndarray
    time_s: float
    seq: int


@dataclass(frozen=True)
class CommandResult:
    """sent: delta7 given to the body; pose7 measured afterwards; time_s then; status ok, late, stopped or replayed."""

    sent: np.ndarray
    pose7: np.ndarray
    time_s: float
    status: str = "ok"


class Robot(Protocol):
    """A driver. `stop` may come at any time, twice, and from any thread; after it nothing moves."""

    def info(self) -> RobotInfo: ...

    def connect(self) -> None: ...

    def clock(self) -> float:
        """Now, s, in the clock of `Observation.time_s`."""
        ...

    def observe(self) -> Observation: ...

    def apply(self, delta7: np.ndarray, deadline_s: float) -> CommandResult:
        """Carry out an end-effector delta that a safety gate has allowed, unless `deadline_s` (own clock) has passed."""
        ...

    def hold(self) -> None:
        """Stay at the present pose for the duration of one command."""
        ...

    def stop(self, reason: str) -> None: ...

    def close(self) -> None: ...
