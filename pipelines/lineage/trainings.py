"""The trainings on video clips of a store: which checkpoint, on which shards, and what each of them showed, drawn again once."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from pipelines.errors import MissingArtefact, TubeletError
from pipelines.lineage.exposure import LINEAGE_FILE, Exposure, ExposureSpec, expose, exposures, read_spec, read_start
from pipelines.lineage.tree import ancestors, every_artefact, inputs_of
from pipelines.recipes import OWN_SHARDS
from pipelines.reporting import Progress
from pipelines.shards.mixture import WHOLE, Mixture, index_digest, open_mixture
from pipelines.store import Artefact, Store

Pool: TypeAlias = Mixture
"""All shards of one phase: `len`, `column(name)`, and `first_s`, `last_s`, `frame_rate`, `source_start_s` by row."""


def phases(store: Store, artefact: Artefact) -> Iterator[tuple[Artefact, ExposureSpec, Pool]]:
    """(checkpoint, spec, pool) of every training on video clips that `artefact` stands on, earliest phase first."""
    for item in reversed(ancestors(store, artefact)):
        spec = read_spec(item.path)
        if spec is not None:
            yield item, spec, pool_of(store, item, spec)


def pool_of(store: Store, checkpoint: Artefact, spec: ExposureSpec) -> Pool:
    """The shards that `spec` drew from; raises `MissingArtefact` when the store's own are not among the checkpoint's inputs, or when
    others are not the ones that were drawn from any more."""
    wanted = spec.shards_digest
    own = [parent.path for parent in inputs_of(store, checkpoint) if parent.asset == "training_shards" and parent.digest == wanted]
    if not own and any(source.shards == OWN_SHARDS for source in spec.mixture):
        raise MissingArtefact(
            f"the shards that {checkpoint.key} {checkpoint.digest} was trained on are not among its inputs",
            expected=f"training_shards {wanted}", found=", ".join(checkpoint.inputs.values()) or "no inputs", remedy="make the checkpoint again",
        )  # fmt: skip
    for item in spec.sources:
        found = item["digest"] if item["shards"] == OWN_SHARDS else index_digest(item["shards"])
        if found != item["digest"]:
            raise MissingArtefact(
                f"the shards {item['shards']} are not those that {checkpoint.key} {checkpoint.digest} was trained on",
                expected=f"an index with digest {item['digest']}", found=found or "no index", remedy="restore that folder: without it this lineage cannot be told",
            )  # fmt: skip
    return open_mixture(spec.mixture, own[0] if own else None)


def whole_pool(shards: Path) -> Pool:
    """All clips of one shards folder, for what was made before any training."""
    return open_mixture(WHOLE, shards)


def borrowed_weights(store: Store, artefacts: Iterable[Artefact]) -> list[dict[str, Any]]:
    """Weights from elsewhere that some of these began at: what those were trained on, no file of the store tells.

    A row: weights (their name), digest, licence, training_data (what is known), checkpoints. Weights that a checkpoint was made from as
    an artefact of the store are left out: their own lineage leads on.
    """
    found: dict[str, dict[str, Any]] = {}
    for item in artefacts:
        record = read_start(item.path)
        if record is not None and record["digest"] not in {parent.digest for parent in ancestors(store, item)}:
            told = {"weights": record["name"], "digest": record["digest"], "licence": record["licence"], "training_data": record["training_data"]}
            found.setdefault(record["digest"], {**told, "checkpoints": []})["checkpoints"].append(f"{item.key} {item.digest}")
    return list(found.values())


@dataclass(frozen=True, eq=False)
class Training:
    """One phase: the checkpoint it made, what its order of samples depends on, and its clips; `root` is the store's."""

    checkpoint: Artefact
    spec: ExposureSpec
    pool: Pool
    root: Path

    @functools.cached_property
    def shown(self) -> Exposure:
        """What was shown, by row of the pool; drawn again from the spec on first use."""
        return expose(self.pool, self.spec, self.root)

    def table(self) -> pa.Table:
        """Its EXPOSURES table."""
        return exposures(self.pool, self.shown)

    @property
    def samples(self) -> int:
        return self.spec.steps * self.spec.global_batch

    @property
    def stand_ins(self) -> int:
        return len(self.spec.replaced)


class Trainings:
    """The trainings of one store, each opened and drawn at most once, however many checkpoints stand on it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._opened: dict[str, Training] = {}

    @property
    def opened(self) -> list[Training]:
        """Those that were asked about so far, in that order."""
        return list(self._opened.values())

    def behind(self, artefact: Artefact) -> list[Training]:
        """Those that `artefact` stands on, itself included, earliest first. Raises `MissingArtefact` when one cannot be told."""
        found = [self._opened.get(str(item.path)) or self._open(item) for item in reversed(ancestors(self.store, artefact))]
        return [training for training in found if training is not None]

    def videos_behind(self, artefact: Artefact) -> frozenset[str]:
        """Ids of the videos that the trainings behind `artefact` have shown."""
        shown = (training.pool.texts("video_id").filter(pa.array(training.shown.samples > 0)) for training in self.behind(artefact))
        return frozenset(name for names in shown for name in names.to_pylist())

    def of_store(self) -> tuple[list[tuple[Artefact, list[Training]]], dict[str, str]]:
        """Every checkpoint of the store, current or not, with what it stands on; and {checkpoint: why it cannot be told}."""
        checkpoints, untold = [], {}
        found = [item for item in every_artefact(self.store) if (item.path / LINEAGE_FILE).is_file()]
        with Progress("lineage", len(found), "checkpoints") as progress:
            for done, item in enumerate(found, start=1):
                try:
                    if read_spec(item.path) is not None:
                        trainings = self.behind(item)
                        for training in trainings:
                            _ = training.shown
                        checkpoints.append((item, trainings))
                except (TubeletError, OSError) as error:  # shards that are gone, or a lineage of another version
                    untold[f"{item.key} {item.digest}"] = str(error)
                progress(done, text=item.key)
        return checkpoints, untold

    def _open(self, item: Artefact) -> Training | None:
        spec = read_spec(item.path)
        if spec is None:
            return None
        training = Training(item, spec, pool_of(self.store, item, spec), self.store.root)
        return self._opened.setdefault(str(item.path), training)
