"""The artefacts that one curation is made of, found by walking back from its selection."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pipelines.lineage.tree import inputs_of
from pipelines.store import MANIFEST, Artefact, Store

HEADS = ("curated_clips", "clip_clusters", "distinct_clips")


@dataclass(frozen=True)
class Chain:
    """What the newest of `HEADS` was made from; stages that it does not name stand with their current artefacts.

    `waiting` are batches that were probed and are not in it yet, or gave no clip; `newer` are stages made again since, which it does not use.
    """

    videos: dict[str, Artefact]
    clips: dict[str, Artefact]
    embeddings: dict[str, Artefact]
    targets: Artefact | None
    target_embeddings: Artefact | None
    distinct: Artefact | None
    clusters: Artefact | None
    selection: Artefact | None
    shards: Artefact | None
    waiting: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()

    def artefacts(self) -> list[Artefact]:
        """All of them, in the order of the stages."""
        batches = [item for stage in (self.videos, self.clips, self.embeddings) for _, item in sorted(stage.items())]
        single = (self.targets, self.target_embeddings, self.distinct, self.clusters, self.selection, self.shards)
        return batches + [item for item in single if item is not None]


def chain_of(store: Store, head: Artefact | None = None) -> Chain:
    """The chain of `head` (of an asset in HEADS), or of the current selection; of what there is where it has not come that far.

    Raises `MissingArtefact` when something that it was made from is gone from the store.
    """
    head = head or next((found for asset in HEADS if (found := store.latest(asset)) is not None), None)
    made_from = {item.asset: item for item in inputs_of(store, head)} if head else {}
    if head is not None:
        made_from[head.asset] = head  # an incremental stage also has its own predecessor among its inputs

    def one(asset: str) -> Artefact | None:
        return made_from.get(asset) or store.latest(asset)

    def batches(asset: str, users: list[Artefact]) -> dict[str, Artefact]:
        used = {item.partition: item for user in users for item in inputs_of(store, user) if item.asset == asset}
        return used or {batch: store.current(asset, batch) for batch in store.partitions(asset)}

    distinct = one("distinct_clips")
    clips, embeddings = (batches(asset, [distinct] if distinct else []) for asset in ("clips", "clip_embeddings"))
    videos = batches("videos", list(clips.values()))
    chosen = head if head is not None and head.asset == HEADS[0] else None
    shards = store.latest("training_shards")
    if shards is not None and (chosen is None or shards.inputs.get(chosen.key, chosen.digest) != chosen.digest):
        shards = None
    stages = {asset: one(asset) for asset in ("target_videos", "target_embeddings", "distinct_clips", "clip_clusters")}
    newest = {asset: store.latest(asset) for asset in (*stages, HEADS[0])}
    used = {**stages, HEADS[0]: chosen}
    newer = tuple(asset for asset, found in newest.items() if found is not None and (mine := used[asset]) and found.digest != mine.digest)
    return Chain(
        videos, clips, embeddings, stages["target_videos"], stages["target_embeddings"], stages["distinct_clips"],
        stages["clip_clusters"], chosen, shards, tuple(sorted({*store.partitions("videos"), *store.partitions("clips")} - {*clips})), newer,
    )  # fmt: skip


def folders(stage: dict[str, Artefact]) -> list[Path]:
    """Folders of a partitioned stage's artefacts, in the order of the batches."""
    return [item.path for _, item in sorted(stage.items())]


def created(artefact: Artefact) -> float:
    """When an artefact was sealed, in seconds since 1970."""
    return float(json.loads((artefact.path / MANIFEST).read_text())["created"])
