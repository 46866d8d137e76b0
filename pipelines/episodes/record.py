"""Recording the simulated arm in DROID's raw layout, so that our own robot data enter by the same door as real ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pipelines.errors import InputError
from pipelines.identity import digest_of, stable_seed
from pipelines.simulation.appearance import camera_pose
from pipelines.simulation.arm import COMMAND_S, CUBE_REGION, WORKSPACE, SimulatedArm
from pipelines.simulation.motion import MAX_DELTA_M, smooth_moves
from pipelines.simulation.recorded import recorded_folder
from pipelines.simulation.rendering import require_gl
from pipelines.video.encode import ffmpeg_binary, write_video
from pipelines.video.workers import map_killable

VERSION = 1
LAB, SERIAL, USER = "TUBELET", "10000001", "simulator"
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
# DROID's own mp4 files carry the camera's 60 Hz in their header while their frames are one per control step; ours do
# the same, so that a reader that trusts the header fails here and not on the real robot.
HEADER_FPS = 60
EPISODE_LIMIT_S = 300.0


@dataclass(frozen=True)
class EpisodePlan:
    """What one episode is made from: nothing else decides its bytes."""

    folder: str
    seed: int
    index: int
    steps: int
    height: int
    width: int


def record_simulated(
    folder: Path, *, episodes: int, steps: int, seed: int, height: int = 96, width: int = 96, workers: int = 2,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Record `episodes` of `steps` observations each, `COMMAND_S` of physical time apart; returns the summary.

    Layout: TUBELET/success/<date>/<name>/{trajectory.h5, metadata_<uuid>.json, recordings/MP4/<serial>.mp4}, and
    recording.json last. Cached: the same request returns at once; an interrupted one goes on. Each episode depends on
    (seed, its index) alone. Raises RenderingError or EncodeError when this machine cannot render or encode.
    """
    if episodes < 1 or steps < 2:
        raise InputError("nothing to record", expected="episodes >= 1, steps >= 2", found=f"{episodes} x {steps}")
    request = {
        "version": VERSION, "episodes": episodes, "steps": steps, "seed": seed, "height": height, "width": width,
    }  # fmt: skip

    def build(filling: Path) -> dict[str, Any]:
        require_gl()
        ffmpeg_binary()
        plans = [EpisodePlan(str(filling), seed, index, steps, height, width) for index in range(episodes)]
        outcomes = map_killable(
            "pipelines.episodes.record:record_episode",
            plans,
            workers=workers,
            timeout_s=EPISODE_LIMIT_S,
            progress=progress,
        )
        for outcome in outcomes:
            if outcome.failure is not None:
                raise InputError("recording an episode failed", found=f"{outcome.failure}: {outcome.detail}")
        moves = np.array([outcome.value for outcome in outcomes])
        return {
            "episodes": episodes, "frames": episodes * steps, "seconds": episodes * (steps - 1) * COMMAND_S,
            "step_s": COMMAND_S, "mean_move_m": round(float(moves.mean()), 4),
        }  # fmt: skip

    return recorded_folder(folder, "recording.json", request, build)


@lru_cache(maxsize=1)
def _arm(height: int, width: int) -> SimulatedArm:
    # Kept by a worker process over its episodes; `reset` is told everything, so nothing passes between them.
    return SimulatedArm(0, height=height, width=width)


