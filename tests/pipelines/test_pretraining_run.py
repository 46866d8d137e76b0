"""The program that pretrains: from shards to sealed results, through signals, damage and another number of ranks."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file

import pipelines.shards.loader as loader_module
from pipelines import schemas
from pipelines.errors import TrainingError
from pipelines.lineage.exposure import expose, exposures, log_disagreements
from pipelines.lineage.exposure import read_spec as read_exposure
from pipelines.pretraining import run
from pipelines.pretraining.exclusions import Takedowns
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import Spec, read_spec, write_spec
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Recipe, load_recipe
from pipelines.shards.decode import DecodeFailure
from pipelines.shards.exposure_log import LOG_FILE
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import ShardError, ShardIndex
from pipelines.shards.loader import ClipLoader, Reading
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.tombstones import write_tombstones
from pipelines.training import checkpoint
from pipelines.training.engine import PlainEngine
from pipelines.training.guard import Guard
from pipelines.training.launcher import EXIT_GUARD, EXIT_INPUT, EXIT_STOPPED, distributed_jobs, launch

ROOT = Path(__file__).parents[2]
WEIGHTS = ("encoder", "target_encoder", "predictor", "optimizer")


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The program sets threads and logging for its own process; here it shares one with other tests."""
    threads, log = torch.get_num_threads(), logging.getLogger("tubelet")
    handlers, level, propagate = list(log.handlers), log.level, log.propagate
    for name in ("WORLD_SIZE", "RANK", "DAGSTER_PIPES_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(threads)
    log.handlers, log.level, log.propagate = handlers, level, propagate


def spec_in(
    work: Path, shards: Path, phase: Any = "pretrain", init_from: Path | None = None, log_exposures: bool = False,
    exclude_refused: bool = False, **pretraining: Any,
) -> Path:  # fmt: skip
    recipe = load_recipe("smoke").resolved()
    recipe["pretraining"].update(pretraining)
    return write_spec(
        work, Recipe.model_validate(recipe), phase, shards, work / "store", init_from=init_from, log_exposures=log_exposures,
        exclude_refused=exclude_refused,
    )  # fmt: skip


def logged(result: Path, shards: Path) -> tuple[pa.Table, list[str]]:
    """The exposure log of a result, and where it differs from the order drawn again from its lineage."""
    exposure = read_exposure(result)
    assert exposure is not None
    log = schemas.read_table(result / LOG_FILE, schemas.EXPOSURE_LOG)
    return log, log_disagreements(open_mixture(exposure.mixture, shards), exposure, result.parent / "store", log)


def trained(work: Path, shards: Path, **options: Any) -> Path:
    assert run.main(["--spec", str(spec_in(work, shards, **options))]) == 0
    return work / "result"


def same(first: Path, second: Path, atol: float = 0.0) -> None:
    for name in WEIGHTS:
        ours, theirs = load_file(first / f"{name}.safetensors"), load_file(second / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(value, theirs[key], rtol=0, atol=atol, msg=lambda text, key=key, name=name: f"{name} {key}: {text}")


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def undisturbed(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Result of the pretraining phase, one process, never interrupted."""
    return trained(tmp_path_factory.mktemp("undisturbed"), made_shards)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it computes the losses of `step`."""
    losses_before = Pretraining.losses

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return losses_before(self, at, batch, part)

    monkeypatch.setattr(Pretraining, "losses", losses)


def test_result_is_whole_and_says_what_was_seen(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "artefact").mkdir()
    summary = run.build_pretrained(tmp_path / "artefact", undisturbed.parent)
    assert summary["steps"] == 6 and summary["clips"] == 24
    assert summary["health"].startswith(("healthy", "starved"))  # a busy machine may be slow to decode
    assert all((tmp_path / "artefact" / picture).stat().st_size < 100_000 for picture in summary["pictures"])
    checks = run.check_pretrained(tmp_path / "artefact")
    assert {name: check.passed for name, check in checks.items()} == {"finite": True, "not_collapsed": True}
    (exposure,) = json.loads((tmp_path / "artefact" / "state.json").read_text())["exposures"]
    assert (exposure["phase"], exposure["steps"], exposure["global_batch"]) == ("pretrain", 6, 4)
    assert exposure["geometry"]["height"] == 32
    rows = read_metrics(undisturbed / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert "rank_me" in rows[-1] and rows[0]["loss"] == pytest.approx((rows[0]["loss_0"] + rows[0]["loss_1"]) / 2)


def test_sigterm_writes_a_checkpoint_and_the_next_start_ends_as_if_nothing_had_happened(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, made_shards)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000000003", "step-000000004"]
    assert not (tmp_path / "result").exists()
    assert run.main(["--spec", str(spec)]) == 0
    same(undisturbed, tmp_path / "result")
    assert losses(tmp_path) == losses(undisturbed)


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


def test_full_disk_ends_the_training_with_the_reason_and_room_lets_it_go_on(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, said = spec_in(tmp_path, made_shards), list[str]()
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


def test_two_ranks_under_deepspeed_agree_with_one_process(undisturbed: Path, made_shards: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, made_shards, log_exposures=True)
    lines: list[str] = []
    jobs = distributed_jobs("pipelines.pretraining.run", ["--spec", str(spec)], 2)
    codes = launch(jobs, cwd=ROOT, work_folder=tmp_path, on_line=lines.append)
    assert codes == [0, 0], "\n".join(lines[-40:])
    # AdamW's first steps turn rounding into moves of the learning rate's size, on grey videos above all.
    assert losses(tmp_path)[:3] == pytest.approx(losses(undisturbed)[:3], abs=1e-5)
    assert losses(tmp_path) == pytest.approx(losses(undisturbed), rel=5e-4)
    same(undisturbed, tmp_path / "result", atol=5e-3)
    log, problems = logged(tmp_path / "result", made_shards)
    assert log.column("global_sample").to_pylist() == list(range(24)) and problems == []
    assert any("step 1/6" in line and "clips/s" in line and "data wait" in line for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_cooldown_goes_on_from_optimizer_and_target_at_more_pixels_and_frames(
    undisturbed: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    restore_before, losses_before = PlainEngine.restore, Pretraining.losses

    def restore(self: PlainEngine, state: Any) -> None:
        seen["state"] = state
        restore_before(self, state)

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        if at == 0:
            seen["target"] = {name: value.clone() for name, value in self.target.state_dict().items()}
            seen["video"] = tuple(batch.video.shape)
        return losses_before(self, at, batch, part)

    monkeypatch.setattr(PlainEngine, "restore", restore)
    monkeypatch.setattr(Pretraining, "losses", losses)
    result = trained(tmp_path, made_shards, phase="cooldown", init_from=undisturbed)
    assert seen["video"] == (4, 3, 8, 48, 48) and seen["state"].steps == 6
    moments = load_file(undisturbed / "optimizer.safetensors")
    assert all(torch.equal(value, moments[name]) for name, value in seen["state"].moments.items())
    target = load_file(undisturbed / "target_encoder.safetensors")
    assert all(torch.equal(value, seen["target"][name]) for name, value in target.items())
    assert int(load_file(result / "optimizer.safetensors")["step"]) == 9
    assert json.loads((result / "encoder.json").read_text())["config"]["img_size"] == [48, 48]
    assert [item["phase"] for item in json.loads((result / "state.json").read_text())["exposures"]] == ["pretrain", "cooldown"]


def test_finished_training_does_no_work_again(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("trained again"))
    assert run.main(["--spec", str(undisturbed.parent / "spec.json")]) == 0


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


def test_a_restart_goes_on_without_the_clips_it_had_stopped_on(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses_before, shown = Pretraining.losses, list[str]()
    monkeypatch.setattr(run, "Guard", lambda spikes: Guard(spikes, in_row=1))
    loader = ClipLoader(open_mixture(WHOLE, made_shards), ClipGeometry(4, 4, 16, 16), seed=0, phase="pretrain", global_batch=4)
    (bad,) = loader.clips_of([8])

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        loss, each = losses_before(self, at, batch, part)
        shown.extend(batch.clip_ids)
        return loss * (float("nan") if bad in batch.clip_ids else 1.0), each

    monkeypatch.setattr(Pretraining, "losses", losses)
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, log_exposures=True))]) == EXIT_GUARD
    refused = json.loads((tmp_path / "refused.json").read_text())["clips"]
    assert bad in shown and bad in refused and len(refused) == 4
    shown.clear()
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, log_exposures=True, exclude_refused=True))]) == 0
    assert shown and not set(shown) & set(refused) and not (tmp_path / "refused.json").exists()
    exposure = read_exposure(tmp_path / "result")
    assert exposure is not None and exposure.replaced  # so that the lineage tells the same
    assert logged(tmp_path / "result", made_shards)[1] == []


