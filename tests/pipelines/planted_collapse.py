"""Trainings for the tests of health: on clips that are worth predicting, and with a collapse planted from outside.

A gradient that reaches the target collapses it only where the hidden part of a clip cannot be told from the rest: on clips
of one grey level each the networks predict rightly instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
from conftest import clip_rows

from pipelines import schemas
from pipelines.pretraining import objective, run, task
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import write_spec
from pipelines.recipes import Recipe, load_recipe
from pipelines.shards.cutting import ShardConfig
from pipelines.shards.writer import build_shards
from pipelines.video.encode import write_video

Plant = Literal["healthy", "gradient", "no_average"]
CLIPS, FRAMES, RATE = 24, 12, 8.0


def textured_shards(folder: Path) -> Path:
    """Shards of clips (48 x 64 px) over each of which a random coloured texture drifts."""
    rows: list[dict[str, Any]] = []
    for number in range(CLIPS):
        source = np.random.default_rng(number)
        texture = cv2.resize(source.integers(0, 256, (12, 16, 3)).astype(np.uint8), (128, 96), interpolation=cv2.INTER_CUBIC)
        down, right = source.integers(-2, 3, 2)
        frames = [texture[24 + down * at : 72 + down * at, 32 + right * at : 96 + right * at] for at in range(FRAMES)]
        path = folder / f"{number}.mp4"
        write_video(path, np.stack(frames), RATE)
        rows += clip_rows(path, f"video-{number}", FRAMES, RATE)
    rows.sort(key=lambda row: row["clip_id"])
    chosen = [
        {"clip_id": row["clip_id"], "video_id": row["video_id"], "cluster": 0, "weight": 1.0, "target": "t", "uniform_weight": 1.0} for row in rows
    ]
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), folder / "clips.parquet", schemas.CLIPS)
    schemas.write_table(schemas.table_of(schemas.SELECTION, chosen), folder / "selection.parquet", schemas.SELECTION)
    (folder / "shards").mkdir()
    build_shards(folder / "shards", folder, folder, config=ShardConfig(short_side=48), progress=lambda *_: None)
    return folder / "shards"


def train(work: Path, shards: Path, recipe: str, plant: Plant, seed: int, patch: pytest.MonkeyPatch, **phase: Any) -> list[dict[str, float]]:
    """Metrics rows of the pretraining phase of `recipe`, changed by `phase`, in this process.

    "gradient": the student's own encoder is its target and takes the target's gradient too, so that nothing keeps the two
    from agreeing on a constant. "no_average": the target is a copy of the student after every step, without a gradient.
    """
    resolved = load_recipe(recipe).resolved()
    resolved["seed"] = seed
    settings = resolved["pretraining"]["pretrain"]
    settings.update(phase, checkpoint_every=phase["steps"])
    with patch.context() as planted:
        if plant != "healthy":
            settings["ema"] = [0.0, 0.0]
        if plant == "gradient":
            planted.setattr(run, "make_target", lambda encoder: encoder)
            planted.setattr(task, "target_tokens", objective.target_tokens.__wrapped__)
        assert run.main(["--spec", str(write_spec(work, Recipe.model_validate(resolved), "pretrain", shards, work / "store"))]) == 0
    return read_metrics(work / "metrics.jsonl")


def measurements(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """The rows of health."""
    return [row for row in rows if "rank_me" in row]
