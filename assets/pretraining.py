"""Self-supervised pretraining of the encoder: warm-up and constant phase, then the cooldown."""

from pathlib import Path
from typing import Any, Literal

import dagster as dg

from assets.bodies import Plan, Task, blocking, carry_out, picture
from assets.launchers import TrainLauncher
from assets.partitions import recipes
from assets.resources import StoreResource
from assets.shards import training_shards
from pipelines.checks import Check
from pipelines.recipes import OWN_SHARDS, for_gpus, load_recipe
from pipelines.store import Artefact, Store

OWNERS = ["team:research"]
POOL = "trainer"
CODE_VERSION = "2"  # the order of samples


class PretrainConfig(dg.Config):
    """Of each rank: CPU `threads`, `workers` that decode clips, steps to `prefetch`, megabytes to keep clips in. None of these
    changes what is learned from which data. A larger share of samples that do not decode than `max_failure_share` ends the run.
    `log_exposures` also writes down what every sample showed (the lineage knows it anyway). `exclude_refused`: a training that the
    guard has stopped goes on without the clips it stopped on (refused.json in its work folder). `start_from`: the checkpoint that
    the first phase goes on from, in the place of the recipe's.
    """

    threads: int = 1
    workers: int = 1
    prefetch: int = 2
    cache_megabytes: int = 512
    max_failure_share: float = 0.01
    log_exposures: bool = False
    exclude_refused: bool = False
    start_from: str = ""


def _plan(
    store: Store, asset: str, phase: Literal["pretrain", "cooldown"], recipe_name: str, config: PretrainConfig, parents: list[Artefact]
) -> Plan:
    recipe = load_recipe(recipe_name)
    shards = store.current("training_shards")
    start, started = "", None
    if phase == "pretrain" and (config.start_from or recipe.pretraining.start_from is not None):
        from pipelines.pretraining.start import artefact_of, start_digest, starting_recipe

        recipe = starting_recipe(recipe, config.start_from or None)
        start = start_digest(str(recipe.pretraining.start_from))
        started = artefact_of(str(recipe.pretraining.start_from), store)
    settings = recipe.resolved()
    # A change of the cooldown must not retrain what came before it.
    pretraining = recipe.pretraining.deciding(*(("pretrain",) if phase == "pretrain" else ("pretrain", "cooldown")))
    pretraining["mixture"] = [{**source, "index": foreign_index(source["shards"])} for source in pretraining["mixture"]]
    identity = {"seed": recipe.seed, **{part: settings[part] for part in ("encoder", "predictor")}, "pretraining": pretraining}
    if start:
        identity["start"] = start
    if config.log_exposures:  # a log cannot be had afterwards
        identity["log_exposures"] = True

    def build(task: Task) -> dict[str, Any]:
        import torch

        from pipelines.pretraining import run
        from pipelines.shards.loader import Reading

        here = for_gpus(recipe, torch.cuda.device_count())
        spec = run.write_spec(
            task.work_folder, here, phase, shards.path, store.root, init_from=parents[0].path if parents else None, threads=config.threads,
            reading=Reading(config.workers, config.prefetch, config.cache_megabytes * 2**20, config.max_failure_share),
            log_exposures=config.log_exposures, exclude_refused=config.exclude_refused, start_digest=start,
        )  # fmt: skip
        jobs = task.launcher.jobs("pipelines.pretraining.run", ["--spec", str(spec)], here.pretraining.ranks, config.threads)
        task.train(jobs, done=[task.work_folder / "result" / "DONE.json"], observe=lambda: observation(task.work_folder, f"{recipe_name} {phase}"))
        return run.build_pretrained(task.folder, task.work_folder)

    def check(artefact: Artefact) -> dict[str, Check]:
        from pipelines.pretraining import run

        return run.check_pretrained(artefact.path)

    return Plan(
        asset, build, check, inputs=[shards, *parents, *([started] if started else [])], config=identity, partition=recipe_name,
        highlights=("steps", "loss", "rank_me", "state"), code_version=CODE_VERSION,
    )  # fmt: skip


def observation(work_folder: Path, title: str) -> dict[str, Any]:
    """What the asset's page shows of a training that still runs: its picture and its newest numbers."""
    from pipelines.pretraining import run

    newest = run.draw_progress(work_folder, title)
    return {"curves": picture(work_folder / "curves.png"), **newest, "tensorboard": dg.MetadataValue.path(work_folder / "tensorboard")}


def foreign_index(shards: str) -> str:
    """Digest of the index of shards that the graph has not made: those are inputs too."""
    from pipelines.shards.mixture import index_digest

    return "" if shards == OWN_SHARDS else index_digest(shards)


def plan_pretrained_encoder(store: Store, recipe: str, config: PretrainConfig) -> Plan:
    return _plan(store, "pretrained_encoder", "pretrain", recipe, config, [])


def plan_cooled_encoder(store: Store, recipe: str, config: PretrainConfig) -> Plan:
    return _plan(store, "cooled_encoder", "cooldown", recipe, config, [store.current("pretrained_encoder", recipe)])


@dg.asset(
    deps=[training_shards], partitions_def=recipes, group_name="pretraining", owners=OWNERS, kinds={"pytorch", "deepspeed"},
    code_version=CODE_VERSION, pool=POOL, check_specs=blocking("pretrained_encoder", "finite", "not_collapsed"),
)  # fmt: skip
def pretrained_encoder(
    context: dg.AssetExecutionContext, config: PretrainConfig, storage: StoreResource, trainer: TrainLauncher
) -> dg.MaterializeResult:
    """The video encoder after warm-up and the constant phase: predicts hidden parts of clips in its own feature space.

    Trained out of process with DeepSpeed; an interrupted training goes on from its newest whole checkpoint.
    """
    return carry_out(
        context, storage, lambda store: plan_pretrained_encoder(store, context.partition_key, config), trainer
    )


@dg.asset(
    deps=[training_shards, pretrained_encoder], partitions_def=recipes, group_name="pretraining", owners=OWNERS,
    kinds={"pytorch", "deepspeed"}, code_version=CODE_VERSION, pool=POOL,
    check_specs=blocking("cooled_encoder", "finite", "not_collapsed"),
)  # fmt: skip
def cooled_encoder(
    context: dg.AssetExecutionContext, config: PretrainConfig, storage: StoreResource, trainer: TrainLauncher
) -> dg.MaterializeResult:
    """The encoder after the cooldown: learning rate annealed, larger pictures and more frames. This one is used."""
    return carry_out(context, storage, lambda store: plan_cooled_encoder(store, context.partition_key, config), trainer)
