"""What the encoder knows: probes against baselines, and one page about it."""

from typing import Any

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out
from assets.curation import target_videos
from assets.partitions import SIMULATED_EPISODES, recipes
from assets.pretraining import cooled_encoder, pretrained_encoder
from assets.resources import StoreResource
from assets.robot_data import robot_episodes
from pipelines.checks import Check
from pipelines.errors import MissingArtefact
from pipelines.recipes import load_recipe
from pipelines.store import Artefact, Store

OWNERS = ["team:research"]
CODE_VERSION = "3"  # intervals over episodes and videos by the jackknife


class ProbeConfig(dg.Config):
    """`episode_source` is the partition of robot_episodes whose frames are probed. `start_from`: where the checkpoint that an encoder
    went on from lies now, when it is not any more where the training found it."""

    episode_source: str = SIMULATED_EPISODES
    start_from: str = ""


def plan_probe_results(store: Store, recipe_name: str, config: ProbeConfig) -> Plan:
    from pipelines.lineage.exposure import read_start

    recipe = load_recipe(recipe_name)
    encoder = store.current("cooled_encoder", recipe_name)
    start = moved(read_start(encoder.path), config.start_from)
    episodes = _episodes(store, config.episode_source, needed=start is None)
    targets = store.current("target_videos")

    def build(task: Task) -> dict[str, Any]:
        from pipelines.evaluation import probes

        return probes.build_probes(
            task.folder, encoder.path, episodes.path if episodes else None, targets.path, recipe=recipe, start=start,
            shown_before=shown_before(store, start) if start else frozenset(), progress=task.progress,
        )  # fmt: skip

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.evaluation import probes

        return probes.check_probes(artefact.path)

    identity = {"seed": recipe.seed, "probes": recipe.resolved()["probes"], "size": recipe.probe_size}
    return Plan(
        "probe_results", build, check, inputs=[encoder, *([episodes] if episodes else []), targets], config=identity, partition=recipe_name,
        highlights=("verdict",) if start else ("frame_r2_trained", "frame_r2_random", "frame_r2_gain"), code_version=CODE_VERSION,
    )  # fmt: skip


def moved(start: dict[str, Any] | None, path: str) -> dict[str, Any] | None:
    """The record of starting weights with the place where they lie now; a path that holds others changes nothing."""
    if start is None or not path:
        return start
    from pipelines.pretraining.start import start_digest

    return {**start, "path": path} if start_digest(path) == start["digest"] else start


def shown_before(store: Store, start: dict[str, Any]) -> frozenset[str]:
    """Ids of the videos that the starting weights were trained on, as far as this store knows."""
    from pipelines.lineage.trainings import Trainings
    from pipelines.pretraining.start import artefact_of

    artefact = artefact_of(start["path"], store)
    return Trainings(store).videos_behind(artefact) if artefact else frozenset()


def _episodes(store: Store, source: str, needed: bool) -> Artefact | None:
    """The robot episodes; without them None where they are not needed: who adapts an encoder to videos may have no robot."""
    try:
        return store.current("robot_episodes", source)
    except MissingArtefact:
        if needed:
            raise
        return None


@dg.asset(
    deps=[cooled_encoder, dg.AssetDep(robot_episodes, partition_mapping=dg.AllPartitionMapping()), target_videos],
    partitions_def=recipes, group_name="evaluation", owners=OWNERS, kinds={"pytorch", "scikitlearn"}, code_version=CODE_VERSION,
    check_specs=blocking("probe_results", "finite"),
)  # fmt: skip
def probe_results(context: dg.AssetExecutionContext, config: ProbeConfig, storage: StoreResource) -> dg.MaterializeResult:
    """Linear and attentive probes on the frozen encoder, each beside a random encoder, raw pixels and a single frame.

    An encoder that went on from a checkpoint is probed before and after, with a verdict; without robot episodes that part is left out.
    """
    return carry_out(context, storage, lambda store: plan_probe_results(store, context.partition_key, config))


class EncoderReportConfig(dg.Config):
    pass


def plan_encoder_report(store: Store, recipe_name: str, config: EncoderReportConfig) -> Plan:
    parents = [store.current(asset, recipe_name) for asset in ("pretrained_encoder", "cooled_encoder", "probe_results")]

    def build(task: Task) -> dict[str, Any]:
        from pipelines.evaluation import encoder_report as page

        return page.build_encoder_report(task.folder, *(parent.path for parent in parents))

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.evaluation import encoder_report as page

        return page.check_encoder_report(artefact.path)

    return Plan("encoder_report", build, check, inputs=parents, partition=recipe_name, code_version=CODE_VERSION)


@dg.asset(
    deps=[pretrained_encoder, cooled_encoder, probe_results], partitions_def=recipes, group_name="evaluation", owners=OWNERS,
    kinds={"html"}, code_version=CODE_VERSION, check_specs=blocking("encoder_report", "complete"),
)  # fmt: skip
def encoder_report(
    context: dg.AssetExecutionContext, config: EncoderReportConfig, storage: StoreResource
) -> dg.MaterializeResult:
    """One page on the encoder: loss and health over training, its verdict, and the probes against their baselines."""
    return carry_out(context, storage, lambda store: plan_encoder_report(store, context.partition_key, config))
