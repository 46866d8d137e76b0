"""What this machine has and lacks. Standard library only, and old-Python-safe, so that it runs before installation."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import sys

NEEDED_PYTHON = ((3, 11), (3, 14))
NEEDED_BYTES = 8 * 10**9
PACKAGES = ("torch", "dagster", "deepspeed", "mujoco", "faiss", "av", "webdataset")


def examine_machine(out, store):
    """Print one line for each thing looked at; 0 when nothing is missing, 1 otherwise."""
    rows = [python_version(), environment(), packages(), ffmpeg(), graphics(), cores(), disk(str(store)), writable(str(store))]
    for passed, name, found, remedy in rows:
        out.write(f"{'ok' if passed else 'LACKS':<6} {name:<22} {found}\n")
        if not passed:
            out.write(f"       {'':<22} -> {remedy}\n")
    return 0 if all(row[0] for row in rows) else 1


def python_version():
    low, high = NEEDED_PYTHON
    found = f"{sys.version.split()[0]} at {sys.executable}"
    passed = low <= sys.version_info[:2] < high
    return passed, "Python", found, "install Python 3.11, 3.12 or 3.13 (Debian: apt-get install python3 python3-venv)"


def environment():
    inside = sys.prefix != sys.base_prefix
    return inside, "virtual environment", sys.prefix if inside else "none", "run `make demo`, which makes .venv; or .venv/bin/python tubelet.py doctor"


def packages():
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return not missing, "packages", "missing: " + ", ".join(missing) if missing else "all there", "run `make demo` or `make test`"


def ffmpeg():
    own = shutil.which("ffmpeg")
    bundled = importlib.util.find_spec("imageio_ffmpeg") is not None
    found = own or ("the binary of imageio-ffmpeg" if bundled else "none")
    return bool(own or bundled), "ffmpeg", found, "pip install imageio-ffmpeg, or apt-get install ffmpeg"


def graphics():
    """Headless rendering needs EGL or OSMesa."""
    libraries = {name: ctypes.util.find_library(name) for name in ("EGL", "OSMesa", "GL")}
    there = [name for name, path in libraries.items() if path]
    passed = bool(libraries["EGL"] or libraries["OSMesa"])
    return passed, "headless OpenGL", ", ".join(there) or "none", "apt-get install -y libegl1 libgl1-mesa-dri libosmesa6 libgl1 libgles2"


def cores():
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count >= 2, "CPU cores", str(count), "two are needed to end in the promised time; one works, slower"


def disk(store):
    folder = _existing(store)
    free = shutil.disk_usage(folder).free
    return free >= NEEDED_BYTES, "free disk", f"{free / 1e9:.1f} GB at {folder}", f"free up to {NEEDED_BYTES / 1e9:.0f} GB, or set TUBELET_STORE"


def writable(store):
    folder = _existing(store)
    passed = os.access(folder, os.W_OK)
    found = f"{store} {'can' if passed else 'cannot'} be written"
    return passed, "store", found, "mend its permissions, or set TUBELET_STORE"


def _existing(path):
    path = os.path.abspath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path
