"""Jobs, the schedule and the sensors. All are off until a person switches them on, and none may deploy to a robot."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from assets.builtin import ensure_sources
from assets.partitions import SIMULATED_EPISODES, add_keys, episode_sources, ingest_batches
from assets.reconcile import clear_leases, reconcile_runs
from assets.resources import StoreResource, store_root
from pipelines.errors import TubeletError
from pipelines.sources import registry
from pipelines.store import Store

SETTLED_S = 60.0
"""A file changed later than this is still being written."""
CURATION = [
    "target_videos", "target_embeddings", "distinct_clips", "clip_clusters", "curated_clips", "training_shards",
]  # fmt: skip
TRAINED = [
    "pretrained_encoder", "cooled_encoder", "world_model", "probe_results", "encoder_report", "planning_results",
    "robot_bundle",
]  # fmt: skip

observe = dg.define_asset_job("observe", ["source_catalog"], description="Look at the registered roots; sort new files into batches.")
ingest = dg.define_asset_job(
    "ingest", ["videos", "clips", "clip_embeddings"], description="Probe, cut and embed one batch."
)
curate = dg.define_asset_job("curate", CURATION, description="Merge all batches and choose the training set anew.")
episodes = dg.define_asset_job("episodes", ["robot_episodes"], description="Bring one source of robot episodes in.")
recipe = dg.define_asset_job(
    "recipe", CURATION + TRAINED, description="From embedded batches to a bundle, for one recipe."
)
deploy = dg.define_asset_job(
    "deploy", ["robot_deployment"], description="Point one robot to a bundle. Started by a person only."
)


class ScrubConfig(dg.Config):
    """`quick`: sizes and tables only, no member is read for its digest."""

    quick: bool = False


@dg.op
def scrub_artefacts(context: dg.OpExecutionContext, config: ScrubConfig, storage: StoreResource) -> None:
    """Look at every artefact and every table of the store, and at what Dagster remembers of them; fails when something does not agree."""
    from assets.scrub import scrub_store
    from pipelines.lineage.scrub.text import closing_line, scrub_markdown

    try:
        found = scrub_store(Path(storage.root or store_root()), quick=config.quick, instance=context.instance)
    except TubeletError as error:
        raise dg.Failure(description=str(error), allow_retries=False) from error
    metadata: dict[str, dg.MetadataValue] = {
        "findings": dg.MetadataValue.md(scrub_markdown(found.findings)), "disagreements": dg.MetadataValue.int(len(found.findings)),
        "artefacts": dg.MetadataValue.int(found.artefacts), "notes": dg.MetadataValue.json([asdict(note) for note in found.notes]),
    }  # fmt: skip
    if found.findings:
        named = "; ".join(f"{one.kind.value} at {one.file}" for one in found.findings[:3])
        raise dg.Failure(description=f"{closing_line(found)}: {named}. The table of findings is in this event's metadata.", metadata=metadata, allow_retries=False)
    context.add_output_metadata(metadata)


@dg.job(name="scrub_store", description="Every artefact against its manifest, every table against the others. Changes nothing.")
def scrub_job() -> None:
    scrub_artefacts()


JOBS: list[Any] = [observe, ingest, curate, episodes, recipe, deploy, scrub_job]

weekly_recuration = dg.ScheduleDefinition(
    name="weekly_recuration", job=curate, cron_schedule="0 3 * * 1", execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Monday at 03:00 UTC: merge what has arrived and choose the training set anew. Trains nothing.",
)  # fmt: skip

weekly_scrub = dg.ScheduleDefinition(
    name="weekly_scrub", job=scrub_job, cron_schedule="0 5 * * 0", execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Every Sunday at 05:00 UTC: read the whole store and name what does not agree. Changes nothing.",
)  # fmt: skip


def young_files(store: Store) -> list[str]:
    """Files of the registered sources (videos, manifests, tars) that changed within the last `SETTLED_S` seconds."""
    newest = time.time_ns() - int(SETTLED_S * 1e9)
    return [file.path for source in registry.list_sources(store) for file in registry.deciding_files(source) if file.mtime_ns > newest]


@dg.sensor(job=ingest, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def arriving_videos(context: dg.SensorEvaluationContext, storage: StoreResource) -> dg.SensorResult | dg.SkipReason:
    """Sorts files that arrived in the registered roots into a batch and ingests it; waits while any is still growing."""
    store = storage.open()
    ensure_sources(store)
    growing = young_files(store)
    if growing:
        return dg.SkipReason(f"{len(growing)} files are still being written, for example {growing[0]}")
    registry.new_batches(store)
    add_keys(context.instance, episode_sources, [SIMULATED_EPISODES])
    known = set(context.instance.get_dynamic_partitions("ingest_batch"))
    keys = [key for key in registry.list_batches(store) if key not in known]
    if not keys:
        return dg.SkipReason("no new files")
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=key, partition_key=key) for key in keys],
        dynamic_partitions_requests=[ingest_batches.build_add_request(keys)],
    )


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.STOPPED, minimum_interval_seconds=60, monitor_all_code_locations=False)
def failed_runs(context: dg.RunFailureSensorContext, storage: StoreResource) -> None:
    """Appends one JSON line for each failed run to logs/failures.jsonl in the store."""
    store = storage.open()
    run = context.dagster_run
    line = {
        "time": time.time(), "run_id": run.run_id, "job": run.job_name, "partition": run.tags.get("dagster/partition"),
        "error": context.failure_event.message,
    }  # fmt: skip
    with store.writing():
        (store.root / "logs").mkdir(exist_ok=True)
        with open(store.root / "logs" / "failures.jsonl", "a") as handle:
            handle.write(json.dumps(line) + "\n")


@dg.sensor(minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.STOPPED)
def lost_runs(context: dg.SensorEvaluationContext, storage: StoreResource) -> dg.SkipReason:
    """Ends runs whose process is gone (killed, reboot): marks them failed, frees their slots, clears their leases."""
    ended, folders = reconcile_runs(context.instance), clear_leases(storage.open())
    return dg.SkipReason(f"ended {len(ended)} lost runs, cleared {len(folders)} leases {' '.join(ended + folders)}".strip())


SCHEDULES = [weekly_recuration, weekly_scrub]
SENSORS = [arriving_videos, failed_runs, lost_runs]
