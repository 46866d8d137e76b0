"""The guard says when a training is not worth going on with; a request to stop is heard."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest

from pipelines.training.guard import ENOUGH, Guard, GuardStop, StopRequest


def usual(guard: Guard, first: int, steps: int, source: random.Random) -> list[int]:
    """Steps of ordinary noise; returns those called spikes."""
    return [step for step in range(first, first + steps) if guard.note(step, True, source.gauss(0.5, 0.01), source.gauss(2.0, 0.1))]


def test_guard_stops_after_three_refused_steps_in_a_row_also_across_a_restart() -> None:
    guard = Guard()
    for step, moved in ((1, False), (2, False), (3, True), (4, False)):
        guard.note(step, moved, 0.5, 1.0)
    restored = Guard()
    restored.restore(json.loads(json.dumps(guard.to_dict())))
    restored.note(5, False, float("nan"), float("nan"))
    with pytest.raises(GuardStop, match="steps 4, 5, 6") as stop:
        restored.note(6, False, float("nan"), float("nan"))
    assert stop.value.steps == (4, 5, 6)


def test_guard_stops_after_ten_refused_steps_in_a_thousand_but_not_in_many() -> None:
    patient = Guard()
    for step in range(0, 4000, 200):
        patient.note(step, False, 0.5, 1.0)
        patient.note(step + 1, True, 0.5, 1.0)
    guard = Guard()
    with pytest.raises(GuardStop):
        for step in range(0, 1000, 50):
            guard.note(step, False, 0.5, 1.0)
            guard.note(step + 1, True, 0.5, 1.0)
    assert len(guard.refused) == 10


def test_spikes_are_told_and_clipped_but_noise_and_a_cold_start_are_not() -> None:
    source, guard = random.Random(0), Guard("clip")
    assert guard.clip(None) is None and not guard.note(1, True, 9.0, 900.0)  # nothing is usual yet
    assert len(usual(guard, 2, 1000, source)) <= 5
    limit = guard.clip(None)
    assert limit is not None and 2.2 < limit < 3.5 and guard.clip(1.0) == 1.0
    assert guard.note(2000, True, 0.5, 90.0) and guard.note(2001, True, 3.0, 2.0)
    assert guard.clip(None) == pytest.approx(limit, rel=0.02)  # one spike does not move what is usual
    assert Guard("log").clip(None) is None


def test_three_spikes_in_a_row_stop_only_where_the_recipe_says_so() -> None:
    for rule in ("log", "stop"):
        guard = Guard(rule)  # type: ignore[arg-type]
        usual(guard, 1, 2 * ENOUGH, random.Random(1))
        assert guard.note(201, True, 0.5, 50.0) and guard.note(202, True, 0.5, 60.0)
        if rule == "log":
            assert guard.note(203, True, 0.5, 70.0)
        else:
            with pytest.raises(GuardStop, match="201, 202, 203"):
                guard.note(203, True, 0.5, 70.0)


def test_stop_request_keeps_the_process_and_gives_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked
    assert signal.getsignal(signal.SIGUSR1) == before
