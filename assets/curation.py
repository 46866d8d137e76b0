"""From videos to a selection of clips: cut, embed, compare, cluster, and choose what resembles the targets."""

from pathlib import Path
from typing import Any

import dagster as dg
import pydantic

from assets.bodies import Plan, Task, blocking, carry_out
from assets.builtin import LICENCE, targets_root
from assets.partitions import ingest_batches
from assets.resources import StoreResource
from assets.sources import videos
from pipelines.errors import MissingArtefact
from pipelines.sources import registry
from pipelines.store import Artefact, Store

OWNERS = ["team:data"]
CODE_VERSION = "2"
NO_TARGETS = "none"


class StageConfig(dg.Config):
    """`preset` names a curation recipe (nano, vjepa2, a YAML file); `options` replaces single values of this stage.

    What there is to set, and why it is set so: pipelines/presets/curation/*.yaml and docs/curation.md.
    """

    preset: str = "nano"
    options: dict[str, Any] = pydantic.Field(default={})
    workers: int = 2


def settings_of(part: str, config: StageConfig) -> Any:
    """The stage's options from its preset with the single values replaced; raises `InputError` that names what is wrong."""
    from pipelines.curation.recipe import stage_options

    return stage_options(config.preset, part, config.options)


def plan_clips(store: Store, batch: str, config: StageConfig) -> Plan:
    from pipelines.curation import scenes

    source = store.current("videos", batch)
    settings: scenes.SceneConfig = settings_of("scenes", config)

    def build(task: Task) -> dict[str, Any]:
        return scenes.build_clips(
            task.folder, source.path, config=settings, workers=config.workers, progress=task.progress, work=task.work_folder
        )

    return Plan(
        "clips", build, lambda artefact: scenes.check_clips(artefact.path, min(1, source.summary["videos"])), inputs=[source], partition=batch,
        config=settings.model_dump(mode="json"), highlights=("clips", "rejected", "clip_seconds"), code_version=CODE_VERSION, in_parts=True,
    )  # fmt: skip


