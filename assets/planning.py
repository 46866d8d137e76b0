"""The world model in use: closed-loop evaluation, the bundle a robot is given, and what each robot runs."""

import logging
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.bodies import Plan, Task, advisory, blocking, carry_out
from assets.launchers import OWN_CLOCK
from assets.partitions import DEFAULT_RECIPE, REAL_ROBOTS, SIMULATED_EPISODES, SIMULATED_ROBOT, recipes, robots
from assets.posttraining import world_model
from assets.resources import REPOSITORY, StoreResource
from pipelines.checks import Check
from pipelines.lineage.tree import ancestors
from pipelines.recipes import load_recipe
from pipelines.store import Artefact, Store

if TYPE_CHECKING:
    from planning.deployment import Target

OWNERS = ["team:robotics"]
DEPLOYMENT_CHECKS = ("agent_runs_this_bundle", "bad_command_refused", "real_robot_not_moved", "arm_reached_the_goal")
agent_logger = logging.getLogger("tubelet.agent")


class PlanningConfig(dg.Config):
    workers: int = 2


def plan_planning_results(store: Store, recipe_name: str, config: PlanningConfig) -> Plan:
    recipe = load_recipe(recipe_name)
    model = store.current("world_model", recipe_name)

    def build(task: Task) -> dict[str, Any]:
        from planning import results

        summary = results.build_planning_results(
            task.folder, model.path, recipe, workers=config.workers, progress=task.progress
        )
        default = next(row for row in summary["rows"] if row["arm"] == "default")
        return {**summary, "success": default["success_final"], "success_low": default["low"], "success_high": default["high"]}

    def check(artefact: Artefact) -> dict[str, Check]:
        from planning import results

        return results.check_planning(artefact.summary)

    identity = {"planning": recipe.resolved()["planning"]}
    return Plan(
        "planning_results", build, check, inputs=[model], config=identity, partition=recipe_name,
        highlights=("success", "success_low", "success_high", "episodes"),
    )  # fmt: skip


@dg.asset(
    deps=[world_model], partitions_def=recipes, group_name="robot", owners=OWNERS, kinds={"pytorch", "mujoco"},
    code_version="1",
    check_specs=[
        *blocking("planning_results", "no_safety_fault"),
        *advisory("planning_results", "default_planner_reaches_goals", "floors_stay_floors"),
    ],
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

        lineage = {"made_from": {item.key: item.digest for item in ancestors(store, results)}}
        return bundle.build_bundle(task.folder, model.path, recipe, lineage, results.summary)

    def check(artefact: Artefact) -> dict[str, Check]:
        from planning import bundle

        try:
            found = bundle.check_bundle(bundle.bundle_folder(artefact.path)).digest
        except bundle.BundleError as error:
            return {"verifies_and_loads": Check(False, "a bundle that verifies and loads", str(error), error.remedy)}
        return {"verifies_and_loads": Check(True, "a bundle that verifies and loads", found)}

    return Plan(
        "robot_bundle", build, check, inputs=[model, results], config={"recipe": recipe.digest()}, partition=recipe_name,
        highlights=("bundle", "files", "bytes"),
    )  # fmt: skip


@dg.asset(
    deps=[world_model, planning_results], partitions_def=recipes, group_name="robot", owners=OWNERS, kinds={"safetensors"},
    code_version="1", check_specs=blocking("robot_bundle", "verifies_and_loads"),
)  # fmt: skip
def robot_bundle(context: dg.AssetExecutionContext, config: BundleConfig, storage: StoreResource) -> dg.MaterializeResult:
    """The folder a robot is given and nothing else: weights, preprocessing, planner, safety limits, goals, checksums."""
    return carry_out(context, storage, lambda store: plan_robot_bundle(store, context.partition_key, config))


class DeploymentConfig(dg.Config):
    """`recipe` names the bundle to deploy; materializing with an older recipe goes back to its bundle."""

    recipe: str = DEFAULT_RECIPE


def deployment_target(store: Store, robot: str) -> "Target":
    """How this robot is driven from here. One that stands among people is real, whatever a file says."""
    from planning.deployment import Target, load_targets

    if robot == SIMULATED_ROBOT:
        return Target()
    recorded = store.current("robot_episodes", SIMULATED_EPISODES).path
    target = load_targets(store.root).get(robot, Target(driver="replay", episodes=recorded))
    return target.model_copy(update={"real": target.real or robot in REAL_ROBOTS})


def plan_robot_deployment(store: Store, robot: str, config: DeploymentConfig) -> Plan:
    from planning import deployment

    made = store.current("robot_bundle", config.recipe)
    folder = made.path / made.summary["folder"]
    target = deployment_target(store, robot)

    def build(task: Task) -> dict[str, Any]:
        def relay(line: str) -> None:
            agent_logger.info("    %s", OWN_CLOCK.sub("", line))
            task.pulse.heard()

        return deployment.run_deployment(
            task.folder, folder, target, repository=REPOSITORY, work_folder=task.work_folder, on_line=relay
        )

    def publish(_artefact: Artefact) -> None:
        deployment.point(store.root, robot, folder, reason=f"materialized robot_deployment[{robot}]")

    def published(_artefact: Artefact) -> bool:
        pointer = deployment.current_bundle(store.root, robot)
        return pointer is not None and pointer["bundle"] == made.summary["bundle"]

    return Plan(
        "robot_deployment", build, lambda artefact: complete(deployment.check_deployment(artefact.summary)), inputs=[made],
        partition=robot, config=target.model_dump(mode="json"), highlights=("bundle", "commands", "refused", "moved_m"),
        publish=publish, published=published,
    )  # fmt: skip


def complete(checks: dict[str, Check]) -> dict[str, Check]:
    """A check that does not apply to this kind of robot passes and says so: Dagster wants every declared one reported."""
    absent = {name: Check(True, "does not apply to this robot", "not judged") for name in DEPLOYMENT_CHECKS}
    return {**absent, **checks}


@dg.asset(
    deps=[dg.AssetDep(robot_bundle, partition_mapping=dg.AllPartitionMapping())], partitions_def=robots, group_name="robot",
    owners=OWNERS, kinds={"mujoco"}, code_version="1", 
    check_specs=[
        *blocking("robot_deployment", "agent_runs_this_bundle", "bad_command_refused", "real_robot_not_moved"),
        *advisory("robot_deployment", "arm_reached_the_goal"),
    ],
)  # fmt: skip
def robot_deployment(
    context: dg.AssetExecutionContext, config: DeploymentConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """Which bundle a robot's pointer names, and the agent's proof that it runs it.

    For the simulated robot the agent drives to a goal image through the safety gate. For a robot marked real nothing
    here ever commands motion: the report is a dry run, and the operator's switch is on the robot's own machine.
    """
    return carry_out(context, storage, lambda store: plan_robot_deployment(store, context.partition_key, config))
