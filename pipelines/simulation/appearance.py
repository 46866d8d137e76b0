"""How a scene looks: colours, table pattern, light and the exocentric camera, with seeded variation for the corpus."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from models.errors import TubeletError
from pipelines.simulation.rendering import load_mujoco

if TYPE_CHECKING:
    import mujoco

Rgb = tuple[float, float, float]
TABLE_PATTERNS = ("plain", "checker", "stripes")


@dataclass(frozen=True)
class Appearance:
    """Everything visible that physics does not read; the defaults are the robot half's fixed view.

    The camera stands at `azimuth_deg` around the table centre (0 = in front of the robot, on +x; 90 = on the robot's
    left, +y), `elevation_deg` above it and `distance_m` away, and looks at `target_m` (m, base frame).
    """

    table_rgb: Rgb = (0.78, 0.69, 0.56)
    table_pattern: str = "plain"
    floor_rgb: Rgb = (0.30, 0.33, 0.38)
    arm_rgb: Rgb = (0.93, 0.93, 0.95)
    joint_rgb: Rgb = (0.22, 0.25, 0.30)
    hand_rgb: Rgb = (0.10, 0.11, 0.13)
    finger_rgb: Rgb = (0.98, 0.45, 0.05)
    cube_rgb: Rgb = (0.10, 0.22, 0.85)
    light: float = 0.75
    light_azimuth_deg: float = 30.0
    azimuth_deg: float = 58.0
    elevation_deg: float = 30.0
    distance_m: float = 1.45
    target_m: tuple[float, float, float] = (0.36, 0.02, 0.16)
    fovy_deg: float = 40.0

    def sample(self, rng: np.random.Generator, strength: float = 1.0, move_camera: bool = True) -> Appearance:
        """A variation of this look: `strength` 1 is modest (same scene, another day), 3 a clearly different place.

        Single-hue parts that carry the meaning of a scene (fingers, cube) change less than what surrounds them.
        """

        def shade(rgb: Rgb, spread: float) -> Rgb:
            moved = np.clip(np.asarray(rgb) + rng.normal(0.0, spread * strength, 3), 0.03, 0.97)
            return float(moved[0]), float(moved[1]), float(moved[2])

        pattern = self.table_pattern
        if rng.random() < 0.25 * strength:
            pattern = TABLE_PATTERNS[int(rng.integers(len(TABLE_PATTERNS)))]
        target = np.asarray(self.target_m) + rng.normal(0.0, 0.015 * strength, 3)
        varied = replace(
            self,
            table_rgb=shade(self.table_rgb, 0.045), table_pattern=pattern, floor_rgb=shade(self.floor_rgb, 0.045),
            arm_rgb=shade(self.arm_rgb, 0.035), joint_rgb=shade(self.joint_rgb, 0.035),
            finger_rgb=shade(self.finger_rgb, 0.03), cube_rgb=shade(self.cube_rgb, 0.05),
            light=float(np.clip(self.light + rng.normal(0.0, 0.07 * strength), 0.45, 1.0)),
            light_azimuth_deg=float(self.light_azimuth_deg + rng.normal(0.0, 25.0 * strength)),
        )  # fmt: skip
        if not move_camera:
            return varied
        return replace(
            varied,
            azimuth_deg=float(self.azimuth_deg + rng.normal(0.0, 4.0 * strength)),
            elevation_deg=float(np.clip(self.elevation_deg + rng.normal(0.0, 2.5 * strength), 15.0, 60.0)),
            distance_m=float(self.distance_m * np.exp(rng.normal(0.0, 0.03 * strength))),
            target_m=(float(target[0]), float(target[1]), float(target[2])),
        )


def camera_pose(look: Appearance) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) m and rotation (3, 3) of the exocentric camera; columns are right, up and backwards (MuJoCo)."""
    azimuth, elevation = np.deg2rad(look.azimuth_deg), np.deg2rad(look.elevation_deg)
    backwards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
    up = np.cross(backwards, right)
    return np.asarray(look.target_m) + look.distance_m * backwards, np.stack([right, up, backwards], axis=1)


def apply_appearance(model: mujoco.MjModel, look: Appearance) -> None:
    """Write `look` into a model made by `scene.arm_scene` (visual fields only; the next rendered frame shows it)."""
    if look.table_pattern not in TABLE_PATTERNS:
        raise TubeletError("unknown table pattern", expected=" or ".join(TABLE_PATTERNS), found=look.table_pattern)
    mj = load_mujoco()
    for material, rgb in (
        ("floor", look.floor_rgb), ("arm", look.arm_rgb), ("joint", look.joint_rgb), ("hand", look.hand_rgb),
        ("finger", look.finger_rgb), ("cube", look.cube_rgb),
        *((f"table_{pattern}", look.table_rgb) for pattern in TABLE_PATTERNS),
    ):  # fmt: skip
        model.material(material).rgba[:3] = rgb
    model.geom("table").matid[:] = model.material(f"table_{look.table_pattern}").id
    level, side = look.light, np.deg2rad(look.light_azimuth_deg)
    light = model.light("key")
    light.diffuse[:] = 0.75 * level
    light.ambient[:] = 0.35 * level
    light.dir[:] = np.array([-0.5 * np.cos(side), -0.5 * np.sin(side), -1.0]) / np.sqrt(1.25)
    camera = model.camera("exo")
    position, rotation = camera_pose(look)
    quaternion = np.zeros(4)
    mj.mju_mat2Quat(quaternion, rotation.reshape(-1))
    camera.pos[:], camera.quat[:], camera.fovy[:] = position, quaternion, look.fovy_deg
