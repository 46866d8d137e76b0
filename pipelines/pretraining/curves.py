"""The picture of a training: loss against the constant guess, health and learning rate over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw_curves(rows: Sequence[dict[str, float]], path: Path, title: str) -> None:
    """Draw metrics rows (one a step, some with health) as a small PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), dpi=90, layout="constrained")
    loss, rank, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 2, 1])
    for number in range(sum(name.startswith("loss_") for name in rows[0]) if rows else 0):
        steps, values = _column(rows, f"loss_{number}")
        loss.plot(steps, _smooth(values), linewidth=1, label=f"masks {number}")
    loss.plot(*_column(rows, "floor"), "k--", linewidth=1, label="constant guess")
    loss.set_ylabel("L1")
    loss.legend(fontsize=7, loc="upper right")
    rank.plot(*_column(rows, "rank_me"), marker=".", color="tab:green")
    rank.set_ylabel("RankMe")
    rank.set_ylim(bottom=0)
    spread = rank.twinx()
    spread.plot(*_column(rows, "target_std"), marker=".", color="tab:purple")
    spread.set_ylabel("target std", color="tab:purple")
    spread.set_ylim(bottom=0)
    rate.plot(*_column(rows, "learning_rate"), color="tab:gray", linewidth=1)
    rate.set_ylabel("lr")
    rate.set_xlabel("step")
    loss.set_title(title, fontsize=9)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})


def _column(rows: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `name`, without numbers that are not finite."""
    found = [(row["step"], row[name]) for row in rows if name in row and row[name] == row[name]]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Exponential average, begun at the first value."""
    smoothed: list[float] = []
    for value in values:
        smoothed.append(value if not smoothed else smoothed[-1] + share * (value - smoothed[-1]))
    return smoothed
