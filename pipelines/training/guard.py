"""When a training must stop: on request, or because its numbers are no longer finite."""

from __future__ import annotations

import signal
from collections import deque
from types import FrameType
from typing import Any

from pipelines.errors import TrainingError


class GuardStop(TrainingError):
    """Too many steps without finite gradients."""


class Stopped(Exception):
    """The training was asked to stop and has written its checkpoint."""


class Guard:
    """Counts refused steps. `in_row` together, or `limit` within `window` steps, end the training."""

    def __init__(self, in_row: int = 3, limit: int = 10, window: int = 1000) -> None:
        self.in_row, self.limit, self.window = in_row, limit, window
        self.row = 0
        self.refused: deque[int] = deque(maxlen=limit)

    def note(self, step: int, moved: bool, samples: list[str]) -> None:
        """Record whether the weights moved at `step`; raises `GuardStop` naming the samples of this rank's last batch."""
        if moved:
            self.row = 0
            return
        self.row += 1
        self.refused.append(step)
        crowded = len(self.refused) == self.limit and step - self.refused[0] < self.window
        if self.row >= self.in_row or crowded:
            raise GuardStop(
                f"the gradient was not finite in steps {', '.join(map(str, list(self.refused)[-self.in_row:]))}",
                expected=f"fewer than {self.in_row} in a row and {self.limit} in {self.window}", found=f"samples {', '.join(samples[:8])}",
                remedy="look at these clips, lower the learning rate or set clip_grad_norm, then start again from the newest checkpoint",
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {"row": self.row, "refused": list(self.refused)}

    def restore(self, values: dict[str, Any]) -> None:
        self.row = values["row"]
        self.refused = deque(values["refused"], maxlen=self.limit)


class StopRequest:
    """While entered, SIGTERM and SIGUSR1 (a scheduler's warning) set `asked` instead of ending the process."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
