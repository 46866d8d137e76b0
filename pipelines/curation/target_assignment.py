"""The target sets' clips on a frozen codebook: known ones keep their leaves, new ones are assigned, appended leaves are tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.assignment import cosines, nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.demand import count_hits, training_sets
from pipelines.curation.pool import ROUNDED, Rows, assign_rows, open_vectors
from pipelines.curation.target_drift import Asked
from pipelines.errors import InputError
from pipelines.parts import Parts
from pipelines.schemas import CLIPS, read_table
from pipelines.sources.targets import set_weights


@dataclass(frozen=True, eq=False)
class TargetClips:
    """Target clips in their order: `leaf` (N,), `similarity` (N,), `of_set` (N,) numbers of `names` (-1: not for training),
    and `known` (D, K): those for training that were there before."""

    clip_ids: list[str]
    vectors: NDArray[np.float32]
    leaf: Rows
    similarity: NDArray[np.float32]
    of_set: Rows
    names: tuple[str, ...]
    weights: Mapping[str, float]
    known: Rows

    def asked(self, leaves: int) -> Asked:
        """What they ask of `leaves` leaves."""
        return Asked(self.names, count_hits(self.names, self.of_set, self.leaf, leaves).counts, self.weights)


def assign_targets(codebook: Codebook, former: pa.Table, clips_folder: Path, embeddings_folder: Path, parts: Parts) -> TargetClips:
    """The targets' clips under `codebook`, of which `former` (ASSIGNMENTS) are known. Raises `InputError` when they are
    embedded by another encoder than the codebook's, or are not the clips of their vectors."""
    clip_ids, vectors, encoder = open_vectors(embeddings_folder)
    codebook.insist_on(encoder)
    table = read_table(clips_folder / "clips.parquet", CLIPS, columns=["clip_id", "source"])
    if table.column("clip_id").to_pylist() != clip_ids:
        raise InputError(
            f"{embeddings_folder} does not embed the clips of {clips_folder}", expected=f"{len(table)} vectors in the clips' order",
            found=f"{len(clip_ids)} vectors of other clips", remedy="materialize the embeddings again",
        )  # fmt: skip
    names, of_set = training_sets(table.column("source"))
    place = pc.index_in(pa.array(clip_ids, pa.string()), value_set=former.column("clip_id").combine_chunks())
    row = place.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    known, new = np.flatnonzero(row >= 0), np.flatnonzero(row < 0)
    leaf, similarity = np.empty(len(row), np.int64), np.empty(len(row), np.float32)
    leaf[known] = former.column("cluster").to_numpy()[row[known]]
    similarity[known] = former.column("similarity").to_numpy()[row[known]]
    leaf[new], cosine = assign_rows(vectors, new, codebook, parts, "targets")
    similarity[new] = np.round(cosine, ROUNDED)
    before = count_hits(names, of_set[known], leaf[known], len(codebook.leaves)).counts
    return TargetClips(clip_ids, vectors, leaf, similarity, of_set, names, set_weights(clips_folder), before)


def try_appended(targets: TargetClips, codebook: Codebook, first: int) -> TargetClips:
    """The same after leaves from `first` on were appended: clips nearer to one of those move there."""
    rows = np.arange(len(targets.leaf))
    held = cosines(targets.vectors, rows, codebook.leaves, targets.leaf)
    found = nearest_leaf(targets.vectors, codebook.leaves[first:])
    moves = found.cosine > held
    leaf = np.where(moves, first + found.leaf, targets.leaf)
    similarity = np.where(moves, np.round(found.cosine, ROUNDED), targets.similarity).astype(np.float32)
    return replace(targets, leaf=leaf, similarity=similarity)
