"""A training that is stopped, killed or damaged goes on as if nothing had happened, or says why not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipelines.errors import TrainingError
from pipelines.pretraining import run
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import read_spec
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import load_recipe
from pipelines.shards.index import ShardError, ShardIndex
from pipelines.shards.loader import Reading
from pipelines.training import checkpoint
from pipelines.training.launcher import EXIT_GUARD, EXIT_INPUT, EXIT_STOPPED
from pipelines.training.lease import only_writer
from tests.pipelines.small_pretraining import ROOT, losses, same, spec_in, stop_at

pytestmark = pytest.mark.usefixtures("own_process_state")


def test_sigterm_writes_a_checkpoint_and_the_next_start_ends_as_if_nothing_had_happened(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, made_shards)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000003", "step-000000004"]
    assert not (tmp_path / "result").exists() and shown_by_tensorboard(tmp_path) == [1, 2, 3, 4]
    assert run.main(["--spec", str(spec)]) == 0
    same(undisturbed, tmp_path / "result")
    assert losses(tmp_path) == losses(undisturbed) and shown_by_tensorboard(tmp_path) == [1, 2, 3, 4, 5, 6]


def shown_by_tensorboard(folder: Path) -> list[int]:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [point.step for point in board.Scalars("loss")]


def test_a_damaged_line_of_metrics_is_a_gap_in_a_curve_and_no_more(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_in(tmp_path, made_shards)
    with monkeypatch.context() as patch:
        stop_at(4, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo\n' + "".join(lines[1:]))
    assert run.main(["--spec", str(spec)]) == 0
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [2, 3, 4, 5, 6]


def test_damaged_checkpoint_costs_one_interval_and_nothing_else(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, made_shards)
    with monkeypatch.context() as patch:
        stop_at(4, patch, signal.SIGUSR1)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    path = tmp_path / "checkpoints" / "step-000000005" / "optimizer.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run.main(["--spec", str(spec)]) == 0
    same(undisturbed, tmp_path / "result")
    assert losses(tmp_path) == losses(undisturbed)


KILLED_IN_ITS_SECOND_SAVE = """
import os, signal, sys
from pipelines.pretraining import run
from pipelines.training import checkpoint
seal, saves = checkpoint.seal, []
def dying(folder, *rest):
    saves.append(folder)
    if len(saves) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder, *rest)
checkpoint.seal = dying
run.main(["--spec", sys.argv[1]])
"""


def test_kill_inside_a_save_costs_one_interval_and_nothing_else(
    undisturbed: Path, made_shards: Path, tmp_path: Path
) -> None:
    often = {**load_recipe("smoke").resolved()["pretraining"]["pretrain"], "checkpoint_every": 2}
    spec = spec_in(tmp_path, made_shards, pretrain=often)
    command = [sys.executable, "-c", KILLED_IN_ITS_SECOND_SAVE, str(spec)]
    killed = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [".draft-step-000000004", "step-000000002"]
    assert run.main(["--spec", str(spec)]) == 0
    same(undisturbed, tmp_path / "result")
    assert losses(tmp_path) == losses(undisturbed)


def test_ctrl_c_writes_a_checkpoint_too(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(4, monkeypatch, signal.SIGINT)
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards))]) == EXIT_STOPPED
    assert (tmp_path / "checkpoints" / "step-000000005").is_dir()


def test_a_second_training_in_the_same_folder_is_refused(made_shards: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, made_shards)
    with only_writer(tmp_path):
        assert run.main(["--spec", str(spec)]) == EXIT_INPUT
    assert not (tmp_path / "result").exists() and run.main(["--spec", str(spec)]) == 0


def test_full_disk_ends_the_training_with_the_reason_and_room_lets_it_go_on(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, said = spec_in(tmp_path, made_shards), list[str]()
    (tmp_path / "exit-code").mkdir()  # there is no room for this either
    monkeypatch.setattr(run.logger, "error", lambda _, error: said.append(str(error)))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        assert run.main(["--spec", str(spec)]) == EXIT_INPUT
    assert "is full" in said[0] and "free some space" in said[0]
    assert run.main(["--spec", str(spec)]) == 0
    same(undisturbed, tmp_path / "result")


def test_data_store_that_dies_ends_the_training_with_its_words_and_loses_no_checkpoint(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, said, stored_before, reads = read_spec(spec_in(tmp_path, made_shards)), list[str](), ShardIndex.stored, []
    unkept = spec.model_copy(update={"reading": Reading(workers=1, prefetch=0, cache_bytes=0)})
    (tmp_path / "spec.json").write_text(unkept.model_dump_json())
    monkeypatch.setattr(run.logger, "error", lambda _, error: said.append(str(error)))

    def stored(self: ShardIndex, entry: Any) -> Any:
        reads.append(entry)
        if len(reads) > 18:
            raise ShardError("the store does not answer", remedy="bring it back")
        return stored_before(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(ShardIndex, "stored", stored)
        assert run.main(["--spec", str(tmp_path / "spec.json")]) == EXIT_INPUT
    assert "does not answer" in said[0] and [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000000003"]
    assert run.main(["--spec", str(tmp_path / "spec.json")]) == 0
    same(undisturbed, tmp_path / "result")


def test_three_steps_without_finite_numbers_end_the_run_and_name_the_clips(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_before = Pretraining.losses
    said: list[str] = []
    monkeypatch.setattr(run.logger, "error", lambda _, error: said.append(str(error)))

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        loss, shown = losses_before(self, at, batch, part)
        return loss * (float("nan") if at > 0 else 1.0), shown

    monkeypatch.setattr(Pretraining, "losses", losses)
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards))]) == EXIT_GUARD
    refused = json.loads((tmp_path / "refused.json").read_text())
    assert refused["samples"] == list(range(4, 16)) and "steps 2, 3, 4" in said[0] and refused["clips"][0] in said[0]
    assert not (tmp_path / "result").exists()


def test_half_a_result_is_no_result(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "result")
    (tmp_path / "result" / "encoder.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"encoder\.safetensors"):
        run.build_pretrained(tmp_path, tmp_path)
    assert not (tmp_path / "result" / "DONE.json").exists()