@dg.asset(
    deps=[videos], partitions_def=ingest_batches, group_name="curation", owners=OWNERS, kinds={"opencv", "parquet"},
    code_version=CODE_VERSION, check_specs=blocking("clips", "not_empty"),
)  # fmt: skip
def clips(context: dg.AssetExecutionContext, config: StageConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Clips of one batch, cut at scene changes: spans in the source file, nothing is transcoded or decoded again.

    Each row carries motion, static, brightness and black scores, so that spans can be left out later.
    """
    return carry_out(context, storage, lambda store: plan_clips(store, context.partition_key, config))


def plan_clip_embeddings(store: Store, batch: str, config: StageConfig) -> Plan:
    return _plan_embeddings("clip_embeddings", store, store.current("clips", batch), batch, config)


def _plan_embeddings(asset: str, store: Store, source: Artefact, partition: str | None, config: StageConfig) -> Plan:
    from pipelines.curation import embedding

    settings: embedding.EmbeddingSettings = settings_of("embedding", config)

    def build(task: Task) -> dict[str, Any]:
        return embedding.build_embeddings(
            task.folder, source.path, config=settings, progress=task.progress, work=task.work_folder, workers=config.workers, store=store.root
        )

    # By its digest too: other weights at the same path are another encoder.
    digest = embedding.make_embedder(settings, store.root).digest
    return Plan(
        asset, build, lambda artefact: embedding.check_embeddings(artefact.path, min(1, source.summary["clips"])), inputs=[source], partition=partition,
        config={**settings.model_dump(mode="json"), "encoder_digest": digest}, highlights=("clips", "dimensions"), code_version=CODE_VERSION, in_parts=True,
    )  # fmt: skip


@dg.asset(
    deps=[clips], partitions_def=ingest_batches, group_name="curation", owners=OWNERS, kinds={"pytorch", "numpy"},
    code_version=CODE_VERSION, check_specs=blocking("clip_embeddings", "not_empty"),
)  # fmt: skip
def clip_embeddings(
    context: dg.AssetExecutionContext, config: StageConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """One unit vector for each clip of a batch, from a frozen encoder, versioned by the digest of weights and preprocessing."""
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
    """`root` holds the target sets: a folder `<set>/{train,eval}/<label>/*` (files right in train/ or eval/ have no label), or a
    YAML file that names them (see pipelines/presets/targets); empty means the built-in ones, "none" no targets at all.

    `preset` and `options` are those of the scenes, as for clips: evaluation files are cut as the pool is, to find them there.
    """

    root: str = ""
    licence: str = ""
    workers: int = 2
    preset: str = "nano"
    options: dict[str, Any] = pydantic.Field(default={})


def plan_target_videos(store: Store, config: TargetsConfig) -> Plan:
    from pipelines.curation.recipe import stage_options
    from pipelines.sources import target_sets, targets

    root = Path(config.root) if config.root else targets_root(store)
    licence = config.licence if config.root else LICENCE
    scenes = stage_options(config.preset, "scenes", config.options)
    settings = targets.TargetsConfig(workers=config.workers, licence=licence, scenes=scenes)

    def build(task: Task) -> dict[str, Any]:
        if config.root == NO_TARGETS:
            return targets.build_no_targets(task.folder)
        return targets.build_target_videos(task.folder, root, settings, task.progress, task.work_folder)

    digest = NO_TARGETS if config.root == NO_TARGETS else target_sets.root_digest(root)
    return Plan(
        "target_videos", build, lambda artefact: targets.check_target_videos(artefact.path),
        config={"root": digest, "licence": licence, "scenes": scenes.model_dump(mode="json")}, highlights=("sets", "videos", "clips"),
        code_version=CODE_VERSION, in_parts=True,
        looks_outside=True,
    )  # fmt: skip


@dg.asset(
    group_name="targets", owners=OWNERS, kinds={"ffmpeg", "parquet"}, code_version=CODE_VERSION,
    check_specs=blocking("target_videos", "not_empty"),
)  # fmt: skip
def target_videos(context: dg.AssetExecutionContext, config: TargetsConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The labelled sets the system should become good at: name, weight, files, and a split each.

    Training files pull similar clips out of the pool; evaluation files must stay out of it.
    """
    return carry_out(context, storage, lambda store: plan_target_videos(store, config))


def plan_target_embeddings(store: Store, config: StageConfig) -> Plan:
    return _plan_embeddings("target_embeddings", store, store.current("target_videos"), None, config)


@dg.asset(
    deps=[target_videos], group_name="targets", owners=OWNERS, kinds={"pytorch", "numpy"}, code_version=CODE_VERSION,
    check_specs=blocking("target_embeddings", "not_empty"),
)  # fmt: skip
def target_embeddings(
    context: dg.AssetExecutionContext, config: StageConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """The clips of the target sets in the same embedding space as the pool."""
    return carry_out(context, storage, lambda store: plan_target_embeddings(store, config))


def plan_distinct_clips(store: Store, config: StageConfig) -> Plan:
    from pipelines.curation import duplicates
    from pipelines.curation.report.sheets import draw_contact_removed
    from pipelines.curation.taken import read_taken_down

    settings: duplicates.DuplicatesConfig = settings_of("duplicates", config)
    batches = embedded_batches(store)
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")
    superseded = {key: paths for key, paths in registry.superseded(store).items() if key in batches}
    taken = read_taken_down(store, list(batches.values()))
    forbidden = {"tombstones": taken.tombstones.digest, "taken_from": sorted(taken.former)} if taken else {}
    former = store.latest("distinct_clips")  # no input: its pairs are taken over where they would be found again

    def build(task: Task) -> dict[str, Any]:
        folders = {batch: (found.path, vectors.path) for batch, (found, vectors) in batches.items()}
        summary = duplicates.build_distinct(
            task.folder, folders, targets.path, target_vectors.path, settings, superseded,
            previous=former.path if former else None, work=task.work_folder, progress=task.progress,
            taken=taken,
        )  # fmt: skip
        digests = {batch: vectors.digest for batch, (_, vectors) in batches.items()}
        draw_contact_removed(task.folder / "contact_removed.png", task.folder, [clips for clips, _ in folders.values()], targets.path)
        return {**summary, "batches": len(digests), "batch_digests": digests, "pictures": ["contact_removed.png"]}

    inputs = [artefact for pair in batches.values() for artefact in pair] + [targets, target_vectors]
    return Plan(
        "distinct_clips", build, lambda artefact: duplicates.check_distinct(artefact.path, taken.tombstones), inputs=inputs,
        config={**settings.model_dump(mode="json"), "superseded": superseded, **forbidden}, highlights=("clips", "removed", "batches"),
        code_version=CODE_VERSION, in_parts=True,
    )  # fmt: skip


@dg.asset(
    deps=[
        dg.AssetDep(clips, partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep(clip_embeddings, partition_mapping=dg.AllPartitionMapping()),
        target_videos, target_embeddings,
    ],
    group_name="curation", owners=OWNERS, kinds={"faiss", "parquet"}, code_version=CODE_VERSION,
    check_specs=blocking("distinct_clips", "not_empty", "removals_explained"),
)  # fmt: skip
def distinct_clips(context: dg.AssetExecutionContext, config: StageConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Every batch merged, without what was taken down, near-duplicates, and clips that leak the evaluation sets.

    Every removal names its kept twin and their similarity; the merged batches are listed with their digests.
    """
    return carry_out(context, storage, lambda store: plan_distinct_clips(store, config))


class ClusterConfig(StageConfig):
    """As every stage's; `drift_options` replaces single values of the drift part. `refit` gives up the frozen codebook."""

    drift_options: dict[str, Any] = pydantic.Field(default={})
    refit: bool = False


def plan_clip_clusters(store: Store, config: ClusterConfig) -> Plan:
    from pipelines.curation import clustering, increment
    from pipelines.curation.recipe import stage_options

    settings: clustering.ClustersConfig = settings_of("clusters", config)
    drift: increment.DriftConfig = stage_options(config.preset, "drift", config.drift_options)
    distinct = store.current("distinct_clips")
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")
    inputs = [distinct, targets, target_vectors]
    wanted = {"clusters": settings.model_dump(mode="json"), "drift": drift.model_dump(mode="json")}
    base = None if config.refit else codebook_to_keep(store, inputs, wanted)

    def build(task: Task) -> dict[str, Any]:
        return increment.update_clusters(
            task.folder, base.path if base else None, distinct.path, targets.path, target_vectors.path, settings, drift,
            work=task.work_folder, progress=task.progress,
        )  # fmt: skip

    return Plan(
        "clip_clusters", build, lambda artefact: {**clustering.check_clusters(artefact.path), **increment.check_increment(artefact.path)}, inputs=inputs,
        config={**wanted, "base": base.digest if base else None, "base_path": str(base.path.relative_to(store.root)) if base else None},
        highlights=("clusters", "coarse_clusters", "decision"), code_version=CODE_VERSION, in_parts=True,
    )  # fmt: skip


def codebook_to_keep(store: Store, inputs: list[Artefact], wanted: dict[str, Any]) -> Artefact | None:
    """The clip_clusters artefact whose codebook the next one starts from: the current one, or none before the first.

    When the current one was made from just these inputs and options, it is what it was made from itself: asking twice for
    the same clusters is one request.
    """
    current = store.latest("clip_clusters")
    if current is None or "base" not in current.config:
        return None  # none yet, or one of an older version, which kept no statistics
    made_from = {item.key: item.digest for item in inputs}
    if current.inputs == made_from and {name: current.config[name] for name in wanted} == wanted:
        path = current.config["base_path"]
        return store.load(store.root / path) if path else None
    return current


@dg.asset(
    deps=[distinct_clips, target_videos, target_embeddings], group_name="curation", owners=OWNERS, kinds={"faiss"},
    code_version=CODE_VERSION, check_specs=blocking("clip_clusters", "not_empty", "statistics_agree"),
)  # fmt: skip
def clip_clusters(context: dg.AssetExecutionContext, config: ClusterConfig, storage: StoreResource) -> dg.MaterializeResult:
    """A hierarchical k-means codebook over the distinct clips, with every clip and every target assigned to it.

    The codebook stays when clips arrive: new ones are assigned, drift is measured, and the decision (none, reweight, append,
    refit, re-embed) is shown with its reasons.
    """
    return carry_out(context, storage, lambda store: plan_clip_clusters(store, config))


def plan_curated_clips(store: Store, config: StageConfig) -> Plan:
    from pipelines.curation import retrieval
    from pipelines.curation.report.chain import chain_of, folders
    from pipelines.curation.report.funnel import count_rows
    from pipelines.curation.report.sheets import draw_contact_kept, draw_funnel

    settings: retrieval.SelectionConfig = settings_of("selection", config)
    distinct, clusters = store.current("distinct_clips"), store.current("clip_clusters")
    targets, target_vectors = store.current("target_videos"), store.current("target_embeddings")

    def build(task: Task) -> dict[str, Any]:
        summary = retrieval.build_selection(
            task.folder, distinct.path, clusters.path, targets.path, target_vectors.path, settings, work=task.work_folder
        )
        draw_contact_kept(task.folder / "contact_kept.png", distinct.path, task.folder)
        chain = chain_of(store, distinct)
        rows = count_rows(
            folders(chain.videos), folders(chain.clips), folders(chain.embeddings), distinct.path, int(distinct.summary["superseded_clips"]), task.folder
        )
        draw_funnel(task.folder / "funnel.png", rows)
        return {**summary, "pictures": [*summary["pictures"], "contact_kept.png", "funnel.png"]}

    return Plan(
        "curated_clips", build, lambda artefact: retrieval.check_selection(artefact.path),
        inputs=[distinct, clusters, targets, target_vectors], config=settings.model_dump(mode="json"),
        highlights=("clips", "kl", "coverage"), code_version=CODE_VERSION, in_parts=True,
    )  # fmt: skip


@dg.asset(
    deps=[distinct_clips, clip_clusters, target_videos, target_embeddings], group_name="curation", owners=OWNERS,
    kinds={"parquet"}, code_version=CODE_VERSION,
    check_specs=blocking("curated_clips", "not_empty", "weights_sum_to_one", "differs_from_uniform", "no_evaluation_leak"),
)  # fmt: skip
def curated_clips(context: dg.AssetExecutionContext, config: StageConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The selection a model trains on: clip, weight, and the target set that earned it.

    The achieved distribution over clusters is shown against the requested one and against taking everything alike.
    """
    return carry_out(context, storage, lambda store: plan_curated_clips(store, config))
