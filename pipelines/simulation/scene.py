"""The simulated table top as MJCF: our own 7-DoF arm of primitive shapes with the Panda's joint frames, and loose objects.

Joint frames, limits and torques follow Franka's public documentation (modified Denavit-Hartenberg parameters of the
Panda). Every shape is a capsule, cylinder or box: no meshes, so nothing has to be downloaded or licensed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Rgb = tuple[float, float, float]
TIMESTEP_S = 0.005
TABLE_RGB, FLOOR_RGB = (0.78, 0.69, 0.56), (0.30, 0.33, 0.38)
CUBE_SIDE_M = 0.05
FINGER_TRAVEL_M = 0.04
HOME_JOINTS = (0.0, -np.pi / 5, 0.0, -4 * np.pi / 5, 0.0, 3 * np.pi / 5, np.pi / 4)

# Per joint: a (m), d (m), alpha (rad) of the modified DH convention, limits (rad), torque limit (N m).
PANDA_JOINTS = (
    (0.0, 0.333, 0.0, -2.8973, 2.8973, 87.0),
    (0.0, 0.0, -np.pi / 2, -1.7628, 1.7628, 87.0),
    (0.0, 0.316, np.pi / 2, -2.8973, 2.8973, 87.0),
    (0.0825, 0.0, np.pi / 2, -3.0718, -0.0698, 87.0),
    (-0.0825, 0.384, -np.pi / 2, -2.8973, 2.8973, 12.0),
    (0.0, 0.0, np.pi / 2, -0.0175, 3.7525, 12.0),
    (0.088, 0.0, np.pi / 2, -2.8973, 2.8973, 12.0),
)
FLANGE_M, TCP_M = 0.107, 0.1034
# Position-servo gains (N m/rad, N m s/rad): stiff enough that a 0.1 m move is over, to under 1 mm, in 0.5 s.
SERVO_GAINS = ((4000, 260), (4000, 260), (3000, 200), (3000, 180), (1500, 60), (1200, 45), (800, 25))

# (from, to) capsules of each moving link in its joint frame, with radius and material.
LINK_SHAPES: tuple[tuple[tuple[str, str, float, str], ...], ...] = (
    (("0 0 -.2", "0 0 -.02", 0.065, "arm"),),
    (("0 0 -.07", "0 0 .07", 0.062, "joint"),),
    (("0 0 -.26", "0 0 -.05", 0.058, "arm"), ("0 0 -.03", ".06 0 0", 0.05, "arm")),
    (("0 0 -.06", "0 0 .06", 0.056, "joint"),),
    (("0 0 -.33", "0 0 -.05", 0.052, "arm"),),
    (("0 0 -.05", "0 0 .05", 0.05, "joint"), ("0 0 0", ".088 0 0", 0.045, "arm")),
    (("0 0 -.02", "0 0 .085", 0.042, "arm"),),
)
LINK_MASS_KG = (3.0, 3.0, 3.0, 2.5, 2.5, 1.5, 0.8)


def _header(name: str, table_rgb: Rgb = TABLE_RGB, floor_rgb: Rgb = FLOOR_RGB) -> str:
    """Options, low-cost visual quality and materials that both scenes share."""
    table, floor = (" ".join(f"{value:.4f}" for value in rgb) for rgb in (table_rgb, floor_rgb))
    return f"""<mujoco model="{name}">
<compiler angle="radian" autolimits="true"/>
<option timestep="{TIMESTEP_S}" integrator="implicitfast" cone="elliptic" impratio="10"/>
<visual>
  <global offwidth="1280" offheight="960"/>
  <quality numslices="16" numstacks="8" numquads="1" offsamples="0" shadowsize="0"/>
  <headlight ambient=".18 .18 .18" diffuse=".3 .3 .3" specular="0 0 0"/>
