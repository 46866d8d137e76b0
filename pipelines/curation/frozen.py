"""A frozen codebook with all that an increment must know of the clips it has already assigned, read from clip_clusters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipelines.curation.codebook import Codebook
from pipelines.curation.leaf_statistics import LeafStatistics
from pipelines.curation.target_drift import Asked
from pipelines.errors import StoreError
from pipelines.schemas import ASSIGNMENTS, read_table

STATISTICS = "leaf_statistics.npz"
DISTANCES = "distances.npy"
MACHINE_OPTIONS = {"threads", "device"}  # how a codebook is computed, not which one


@dataclass(frozen=True, eq=False)
class Basis:
    """What was fixed when the codebook was fitted, and what the targets asked for last.

    `thresholds` (K,): distances beyond which clips are novel; `overall` and `typical`: the .999 and .9 quantiles of all
    clips; `tail`: share of the fit's clips beyond their threshold; `tried`: how many novel clips did not cluster well when
    that was tried last; `fit_counts` (K_fit,) and `fit_digest` (256,): where
    the fit's clips lay; `settings`: the clustering's options.
    """

    thresholds: NDArray[np.float32]
    overall: float
    typical: float
    tail: float
    tried: int
    fit_counts: NDArray[np.int64]
    fit_digest: NDArray[np.int64]
    settings: Mapping[str, Any]
    asked: Asked

    @property
    def fitted(self) -> int:
        """Clips that the codebook was fitted on."""
        return int(self.fit_counts.sum())

    def changes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        """Which options differ in `settings`, in words."""
        old, new = _flat(self.settings), _flat(settings)
        return tuple(f"{name} was {old.get(name)} and is {new.get(name)}" for name in sorted({*old, *new}) if old.get(name) != new.get(name))


@dataclass(frozen=True, eq=False)
class Frozen:
    """One clip_clusters artefact: `assignments` in its rows' order with `distances` (N,), the codebook, statistics, basis."""

    codebook: Codebook
    assignments: pa.Table
    distances: NDArray[np.float32]
    statistics: LeafStatistics
    basis: Basis

    @classmethod
    def load(cls, folder: Path) -> Frozen:
        """Read it; raises `StoreError` when its parts do not belong together."""
        codebook = Codebook.load(folder)
        assignments = read_table(folder / "assignments.parquet", ASSIGNMENTS)
        distances = np.load(folder / DISTANCES, allow_pickle=False)
        statistics, basis = load_statistics(folder)
        if not (len(assignments) == len(distances) == statistics.counts.sum() and len(statistics.counts) == len(codebook.leaves)):
            raise StoreError(
                f"{folder} is damaged", expected=f"statistics of {len(assignments)} clips in {len(codebook.leaves)} leaves",
                found=f"{statistics.counts.sum()} clips in {len(statistics.counts)} leaves, {len(distances)} distances",
                remedy="materialize clip_clusters again without the previous one",
            )  # fmt: skip
        return cls(codebook, assignments, distances, statistics, basis)


def is_frozen(folder: Path) -> bool:
    """Whether a clip_clusters artefact carries what increments need (those made before increments were there do not)."""
    return (folder / STATISTICS).is_file()


def save_statistics(folder: Path, statistics: LeafStatistics, basis: Basis, distances: NDArray[np.float32]) -> None:
    """leaf_statistics.npz and distances.npy, with equal bytes for equal numbers."""
    names = list(basis.asked.names)
    np.savez(
        folder / STATISTICS, allow_pickle=False, **statistics.tables(), thresholds=basis.thresholds, fit_counts=basis.fit_counts,
        fit_digest=basis.fit_digest, quantiles=np.array([basis.overall, basis.typical, basis.tail]), tried=np.array(basis.tried),
        settings=np.array(json.dumps(basis.settings, sort_keys=True)), target_names=np.array(names, np.str_),
        target_counts=basis.asked.counts, target_weights=np.array([basis.asked.weights.get(name, 0.0) for name in names]),
    )  # fmt: skip
    np.save(folder / DISTANCES, distances)


def load_statistics(folder: Path) -> tuple[LeafStatistics, Basis]:
    """What `save_statistics` wrote into leaf_statistics.npz."""
    with np.load(folder / STATISTICS, allow_pickle=False) as found:
        overall, typical, tail = (float(value) for value in found["quantiles"])
        names = tuple(str(name) for name in found["target_names"])
        asked = Asked(names, found["target_counts"], dict(zip(names, found["target_weights"].tolist(), strict=True)))
        basis = Basis(
            found["thresholds"], overall, typical, tail, int(found["tried"]), found["fit_counts"], found["fit_digest"], json.loads(str(found["settings"])), asked
        )
        return LeafStatistics(found["counts"], found["sums"], found["squares"], found["digests"]), basis


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{name}."))
        elif name not in MACHINE_OPTIONS:
            found[prefix + name] = value
    return found
