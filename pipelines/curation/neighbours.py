"""Finding pairs of clips that may show the same footage: FAISS over vectors and over fingerprints, then one rule for both.

An ImageNet network sees clips of one robot in one scene as almost equal (cosine 0.98 between different motions, 0.90
between a clip and its worse encoded copy), so a cosine alone never makes a duplicate: the fingerprint must agree too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import Removal
from pipelines.recipes import Part
from pipelines.video.fingerprint import POSITIONS, compare, unpack

CHANGE_WEIGHT = 0.1  # how much of the change masks' distance counts beside the pictures' share of differing bits
SAME_S = 2e-3  # containers of one stream have other time bases (mkv: 1 ms), so equal spans differ by rounding


class PairRule(Part):
    """When two clips are the same footage. `length` is the largest relative difference of their lengths, `change` the
    largest distance of their change masks (a small thing moving otherwise changes little of the picture), `brightness`
    the largest difference in grey levels (other colours in the same scene); `fingerprint` and `near_score` bound the
    fingerprint distance, with the cosine that each asks for beside it."""

    length: float = 0.06
    brightness: float = 5.0
    change: float = 0.45
    fingerprint: float = 0.06
    fingerprint_cosine: float = 0.8
    near_score: float = 0.10
    near_cosine: float = 0.97


class SearchConfig(Part):
    """`neighbours` looked at for each clip; above `flat_limit` clips an IVF index with `probes` cells replaces the exact one."""

    neighbours: int = 32
    flat_limit: int = 200_000
    probes: int = 16


@dataclass(frozen=True)
class Features:
    """What pairs are judged by, row for row: unit vectors (N, D), packed fingerprints (N, 5, 32), lengths in s (N,),
    the spans' starts in s from the first frame (N,), brightness in grey levels (N,), and video ids."""

    vectors: NDArray[np.float32]
    prints: NDArray[np.uint8]
    lengths: NDArray[np.float64]
    starts: NDArray[np.float64]
    brightness: NDArray[np.float64]
    video_ids: list[str]


def features_of(clips: list[dict[str, Any]], vectors: NDArray[np.float32]) -> Features:
    """Features of clip rows and their vectors, in the same order."""
    starts = np.array([clip["start_s"] for clip in clips], np.float64)
    ends = np.array([clip["end_s"] for clip in clips], np.float64)
    brightness = np.array([clip["brightness"] for clip in clips], np.float64)
    prints = unpack([clip["fingerprint"] for clip in clips])
    return Features(vectors, prints, ends - starts, starts, brightness, [clip["video_id"] for clip in clips])


@dataclass(frozen=True)
class Pairs:
    """Judged pairs: row numbers `first` and `second` (M,), `reason` ("" when the pair is no duplicate), `cosine` (M,)."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    reason: list[str]
    cosine: NDArray[np.float64]


def judge(a: Features, b: Features, first: NDArray[np.int64], second: NDArray[np.int64], rule: PairRule) -> Pairs:
    """Judge the pairs (first[i] of `a`, second[i] of `b`)."""
    cosine = np.einsum("ij,ij->i", a.vectors[first], b.vectors[second], dtype=np.float64)
    closeness = compare(a.prints[first], b.prints[second])
    score = closeness.picture + CHANGE_WEIGHT * closeness.change
    longer = np.maximum(a.lengths[first], b.lengths[second])
    alike = (
        (np.abs(a.lengths[first] - b.lengths[second]) <= rule.length * longer)
        & (np.abs(a.brightness[first] - b.brightness[second]) <= rule.brightness)
        & closeness.evidence
        & (closeness.change <= rule.change)
    )
    close = (np.abs(a.starts[first] - b.starts[second]) < SAME_S) & (np.abs(a.lengths[first] - b.lengths[second]) < 2 * SAME_S)
    exact = close & np.array([a.video_ids[i] == b.video_ids[j] for i, j in zip(first, second, strict=True)], bool)
    printed = alike & (score <= rule.fingerprint) & (cosine >= rule.fingerprint_cosine)
    near = alike & (score <= rule.near_score) & (cosine >= rule.near_cosine)
    reason = np.where(exact, Removal.EXACT.value, np.where(printed, Removal.FINGERPRINT.value, np.where(near, Removal.NEAR_DUPLICATE.value, "")))
    return Pairs(first, second, reason.tolist(), cosine)


def candidate_pairs(features: Features, config: SearchConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row pairs (i < j), each once: neighbours in embedding space, neighbours by fingerprint, and clips of one stream."""
    count = len(features.vectors)
    pairs = [_pairs_of(rows) for rows in (_vector_neighbours(features, config), _print_neighbours(features, config))]
    by_video: dict[str, list[int]] = {}
    for row, video_id in enumerate(features.video_ids):
        by_video.setdefault(video_id, []).append(row)
    same = [pair for rows in by_video.values() for pair in _same_starts(features, rows)]
    pairs.append(np.array(same, np.int64).reshape(-1, 2))
    stacked = np.concatenate(pairs)
    keys = np.unique(stacked.min(axis=1) * count + stacked.max(axis=1)) if count else np.empty(0, np.int64)
    return keys // max(1, count), keys % max(1, count)


