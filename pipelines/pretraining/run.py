"""The program of one rank: `python -m pipelines.pretraining.run --spec spec.json`.

Under the launcher, torchrun or the deepspeed command it is one of several ranks; started alone it trains in one process
without DeepSpeed. The same spec in the same work folder goes on from the newest whole checkpoint.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn

from models.encoder import EncoderConfig, VideoEncoder
from models.errors import TubeletError
from models.layers import compile_blocks
from models.predictor import MaskedPredictor, PredictorConfig
from models.weights import load_module
from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.pretraining.clips import Clips, cut_stand_ins, set_aside
from pipelines.pretraining.exclusions import Takedowns
from pipelines.pretraining.objective import JEPA
from pipelines.pretraining.result import (
    DONE,
    METRICS,
    build_pretrained,
    check_pretrained,
    cut_metrics,
    draw_progress,
    read_result,
    write_result,
)
from pipelines.pretraining.spec import Spec, read_spec, write_spec
from pipelines.pretraining.start import load_start
from pipelines.pretraining.task import Pretraining
from pipelines.recipes import Phase, Recipe
from pipelines.reporting import Reporter, configure_logging, open_reporter
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.loader import ClipLoader
from pipelines.shards.mixture import open_mixture
from pipelines.store import disk_error
from pipelines.tombstones import read_tombstones
from pipelines.training import checkpoint
from pipelines.training.ema import make_target
from pipelines.training.engine import Engine, EngineConfig, EngineState, open_engine
from pipelines.training.guard import Guard, GuardStop, Stopped, StopRequest
from pipelines.training.launcher import ENDED, EXIT_GUARD, EXIT_INPUT, EXIT_STOPPED, die_with_parent
from pipelines.training.lease import only_writer
from pipelines.training.loop import Schedule, train
from pipelines.training.peak import peak_flops

__all__ = ["build_pretrained", "check_pretrained", "draw_progress", "main", "write_spec"]

logger = logging.getLogger("tubelet.pretraining")

LOST_PEER = "Connection closed by peer"  # gloo's words; the rank that ended has said why
EXIT_LOST_PEER = 1


def build_student(recipe: Recipe, phase: Phase) -> JEPA:
    """Encoder and predictor as the recipe's seed initialises them."""
    shapes: dict[str, Any] = {"img_size": (phase.height, phase.width), "num_frames": phase.frames}
    encoder = EncoderConfig(**recipe.encoder.model_dump(), **shapes)
    shared = ("embed_dim", "patch_size", "tubelet_size", "rope_layout", "rope_reference", "modality_embeddings")
    inherited: dict[str, Any] = {name: getattr(encoder, name) for name in shared}
    inherited |= {"mask_token_policy": recipe.pretraining.mask_token, "levels": max(1, len(encoder.levels))}
    predictor = PredictorConfig(**recipe.predictor.model_dump(), **shapes, **inherited)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("init", recipe.seed))
        return JEPA(VideoEncoder(encoder), MaskedPredictor(predictor), len(phase.masks), phase.context_loss is not None)


def run(spec: Spec, stop: StopRequest) -> None:
    """Train one phase from its beginning, from the phase before, or from its own newest checkpoint, to its result."""
    started = time.monotonic()
    torch.set_num_threads(spec.threads)
    cv2.setNumThreads(1)  # the loader's workers are the parallelism; OpenCV's own costs twice the CPU on frames this small
    recipe, settings = spec.recipe.pretraining, spec.settings
    student = build_student(spec.recipe, settings)
    target = make_target(student.encoder)
    set_up(student, target, settings, recipe.compile)
    engine = open_engine(student, EngineConfig(recipe.zero_stage, recipe.precision, settings.accumulation))
    with only_writer(spec.work_folder) if engine.rank == 0 else nullcontext():
        _train(spec, student, target, engine, stop, started)


def _train(spec: Spec, student: JEPA, target: nn.Module, engine: Engine, stop: StopRequest, started: float) -> None:
    """The phase itself, in a work folder that nobody else writes to."""
    recipe, settings = spec.recipe.pretraining, spec.settings
    loader = ClipLoader(
        open_mixture(recipe.mixture, spec.shards_folder), ClipGeometry.of_phase(settings), seed=spec.recipe.seed, phase=spec.phase,
        global_batch=settings.global_batch, rank=engine.rank, world=engine.world, repeat_cap=recipe.repeat_cap, reading=spec.reading,
        taken_down=lambda: read_tombstones(spec.store),
    )  # fmt: skip
    takedowns = Takedowns(engine, loader, spec.store, spec.work_folder)
    task, guard = Pretraining(engine, target, recipe, spec.phase, spec.recipe.seed, spec.identity()), Guard(recipe.spikes)
    with (
        closing(open_reporter(spec.work_folder, engine.rank)) as reporter,
        checkpoint.Writer(spec.checkpoints, engine, settings.keep_every) as checkpoints,
    ):
        start = _restore(spec, engine, task, guard, loader, takedowns, reporter)
        peak, source = peak_flops(engine.device, recipe.precision)
        reporter.log(
            f"{spec.phase}: ready after {time.monotonic() - started:.1f} s, {engine.world} ranks; a rank's best is {peak:.3g} FLOP/s ({source})"
        )
        train(
            engine, task, schedule_of(settings, peak), Clips(loader, takedowns, spec.work_folder, spec.log_exposures), start=start,
            checkpoints=checkpoints, guard=guard, reporter=reporter, stop=stop,
        )  # fmt: skip
        state = engine.state()
        engine.close()  # others would wait for rank 0 longer than a collective may last
        if state is not None:
            seconds = time.monotonic() - started
            reporter.finish(write_result(spec, student, task.target, state, task.watch.history, engine.world, seconds))