def test_other_recipe_in_the_same_folder_and_a_cooldown_of_nothing_are_refused(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(0, patch)
        assert run.main(["--spec", str(spec_in(tmp_path, made_shards))]) == EXIT_STOPPED
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, mask_truncation="prefix"))]) == EXIT_INPUT
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, phase="cooldown"))]) == EXIT_INPUT
    assert run.main(["--spec", str(tmp_path / "missing.json")]) == EXIT_INPUT


def test_half_a_result_is_no_result(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "result")
    (tmp_path / "result" / "encoder.safetensors").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"encoder\.safetensors"):
        run.build_pretrained(tmp_path, tmp_path)
    assert not (tmp_path / "result" / "DONE.json").exists()


def test_collapsed_encoder_does_not_pass(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    state = json.loads((tmp_path / "state.json").read_text())
    state["verdict"] = {"state": "collapsed", "line": "collapsed: RankMe 1.2"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    assert not run.check_pretrained(tmp_path)["not_collapsed"].passed
    weights = load_file(tmp_path / "encoder.safetensors")
    weights["norm.bias"][0] = float("nan")
    save_file(weights, tmp_path / "encoder.safetensors")
    assert not run.check_pretrained(tmp_path)["finite"].passed


def test_samples_served_by_a_stand_in_are_in_the_lineage_also_after_a_restart(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex(made_shards)
    victim = index.entry(len(index) - 1)  # the heaviest
    broken, decode_before = index.read(victim), loader_module.decode_clip

    def decode(data: bytes, *options: Any) -> Any:
        if data == broken:
            raise DecodeFailure("planted", expected="a clip", found="none")
        return decode_before(data, *options)

    monkeypatch.setattr(loader_module, "decode_clip", decode)
    spec = spec_in(tmp_path, made_shards, log_exposures=True)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    assert run.main(["--spec", str(spec)]) == 0
    exposure = read_exposure(tmp_path / "result")
    assert exposure is not None
    log, problems = logged(tmp_path / "result", made_shards)
    assert problems == [] and sum(log.column("salt").to_pylist()) >= len(exposure.replaced)
    mixture = open_mixture(exposure.mixture, made_shards)
    shown = exposures(mixture, expose(mixture, exposure, tmp_path / "store")).to_pylist()
    assert exposure.replaced and victim.clip_id not in {row["clip_id"] for row in shown}
    assert sum(row["samples"] for row in shown) == 24


def test_a_kill_leaves_neither_half_lines_nor_stand_ins_of_steps_that_are_done_again(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, made_shards, log_exposures=True)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    # As after a kill in step 5, another rank's file among them: sample 20 had a stand-in, because its clip was just being taken down.
    for name, text in {"stand-ins-0": "[20, 1]\n[21,", "stand-ins-7": "[22, 1]\n", "exposures-0": '[1, [{"st'}.items():
        with open(tmp_path / f"{name}.jsonl", "a") as handle:
            handle.write(text)
    assert run.main(["--spec", str(spec)]) == 0
    exposure = read_exposure(tmp_path / "result")
    assert exposure is not None and exposure.replaced == []
    assert logged(tmp_path / "result", made_shards)[1] == []


def test_a_takedown_of_everything_in_the_last_step_does_not_lose_the_training(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses_before = Pretraining.losses

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        if at == 5:
            write_tombstones(tmp_path / "store", "all", [{"clip_id": clip, "reason": "asked"} for clip in ShardIndex(made_shards).column("clip_id")])
        return losses_before(self, at, batch, part)

    monkeypatch.setattr(Pretraining, "losses", losses)
    exposure = read_exposure(trained(tmp_path, made_shards))
    assert exposure is not None and exposure.steps == 6 and exposure.exclusions == []


def test_ranks_obey_the_takedowns_that_the_first_one_wrote_and_no_older_ones(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system between machines may show a file as it was before, with as many entries."""
    loader = ClipLoader(open_mixture(WHOLE, made_shards), ClipGeometry(4, 4, 16, 16), seed=0, phase="p", global_batch=4)
    for name in ("a", "b"):
        write_tombstones(tmp_path, name, [{"clip_id": loader.mixture.clip_id(0), "reason": "asked"}])
    told: list[int] = []
    first = mock.Mock(rank=0, from_first=lambda value: told.append(value) or value)
    Takedowns(first, loader, tmp_path, tmp_path).begin(4)
    written = (tmp_path / "exclusions.json").read_text()
    other = Takedowns(mock.Mock(rank=1, from_first=lambda _: told[0]), loader, tmp_path, tmp_path)
    (tmp_path / "exclusions.json").write_text('[[4, ["a"]]]')
    monkeypatch.setattr("pipelines.pretraining.exclusions.PATIENCE_S", 0.0)
    with pytest.raises(TrainingError, match="do not see the same takedowns"):
        other.begin(4)
    (tmp_path / "exclusions.json").write_text(written)
    other.begin(4)
    assert other.history == [(4, ["a", "b"])]


def test_a_takedown_is_obeyed_from_the_next_step_and_after_a_restart(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = ShardIndex(made_shards)
    gone, later = index.clip_id(len(index) - 1), index.clip_id(len(index) - 2)
    losses_before, served = Pretraining.losses, list[tuple[int, list[str]]]()

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        served.append((at, batch.clip_ids))
        if at == 1:
            write_tombstones(tmp_path / "store", "first", [{"clip_id": gone, "reason": "asked"}])
        return losses_before(self, at, batch, part)

    monkeypatch.setattr(Pretraining, "losses", losses)
    spec = spec_in(tmp_path, made_shards, log_exposures=True)
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        assert run.main(["--spec", str(spec)]) == EXIT_STOPPED
    write_tombstones(tmp_path / "store", "second", [{"clip_id": later, "reason": "asked"}])
    assert run.main(["--spec", str(spec)]) == 0
    assert [at for at, _ in served] == [0, 1, 2, 3, 4, 5]
    assert any(gone in clips for at, clips in served if at < 2)  # or this would show nothing
    assert not any(gone in clips for at, clips in served if at >= 2) and not any(later in clips for at, clips in served if at >= 4)
    exposure = read_exposure(tmp_path / "result")
    assert exposure is not None and exposure.exclusions == [(2, ["first"]), (4, ["first", "second"])] and exposure.replaced == []
    log, problems = logged(tmp_path / "result", made_shards)
    assert problems == []
    mixture = open_mixture(exposure.mixture, made_shards)
    shown = exposures(mixture, expose(mixture, exposure, tmp_path / "store")).to_pylist()
    assert {row["clip_id"]: row["samples"] for row in shown} == Counter(log.column("clip_id").to_pylist())


def test_identity_ignores_what_only_changes_rounding(made_shards: Path, tmp_path: Path) -> None:
    def identity(**options: Any) -> str:
        spec: Spec = read_spec(spec_in(tmp_path, made_shards, **options))
        return spec.identity()

    assert identity() == identity(ranks=1, zero_stage=2)
    assert identity() != identity(mask_token="per_strategy")
