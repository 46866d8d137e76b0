"""`tubelet adapt`: from released weights and a person's own videos to an adapted encoder, and whether it got better."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg

from assets.curate import CurateOptions, configs_of, run_curation
from assets.curation import NO_TARGETS
from assets.demo import only_one, source_name
from assets.evaluation import ProbeConfig
from assets.pretraining import PretrainConfig
from assets.pulse import Pulse
from assets.runs import Run, Runner, open_instance
from assets.shards import ShardsConfig
from pipelines.errors import InputError
from pipelines.recipes import Recipe, load_recipe, recipe_names
from pipelines.store import Store

logger = logging.getLogger("tubelet.adapt")
ADAPTED = ["pretrained_encoder", "cooled_encoder", "probe_results", "encoder_report"]
SEEN = 35
"""How often the paper's training sees a clip: 252,000 steps of 3,072 samples from 22 million clips."""
CROPPED = 1.25
"""Stored short side over the trained one: crops take 30 to 100 % of a picture's area, 67 % on average, which is a side of .82."""


@dataclass(frozen=True)
class AdaptOptions:
    """`checkpoint` is a path or an artefact's name. `curation.targets` "" or "none" holds out some of the videos instead."""

    checkpoint: str
    curation: CurateOptions
    recipe: str = "adapt-vitl16"


def run_adaptation(options: AdaptOptions) -> Path:
    """Curate, train from the checkpoint, cool down, probe before and after; returns the page that tells. Raises `TubeletError`."""
    started = time.monotonic()
    recipe = fitting_recipe(options)
    curation = replace(options.curation, targets=targets_of(options.curation), options=balanced(options.curation))
    run_curation(curation)
    store = Store.open(curation.root)
    with store.writing(), only_one(store), open_instance() as instance:
        runner = Runner(store, instance, {**configs_of(curation), **training_configs(recipe)})
        worked = runner.bring_up(Run("curate", "", ["training_shards"]))
        tell_repeats(recipe, store.current("training_shards").summary["clips"])
        worked = runner.bring_up(Run("recipe", options.recipe, ADAPTED)) or worked
    page = store.current("encoder_report", options.recipe).path / "encoder_report.html"
    for line in verdict_lines(store, options.recipe):
        logger.info("  %s", line)
    logger.info("%s in %.0f s; report: %s", "done" if worked else "nothing to do: all up to date", time.monotonic() - started, page)
    logger.info("weights: tubelet weights convert '%s' FOLDER --to huggingface --part target_encoder", f"cooled_encoder[{options.recipe}]")
    return page


def fitting_recipe(options: AdaptOptions) -> Recipe:
    """The recipe with its checkpoint, once that fits and this machine can run it; nothing has been made by then. Raises `InputError`."""
    from pipelines.pretraining.start import artefact_of, open_start, starting_recipe
    from pipelines.weights.locate import locate

    if options.recipe not in recipe_names():
        raise InputError(
            f"no recipe is called {options.recipe}", expected=f"one of {', '.join(recipe_names())}", found="no such name",
            remedy="a recipe of your own is named by its file, without .yaml, in the folder that TUBELET_RECIPES names",
        )  # fmt: skip
    path = locate(options.checkpoint, options.curation.root).absolute()
    recipe = load_recipe(options.recipe)
    own = artefact_of(path, Store(options.curation.root))
    if own is not None and own.partition == options.recipe and options.checkpoint.startswith(own.asset):
        raise InputError(
            f"{options.checkpoint} is an encoder of recipe {options.recipe} itself, which would go on from its own result each time it is asked for",
            expected="a checkpoint that another recipe, or somebody else, has made", found=str(path),
            remedy="copy the recipe under another name and go on with that one",
        )  # fmt: skip
    if recipe.pretraining.start_from is None:
        raise InputError(
            f"recipe {recipe.name} begins at random weights, and its encoder in this store would be replaced", expected="a recipe with start_from, such as adapt-vitl16",
            found="none in it", remedy='copy it under another name, with start_from: "" under pretraining, and name the copy\'s folder in TUBELET_RECIPES',
        )  # fmt: skip
    recipe = starting_recipe(recipe, path)
    with Pulse("checkpoint", "files"):
        start = open_start(path, recipe)
    insist_on_devices(recipe)
    insist_on_shares(recipe)
    logger.info("%s", start.line)
    return recipe


