"""One robot episode, and the arithmetic between its poses and its actions."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.errors import InputError
from pipelines.schemas import EPISODES, STEPS, read_table

POSE_COLUMNS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


class EpisodeRejectCode(enum.StrEnum):
    """Why a recorded episode was not taken."""

    MISSING_H5 = "missing_h5"
    UNREADABLE_H5 = "unreadable_h5"
    MISSING_FIELD = "missing_field"
    MISSING_MP4 = "missing_mp4"
    UNREADABLE_MP4 = "unreadable_mp4"
    LENGTH_MISMATCH = "length_mismatch"
    TOO_SHORT = "too_short"
    NON_FINITE = "non_finite"
    EULER_IN_DEGREES = "euler_in_degrees"
    POSITION_NOT_IN_METRES = "position_not_in_metres"
    GRIPPER_OUT_OF_RANGE = "gripper_out_of_range"
    TIME_NOT_INCREASING = "time_not_increasing"
    TIME_GAP = "time_gap"
    DUPLICATE_ID = "duplicate_id"


@dataclass(frozen=True)
class EpisodeReject:
    """One episode that was not taken: its folder, the reason's code and what exactly was found."""

    path: str
    code: EpisodeRejectCode
    detail: str


@dataclass(frozen=True, eq=False)
class Episode:
    """T observations of one episode, a physical time apart.

    poses (T, 7) float64: x y z (m, base frame), extrinsic xyz Euler (rad), gripper 0 open .. 1 closed. times_s (T,)
    float64 from the first observation, measured by the robot. cube_xy (T, 2) m from a simulator, or None: labels for
    probes only. `video` holds the frames; `rows` says which of its frames belong to the T observations.
    """

    episode_id: str
    source: str
    poses: np.ndarray = field(repr=False)
    times_s: np.ndarray = field(repr=False)
    video: Path
    rows: np.ndarray = field(repr=False)
    cube_xy: np.ndarray | None = field(default=None, repr=False)
    licence: str | None = None
    metadata: dict[str, object] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.poses)

    @property
    def step_s(self) -> float:
        """Median physical time between observations, s."""
        return float(np.median(np.diff(self.times_s)))

    @cached_property
    def frames(self) -> np.ndarray:
        """`(T, H, W, 3)` uint8 RGB, decoded at first use and kept."""
        return self.read_frames()

    def read_frames(self) -> np.ndarray:
        """`(T, H, W, 3)` uint8 RGB, decoded now and not kept. Raises InputError when the file has fewer frames."""
        decoded = decode_all(self.video)
        if len(decoded) <= self.rows.max():
            raise InputError(
                f"{self.video} does not hold its episode", expected=f"at least {self.rows.max() + 1} frames",
                found=f"{len(decoded)}", remedy="materialize robot_episodes again",
            )  # fmt: skip
        return decoded if np.array_equal(self.rows, np.arange(len(decoded))) else decoded[self.rows]


def decode_all(video: Path) -> np.ndarray:
    """Every frame of a file in order, `(N, H, W, 3)` uint8 RGB; raises InputError when it cannot be decoded."""
    import av

    try:
        with av.open(str(video)) as container:
            container.streams.video[0].thread_type = "NONE"
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{video} cannot be decoded", found=str(error)) from error
    if not frames:
        raise InputError(f"{video} cannot be decoded", expected="at least one frame", found="none")
    return np.stack(frames)


def actions_from_poses(poses: np.ndarray) -> np.ndarray:
    """Actions `(T-1, 7)` that lead from each pose of `(T, 7)` to the next.

    Position and gripper differences, and the extrinsic xyz Euler angles of R[t+1] R[t]^T, which acts from the LEFT as
    in DROID and the paper. Inverse of `integrate`.
    """
    actions = np.diff(poses, axis=0)
    rotations = Rotation.from_euler("xyz", poses[:, 3:6])
    actions[:, 3:6] = (rotations[1:] * rotations[:-1].inv()).as_euler("xyz")
    return actions


def integrate(pose: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The pose `(..., 7)` that `action` `(..., 7)` leads to from `pose` `(..., 7)`; gripper not clipped."""
    reached = np.asarray(pose, dtype=np.float64) + action
    turned = Rotation.from_euler("xyz", np.reshape(np.broadcast_to(action, reached.shape)[..., 3:6], (-1, 3)))
    before = Rotation.from_euler("xyz", np.reshape(np.broadcast_to(pose, reached.shape)[..., 3:6], (-1, 3)))
    reached[..., 3:6] = (turned * before).as_euler("xyz").reshape((*reached.shape[:-1], 3))
    return reached


def load_episodes(folder: Path) -> list[Episode]:
    """The episodes of a `robot_episodes` artefact, in the order of its table; frames are decoded when asked for."""
    rows = read_table(folder / "episodes.parquet", EPISODES).to_pylist()
    steps = read_table(folder / "steps.parquet", STEPS)
    columns = {
        name: steps[name].to_numpy(zero_copy_only=False) for name in ("step", "t_s", *POSE_COLUMNS, "cube_x", "cube_y")
    }
    of_episode: dict[str, list[int]] = {}
    for index, episode_id in enumerate(steps["episode_id"].to_pylist()):
        of_episode.setdefault(episode_id, []).append(index)
    episodes = []
    for row in rows:
        indices = np.asarray(of_episode.get(row["episode_id"], []), dtype=np.int64)
        indices = indices[np.argsort(columns["step"][indices], kind="stable")]
        if len(indices) != row["steps"]:
            raise InputError(
                f"episode {row['episode_id']} is incomplete", expected=f"{row['steps']} steps", found=str(len(indices)),
                remedy="materialize robot_episodes again",
            )  # fmt: skip
        cube = np.stack([columns["cube_x"][indices], columns["cube_y"][indices]], axis=1).astype(np.float64)
        episodes.append(
            Episode(
                episode_id=row["episode_id"],
                source=row["source"],
                licence=row["licence"],
                poses=np.stack([columns[name][indices] for name in POSE_COLUMNS], axis=1).astype(np.float64),
                times_s=columns["t_s"][indices].astype(np.float64),
                video=folder / row["video"],
                rows=np.arange(len(indices)),
                cube_xy=None if np.isnan(cube).any() else cube,
            )
        )
    return episodes
