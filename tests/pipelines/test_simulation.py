from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.simulation import rendering
from pipelines.simulation.appearance import Appearance
from pipelines.simulation.arm import CUBE_REGION, WORKSPACE, SimulatedArm, SimulationError
from pipelines.simulation.kinematics import rotation_vector
from pipelines.simulation.scene import HOME_JOINTS, PANDA_JOINTS


@pytest.fixture(scope="module")
def arm() -> Iterator[SimulatedArm]:
    with SimulatedArm(0, height=64, width=80) as simulated:
        yield simulated


def panda_forward(joints: np.ndarray) -> np.ndarray:
    """Flange and tool pose by the textbook product of modified Denavit-Hartenberg transforms."""
    pose = np.eye(4)
    rows = [(a, d, alpha, angle) for (a, d, alpha, *_), angle in zip(PANDA_JOINTS, joints, strict=True)]
    rows.append((0.0, 0.107 + 0.1034, 0.0, -np.pi / 4))
    for a, d, alpha, angle in rows:
        ca, sa, ct, stheta = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        pose = pose @ np.array(
            [
                [ct, -stheta, 0, a],
                [stheta * ca, ct * ca, -sa, -d * sa],
                [stheta * sa, ct * sa, ca, d * ca],
                [0, 0, 0, 1],
            ]
        )
    return pose


def test_joint_frames_are_the_pandas(arm: SimulatedArm) -> None:
    for joints in (np.asarray(HOME_JOINTS), np.linspace(-0.6, 0.5, 7) + np.asarray(HOME_JOINTS)):
        position, rotation = arm._kinematics.forward(joints)
        expected = panda_forward(joints)
        np.testing.assert_allclose(position, expected[:3, 3], atol=1e-6)
        np.testing.assert_allclose(rotation, expected[:3, :3] @ np.diag([1.0, -1.0, -1.0]), atol=1e-6)


def test_gripper_pointing_down_has_zero_euler_angles(arm: SimulatedArm) -> None:
    pose = arm.reset((0.5, 0.1, 0.2), gripper=0.25, cube_xy=(0.4, -0.1))
    np.testing.assert_allclose(pose, [0.5, 0.1, 0.2, 0, 0, 0, 0.25], atol=1e-4)


def test_every_corner_of_the_workspace_is_reached(arm: SimulatedArm) -> None:
    for x in WORKSPACE[0]:
        for y in WORKSPACE[1]:
            for z in WORKSPACE[2]:
                np.testing.assert_allclose(arm.reset((x, y, z), cube_xy=(0.45, 0.0))[:3], [x, y, z], atol=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(-0.075, 0.075), min_size=3, max_size=3))
def test_command_moves_by_its_delta(arm: SimulatedArm, delta: list[float]) -> None:
    start = arm.reset((0.475, 0.0, 0.22), cube_xy=(0.35, 0.25))
    before = arm.time_s
    reached = arm.command(np.array([*delta, 0, 0, 0, 0]))
    np.testing.assert_allclose(reached[:3] - start[:3], delta, atol=0.004)
    np.testing.assert_allclose(reached[3:6], 0.0, atol=0.01)
    assert arm.time_s - before == pytest.approx(0.5)


def test_rotation_delta_is_multiplied_from_the_left(arm: SimulatedArm) -> None:
    arm.reset((0.475, 0.0, 0.25), cube_xy=(0.35, 0.25))
    arm.command(np.array([0, 0, 0, 0, 0, 0.4, 0]))
    pose = arm.command(np.array([0, 0, 0, 0.15, 0, 0, 0]))
    from scipy.spatial.transform import Rotation

    expected = Rotation.from_euler("xyz", [0.15, 0, 0]) * Rotation.from_euler("xyz", [0, 0, 0.4])
    np.testing.assert_allclose(pose[3:6], expected.as_euler("xyz"), atol=0.01)


def test_gripper_closes_on_the_cube_and_lifts_it(arm: SimulatedArm) -> None:
    arm.reset((0.5, 0.0, 0.025), gripper=0.0, cube_xy=(0.5, 0.0), cube_yaw=0.0)
    pose = arm.command(np.array([0, 0, 0, 0, 0, 0, 0.6]))
    assert pose[6] == pytest.approx(1 - 0.05 / 0.08, abs=0.05)
    for _ in range(2):
        arm.command(np.array([0, 0, 0.07, 0, 0, 0, 0]))
    assert arm.cube_position()[2] > 0.12


def test_equal_seeds_and_calls_give_equal_states_and_frames() -> None:
    outcomes = []
    for _ in range(2):
        with SimulatedArm(7, height=48, width=48) as simulated:
            simulated.reset()
            pose = simulated.command(np.array([0.03, -0.05, 0.02, 0, 0, 0, 0.3]))
            outcomes.append((pose, simulated.cube_position(), simulated.render()))
    for first, second in zip(*outcomes, strict=True):
        np.testing.assert_array_equal(first, second)


def test_state_restored_gives_the_same_future(arm: SimulatedArm) -> None:
    arm.reset()
    arm.command(np.array([0.02, 0.02, 0, 0, 0, 0, 0]))
    state = arm.get_state()
    first = arm.command(np.array([0.01, 0.03, 0.02, 0, 0, 0.1, 0.2]))
    arm.set_state(state)
    np.testing.assert_array_equal(first, arm.command(np.array([0.01, 0.03, 0.02, 0, 0, 0.1, 0.2])))


