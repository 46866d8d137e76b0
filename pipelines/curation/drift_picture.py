"""drift.png: every statistic against what random splits give, and the clusters that gained and lost most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.curation.drift import DriftConfig, Measured

TITLES = {
    "psi": "PSI of the clusters", "js": "JS divergence, nats", "novelty": "share of novel clips", "distance": "W1 of distances",
    "mmd": "MMD² of the vectors", "targets": "TV of the demand",
}  # fmt: skip
CALM, DRIFTED, NULL = "#4477aa", "#cc3311", "#bbbbbb"
GAINED, LOST = "#228833", "#997700"
COLUMNS = 3


def draw_drift(
    path: Path, title: str, measured: Mapping[str, Measured], movers: Sequence[Mapping[str, Any]], config: DriftConfig
) -> None:
    """Small multiples of `measured`, in the order given, and bars of `movers` (drift.movers), into a PNG with equal bytes
    for equal numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(measured) // COLUMNS)
    bars = 0.3 + 0.17 * len(movers) if movers else 0.0
    width, height = 8.4, 0.55 + 2.0 * rows + bars + (0.75 if movers else 0.0)  # inches
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)

    def panel(left: float, top: float, wide: float, high: float) -> Any:
        """Axes placed in inches from the upper left; matplotlib's own layouts draw everything twice to find room."""
        return figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height))

    each = (width - 0.3) / COLUMNS
    for number, (name, found) in enumerate(measured.items()):
        row, column = divmod(number, COLUMNS)
        _draw_null(panel(0.3 + column * each, 0.95 + 2.0 * row, each - 0.3, 1.3), TITLES[name], found)
    if movers:
        _draw_movers(panel(0.75, 0.6 + 2.0 * rows, width - 1.0, bars), movers)
    figure.suptitle(
        f"{title}\ngrey: {config.splits} random splits of the same {config.exchange}; line: observed, red when p < {config.p_below:g} "
        f"and effect > {config.effect_above:g}", fontsize=9, y=1 - 0.1 / height,
    )  # fmt: skip
    figure.savefig(path, dpi=100, metadata={"Software": None})


def _draw_null(panel: Any, title: str, found: Measured) -> None:
    low, high = float(min(found.null.min(), found.value)), float(max(found.null.max(), found.value))
    room = 0.06 * (high - low) or 0.5 * max(abs(high), 1e-3)
    edges = np.linspace(low - room, high + room, 36)
    panel.stairs(np.histogram(found.null, bins=edges)[0], edges, fill=True, color=NULL)
    panel.axvline(found.value, color=DRIFTED if found.flagged else CALM, linewidth=2.0)
    panel.set_xlim(edges[0], edges[-1])
    panel.set_title(f"{title}\n{found.value:.3g} · p {found.p:.3f} · effect {found.effect:.2f}", fontsize=8, color=DRIFTED if found.flagged else "black")
    panel.set_yticks([])
    panel.locator_params(axis="x", nbins=5)
    panel.tick_params(labelsize=7)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)


def _draw_movers(panel: Any, movers: Sequence[Mapping[str, Any]]) -> None:
    """Change of share in points, largest gain on top; the shares themselves beside each bar."""
    change = np.array([100 * (item["window"] - item["reference"]) for item in movers])
    places = np.arange(len(movers))
    panel.barh(places, change, color=[GAINED if value > 0 else LOST for value in change], height=0.75)
    panel.set_yticks(places, [str(item["cluster"]) for item in movers], fontsize=7)
    panel.invert_yaxis()
    reach = float(np.abs(change).max()) or 1.0
    panel.set_xlim(-1.45 * reach, 1.45 * reach)
    for place, value, item in zip(places, change, movers, strict=True):
        text = f"{100 * item['reference']:.1f} → {100 * item['window']:.1f} %"
        panel.text(value + np.copysign(0.02 * reach, value), place, text, va="center", ha="left" if value > 0 else "right", fontsize=7)
    panel.axvline(0.0, color="black", linewidth=0.8)
    panel.set_ylabel("cluster", fontsize=8)
    panel.set_xlabel("change of share, reference → new clips, in points of a hundred", fontsize=8)
    panel.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
