"""The program that pretrains: from shards to sealed results, in one process or on two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.pretraining import run
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import Spec, read_spec
from pipelines.pretraining.task import Pretraining
from pipelines.training.engine import PlainEngine
from pipelines.training.launcher import EXIT_INPUT, EXIT_STOPPED, distributed_jobs, launch
from tests.pipelines.small_pretraining import ROOT, logged, losses, same, spec_in, stop_at, trained

pytestmark = pytest.mark.usefixtures("own_process_state")


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


def test_other_recipe_in_the_same_folder_and_a_cooldown_of_nothing_are_refused(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(0, patch)
        assert run.main(["--spec", str(spec_in(tmp_path, made_shards))]) == EXIT_STOPPED
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, mask_truncation="prefix"))]) == EXIT_INPUT
    assert run.main(["--spec", str(spec_in(tmp_path, made_shards, phase="cooldown"))]) == EXIT_INPUT
    assert run.main(["--spec", str(tmp_path / "missing.json")]) == EXIT_INPUT


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


def test_identity_ignores_what_only_changes_rounding(made_shards: Path, tmp_path: Path) -> None:
    def identity(**options: Any) -> str:
        spec: Spec = read_spec(spec_in(tmp_path, made_shards, **options))
        return spec.identity()

    assert identity() == identity(ranks=1, zero_stage=2)
    assert identity() != identity(mask_token="per_strategy")
