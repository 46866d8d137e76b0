"""How much a new codebook says what the old one said: the same clips' clusters in both, and how far super-clusters moved.

Cluster numbers mean nothing across codebooks. Super-clusters are few enough to be matched one to one (Hungarian method
on their cosines); leaves are compared by adjusted mutual information, which needs no matching.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import gammaln

from pipelines.curation.codebook import Codebook

Labels = NDArray[np.int64]


def codebook_drift(old: Codebook, new: Codebook, old_leaf: Labels, new_leaf: Labels) -> dict[str, Any]:
    """Anchor clips (N,) with their leaves in both codebooks of one encoder: churn, AMI of leaves and of super-clusters,
    and the cosine distance between matched super-cluster centroids, weighed by their anchors."""
    pairs, distance = match_clusters(old.centroids[-1], new.centroids[-1])
    old_top, new_top = (book.ancestors(-1)[leaf].astype(np.int64) for book, leaf in ((old, old_leaf), (new, new_leaf)))
    partner = np.full(len(old.centroids[-1]), -1, np.int64)
    partner[pairs[:, 0]] = pairs[:, 1]
    weights = np.bincount(old_top, minlength=len(partner))[pairs[:, 0]]
    return {
        "anchors": len(old_leaf), "churn": float(1.0 - (partner[old_top] == new_top).mean()) if len(old_leaf) else 0.0,
        "ami_leaves": adjusted_mutual_information(old_leaf, new_leaf), "ami_super_clusters": adjusted_mutual_information(old_top, new_top),
        "super_clusters": [len(old.centroids[-1]), len(new.centroids[-1])], "matched": len(pairs),
        "centroid_shift": float((weights * distance).sum() / max(1, weights.sum())),
        "largest_shift": float(distance.max(initial=0.0)),
    }  # fmt: skip


def match_clusters(old: NDArray[np.float32], new: NDArray[np.float32]) -> tuple[Labels, NDArray[np.float64]]:
    """((M, 2) row pairs, (M,) cosine distance) of the one-to-one match of unit centroids that is nearest in sum."""
    cosine = np.einsum("id,jd->ij", old, new, dtype=np.float64)
    rows, columns = linear_sum_assignment(-cosine)
    return np.stack([rows, columns], axis=1).astype(np.int64), np.clip(1.0 - cosine[rows, columns], 0.0, 2.0)


def adjusted_mutual_information(first: Labels, second: Labels) -> float:
    """AMI of two labelings (N,) (arithmetic mean of entropies): 1 for equal partitions, about 0 for independent ones.

    The expected mutual information depends on cluster sizes alone, so equal sizes are summed once; that makes 1e5 clips
    in thousands of leaves a matter of seconds, where one term for every pair of leaves would take minutes.
    """
    count = len(first)
    _, rows, sizes_a = np.unique(first, return_inverse=True, return_counts=True)
    _, columns, sizes_b = np.unique(second, return_inverse=True, return_counts=True)
    if count == 0 or len(sizes_a) == len(sizes_b) == 1:
        return 1.0
    cells, both = np.unique(rows * len(sizes_b) + columns, return_counts=True)
    expected_cell = sizes_a[cells // len(sizes_b)] * (sizes_b[cells % len(sizes_b)] / count)
    mutual = float((both / count * np.log(both / expected_cell)).sum())
    entropies = [float(-(sizes / count * np.log(sizes / count)).sum()) for sizes in (sizes_a, sizes_b)]
    chance = _expected_mutual_information(sizes_a, sizes_b, count)
    room = max(float(np.mean(entropies)), mutual) - chance
    return (mutual - chance) / room if abs(room) > 1e-12 else 1.0


def _expected_mutual_information(sizes_a: Labels, sizes_b: Labels, count: int) -> float:
    """E[MI] of random labelings with these cluster sizes (hypergeometric overlaps; Vinh, Epps and Bailey 2010, eq. 24a)."""
    log_factorial = gammaln(np.arange(count + 1) + 1.0)
    unique_b, times_b = np.unique(sizes_b, return_counts=True)
    total = 0.0
    for a, times in zip(*np.unique(sizes_a, return_counts=True), strict=True):
        low = np.maximum(1, a + unique_b - count)
        lengths = np.minimum(a, unique_b) - low + 1
        b = np.repeat(unique_b, lengths)
        overlap = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + np.repeat(low, lengths)
        log_share = (
            log_factorial[a] + log_factorial[b] + log_factorial[count - a] + log_factorial[count - b] - log_factorial[count]
            - log_factorial[overlap] - log_factorial[a - overlap] - log_factorial[b - overlap] - log_factorial[count - a - b + overlap]
        )  # fmt: skip
        terms = overlap / count * np.log(count * overlap / (float(a) * b)) * np.exp(log_share)
        total += float(times) * float((np.repeat(times_b, lengths) * terms).sum())
    return total
