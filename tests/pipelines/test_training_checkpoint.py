"""Checkpoints are whole or absent, of the moment they were asked for, and never in the way of the training."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import nn

from pipelines.errors import TrainingError
from pipelines.training import checkpoint
from pipelines.training.engine import EngineConfig, PlainEngine


def engine_with(value: float) -> PlainEngine:
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, value)
    return PlainEngine(net, EngineConfig())


def save(folder: Path, step: int, keep_every: int | None = None) -> None:
    writer = checkpoint.Writer(folder, engine_with(float(step)), keep_every)
    writer.save(step, lambda: ({"more.safetensors": {"a": torch.ones(3)}}, {"note": "kept"}))
    writer.finish()


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


def test_death_inside_a_save_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "seal", mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert (tmp_path / ".draft-step-000000002" / "student.safetensors").exists()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.step_of(newest) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_checkpoint_is_of_the_moment_it_was_asked_for_although_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, may_write = engine_with(1.0), threading.Event()
    write_before = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *arguments: (may_write.wait(10), write_before(*arguments)))
    writer, beside = checkpoint.Writer(tmp_path, engine), {"seen": [1]}
    writer.save(1, lambda: ({}, dict(beside)))
    with torch.no_grad():
        engine.module.weight.fill_(2.0)
    beside["seen"].append(2)
    may_write.set()
    writer.finish()
    assert float(checkpoint.read_engine_state(tmp_path / "step-000000001").weights["weight"][0, 0]) == 1.0
    assert json.loads((tmp_path / "step-000000001" / "state.json").read_text()) == {"seen": [1], "step": 1}


def test_full_disk_is_heard_of_at_the_next_step_and_the_checkpoint_before_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    writer = checkpoint.Writer(tmp_path, engine_with(2.0))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        writer.save(2, lambda: ({}, {}))
        assert writer._thread is not None
        writer._thread.join()
        with pytest.raises(OSError, match="No space left"):
            writer.check()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and checkpoint.step_of(newest) == 1
    writer.save(2, lambda: ({}, {}))  # told once: with room again it goes on
    writer.finish()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-000000002"


def test_every_nth_checkpoint_is_kept_for_good(tmp_path: Path) -> None:
    for step in range(10, 80, 10):
        save(tmp_path, step, keep_every=30)
    assert [checkpoint.step_of(path) for path in sorted(tmp_path.iterdir())] == [30, 50, 60, 70]


def test_when_no_checkpoint_is_whole_the_training_does_not_begin_again_without_a_word(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, 3, {checkpoint.STUDENT: {"weight": torch.ones(2)}}, "{}")
    (tmp_path / "step-000000003" / checkpoint.STUDENT).write_bytes(b"half")
    for _ in range(2):
        with pytest.raises(TrainingError, match="damaged-step-000000003"):
            checkpoint.newest(tmp_path)
    for step in (6, 9):
        checkpoint.write(tmp_path, step, {checkpoint.STUDENT: {"weight": torch.ones(2)}}, "{}")
    checkpoint.prune(tmp_path, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000006", "step-000000009"]


def test_a_file_system_that_hangs_for_a_moment_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, 3, {checkpoint.STUDENT: {"weight": torch.ones(2)}}, "{}")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "file_sha256", mock.Mock(side_effect=OSError(errno.ESTALE, "Stale file handle")))
        with pytest.raises(OSError, match="Stale"):
            checkpoint.newest(tmp_path)
    found = checkpoint.newest(tmp_path)
    assert found is not None and checkpoint.step_of(found) == 3

