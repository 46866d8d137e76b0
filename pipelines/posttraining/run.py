"""`python -m pipelines.posttraining.run --spec spec.json`: train one predictor on one frozen encoder, resumably.

The spec: recipe (resolved), encoder_folder, encoder ("trained": its target encoder; "random": the control, the same
shape at its initial weights), episodes_folder, work_folder, threads. Everything that counts ends in
work_folder/result, DONE.json last. The `world_model` asset runs main and control side by side, one core each.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.encoder import VideoEncoder
from models.errors import TubeletError
from models.preprocessing import Preprocess
from models.weights import load_module, save_module, state_digest
from pipelines.episodes.episode import load_episodes
from pipelines.errors import InputError, TrainingError
from pipelines.identity import stable_seed
from pipelines.posttraining.features import FrameFeatures, cached_features, common_step, split_episodes
from pipelines.posttraining.publish import build_world_model, check_world_model
from pipelines.posttraining.trainer import Trainer, new_predictor
from pipelines.posttraining.validation import transition_losses, validate
from pipelines.recipes import Recipe
from pipelines.reporting import Progress, Reporter, configure_logging, open_reporter
from pipelines.store import disk_error, write_atomic
from pipelines.training.guard import StopRequest
from pipelines.training.launcher import EXIT_GUARD, EXIT_INPUT, EXIT_STOPPED

__all__ = ["Spec", "build_world_model", "check_world_model", "run"]

logger = logging.getLogger("tubelet.posttraining")
METRICS_EVERY = 10


@dataclass(frozen=True)
class Spec:
    """What one process is asked for."""

    recipe: Recipe
    encoder_folder: Path
    encoder: str
    episodes_folder: Path
    work_folder: Path
    threads: int = 1

    @classmethod
    def read(cls, path: Path) -> Spec:
        """Raises InputError when a field is missing or unknown."""
        try:
            values = json.loads(path.read_text())
            folders: dict[str, Any] = {
                name: Path(values.pop(name)) for name in ("encoder_folder", "episodes_folder", "work_folder")
            }
            return cls(recipe=Recipe.model_validate(values.pop("recipe")), **folders, **values)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{path} is no post-training spec", expected=", ".join(cls.__dataclass_fields__), found=repr(error),
                remedy="write it as the world_model asset does",
            ) from error  # fmt: skip


def frozen_encoder(spec: Spec) -> VideoEncoder:
    """The trained target encoder, or one of its shape with the seed's initial weights."""
    trained: VideoEncoder = load_module(spec.encoder_folder, "target_encoder")
    if spec.encoder == "trained":
        encoder = trained
    elif spec.encoder == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed("random encoder", spec.recipe.seed))
            encoder = VideoEncoder(trained.config)
    else:
        raise InputError("unknown kind of encoder", expected="trained or random", found=spec.encoder)
    return encoder.eval().requires_grad_(False)


def run(spec: Spec) -> bool:
    """Train to the end and write the result; False when asked to stop before that (a checkpoint is written)."""
    result = spec.work_folder / "result"
    if (result / "DONE.json").exists():
        return True
    result.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(spec.threads)
    with closing(open_reporter(spec.work_folder)) as reporter:
        return _run(spec, result, reporter)


def _run(spec: Spec, result: Path, reporter: Reporter) -> bool:
    started, cpu_started = time.monotonic(), time.process_time()
    recipe, label = spec.recipe.posttraining, f"post-training {spec.encoder}"
    episodes = load_episodes(spec.episodes_folder)
    step_s = common_step(episodes)
    ids = [episode.episode_id for episode in episodes]
    training, validation = split_episodes(ids, recipe.validation_share)
    encoder, preprocess = frozen_encoder(spec), Preprocess(height=recipe.height, width=recipe.width)
    with Progress(f"{label}: encoding", len(episodes), "episodes") as progress:
        features = cached_features(
            spec.work_folder / "features.safetensors", encoder, episodes, preprocess, progress=progress
        )
    predictor = new_predictor(recipe, encoder.config, spec.recipe.seed)
    trainer = Trainer(recipe, features, training, predictor, spec.recipe.seed, recipe.optimizer)
    if trainer.resume(spec.work_folder / "checkpoints"):
        reporter.log(f"{label}: goes on from step {trainer.step}")
    _forget_after(spec.work_folder / "metrics.jsonl", trainer.step)
    with StopRequest() as stop:
        if not _train(trainer, validation, spec, reporter, stop, label):
            return False
    losses = validate(predictor, features, validation, spec.recipe.seed)
    save_module(encoder, result, "encoder")
    save_module(predictor, result, "predictor")
    (result / "preprocess.json").write_text(json.dumps(preprocess.to_dict(), indent=1))
    (result / "losses.json").write_text(json.dumps({**losses, "updates": trainer.step}, indent=1))
    _publish_metrics(spec.work_folder / "metrics.jsonl", result / "metrics.jsonl")
    done = {
        "encoder": spec.encoder, "encoder_digest": state_digest(encoder), "predictor_digest": state_digest(predictor),
        "updates": trainer.step, "optimizer": recipe.optimizer, "step_s": step_s,
        "episodes": {"train": [ids[index] for index in training], "validation": [ids[index] for index in validation]},
        "transitions": len(features.windows(training, 2)),
        "seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu_started,
    }  # fmt: skip
    write_atomic(result / "DONE.json", json.dumps(done, indent=1))
    reporter.finish({name: losses[name]["value"] for name in ("true", "zero", "shuffled", "copy")})
    return True


