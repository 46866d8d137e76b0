"""What the robot half learns from: episodes of a moving arm."""

from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.partitions import SIMULATED_EPISODES, episode_sources
from assets.resources import StoreResource
from pipelines.checks import Check
from pipelines.errors import InputError
from pipelines.store import Artefact, Store


class EpisodesConfig(dg.Config):
    """How many episodes to record from the simulated arm, and how many commands each holds."""

    episodes: int = 400
    steps: int = 16
    seed: int = 0
    workers: int = 2


def plan_robot_episodes(store: Store, source: str, config: EpisodesConfig) -> Plan:
    if source != SIMULATED_EPISODES:
        raise InputError(
            f"no reader for episode source {source}", expected=SIMULATED_EPISODES, found=source,
            remedy="materialize the partition simulated",
        )  # fmt: skip

    def build(task: Task) -> dict[str, Any]:
        from pipelines.episodes import record

        return record.build_simulated(
            task.folder, episodes=config.episodes, steps=config.steps, seed=config.seed, workers=config.workers,
            progress=task.progress,
        )  # fmt: skip

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.episodes import record

        return record.check_episodes(artefact.path)

    identity = config.model_dump(exclude={"workers"})
    return Plan("robot_episodes", build, check, partition=source, config=identity, highlights=("episodes", "steps", "rejects"))


@dg.asset(
    partitions_def=episode_sources, group_name="robot", owners=["team:robotics"], kinds={"mujoco", "parquet"},
    code_version="1", check_specs=blocking("robot_episodes", "not_empty"),
)  # fmt: skip
def robot_episodes(context: dg.AssetExecutionContext, config: EpisodesConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Episodes of one source in one schema: video, end-effector pose and gripper (m, rad), physical time of each step."""
    return carry_out(context, storage, lambda store: plan_robot_episodes(store, context.partition_key, config))
