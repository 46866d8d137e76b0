"""From videos to a selection of clips: cut, embed, compare, cluster, and choose what resembles the targets."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.builtin import LICENCE, targets_root
from assets.partitions import ingest_batches
from assets.resources import StoreResource
from assets.sources import videos
from pipelines.curation import sources
from pipelines.errors import MissingArtefact
from pipelines.store import Artefact, Store

OWNERS = ["team:data"]


class ClipsConfig(dg.Config):
    """Clips are between the two lengths (s); a scene is cut where content changes by more than `threshold` neighbours."""

    threshold: float = 3.0
    min_clip_s: float = 1.0
    max_clip_s: float = 6.0
    workers: int = 2


def plan_clips(store: Store, batch: str, config: ClipsConfig) -> Plan:
    from pipelines.curation import scenes

    source = store.current("videos", batch)
    settings = scenes.SceneConfig(**config.model_dump(exclude={"workers"}))

    def build(task: Task) -> dict[str, Any]:
        return scenes.build_clips(
            task.folder, source.path, config=settings, workers=config.workers, progress=task.progress
        )

    return Plan(
        "clips", build, lambda artefact: scenes.check_clips(artefact.path), inputs=[source], partition=batch,
        config=settings.model_dump(mode="json"), highlights=("clips", "rejected", "clip_seconds"),
    )  # fmt: skip


@dg.asset(
    deps=[videos], partitions_def=ingest_batches, group_name="curation", owners=OWNERS, kinds={"opencv", "parquet"},
    code_version="1", check_specs=blocking("clips", "not_empty"),
)  # fmt: skip
def clips(context: dg.AssetExecutionContext, config: ClipsConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Clips of one batch, cut at scene changes: spans in the source file, nothing is transcoded.

    Each row carries motion and brightness, so that static and black spans can be left out later.
    """
    return carry_out(context, storage, lambda store: plan_clips(store, context.partition_key, config))


class EmbeddingConfig(dg.Config):
    """CPU threads of the image encoder. Part of the identity: other thread counts may differ in the last bit."""

    threads: int = 2


def plan_clip_embeddings(store: Store, batch: str, config: EmbeddingConfig) -> Plan:
    return _plan_embeddings("clip_embeddings", store.current("clips", batch), batch, config)


def _plan_embeddings(asset: str, source: Artefact, partition: str | None, config: EmbeddingConfig) -> Plan:
    from pipelines.curation import embedding

    settings = embedding.EmbeddingSettings(threads=config.threads)

    def build(task: Task) -> dict[str, Any]:
        return embedding.build_embeddings(task.folder, source.path, config=settings, progress=task.progress)

    return Plan(
        asset, build, lambda artefact: embedding.check_embeddings(artefact.path), inputs=[source], partition=partition,
        config=settings.model_dump(), highlights=("clips", "dimensions"),
    )  # fmt: skip


