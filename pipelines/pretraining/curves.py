"""The picture of a training over its steps: what it learns, whether it dies, how it moves and how fast; above it the verdict."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.training.metrics import health

Row = dict[str, float]

POINTS = 600  # of a curve, about its pixels: more would cost bytes and show nothing
COLOURS = 64  # of the file: halves it, and nothing is seen of it
FONT = 7
MEASURED: dict[str, Any] = {"marker": ".", "markersize": 4}


def draw_curves(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw metrics rows (one a step, some with health) as a small PNG. Columns that no row has are left out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 7.6), dpi=90, layout="constrained")
    figure.suptitle(f"{title}\n{textwrap.fill(verdict_line(rows), 130)}", fontsize=9)
    panels = figure.subplots(4, 2, sharex=True, height_ratios=[4, 3, 2, 2])
    draws = (draw_losses, draw_ranks, draw_gradients, draw_spread, _draw_lengths, draw_neighbours, _draw_rate, _draw_speed)
    for draw, panel in zip(draws, panels.flat, strict=True):
        draw(panel, rows)
    for panel in panels[-1]:
        panel.set_xlabel("step", fontsize=FONT)
    write_png(figure, path)


def write_png(figure: Any, path: Path) -> None:
    """Draw a figure into a PNG of few colours."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def verdict_line(rows: Sequence[Row]) -> str:
    """The verdict after these rows."""
    return health([row for row in rows if "rank_me" in row]).line


def draw_losses(panel: Any, rows: Sequence[Row]) -> None:
    for name in sorted({name for row in rows for name in row if name.startswith(("loss_", "context_loss_"))}, key=lambda name: (len(name), name)):
        _curve(panel, rows, name, name.replace("_", " "), smooth=True)
    _curve(panel, rows, "floor", "constant guess", color="black", linestyle="--")
    panel.set_ylim(bottom=0)
    _finish(panel, "loss (L1)")


def draw_ranks(panel: Any, rows: Sequence[Row]) -> None:
    _curve(panel, rows, "rank_me", "RankMe", color="tab:green", **MEASURED)
    _curve(panel, rows, "lidar", "LiDAR", color="tab:olive", **MEASURED)
    panel.set_ylim(bottom=0)
    _finish(panel, "effective rank")


def draw_spread(panel: Any, rows: Sequence[Row]) -> None:
    _curve(panel, rows, "target_std", "std over clips", color="tab:purple", **MEASURED)
    _curve(panel, rows, "target_std_min", "its least channel", color="tab:purple", linestyle=":", **MEASURED)
    _curve(panel, rows, "cosine", "cosine of clips", color="tab:red", **MEASURED)
    panel.set_ylim(min([0.0, *_column(rows, "cosine")[1]]), 1.3)  # room for the legend
    _finish(panel, "targets", columns=3)


def draw_neighbours(panel: Any, rows: Sequence[Row]) -> None:
    _curve(panel, rows, "halves_recall", "halves of a clip find each other", color="tab:brown", **MEASURED)
    _curve(panel, rows, "source_knn", "neighbours tell the source", color="tab:brown", **MEASURED)
    panel.set_ylim(0, 1.05)
    _finish(panel, "nearest neighbours")


def draw_gradients(panel: Any, rows: Sequence[Row]) -> None:
    panel.set_yscale("log")
    _curve(panel, rows, "gradient_norm", "", color="tab:gray", linewidth=0.6)
    spikes = _column([row for row in rows if row.get("spike")], "gradient_norm")
    refused, _ = _column([row for row in rows if row.get("moved") == 0], "moved")
    if spikes[0]:
        panel.plot(*spikes, "x", color="tab:orange", markersize=5, label=_counted(len(spikes[0]), "spike"))
    if refused:
        bottom = panel.get_xaxis_transform()
        panel.plot(refused, [0.05] * len(refused), "|", color="tab:red", markersize=9, transform=bottom, label=_counted(len(refused), "step") + " refused")
    _finish(panel, "gradient norm")


def _draw_lengths(panel: Any, rows: Sequence[Row]) -> None:
    panel.set_yscale("log")
    _curve(panel, rows, "update_norm", "update / weights", color="tab:cyan", **MEASURED)
    _curve(panel, rows, "ema_distance", "(target - student) / student", color="tab:pink", **MEASURED)
    _finish(panel, "lengths")


def _draw_rate(panel: Any, rows: Sequence[Row]) -> None:
    _curve(panel, rows, "learning_rate", "", color="tab:gray")
    panel.set_ylim(bottom=0)
    _finish(panel, "learning rate")


def _draw_speed(panel: Any, rows: Sequence[Row]) -> None:
    shares = panel.twinx()
    _curve(panel, rows, "tokens_per_s", "tokens/s", color="tab:blue", smooth=True)
    _curve(shares, rows, "data_wait", "data wait", color="tab:red", smooth=True)
    _curve(shares, rows, "mfu", "model FLOPs of peak", color="tab:green", smooth=True)
    panel.set_ylim(0, 1.4 * max([*_column(rows, "tokens_per_s")[1], 1.0]))
    shares.set_ylim(0, 1.4)
    shares.set_yticks([0, 0.5, 1])
    shares.tick_params(labelsize=FONT)
    shares.set_ylabel("share", fontsize=FONT)
    _finish(panel, "tokens/s", shares, columns=3)


def _curve(panel: Any, rows: Sequence[Row], name: str, label: str, smooth: bool = False, **style: Any) -> None:
    if panel.get_yscale() == "log":
        rows = [row for row in rows if row.get(name, 0.0) > 0]
    steps, values = _column(rows, name)
    if steps:
        steps, values = _thinned(steps, _smooth(values) if smooth else values)
        panel.plot(steps, values, **{"label": label or None, "linewidth": 1, **style})


def _finish(panel: Any, name: str, *others: Any, columns: int = 1) -> None:
    """Axis name, small ticks, and a legend of what was drawn, here and on `others` over the same place."""
    panel.set_ylabel(name, fontsize=FONT)
    panel.tick_params(labelsize=FONT)
    panel.grid(alpha=0.25, linewidth=0.5)
    drawn = [line for axes in (panel, *others) for line in axes.get_lines()]
    named = [line for line in drawn if not str(line.get_label()).startswith("_")]
    if named:
        top = others[-1] if others else panel
        top.legend(named, [line.get_label() for line in named], fontsize=FONT, ncols=columns, handlelength=1.4, columnspacing=1, loc="best" if columns == 1 else "upper right")
    if not drawn:
        panel.set_yticks([], minor=False)
        panel.set_yticks([], minor=True)
        panel.text(0.5, 0.5, "not measured", transform=panel.transAxes, ha="center", va="center", fontsize=FONT, color="gray")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _column(rows: Sequence[Row], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `name`, without numbers that are not finite."""
    found = [(row["step"], row[name]) for row in rows if math.isfinite(row.get(name, math.nan))]
    return [step for step, _ in found], [value for _, value in found]


def _thinned(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most about `POINTS` points: means of as many neighbours as it takes."""
    each = math.ceil(len(steps) / POINTS)
    parts = [slice(first, first + each) for first in range(0, len(steps), each)]
    return [steps[part][-1] for part in parts], [sum(values[part]) / len(values[part]) for part in parts]


def _smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Exponential average, begun at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else smoothed[-1] + share * (value - smoothed[-1]))
    return smoothed