def record_episode(plan: EpisodePlan) -> float:
    """Record one episode below `plan.folder` unless it is there; returns the mean length of its moves in m."""
    identity = digest_of(["simulated episode", VERSION, plan.seed, plan.index, plan.steps, plan.height, plan.width])
    when = EPOCH + timedelta(minutes=plan.index)
    uuid = f"{LAB}+{identity[:8]}+{when:%Y-%m-%d-%Hh-%Mm-%Ss}"
    relative = Path(LAB) / "success" / f"{when:%Y-%m-%d}" / f"{when:%a_%b_%d_%H:%M:%S_%Y}"
    folder = Path(plan.folder) / relative
    metadata = folder / f"metadata_{uuid}.json"
    if metadata.is_file():
        return float(json.loads(metadata.read_text())["mean_move_m"])
    random = np.random.default_rng(stable_seed("simulated episode", plan.seed, plan.index))
    arm = _arm(plan.height, plan.width)
    start = random.uniform(*np.transpose(WORKSPACE))
    cube, yaw = random.uniform(*np.transpose(CUBE_REGION)), float(random.uniform(0.0, np.pi / 2))
    arm.reset(start, gripper=0.0, cube_xy=cube, cube_yaw=yaw)
    # The last observation has no successor: its recorded action is to stay.
    moves = np.concatenate([smooth_moves(random, start, plan.steps - 1), np.zeros((1, 3))])
    targets = start + np.cumsum(moves, axis=0)
    rows: dict[str, list[Any]] = {name: [] for name in ("pose", "joints", "cube", "time", "target")}
    frames, began = [], arm.time_s
    for step in range(plan.steps):
        pose = arm.pose7()
        # Aim at the planned point, not at the measured one plus a move: servo errors must not walk out of the box.
        delta = np.array([*(targets[step] - pose[:3]), 0.0, 0.0, 0.0, 0.0])
        frames.append(arm.render())
        for name, value in (
            ("pose", pose), ("joints", arm.joint_positions()), ("cube", arm.cube_position()),
            ("time", round((arm.time_s - began) * 1e6) * 1000), ("target", pose + delta),
        ):  # fmt: skip
            rows[name].append(value)
        if step + 1 < plan.steps:
            arm.command(delta)
    folder.mkdir(parents=True, exist_ok=True)
    write_video(folder / "recordings" / "MP4" / f"{SERIAL}.mp4", frames, HEADER_FPS, crf=14, gop=plan.steps)
    arrays = {name: np.asarray(values) for name, values in rows.items()}
    _write_h5(folder / "trajectory.h5", arrays, when, camera_pose(arm.appearance))
    mean_move = float(np.linalg.norm(np.diff(arrays["pose"][:, :3], axis=0), axis=1).mean())
    # Last, because a resumed recording takes this file as proof of the whole episode.
    metadata.write_text(
        json.dumps(
            {
                "uuid": uuid,
                "lab": LAB,
                "user": USER,
                "user_id": identity[:8],
                "date": f"{when:%Y-%m-%d}",
                "timestamp": f"{when:%Y-%m-%d-%Hh-%Mm-%Ss}",
                "hdf5_path": f"{relative}/trajectory.h5",
                "building": "MuJoCo",
                "scene_id": 0,
                "success": True,
                "robot_serial": "simulated-panda",
                "droid_version": 1.0,
                "current_task": "move freely",
                "trajectory_length": plan.steps,
                "ext1_cam_serial": SERIAL,
                "ext1_mp4_path": f"{relative}/recordings/MP4/{SERIAL}.mp4",
                "mean_move_m": round(mean_move, 5),
                "licence": "MIT",
            },
            indent=1,
        )
    )
    return mean_move


def _write_h5(path: Path, rows: dict[str, np.ndarray], when: datetime, camera: tuple[np.ndarray, np.ndarray]) -> None:
    """`trajectory.h5` with DROID's keys; units m, rad, ms, and integer seconds and nanoseconds of the robot's clock."""
    from scipy.spatial.transform import Rotation

    steps = len(rows["pose"])
    # MuJoCo cameras look along -z with y up; DROID's (OpenCV) look along +z with y down.
    extrinsics = np.concatenate(
        [camera[0], Rotation.from_matrix(camera[1] @ np.diag([1.0, -1.0, -1.0])).as_euler("xyz")]
    )
    nanos = rows["time"] + int(when.timestamp()) * 1_000_000_000
    moved = rows["target"] - rows["pose"]
    state = {
        "cartesian_position": rows["pose"][:, :6], "gripper_position": rows["pose"][:, 6], "joint_positions": rows["joints"],
    }  # fmt: skip
    datasets: dict[str, np.ndarray] = {
        "action/cartesian_position": rows["target"][:, :6],
        "action/target_cartesian_position": rows["target"][:, :6],
        "action/cartesian_velocity": moved[:, :6] / MAX_DELTA_M,
        "action/gripper_position": rows["target"][:, 6],
        "action/target_gripper_position": rows["target"][:, 6],
        "action/gripper_velocity": moved[:, 6],
        "observation/timestamp/robot_state/robot_timestamp_seconds": nanos // 1_000_000_000,
        "observation/timestamp/robot_state/robot_timestamp_nanos": nanos % 1_000_000_000,
        f"observation/timestamp/cameras/{SERIAL}_estimated_capture": nanos // 1_000_000,
        "observation/timestamp/control/step_start": nanos // 1_000_000,
        "observation/timestamp/skip_action": np.zeros(steps, bool),
        "observation/controller_info/movement_enabled": np.ones(steps, bool),
        f"observation/camera_type/{SERIAL}": np.full(steps, 2),
        f"observation/camera_extrinsics/{SERIAL}_left": np.tile(extrinsics, (steps, 1)),
        "observation/simulator/cube_position": rows["cube"],
    }
    for name, values in state.items():
        datasets[f"observation/robot_state/{name}"] = datasets[f"action/robot_state/{name}"] = values
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
        for name, values in datasets.items():
            file.create_dataset(name, data=values)
        file.attrs.update(
            user=USER, building="MuJoCo", scene_id=0, success=True, failure=False, current_task="move freely",
            robot_serial_number="simulated-panda", version_number=1.0, time=f"{when:%a %b %d %H:%M:%S %Y}",
        )  # fmt: skip
    partial.replace(path)
