"""What happens to a stage that is killed: shared by the one kill in `make test` and the campaign in `make soak`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RUNNER = Path(__file__).with_name("stage_runner.py")
REPOSITORY = Path(__file__).parents[2]


def start(stage: str, root: Path, out: Path, work: Path) -> subprocess.Popen[str]:
    out.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, str(RUNNER), stage, str(root), str(out), str(work)], env=environment, cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def finished_parts(work: Path) -> int:
    """Parts that are whole, those of a stage within the stage too; a draft's folder starts with a dot."""
    return sum(not any(name.startswith(".") for name in path.relative_to(work).parts) for path in work.rglob("part.json"))


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """SIGKILL after `seconds`; False when the process had ended by itself."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    ended = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return not ended


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in an artefact folder whose bytes the inputs decide."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
