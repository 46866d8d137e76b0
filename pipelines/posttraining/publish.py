"""From the results of the two trainings (main, and control on a random encoder) to one `world_model` artefact folder."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from pipelines.checks import Check
from pipelines.errors import TrainingError

MAIN, CONTROL = "trained", "random"
BLIND_RATIO = 0.8
"""Above this the predictor as good as ignores the action, and nothing can be planned with it."""
JUDGED_FROM = 300
"""Updates below which no recipe has ever seen the action: such a run shows that the chain works, nothing more."""


def build_world_model(folder: Path, work_folder: Path) -> dict[str, Any]:
    """Fill `folder` from work_folder/{trained,random}/result; returns the summary. Raises TrainingError if one is missing.

    Files: encoder.*, predictor.*, preprocess.json, control/{encoder,predictor}.*, losses.json {trained, random},
    metrics.jsonl, lineage.json (episodes by role, step_s), curves.png.
    """
    results = {name: work_folder / name / "result" for name in (MAIN, CONTROL) if (work_folder / name / "result").is_dir()}
    done = {}
    for name in (MAIN, *(name for name in results if name != MAIN)):
        marker = work_folder / name / "result" / "DONE.json"
        if not marker.exists():
            raise TrainingError(
                f"post-training on the {name} encoder has not ended", expected=str(marker), found="no such file",
                remedy="materialize world_model again: it goes on from its newest checkpoint",
            )  # fmt: skip
        done[name] = json.loads(marker.read_text())
    main = results[MAIN]
    for name in ("encoder.safetensors", "encoder.json", "predictor.safetensors", "predictor.json", "preprocess.json", "metrics.jsonl"):
        shutil.copyfile(main / name, folder / name)
    if CONTROL in results:
        (folder / "control").mkdir()
        for name in ("encoder.safetensors", "encoder.json", "predictor.safetensors", "predictor.json"):
            shutil.copyfile(results[CONTROL] / name, folder / "control" / name)
    losses = {name: json.loads((path / "losses.json").read_text()) for name, path in results.items()}
    (folder / "losses.json").write_text(json.dumps(losses, indent=1))
    lineage = {
        "episodes": done[MAIN]["episodes"], "step_s": done[MAIN]["step_s"], "encoder": done[MAIN]["encoder_digest"],
        "optimizer": done[MAIN]["optimizer"], "updates": done[MAIN]["updates"], "transitions": done[MAIN]["transitions"],
    }  # fmt: skip
    (folder / "lineage.json").write_text(json.dumps(lineage, indent=1))
    draw_curves({name: _metrics(path / "metrics.jsonl") for name, path in results.items()}, folder / "curves.png")
    return _summary(losses, done)


def _summary(losses: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    main = losses[MAIN]
    summary: dict[str, Any] = {
        "steps": done[MAIN]["updates"], "transitions": done[MAIN]["transitions"],
        **{f"loss_{name}": main[name]["value"] for name in ("true", "zero", "shuffled", "copy")},
        **{name: main[name]["value"] for name in ("true_over_zero", "true_over_shuffled", "true_over_copy")},
        "cpu_seconds": sum(item["cpu_seconds"] for item in done.values()),
        "pictures": ["curves.png"],
    }  # fmt: skip
    if CONTROL in losses:
        summary["control_true_over_zero"] = losses[CONTROL]["true_over_zero"]["value"]
        summary["control_true_over_shuffled"] = losses[CONTROL]["true_over_shuffled"]["value"]
    return summary


def check_world_model(folder: Path) -> dict[str, Check]:
    """`finite`: every loss is a number. `uses_actions`: true actions predict clearly better than zero and shuffled ones."""
    losses = json.loads((folder / "losses.json").read_text())
    values = [item["value"] for table in losses.values() for item in table.values() if isinstance(item, dict)]
    bad = sum(not math.isfinite(value) for value in values)
    main = losses[MAIN]
    ratios = {name: main[f"true_over_{name}"]["value"] for name in ("zero", "shuffled")}
    told = ", ".join(f"true/{name} {ratio:.3f}" for name, ratio in ratios.items())
    long_enough = main["updates"] >= JUDGED_FROM
    return {
        "finite": Check(
            bad == 0, "finite validation losses", f"{len(values) - bad} of {len(values)} finite",
            "lower posttraining.learning_rate",
        ),
        "uses_actions": Check(
            not long_enough or max(ratios.values()) <= BLIND_RATIO,
            f"L1 with the true actions at most {BLIND_RATIO} of that with zero and with shuffled ones",
            told if long_enough else f"{told}; not judged below {JUDGED_FROM} updates (this run: {main['updates']})",
            "more updates (posttraining.steps) or more episodes: a short training leaves the predictor blind to the action",
        ),
    }  # fmt: skip


def _metrics(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def draw_curves(metrics: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Training loss and held-out losses by kind of action, one panel per encoder."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    shown = (
        ("loss", "training", "0.6", 0.9), ("validation_true", "true action", "tab:blue", 1.6),
        ("validation_zero", "zero action", "tab:orange", 1.2), ("validation_shuffled", "shuffled action", "tab:red", 1.2),
        ("validation_copy", "copy of the frame", "0.2", 0.8),
    )  # fmt: skip
    for panel, (name, rows) in zip(panels, metrics.items(), strict=True):
        for key, label, colour, width in shown:
            points = [(row["step"], row[key]) for row in rows if key in row]
            if points:
                panel.plot(*zip(*points, strict=True), label=label, color=colour, linewidth=width)
        panel.set_title(f"{name} encoder", fontsize=9)
        panel.set_xlabel("update")
        panel.set_ylabel("L1 on layer-normed tokens")
        panel.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=80, metadata={"Software": None})
