"""The main job: a fixed list of runs against the persistent instance, each doing only what is missing or stale.

Per batch: videos, clips, clip_embeddings. Then robot_episodes of the simulated source, the recipe's chain, and the
deployment to the simulated robot. An asset is up to date when the artefact that its current inputs and config ask for
exists, is accepted and current, and is what Dagster's newest event names.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.instance.ref import InstanceRef

from assets import curation, evaluation, planning, posttraining, pretraining, robot_data, shards, sources
from assets.automation import CURATION, TRAINED
from assets.bodies import Plan
from assets.definitions import defs
from assets.lineage import recorded_version
from assets.resources import REPOSITORY
from pipelines.errors import MissingArtefact, TubeletError
from pipelines.store import Store

logger = logging.getLogger("tubelet.demo")
INGEST = ["videos", "clips", "clip_embeddings"]
RUN_TAGS = {"tubelet/started_by": "tubelet demo"}
QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
"""The event log keeps everything; the console has the project's own lines."""


class RunFailed(TubeletError):
    """A run of the main job ended without success."""


class RunInterrupted(TubeletError):
    """A person stopped the main job."""


@dataclass(frozen=True)
class Stage:
    """How to plan one asset: `plan(store, partition, config)`, with its default config."""

    plan: Callable[..., Plan]
    config: dg.Config


def _unpartitioned(plan: Callable[..., Plan]) -> Callable[..., Plan]:
    return lambda store, _partition, config: plan(store, config)


STAGES: dict[str, Stage] = {
    "videos": Stage(sources.plan_videos, sources.VideosConfig()),
    "clips": Stage(curation.plan_clips, curation.StageConfig()),
    "clip_embeddings": Stage(curation.plan_clip_embeddings, curation.StageConfig()),
    "target_videos": Stage(_unpartitioned(curation.plan_target_videos), curation.TargetsConfig()),
    "target_embeddings": Stage(_unpartitioned(curation.plan_target_embeddings), curation.StageConfig()),
    "distinct_clips": Stage(_unpartitioned(curation.plan_distinct_clips), curation.StageConfig()),
    "clip_clusters": Stage(_unpartitioned(curation.plan_clip_clusters), curation.ClusterConfig()),
    "curated_clips": Stage(_unpartitioned(curation.plan_curated_clips), curation.StageConfig()),
    "training_shards": Stage(_unpartitioned(shards.plan_training_shards), shards.ShardsConfig()),
    "pretrained_encoder": Stage(pretraining.plan_pretrained_encoder, pretraining.PretrainConfig()),
    "cooled_encoder": Stage(pretraining.plan_cooled_encoder, pretraining.PretrainConfig()),
    "robot_episodes": Stage(robot_data.plan_robot_episodes, robot_data.EpisodesConfig()),
    "world_model": Stage(posttraining.plan_world_model, posttraining.PosttrainConfig()),
    "probe_results": Stage(evaluation.plan_probe_results, evaluation.ProbeConfig()),
    "encoder_report": Stage(evaluation.plan_encoder_report, evaluation.EncoderReportConfig()),
    "planning_results": Stage(planning.plan_planning_results, planning.PlanningConfig()),
    "robot_bundle": Stage(planning.plan_robot_bundle, planning.BundleConfig()),
    "robot_deployment": Stage(planning.plan_robot_deployment, planning.DeploymentConfig()),
}


@dataclass(frozen=True)
class Run:
    """One run of a job on one partition ("" for a job without any)."""

    job: str
    partition: str
    assets: Sequence[str]

    @property
    def label(self) -> str:
        return f"{self.job}[{self.partition}]" if self.partition else self.job


