"""What the pool's films show: the arm moving, pushing, lifting and gripping; loose objects; a moving camera; nothing.

Every film is a function of (arm, random numbers, seconds, frame rate) that yields `(H, W, 3)` uint8 frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from pipelines.simulation.arm import CUBE_REGION, WORKSPACE, SimulatedArm
from pipelines.simulation.motion import filmed, smooth_moves
from pipelines.simulation.rendering import SceneRenderer, load_mujoco
from pipelines.simulation.scene import CUBE_SIDE_M, TIMESTEP_S, LooseObject, objects_scene

Film = Callable[[SimulatedArm, np.random.Generator, float, float], Iterator[np.ndarray]]
Command = tuple[np.ndarray, float]
LOW_Z = CUBE_SIDE_M / 2
CLOSED_ON_CUBE = 1.0


def move(way: Sequence[float] | np.ndarray = (0.0, 0.0, 0.0), *, gripper: float = 0.0, seconds: float = 0.5) -> Command:
    """A command along `way` (m, base frame) and by a change of closedness."""
    return np.array([*way, 0.0, 0.0, 0.0, gripper]), seconds


def between(random: np.random.Generator, low: float, high: float) -> float:
    return float(random.uniform(low, high))


def random_cube(random: np.random.Generator) -> tuple[np.ndarray, float]:
    """Where a cube lies (x, y) and its yaw (rad)."""
    return random.uniform(*np.transpose(CUBE_REGION)), between(random, 0.0, np.pi / 2)


def free_motion(
    arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float
) -> Iterator[np.ndarray]:
    """The arm moves smoothly through its whole workspace; now and then the gripper opens or closes."""
    start, (cube, yaw) = random.uniform(*np.transpose(WORKSPACE)), random_cube(random)
    closed = between(random, 0.0, 1.0) if random.random() < 0.3 else 0.0
    arm.reset(start, gripper=closed, cube_xy=cube, cube_yaw=yaw)
    step_s = between(random, 0.4, 0.7)
    commands = []
    for delta in smooth_moves(random, start, int(seconds / step_s) + 1):
        target = closed if random.random() > 0.08 else float(random.integers(2))
        commands.append(move(delta, gripper=target - closed, seconds=step_s))
        closed = target
    return filmed(arm, commands, frame_rate, seconds)


def pushing(arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float) -> Iterator[np.ndarray]:
    """The closed gripper comes to the cube from one side, pushes it over the table, and draws back."""
    cube, angle = np.array([between(random, 0.40, 0.54), between(random, -0.15, 0.15)]), between(random, 0.0, 2 * np.pi)
    way = np.array([np.cos(angle), np.sin(angle)])
    arm.reset((*(cube - 0.10 * way), LOW_Z), gripper=1.0, cube_xy=cube, cube_yaw=angle % (np.pi / 2))
    far, back = between(random, 0.14, 0.19), between(random, 0.05, 0.12)
    half = max(1.0, 0.45 * seconds)
    commands = [move((*(far * way), 0.0), seconds=half), move((*(-back * way), 0.05), seconds=seconds - half)]
    return filmed(arm, commands, frame_rate, seconds)


def lifting(arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float) -> Iterator[np.ndarray]:
    """The open gripper comes down on the cube, closes, lifts it, and carries it sideways."""
    cube = np.array([between(random, 0.36, 0.58), between(random, -0.22, 0.22)])
    height, rise = between(random, 0.10, 0.20), between(random, 0.10, 0.22)
    arm.reset((*cube, LOW_Z + height), gripper=0.0, cube_xy=cube, cube_yaw=0.0)
    part = seconds / 4
    commands = [
        move((0.0, 0.0, -height), seconds=part), move(gripper=CLOSED_ON_CUBE, seconds=0.6 * part), move((0.0, 0.0, rise), seconds=part),
        move((between(random, -0.06, 0.06), between(random, -0.12, 0.12), 0.0), seconds=1.4 * part),
    ]  # fmt: skip
    return filmed(arm, commands, frame_rate, seconds)


def gripping(arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float) -> Iterator[np.ndarray]:
    """The gripper opens and closes in turn while the arm hardly moves."""
    start, (cube, yaw) = random.uniform(*np.transpose(WORKSPACE)), random_cube(random)
    closed = float(random.integers(2))
    arm.reset(start, gripper=closed, cube_xy=cube, cube_yaw=yaw)
    commands = []
    for delta in smooth_moves(random, start, int(seconds) + 1, max_delta=0.02):
        commands.append(move(delta, gripper=1.0 - 2.0 * closed, seconds=1.0))
        closed = 1.0 - closed
    return filmed(arm, commands, frame_rate, seconds)


def standing_still(
    arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float
) -> Iterator[np.ndarray]:
    """Nothing moves."""
    cube, yaw = random_cube(random)
    arm.reset(random.uniform(*np.transpose(WORKSPACE)), gripper=0.0, cube_xy=cube, cube_yaw=yaw)
    frame = arm.render()
    return (frame for _ in range(round(seconds * frame_rate)))


def panning(arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float) -> Iterator[np.ndarray]:
    """The camera goes round the still arm, rises and closes in."""
    cube, yaw = random_cube(random)
    arm.reset(random.uniform(*np.transpose(WORKSPACE)), gripper=0.0, cube_xy=cube, cube_yaw=yaw)
    look, frames = arm.appearance, round(seconds * frame_rate)
    sweep = between(random, 8.0, 14.0) * seconds * random.choice([-1.0, 1.0])
    rise, zoom = between(random, -8.0, 12.0), between(random, 0.8, 1.15)
    for index in range(frames):
        share = index / max(1, frames - 1)
        arm.set_appearance(
            replace(
                look,
                azimuth_deg=look.azimuth_deg + sweep * (share - 0.5),
                elevation_deg=look.elevation_deg + rise * share,
                distance_m=look.distance_m * zoom**share,
            )
        )
        yield arm.render()
    arm.set_appearance(look)


def objects_film(kind: str) -> Film:
    """Loose objects without the arm: `fall` drops them on the table in turn, `slide` sends them over it or down a ramp."""

    def film(arm: SimulatedArm, random: np.random.Generator, seconds: float, frame_rate: float) -> Iterator[np.ndarray]:
        mj = load_mujoco()
        look = arm.appearance
        objects = [_random_object(random) for _ in range(int(random.integers(2, 6)))]
        ramp = between(random, 0.3, 0.5) if kind == "slide" and random.random() < 0.5 else 0.0
        model = mj.MjModel.from_xml_string(
            objects_scene(
                objects,
                table_rgb=look.table_rgb,
                table_pattern=look.table_pattern,
                floor_rgb=look.floor_rgb,
                light=look.light,
                ramp_tilt_rad=ramp,
            )
        )
        data = mj.MjData(model)
        # Each waits out of sight, at rest in free fall's way, until its turn.
        turns = np.sort(random.uniform(0.0, 0.6 * seconds, len(objects)))
        turns[0] = 0.0
        starts = [_start(kind, ramp > 0, random) for _ in objects]
        renderer = SceneRenderer(model)
        camera = renderer.orbit_camera((0.4, 0.0, 0.08), 1.35, look.azimuth_deg + 180.0, -look.elevation_deg)
        try:
            step = 0
            for index in range(round(seconds * frame_rate)):
                due = round(index / frame_rate / TIMESTEP_S)
                while step < due or step == 0:
                    for item, turn in enumerate(turns):
                        if step == round(turn / TIMESTEP_S):
                            data.qpos[7 * item : 7 * item + 7], data.qvel[6 * item : 6 * item + 6] = starts[item]
                    mj.mj_step(model, data)
                    step += 1
                yield renderer.render(data, camera, arm.height, arm.width)
        finally:
            renderer.close()

    return film


def _random_object(random: np.random.Generator) -> LooseObject:
    shape = str(random.choice(["box", "sphere", "capsule", "cylinder"]))
    size = random.uniform(0.03, 0.06, 3)
    colour = random.uniform(0.05, 0.95, 3)
    colour[int(random.integers(3))] *= 0.2
    below = (0.4, 0.0, -3.0 - 0.3 * float(random.random()))
    return LooseObject(shape, tuple(map(float, size)), below, tuple(map(float, colour)))  # type: ignore[arg-type]


def _start(kind: str, on_ramp: bool, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Position with quaternion (7,) and velocity (6,) of an object at its turn."""
    quaternion = random.normal(size=4)
    quaternion /= np.linalg.norm(quaternion)
    if kind == "fall":
        position = np.array([between(random, 0.2, 0.6), between(random, -0.25, 0.25), between(random, 0.35, 0.55)])
        return np.concatenate([position, quaternion]), np.concatenate(
            [random.normal(0, 0.2, 3), random.normal(0, 3.0, 3)]
        )
    upright = np.array([1.0, 0.0, 0.0, 0.0])
    if on_ramp:
        position = np.array([0.12, between(random, -0.2, 0.2), 0.32])
        return np.concatenate([position, upright]), np.zeros(6)
    side = float(random.choice([-1.0, 1.0]))
    position = np.array([between(random, 0.2, 0.6), 0.45 * side, 0.05])
    velocity = np.array([random.normal(0, 0.15), -side * between(random, 0.8, 1.5), 0.0])
    return np.concatenate([position, upright]), np.concatenate([velocity, np.zeros(3)])


FILMS: dict[str, Film] = {
    "free": free_motion, "push": pushing, "lift": lifting, "grip": gripping, "still": standing_still, "pan": panning,
    "fall": objects_film("fall"), "slide": objects_film("slide"),
}  # fmt: skip
