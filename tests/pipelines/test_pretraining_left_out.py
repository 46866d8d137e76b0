"""Clips that a training does not show: unreadable, set aside after a stop, taken down; the lineage tells the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import pipelines.shards.loader as loader_module
from pipelines.errors import TrainingError
from pipelines.lineage.exposure import expose, exposures
from pipelines.lineage.exposure import read_spec as read_exposure
from pipelines.pretraining import run
from pipelines.pretraining.clips import Clips
from pipelines.pretraining.exclusions import Takedowns
from pipelines.pretraining.task import Pretraining
from pipelines.shards.decode import DecodeFailure
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import ShardIndex
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.tombstones import write_tombstones
from pipelines.training.guard import Guard
from pipelines.training.launcher import EXIT_GUARD, EXIT_STOPPED
from tests.pipelines.small_pretraining import logged, spec_in, stop_at, trained

pytestmark = pytest.mark.usefixtures("own_process_state")


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
    log, problems = logged(tmp_path / "result", made_shards)
    assert problems == []
    # Had it stopped on a stand-in, that one would be named, not the clip it stood for.
    assert Clips(loader, mock.Mock(), tmp_path, False).accuse([(2, [0])]) == list(dict.fromkeys(log.column("clip_id").to_pylist()[8:12]))


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
