"""A pretraining of six steps on made shards, as several tests run, stop and damage it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from pipelines import schemas
from pipelines.lineage.exposure import log_disagreements
from pipelines.lineage.exposure import read_spec as read_exposure
from pipelines.pretraining import run
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import write_spec
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Recipe, load_recipe
from pipelines.shards.exposure_log import LOG_FILE
from pipelines.shards.mixture import open_mixture

ROOT = Path(__file__).parents[2]
WEIGHTS = ("encoder", "target_encoder", "predictor", "optimizer")


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


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """Send this process a signal while it computes the losses of `step`."""
    losses_before = Pretraining.losses

    def losses(self: Pretraining, at: int, batch: Any, part: int) -> Any:
        if at == step:
            os.kill(os.getpid(), number)
        return losses_before(self, at, batch, part)

    monkeypatch.setattr(Pretraining, "losses", losses)
