"""What the targets ask for: p_d(c), the share of target d's training clips that lie in cluster c (V-JEPA 2, A.2)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.curation.selection import UNIFORM, WEIGHT_TOLERANCE
from pipelines.errors import InputError

Vector = NDArray[np.float64]
COSINES = 1 << 26  # cosines held at a time (256 MB)


@dataclass(frozen=True)
class Hits:
    """Target clips in K clusters: `counts` (D, K) that lie there, `mass` (D, K) float64 the same spread over near clusters.

    Without smoothing mass equals counts; with it a clip counts in each of its nearest clusters and its mass adds up to 1.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    mass: Vector


@dataclass(frozen=True)
class Demand:
    """Row d of `share` (D, K) is p_d(c) of target `names[d]`, summing to 1 over its supported clusters; `weights` (D,) is w_d."""

    names: tuple[str, ...]
    weights: Vector
    share: Vector

    @property
    def clusters(self) -> Vector:
        """w_c = sum_d w_d p_d(c), (K,), summing to 1."""
        return self.weights @ self.share


def nobody(clusters: int) -> Demand:
    """The demand of no target at all."""
    return Demand((), np.empty(0), np.empty((0, clusters)))


def training_sets(source: pa.ChunkedArray) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Names of the target sets, sorted, and for each clip (its source is "<set>/<split>") its set's number, -1 for other splits."""
    coded = source.combine_chunks().dictionary_encode()
    values = coded.dictionary.to_pylist()
    names = tuple(sorted({value.rpartition("/")[0] for value in values}))
    number = np.array([names.index(value.rpartition("/")[0]) if value.endswith("/train") else -1 for value in values], np.int64)
    return names, number[coded.indices.to_numpy()]


def count_hits(names: tuple[str, ...], of_clip: NDArray[np.int64], cluster: NDArray[np.int64], clusters: int) -> Hits:
    """Hits of target clips whose set is `of_clip` (N,; -1: not counted) and whose cluster is `cluster` (N,)."""
    counted = of_clip >= 0
    counts = np.bincount(of_clip[counted] * clusters + cluster[counted], minlength=len(names) * clusters).reshape(len(names), clusters)
    return Hits(names, counts, counts.astype(np.float64))


def spread_hits(
    names: tuple[str, ...], of_clip: NDArray[np.int64], vectors: NDArray[np.float32], centroids: NDArray[np.float32],
    nearest: int, temperature: float,
) -> Hits:  # fmt: skip
    """Hits of target clips with unit `vectors` (N, D), each spread over its `nearest` clusters by softmax(cosine / temperature).

    For unit vectors this is the softmax of -|t - mu|^2 / (2 temperature) over those clusters.
    """
    clusters, nearest = len(centroids), min(nearest, len(centroids))
    counts, mass = np.zeros(len(names) * clusters, np.int64), np.zeros(len(names) * clusters)
    rows = np.flatnonzero(of_clip >= 0)
    for block, cosine in _cosines(vectors, rows, centroids):
        near = np.argpartition(-cosine, nearest - 1, axis=1)[:, :nearest]
        pull = np.take_along_axis(cosine, near, axis=1).astype(np.float64)
        pull = np.exp((pull - pull.max(axis=1, keepdims=True)) / temperature)
        places = (of_clip[block][:, None] * clusters + near).ravel()
        counts += np.bincount(places, minlength=len(counts))
        mass += np.bincount(places, (pull / pull.sum(axis=1, keepdims=True)).ravel(), minlength=len(mass))
    return Hits(names, counts.reshape(len(names), clusters), mass.reshape(len(names), clusters))


def _cosines(
    vectors: NDArray[np.float32], rows: NDArray[np.int64], centroids: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    size = max(1, min(4096, COSINES // len(centroids)))
    for start in range(0, len(rows), size):
        block = rows[start : start + size]
        padded = np.zeros((size, vectors.shape[1]), np.float32)  # always so many rows, or the sums would differ in bits
        padded[: len(block)] = vectors[block]
        yield block, (padded @ centroids.T)[: len(block)]


def demand_of(hits: Hits, weights: Mapping[str, float], support: int) -> Demand:
    """The demand of targets that weigh `weights`; clusters that hold fewer than `support` clips of a target do not count for it.

    Raises `InputError` when the weights do not name all target sets, are negative or do not sum to 1, and when a set
    that has a weight has no supported cluster. Sets of weight 0 are left out.
    """
    if not hits.names:
        raise InputError(
            "there is no target set that could ask for clips", expected="target sets with training clips, or the mode balanced or uniform",
            found="none", remedy="name a targets root, or set selection.mode=balanced",
        )  # fmt: skip
    if UNIFORM in hits.names:
        raise InputError(
            f"a target set cannot be called {UNIFORM}", expected="another name", found=UNIFORM, remedy="rename it: so is called what no target asked for"
        )
    total = sum(weights.values())
    named = set(hits.names) <= set(weights) and {name for name, weight in weights.items() if weight > 0} <= set(hits.names)
    if not named or min(weights.values(), default=-1.0) < 0 or abs(total - 1.0) > WEIGHT_TOLERANCE:
        raise InputError(
            "the weights do not divide the draws among the target sets",
            expected=f"numbers of 0 or more that sum to 1 for {', '.join(hits.names) or 'target sets with training clips'}",
            found=f"{dict(weights)}, sum {total:g}", remedy="mend target_weights, or the weights in targets.yaml",
        )  # fmt: skip
    names = tuple(sorted(name for name, weight in weights.items() if weight > 0))
    rows = [hits.names.index(name) for name in names]
    supported = np.where(hits.counts[rows] >= support, hits.mass[rows], 0.0)
    for name, row, counted in zip(names, rows, supported, strict=True):
        if counted.sum() <= 0:
            raise InputError(
                f"target set {name} has no cluster with {support} of its clips", expected="support in at least one cluster",
                found=f"at most {hits.counts[row].max(initial=0)} clips in one", remedy="lower `support`, or add training videos to the set",
            )  # fmt: skip
    return Demand(names, np.array([weights[name] / total for name in names]), supported / supported.sum(axis=1, keepdims=True))