def insist_on_devices(recipe: Recipe) -> None:
    """Raise `InputError` when this machine has no GPU and fewer cores than the recipe has ranks; fewer GPUs take more micro-batches."""
    import torch

    cores = os.cpu_count() or 1
    if not torch.cuda.is_available() and recipe.pretraining.ranks > cores:
        raise InputError(
            f"recipe {recipe.name} trains on {recipe.pretraining.ranks} GPUs", expected=f"a GPU, or ranks: {cores} at most", found=f"no GPU and {cores} cores",
            remedy="go to a machine with GPUs, or copy the recipe, change ranks and accumulation, and name the copy's folder in TUBELET_RECIPES",
        )  # fmt: skip


def insist_on_shares(recipe: Recipe) -> None:
    """Raise `InputError` when a phase's batch cannot be shared out among ranks and micro-batches."""
    ranks = recipe.pretraining.ranks
    for name, phase in (("pretrain", recipe.pretraining.pretrain), ("cooldown", recipe.pretraining.cooldown)):
        if phase.global_batch % (ranks * phase.accumulation):
            raise InputError(
                f"{name} of recipe {recipe.name} cannot share out its batch", expected="global_batch as a multiple of ranks x accumulation",
                found=f"{phase.global_batch}, {ranks} and {phase.accumulation}", remedy="change one of the three",
            )  # fmt: skip


def targets_of(curation: CurateOptions) -> str:
    """The person's target sets, or some of their own videos held out. Raises `InputError` when there are too few to hold some out."""
    from pipelines.evaluation.hold_out import hold_out

    if curation.targets not in ("", NO_TARGETS):
        return curation.targets
    assert curation.videos is not None
    store, videos = Store.open(curation.root), curation.videos.expanduser().absolute()
    folder = store.root / "adapt" / (curation.name or source_name(store, videos))
    with Pulse("held-out videos", "videos") as pulse:
        return str(hold_out(folder, videos, kind=curation.kind, root=curation.video_root, progress=pulse.progress))


def balanced(curation: CurateOptions) -> dict[str, dict[str, object]]:
    """The person's options; without target sets the selection is a balanced one, as what is held out asks for nothing."""
    chosen = {part: dict(values) for part, values in curation.options.items()}
    if curation.targets in ("", NO_TARGETS):
        chosen.setdefault("selection", {}).setdefault("mode", "balanced")
    return chosen


def training_configs(recipe: Recipe) -> dict[str, dg.Config]:
    """Shards large enough for the recipe's pictures, its checkpoint, and as many loader workers as there are cores for."""
    phases = (recipe.pretraining.pretrain, recipe.pretraining.cooldown)
    side = max(max(phase.height, phase.width) for phase in phases)
    workers = max(1, min(8, (os.cpu_count() or 1) // recipe.pretraining.ranks - 1))
    training = PretrainConfig(start_from=str(recipe.pretraining.start_from), workers=workers)
    return {
        "training_shards": ShardsConfig(short_side=round(CROPPED * side)), "pretrained_encoder": training,
        "cooled_encoder": PretrainConfig(workers=workers), "probe_results": ProbeConfig(start_from=training.start_from),
    }  # fmt: skip


def tell_repeats(recipe: Recipe, clips: int) -> None:
    """Warn before the long part when every clip would be seen far more often than the paper's."""
    phases = (recipe.pretraining.pretrain, recipe.pretraining.cooldown)
    samples = sum(phase.steps * phase.global_batch for phase in phases)
    logger.info("%d clips, %d samples: each clip is seen %.0f times on average (the paper's about %d)", clips, samples, samples / clips, SEEN)
    if samples > 4 * SEEN * clips:
        logger.warning(
            "that is long for so few clips: with %d steps in the first phase each would be seen %d times; write that into a copy of the recipe",
            max(1, SEEN * clips // recipe.pretraining.pretrain.global_batch), SEEN,
        )  # fmt: skip


def verdict_lines(store: Store, recipe: str) -> list[str]:
    """What before and after say, for a console."""
    found = json.loads(store.current("probe_results", recipe).file("probes.json").read_text())["verdict"]
    if found is None:
        return ["not judged: there was nothing to probe both with"]
    return [f"verdict: {found['word']}", *found["lines"], *([found["caveat"]] if found["caveat"] else []), *found["others"]]
