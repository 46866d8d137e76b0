from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipelines.episodes.droid import crop_and_resize, normalise_episodes, read_droid, rows_at_step
from pipelines.episodes.episode import (
    Episode,
    EpisodeReject,
    EpisodeRejectCode,
    actions_from_poses,
    decode_all,
    integrate,
    load_episodes,
)  # fmt: skip
from pipelines.episodes.record import HEADER_FPS, EpisodePlan, record_episode, record_simulated
from pipelines.errors import InputError
from pipelines.identity import file_sha256
from pipelines.simulation.arm import WORKSPACE
from pipelines.simulation.motion import MAX_DELTA_M, smooth_moves

STATE = "observation/robot_state"


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes") / "raw"
    record_simulated(folder, episodes=3, steps=6, seed=5, height=32, width=48, workers=1)
    return folder


@pytest.fixture
def one(raw: Path, tmp_path: Path) -> Path:
    """A root with a single good episode that a test may damage."""
    episode = min(path.parent for path in raw.rglob("trajectory.h5"))
    shutil.copytree(episode, tmp_path / "root" / "lab" / "success" / "day" / "episode")
    return tmp_path / "root"


def only(root: Path) -> Episode | EpisodeReject:
    (item,) = read_droid(root)
    return item


def test_recording_is_read_back_with_its_physical_time_not_the_headers(raw: Path) -> None:
    import av

    episodes = [item for item in read_droid(raw) if isinstance(item, Episode)]
    assert len(episodes) == 3
    for episode in episodes:
        np.testing.assert_allclose(episode.times_s, 0.5 * np.arange(6), atol=1e-6)
        with av.open(str(episode.video)) as container:
            assert container.streams.video[0].average_rate == HEADER_FPS
        assert episode.frames.shape == (6, 32, 48, 3)
        assert episode.cube_xy is not None and episode.cube_xy.shape == (6, 2)
        np.testing.assert_allclose(episode.poses[:, 3:], 0.0, atol=0.01)


def test_moves_are_in_the_box_and_the_workspace(raw: Path) -> None:
    for episode in read_droid(raw):
        assert isinstance(episode, Episode)
        assert np.abs(actions_from_poses(episode.poses)[:, :3]).max() < MAX_DELTA_M + 0.002
        for axis, (low, high) in enumerate(WORKSPACE):
            assert low - 0.002 < episode.poses[:, axis].min() and episode.poses[:, axis].max() < high + 0.002


def test_layout_has_droids_keys(raw: Path) -> None:
    with h5py.File(next(raw.rglob("trajectory.h5"))) as file:
        for key in (
            f"{STATE}/cartesian_position", f"{STATE}/gripper_position", f"{STATE}/joint_positions",
            "observation/timestamp/robot_state/robot_timestamp_seconds", "action/cartesian_position",
            "action/cartesian_velocity", "action/gripper_position", "observation/simulator/cube_position",
        ):  # fmt: skip
            assert len(file[key]) == 6, key
        assert file.attrs["current_task"]
        # The recorded target of a step is where the next observation is.
        np.testing.assert_allclose(
            file["action/cartesian_position"][:-1, :3], file[f"{STATE}/cartesian_position"][1:, :3], atol=0.004
        )


