"""A small pool of worker processes that may hang or die: each item has a time limit, and a stuck worker is replaced.

Native decoders can loop for ever or crash on damaged files, and no Python time-out reaches them; only killing the
process does. Workers are plain `python -m pipelines.video.workers` children (not `multiprocessing`, whose spawn would
import the caller's main module again, and whose pools cannot kill one worker). An item that takes long for a good
reason says `beat()` now and then: its limit counts from the last beat, and nothing else limits it. So a function may beat
only for work that must end, such as reading a file of so many bytes.
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
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import Any, Literal

from models.errors import TubeletError

START_LIMIT_S = 120.0  # importing on a crowded machine; the items' own limit starts after it
TICK_S = 1.0
BEAT_EVERY_S = 0.2
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Outcome:
    """What became of one item: `value` when `failure` is None; `detail` says more about a failure; `told` is what its
    function had said of it before (see `tell`) and `cpu_s` its cost, both of the last try."""

    value: Any = None
    failure: Literal["timeout", "died", "error"] | None = None
    detail: str = ""
    told: Any = None
    attempts: int = 1
    cpu_s: float = 0.0


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
        self.told: Any = None
        self.ready = False
        self.limit_s = START_LIMIT_S
        self.deadline = time.monotonic() + START_LIMIT_S

    def give(self, index: int, item: Any, timeout_s: float) -> None:
        self.item, self.told, self.limit_s = index, None, timeout_s
        self.deadline = time.monotonic() + timeout_s
        with contextlib.suppress(BrokenPipeError):  # it died while idle: the closed pipe is noticed at the next wait
            self.pipe.send(item)

    def beat(self) -> None:
        self.deadline = time.monotonic() + self.limit_s

    def rest(self) -> None:
        self.item, self.deadline = None, float("inf")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.pipe.close()


class Crew:
    """At most `workers` processes of one thread each that apply `target` ("module:function") to items, map after map.

    Processes start when there is work and stay until the context ends, so that a stage pays for their start once.
    `cpu_s` is what the items have cost so far (their last tries), which the system tells of living children to nobody else.
    """

    def __init__(self, target: str, workers: int) -> None:
        self._target, self._size = target, max(1, workers)
        self._workers: list[_Worker] = []
        self.cpu_s = 0.0

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def map(
        self, items: Sequence[Any], *, timeout_s: float, attempts: int = 2, progress: Callable[..., None] | None = None
    ) -> list[Outcome]:
        """Apply the target to every (picklable) item; outcomes in their order.

        An item whose worker hangs for `timeout_s` seconds or dies is tried `attempts` times in all, each time in a
        fresh process; an exception in the function is not tried again.
        """
        outcomes: list[Outcome | None] = [None] * len(items)
        tries = [0] * len(items)
        queue = list(range(len(items)))[::-1]
        while queue or any(worker.item is not None for worker in self._workers):
            wanted = min(self._size, len(queue) + sum(worker.item is not None for worker in self._workers))
            while len(self._workers) < wanted:
                self._workers.append(_Worker(self._target))
            for worker in self._workers:
                if worker.ready and worker.item is None and queue:
                    index = queue.pop()
                    tries[index] += 1
                    worker.give(index, items[index], timeout_s)
            patience = max(0.0, min(TICK_S, min(worker.deadline for worker in self._workers) - time.monotonic()))
            ready = wait([worker.pipe for worker in self._workers], timeout=patience)
            for worker in list(self._workers):
                failure = _attend(worker, worker.pipe in ready, outcomes, tries)
                if failure is None:
                    continue
                worker.kill()
                self._workers.remove(worker)
                if worker.item is None and worker.ready:
                    continue
                if worker.item is None:
                    raise TubeletError(
                        f"a worker for {self._target} could not start", expected="an importable function",
                        found=failure.detail, remedy="see its message above",
                    )  # fmt: skip
                if tries[worker.item] < attempts:
                    queue.append(worker.item)
                else:
                    outcomes[worker.item] = failure
            if progress is not None:
                progress(sum(outcome is not None for outcome in outcomes), len(items))
        self.cpu_s += sum(outcome.cpu_s for outcome in outcomes if outcome is not None)
        return [outcome for outcome in outcomes if outcome is not None]  # every item has one: the loop ends only then


def map_killable(
    target: str,
    items: Sequence[Any],
    *,
    workers: int,
    timeout_s: float,
    attempts: int = 2,
    progress: Callable[..., None] | None = None,
) -> list[Outcome]:
    """`Crew.map` with a crew for this one call."""
    with Crew(target, workers) as crew:
        return crew.map(items, timeout_s=timeout_s, attempts=attempts, progress=progress)


def _attend(worker: _Worker, has_message: bool, outcomes: list[Outcome | None], tries: list[int]) -> Outcome | None:
    """Take a worker's message or notice that it is stuck or dead; returns the failure that it must be killed for."""
    attempts = tries[worker.item] if worker.item is not None else 1
    if has_message:
        try:
            kind, content, cpu_s = worker.pipe.recv()
        except (EOFError, ConnectionError):
            code = worker.process.wait()
            return Outcome(failure="died", detail=f"worker ended with code {code}", told=worker.told, attempts=attempts)
        if kind in ("beat", "told"):
            worker.told = content if kind == "told" else worker.told
            worker.beat()
        elif not worker.ready:
            worker.ready = True
            worker.rest()
        elif worker.item is not None:
            done = Outcome(value=content) if kind == "value" else Outcome(failure="error", detail=content)
            outcomes[worker.item] = replace(done, told=worker.told, attempts=attempts, cpu_s=cpu_s)
            worker.rest()
        return None
    if time.monotonic() >= worker.deadline:
        return Outcome(failure="timeout", detail="no answer within the time limit", told=worker.told, attempts=attempts)
    return None


_own_pipe: Connection | None = None  # set in a worker process only
_last_beat = 0.0


def beat() -> None:
    """Called by a function that runs in a worker: it is alive, and its time limit starts anew. Elsewhere it does nothing."""
    global _last_beat
    now = time.monotonic()
    if _own_pipe is not None and now - _last_beat >= BEAT_EVERY_S:
        _last_beat = now
        _own_pipe.send(("beat", None, 0.0))


def tell(content: Any) -> None:
    """Called by a function that runs in a worker: what the parent shall know of the item (picklable) even if the worker
    hangs or dies over it later, as `Outcome.told`; the last call counts. It is a sign of life, too. Elsewhere it does nothing."""
    if _own_pipe is not None:
        _own_pipe.send(("told", content, 0.0))


def _serve(descriptor: int, parent: int) -> None:
    """Life of a worker: receive the target's name, then items, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and kills
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    global _own_pipe
    pipe = _own_pipe = Connection(descriptor)
    module_name, _, name = pipe.recv().partition(":")
    function = getattr(importlib.import_module(module_name), name)
    pipe.send(("ready", None, 0.0))
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        started = time.process_time()
        try:
            answer = ("value", function(item))
        except Exception as error:  # the parent turns it into a typed row with this text
            answer = ("error", f"{type(error).__name__}: {error}")
        pipe.send((*answer, time.process_time() - started))


if __name__ == "__main__":
    # By its real name, not as __main__: `beat` must find the pipe in the module that functions import.
    importlib.import_module("pipelines.video.workers")._serve(int(sys.argv[1]), int(sys.argv[2]))
