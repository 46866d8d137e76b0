"""The killable pool: order, time limits, replacement of stuck and dead workers."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.errors import TubeletError
from pipelines.video import workers
from pipelines.video.workers import Crew, beat, map_killable, tell


@pytest.mark.parametrize("workers", [1, 2])
def test_outcomes_keep_the_order_of_items_whatever_the_worker_count(workers: int) -> None:
    outcomes = map_killable("math:sqrt", [9.0, 4.0, 1.0, 0.0], workers=workers, timeout_s=20)
    assert [outcome.value for outcome in outcomes] == [3.0, 2.0, 1.0, 0.0]


def test_hung_item_times_out_and_its_neighbours_are_served() -> None:
    outcomes = map_killable("time:sleep", [0.0, 600.0, 0.0], workers=1, timeout_s=0.5, attempts=2)
    assert [outcome.failure for outcome in outcomes] == [None, "timeout", None]
    assert outcomes[1].attempts == 2


def test_worker_that_dies_is_replaced_and_its_item_named() -> None:
    outcomes = map_killable("os:_exit", [3], workers=2, timeout_s=20, attempts=2)
    assert outcomes[0].failure == "died" and "3" in outcomes[0].detail and outcomes[0].attempts == 2


def test_exception_in_the_function_is_an_outcome_with_its_text() -> None:
    outcomes = map_killable("math:sqrt", [-1.0, 4.0], workers=1, timeout_s=20)
    assert outcomes[0].failure == "error" and "ValueError" in outcomes[0].detail
    assert outcomes[1].value == 2.0


def test_unknown_target_is_an_error_and_leaves_no_process() -> None:
    with pytest.raises(TubeletError, match="could not start"):
        map_killable("math:no_such_function", [1.0], workers=1, timeout_s=5)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_no_items_start_no_worker() -> None:
    assert map_killable("math:no_such_function", [], workers=2, timeout_s=5) == []


def slow_but_alive(steps: int) -> int:
    """Takes 0.1 s a step and says so."""
    for _ in range(steps):
        time.sleep(0.1)
        beat()
    return steps


def test_limit_counts_from_the_last_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    outcomes = map_killable("test_video_workers:slow_but_alive", [20], workers=1, timeout_s=0.8)
    assert (outcomes[0].value, outcomes[0].attempts) == (20, 1)


def test_signs_of_life_may_go_on_for_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    worker = object.__new__(workers._Worker)
    worker.pipe = SimpleNamespace(send=lambda item: None)  # type: ignore[assignment]
    with monkeypatch.context() as patched:
        patched.setattr(workers.time, "monotonic", lambda: now[0])
        worker.give(0, "long.mp4", timeout_s=30.0)
        for _ in range(1000):
            now[0] += 29.0
            worker.beat()
    assert worker.deadline == now[0] + 30.0


def say_and_die(word: str) -> None:
    tell(word)
    os._exit(3)


def say_and_hang(word: str) -> None:
    tell(word)
    time.sleep(600)


@pytest.mark.parametrize("target", ["say_and_die", "say_and_hang"])
def test_what_was_told_before_a_failure_is_kept(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    outcomes = map_killable(f"test_video_workers:{target}", ["one", "two"], workers=1, timeout_s=1.0, attempts=1)
    assert [(outcome.failure is not None, outcome.told) for outcome in outcomes] == [(True, "one"), (True, "two")]


def test_crew_keeps_its_processes_from_one_map_to_the_next() -> None:
    with Crew("os:getppid", 1) as crew, Crew("os:getpgid", 1) as other:
        first = crew.map([], timeout_s=20)
        pids = [other.map([0], timeout_s=20)[0].value for _ in range(2)]
    assert first == [] and pids[0] == pids[1]
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
