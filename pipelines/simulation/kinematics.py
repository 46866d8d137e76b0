"""Where the gripper is for given joint angles, and damped-least-squares inverse kinematics to an absolute pose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from pipelines.simulation.rendering import load_mujoco
from pipelines.simulation.scene import HOME_JOINTS, PANDA_JOINTS

if TYPE_CHECKING:
    import mujoco

ARM_DOF = len(PANDA_JOINTS)
DAMPING = 0.02
NULLSPACE_GAIN = 0.05
MAX_JOINT_STEP_RAD = 0.25
JOINT_MARGIN_RAD = 0.02


class ArmKinematics:
    """Forward and inverse kinematics of the arm on a scratch state of its own, never on the simulated one.

    Joints are `(7,)` rad; positions `(3,)` m and rotations `(3, 3)` are those of the site `tcp` in the base frame.
    """

    def __init__(self, model: mujoco.MjModel) -> None:
        self._mujoco: Any = load_mujoco()
        self._model = model
        self._scratch = self._mujoco.MjData(model)
        self._site = model.site("tcp").id
        limits = np.array([joint[3:5] for joint in PANDA_JOINTS])
        self.low, self.high = limits[:, 0] + JOINT_MARGIN_RAD, limits[:, 1] - JOINT_MARGIN_RAD
        self._home = np.asarray(HOME_JOINTS)
        self._jacobian = np.zeros((6, model.nv))

    def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position (3,) and rotation (3, 3) of the tool for `joints`."""
        scratch = self._scratch
        scratch.qpos[:ARM_DOF] = joints
        self._mujoco.mj_kinematics(self._model, scratch)
        return scratch.site_xpos[self._site].copy(), scratch.site_xmat[self._site].reshape(3, 3).copy()

    def step(self, joints: np.ndarray, position: np.ndarray, rotation: np.ndarray) -> tuple[np.ndarray, float]:
        """One damped-least-squares step from `joints` towards the pose; returns (joints, error before the step).

        The error is the norm of (position error in m, rotation error in rad). What the pose leaves free (one of seven
        joints) is pulled towards the home posture, so that the same pose is always reached in about the same shape.
        """
        mj, model, scratch = self._mujoco, self._model, self._scratch
        at, turned = self.forward(joints)
        mj.mj_comPos(model, scratch)
        mj.mj_jacSite(model, scratch, self._jacobian[:3], self._jacobian[3:], self._site)
        jacobian = self._jacobian[:, :ARM_DOF]
        error = np.concatenate([position - at, rotation_vector(rotation @ turned.T)])
        left, singular, right = np.linalg.svd(jacobian)
        change = right[:6].T @ (singular / (singular**2 + DAMPING**2) * (left.T @ error))
        # The exact null direction, not one through the damped inverse, which would hold the pose off its target.
        change += NULLSPACE_GAIN * right[6] * (right[6] @ (self._home - joints))
        largest = np.abs(change).max()
        if largest > MAX_JOINT_STEP_RAD:
            change *= MAX_JOINT_STEP_RAD / largest
        return np.clip(joints + change, self.low, self.high), float(np.linalg.norm(error))

    def solve(
        self,
        joints: np.ndarray,
        position: np.ndarray,
        rotation: np.ndarray,
        *,
        tolerance: float = 1e-5,
        steps: int = 60,
    ) -> tuple[np.ndarray, float]:
        """Iterate `step` from `joints`; returns (joints, remaining error). A pose out of reach leaves a large error."""
        error = np.inf
        for _ in range(steps):
            moved, error = self.step(joints, position, rotation)
            if error < tolerance:
                return joints, error
            joints = moved
        at, turned = self.forward(joints)
        return joints, float(np.linalg.norm(np.concatenate([position - at, rotation_vector(rotation @ turned.T)])))


def rotation_vector(rotation: np.ndarray) -> np.ndarray:
    """Axis times angle (rad) of a rotation matrix; the small-angle case, which is the usual one here, costs no scipy call."""
    skew = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine, cosine = 0.5 * np.linalg.norm(skew), 0.5 * (np.trace(rotation) - 1.0)
    if cosine < 0.0:
        return Rotation.from_matrix(rotation).as_rotvec()
    return 0.5 * skew if sine < 1e-9 else 0.5 * skew * (np.arcsin(np.minimum(sine, 1.0)) / sine)
