"""Small deterministic pictures of a curation: the cluster map and the achieved distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def plane_of(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean (D,), axes (2, D)) of the two directions in which `vectors` (N, D) vary most; signs fixed by the largest entry."""
    mean = vectors.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(vectors.astype(np.float64) - mean, full_matrices=False)
    axes = np.concatenate([axes, np.zeros((max(0, 2 - len(axes)), vectors.shape[1]))])[:2]
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return mean, axes * np.where(signs == 0, 1.0, signs)[:, None]


def draw_cluster_map(
    path: Path, vectors: NDArray[np.float32], cluster: NDArray[np.int64], parent: NDArray[np.int64], targets: NDArray[np.float32]
) -> None:
    """Clips (N, D) in the plane of their two main directions, coloured by coarse cluster; targets' training clips as crosses."""
    mean, axes = plane_of(vectors)
    points, marks = (vectors - mean) @ axes.T, (targets - mean) @ axes.T
    figure, panel = _panel((5.6, 4.4))
    coarse = parent[cluster]
    colours = _colours(int(parent.max()) + 1)
    for number in range(int(parent.max()) + 1):
        inside = coarse == number
        panel.scatter(points[inside, 0], points[inside, 1], s=14, color=colours[number], linewidths=0, label=f"{number} ({inside.sum()})")
    if len(marks):
        panel.scatter(marks[:, 0], marks[:, 1], s=16, marker="x", color="black", linewidths=0.7, label=f"targets ({len(marks)})")
    panel.set_title(f"{len(vectors)} clips in {len(parent)} clusters, by coarse cluster")
    panel.set_xlabel("first direction")
    panel.set_ylabel("second direction")
    panel.legend(fontsize=6, markerscale=1.2, frameon=False, loc="best")
    _save(figure, path)


def draw_distribution(path: Path, uniform: NDArray[np.float64], requested: NDArray[np.float64], achieved: NDArray[np.float64]) -> None:
    """Shares of every cluster (K,): taken alike, requested by the targets, and achieved; clusters by requested share."""
    order = np.lexsort((-uniform, -achieved, -requested))
    figure, panel = _panel((6.4, 3.2))
    places = np.arange(len(order))
    panel.bar(places, achieved[order], color="#4477aa", width=0.85, label="achieved")
    panel.step(places, requested[order], where="mid", color="#cc3311", linewidth=1.0, label="requested by the targets")
    panel.step(places, uniform[order], where="mid", color="black", linewidth=0.8, linestyle="--", label="every clip alike")
    panel.set_xlabel("cluster, by requested share")
    panel.set_ylabel("share of draws")
    panel.set_title("What the selection draws from")
    panel.legend(fontsize=7, frameon=False)
    _save(figure, path)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["tab10"](number % 10) for number in range(count)]


def _panel(size: tuple[float, float]) -> tuple[Any, Any]:
    """A figure that belongs to no global state (pyplot keeps its own)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=90, metadata={"Software": None})
