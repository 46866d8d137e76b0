"""Headless OpenGL for MuJoCo: choosing a back end that works here, and a small renderer that reads pixels back.

MuJoCo reads `MUJOCO_GL` when it is first imported, so nothing in this package imports it at module level:
`load_mujoco` chooses the back end first.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import sys
import threading
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from models.errors import TubeletError

if TYPE_CHECKING:
    import mujoco

APT_COMMAND = "apt-get install -y libegl1 libgl1-mesa-dri libosmesa6 libgl1 libgles2"
# Fixed framebuffer: every size a scene may ask for (twice that when supersampled) is a viewport inside it.
MAX_HEIGHT, MAX_WIDTH = 960, 1280
_EGL_PLATFORM_DEVICE_EXT = 0x313F
_OSMESA_RGBA = 0x1908
_live_renderers: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()


class RenderingError(TubeletError):
    """No headless OpenGL back end works on this machine, or MuJoCo was bound to another one already."""


def _egl_works() -> bool:
    """Whether libEGL loads and at least one EGL device (GPU or Mesa's software device) initialises."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        ctypes.CDLL("libOpenGL.so.0")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query_address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    display_address = egl.eglGetProcAddress(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(query_address)
    get_display = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p)(display_address)
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int(0)
    if not query(16, devices, ctypes.byref(count)):
        return False
    egl.eglInitialize.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    for device in devices[: count.value]:
        display = get_display(_EGL_PLATFORM_DEVICE_EXT, device, None)
        if display and egl.eglInitialize(display, None, None):
            return True
    return False


def _osmesa_works() -> bool:
    """Whether libOSMesa loads and gives a context."""
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            osmesa = ctypes.CDLL(name)
        except OSError:
            continue
        osmesa.OSMesaCreateContextExt.restype = ctypes.c_void_p
        osmesa.OSMesaCreateContextExt.argtypes = [ctypes.c_int] * 4 + [ctypes.c_void_p]
        osmesa.OSMesaDestroyContext.argtypes = [ctypes.c_void_p]
        context = osmesa.OSMesaCreateContextExt(_OSMESA_RGBA, 24, 0, 0, None)
        if context:
            osmesa.OSMesaDestroyContext(context)
            return True
    return False


def require_gl() -> str:
    """Choose the back end MuJoCo renders with, before its first import, and return its name.

    On Linux: what `MUJOCO_GL` says if it is set and works, else EGL, else OSMesa; sets `MUJOCO_GL` for this process
    and its children. Elsewhere MuJoCo's own default needs no choice. Raises RenderingError with the command that
    installs what is missing.
    """
    if not sys.platform.startswith("linux"):
        return os.environ.get("MUJOCO_GL") or "default"
    wanted = os.environ.get("MUJOCO_GL", "").strip().lower()
    if "mujoco" in sys.modules:
        bound = sys.modules["mujoco"].GLContext.__module__.rsplit(".", 1)[-1]
        if bound not in ("egl", "osmesa"):
            raise RenderingError(
                "MuJoCo was imported before a headless back end was chosen", expected="egl or osmesa", found=bound,
                remedy="Set MUJOCO_GL=egl in the environment, or call require_gl() before anything imports mujoco",
            )  # fmt: skip
        return bound
    # Mesa's software rasteriser starts a thread per core by default; frames here are far too small to gain from it.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    checks = {"egl": _egl_works, "osmesa": _osmesa_works}
    if wanted and wanted not in checks:
        raise RenderingError(
            "MUJOCO_GL names a back end that cannot render headless", expected="egl or osmesa", found=wanted,
            remedy="Unset MUJOCO_GL, or set it to egl or osmesa",
        )  # fmt: skip
    for name in [wanted] if wanted else list(checks):
        if checks[name]():
            os.environ["MUJOCO_GL"] = name
            # PyOpenGL refuses to load beside a back end other than the one named here.
            os.environ["PYOPENGL_PLATFORM"] = name
            return name
    raise RenderingError(
        "no headless OpenGL works on this machine", expected="EGL or OSMesa (Mesa's software renderer is enough)",
        found=f"MUJOCO_GL={wanted}, which does not start" if wanted else "neither",
        remedy=f"As root run: {APT_COMMAND}",
    )  # fmt: skip


def load_mujoco() -> ModuleType:
    """The `mujoco` module, bound to a headless back end that works."""
    require_gl()
    import mujoco

    return mujoco