def _train(
    trainer: Trainer, validation: list[int], spec: Spec, reporter: Reporter, stop: StopRequest, label: str
) -> bool:
    """All remaining updates; False when stopped. Checkpoints and validates every `checkpoint_every` updates."""
    recipe, rows = trainer.recipe, _validation_rows(trainer.features, validation)
    recent: list[dict[str, float]] = []
    with Progress(label, recipe.steps, "steps") as progress:
        while trainer.step < recipe.steps:
            values = trainer.update()
            recent.append(values)
            progress(trainer.step, recipe.steps, f"loss {values['loss']:.4f}")
            due = trainer.step % recipe.checkpoint_every == 0 or stop.asked
            if trainer.step % METRICS_EVERY == 0 or trainer.step == recipe.steps or due:
                reporter.metrics(trainer.step, _means(recent))
                recent = []
            if due:
                trainer.save(spec.work_folder / "checkpoints")
                _quick_validation(trainer, rows, reporter)
            if stop.asked:
                reporter.log(f"{label}: asked to stop, checkpoint written at step {trainer.step}")
                return False
    return True


def _means(recent: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each value over the updates that have it."""
    names = {name for values in recent for name in values}
    having = {name: [values[name] for values in recent if name in values] for name in sorted(names)}
    return {name: sum(values) / len(values) for name, values in having.items()}


def _validation_rows(features: FrameFeatures, episodes: list[int]) -> torch.Tensor:
    """At most 256 held-out transitions, evenly spread: enough for a curve."""
    rows = features.windows(episodes, 2)
    return rows[:: max(1, len(rows) // 256)]


def _quick_validation(trainer: Trainer, rows: torch.Tensor, reporter: Reporter) -> None:
    losses = transition_losses(trainer.predictor, trainer.features, rows, trainer.seed)
    reporter.metrics(trainer.step, {f"validation_{name}": float(values.mean()) for name, values in losses.items()})


def _forget_after(path: Path, step: int) -> None:
    """Drop metrics of updates that the checkpoint does not hold: they will be written again."""
    if path.exists():
        kept = [line for line in path.read_text().splitlines() if line and json.loads(line)["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept))


def _publish_metrics(source: Path, target: Path) -> None:
    """The metrics without clock times: equal trainings leave equal files."""
    rows = [json.loads(line) for line in source.read_text().splitlines() if line]
    lines = [json.dumps({name: value for name, value in row.items() if name != "time"}) for row in rows]
    target.write_text("".join(f"{line}\n" for line in lines))


def main() -> int:
    """Entry point; exit codes as in pipelines.training.launcher."""
    parser = argparse.ArgumentParser(description="action-conditioned post-training of one predictor")
    parser.add_argument("--spec", type=Path, required=True)
    arguments = parser.parse_args()
    configure_logging()
    try:
        return 0 if run(Spec.read(arguments.spec)) else EXIT_STOPPED
    except TrainingError as error:
        logger.error("%s", error)
        return EXIT_GUARD
    except TubeletError as error:
        logger.error("%s", error)
        return EXIT_INPUT
    except Exception as error:
        told = disk_error(error, arguments.spec.parent)
        if told is None:
            raise
        logger.error("%s", told)
        return EXIT_INPUT


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
