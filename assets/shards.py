"""The training set as WebDataset shards."""

from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.curation import curated_clips, distinct_clips
from assets.resources import StoreResource
from pipelines.checks import Check
from pipelines.store import Artefact, Store


class ShardsConfig(dg.Config):
    """`short_side` of the stored clips in px; smaller sources keep their size."""

    short_side: int = 112
    workers: int = 2


def plan_training_shards(store: Store, config: ShardsConfig) -> Plan:
    from pipelines.shards.cutting import ShardConfig

    distinct, selection = store.current("distinct_clips"), store.current("curated_clips")
    settings = ShardConfig(**config.model_dump(exclude={"workers"}))

    def build(task: Task) -> dict[str, Any]:
        from pipelines.shards import writer

        return writer.build_shards(
            task.folder, distinct.path, selection.path, config=settings, workers=config.workers, progress=task.progress
        )

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.shards import writer

        return writer.check_shards(artefact.path)

    return Plan(
        "training_shards", build, check, inputs=[distinct, selection], config=settings.model_dump(),
        highlights=("clips", "shards", "bytes", "failed"),
    )  # fmt: skip


@dg.asset(
    deps=[distinct_clips, curated_clips], group_name="curation", owners=["team:data"], kinds={"webdataset", "parquet"},
    code_version="1", check_specs=blocking("training_shards", "not_empty", "bytes_agree", "clips_were_cut"),
)  # fmt: skip
def training_shards(context: dg.AssetExecutionContext, config: ShardsConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The selected clips as WebDataset tars that any reader of that format opens, with a Parquet index.

    The index carries each clip's weight and its seconds in the source video: what a checkpoint was trained on is read here.
    """
    return carry_out(context, storage, lambda store: plan_training_shards(store, config))
