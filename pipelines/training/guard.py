"""When a training must stop: on request, or because its numbers are no longer worth going on with."""

from __future__ import annotations

import signal
import statistics
from collections import deque
from collections.abc import Sequence
from types import FrameType
from typing import Any, Literal

from pipelines.errors import TrainingError

SpikeRule = Literal["log", "clip", "stop"]

RECENT = 200
ENOUGH = 50
"""Steps before anything is called a spike."""
DEVIATIONS = 6.0
"""Median absolute deviations above the median; of normal noise, four standard deviations."""


class GuardStop(TrainingError):
    """The training's numbers are not worth going on with. `steps` (from 1) are those that led to it."""

    steps: tuple[int, ...] = ()


class Stopped(Exception):
    """The training was asked to stop and has written its checkpoint."""


class Guard:
    """Counts refused steps and spikes. All ranks keep the same numbers, so all decide alike.

    `in_row` steps that were refused because their gradient was not finite, or `limit` within `window` steps, end the training. A
    step is a spike when its loss or gradient norm is above the median of the last `RECENT` by `DEVIATIONS` times their median
    absolute deviation. Spikes are counted ("log"), or their gradient is scaled down to that height ("clip"), or `in_row` of
    them end the training ("stop"). Upstream has none of this.
    """

    def __init__(self, spikes: SpikeRule = "log", in_row: int = 3, limit: int = 10, window: int = 1000) -> None:
        self.spikes, self.in_row, self.limit, self.window = spikes, in_row, limit, window
        self.refused_row: list[int] = []
        self.spike_row: list[int] = []
        self.refused: deque[int] = deque(maxlen=limit)
        self.losses: deque[float] = deque(maxlen=RECENT)
        self.norms: deque[float] = deque(maxlen=RECENT)

    def clip(self, configured: float | None) -> float | None:
        """The largest gradient norm the next step may have."""
        usual = height(self.norms) if self.spikes == "clip" else None
        return min((limit for limit in (configured, usual) if limit is not None), default=None)

    def note(self, step: int, moved: bool, loss: float, norm: float) -> bool:
        """Record step `step` (from 1): whether the weights moved, its loss and gradient norm over all ranks. Returns whether it
        was a spike; raises `GuardStop`."""
        if not moved:
            self.refused_row.append(step)
            self.refused.append(step)
            crowded = len(self.refused) == self.limit and step - self.refused[0] < self.window
            if len(self.refused_row) >= self.in_row or crowded:
                raise stop_of(
                    list(self.refused if crowded else self.refused_row), "the gradient was not finite",
                    f"fewer than {self.in_row} such steps in a row and {self.limit} in {self.window}",
                )  # fmt: skip
            return False
        self.refused_row.clear()
        spike = any(limit is not None and value > limit for value, limit in ((loss, height(self.losses)), (norm, height(self.norms))))
        self.losses.append(loss)
        self.norms.append(norm)
        self.spike_row = [*self.spike_row, step] if spike else []
        if self.spikes == "stop" and len(self.spike_row) >= self.in_row:
            raise stop_of(self.spike_row, "loss or gradient norm left their recent range", f"fewer than {self.in_row} such steps in a row")
        return spike

    def to_dict(self) -> dict[str, Any]:
        return {
            "refused_row": self.refused_row, "spike_row": self.spike_row, "refused": list(self.refused), "losses": list(self.losses),
            "norms": list(self.norms),
        }  # fmt: skip

    def restore(self, values: dict[str, Any]) -> None:
        self.refused_row, self.spike_row = list(values["refused_row"]), list(values["spike_row"])
        for numbers, name in ((self.refused, "refused"), (self.losses, "losses"), (self.norms, "norms")):
            numbers.clear()
            numbers.extend(values[name])


def height(recent: Sequence[float] | deque[float]) -> float | None:
    """What a usual step stays below, None while too few are known."""
    if len(recent) < ENOUGH:
        return None
    median = statistics.median(recent)
    return median + DEVIATIONS * statistics.median(abs(value - median) for value in recent)


def stop_of(steps: list[int], what: str, expected: str) -> GuardStop:
    error = GuardStop(
        f"{what} in steps {', '.join(map(str, steps))}", expected=expected, found=f"{len(steps)}",
        remedy="lower the learning rate, set clip_grad_norm or spikes: clip in the recipe, or look at the clips named in refused.json and "
        "start again with exclude_refused: the training goes on from the newest checkpoint without them",
    )  # fmt: skip
    error.steps = tuple(steps)
    return error


class StopRequest:
    """While entered, SIGTERM, SIGUSR1 (a scheduler's warning) and Ctrl-C set `asked` instead of ending the process; a second Ctrl-C
    ends it at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
