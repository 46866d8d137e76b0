"""Action-conditioned post-training on the frozen encoder: the world model, and its control on a random encoder."""

import json
from dataclasses import replace
from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.launchers import TrainLauncher
from assets.partitions import SIMULATED_EPISODES, recipes
from assets.pretraining import POOL, cooled_encoder
from assets.resources import StoreResource
from assets.robot_data import robot_episodes
from pipelines.checks import Check
from pipelines.recipes import load_recipe
from pipelines.store import Artefact, Store, write_atomic


class PosttrainConfig(dg.Config):
    """`episode_source` is the partition of robot_episodes to learn from; `threads` the CPU threads of each training."""

    episode_source: str = SIMULATED_EPISODES
    threads: int = 1


def plan_world_model(store: Store, recipe_name: str, config: PosttrainConfig) -> Plan:
    recipe = load_recipe(recipe_name)
    settings = recipe.resolved()
    encoder = store.current("cooled_encoder", recipe_name)
    episodes = store.current("robot_episodes", config.episode_source)

    def build(task: Task) -> dict[str, Any]:
        from pipelines.posttraining import run
        from pipelines.training import launcher

        jobs, done = [], []
        for kind in ["trained", "random"] if recipe.posttraining.control else ["trained"]:
            work = task.work_folder / kind
            work.mkdir(parents=True, exist_ok=True)
            content = {
                "recipe": settings, "encoder_folder": str(encoder.path), "encoder": kind, "episodes_folder": str(episodes.path),
                "work_folder": str(work), "threads": config.threads,
            }  # fmt: skip
            write_atomic(work / "spec.json", json.dumps(content, indent=1))
            (job,) = launcher.distributed_jobs(
                "pipelines.posttraining.run", ["--spec", str(work / "spec.json")], ranks=1, threads=config.threads
            )
            jobs.append(replace(job, name=kind))
            done.append(work / "result" / "DONE.json")
        task.train(jobs, done=done)
        return run.build_world_model(task.folder, task.work_folder)

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.posttraining import run

        return run.check_world_model(artefact.path)

    identity = {"seed": recipe.seed, "encoder": settings["encoder"], "posttraining": settings["posttraining"]}
    return Plan(
        "world_model", build, check, inputs=[encoder, episodes], config=identity, partition=recipe_name,
        highlights=("steps", "loss_true", "true_over_zero", "true_over_shuffled"),
    )  # fmt: skip


@dg.asset(
    deps=[cooled_encoder, dg.AssetDep(robot_episodes, partition_mapping=dg.AllPartitionMapping())],
    partitions_def=recipes, group_name="robot", owners=["team:robotics"], kinds={"pytorch"}, code_version="2", pool=POOL,
    check_specs=blocking("world_model", "finite", "uses_actions"),
)  # fmt: skip
def world_model(
    context: dg.AssetExecutionContext, config: PosttrainConfig, storage: StoreResource, trainer: TrainLauncher
) -> dg.MaterializeResult:
    """The frozen encoder with a predictor of what it will see after an action, learned from robot episodes.

    A control with a randomly initialised encoder is trained beside it, so that every later number has its baseline.
    """
    return carry_out(context, storage, lambda store: plan_world_model(store, context.partition_key, config), trainer)
