"""The world model in use: closed-loop evaluation, the bundle a robot is given, and what each robot runs."""

from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.partitions import DEFAULT_RECIPE, REAL_ROBOTS, recipes, robots
from assets.posttraining import world_model
from assets.resources import StoreResource
from pipelines.checks import Check
from pipelines.recipes import load_recipe
from pipelines.store import Artefact, Store

OWNERS = ["team:robotics"]


class PlanningConfig(dg.Config):
    workers: int = 2


def plan_planning_results(store: Store, recipe_name: str, config: PlanningConfig) -> Plan:
    recipe = load_recipe(recipe_name)
    model = store.current("world_model", recipe_name)

    def build(task: Task) -> dict[str, Any]:
        from planning import evaluation

        return evaluation.build_planning_results(
            task.folder, model.path, recipe=recipe, workers=config.workers, progress=task.progress
        )

    def check(artefact: Artefact) -> dict[str, Check]:
        from planning import evaluation

        return evaluation.check_planning_results(artefact.path)

    identity = {"seed": recipe.seed, "planning": recipe.resolved()["planning"]}
    return Plan(
        "planning_results", build, check, inputs=[model], config=identity, partition=recipe_name,
        highlights=("success", "low", "high", "episodes"),
    )  # fmt: skip


@dg.asset(
    deps=[world_model], partitions_def=recipes, group_name="robot", owners=OWNERS, kinds={"pytorch", "mujoco"},
    code_version="1", check_specs=blocking("planning_results", "complete"),
)  # fmt: skip
def planning_results(context: dg.AssetExecutionContext, config: PlanningConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Closed-loop success on fresh paired episodes with intervals, beside standing still, chance, control and oracle.

    Time and predictor calls per action stand beside every planner, and the energy around one true action is drawn.
    """
    return carry_out(context, storage, lambda store: plan_planning_results(store, context.partition_key, config))


class BundleConfig(dg.Config):
    pass


def plan_robot_bundle(store: Store, recipe_name: str, config: BundleConfig) -> Plan:
    recipe = load_recipe(recipe_name)
    model, results = store.current("world_model", recipe_name), store.current("planning_results", recipe_name)

    def build(task: Task) -> dict[str, Any]:
        from planning import bundle

        return bundle.build_bundle(task.folder, model.path, recipe=recipe)

    def check(artefact: Artefact) -> dict[str, Check]:
        from planning import bundle

        return bundle.check_bundle(artefact.path)

    identity = {"planning": recipe.resolved()["planning"]}
    return Plan("robot_bundle", build, check, inputs=[model, results], config=identity, partition=recipe_name)


@dg.asset(
    deps=[world_model, planning_results], partitions_def=recipes, group_name="robot", owners=OWNERS, kinds={"safetensors"},
    code_version="1", check_specs=blocking("robot_bundle", "verifies"),
)  # fmt: skip
def robot_bundle(context: dg.AssetExecutionContext, config: BundleConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The folder a robot is given and nothing else: weights, preprocessing, planner, safety limits, goals, checksums."""
    return carry_out(context, storage, lambda store: plan_robot_bundle(store, context.partition_key, config))


class DeploymentConfig(dg.Config):
    """`recipe` names the bundle to deploy; materializing with an older recipe rolls back."""

    recipe: str = DEFAULT_RECIPE
    seed: int = 5000


def plan_robot_deployment(store: Store, robot: str, config: DeploymentConfig) -> Plan:
    from planning import deployment

    bundle = store.current("robot_bundle", config.recipe)
    real = robot in REAL_ROBOTS

    def build(task: Task) -> dict[str, Any]:
        return deployment.build_deployment(
            task.folder, bundle.path, robot=robot, dry_run=real, seed=config.seed, progress=task.progress
        )

    def check(artefact: Artefact) -> dict[str, Check]:
        return deployment.check_deployment(artefact.path)

    return Plan(
        "robot_deployment", build, check, inputs=[bundle], partition=robot,
        config={"robot": robot, "dry_run": real, "seed": config.seed}, highlights=("moved_cm", "final_cm", "refused"),
        publish=lambda artefact: deployment.point(store.root, robot, bundle),
        published=lambda artefact: deployment.points_to(store.root, robot, bundle),
    )  # fmt: skip


@dg.asset(
    deps=[dg.AssetDep(robot_bundle, partition_mapping=dg.AllPartitionMapping())], partitions_def=robots, group_name="robot",
    owners=OWNERS, kinds={"mujoco"}, code_version="1", check_specs=blocking("robot_deployment", "bundle_verified"),
)  # fmt: skip
def robot_deployment(
    context: dg.AssetExecutionContext, config: DeploymentConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """Which bundle a robot's pointer names, and the agent's proof that it runs it.

    For the simulated robot the agent drives to a goal image through the safety gate. For a robot marked real nothing
    here ever commands motion: the report is a dry run, and the operator's switch is on the robot's own machine.
    """
    return carry_out(context, storage, lambda store: plan_robot_deployment(store, context.partition_key, config))