def set_up(student: JEPA, target: nn.Module, phase: Phase, compiled: bool) -> None:
    """Have the networks compute as the recipe says: the student's activations checkpointed, blocks compiled."""
    for network in (student.encoder, student.predictor):
        network.activation_checkpointing = phase.activation_checkpointing
    if compiled:
        compile_blocks(student)
        compile_blocks(target)


def schedule_of(phase: Phase, peak: float) -> Schedule:
    return Schedule(
        phase.steps, phase.learning_rate, phase.ema, phase.weight_decay, phase.checkpoint_every, peak, phase.clip_grad_norm, phase.accumulation
    )  # fmt: skip


def _restore(
    spec: Spec, engine: Engine, task: Pretraining, guard: Guard, loader: ClipLoader, takedowns: Takedowns, reporter: Reporter
) -> int:
    """Bring every rank to the same state and return the step to go on from."""
    found = checkpoint.newest(spec.checkpoints) if engine.rank == 0 else None
    start = engine.from_first(checkpoint.step_of(found) if found else 0)
    if engine.rank == 0:
        cut_stand_ins(spec.work_folder, start * spec.settings.global_batch)
        aside = set_aside(spec.work_folder, loader, start, spec.exclude_refused)
        if aside:
            logger.warning("%d clips are set aside, because this training had stopped on them", aside)
    takedowns.begin(start)  # nobody goes on before rank 0 is here
    if engine.rank:
        set_aside(spec.work_folder, loader, start, spec.exclude_refused)
    if start:
        path = spec.checkpoints / checkpoint.name_of(start)
        state = json.loads((path / checkpoint.STATE).read_text())
        if state["identity"] != spec.identity():
            raise InputError(
                f"{spec.work_folder} holds checkpoints of another training", expected=spec.identity(), found=state["identity"],
                remedy="give this training a work folder of its own",
            )  # fmt: skip
        engine.restore(checkpoint.read_engine_state(path))
        task.restore(path, state)
        guard.restore(state["guard"])
        for step in range(min(start, task.watch.buffered)):
            batch = loader.batch(step)
            task.watch.remember(step, batch.video, batch.shown)
        reporter.log(f"{spec.phase}: going on from the checkpoint of step {start}")
    elif spec.init_from is not None:
        engine.restore(read_result(spec.init_from))
        task.target.load_state_dict(load_module(spec.init_from, "target_encoder").state_dict(), strict=True)
        reporter.log(f"{spec.phase}: encoder, target encoder and optimizer of the phase before restored")
    elif origin := spec.recipe.pretraining.start_from:
        weights = load_start(origin, spec.recipe, spec.start_digest, spec.work_folder, first=engine.rank == 0)
        engine.restore(EngineState(weights.student, {}, 0))
        task.target.load_state_dict(weights.target, strict=True)
        reporter.log(f"{spec.phase}: {weights.line}")
    if engine.rank == 0:
        cut_metrics(spec.work_folder / METRICS, start)
    return start


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 with a sealed result, 2 for a request that cannot be met, 85 stopped on request, 86 stopped by the guard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", type=Path, required=True)
    parser.add_argument("--local_rank", help="what the deepspeed command adds; the environment says it too")
    path: Path = parser.parse_args(argv).spec
    configure_logging(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
    code = _main(path)
    if code not in (0, EXIT_LOST_PEER) and path.parent.is_dir():
        try:
            (path.parent / ENDED).write_text(str(code))
        except OSError as error:  # of a full disk, say, which has been told; only a starter that hides exit codes needs this file
            logger.warning("%s was not written: %s", path.parent / ENDED, error)
    return code


def _main(path: Path) -> int:
    try:
        spec = read_spec(path)
        if not checkpoint.verify(spec.result, DONE):
            logger.info("%s: finished before", spec.phase)
            return 0
        with StopRequest() as stop:
            run(spec, stop)
    except Stopped as reason:
        logger.info("%s", reason)
        return EXIT_STOPPED
    except GuardStop as error:
        logger.error("%s", error)
        return EXIT_GUARD
    except TubeletError as error:
        logger.error("%s", error)
        return EXIT_INPUT
    except Exception as error:
        told = disk_error(error, path.parent)
        if told is None and LOST_PEER not in str(error):
            raise
        logger.error("%s", told or "another rank has ended, so this one cannot go on")
        return EXIT_INPUT if told else EXIT_LOST_PEER
    return 0


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:  # a launcher has started it; who starts it by hand may leave
        die_with_parent()
    sys.exit(main())
