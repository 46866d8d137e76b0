"""Drift: whether new clips are distributed as those before them, measured several ways and judged against a null.

A statistic is flagged when it is both significant (p below .01 against random splits) and large (effect above .1): with
a million clips everything is significant, with twenty everything is large. Every effect is made so that .1 is the
least that matters; `EFFECTS` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from pipelines.curation.drift_null import Column, VideoDraw, clip_splits, p_value, video_splits
from pipelines.curation.leaf_statistics import EDGES, bin_centres, distance_bin
from pipelines.identity import stable_seed
from pipelines.recipes import Part

Vector = NDArray[np.float64]
Counts = NDArray[np.int64]

PRIOR = 0.5  # Dirichlet prior of every bin: an empty bin stays finite in a logarithm
BANDWIDTH_ROWS = 1024
EFFECTS = {
    "psi": "PSI above what splits of the same clips give on average; .1 is where folklore begins to worry, once noise is gone",
    "js": "square root of the Jensen-Shannon divergence above the splits' average, as a share of its largest value (0: equal, 1: disjoint); "
    "a square root because that is a distance, of which 5 % of clips in one new leaf make .1 to .15",
    "novelty": "Cohen's h (difference of arcsine roots) between the rates of novel clips; .1 is a rise from 1 % to 2.3 %",
    "distance": "Wasserstein distance above the splits' average, as a share of the range that holds the middle 90 % of the reference's "
    "distances; a tenth of that is a third of a standard deviation, and what the fit's own clips are off by stays below half of it",
    "mmd": "distance of the kernel means above the splits' average, in units of the kernel's own spread, as Cohen's d is for plain means",
    "targets": "total variation above the splits' average: the share of all draws that the targets now ask for elsewhere",
}


class DriftConfig(Part):
    """How drift is measured, and what it leads to (pipelines/curation/decision.py). Shares are of all clips of the pool."""

    on_drift: Literal["follow", "keep"] = "follow"  # keep: report and propose, change nothing
    exchange: Literal["videos", "clips"] = "videos"  # what the null's splits exchange; clips are right when each is from another video
    splits: PositiveInt = 200  # the smallest p is then 1 / 201, and two splits that reach the observed value still pass .01
    p_below: float = pydantic.Field(default=0.01, gt=0, le=1)
    effect_above: NonNegativeFloat = 0.1
    clips_per_bin: NonNegativeFloat = 5.0  # new clips a leaf on average, below which the next level is compared (Cochran's rule for counts)
    kernel_clips: int = pydantic.Field(default=2048, ge=2)  # of either side for MMD, so that its cost does not grow with the pool
    frequencies: PositiveInt = 512  # a cosine and a sine each: 1024 random Fourier features
    anchors: PositiveInt = 100_000  # clips whose clusters are compared when the codebook changes
    leaf_videos: PositiveInt = 100  # videos a leaf must have clips of, for a .99 quantile of its own; others go by the .999 quantile of all
    append_above: NonNegativeFloat = 0.01  # novel clips, beyond those that the quantiles leave out by design, that are worth new leaves
    append_least: NonNegativeInt = 8  # ... and never fewer clips than this: 1 % of a small pool is two clips
    append_explained: float = pydantic.Field(default=0.5, ge=0, le=1)  # share of the novel clips that new leaves must hold as well as old leaves hold theirs
    append_leaf_clips: PositiveInt = 3  # clips that a new leaf must hold so well: two can agree by chance
    refit_novel: NonNegativeFloat = 0.1  # beyond this many new leaves, the old ones lie in the wrong places too
    refit_distance: NonNegativeFloat = 0.5  # clips half a standard deviation farther from their leaves: the codebook no longer describes them
    refit_mixture: NonNegativeFloat = 0.5  # Jensen-Shannon distance: half of its range, most leaves are far too full or too empty
    refit_growth: float = pydantic.Field(default=4.0, gt=1)  # times the clips it was fitted on, where so many ask for other numbers of clusters
    seed: int = 0

    @pydantic.model_validator(mode="after")
    def _splits_can_tell(self) -> DriftConfig:
        if 1 / (self.splits + 1) >= self.p_below:
            raise ValueError(f"splits {self.splits} give no p below p_below {self.p_below:g}: splits should be at least {int(1 / self.p_below)}")
        return self


@dataclass(frozen=True, eq=False)
class Measured:
    """One statistic: observed `value`, its `effect`, the p-value, and its `null` values (splits,)."""

    value: float
    effect: float
    p: float
    null: Vector
    flagged: bool

    def described(self, name: str) -> dict[str, Any]:
        """As it stands in drift.json."""
        return {
            "value": self.value, "effect": self.effect, "p": self.p, "flagged": self.flagged, "null_mean": float(self.null.mean()),
            "null_p99": float(np.quantile(self.null, 0.99)), "effect_is": EFFECTS[name],
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Side:
    """Clips of the reference or of the window: `cluster` (N,), cosine `distance` (N,), `novel` (N,), `video` (N,) numbers
    from 0; and a sample for MMD: `vectors` (S, D) with their videos `sampled` (S,)."""

    cluster: Counts
    distance: NDArray[np.float32]
    novel: NDArray[np.bool_]
    video: Counts
    vectors: NDArray[np.float32]
    sampled: Counts


def smoothed(counts: Counts) -> Vector:
    """Shares (..., K) of counts (..., K) under a Dirichlet(.5) prior: positive, summing to 1."""
    return (counts + PRIOR) / (counts.sum(axis=-1, keepdims=True) + PRIOR * counts.shape[-1])


def population_stability(p: Vector, q: Vector) -> Vector:
    """PSI sum (q - p) ln(q / p) over the last axis; symmetric, 0 for equal shares."""
    return ((q - p) * np.log(q / p)).sum(axis=-1)


def jensen_shannon(p: Vector, q: Vector) -> Vector:
    """Jensen-Shannon divergence in nats over the last axis: symmetric, between 0 and ln 2."""
    middle = (p + q) / 2
    return np.maximum(0.0, (p * np.log(p / middle) + q * np.log(q / middle)).sum(axis=-1) / 2)


def total_variation(p: Vector, q: Vector) -> Vector:
    """Half the summed absolute differences over the last axis: the mass that must move."""
    return np.abs(p - q).sum(axis=-1) / 2


def wasserstein(first: Counts, second: Counts, centres: Vector) -> Vector:
    """W1 between distance distributions given as counts (..., B) of bins that lie at `centres` (B,), in their unit."""
    running = [np.cumsum(counts, axis=-1) / np.maximum(1, counts.sum(axis=-1, keepdims=True)) for counts in (first, second)]
    return (np.abs(running[0] - running[1])[..., :-1] * np.diff(centres)).sum(axis=-1)


def fourier_features(vectors: NDArray[np.float32], frequencies: int, random: np.random.Generator) -> Vector:
    """(N, 2 frequencies) features of length 1 whose products approximate a Gaussian kernel of median bandwidth."""
    rows = vectors[:: max(1, -(-len(vectors) // BANDWIDTH_ROWS))].astype(np.float64)
    squared = np.maximum(0.0, 2.0 - 2.0 * (rows @ rows.T))[np.triu_indices(len(rows), 1)]
    width = float(np.median(squared)) if len(squared) else 1.0
    waves = random.standard_normal((vectors.shape[1], frequencies)) / np.sqrt(width if width > 1e-9 else 1.0)
    angle = vectors.astype(np.float64) @ waves
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / np.sqrt(frequencies)


def mean_discrepancy(first: Vector, second: Vector, sizes: tuple[Vector, Vector]) -> Vector:
    """Unbiased MMD^2 (...) from sums of features of length 1: `first` and `second` (..., F) over `sizes` (...) clips each."""
    n, m = (np.asarray(size, np.float64) for size in sizes)
    within = ((first**2).sum(axis=-1) - n) / np.maximum(n * (n - 1), 1) + ((second**2).sum(axis=-1) - m) / np.maximum(m * (m - 1), 1)
    return within - 2 * (first * second).sum(axis=-1) / (n * m)


def measure(reference: Side, window: Side, clusters: int, config: DriftConfig, key: str = "") -> dict[str, Measured]:
    """psi, js, novelty, distance and mmd of the window (at least 2 clips) against the reference (at least 2).

    `key` names the window (a digest of its clip ids): every window is judged by splits of its own. One fixed set of
    splits for all would not give p-values that are uniform over windows.
    """
    nominal = _canonical(Column(reference.cluster, window.cluster, clusters))
    bins = [distance_bin(side.distance) for side in (reference, window)]
    low, high = (int(end(end(found) for found in bins)) for end in (min, max))  # most of the grid is empty
    centres = bin_centres()[low : high + 1]
    distance = Column(bins[0] - low, bins[1] - low, high - low + 1)
    novel = Column(reference.novel.astype(np.int64), window.novel.astype(np.int64), 2)
    columns = {"cluster": nominal, "distance": distance, "novel": novel}
    random = np.random.default_rng(stable_seed("drift", config.seed, key))
    if config.exchange == "clips":
        chunks = clip_splits(columns, config.splits, random)
    else:
        chunks = video_splits(columns, reference.video, window.video, config.splits, random)
    totals = {name: sum(column.counts) for name, column in columns.items()}
    nulls: dict[str, list[Vector]] = {name: [] for name in ("psi", "js", "novelty", "distance")}
    for chunk in chunks:
        rest = {name: totals[name] - counts for name, counts in chunk.items()}
        for name, values in _of_counts(rest, chunk, centres).items():
            nulls[name].append(values)
    null = {name: np.concatenate(values) for name, values in nulls.items()}
    sides = {name: column.counts for name, column in columns.items()}
    value = {
        name: float(found) for name, found in _of_counts(
            {name: pair[0] for name, pair in sides.items()}, {name: pair[1] for name, pair in sides.items()}, centres
        ).items()
    }  # fmt: skip
    rate = float(reference.novel.mean())
    excess = {name: max(0.0, value[name] - float(null[name].mean())) for name in value}
    effects = {
        "psi": excess["psi"], "js": float(np.sqrt(excess["js"] / np.log(2))), "distance": excess["distance"] / _middle_range(sides["distance"][0], centres),
        "novelty": float(max(0.0, 2 * np.arcsin(np.sqrt(value["novelty"])) - 2 * np.arcsin(np.sqrt(rate)))),
    }  # fmt: skip
    found = {name: judged(value[name], effects[name], null[name], config) for name in ("psi", "js", "novelty", "distance")}
    with _blas().limit(limits=1):  # BLAS sums in another order on another number of threads
        found["mmd"] = _kernel_drift(reference, window, config, key)
    return found


@cache
def _blas() -> Any:
    """The libraries whose threads are to be held, looked up once (it takes longer than a small drift measurement)."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _middle_range(counts: Counts, centres: Vector) -> float:
    """Width of the distances between the .05 and the .95 quantile of counts (B,) of bins at `centres`, no less than a copy's."""
    low, high = np.searchsorted(np.cumsum(counts) / counts.sum(), (0.05, 0.95))
    return float(max(EDGES[0], centres[high] - centres[low]))