def test_recording_again_does_nothing_and_another_request_replaces(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    shutil.copytree(raw, folder)
    kept = next(folder.rglob("trajectory.h5")).stat().st_mtime_ns
    record_simulated(folder, episodes=3, steps=6, seed=5, height=32, width=48)
    assert next(folder.rglob("trajectory.h5")).stat().st_mtime_ns == kept
    record_simulated(folder, episodes=1, steps=3, seed=6, height=32, width=32, workers=1)
    assert len(list(folder.rglob("trajectory.h5"))) == 1


def test_recording_never_replaces_a_persons_folder(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="not made here"):
        record_simulated(tmp_path, episodes=1, steps=3, seed=0)
    assert (tmp_path / "thesis.txt").exists()


def test_an_episode_depends_on_seed_and_index_only(raw: Path, tmp_path: Path) -> None:
    record_episode(EpisodePlan(str(tmp_path), 5, 2, 6, 32, 48))  # alone, in this process, not third in a worker
    alone = next(tmp_path.rglob("trajectory.h5")).parent
    recorded = raw / alone.relative_to(tmp_path)
    assert file_sha256(recorded / "trajectory.h5") == file_sha256(alone / "trajectory.h5")
    video = Path("recordings/MP4/10000001.mp4")
    assert file_sha256(recorded / video) == file_sha256(alone / video)


poses = st.lists(
    st.tuples(*[st.floats(-1, 1)] * 3, st.floats(-3, 3), st.floats(-1.4, 1.4), st.floats(-3, 3), st.floats(0, 1)),
    min_size=2, max_size=5,
).map(np.array)  # fmt: skip


@given(poses)
def test_integrating_the_actions_gives_the_poses_back(values: np.ndarray) -> None:
    reached = integrate(values[:-1], actions_from_poses(values))
    np.testing.assert_allclose(reached[:, [0, 1, 2, 6]], values[1:, [0, 1, 2, 6]], atol=1e-9)
    turned = Rotation.from_euler("xyz", reached[:, 3:6]) * Rotation.from_euler("xyz", values[1:, 3:6]).inv()
    np.testing.assert_allclose(turned.magnitude(), 0.0, atol=1e-6)
    np.testing.assert_allclose(integrate(values[0], actions_from_poses(values)[0]), reached[0])


def test_rotation_action_acts_from_the_left() -> None:
    before, delta = Rotation.from_euler("xyz", [0, 0, np.pi / 2]), Rotation.from_euler("xyz", [0.1, 0, 0])
    pose = np.array([0, 0, 0, *before.as_euler("xyz"), 0])
    after = np.array([0, 0, 0, *(delta * before).as_euler("xyz"), 0])
    np.testing.assert_allclose(actions_from_poses(np.stack([pose, after]))[0], [0, 0, 0, 0.1, 0, 0, 0], atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_smooth_moves_never_leave_the_workspace(seed: int, steps: int) -> None:
    random = np.random.default_rng(seed)
    start = random.uniform(*np.transpose(WORKSPACE))
    moves = smooth_moves(random, start, steps)
    points = start + np.cumsum(moves, axis=0)
    low, high = np.transpose(WORKSPACE)
    assert (points >= low - 1e-9).all() and (points <= high + 1e-9).all() and np.abs(moves).max() <= MAX_DELTA_M + 1e-9


def test_normalised_tables_give_the_episodes_back(raw: Path, tmp_path: Path) -> None:
    summary = normalise_episodes(raw, tmp_path / "out", source="simulated", size=(32, 48))
    assert (summary["episodes"], summary["steps"], summary["rejects"], summary["step_s"]) == (3, 18, 0, 0.5)
    read, loaded = [e for e in read_droid(raw) if isinstance(e, Episode)], load_episodes(tmp_path / "out")
    assert [e.episode_id for e in loaded] == [e.episode_id for e in read]
    for before, after in zip(read, loaded, strict=True):
        np.testing.assert_array_equal(before.poses, after.poses)
        np.testing.assert_array_equal(before.times_s, after.times_s)
        assert before.cube_xy is not None and after.cube_xy is not None
        np.testing.assert_array_equal(before.cube_xy, after.cube_xy)
        np.testing.assert_array_equal(before.frames, after.frames)
        assert after.source == "simulated" and after.licence == "MIT" and len(after) == 6


def test_normalising_twice_gives_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        normalise_episodes(raw, tmp_path / name, source="s", size=24)
    for path in sorted((tmp_path / "a").rglob("*.*")):
        if path.is_file():
            assert file_sha256(path) == file_sha256(tmp_path / "b" / path.relative_to(tmp_path / "a")), path.name


def test_size_and_step_are_made_by_resampling(raw: Path, tmp_path: Path) -> None:
    normalise_episodes(raw, tmp_path / "out", source="s", size=24, step_s=1.0)
    for episode in load_episodes(tmp_path / "out"):
        assert episode.frames.shape == (3, 24, 24, 3)
        np.testing.assert_allclose(episode.times_s, [0.0, 1.0, 2.0], atol=1e-6)


def test_rows_at_step_follow_the_clock() -> None:
    times = np.arange(0, 3.6, 1 / 15)
    np.testing.assert_array_equal(rows_at_step(times, 1.0), [0, 15, 30, 45])
    np.testing.assert_array_equal(rows_at_step(np.array([0.0, 0.9, 2.1, 2.2, 3.0]), 1.0), [0, 1, 2, 4])
    assert len(rows_at_step(np.array([0.0, 0.1, 5.0]), 1.0)) == 2


def test_crop_keeps_the_aspect() -> None:
    frame = np.zeros((40, 80, 3), np.uint8)
    frame[:, 20:60] = 200
    assert (crop_and_resize(frame, (20, 20)) == 200).all()


def rewrite(root: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with h5py.File(next(root.rglob("trajectory.h5")), "r+") as file:
        values = change(file[name][()])
        del file[name]
        file.create_dataset(name, data=values)


def shifted(column: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[2, column] = value
        return values

    return change


SECONDS = "observation/timestamp/robot_state/robot_timestamp_seconds"
DAMAGE: dict[EpisodeRejectCode, Callable[[Path], object]] = {
    EpisodeRejectCode.MISSING_H5: lambda root: next(root.rglob("trajectory.h5")).unlink(),
    EpisodeRejectCode.UNREADABLE_H5: lambda root: next(root.rglob("trajectory.h5")).write_bytes(b"not hdf5"),
    EpisodeRejectCode.MISSING_FIELD: lambda root: rewrite(root, f"{STATE}/cartesian_position", lambda v: v[:, :3]),
    EpisodeRejectCode.MISSING_MP4: lambda root: next(root.rglob("*.mp4")).unlink(),
    EpisodeRejectCode.UNREADABLE_MP4: lambda root: next(root.rglob("*.mp4")).write_text("not a video"),
    EpisodeRejectCode.LENGTH_MISMATCH: lambda root: rewrite(root, f"{STATE}/gripper_position", lambda v: v[:-1]),
    EpisodeRejectCode.NON_FINITE: lambda root: rewrite(root, f"{STATE}/cartesian_position", shifted(1, np.nan)),
    EpisodeRejectCode.EULER_IN_DEGREES: lambda root: rewrite(root, f"{STATE}/cartesian_position", shifted(3, 180.0)),
    EpisodeRejectCode.POSITION_NOT_IN_METRES: lambda root: rewrite(
        root, f"{STATE}/cartesian_position", shifted(0, 450.0)
    ),
    EpisodeRejectCode.GRIPPER_OUT_OF_RANGE: lambda root: rewrite(root, f"{STATE}/gripper_position", lambda v: v + 85.0),
    EpisodeRejectCode.TIME_NOT_INCREASING: lambda root: rewrite(root, SECONDS, lambda v: v[::-1].copy()),
    EpisodeRejectCode.TIME_GAP: lambda root: rewrite(root, SECONDS, lambda v: v + np.array([0, 0, 0, 9, 9, 9])),
}


@pytest.mark.parametrize("code", list(DAMAGE), ids=str)
def test_damaged_episode_is_rejected_by_name(one: Path, code: EpisodeRejectCode) -> None:
    assert isinstance(only(one), Episode)
    DAMAGE[code](one)
    item = only(one)
    assert isinstance(item, EpisodeReject) and item.code == code and item.detail


def test_frames_missing_from_the_mp4_are_a_length_mismatch(one: Path) -> None:
    from pipelines.video.encode import write_video

    video = next(one.rglob("*.mp4"))
    write_video(video, decode_all(video)[:-2], 60)
    item = only(one)
    assert isinstance(item, EpisodeReject) and item.code == EpisodeRejectCode.LENGTH_MISMATCH


def test_step_longer_than_the_episode_is_too_short(one: Path) -> None:
    (item,) = read_droid(one, step_s=10.0)
    assert isinstance(item, EpisodeReject) and item.code == EpisodeRejectCode.TOO_SHORT


def test_step_without_an_observation_is_a_gap(one: Path) -> None:
    (item,) = read_droid(one, step_s=0.3)
    assert isinstance(item, EpisodeReject) and item.code == EpisodeRejectCode.TIME_GAP


def test_good_episodes_survive_bad_neighbours_and_rejects_are_a_table(raw: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    root = tmp_path / "raw"
    shutil.copytree(raw, root)
    broken, twin, *_ = sorted(root.rglob("trajectory.h5"))
    broken.unlink()
    shutil.copytree(twin.parent, twin.parent.with_name("copy"))
    summary = normalise_episodes(root, tmp_path / "out", source="s")
    assert summary["episodes"] == 2 and summary["reject_codes"] == {"duplicate_id": 1, "missing_h5": 1}
    assert sorted(pq.read_table(tmp_path / "out" / "rejects.parquet")["code"].to_pylist()) == [
        "duplicate_id",
        "missing_h5",
    ]


def test_left_camera_named_by_metadata_is_taken(one: Path) -> None:
    video = next(one.rglob("*.mp4"))
    left = video.with_name("20000002.mp4")
    shutil.copy(video, left)
    shutil.copy(video, video.with_name("00000001-stereo.mp4"))
    metadata = next(one.rglob("metadata_*.json"))
    content = json.loads(metadata.read_text()) | {"left_mp4_path": "success/x/recordings/MP4/20000002.mp4"}
    metadata.write_text(json.dumps(content))
    item = only(one)
    assert isinstance(item, Episode) and item.video == left


def test_nothing_usable_is_an_error_with_a_remedy(one: Path, tmp_path: Path) -> None:
    DAMAGE[EpisodeRejectCode.MISSING_MP4](one)
    with pytest.raises(InputError, match="missing_mp4"):
        normalise_episodes(one, tmp_path / "out", source="s")
    with pytest.raises(InputError, match=r"trajectory\.h5"):
        list(read_droid(tmp_path / "nowhere"))
