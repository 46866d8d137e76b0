"""The picture of a training is drawn from whatever rows there are, and shows what went wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipelines.pretraining.curves import draw_curves, draw_gradients, draw_losses, draw_ranks, verdict_line

Row = dict[str, float]


def step_row(step: int) -> Row:
    return {
        "step": step, "loss": 0.5, "loss_0": 0.8 - step / 1e4, "loss_1": 0.7, "learning_rate": 1e-3, "gradient_norm": 0.3 + step % 7, "moved": 1.0, "spike": 0.0,
        "tokens_per_s": 1e4 + step % 50, "mfu": 0.4, "data_wait": 0.02,
    }  # fmt: skip


def health_row(step: int) -> Row:
    return {
        "step": step, "rank_me": 20.0, "target_std": 0.7, "target_std_min": 0.3, "cosine": 0.5, "floor": 0.7, "mean_loss": 0.5, "data_wait": 0.02,
        "ema_distance": 0.2, "update_norm": 1e-3, "halves_recall": 0.9, **({"lidar": 12.0} if step % 500 == 0 else {}),
    }  # fmt: skip


def rows(steps: int) -> list[Row]:
    return [{**step_row(step), **(health_row(step) if step % 100 == 0 else {})} for step in range(1, steps + 1)]


@pytest.mark.parametrize(
    "drawn",
    [
        [],
        [{"step": 1.0}],
        [step_row(1)],
        rows(3000),
        rows(3000)[1234:],  # of a run that went on elsewhere
        [{name: value for name, value in row.items() if name in ("step", "loss_0", "gradient_norm")} for row in rows(50)],
        [{**row, "gradient_norm": bad, "loss_0": bad, "ema_distance": 0.0} for row in rows(200) for bad in (math.nan, math.inf)],
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_whatever_rows_there_are_make_a_small_picture(drawn: list[Row], tmp_path: Path) -> None:
    draw_curves(drawn, tmp_path / "curves.png", "nano pretrain")
    assert (tmp_path / "curves.png").stat().st_size < 100_000
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and picture.width > 600 and len(picture.convert("RGB").getcolors() or []) > 2


def labels(draw: Any, drawn: list[Row]) -> list[str]:
    panel = Figure().subplots()
    draw(panel, drawn)
    return [str(line.get_label()) for line in panel.get_lines()]


def test_spikes_and_refused_steps_are_marked_and_counted() -> None:
    told = rows(100)
    told[10]["spike"] = told[20]["spike"] = 1.0
    told[30].update(moved=0.0, gradient_norm=math.nan)
    assert labels(draw_gradients, told)[1:] == ["2 spikes", "1 step refused"]
    assert len(labels(draw_gradients, rows(100))) == 1


def test_losses_are_drawn_beside_the_constant_guess_and_lidar_beside_rank_me() -> None:
    assert labels(draw_losses, rows(500)) == ["loss 0", "loss 1", "constant guess"]
    assert labels(draw_losses, [{**step_row(1), "context_loss_0": 0.4}]) == ["loss 0", "loss 1", "context loss 0"]
    assert labels(draw_ranks, rows(500)) == ["RankMe", "LiDAR"] and labels(draw_ranks, rows(400)) == ["RankMe"]


def test_verdict_above_the_picture_is_that_of_the_rows() -> None:
    collapsed = rows(300)
    collapsed[-1]["target_std"] = 0.01
    assert verdict_line(rows(300)).startswith("healthy: target std 0.70") and verdict_line(collapsed).startswith("collapsed: target std 0.01")
    assert "nothing measured yet" in verdict_line([step_row(1)])
