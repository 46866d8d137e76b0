"""What the robot half learns from: episodes of a moving arm."""

from pathlib import Path
from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.partitions import SIMULATED_EPISODES, episode_sources
from assets.resources import StoreResource
from pipelines.checks import Check
from pipelines.errors import InputError
from pipelines.identity import digest_of
from pipelines.store import Artefact, Store


class EpisodesConfig(dg.Config):
    """How many episodes to record from the simulated arm, and how many observations each holds.

    Any other source needs `folder`, which holds episodes in DROID's raw layout; `step_s` resamples them (0: as recorded).
    """

    episodes: int = 250
    steps: int = 24
    seed: int = 0
    workers: int = 2
    folder: str = ""
    step_s: float = 0.0


def plan_robot_episodes(store: Store, source: str, config: EpisodesConfig) -> Plan:
    recorded = source == SIMULATED_EPISODES
    if not recorded and not Path(config.folder or "?").is_dir():
        raise InputError(
            f"episode source {source} needs its folder", expected="config folder: a folder of episodes in DROID's raw layout",
            found=config.folder or "none", remedy="name it in the launchpad",
        )  # fmt: skip
    identity = config.model_dump(exclude={"workers"})
    if not recorded:
        identity["files"] = digest_of([[str(p), p.stat().st_size] for p in sorted(Path(config.folder).rglob("trajectory.h5"))])

    def build(task: Task) -> dict[str, Any]:
        from pipelines.episodes import droid, record

        raw = Path(config.folder)
        if recorded:
            # Recorded first as a real robot would, so that our own data enter by the same door as others'.
            raw = store.root / "episodes" / digest_of(identity)
            record.record_simulated(
                raw, episodes=config.episodes, steps=config.steps, seed=config.seed, workers=config.workers, progress=task.progress
            )
        return droid.normalise_episodes(raw, task.folder, source=source, step_s=config.step_s or None, progress=task.progress)

    return Plan("robot_episodes", build, check_episodes, partition=source, config=identity, highlights=("episodes", "steps", "rejects"))


def check_episodes(artefact: Artefact) -> dict[str, Check]:
    """Blocking checks: there are episodes, and most of what was read could be used."""
    episodes, rejects = artefact.summary["episodes"], artefact.summary["rejects"]
    found = f"{episodes} episodes, {rejects} rejected {artefact.summary['reject_codes'] or ''}".strip()
    remedy = "rejects.parquet in the artefact names each one and why"
    return {
        "not_empty": Check(episodes > 0, "at least one episode", found, remedy),
        "mostly_usable": Check(rejects <= episodes, "at most half of the episodes rejected", found, remedy),
    }


@dg.asset(
    partitions_def=episode_sources, group_name="robot", owners=["team:robotics"], kinds={"mujoco", "parquet"},
    code_version="1", check_specs=blocking("robot_episodes", "not_empty", "mostly_usable"),
)  # fmt: skip
def robot_episodes(context: dg.AssetExecutionContext, config: EpisodesConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Episodes of one source in one schema: video, end-effector pose and gripper (m, rad), physical time of each step."""
    return carry_out(context, storage, lambda store: plan_robot_episodes(store, context.partition_key, config))
