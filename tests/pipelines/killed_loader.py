"""A loader that is killed and started again: shared by the one kill in `make test` and the campaign in `make soak`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from loader_runner import finished

RUNNER = Path(__file__).with_name("loader_runner.py")
REPOSITORY = Path(__file__).parents[2]


def start(shards: Path, out: Path, steps: int, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(RUNNER), str(shards), str(out), str(steps), str(workers)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(command, env=environment, cwd=REPOSITORY, text=True, stderr=subprocess.PIPE)


def kill_at(shards: Path, out: Path, steps: int, workers: int, step: int) -> int:
    """SIGKILL once `step` steps are on the disk; returns how many there are then."""
    process = start(shards, out, steps, workers)
    deadline = time.monotonic() + 120
    while len(finished(out)) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return len(finished(out))


def finish(shards: Path, out: Path, steps: int, workers: int) -> list[str]:
    process = start(shards, out, steps, workers)
    _, error = process.communicate(timeout=280)
    assert process.returncode == 0, error
    return finished(out)
