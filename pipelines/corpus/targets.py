"""Four labelled target sets whose classes only motion can tell apart: each film is shown forwards for one class and
backwards for the other, so that every single frame belongs to both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipelines.corpus.motions import CLOSED_ON_CUBE, LOW_Z, Command, between, move, random_cube
from pipelines.identity import stable_seed
from pipelines.simulation.appearance import Appearance
from pipelines.simulation.arm import WORKSPACE, SimulatedArm
from pipelines.simulation.motion import filmed, smooth_moves
from pipelines.simulation.scene import CUBE_SIDE_M
from pipelines.video.encode import write_video

SECONDS, FRAME_RATE, SIZE = 2.0, 10.0, 128
# Cube between the fingers with 1 mm of air on each side: it slides with the gripper whichever way that goes.
AROUND_CUBE = 1.0 - (CUBE_SIDE_M + 0.002) / 0.08


@dataclass(frozen=True)
class TargetPair:
    """One film and its reverse: two files, the first label forwards and the second backwards."""

    folder: str
    set_name: str
    split: str
    number: int
    seed: int

    @property
    def paths(self) -> tuple[str, str]:
        """The two files relative to the corpus: targets/<set>/<split>/<label>/<set>_NNNN.mp4."""
        base = f"targets/{self.set_name}/{self.split}"
        first, second = TARGETS[self.set_name].labels
        name = f"{self.set_name}_{self.number:04d}.mp4"
        return f"{base}/{first}/{name}", f"{base}/{second}/{name}"


@dataclass(frozen=True)
class TargetSet:
    """Labels (forwards, backwards) and the motion: it resets the arm, may move its camera, and returns the commands."""

    labels: tuple[str, str]
    motion: Callable[[SimulatedArm, np.random.Generator], list[Command]]


def _push(arm: SimulatedArm, random: np.random.Generator) -> list[Command]:
    """Left is the robot's left, +y."""
    way = between(random, 0.14, 0.20)
    middle = np.array([between(random, 0.36, 0.60), between(random, -0.15, 0.15)])
    start = middle - [0.0, way / 2]
    arm.reset((*start, LOW_Z), gripper=AROUND_CUBE, cube_xy=start, cube_yaw=0.0)
    return [move((0.0, way, 0.0), seconds=SECONDS)]


def _lift(arm: SimulatedArm, random: np.random.Generator) -> list[Command]:
    at = np.array([between(random, 0.36, 0.60), between(random, -0.24, 0.24)])
    arm.reset((*at, LOW_Z), gripper=AROUND_CUBE, cube_xy=at, cube_yaw=0.0)
    arm.command(move(gripper=CLOSED_ON_CUBE)[0])
    return [move((0.0, 0.0, between(random, 0.14, 0.22)), seconds=SECONDS)]


def _gripper(arm: SimulatedArm, random: np.random.Generator) -> list[Command]:
    """Seen from close by, drifting a little: the gripper is a few pixels wide in the whole view."""
    start, (cube, yaw) = random.uniform(*np.transpose(WORKSPACE)), random_cube(random)
    arm.reset(start, gripper=1.0, cube_xy=cube, cube_yaw=yaw)
    off = random.normal(0.0, 0.02, 3)
    target = (float(start[0] + off[0]), float(start[1] + off[1]), float(start[2] + off[2]) + 0.03)
    arm.set_appearance(replace(arm.appearance, target_m=target, distance_m=1.0, fovy_deg=between(random, 18.0, 24.0)))
    drift = smooth_moves(random, start, 2, max_delta=0.02)
    return [move(delta, gripper=-0.5, seconds=SECONDS / 2) for delta in drift]


def _reach(arm: SimulatedArm, random: np.random.Generator) -> list[Command]:
    cube = np.array([between(random, 0.38, 0.58), between(random, -0.2, 0.2)])
    goal = np.array([*cube, LOW_Z + between(random, 0.04, 0.06)])
    low, high = np.transpose(WORKSPACE)
    while True:
        way = random.normal(size=3)
        way *= between(random, 0.18, 0.26) / np.linalg.norm(way)
        start = goal + np.array([way[0], way[1], abs(way[2])])
        if ((start >= low) & (start <= high)).all():
            break
    arm.reset(start, gripper=0.0, cube_xy=cube, cube_yaw=between(random, 0.0, np.pi / 2))
    return [move(goal - start, seconds=SECONDS)]


TARGETS = {
    "push": TargetSet(("left", "right"), _push),
    "lift": TargetSet(("lift", "lower"), _lift),
    "gripper": TargetSet(("open", "close"), _gripper),
    "reach": TargetSet(("approach", "retreat"), _reach),
}


def plan_targets(folder: Path, *, seed: int, train: int, evaluation: int) -> list[TargetPair]:
    """All pairs; numbers run over both splits of a set, so that no name is used twice in it."""
    return [
        TargetPair(str(folder), set_name, "train" if number < train else "eval", number, seed)
        for set_name in TARGETS
        for number in range(train + evaluation)
    ]


def make_pair(arm: SimulatedArm, pair: TargetPair) -> None:
    """Write both files of a pair unless they are there; the content depends on (seed, set, number) alone."""
    first, second = (Path(pair.folder) / path for path in pair.paths)
    if first.is_file() and second.is_file():
        return
    random = np.random.default_rng(stable_seed("target", pair.seed, pair.set_name, pair.number))
    arm.height = arm.width = SIZE
    arm.set_appearance(Appearance().sample(random, strength=0.7))
    frames = list(filmed(arm, TARGETS[pair.set_name].motion(arm, random), FRAME_RATE, SECONDS))
    write_video(first, frames, FRAME_RATE)
    write_video(second, frames[::-1], FRAME_RATE)