</visual>
<asset>
  <texture name="checker" type="2d" builtin="checker" width="64" height="64" rgb1="1 1 1" rgb2=".72 .72 .72"/>
  <texture name="stripes" type="2d" builtin="checker" width="64" height="64" rgb1="1 1 1" rgb2=".8 .8 .8"/>
  <material name="table_plain" rgba="{table} 1" specular="0"/>
  <material name="table_checker" texture="checker" texrepeat="5 5" rgba="{table} 1" specular="0"/>
  <material name="table_stripes" texture="stripes" texrepeat="8 .5" rgba="{table} 1" specular="0"/>
  <material name="floor" rgba="{floor} 1" specular="0"/>
  <material name="arm" rgba=".93 .93 .95 1" specular=".1"/>
  <material name="joint" rgba=".22 .25 .3 1" specular="0"/>
  <material name="hand" rgba=".1 .11 .13 1" specular="0"/>
  <material name="finger" rgba=".98 .45 .05 1" specular="0"/>
  <material name="cube" rgba=".1 .22 .85 1" specular="0"/>
</asset>
"""


def _room(table_pattern: str = "plain", light: float = 0.75) -> str:
    """Light, floor and table (top at z = 0).

    Contact bits: table 1, loose things 2, gripper 4. Loose things meet everything; the gripper never meets the table,
    because a command below the table top is the safety gate's business and must not shake the arm.
    """
    key = " ".join([f"{0.75 * light:.4f}"] * 3)
    return f"""
  <light name="key" directional="true" castshadow="false" pos="0 0 2" dir="-.3 -.2 -1" diffuse="{key}"
         ambient=".25 .25 .25" specular="0 0 0"/>
  <geom name="floor" type="plane" size="40 40 .1" pos="0 0 -.6" material="floor" contype="0" conaffinity="0"/>
  <geom name="table" type="box" size=".62 .6 .025" pos=".4 0 -.025" material="table_{table_pattern}"
        contype="1" conaffinity="2" friction=".7"/>
