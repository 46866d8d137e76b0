"""Small deterministic pictures of a curation: the cluster map and the achieved distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAP_POINTS, PLANE_ROWS = 4000, 1000  # clips drawn, and clips that the plane is laid through
MAP_LEGEND = 12  # coarse clusters that a legend can still name


def plane_of(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean (D,), axes (2, D)) of the two directions in which `vectors` (N, D) vary most; signs fixed by the largest entry.

    From the smaller of the two matrices that have them: N x N or D x D.
    """
    from scipy.linalg import eigh

    mean = vectors.mean(axis=0, dtype=np.float64)
    centred = vectors.astype(np.float64) - mean
    few = len(centred) < centred.shape[1]
    gram = centred @ centred.T if few else centred.T @ centred
    _, found = eigh(gram, subset_by_index=[max(0, len(gram) - 2), len(gram) - 1])
    axes = (centred.T @ found if few else found).T[::-1]
    axes = np.concatenate([axes, np.zeros((max(0, 2 - len(axes)), vectors.shape[1]))])
    axes = axes / np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-12)
    signs = np.sign(axes[np.arange(2), np.abs(axes).argmax(axis=1)])
    return mean, axes * np.where(signs == 0, 1.0, signs)[:, None]


def _some(count: int, wanted: int) -> NDArray[np.int64]:
    """At most `wanted` of `count` rows, always the same, in order."""
    return np.arange(count) if count <= wanted else np.sort(np.random.default_rng(0).choice(count, wanted, replace=False))