def judged(value: float, effect: float, null: Vector, config: DriftConfig) -> Measured:
    """A statistic with its p-value, flagged when both bounds of `config` are passed."""
    p = p_value(value, null)
    return Measured(value, effect, p, null, p < config.p_below and effect > config.effect_above)


def _canonical(column: Column) -> Column:
    """The same with bins in an order that their counts alone decide, so that renumbering clusters changes no random draw."""
    reference, window = column.counts
    place = np.empty(column.bins, np.int64)
    place[np.lexsort((window, reference))] = np.arange(column.bins)
    return Column(place[column.reference], place[column.window], column.bins)


def _of_counts(reference: dict[str, Counts], window: dict[str, Counts], centres: Vector) -> dict[str, Vector]:
    p, q = smoothed(reference["cluster"]), smoothed(window["cluster"])
    return {
        "psi": population_stability(p, q), "js": jensen_shannon(p, q),
        "novelty": window["novel"][..., 1] / np.maximum(1, window["novel"].sum(axis=-1)),
        "distance": wasserstein(reference["distance"], window["distance"], centres),
    }  # fmt: skip


def _kernel_drift(reference: Side, window: Side, config: DriftConfig, key: str) -> Measured:
    """MMD over the samples of both sides, its null from the same features split again."""
    pooled = np.concatenate([reference.vectors, window.vectors])
    count, taken = len(pooled), len(window.vectors)
    random = np.random.default_rng(stable_seed("drift-kernel", config.seed, key))
    features = fourier_features(pooled, config.frequencies, random)
    inside = np.zeros((config.splits + 1, count))
    inside[0, count - taken :] = 1.0  # row 0 is the observed window
    if config.exchange == "clips":
        drawn = random.random((config.splits, count)).argpartition(taken - 1, axis=1)[:, :taken]
        np.put_along_axis(inside[1:], drawn, 1.0, axis=1)
    else:
        number, rows = VideoDraw(reference.sampled, window.sampled, random).windows(config.splits)
        inside[1 + number, rows] = 1.0
    sums, sizes = inside @ features, inside.sum(axis=1)
    whole = features.sum(axis=0)
    values = mean_discrepancy(whole - sums, sums, (count - sizes, sizes))
    spread = 1.0 - float((whole @ whole - count) / max(1, count * (count - 1)))  # 1 - mean kernel between two clips
    excess = float(values[0] - values[1:].mean())  # clips of one video agree, so that splits by video differ on average
    effect = float(np.sqrt(max(0.0, excess) / max(spread, 1e-9)))
    return judged(float(values[0]), effect, values[1:], config)


def shares_of(side: Side, clusters: int) -> Vector:
    """(K,) share of the side's clips in each cluster."""
    return np.bincount(side.cluster, minlength=clusters) / max(1, len(side.cluster))


def movers(reference: Side, window: Side, clusters: int, most: int = 8) -> list[dict[str, Any]]:
    """The clusters whose share rose most and those whose share fell most, largest gain first."""
    before, after = shares_of(reference, clusters), shares_of(window, clusters)
    order = np.lexsort((np.arange(clusters), -(after - before)))
    chosen = [int(number) for number in order if after[number] > before[number]][:most]
    chosen += [int(number) for number in order if after[number] < before[number]][-most:]
    return [{"cluster": number, "reference": float(before[number]), "window": float(after[number])} for number in chosen]
