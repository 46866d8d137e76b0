"""The simulated robot: 7-number end-effector commands in, pose7 and frames out, in simulation time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from models.errors import TubeletError
from pipelines.simulation.appearance import Appearance, apply_appearance
from pipelines.simulation.kinematics import ARM_DOF, ArmKinematics
from pipelines.simulation.rendering import SceneRenderer, load_mujoco
from pipelines.simulation.scene import CUBE_SIDE_M, FINGER_TRAVEL_M, HOME_JOINTS, TIMESTEP_S, arm_scene

# Where the gripper's tool point may go (m, base frame): reachable pointing down, in view, and above a cube on the table.
WORKSPACE = ((0.30, 0.65), (-0.30, 0.30), (0.05, 0.40))
# Where a cube may lie (x, y in m): under the workspace, less half a cube.
CUBE_REGION = ((0.32, 0.63), (-0.27, 0.27))
COMMAND_S = 0.5
# The reference moves during this share of a command, then the servos settle: the next frame is taken at rest.
MOVING_SHARE = 0.6
CONTROL_STEPS = 4


class SimulationError(TubeletError):
    """The simulated arm was asked for something it cannot do."""


@dataclass(frozen=True)
class ArmState:
    """Everything that decides what the arm does next: MuJoCo's integration state and the references of the driver."""

    integration: np.ndarray
    rotation: np.ndarray
    closedness: float