"""


def _link(index: int, inner: str) -> str:
    """Body of joint `index` (0-based) with everything beyond it in `inner`."""
    a, d, alpha, low, high, _ = PANDA_JOINTS[index]
    position = f"{a} {-np.sin(alpha) * d:.6f} {np.cos(alpha) * d:.6f}"
    shapes = LINK_SHAPES[index]
    geoms = "".join(
        f'<geom type="capsule" fromto="{start} {end}" size="{radius}" material="{material}" '
        f'mass="{LINK_MASS_KG[index] / len(shapes)}" contype="0" conaffinity="0"/>'
        for start, end, radius, material in shapes
    )
    return (
        f'<body name="link{index + 1}" pos="{position}" quat="{np.cos(alpha / 2):.9f} {np.sin(alpha / 2):.9f} 0 0" gravcomp="1">'
        f'<joint name="joint{index + 1}" axis="0 0 1" range="{low} {high}" armature=".1"/>{geoms}{inner}</body>'
    )


def _gripper() -> str:
    """Panda-like hand: two fingers sliding along y; the site `tcp` sits between the finger tips.

    The site is turned by pi about x, so that its axes are the base's axes when the gripper points straight down:
    the pose's Euler angles are then zero in use, not at the +-pi seam.
    """
    contact = 'contype="4" conaffinity="2" friction="2 .05 .001" condim="4"'
    fingers = "".join(
        f'<body name="{side}_finger" pos="0 0 .0584" gravcomp="1">'
        f'<joint name="{side}_finger" type="slide" axis="0 {sign} 0" range="0 {FINGER_TRAVEL_M}" damping="5" armature=".05"/>'
        f'<geom name="{side}_finger" type="box" size=".017 .01 .034" pos="0 {sign * 0.01} .02" material="finger" mass=".03" {contact}/>'
        "</body>"
        for side, sign in (("left", 1), ("right", -1))
    )
    return (
        f'<body name="hand" pos="0 0 {FLANGE_M}" quat="{np.cos(np.pi / 8):.9f} 0 0 {-np.sin(np.pi / 8):.9f}" gravcomp="1">'
        '<geom name="hand" type="box" size=".03 .085 .022" pos="0 0 .022" material="hand" mass=".6" contype="4" conaffinity="2"/>'
        f'<site name="tcp" pos="0 0 {TCP_M}" quat="0 1 0 0" size=".004" rgba="0 0 0 0"/>{fingers}</body>'
    )


def arm_scene() -> str:
    """MJCF of table, arm with gripper, 5 cm cube and the camera `exo`; the base frame is the world frame, z up, m."""
    chain = _gripper()
    for index in reversed(range(len(PANDA_JOINTS))):
        chain = _link(index, chain)
    servos = "".join(
        f'<position name="joint{index + 1}" joint="joint{index + 1}" kp="{kp}" kv="{kv}" '
        f'forcerange="-{PANDA_JOINTS[index][5]} {PANDA_JOINTS[index][5]}" ctrlrange="{PANDA_JOINTS[index][3]} {PANDA_JOINTS[index][4]}"/>'
        for index, (kp, kv) in enumerate(SERVO_GAINS)
    ) + "".join(
        f'<position name="{side}_finger" joint="{side}_finger" kp="600" kv="20" forcerange="-40 40" ctrlrange="0 {FINGER_TRAVEL_M}"/>'
        for side in ("left", "right")
    )
    half = CUBE_SIDE_M / 2
    return f"""{_header("arm")}<worldbody>{_room()}
  <camera name="exo" pos="1.3 1.1 1.1"/>
  <body name="base">
    <geom type="cylinder" fromto="0 0 0 0 0 .13" size=".08" material="joint" contype="0" conaffinity="0"/>
    <geom type="box" size=".09 .07 .04" pos="-.06 0 .04" material="joint" contype="0" conaffinity="0"/>
    {chain}
  </body>
  <body name="cube" pos=".5 0 {half}"><freejoint name="cube"/>
    <geom name="cube" type="box" size="{half} {half} {half}" material="cube" mass=".08" contype="2" conaffinity="7" friction="1 .01 .001" condim="4"/>
  </body>
</worldbody><actuator>{servos}</actuator></mujoco>"""


@dataclass(frozen=True)
class LooseObject:
    """One free body: primitive `shape` (box, sphere, capsule, cylinder) of half `size_m`, starting at `position_m`."""

    shape: str
    size_m: tuple[float, float, float]
    position_m: tuple[float, float, float]
    rgb: Rgb


def objects_scene(
    objects: Sequence[LooseObject], *, table_rgb: Rgb = TABLE_RGB, table_pattern: str = "plain",
    floor_rgb: Rgb = FLOOR_RGB, light: float = 0.75, ramp_tilt_rad: float = 0.0,
) -> str:  # fmt: skip
    """MJCF of the table with loose objects (free joints `object0`, ...), and a ramp tilted about y when asked for."""

    def numbers(values: Sequence[float]) -> str:
        return " ".join(f"{value:.5f}" for value in values)

    bodies = "".join(
        f'<body name="object{index}" pos="{numbers(item.position_m)}"><freejoint name="object{index}"/>'
        f'<geom type="{item.shape}" size="{numbers(item.size_m)}" rgba="{numbers(item.rgb)} 1" '
        'mass=".1" contype="2" conaffinity="7" friction=".35 .005 .0005" solref=".02 .35"/></body>'
        for index, item in enumerate(objects)
    )
    ramp = (
        f'<geom type="box" size=".28 .3 .012" pos=".3 0 .16" euler="0 {ramp_tilt_rad:.5f} 0" material="joint" '
        'contype="1" conaffinity="2" friction=".2"/>'
        if ramp_tilt_rad
        else ""
    )
    return f"{_header('objects', table_rgb, floor_rgb)}<worldbody>{_room(table_pattern, light)}{ramp}{bodies}</worldbody></mujoco>"
