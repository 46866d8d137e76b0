"""Where video comes from: the registered roots, and every file of a batch probed."""

import warnings
from dataclasses import replace
from typing import Any

import dagster as dg
import pydantic

from assets.bodies import Plan, Task, blocking, carry_out
from assets.builtin import ensure_sources
from assets.partitions import SIMULATED_EPISODES, add_keys, episode_sources, ingest_batches
from assets.resources import StoreResource
from pipelines.sources import registry
from pipelines.store import Artefact, Store

OWNERS = ["team:data"]


def _look(context: dg.AssetExecutionContext, storage: StoreResource) -> dg.DataVersion:
    """Every place video comes from: the registered roots, versioned by the names, sizes and times of their files.

    Observing it registers the built-in corpus when there is no other source, sorts files that are new or changed into
    batches, and makes those batches known as partitions.
    """
    store = storage.open()
    ensure_sources(store)
    registry.new_batches(store)
    announce(context.instance, store)
    return dg.DataVersion(registry.source_digest(store))


with warnings.catch_warnings():
    # The one beta part of Dagster used here; a warning at every load would hide others.
    warnings.simplefilter("ignore", dg.BetaWarning)
    source_catalog = dg.observable_source_asset(
        name="source_catalog", group_name="sources", description=_look.__doc__, metadata={"owner": OWNERS[0]}
    )(_look)


def announce(instance: dg.DagsterInstance, store: Store) -> list[str]:
    """Make every batch, and the simulated episode source, known as partitions; returns the new batch keys."""
    add_keys(instance, episode_sources, [SIMULATED_EPISODES])
    return add_keys(instance, ingest_batches, registry.list_batches(store))


class VideosConfig(dg.Config, extra="forbid"):
    """`timeout_s` is how long a file may give no sign of life before its worker is killed.

    Such a file is tried twice, and twice more in a later batch; then it is poison. Like `workers` it is no part of what a
    probe is made from: a longer patience is for files that are new or come again, what decoded is not decoded anew for it.
    """

    workers: int = pydantic.Field(default=2, ge=1)
    timeout_s: float = pydantic.Field(default=30.0, gt=0)


def plan_videos(store: Store, batch: str, config: VideosConfig) -> Plan:
    listed = registry.read_batch(store, batch)

    def build(task: Task) -> dict[str, Any]:
        from pipelines.video import probe

        return probe.build_videos(
            task.folder, listed, workers=config.workers, timeout_s=config.timeout_s, progress=task.progress, work=task.work_folder
        )

    def check(artefact: Artefact) -> dict[str, Any]:
        from pipelines.video import probe

        checks = probe.check_videos(artefact.path, listed)
        decodes = checks["something_decodes"]
        if not decodes.passed:
            good, left = artefact.summary["videos"], len(registry.rejects_left(store, listed))
            passed, found = good >= probe.MIN_DECODE_RATE * (good + left), f"{decodes.found}; {left} rejected files are still as they were"
            checks["something_decodes"] = replace(decodes, passed=passed, found=found)
        return checks

    # A refused probe is judged again and never made again: a file that was mended, or deserves another try, has a later batch.
    return Plan(
        "videos", build, check, partition=batch, config={"batch": listed.digest},
        highlights=("videos", "quarantined", "video_seconds"), code_version="2", in_parts=True,
    )  # fmt: skip


@dg.asset(
    deps=[source_catalog], partitions_def=ingest_batches, group_name="sources", owners=OWNERS, kinds={"ffmpeg", "parquet"},
    code_version="2", check_specs=blocking("videos", "every_file_accounted_for", "something_decodes"),
)  # fmt: skip
def videos(context: dg.AssetExecutionContext, config: VideosConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Every file of one arriving batch, probed: a row with its codec, size, length and identity, or a typed reject.

    A video is named by the bytes of its stream, so copies in other containers are the same video.
    """
    return carry_out(context, storage, lambda store: plan_videos(store, context.partition_key, config))