class SimulatedArm:
    """A Panda-like arm with gripper over a table, seen by one fixed camera.

    Poses are pose7 float64: x, y, z (m, base frame), extrinsic xyz Euler angles (rad; zero when the gripper points
    straight down), gripper 0 open .. 1 closed. Deterministic: equal seeds and equal calls give equal states and frames.
    `seed` only draws what `reset` is not told. Belongs to one thread (it holds an OpenGL context once it rendered).
    """

    def __init__(
        self, seed: int, *, height: int = 128, width: int = 128, camera: str = "exo", appearance: Appearance | None = None,
        with_cube: bool = True, supersample: int = 2,
    ) -> None:  # fmt: skip
        self._mujoco: Any = load_mujoco()
        self._model = self._mujoco.MjModel.from_xml_string(arm_scene())
        self._data = self._mujoco.MjData(self._model)
        self._kinematics = ArmKinematics(self._model)
        self._random = np.random.default_rng(seed)
        self._renderer: SceneRenderer | None = None
        self._supersample = supersample
        self._camera_name, self._with_cube = camera, with_cube
        self.height, self.width = height, width
        self._site = self._model.site("tcp").id
        self._cube_qpos = int(self._model.joint("cube").qposadr[0])
        if not with_cube:
            geom = self._model.geom("cube")
            geom.rgba[:] = 0.0
            geom.matid[:] = -1
            geom.contype[:] = geom.conaffinity[:] = 0
            self._model.body_gravcomp[self._model.body("cube").id] = 1.0
        self.set_appearance(appearance or Appearance())
        self.reset()

    def set_appearance(self, appearance: Appearance) -> None:
        """Change what the scene looks like; the state stays."""
        self.appearance = appearance
        apply_appearance(self._model, appearance)

    # -- state -------------------------------------------------------------------------------------------------------

    def reset(
        self, pose_xyz: np.ndarray | tuple[float, float, float] | None = None, gripper: float = 0.0,
        cube_xy: np.ndarray | tuple[float, float] | None = None, *, cube_z: float = CUBE_SIDE_M / 2,
        cube_yaw: float | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Put the arm at rest at `pose_xyz` (m), gripper pointing down, and the cube on the table; returns pose7.

        What is None is drawn from the arm's own random numbers: the pose in `WORKSPACE`, the cube in `CUBE_REGION`.
        Simulation time does not go back, so that ages measured across a reset stay positive.
        """
        drawn_pose = self._random.uniform(*np.transpose(WORKSPACE))
        drawn_cube, drawn_yaw = self._random.uniform(*np.transpose(CUBE_REGION)), self._random.uniform(0.0, np.pi / 2)
        position = drawn_pose if pose_xyz is None else _finite(pose_xyz, 3, "pose_xyz")
        cube = drawn_cube if cube_xy is None else _finite(cube_xy, 2, "cube_xy")
        yaw = drawn_yaw if cube_yaw is None else float(cube_yaw)
        mj, data, now = self._mujoco, self._data, self._data.time
        joints, error = self._kinematics.solve(np.asarray(HOME_JOINTS), position, np.eye(3), steps=200)
        if error > 1e-3:
            raise SimulationError(
                "the arm cannot reach the pose it should start from", expected=f"a point inside about {WORKSPACE} m",
                found=np.array2string(position, precision=3),
            )  # fmt: skip
        mj.mj_resetData(self._model, data)
        data.time = now
        self._rotation, self._closedness = np.eye(3), float(np.clip(gripper, 0.0, 1.0))
        opening = FINGER_TRAVEL_M * (1.0 - self._closedness)
        data.qpos[:ARM_DOF], data.qpos[ARM_DOF : ARM_DOF + 2] = joints, opening
        data.ctrl[:ARM_DOF], data.ctrl[ARM_DOF:] = joints, opening
        # A scene without cube keeps it, invisible and weightless, out of the way: one model, one state layout.
        x, y, z = (*cube, cube_z) if self._with_cube else (0.0, 0.0, -2.0)
        data.qpos[self._cube_qpos : self._cube_qpos + 7] = [x, y, z, np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
        mj.mj_forward(self._model, data)
        self.begin(np.zeros(7))
        return self.pose7()

    def pose7(self) -> np.ndarray:
        """Measured pose (7,) float64: x y z (m), roll pitch yaw (rad), gripper 0 open .. 1 closed."""
        pose = np.empty(7)
        pose[:3] = self._data.site_xpos[self._site]
        pose[3:6] = Rotation.from_matrix(self._data.site_xmat[self._site].reshape(3, 3)).as_euler("xyz")
        opening = self._data.qpos[ARM_DOF : ARM_DOF + 2].mean() / FINGER_TRAVEL_M
        pose[6] = np.clip(1.0 - opening, 0.0, 1.0)
        return pose

    def joint_positions(self) -> np.ndarray:
        """Joint angles (7,) float64, rad."""
        return self._data.qpos[:ARM_DOF].copy()

    def cube_position(self) -> np.ndarray:
        """Centre of the cube (3,) float64, m, base frame: ground truth for labels, never for planning."""
        return self._data.qpos[self._cube_qpos : self._cube_qpos + 3].copy()

    @property
    def time_s(self) -> float:
        """Simulation time, s: the clock for observation ages and deadlines."""
        return float(self._data.time)

    def get_state(self) -> ArmState:
        """A copy of everything that decides what happens next."""
        signature = self._mujoco.mjtState.mjSTATE_INTEGRATION
        integration = np.empty(self._mujoco.mj_stateSize(self._model, signature))
        self._mujoco.mj_getState(self._model, self._data, integration, signature)
        return ArmState(integration, self._rotation.copy(), self._closedness)

    def set_state(self, state: ArmState) -> None:
        """Go back to a state taken with `get_state` (simulation time included)."""
        self._mujoco.mj_setState(self._model, self._data, state.integration, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._rotation, self._closedness = state.rotation.copy(), state.closedness
        self._mujoco.mj_forward(self._model, self._data)

    # -- motion ------------------------------------------------------------------------------------------------------

    def command(self, delta7: np.ndarray, duration_s: float = COMMAND_S) -> np.ndarray:
        """Move by an end-effector delta for `duration_s` of simulation time; returns the pose7 reached.

        delta7: xyz (m, base frame) added to the measured position; Euler angles (extrinsic xyz, rad) LEFT-multiplied
        onto the commanded rotation; gripper closedness added to the commanded closedness (clipped to 0..1). Rotation
        and gripper start from the command, not the measurement, so that servo errors do not add up and a held object
        stays held. The target is absolute; nothing here bounds it: bounds are the safety gate's.
        Raises SimulationError if a number is not finite.
        """
        delta = _finite(delta7, 7, "delta7")
        self.begin(delta)
        steps = max(1, round(duration_s / TIMESTEP_S))
        self.advance(steps, steps)
        return self.pose7()

    def begin(self, delta: np.ndarray, moving_share: float = MOVING_SHARE) -> None:
        """Set the references of a command without moving yet; `advance` then carries it out piece by piece.

        They move during the first `moving_share` of the command's time and rest after it.
        """
        self._moving_share = moving_share
        self._start = self._data.site_xpos[self._site].copy()
        self._goal = self._start + delta[:3]
        self._start_rotation = self._rotation
        self._turn = Rotation.from_euler("xyz", delta[3:6]).as_rotvec()
        self._rotation = Rotation.from_rotvec(self._turn).as_matrix() @ self._rotation
        self._start_closedness = self._closedness
        self._closedness = float(np.clip(self._closedness + delta[6], 0.0, 1.0))
        self._command_steps = 0

    def advance(self, steps: int, command_steps: int) -> None:
        """Advance `steps` physics steps of a command that lasts `command_steps` in all."""
        data, until = self._data, self._command_steps + steps
        moving = max(1.0, self._moving_share * command_steps)
        joints = data.ctrl[:ARM_DOF].copy()
        while self._command_steps < until:
            count = min(CONTROL_STEPS, until - self._command_steps)
            done = min(1.0, (self._command_steps + count) / moving)
            share = done * done * (3.0 - 2.0 * done)
            position = self._start + share * (self._goal - self._start)
            rotation = self._rotation
            if done < 1.0 and self._turn.any():
                rotation = Rotation.from_rotvec(share * self._turn).as_matrix() @ self._start_rotation
            joints, _ = self._kinematics.step(joints, position, rotation)
            closedness = self._start_closedness + share * (self._closedness - self._start_closedness)
            data.ctrl[:ARM_DOF], data.ctrl[ARM_DOF:] = joints, FINGER_TRAVEL_M * (1.0 - closedness)
            self._mujoco.mj_step(self._model, data, count)
            self._command_steps += count
        self._mujoco.mj_kinematics(self._model, data)

    # -- seeing ------------------------------------------------------------------------------------------------------

    def render(self) -> np.ndarray:
        """What the camera sees now: `(height, width, 3)` uint8 RGB."""
        if self._renderer is None:
            self._renderer = SceneRenderer(self._model, self._supersample)
        self._mujoco.mj_camlight(self._model, self._data)
        return self._renderer.render(
            self._data, self._renderer.fixed_camera(self._camera_name), self.height, self.width
        )

    def close(self) -> None:
        """Free the OpenGL context; the physics stays usable."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None

    def __enter__(self) -> SimulatedArm:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _finite(values: Any, length: int, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (length,) or not np.isfinite(array).all():
        raise SimulationError(f"{name} is not usable", expected=f"{length} finite numbers", found=repr(values))
    return array