class SceneRenderer:
    """Renders one model from its cameras; holds an OpenGL context, so it belongs to the thread that made it.

    Frames are drawn `supersample` times larger per side and box-averaged: cheaper in software than multisampling.
    """

    def __init__(self, model: mujoco.MjModel, supersample: int = 2) -> None:
        self._mujoco: Any = load_mujoco()
        self._context: Any = None
        self._thread = threading.get_ident()
        self._model = model
        self.supersample = supersample
        mj = self._mujoco
        self._gl: Any = mj.GLContext(MAX_WIDTH, MAX_HEIGHT)
        self._gl.make_current()
        self._context = mj.MjrContext(model, mj.mjtFontScale.mjFONTSCALE_50)
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mj.MjvScene(model, 256)
        self._option = mj.MjvOption()
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
            self._scene.flags[getattr(mj.mjtRndFlag, f"mjRND_{flag}")] = 0
        if not _live_renderers:
            # Registered now, not at import: exit handlers run last in first out, and MuJoCo's own, which ends the
            # display these contexts live on, was registered when its back end was imported.
            atexit.register(_close_all)
        _live_renderers.add(self)

    def fixed_camera(self, name: str) -> mujoco.MjvCamera:
        """The camera of that name in the model."""
        mj = self._mujoco
        camera_id = mj.mj_name2id(self._model, mj.mjtObj.mjOBJ_CAMERA, name)
        if camera_id < 0:
            known = [self._model.camera(index).name for index in range(self._model.ncam)]
            raise RenderingError("unknown camera", expected=" or ".join(known), found=name)
        camera = mj.MjvCamera()
        camera.type, camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, camera_id
        return camera

    def orbit_camera(
        self, lookat: tuple[float, float, float], distance: float, azimuth: float, elevation: float
    ) -> mujoco.MjvCamera:
        """A free camera that looks at `lookat` (m) from `distance` (m) at MuJoCo's azimuth and elevation (degrees)."""
        camera = self._mujoco.MjvCamera()
        camera.type = self._mujoco.mjtCamera.mjCAMERA_FREE
        camera.lookat[:] = lookat
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
        return camera

    def render(self, data: mujoco.MjData, camera: mujoco.MjvCamera, height: int, width: int) -> np.ndarray:
        """One frame `(height, width, 3)` uint8 RGB of the state in `data`."""
        if self._context is None:
            raise RenderingError("this renderer was closed", remedy="Make a new one")
        if threading.get_ident() != self._thread:
            raise RenderingError(
                "a renderer was used from another thread", expected="the thread that rendered first",
                found=threading.current_thread().name, remedy="Make and use the simulated arm in one thread",
            )  # fmt: skip
        mj, factor = self._mujoco, self.supersample
        tall, wide = height * factor, width * factor
        if tall > MAX_HEIGHT or wide > MAX_WIDTH:
            raise RenderingError(
                "frame larger than the framebuffer",
                expected=f"at most {MAX_HEIGHT}x{MAX_WIDTH}",
                found=f"{tall}x{wide}",
            )
        self._gl.make_current()
        viewport = mj.MjrRect(0, 0, wide, tall)
        mj.mjv_updateScene(self._model, data, self._option, None, camera, mj.mjtCatBit.mjCAT_ALL, self._scene)
        mj.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((tall, wide, 3), np.uint8)
        mj.mjr_readPixels(pixels, None, viewport, self._context)
        pixels = pixels[::-1]  # OpenGL's first row is the bottom one
        return np.ascontiguousarray(pixels) if factor == 1 else box_average(pixels, factor)

    def close(self) -> None:
        """Free the OpenGL objects; safe to call twice."""
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = self._gl = None
        _live_renderers.discard(self)

    def __del__(self) -> None:
        # MuJoCo frees its OpenGL objects without making their context current; do it in the right order here.
        if getattr(self, "_context", None) is not None:
            self.close()


def box_average(pixels: np.ndarray, factor: int) -> np.ndarray:
    """`(factor*H, factor*W, 3)` uint8 to `(H, W, 3)` uint8: the rounded mean of each factor by factor block."""
    tall, wide, channels = pixels.shape
    sums = np.zeros((tall // factor, wide // factor, channels), np.uint16)
    for row in range(factor):
        for column in range(factor):
            sums += pixels[row::factor, column::factor]
    area = factor * factor
    return ((sums + area // 2) // area).astype(np.uint8)


def _close_all() -> None:
    # Contexts left to the interpreter's teardown print tracebacks from half-unloaded OpenGL modules.
    for renderer in list(_live_renderers):
        renderer.close()
