"""A small pool of worker processes that may hang or die: each item has a time limit, and a stuck worker is replaced.

Native decoders can loop for ever or crash on damaged files, and no Python time-out reaches them; only killing the
process does. Workers are plain `python -m pipelines.video.workers` children (not `multiprocessing`, whose spawn would
import the caller's main module again, and whose pools cannot kill one worker).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Literal

from models.errors import TubeletError

START_LIMIT_S = 120.0  # importing on a crowded machine; the items' own limit starts after it
TICK_S = 1.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one item: `value` when `failure` is None; `detail` says more about a failure."""

    value: Any = None
    failure: Literal["timeout", "died", "error"] | None = None
    detail: str = ""
    attempts: int = 1


class _Worker:
    """One child process that serves one target function over a pipe."""

    def __init__(self, target: str) -> None:
        self.pipe, theirs = Pipe()
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.video.workers", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        self.pipe.send(target)
        self.item: int | None = None
        self.ready = False
        self.deadline = time.monotonic() + START_LIMIT_S

    def give(self, index: int, item: Any, timeout_s: float) -> None:
        self.item, self.deadline = index, time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # it died while idle: the closed pipe is noticed at the next wait
            self.pipe.send(item)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


def map_killable(
    target: str,
    items: Sequence[Any],
    *,
    workers: int,
    timeout_s: float,
    attempts: int = 2,
    progress: Callable[..., None] | None = None,
) -> list[Outcome]:
    """Apply `target` ("module:function", importable, of one picklable item) to `items`; outcomes in their order.

    At most `workers` processes with one thread each. An item whose worker hangs for `timeout_s` seconds or dies is
    tried `attempts` times in all, each time in a fresh process; an exception in the function is not tried again.
    """
    outcomes: list[Outcome | None] = [None] * len(items)
    tries = [0] * len(items)
    queue = list(range(len(items)))[::-1]
    crew: list[_Worker] = []
    try:
        while queue or any(worker.item is not None for worker in crew):
            wanted = min(workers, len(queue) + sum(worker.item is not None for worker in crew))
            while len(crew) < max(1, wanted):
                crew.append(_Worker(target))
            for worker in crew:
                if worker.ready and worker.item is None and queue:
                    index = queue.pop()
                    tries[index] += 1
                    worker.give(index, items[index], timeout_s)
            next_deadline = min(worker.deadline for worker in crew)
            patience = max(0.0, min(TICK_S, next_deadline - time.monotonic()))
            ready = wait([worker.pipe for worker in crew], timeout=patience)
            for worker in list(crew):
                failure = _attend(worker, worker.pipe in ready, outcomes, tries)
                if failure is None:
                    continue
                worker.kill()
                crew.remove(worker)
                if worker.item is None and worker.ready:
                    continue
                if worker.item is None:
                    raise TubeletError(
                        f"a worker for {target} could not start", expected="an importable function",
                        found=failure.detail, remedy="see its message above",
                    )  # fmt: skip
                if tries[worker.item] < attempts:
                    queue.append(worker.item)
                else:
                    outcomes[worker.item] = failure
            if progress is not None:
                progress(sum(outcome is not None for outcome in outcomes), len(items))
    finally:
        for worker in crew:
            worker.kill()
    return [outcome for outcome in outcomes if outcome is not None]  # every item has one: the loop ends only then


def _attend(worker: _Worker, has_message: bool, outcomes: list[Outcome | None], tries: list[int]) -> Outcome | None:
    """Take a worker's message or notice that it is stuck or dead; returns the failure that it must be killed for."""
    attempts = tries[worker.item] if worker.item is not None else 1
    if has_message:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, ConnectionError):
            code = worker.process.wait()
            return Outcome(failure="died", detail=f"worker ended with code {code}", attempts=attempts)
        if not worker.ready:
            worker.ready, worker.deadline = True, float("inf")
        elif worker.item is not None:
            done = Outcome(value=content) if kind == "value" else Outcome(failure="error", detail=content)
            outcomes[worker.item] = Outcome(done.value, done.failure, done.detail, attempts)
            worker.item, worker.deadline = None, float("inf")
        return None
    if time.monotonic() >= worker.deadline:
        return Outcome(failure="timeout", detail="no answer within the time limit", attempts=attempts)
    return None


def _serve(descriptor: int, parent: int) -> None:
    """Life of a worker: receive the target's name, then items, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and kills
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    pipe = Connection(descriptor)
    module, _, name = pipe.recv().partition(":")
    function = getattr(importlib.import_module(module), name)
    pipe.send(("ready", None))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("value", function(item))
        except Exception as error:  # the parent turns it into a typed row with this text
            answer = ("error", f"{type(error).__name__}: {error}")
        pipe.send(answer)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