def _same_starts(features: Features, rows: list[int]) -> Iterator[tuple[int, int]]:
    """Pairs among clips of one stream that start together."""
    ordered = sorted(rows, key=lambda row: features.starts[row])
    for position, row in enumerate(ordered):
        for other in ordered[position + 1 :]:
            if features.starts[other] - features.starts[row] >= SAME_S:
                break
            yield row, other


def _pairs_of(neighbours: NDArray[np.int64]) -> NDArray[np.int64]:
    """(M, 2) row pairs from a neighbour table (N, k) in which -1 means none."""
    rows = np.repeat(np.arange(len(neighbours)), neighbours.shape[1])
    pairs = np.stack([rows, neighbours.reshape(-1)], axis=1)
    return pairs[(pairs[:, 1] >= 0) & (pairs[:, 0] != pairs[:, 1])]


def _vector_neighbours(features: Features, config: SearchConfig) -> NDArray[np.int64]:
    import faiss

    count, size = features.vectors.shape
    index: Any
    with faiss_threads(1):
        if count <= config.flat_limit:
            index = faiss.IndexFlatIP(size)
        else:  # across cluster borders: near-duplicates of one clip may fall into different cells
            index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, _cells(count), faiss.METRIC_INNER_PRODUCT)
            index.nprobe = config.probes
            index.train(features.vectors)
        index.add(features.vectors)
        return index.search(features.vectors, min(count, config.neighbours + 1))[1]


def _cells(count: int) -> int:
    """Cells of an IVF index: about 4 sqrt(N), with enough rows in each to train it."""
    return max(1, min(int(4 * np.sqrt(count)), count // 39))


def _print_neighbours(features: Features, config: SearchConfig) -> NDArray[np.int64]:
    """Neighbours by Hamming distance over the three picture hashes together."""
    import faiss

    count = len(features.prints)
    codes = np.ascontiguousarray(features.prints[:, : len(POSITIONS)].reshape(count, -1))
    bits = codes.shape[1] * 8
    index: Any
    with faiss_threads(1):
        if count <= config.flat_limit:
            index = faiss.IndexBinaryFlat(bits)
        else:
            index = faiss.IndexBinaryIVF(faiss.IndexBinaryFlat(bits), bits, _cells(count))
            index.nprobe = config.probes
            index.train(codes)
        index.add(codes)
        return index.search(codes, min(count, config.neighbours + 1))[1]


@contextlib.contextmanager
def faiss_threads(count: int) -> Iterator[None]:
    """Run FAISS on `count` threads inside (results are byte-equal on a fixed number), and give back the former number."""
    import faiss

    former = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(former)