def draw_cluster_map(
    path: Path, vectors: NDArray[np.float32], cluster: NDArray[np.int64], parent: NDArray[np.int64], targets: NDArray[np.float32]
) -> None:
    """Clips (N, D) in the plane of their two main directions, coloured by coarse cluster; targets' training clips as crosses.

    Of large pools a sample is drawn; only its vectors are read, so that they may be memory-mapped.
    """
    shown, crosses = _some(len(vectors), MAP_POINTS), _some(len(targets), MAP_POINTS // 4)
    mean, axes = plane_of(vectors[_some(len(vectors), PLANE_ROWS)])
    points = (vectors[shown] - mean) @ axes.T
    coarse, groups = parent[cluster], int(parent.max()) + 1
    sizes = np.bincount(coarse, minlength=groups)
    figure, panel = _panel((5.6, 4.4))
    colours = _colours(groups)
    named = groups <= MAP_LEGEND
    for number in np.unique(coarse[shown]):
        inside = coarse[shown] == number
        panel.scatter(
            points[inside, 0], points[inside, 1], s=14 if len(shown) < 1000 else 5, color=colours[number], linewidths=0,
            label=f"{number} ({sizes[number]:,})" if named else None,
        )  # fmt: skip
    if len(crosses):
        marks = (targets[crosses] - mean) @ axes.T
        panel.scatter(marks[:, 0], marks[:, 1], s=16 if len(crosses) < 300 else 6, marker="x", color="black", linewidths=0.7, label=f"targets ({len(targets):,})")
    several = f", {groups} coarse ones" if not named else ", by coarse cluster"
    panel.set_title(f"{len(vectors):,} clips in {len(parent):,} clusters{several}" + (f" ({len(shown):,} shown)" if len(shown) < len(vectors) else ""), fontsize=10)
    panel.set_xlabel("first direction")
    panel.set_ylabel("second direction")
    if named or len(crosses):
        panel.legend(fontsize=6, markerscale=1.2, frameon=False, loc="best")
    _quiet(panel)
    _save(figure, path)


BARS, STEPS = 60, 300  # more clusters than these share bars, and steps of the line
STEEP = 20.0  # draws per clip, in uniform shares, from which on they are drawn on a logarithmic axis
ASKED, DRAWN, ALIKE = "#cc3311", "#4477aa", "#555555"


def draw_distribution(path: Path, uniform: NDArray[np.float64], requested: NDArray[np.float64], achieved: NDArray[np.float64]) -> None:
    """Shares of every cluster (K,): taken alike, requested by the targets, and achieved.

    Left by cluster; right for one clip, over the share of the pool, so that areas are shares of the draws: a repeat cap is
    a plateau there, and a uniform part a floor.
    """
    figure, whole = _panel((9.0, 3.3))
    whole.remove()
    left, right = figure.subplots(1, 2, width_ratios=(5, 4))
    _draw_shares(left, uniform, requested, achieved)
    _draw_repeats(right, uniform, requested, achieved)
    _save(figure, path)


def _draw_shares(panel: Any, uniform: NDArray[np.float64], requested: NDArray[np.float64], achieved: NDArray[np.float64]) -> None:
    order = np.lexsort((-uniform, -achieved, -requested))
    edges = np.unique(np.linspace(0, len(order), min(BARS, len(order)) + 1).astype(np.int64))
    alike, asked, drawn = (np.add.reduceat(shares[order], edges[:-1]) * 100 for shares in (uniform, requested, achieved))
    panel.stairs(drawn, edges, fill=True, color=DRAWN, alpha=0.85, label="achieved")
    panel.stairs(asked, edges, color=ASKED, linewidth=1.3, label="requested")
    panel.stairs(alike, edges, color=ALIKE, linewidth=1.0, linestyle=(0, (3, 2)), label="every clip alike")
    panel.set_xlim(0, len(order))
    panel.set_ylim(bottom=0)
    each = len(order) / (len(edges) - 1)
    panel.set_xlabel("clusters, most requested first" + (f" ({each:.0f} a bar)" if each > 1 else ""))
    panel.set_ylabel("share of the draws (%)")
    panel.set_title("What the selection draws from", fontsize=10)
    panel.legend(fontsize=7.5, frameon=False)
    _quiet(panel)


def _draw_repeats(panel: Any, uniform: NDArray[np.float64], requested: NDArray[np.float64], achieved: NDArray[np.float64]) -> None:
    rows = np.flatnonzero(uniform > 0)
    asked, drawn = requested[rows] / uniform[rows], achieved[rows] / uniform[rows]
    order, peak = np.lexsort((-drawn, -asked)), float(asked.max())
    ends = np.concatenate([[0.0], np.cumsum(uniform[rows][order])])
    edges = np.linspace(0, ends[-1], STEPS + 1) if len(rows) > STEPS else ends
    asked, drawn = (np.diff(np.interp(edges, ends, np.append(0.0, np.cumsum(shares[rows][order])))) / np.diff(edges) for shares in (requested, achieved))
    panel.stairs(drawn, edges * 100, fill=True, color=DRAWN, alpha=0.85)
    panel.stairs(asked, edges * 100, color=ASKED, linewidth=1.3)
    panel.axhline(1.0, color=ALIKE, linewidth=1.0, linestyle=(0, (3, 2)))
    top = float(max(drawn.max(), 1.0))
    notes = []
    if top > STEEP:
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.set_ylim(0.05, 2 * top)
    else:
        panel.set_ylim(0, 1.25 * top)
        notes += [f"requested: up to {peak:.3g}"] if peak > 1.25 * top else []
    empty = float(requested[uniform == 0].sum())
    notes += [f"{empty:.1%} requested where no clip is"] if empty > 0 else []
    panel.annotate("\n".join(notes), (0.98, 0.97), xycoords="axes fraction", ha="right", va="top", fontsize=7.5, color=ASKED)
    panel.set_xlim(0, 100)
    panel.set_xlabel("share of the pool, most requested first (%)")
    panel.set_ylabel("draws of a clip (alike: 1)")
    panel.set_title("How often a clip is drawn", fontsize=10)
    _quiet(panel)


def _quiet(panel: Any) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.xaxis.label.set_size(8.5)
    panel.yaxis.label.set_size(8.5)


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
