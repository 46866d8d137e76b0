"""A recorded episode as a robot: it shows what was seen, takes commands, and moves on by its own recording."""

from __future__ import annotations

import numpy as np

from pipelines.episodes.episode import Episode
from planning.robots.robot import CommandResult, Observation, RobotInfo


class ReplayRobot:
    """Every command, whatever it says, advances one recorded step; the last observation then stays.

    What it was sent is kept in `received`. For planning against recordings and for dry runs on a desk: nothing moves, so
    commanded and recorded motion differ, and a gate's tracking check will say so unless the run is dry.
    """

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self.received: list[np.ndarray] = []
        self._index = self._sequence = 0
        self._stopped: str | None = None

    def info(self) -> RobotInfo:
        return RobotInfo(name="replay", driver="replay", real=False, step_s=self.episode.step_s)

    def connect(self) -> None:
        self._index = 0

    def clock(self) -> float:
        """Recorded time, s from the first observation."""
        return float(self.episode.times_s[self._index])

    def observe(self) -> Observation:
        self._sequence += 1
        return Observation(
            self.episode.frames[self._index], self.episode.poses[self._index].copy(), self.clock(), self._sequence
        )

    def apply(self, delta7: np.ndarray, deadline_s: float) -> CommandResult:
        late = self.clock() > deadline_s
        if self._stopped is None and not late:
            self.received.append(np.asarray(delta7, dtype=np.float64))
            self._advance()
        status = "stopped" if self._stopped else "late" if late else "ok"
        return CommandResult(np.asarray(delta7, dtype=np.float64), self.episode.poses[self._index].copy(), self.clock(), status)

    def hold(self) -> None:
        if self._stopped is None:
            self._advance()

    def stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason

    def close(self) -> None:
        self.episode.__dict__.pop("frames", None)  # decoded frames are kept by the episode until then

    def _advance(self) -> None:
        self._index = min(self._index + 1, len(self.episode) - 1)
