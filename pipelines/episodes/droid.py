"""Reading DROID's raw layout (trajectory.h5 beside mp4 files) and normalising it to our own tables and videos.

Physical time comes from the robot's clock in the h5 file. The mp4 header is never asked: in DROID it carries the
camera's 60 Hz while frames are one per control step, which makes the public V-JEPA 2 loader's "4 fps" about 1 Hz.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pyarrow as pa

from pipelines.episodes.episode import POSE_COLUMNS, Episode, EpisodeReject, EpisodeRejectCode, decode_all
from pipelines.errors import InputError
from pipelines.identity import file_sha256
from pipelines.schemas import EPISODES, STEPS, table_of, write_table
from pipelines.video.encode import write_video

EPISODE_REJECTS = pa.schema(
    [("path", pa.string()), ("source", pa.string()), ("code", pa.string()), ("detail", pa.string())],
    metadata={"tubelet.table": "episode_rejects", "tubelet.version": "1"},
)
MIN_STEPS = 2
MAX_REACH_M = 2.0
MAX_GAP_IN_STEPS = 2.5
# An observation stands for a multiple of the physical step when it is this close to it, in steps.
STEP_TOLERANCE = 0.25
_STATE = "observation/robot_state"
_CLOCK = "observation/timestamp/robot_state"


class _Rejected(Exception):
    """Carries the code of a reject from the checks to the reader."""

    def __init__(self, code: EpisodeRejectCode, detail: str) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail


def read_droid(root: Path, *, source: str = "droid", step_s: float | None = None) -> Iterator[Episode | EpisodeReject]:
    """Every episode folder below `root`, sorted by path: an `Episode`, or an `EpisodeReject` that says why not.

    An episode folder is one that holds trajectory.h5 or metadata_*.json. `step_s` keeps the observations nearest to
    multiples of that physical step (None: all of them). Raises InputError when `root` has no episode folder at all.
    """
    files = [path for pattern in ("trajectory.h5", "metadata_*.json") for path in root.rglob(pattern)]
    folders = sorted({path.parent for path in files})
    if not folders:
        raise InputError(
            f"no robot episodes in {root}", expected="folders with trajectory.h5, as in DROID's raw release",
            found="none" if root.is_dir() else "no such folder", remedy="Point at the folder above <lab>/success",
        )  # fmt: skip
    seen: set[str] = set()
    for folder in folders:
        relative = folder.relative_to(root).as_posix()
        try:
            episode = _read_folder(folder, source, step_s)
            if episode.episode_id in seen:
                raise _Rejected(EpisodeRejectCode.DUPLICATE_ID, f"{episode.episode_id} was read before")
        except _Rejected as reject:
            yield EpisodeReject(relative, reject.code, reject.detail)
            continue
        seen.add(episode.episode_id)
        yield episode


def _read_folder(folder: Path, source: str, step_s: float | None) -> Episode:
    trajectory = folder / "trajectory.h5"
    if not trajectory.is_file():
        raise _Rejected(EpisodeRejectCode.MISSING_H5, "no trajectory.h5")
    metadata = _read_metadata(folder)
    try:
        with h5py.File(trajectory, "r") as file:
            poses, times_s, cube = _read_states(file)
    except OSError as error:
        raise _Rejected(EpisodeRejectCode.UNREADABLE_H5, str(error)) from error
    _check_poses(poses)
    _check_times(times_s)
    video = _find_video(folder, metadata)
    try:
        frames = len(decode_all(video))
    except InputError as error:
        raise _Rejected(EpisodeRejectCode.UNREADABLE_MP4, f"{video.name}: {error.found or error}") from error
    if frames != len(poses):
        raise _Rejected(EpisodeRejectCode.LENGTH_MISMATCH, f"{len(poses)} h5 rows, {frames} frames in {video.name}")
    rows = np.arange(len(poses)) if step_s is None else rows_at_step(times_s, step_s)
    if len(rows) < MIN_STEPS:
        raise _Rejected(EpisodeRejectCode.TOO_SHORT, f"{times_s[-1]:.2f} s hold {len(rows)} observations at this step")
    if step_s is not None and (longest := float(np.diff(times_s[rows]).max())) > (1 + 2 * STEP_TOLERANCE) * step_s:
        raise _Rejected(EpisodeRejectCode.TIME_GAP, f"no observation near one of the steps: {longest:.2f} s apart")
    identity = str(metadata.get("uuid") or file_sha256(trajectory)[:20])
    licence = metadata.get("licence")
    return Episode(
        episode_id=re.sub(r"[^A-Za-z0-9_.+-]", "_", identity), source=source, poses=poses[rows],
        times_s=times_s[rows] - times_s[rows[0]], video=video, rows=rows, cube_xy=None if cube is None else cube[rows],
        licence=licence if isinstance(licence, str) else None, metadata=metadata,
    )  # fmt: skip


def _read_metadata(folder: Path) -> dict[str, Any]:
    """The episode's metadata, or nothing: DROID episodes without it exist, and only its id and paths are used."""
    for path in sorted(folder.glob("metadata_*.json")):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        if isinstance(content, dict):
            return content
    return {}


