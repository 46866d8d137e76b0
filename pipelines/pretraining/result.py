"""What a finished phase leaves: weights, what the next phase restores, numbers and a picture, sealed by DONE.json."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from models.encoder import VideoEncoder
from models.errors import TubeletError
from models.predictor import MaskedPredictor
from models.weights import VJEPA2, save_module, to_huggingface
from pipelines import schemas
from pipelines.checks import Check
from pipelines.errors import TrainingError
from pipelines.lineage.exposure import ExposureSpec
from pipelines.pretraining.clips import stand_ins
from pipelines.pretraining.curves import draw_curves
from pipelines.pretraining.exclusions import read_exclusions
from pipelines.pretraining.objective import JEPA
from pipelines.pretraining.spec import Spec
from pipelines.pretraining.start import start_record
from pipelines.shards.exposure_log import LOG_FILE, collect, whole_lines
from pipelines.shards.geometry import ClipGeometry
from pipelines.store import write_atomic
from pipelines.training import checkpoint
from pipelines.training.engine import EngineState
from pipelines.training.metrics import Health, health

logger = logging.getLogger("tubelet.pretraining")

DONE = "DONE.json"
HUGGINGFACE = "huggingface"
METRICS = "metrics.jsonl"
PARTS = ("encoder", "target_encoder", "predictor")


def write_result(
    spec: Spec, student: JEPA, target: nn.Module, state: EngineState, history: list[Health], world: int, seconds: float
) -> dict[str, Any]:
    """Fill the result folder (rank 0) and return the summary; DONE.json, with the hash of every file, comes last."""
    folder, settings = spec.result, spec.settings
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, module in zip(PARTS, (student.encoder, target, student.predictor), strict=True):
        save_module(module, folder, name)
    refused = export_huggingface(folder / HUGGINGFACE, target, student.predictor)
    save_file(checkpoint.moments_file(state), folder / checkpoint.OPTIMIZER)
    rows = read_metrics(spec.work_folder / METRICS)
    (folder / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw_curves(rows, folder / "curves.png", title=f"{spec.recipe.name} {spec.phase}")
    verdict = health(history)
    before = json.loads((spec.init_from / "state.json").read_text())["exposures"] if spec.init_from else []
    samples = settings.steps * settings.global_batch
    exposure = ExposureSpec(
        phase=spec.phase, seed=spec.recipe.seed, steps=settings.steps, global_batch=settings.global_batch,
        geometry=ClipGeometry.of_phase(settings).to_dict(), sources=spec.sources(), repeat_cap=spec.recipe.pretraining.repeat_cap,
        replaced=stand_ins(spec.work_folder, samples), exclusions=[entry for entry in read_exclusions(spec.work_folder) if entry[0] < settings.steps],
    )  # fmt: skip
    if spec.log_exposures:
        schemas.write_table(collect(spec.work_folder, samples), folder / LOG_FILE, schemas.EXPOSURE_LOG)
    measured = history[-1] if history else {}
    start = start_record(spec.work_folder, spec.init_from)
    summary = {
        **({"start_from": f"{start['name']} {start['digest'][:16]}"} if start else {}),
        "steps": settings.steps, "clips": samples, "stand_ins": len(exposure.replaced), "ranks": world, "seconds": seconds,
        "loss": measured.get("mean_loss"), "floor": measured.get("floor"), "rank_me": measured.get("rank_me"),
        "first_rank_me": history[0]["rank_me"] if history else None, "target_std": measured.get("target_std"),
        "data_wait": measured.get("data_wait"), "state": verdict.state, "health": verdict.line,
        "parameters": sum(value.numel() for value in student.parameters()), "huggingface": refused or HUGGINGFACE, "pictures": ["curves.png"],
    }  # fmt: skip
    exposures = [*before, asdict(exposure)]
    content = {"identity": spec.identity(), "step": settings.steps, "verdict": asdict(verdict), "exposures": exposures, "summary": summary}
    (folder / "state.json").write_text(json.dumps(content, indent=1))
    lineage = {**spec.lineage(), **({"start_from": start} if start else {}), "exposures": exposures}
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=1))
    checkpoint.seal(folder, DONE)
    return summary


def export_huggingface(folder: Path, encoder: nn.Module, predictor: nn.Module) -> str:
    """Write the target encoder and the predictor as transformers' VJEPA2Model; returns why there is none, empty when there is.

    transformers has no V-JEPA 2.1 and no frames that are not square.
    """
    assert isinstance(encoder, VideoEncoder) and isinstance(predictor, MaskedPredictor)
    try:
        to_huggingface(VJEPA2(encoder, predictor), folder, image_size=encoder.config.img_size[0])
    except TubeletError as error:
        return f"not written: {error}"
    return ""


def read_result(folder: Path) -> EngineState:
    """The state in which a finished phase left its engine, for the phase that follows."""
    weights = {
        f"{part}.{name}": value for part in ("encoder", "predictor") for name, value in load_file(folder / f"{part}.safetensors").items()
    }
    return EngineState(weights, *checkpoint.read_moments(folder))


def build_pretrained(folder: Path, work_folder: Path) -> dict[str, Any]:
    """Copy a finished phase into an artefact folder and return its summary; raises `TrainingError` when it is not whole."""
    result = work_folder / "result"
    problem = checkpoint.verify(result, DONE)
    if problem:
        (result / DONE).unlink(missing_ok=True)  # or nobody would make it again
        raise TrainingError(
            f"the training in {work_folder} left no whole result", expected=f"files as {DONE} lists them", found=problem,
            remedy="run again: it goes on from the newest checkpoint",
        )  # fmt: skip
    for name in json.loads((result / DONE).read_text())["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(result / name, folder / name)
    return dict(json.loads((result / "state.json").read_text())["summary"])


def check_pretrained(folder: Path) -> dict[str, Check]:
    """Blocking checks of a pretrained or cooled encoder: every weight finite, features not collapsed."""
    weights = [value for part in PARTS for value in load_file(folder / f"{part}.safetensors").values()]
    count, bad = sum(value.numel() for value in weights), sum(int((~value.isfinite()).sum()) for value in weights)
    verdict = json.loads((folder / "state.json").read_text())["verdict"]
    return {
        "finite": Check(bad == 0, "finite weights", f"{count} weights, {bad} of them not finite", "train again"),
        "not_collapsed": Check(
            verdict["state"] != "collapsed", "features that tell clips apart", verdict["line"],
            "lower the learning rate or raise the EMA momentum in the recipe, and train again",
        ),
    }  # fmt: skip


def draw_progress(work_folder: Path, title: str) -> dict[str, float]:
    """Draw curves.png of a training that still runs, and return its newest numbers."""
    rows = read_metrics(work_folder / METRICS)
    draw_curves(rows, work_folder / "curves.png", title=title)
    newest: dict[str, float] = {}
    for row in rows:
        newest |= row
    return {name: newest[name] for name in ("step", "loss", "rank_me", "target_std", "tokens_per_s", "data_wait") if name in newest}


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl, those of one step merged, in order; a line that is being written is left out, and one that is damaged,
    which the log tells: a curve with a gap must not keep a training from going on."""
    rows: dict[int, dict[str, float]] = {}
    damaged = 0
    for line in whole_lines(path) if path.exists() else ():
        try:
            row = json.loads(line)
            rows.setdefault(row["step"], {}).update(row)
        except (ValueError, TypeError, KeyError):
            damaged += 1
    if damaged:
        logger.warning("%d lines of %s cannot be read and are left out", damaged, path)
    return [rows[step] for step in sorted(rows)]


def cut_metrics(path: Path, step: int) -> None:
    """Forget what was reported after `step`: a resumed run reports it again."""
    kept = [row for row in read_metrics(path) if row["step"] <= step]
    if path.exists():
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in kept))