def test_time_does_not_go_back_at_reset(arm: SimulatedArm) -> None:
    arm.command(np.zeros(7))
    before = arm.time_s
    arm.reset()
    assert arm.time_s >= before > 0


def test_draws_stay_in_their_regions(arm: SimulatedArm) -> None:
    for _ in range(10):
        pose = arm.reset()
        assert all(low - 1e-3 <= value <= high + 1e-3 for value, (low, high) in zip(pose[:3], WORKSPACE, strict=True))
        cube = arm.cube_position()
        assert all(low <= value <= high for value, (low, high) in zip(cube[:2], CUBE_REGION, strict=True))


@pytest.mark.parametrize("delta", [np.full(7, np.nan), np.zeros(6), np.array([0, 0, np.inf, 0, 0, 0, 0])])
def test_unusable_commands_do_not_move_the_arm(arm: SimulatedArm, delta: np.ndarray) -> None:
    before = arm.pose7()
    with pytest.raises(SimulationError):
        arm.command(delta)
    np.testing.assert_array_equal(before, arm.pose7())


def test_start_out_of_reach_is_refused(arm: SimulatedArm) -> None:
    with pytest.raises(SimulationError, match="reach"):
        arm.reset((1.5, 0.0, 0.3))


def test_frames_show_gripper_and_cube(arm: SimulatedArm) -> None:
    arm.set_appearance(Appearance())
    arm.reset((0.5, -0.1, 0.25), cube_xy=(0.5, 0.15))
    frame = arm.render().astype(int)
    assert frame.shape == (64, 80, 3)
    red, green, blue = frame[..., 0], frame[..., 1], frame[..., 2]
    assert ((blue > 100) & (red < 80)).sum() >= 4, "no cube"
    assert ((red > 120) & (blue < 90) & (red - green > 50)).sum() >= 4, "no finger"


def test_appearance_changes_frames_and_not_physics(arm: SimulatedArm) -> None:
    arm.set_appearance(Appearance())
    arm.reset((0.5, 0.0, 0.2), cube_xy=(0.45, 0.2))
    default, pose = arm.render(), arm.pose7()
    arm.set_appearance(Appearance().sample(np.random.default_rng(3), strength=2.0))
    assert np.abs(arm.render().astype(int) - default).mean() > 3
    np.testing.assert_array_equal(pose, arm.pose7())
    arm.set_appearance(Appearance())
    np.testing.assert_array_equal(arm.render(), default)


def test_without_cube_no_cube_is_seen_or_met() -> None:
    with SimulatedArm(0, height=48, width=48, with_cube=False) as simulated:
        simulated.reset((0.5, 0.0, 0.2))
        frame = simulated.render().astype(int)
        simulated.command(np.zeros(7))
        assert simulated.cube_position()[2] < -1.0
    assert not ((frame[..., 2] > 100) & (frame[..., 0] < 80)).any()


@given(st.lists(st.floats(-3.0, 3.0), min_size=3, max_size=3).filter(lambda v: np.linalg.norm(v) < 3.1))
def test_rotation_vector_agrees_with_scipy(vector: list[float]) -> None:
    from scipy.spatial.transform import Rotation

    np.testing.assert_allclose(rotation_vector(Rotation.from_rotvec(vector).as_matrix()), vector, atol=1e-6)


def test_box_average_is_the_rounded_mean() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    blocks = pixels.reshape(4, 2, 6, 2, 3).astype(float).mean(axis=(1, 3))
    np.testing.assert_array_equal(rendering.box_average(pixels, 2), np.floor(blocks + 0.5))


def test_rendering_from_another_thread_says_so(arm: SimulatedArm) -> None:
    arm.render()
    with ThreadPoolExecutor(1) as pool, pytest.raises(rendering.RenderingError, match="another thread"):
        pool.submit(arm.render).result()


GL_CHECK = """
import sys
from pipelines.simulation import rendering
rendering._egl_works = lambda: {egl}
rendering._osmesa_works = lambda: {osmesa}
try:
    print(rendering.require_gl())
except rendering.RenderingError as error:
    print(error)
assert "mujoco" not in sys.modules
"""


@pytest.mark.parametrize(
    ("egl", "osmesa", "said"),
    [(True, True, "egl"), (False, True, "osmesa"), (False, False, "apt-get install -y libegl1 libgl1-mesa-dri libosmesa6")],
)
def test_back_end_is_chosen_or_the_remedy_named(egl: bool, osmesa: bool, said: str) -> None:
    script = GL_CHECK.format(egl=egl, osmesa=osmesa)
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert said in done.stdout


def test_mujoco_bound_to_a_window_system_is_refused() -> None:
    script = "import mujoco\nfrom pipelines.simulation.rendering import require_gl\nrequire_gl()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode != 0 and "before a headless back end was chosen" in done.stderr


def test_leaving_renderers_open_ends_quietly() -> None:
    script = (
        "from pipelines.simulation.arm import SimulatedArm\narm = SimulatedArm(0, height=32, width=32)\narm.render()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
