"""Everything Dagster loads, as one reviewable list."""

from __future__ import annotations

import dagster as dg

from assets.automation import JOBS, SCHEDULES, SENSORS
from assets.curation import (
    clip_clusters,
    clip_embeddings,
    clips,
    curated_clips,
    distinct_clips,
    target_embeddings,
    target_videos,
)
from assets.evaluation import encoder_report, probe_results
from assets.launchers import TrainLauncher
from assets.planning import planning_results, robot_bundle, robot_deployment
from assets.posttraining import world_model
from assets.pretraining import cooled_encoder, pretrained_encoder
from assets.resources import StoreResource
from assets.robot_data import robot_episodes
from assets.shards import training_shards
from assets.sources import source_catalog, videos

ASSETS: list[dg.AssetsDefinition | dg.SourceAsset] = [
    source_catalog, videos, clips, clip_embeddings, target_videos, target_embeddings, distinct_clips, clip_clusters,
    curated_clips, training_shards, pretrained_encoder, cooled_encoder, robot_episodes, world_model, probe_results,
    encoder_report, planning_results, robot_bundle, robot_deployment,
]  # fmt: skip

defs = dg.Definitions(
    assets=ASSETS,
    jobs=JOBS,
    schedules=SCHEDULES,
    sensors=SENSORS,
    resources={"storage": StoreResource(), "trainer": TrainLauncher()},
    # Training is out of process already; a process for every other step would cost 3 CPU-s each.
    executor=dg.in_process_executor,
)
