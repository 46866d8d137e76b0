"""Reading and drawing the probe table: each task's probes with their intervals, the trained encoder beside its baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"trained": "tab:blue", "start": "tab:orange", "random": "0.55", "pixels": "tab:olive", "single_frame": "tab:brown"}
CHANCE = {"sign_accuracy": 0.5}
OUTSIDE = (-1.0, 2.0)
"""Beyond these nothing is seen."""


def find_row(rows: list[dict[str, Any]], task: str, kind: str, encoder: str, metric: str) -> dict[str, Any] | None:
    """The one row that is all of these, or None."""
    wanted = {"task": task, "features": kind, "encoder": encoder, "metric": metric}
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def draw_probes(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars with 95 % intervals: mean R2 of the frame probes, sign accuracy of the motion probes, the target sets."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        ("Where: mean R2 from one frame", [row for row in rows if row["task"] == "frame" and row["metric"] == "r2_mean"]),
        ("Which way: sign accuracy", [row for row in rows if row["task"] == "motion" and row["metric"] == "sign_accuracy"]),
        ("Target sets: accuracy", [row for row in rows if row["metric"] == "accuracy"]),
        ("Held-out clips: other half found", [row for row in rows if row["metric"] == "halves_found"]),
    ]
    shown = [(title, [row for row in group if row["encoder"] in COLOURS]) for title, group in panels]
    shown = [(title, group) for title, group in shown if group]
    figure = Figure(figsize=(4.4 * len(shown), 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, (title, group) in zip(axes, shown, strict=True):
        labels = sorted({_label(row) for row in group})
        for row in group:
            members = [other for other in group if _label(other) == _label(row)]
            thick = 0.8 / len(members)
            place = labels.index(_label(row)) + (members.index(row) - (len(members) - 1) / 2) * thick
            low, high = max(row["low"], OUTSIDE[0]), min(row["high"], OUTSIDE[1])  # an interval may have no end
            errors = [[max(0.0, row["value"] - low)], [max(0.0, high - row["value"])]]
            axis.barh(place, row["value"], 0.9 * thick, color=COLOURS[row["encoder"]], xerr=errors, error_kw={"linewidth": 0.8})
        for metric, chance in CHANCE.items():
            if group[0]["metric"] == metric:
                axis.axvline(chance, color="0.3", linestyle="--", linewidth=0.8)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_title(title, fontsize=9)
    names = [name for name in COLOURS if any(row["encoder"] == name for _, group in shown for row in group)]
    handles = [axes[0].barh(0, 0, color=COLOURS[name]) for name in names]
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=7, frameon=False)
    canvas.print_png(path, metadata={"Software": None})


def _label(row: dict[str, Any]) -> str:
    return row["task"] if row["metric"] == "accuracy" else str(row["features"]).replace("_", " ")
