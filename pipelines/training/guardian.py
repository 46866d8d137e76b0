"""The keeper of one training process: `python -I -S guardian.py PARENT GRACE COMMAND...`, standard library only.

It runs the command in a session of its own and ends with its exit code (128 + n when signal n killed it). When asked to
stop (SIGTERM, SIGINT, SIGUSR1), or when the parent is gone, even by SIGKILL, it sends SIGTERM to the whole process group, waits
GRACE seconds for a checkpoint to be written, then kills the group. The run folder's lock is open in this process, so
it is free only when nobody can write there any more.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

WATCHED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}
LOOK_EVERY_S = 0.5
PR_SET_PDEATHSIG = 1


def keep(parent: int, grace_s: float, command: list[str]) -> int:
    """Run `command` to its end and return its exit code."""
    libc = ctypes.CDLL(None)
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)
        # Should even this process be killed, the kernel takes the trainer down.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    child = subprocess.Popen(command, start_new_session=True, preexec_fn=prepare)
    kill_at: float | None = None
    while child.poll() is None:
        arrived = signal.sigtimedwait(WATCHED, LOOK_EVERY_S)
        asked = arrived is not None and arrived.si_signo != signal.SIGCHLD
        if kill_at is None and (asked or os.getppid() != parent):
            send(child.pid, signal.SIGTERM)
            kill_at = time.monotonic() + grace_s
        elif kill_at is not None and time.monotonic() > kill_at:
            send(child.pid, signal.SIGKILL)
    # What was asked to stop may take its time, also when the command that started it (deepspeed's) has ended before.
    while kill_at is not None and time.monotonic() < kill_at and send(child.pid, 0):
        time.sleep(LOOK_EVERY_S / 5)
    # What the trainer started and left behind must not outlive it.
    send(child.pid, signal.SIGKILL)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def send(group: int, number: int) -> bool:
    """Whether there is anybody in the group that it was sent to."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