@dg.asset(
    deps=[clips], partitions_def=ingest_batches, group_name="curation", owners=OWNERS, kinds={"pytorch", "numpy"},
    code_version="1", check_specs=blocking("clip_embeddings", "not_empty"),
)  # fmt: skip
def clip_embeddings(
    context: dg.AssetExecutionContext, config: EmbeddingConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """One unit vector for each clip of a batch, from the offline image encoder, versioned by that encoder's digest."""
    return carry_out(context, storage, lambda store: plan_clip_embeddings(store, context.partition_key, config))


def embedded_batches(store: Store) -> dict[str, tuple[Artefact, Artefact]]:
    """Clips and embeddings of every batch that has both, validated; raises `MissingArtefact` when there is none."""
    batches = {
        batch: (store.current("clips", batch), store.current("clip_embeddings", batch))
        for batch in store.partitions("clip_embeddings")
    }
    if not batches:
        raise MissingArtefact(
            "no batch of clips has been embedded", expected="at least one partition of clip_embeddings", found="none",
            remedy="observe source_catalog, then materialize videos, clips and clip_embeddings of a batch (job ingest)",
        )  # fmt: skip
    return batches


class TargetsConfig(dg.Config):
    """`root` holds the target sets, `<set>/{train,eval}/<label>/*`; empty means the built-in ones."""

    root: str = ""
    licence: str = ""
    workers: int = 2


def plan_target_videos(store: Store, config: TargetsConfig) -> Plan:
    from pipelines.curation import targets

    root = Path(config.root) if config.root else targets_root(store)
    licence = config.licence if config.root else LICENCE

    def build(task: Task) -> dict[str, Any]:
        settings = targets.TargetsConfig(workers=config.workers, licence=licence)
        return targets.build_target_videos(task.folder, root, settings, task.progress)

    return Plan(
        "target_videos", build, lambda artefact: targets.check_target_videos(artefact.path),
        config={"root": targets.root_digest(root), "licence": licence}, highlights=("sets", "videos", "clips"),
    )  # fmt: skip


@dg.asset(
    group_name="targets", owners=OWNERS, kinds={"ffmpeg", "parquet"}, code_version="1",
    check_specs=blocking("target_videos", "not_empty"),
)  # fmt: skip
def target_videos(context: dg.AssetExecutionContext, config: TargetsConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The labelled sets the system should become good at: name, weight, files, and a split each.

    Training files pull similar clips out of the pool; evaluation files must stay out of it.
    """
    return carry_out(context, storage, lambda store: plan_target_videos(store, config))


def plan_target_embeddings(store: Store, config: EmbeddingConfig) -> Plan:
    return _plan_embeddings("target_embeddings", store.current("target_videos"), None, config)


@dg.asset(
    deps=[target_videos], group_name="targets", owners=OWNERS, kinds={"pytorch", "numpy"}, code_version="1",
    check_specs=blocking("target_embeddings", "not_empty"),
)  # fmt: skip
def target_embeddings(
    context: dg.AssetExecutionContext, config: EmbeddingConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """The clips of the target sets in the same embedding space as the pool."""
    return carry_out(context, storage, lambda store: plan_target_embeddings(store, config))


class DistinctConfig(dg.Config):
    """Static and black clips are always scored; these leave them out too. Thresholds: pipelines/curation/duplicates.py."""

    filter_static: bool = False
    filter_black: bool = False


def plan_distinct_clips(store: Store, config: DistinctConfig) -> Plan:
    from pipelines.curation import duplicates

    settings = duplicates.DuplicatesConfig(**config.model_dump())
    batches = embedded_batches(store)
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")
    superseded = {key: paths for key, paths in sources.superseded(store).items() if key in batches}

    def build(task: Task) -> dict[str, Any]:
        folders = {batch: (found.path, vectors.path) for batch, (found, vectors) in batches.items()}
        summary = duplicates.build_distinct(task.folder, folders, targets.path, target_vectors.path, settings, superseded)
        digests = {batch: vectors.digest for batch, (_, vectors) in batches.items()}
        return {**summary, "batches": len(digests), "batch_digests": digests}

    inputs = [artefact for pair in batches.values() for artefact in pair] + [targets, target_vectors]
    return Plan(
        "distinct_clips", build, lambda artefact: duplicates.check_distinct(artefact.path), inputs=inputs,
        config={**settings.model_dump(mode="json"), "superseded": superseded}, highlights=("clips", "removed", "batches"),
    )  # fmt: skip


@dg.asset(
    deps=[
        dg.AssetDep(clips, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(clip_embeddings, partition_mapping=dg.AllPartitionMapping()),
        target_videos, target_embeddings,
    ],
    group_name="curation", owners=OWNERS, kinds={"faiss", "parquet"}, code_version="1",
    check_specs=blocking("distinct_clips", "not_empty", "removals_explained"),
)  # fmt: skip
def distinct_clips(context: dg.AssetExecutionContext, config: DistinctConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Every batch merged, without near-duplicates and without clips that leak the evaluation sets.

    Every removal names its kept twin and their similarity; the merged batches are listed with their digests.
    """
    return carry_out(context, storage, lambda store: plan_distinct_clips(store, config))


class ClusterConfig(dg.Config):
    """About one fine cluster for `clips_per_cluster` clips, at most `max_clusters`, grouped into `coarse_clusters`."""

    clips_per_cluster: int = 4
    max_clusters: int = 48
    coarse_clusters: int = 6
    seed: int = 0


def plan_clip_clusters(store: Store, config: ClusterConfig) -> Plan:
    from pipelines.curation import clustering

    settings = clustering.ClustersConfig(**config.model_dump())
    distinct = store.current("distinct_clips")
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")

    def build(task: Task) -> dict[str, Any]:
        return clustering.build_clusters(
            task.folder, distinct.path, targets.path, target_vectors.path, settings, task.progress
        )

    return Plan(
        "clip_clusters", build, lambda artefact: clustering.check_clusters(artefact.path),
        inputs=[distinct, targets, target_vectors], config=settings.model_dump(mode="json"),
        highlights=("clusters", "coarse_clusters", "largest_cluster"),
    )  # fmt: skip


@dg.asset(
    deps=[distinct_clips, target_videos, target_embeddings], group_name="curation", owners=OWNERS, kinds={"faiss"},
    code_version="1", check_specs=blocking("clip_clusters", "not_empty"),
)  # fmt: skip
def clip_clusters(context: dg.AssetExecutionContext, config: ClusterConfig, storage: StoreResource) -> dg.MaterializeResult:
    """A two-level k-means codebook over the distinct clips, with every clip and every target assigned to it."""
    return carry_out(context, storage, lambda store: plan_clip_clusters(store, config))


class SelectionConfig(dg.Config):
    """`repeat_cap` bounds a clip's weight in uniform shares; `uniform_mix` of the draws is spread over all clips.

    The paper: no cap (a large number) and no uniform part (0).
    """

    support: int = 1
    smoothing: int = 1
    repeat_cap: float = 4.0
    uniform_mix: float = 0.3


def plan_curated_clips(store: Store, config: SelectionConfig) -> Plan:
    from pipelines.curation import retrieval

    settings = retrieval.SelectionConfig(**config.model_dump())
    distinct, clusters = store.current("distinct_clips"), store.current("clip_clusters")
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")

    def build(task: Task) -> dict[str, Any]:
        return retrieval.build_selection(
            task.folder, distinct.path, clusters.path, targets.path, target_vectors.path, settings
        )

    return Plan(
        "curated_clips", build, lambda artefact: retrieval.check_selection(artefact.path),
        inputs=[distinct, clusters, targets, target_vectors], config=settings.model_dump(mode="json"),
        highlights=("clips", "kl", "coverage"),
    )  # fmt: skip


@dg.asset(
    deps=[distinct_clips, clip_clusters, target_videos, target_embeddings], group_name="curation", owners=OWNERS,
    kinds={"parquet"}, code_version="1",
    check_specs=blocking("curated_clips", "not_empty", "weights_sum_to_one", "differs_from_uniform", "no_evaluation_leak"),
)  # fmt: skip
def curated_clips(context: dg.AssetExecutionContext, config: SelectionConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The selection a model trains on: clip, weight, and the target set that earned it.

    The achieved distribution over clusters is shown against the requested one and against taking everything alike.
    """
    return carry_out(context, storage, lambda store: plan_curated_clips(store, config))