def _read_states(file: h5py.File) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """pose7 (T, 7), seconds (T,) of the robot's clock from its first row, cube xy (T, 2) or None."""

    def read(name: str) -> np.ndarray:
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise _Rejected(EpisodeRejectCode.MISSING_FIELD, f"no {name} in trajectory.h5")
        return np.asarray(dataset[()])

    cartesian = read(f"{_STATE}/cartesian_position").astype(np.float64)
    gripper = read(f"{_STATE}/gripper_position").astype(np.float64).reshape(-1)
    seconds = read(f"{_CLOCK}/robot_timestamp_seconds").reshape(-1)
    nanos = read(f"{_CLOCK}/robot_timestamp_nanos").reshape(-1)
    if cartesian.ndim != 2 or cartesian.shape[1] != 6:
        raise _Rejected(EpisodeRejectCode.MISSING_FIELD, f"cartesian_position has shape {cartesian.shape}, not (T, 6)")
    lengths = {len(cartesian), len(gripper), len(seconds), len(nanos)}
    if len(lengths) != 1:
        raise _Rejected(EpisodeRejectCode.LENGTH_MISMATCH, f"h5 columns of {sorted(lengths)} rows")
    if len(cartesian) < MIN_STEPS:
        raise _Rejected(EpisodeRejectCode.TOO_SHORT, f"{len(cartesian)} rows")
    # Subtract before adding the parts: epoch seconds plus nanoseconds do not fit a float64 to better than 0.2 us.
    times_s = (seconds - seconds[0]).astype(np.float64) + (nanos.astype(np.float64) - float(nanos[0])) * 1e-9
    cube = file.get("observation/simulator/cube_position")
    cube_xy = np.asarray(cube[()], dtype=np.float64)[:, :2] if isinstance(cube, h5py.Dataset) else None
    return np.concatenate([cartesian, gripper[:, None]], axis=1), times_s, cube_xy


def _check_poses(poses: np.ndarray) -> None:
    """Units and ranges, before anything can learn from them or move by them."""
    if not np.isfinite(poses).all():
        raise _Rejected(EpisodeRejectCode.NON_FINITE, f"{int((~np.isfinite(poses)).sum())} values are not finite")
    angle = np.abs(poses[:, 3:6]).max()
    if angle > 2 * np.pi:
        raise _Rejected(EpisodeRejectCode.EULER_IN_DEGREES, f"largest angle {angle:.1f}, more than 2 pi rad")
    reach = np.abs(poses[:, :3]).max()
    if reach > MAX_REACH_M:
        raise _Rejected(
            EpisodeRejectCode.POSITION_NOT_IN_METRES, f"largest coordinate {reach:.1f}, beyond {MAX_REACH_M} m"
        )
    low, high = poses[:, 6].min(), poses[:, 6].max()
    if low < -0.01 or high > 1.01:
        raise _Rejected(EpisodeRejectCode.GRIPPER_OUT_OF_RANGE, f"gripper from {low:.3f} to {high:.3f}, not in 0..1")


def _check_times(times_s: np.ndarray) -> None:
    intervals = np.diff(times_s)
    if not np.isfinite(intervals).all() or intervals.min() <= 0:
        raise _Rejected(EpisodeRejectCode.TIME_NOT_INCREASING, f"smallest interval {intervals.min():.4f} s")
    median = float(np.median(intervals))
    if intervals.max() > MAX_GAP_IN_STEPS * median:
        raise _Rejected(
            EpisodeRejectCode.TIME_GAP, f"an interval of {intervals.max():.3f} s where {median:.3f} s is usual"
        )


def _find_video(folder: Path, metadata: dict[str, Any]) -> Path:
    """The exterior camera that metadata calls left (or first), else the first monocular mp4 by serial."""
    for key in ("left_mp4_path", "ext1_mp4_path"):
        named = metadata.get(key)
        if isinstance(named, str) and (candidate := folder / "recordings" / "MP4" / Path(named).name).is_file():
            return candidate
    wrist = str(metadata.get("wrist_cam_serial", ""))
    videos = sorted((folder / "recordings" / "MP4").glob("*.mp4"))
    exterior = [path for path in videos if not path.stem.endswith("-stereo") and path.stem != wrist]
    if not exterior:
        raise _Rejected(EpisodeRejectCode.MISSING_MP4, "no exterior camera in recordings/MP4")
    return exterior[0]


