"""Checkpoints are whole or absent; the guard and the verdict say when a training is not worth going on with."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipelines.training import checkpoint
from pipelines.training.engine import EngineConfig, PlainEngine
from pipelines.training.guard import Guard, GuardStop, StopRequest
from pipelines.training.metrics import Health, health, rank_me


def engine_with(value: float) -> PlainEngine:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, value)
    return PlainEngine(net, EngineConfig())


def save(folder: Path, step: int) -> None:
    checkpoint.save(folder, step, engine_with(float(step)), lambda _: {"note": "kept"})


def test_newest_is_taken_one_before_is_kept_older_go(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    for step in (100, 200, 1000):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000200", "step-000001000"]
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.step_of(newest) == 1000
    state = checkpoint.read_engine_state(newest)
    assert float(state.weights["weight"][0, 0]) == 1000 and state.steps == 0 and state.moments == {}


@pytest.mark.parametrize("name", ["student.safetensors", "state.json", "MANIFEST.json"])
def test_flipped_byte_sends_back_to_the_checkpoint_before(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "step-000000002" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.step_of(newest) == 1
    save(tmp_path, 2)
    again = checkpoint.newest(tmp_path)
    assert again is not None and checkpoint.step_of(again) == 2


def test_death_inside_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save(tmp_path, 1)

    def die(_: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, engine_with(2.0), die)
    assert (tmp_path / ".draft-step-000000002" / "student.safetensors").exists()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.step_of(newest) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_guard_stops_after_three_refused_steps_in_a_row_and_names_the_samples() -> None:
    guard = Guard()
    guard.note(1, False, ["a"])
    guard.note(2, False, ["b"])
    guard.note(3, True, ["c"])
    restored = Guard()
    restored.restore(guard.to_dict())
    restored.note(4, False, ["d"])
    restored.note(5, False, ["e"])
    with pytest.raises(GuardStop, match="samples 17"):
        restored.note(6, False, ["17 (clip abc)"])


def test_guard_stops_after_ten_refused_steps_in_a_thousand_but_not_in_many() -> None:
    patient = Guard()
    for step in range(0, 4000, 200):
        patient.note(step, False, [])
        patient.note(step + 1, True, [])
    guard = Guard()
    with pytest.raises(GuardStop):
        for step in range(0, 1000, 50):
            guard.note(step, False, [])
            guard.note(step + 1, True, [])
    assert len(guard.refused) == 10


def test_stop_request_keeps_the_process_and_gives_the_handlers_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequest() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.asked
    assert signal.getsignal(signal.SIGUSR1) == before


def test_rank_me_counts_directions() -> None:
    source = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(32, 32, generator=source)).Q
    for rank in (1, 4, 32):
        features = torch.linalg.qr(torch.randn(256, rank, generator=source)).Q @ directions[:rank]
        assert rank_me(features) == pytest.approx(rank, rel=1e-3)


def measured(**changes: float) -> Health:
    return {"rank_me": 40.0, "target_std": 0.75, "mean_loss": 0.4, "floor": 0.7, "data_wait": 0.1, **changes}


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({}, "healthy"),
        ({"rank_me": 5.0}, "collapsing"),
        ({"rank_me": 2.0, "mean_loss": 0.01}, "collapsed"),
        ({"target_std": 0.01}, "collapsed"),
        ({"data_wait": 0.8}, "starved"),
    ],
)
def test_verdict_names_the_state_and_the_numbers_behind_it(last: dict[str, float], state: str) -> None:
    verdict = health([measured(), measured(**last)])
    assert verdict.state == state
    assert verdict.line.startswith(state) and "RankMe" in verdict.line and "for a constant guess" in verdict.line


def test_dull_videos_are_not_called_a_collapse() -> None:
    assert health([measured(rank_me=1.5, target_std=0.02), measured(rank_me=1.4, target_std=0.02)]).state == "healthy"