@dataclass
class Runner:
    """Brings runs up to date in process. `configs` replaces the default config of the named assets."""

    store: Store
    instance: dg.DagsterInstance
    configs: dict[str, dg.Config] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=lambda: STAGES)
    definitions: dg.Definitions = defs
    times: dict[str, float] = field(default_factory=dict)

    def config(self, asset: str) -> dg.Config:
        return self.configs.get(asset, self.stages[asset].config)

    def up_to_date(self, asset: str, partition: str) -> bool:
        """Whether materializing `asset` now would make nothing new and change no pointer."""
        own = self._own_partition(asset, partition)
        try:
            plan = self.stages[asset].plan(self.store, partition, self.config(asset))
            artefact = plan.find(self.store)
            if artefact is None or self.store.current(asset, own).path != artefact.path:
                return False
        except MissingArtefact:
            return False
        if plan.published is not None and not plan.published(artefact):
            return False
        return recorded_version(self.instance, asset, own) == artefact.digest

    def outstanding(self, run: Run) -> list[str]:
        """The assets of `run` that are missing or stale, and those of its assets that are built from them."""
        graph = self.definitions.resolve_asset_graph()
        missing: set[str] = set()
        for asset in run.assets:
            parents = {key.to_user_string() for key in graph.get(dg.AssetKey(asset)).parent_keys}
            if parents & missing or not self.up_to_date(asset, run.partition):
                missing.add(asset)
        return [asset for asset in run.assets if asset in missing]

    def bring_up(self, run: Run) -> bool:
        """Run what is outstanding; True when there was anything. Raises `RunFailed` or `RunInterrupted`."""
        missing = self.outstanding(run)
        current = [asset for asset in run.assets if asset not in missing]
        if current:
            logger.info("%s: up to date: %s", run.label, ", ".join(current))
        if not missing:
            return False
        logger.info("%s: to make: %s", run.label, ", ".join(missing))
        started = time.monotonic()
        self._execute(run, missing)
        self.times[run.label] = time.monotonic() - started
        return True

    def observe(self) -> None:
        """Observe `source_catalog`."""
        job = self.definitions.resolve_job_def("observe")
        job.execute_in_process(instance=self.instance, tags=RUN_TAGS, run_config=dg.RunConfig(loggers=QUIET))

    def _execute(self, run: Run, assets: Sequence[str]) -> None:
        config = dg.RunConfig(
            ops={asset: self.config(asset) for asset in assets},
            loggers=QUIET,
        )
        job = self.definitions.resolve_job_def(run.job)
        try:
            result = job.execute_in_process(
                run_config=config, instance=self.instance, partition_key=run.partition or None, tags=RUN_TAGS,
                asset_selection=[dg.AssetKey(asset) for asset in assets], raise_on_error=False,
            )  # fmt: skip
        except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            raise _interrupted(run) from error
        if not result.success:
            if any(was_interrupted(event) for event in result.all_events):
                raise _interrupted(run)
            raise RunFailed(
                f"run {run.label} failed", found="\n".join(failures(result.all_events)),
                remedy="mend the cause and run the same command again; what was finished is kept",
            )  # fmt: skip

    def _own_partition(self, asset: str, partition: str) -> str | None:
        node = self.definitions.resolve_asset_graph().get(dg.AssetKey(asset))
        return partition if node.is_partitioned else None


def _interrupted(run: Run) -> RunInterrupted:
    return RunInterrupted(
        f"stopped during {run.label}", remedy="run the same command again to go on; what was finished is kept"
    )


def was_interrupted(event: dg.DagsterEvent) -> bool:
    """Whether a step ended because a person or the system asked the process to end."""
    if not event.is_step_failure:
        return False
    error = event.step_failure_data.error
    while error is not None:
        if error.cls_name in {"DagsterExecutionInterruptedError", "KeyboardInterrupt"}:
            return True
        error = error.cause
    return False


def failures(events: Iterable[dg.DagsterEvent]) -> list[str]:
    """What went wrong in a run, as sentences: failed checks first, else the failing step's own words."""
    checks, steps = [], []
    for event in events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation_ = event.asset_check_evaluation_data
            if not evaluation_.passed:
                words = {key: value.value for key, value in evaluation_.metadata.items()}
                checks.append(
                    f"{evaluation_.asset_key.to_user_string()}: check {evaluation_.check_name} failed: expected "
                    f"{words.get('expected')}; found {words.get('found')}. {words.get('remedy', '')}".rstrip()
                )
        elif event.is_step_failure:
            data = event.step_failure_data
            words_ = data.user_failure_data.description if data.user_failure_data else None
            if not words_ and data.error is not None:
                cause = data.error.cause or data.error
                words_ = f"{cause.message.strip()}\n{''.join(cause.stack[-2:])}".rstrip()
            steps.append(f"{event.step_key}: {words_ or event.message}")
    return checks or steps


def ingest_runs(batches: Iterable[str]) -> list[Run]:
    return [Run("ingest", batch, INGEST) for batch in batches]


def recipe_run(recipe: str) -> Run:
    return Run("recipe", recipe, [*CURATION, *TRAINED])


def open_instance() -> dg.DagsterInstance:
    """The persistent instance of `dagster.yaml`, without capture of standard output: the console is the person's."""
    overrides = {
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager", "config": {},
        }
    }  # fmt: skip
    return dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(REPOSITORY), overrides=overrides))
