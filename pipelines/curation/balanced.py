"""Balanced sampling over a codebook's tree: every branch gives alike, as far as it has clips (water-filling).

From the top, a node's share is poured into its children until their levels are equal or they are full; so what is rare
on any level weighs as much as what is common (Vo et al., 2024). Within a leaf, clips are drawn by a hash of seed and
clip id: a larger sample contains every smaller one, and new clips do not reshuffle the old.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.codebook import Codebook
from pipelines.errors import InputError
from pipelines.identity import stable_seed

Counts = NDArray[np.int64]


def water_fill(room: Counts, total: int, seed: int) -> Counts:
    """(J,) whole numbers, at most `room` each, that add up to min(total, sum of room) and are as equal as room allows.

    Children that are not full differ by one at most; who gets the odd ones is drawn once by `seed`, so no share falls
    when `total` grows.
    """
    total = int(min(total, room.sum()))
    by_room = np.sort(room)
    filled = np.concatenate([[0], np.cumsum(by_room)])[:-1]  # what the smaller ones hold
    poured = filled + by_room * np.arange(len(room), 0, -1)  # the total at which the child of this room is just full
    first_open = int(np.searchsorted(poured, total, side="right"))  # children from here on are not full
    if first_open == len(room):
        return room.copy()
    level, odd = divmod(total - int(filled[first_open]), len(room) - first_open)
    share = np.minimum(room, level)
    order = np.random.default_rng(seed).permutation(len(room))
    share[order[room[order] > level][:odd]] += 1
    return share


def balanced_quotas(codebook: Codebook, leaf_sizes: Counts, size: int, seed: int) -> tuple[Counts, ...]:
    """How many clips every node gives to a sample of `size`: for each level from the leaves up, (K_l,), as the codebook's.

    `leaf_sizes` (K_0,) are the clips in each leaf. The quotas of every level add up to min(size, all clips).
    """
    sizes = [leaf_sizes.astype(np.int64)]
    for level, parents in enumerate(codebook.parents):
        sizes.append(np.bincount(parents, weights=sizes[-1], minlength=len(codebook.centroids[level + 1])).astype(np.int64))
    quotas = [water_fill(sizes[-1], size, stable_seed("balanced", seed, "root"))]
    for level in range(len(codebook.parents) - 1, -1, -1):
        parents, share = codebook.parents[level], np.zeros(len(sizes[level]), np.int64)
        children = np.split(np.argsort(parents, kind="stable"), np.cumsum(np.bincount(parents, minlength=len(quotas[0])))[:-1])
        for node in np.flatnonzero(quotas[0]):
            share[children[node]] = water_fill(sizes[level][children[node]], int(quotas[0][node]), stable_seed("balanced", seed, level, int(node)))
        quotas.insert(0, share)
    return tuple(quotas)


def balanced_sample(
    codebook: Codebook,
    leaf_of_clip: NDArray[np.integer],
    clip_ids: Sequence[str],
    size: int,
    seed: int,
    pick: Literal["random", "nearest"] = "random",
    similarity: NDArray[np.floating] | None = None,
) -> NDArray[np.int64]:
    """Row numbers, ascending, of the min(size, N) clips that are kept of clips with leaves `leaf_of_clip` (N,).

    `nearest` takes those with the largest `similarity` (N,) to their leaf's centroid, as the assignments tell it. Raises
    `InputError` when that is missing, or rows, ids and codebook do not fit together.
    """
    leaves = len(codebook.leaves)
    inside = len(leaf_of_clip) == 0 or (leaf_of_clip.min() >= 0 and leaf_of_clip.max() < leaves)
    if len(clip_ids) != len(leaf_of_clip) or not inside:
        raise InputError(
            "the assignments do not fit the codebook", expected=f"a leaf below {leaves} for each of {len(clip_ids)} clips",
            found=f"{len(leaf_of_clip)} leaves up to {leaf_of_clip.max(initial=-1)}", remedy="materialize clip_clusters again",
        )  # fmt: skip
    if size < 0 or (pick == "nearest" and (similarity is None or len(similarity) != len(clip_ids))):
        raise InputError(
            "the balanced sample cannot be drawn", expected="a size of at least 0, and for `nearest` every clip's similarity",
            found=f"size {size}, {'no' if similarity is None else len(similarity)} similarities", remedy="mend the options of the selection",
        )  # fmt: skip
    sizes = np.bincount(leaf_of_clip, minlength=leaves)
    quota = balanced_quotas(codebook, sizes, size, seed)[0]
    keys = _keys(seed, clip_ids)
    if pick == "nearest" and similarity is not None:
        order = np.lexsort((keys, -similarity, leaf_of_clip))
    else:
        order = np.lexsort((keys, leaf_of_clip))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # place of a clip within its leaf
    return np.sort(order[rank < np.repeat(quota, sizes)])


def _keys(seed: int, clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) where clips stand in their leaf: 64 bits that depend on the clip and the seed alone."""
    salt = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    digests = []
    for clip_id in clip_ids:
        running = salt.copy()
        running.update(clip_id.encode())
        digests.append(running.digest())
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