def rows_at_step(times_s: np.ndarray, step_s: float) -> np.ndarray:
    """Indices of the observations nearest to 0, step_s, 2 step_s, ... that are near enough (each once, increasing)."""
    wanted = np.arange(0.0, times_s[-1] + 0.5 * step_s, step_s)
    later = np.clip(np.searchsorted(times_s, wanted), 1, len(times_s) - 1)
    nearest = np.where(times_s[later] - wanted < wanted - times_s[later - 1], later, later - 1)
    return np.unique(nearest[np.abs(times_s[nearest] - wanted) <= STEP_TOLERANCE * step_s])


def normalise_episodes(
    root: Path, out_folder: Path, *, source: str, size: int | tuple[int, int] | None = None, step_s: float | None = None,
    licence: str | None = None, progress: Callable[..., None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Read every episode below `root` and write episodes.parquet, steps.parquet, rejects.parquet and videos/*.mp4.

    `size` is the (height, width) of the videos, or one number for both (None: as recorded), taken from the middle of
    the picture; a video that already has it and keeps every frame is copied byte for byte. Returns counts. Raises InputError when no episode is usable.
    """
    (out_folder / "videos").mkdir(parents=True, exist_ok=True)
    total = sum(1 for _ in root.rglob("trajectory.h5"))
    episodes: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    for done, item in enumerate(read_droid(root, source=source, step_s=step_s), start=1):
        if progress is not None:
            progress(done, max(total, done))
        if isinstance(item, EpisodeReject):
            rejects.append({"path": item.path, "source": source, "code": item.code.value, "detail": item.detail})
            continue
        relative = f"videos/{item.episode_id}.mp4"
        _write_normal_video(item, out_folder / relative, (size, size) if isinstance(size, int) else size)
        episodes.append(
            {
                "episode_id": item.episode_id, "source": source, "steps": len(item), "step_s": item.step_s,
                "video": relative, "sha256": file_sha256(out_folder / relative), "licence": licence or item.licence,
            }
        )  # fmt: skip
        steps.extend(_step_rows(item))
    if not episodes:
        codes = ", ".join(sorted({str(row["code"]) for row in rejects}))
        raise InputError(
            f"no usable episode in {root}", expected="at least one", found=f"{len(rejects)} rejected ({codes})",
            remedy="See the codes in pipelines/episodes/episode.py",
        )  # fmt: skip
    write_table(table_of(EPISODES, episodes), out_folder / "episodes.parquet", EPISODES)
    write_table(table_of(STEPS, steps), out_folder / "steps.parquet", STEPS)
    write_table(pa.Table.from_pylist(rejects, schema=EPISODE_REJECTS), out_folder / "rejects.parquet", EPISODE_REJECTS)
    return {
        "episodes": len(episodes), "steps": len(steps), "rejects": len(rejects),
        "step_s": float(np.median([row["step_s"] for row in episodes])),
        "hours": round(sum(row["steps"] * row["step_s"] for row in episodes) / 3600, 4),
        "reject_codes": {code: sum(row["code"] == code for row in rejects) for code in sorted({r["code"] for r in rejects})},
    }  # fmt: skip


def _write_normal_video(episode: Episode, path: Path, size: tuple[int, int] | None) -> None:
    height, width, count = _picture_size(episode.video)
    if (size is None or (height, width) == size) and len(episode.rows) == count:
        shutil.copyfile(episode.video, path)
        return
    frames = episode.read_frames()
    if size is not None and (height, width) != size:
        frames = np.stack([crop_and_resize(frame, size) for frame in frames])
    write_video(path, frames, 1.0 / episode.step_s, crf=14)


def _picture_size(video: Path) -> tuple[int, int, int]:
    """Height, width and number of packets of a video that is known to decode."""
    import av

    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        return stream.height, stream.width, sum(1 for packet in container.demux(stream) if packet.size)


def crop_and_resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of `frame` (H, W, 3) with the aspect of `size` (height, width), resized to it: nothing is squeezed."""
    height, width = frame.shape[:2]
    scale = min(height / size[0], width / size[1])
    tall, wide = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - tall) // 2, (width - wide) // 2
    method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
    return cv2.resize(frame[top : top + tall, left : left + wide], (size[1], size[0]), interpolation=method)


def _step_rows(episode: Episode) -> Iterator[dict[str, Any]]:
    for step, (pose, time_s) in enumerate(zip(episode.poses, episode.times_s, strict=True)):
        cube = (
            (None, None)
            if episode.cube_xy is None
            else (float(episode.cube_xy[step, 0]), float(episode.cube_xy[step, 1]))
        )
        yield {
            "episode_id": episode.episode_id, "step": step, "t_s": float(time_s), "cube_x": cube[0], "cube_y": cube[1],
            **dict(zip(POSE_COLUMNS, map(float, pose), strict=True)),
        }  # fmt: skip
