"""Starts training processes, relays what they say, and makes sure that none outlives the work it was started for."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipelines.errors import InputError
from pipelines.training.guardian import PR_SET_PDEATHSIG
from pipelines.training.lease import HeldFolder, Lease, clear, hold, reconcile

__all__ = ["PERMANENT_EXIT_CODES", "Job", "Lease", "Starter", "clear", "distributed_jobs", "launch", "reconcile", "training_jobs"]

logger = logging.getLogger("tubelet.launcher")

EXIT_INPUT = 2
"""What was asked for cannot be done; the message is in the log."""
EXIT_STOPPED = 85
"""Asked to stop (SIGTERM, SIGUSR1): a checkpoint was written and the next start goes on from it."""
EXIT_GUARD = 86
"""The guard ended the training: too many steps without finite numbers."""
PERMANENT_EXIT_CODES = frozenset({EXIT_INPUT, EXIT_GUARD})
"""Another attempt would end the same way."""

ENDED = "exit-code"
"""File in the work folder in which a rank leaves why it ended: torchrun and deepspeed end with another code than their ranks."""

Starter = Literal["processes", "torchrun", "deepspeed"]
SETTLE_S = 2.0
GUARDIAN = Path(__file__).with_name("guardian.py")


@dataclass(frozen=True)
class Job:
    """One process. `env` is laid over this process's environment; a value of None takes the name away."""

    command: Sequence[str]
    env: Mapping[str, str | None] = field(default_factory=dict)
    name: str = "job"


def training_jobs(
    module: str, args: Sequence[str], ranks: int, threads: int = 1, starter: Starter = "processes", options: Sequence[str] = ()
) -> list[Job]:
    """`python -m module args` as `ranks` processes a machine: started one by one on this machine, or by torchrun or the deepspeed
    command, whose `options` (rendezvous, hostfile) may name more machines."""
    if starter == "processes":
        if options:
            raise InputError(
                "processes that are started one by one take no options", expected="none", found=" ".join(options),
                remedy="set the launcher's starter to torchrun or deepspeed",
            )  # fmt: skip
        return distributed_jobs(module, args, ranks, threads)
    ready = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    if starter == "torchrun":
        ready["PET_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"  # which it passes on; older ones have no such option
        command = ["torch.distributed.run", "--nproc-per-node", str(ranks), "--max-restarts", "0", *(options or ["--standalone"]), "-m"]
    else:
        command = ["deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(free_port()), *options, "--module"]
    return [Job([sys.executable, "-m", *command, module, *args], ready, starter)]


def distributed_jobs(
    module: str, args: Sequence[str], ranks: int, threads: int = 1, env: Mapping[str, str | None] | None = None
) -> list[Job]:
    """`python -m module args` as `ranks` processes of one gloo or NCCL group on this machine, `threads` CPU threads each.

    Rank 0 alone may speak Pipes: two speakers in one session break the Dagster run.
    """
    port = free_port()
    jobs = []
    for rank in range(ranks):
        overlay: dict[str, str | None] = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
            # Without a name gloo looks the host up, which fails in many containers.
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
            "PYTHONUNBUFFERED": "1", **(env or {}),
        }  # fmt: skip
        if rank:
            overlay |= {name: None for name in {*os.environ, *overlay} if name.startswith("DAGSTER_PIPES_")}
        jobs.append(Job([sys.executable, "-m", module, *args], overlay, f"rank{rank}"))
    return jobs


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    jobs: Sequence[Job], *, cwd: Path, work_folder: Path, on_line: Callable[[str], None], grace_s: float = 20.0, run_id: str = ""
) -> list[int]:
    """Run all jobs at once in `work_folder`'s lock and return their exit codes in order (128 + n for signal n).

    `on_line` gets every line they write, in this thread, marked with the job's name after the first job; each job's
    lines are also kept in `work_folder`/<name>.log. When one fails, the others are asked to stop. Whatever ends this
    call, also an exception or Ctrl-C, no process is left: SIGTERM, `grace_s`, SIGKILL, to each job's whole process group.
    Raises `InputError` when a living training holds the folder.
    """
    with hold(work_folder, run_id, wait_s=grace_s + 2) as held:
        (work_folder / ENDED).unlink(missing_ok=True)
        lines: queue.Queue[str] = queue.Queue()
        running: list[subprocess.Popen[str]] = []
        readers: list[threading.Thread] = []
        try:
            for number, job in enumerate(jobs):
                running.append(_start(job, cwd, held, grace_s))
                prefix = f"[{job.name}] " if number else ""
                log = work_folder / f"{job.name if len({item.name for item in jobs}) == len(jobs) else number}.log"
                readers.append(threading.Thread(target=_read, args=(running[-1], lines, prefix, log), daemon=True))
                readers[-1].start()
            _watch(running, jobs, lines, held, on_line)
        finally:
            _stop(running, grace_s)
        for reader in readers:
            reader.join(timeout=2)  # a process that left its group may hold the pipe open
        while not lines.empty():
            on_line(lines.get())
        codes = [process.returncode for process in running]
        return [int((work_folder / ENDED).read_text())] if len(codes) == 1 and codes[0] and (work_folder / ENDED).is_file() else codes


def die_with_parent() -> None:
    """Have this process killed when the one that started it ends: torchrun gives its ranks sessions of their own, out of reach of a
    process group (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _start(job: Job, cwd: Path, held: HeldFolder, grace_s: float) -> subprocess.Popen[str]:
    env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(round(grace_s)), **os.environ, **job.env}
    guarded = [sys.executable, "-I", "-S", str(GUARDIAN), str(os.getpid()), str(grace_s), *job.command]
    return subprocess.Popen(
        guarded, cwd=cwd, env={name: value for name, value in env.items() if value is not None}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        pass_fds=(held.descriptor,),
    )  # fmt: skip


def _read(process: subprocess.Popen[str], lines: queue.Queue[str], prefix: str, log: Path) -> None:
    """Read to the end whatever happens to the copy: a pipe that nobody empties would stop the process."""
    assert process.stdout is not None
    told = False
    for line in process.stdout:
        lines.put(prefix + line.rstrip("\n"))
        try:
            with open(log, "a") as copy:  # anew for each of a few lines a second, so that nothing waits in it when the disk is full
                copy.write(line)
        except OSError as error:
            if not told:
                lines.put(f"{prefix}{log} lacks lines from here on: {error}")
            told = True


def _watch(
    running: list[subprocess.Popen[str]], jobs: Sequence[Job], lines: queue.Queue[str], held: HeldFolder, on_line: Callable[[str], None]
) -> None:
    """Relay lines until all have ended; give the others `SETTLE_S` to end by themselves once one has failed."""
    failed_at: float | None = None
    while any(process.poll() is None for process in running):
        try:
            on_line(lines.get(timeout=0.1))
            while not lines.empty():
                on_line(lines.get())
        except queue.Empty:
            try:
                held.beat()
            except OSError as error:
                logger.warning("the lease was not renewed: %s", error)
        codes = [process.poll() for process in running]
        if failed_at is None and any(codes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > SETTLE_S:
            ended = ", ".join(f"{job.name} ended with {code}" for job, code in zip(jobs, codes, strict=True) if code)
            logger.info("%s: stopping the others", ended)
            return


def _stop(running: Sequence[subprocess.Popen[str]], grace_s: float) -> None:
    """Ask every guardian that still runs to end its group; kill a guardian that does not (its trainer dies with it)."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace_s + 5
    for process in running:
        try:
            process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("the guardian %d does not end; killing it", process.pid)
            process.kill()
            process.wait()
