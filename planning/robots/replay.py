"""A recorded episode as a robot: it shows what was seen, and nothing anyone sends can change it."""

from __future__ import annotations

import numpy as np

from pipelines.episodes.episode import Episode
from planning.robots.robot import CommandResult, Observation, RobotInfo


class ReplayRobot:
    """Every observation is the next recorded one, the last one stays. Commands are not carried out and say so.

    For planning against recordings on a desk: an agent runs it dry, because commanded and recorded motion differ.
    """

    def __init__(self, episode: Episode) -> None:
        self.episode = episode
        self._index, self._sequence = -1, 0

    def info(self) -> RobotInfo:
        return RobotInfo(name="replay", driver="replay", real=False, step_s=self.episode.step_s)

    def connect(self) -> None:
        """Go back to before the first observation."""
        self._index = -1

    def clock(self) -> float:
        """Recorded time of the last observation, s from the first."""
        return float(self.episode.times_s[max(self._index, 0)])

    def observe(self) -> Observation:
        self._index = min(self._index + 1, len(self.episode) - 1)
        self._sequence += 1
        return Observation(
            self.episode.frames[self._index], self.episode.poses[self._index].copy(), self.clock(), self._sequence
        )

    def apply(self, delta7: np.ndarray, deadline_s: float) -> CommandResult:
        return CommandResult(np.zeros(7), self.episode.poses[max(self._index, 0)].copy(), self.clock(), "replayed")

    def hold(self) -> None:
        return None

    def stop(self, reason: str) -> None:
        return None

    def close(self) -> None:
        self.episode.__dict__.pop("frames", None)  # decoded frames are kept by the episode until then
