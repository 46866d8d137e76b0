"""The `probe_results` stage: what a frozen encoder knows, beside its random twin, raw pixels and a single frame.

Every row is {task, features, encoder, metric, value, low, high, n}: `encoder` is trained, random (same shape, initial
weights), pixels, single_frame, or trained_minus_random (a paired difference); intervals are 95 %.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.encoder import VideoEncoder
from models.preprocessing import Preprocess
from models.weights import load_module, state_digest
from pipelines.checks import Check
from pipelines.episodes.episode import load_episodes
from pipelines.evaluation import features as seen
from pipelines.evaluation.features import FrameSet, WindowSet
from pipelines.evaluation.health import encoder_health
from pipelines.evaluation.intervals import (
    Interval,
    interval,
    r2,
    resample_weights,
    resampled_mean,
    resampled_r2,
    wilson,
)
from pipelines.evaluation.motion import MotionLabels, attentive_scores, ridge_scores
from pipelines.evaluation.pictures import draw_probes, find_row
from pipelines.evaluation.ridge import choose_ridge
from pipelines.evaluation.target_sets import linear_correct, read_target_sets
from pipelines.identity import stable_seed
from pipelines.posttraining.features import split_episodes
from pipelines.recipes import Recipe

Array = NDArray[np.float64]
Rows = list[dict[str, Any]]
HELD_SHARE = 0.2
THREADS = 2
STAGES = 8


class _Probing:
    """Two encoders, the episodes' frames and windows on both sides of the split, and the rows found so far."""

    def __init__(self, trained: VideoEncoder, recipe: Recipe, progress: Callable[..., None] | None) -> None:
        self.recipe, self.seed = recipe, recipe.seed
        self.encoders = {"trained": trained.eval(), "random": _random_twin(trained, recipe.seed).eval()}
        self.preprocess = Preprocess(height=recipe.posttraining.height, width=recipe.posttraining.width)
        self.rows: Rows = []
        self._progress, self._done = progress, 0

    def tell(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._done, STAGES, text)
        self._done += 1

    def add(self, task: str, kind: str, encoder: str, metric: str, found: Interval, n: int) -> None:
        self.rows.append({
            "task": task, "features": kind, "encoder": encoder, "metric": metric, "value": found.value, "low": found.low,
            "high": found.high, "n": n,
        })  # fmt: skip

    # -- where is the hand, where is the cube -----------------------------------------------------------------------

    def frames(self, train: FrameSet, held: FrameSet) -> dict[str, Array]:
        """Ridge from single frames to positions; returns each encoder's pooled features of the held-out frames."""
        targets, names = train.targets()
        truth, _ = held.targets()
        weights, owner = resample_weights(held.episodes, stable_seed("probe bootstrap", self.seed))
        draws: dict[tuple[str, str], tuple[float, Array]] = {}

        def probe(kind: str, encoder: str, fit_on: Array, judge_on: Array) -> None:
            predicted = choose_ridge(fit_on, targets, train.episodes, self.seed).predict(judge_on)
            values, resampled = r2(predicted, truth), resampled_r2(predicted, truth, weights, owner)
            for column, name in enumerate(names):
                self.add("frame", kind, encoder, f"r2_{name}", interval(values[column], resampled[:, column]), len(truth))
            self.add("frame", kind, encoder, "r2_mean", interval(values.mean(), resampled.mean(1)), len(truth))
            draws[kind, encoder] = (float(values.mean()), resampled.mean(1))

        held_pooled = {}
        for name, encoder in self.encoders.items():
            self.tell(f"frame probes, {name} encoder")
            tokens = {
                side: seen.frame_tokens(encoder, part.images, self.preprocess) for side, part in (("fit", train), ("judge", held))
            }
            held_pooled[name] = seen.pooled(tokens["judge"])
            probe("pooled", name, seen.pooled(tokens["fit"]), held_pooled[name])
            probe("flat", name, seen.flattened(tokens["fit"]), seen.flattened(tokens["judge"]))
        patch = self.encoders["trained"].config.patch_size
        probe("pooled", "pixels", *(seen.pixel_patches(part.images, patch, self.preprocess) for part in (train, held)))
        probe("flat", "pixels", *(seen.pixel_vectors(part.images, seen.PIXEL_GRID) for part in (train, held)))
        for kind in ("pooled", "flat"):
            (value, resampled), (base, base_resampled) = draws[kind, "trained"], draws[kind, "random"]
            self.add("frame", kind, "trained_minus_random", "r2_mean", interval(value - base, resampled - base_resampled), len(truth))
        return held_pooled

    # -- which way did it move --------------------------------------------------------------------------------------

    def motion(self, train: WindowSet, held: WindowSet) -> None:
        """Ridge and attentive probes from windows, each also reversed, to the direction of the hand's motion."""
        labels, truth = MotionLabels.of(train.moved), MotionLabels.of(held.moved)
        weights, owner = resample_weights(held.episodes, stable_seed("motion bootstrap", self.seed))
        draws: dict[tuple[str, str, str], tuple[float, Array]] = {}

        def judge(kind: str, encoder: str, scores: tuple[Array, Array]) -> None:
            for metric, values in zip(("sign_accuracy", "direction_accuracy"), scores, strict=True):
                counted = ~np.isnan(values)
                value = float(values[counted].mean()) if counted.any() else float("nan")
                resampled = resampled_mean(values, weights, owner)
                self.add("motion", kind, encoder, metric, interval(value, resampled), int(counted.sum()))
                draws[kind, encoder, metric] = (value, resampled)

        for name, encoder in self.encoders.items():
            self.tell(f"motion probes, {name} encoder")
            fit, test = (seen.clip_tokens(encoder, part.clips, self.preprocess) for part in (train, held))
            by_time = [seen.pooled_by_time(part) for part in (fit, test)]
            judge("pooled_by_time", name, ridge_scores(by_time[0], labels, train.episodes, by_time[1], truth, self.seed))
            self.tell(f"attentive motion probe, {name} encoder")
            epochs = self.recipe.probes.attentive_epochs
            judge("attentive", name, attentive_scores(fit, labels, test, truth, epochs=epochs, seed=self.seed))
        pixels = [seen.pixel_windows(part.clips) for part in (train, held)]
        judge("pooled_by_time", "pixels", ridge_scores(pixels[0], labels, train.episodes, pixels[1], truth, self.seed))
        first = [
            seen.flattened(seen.frame_tokens(self.encoders["trained"], np.ascontiguousarray(part.clips[:, 0]), self.preprocess))
            for part in (train, held)
        ]
        judge("flat", "single_frame", ridge_scores(first[0], labels, train.episodes, first[1], truth, self.seed))
        for kind in ("pooled_by_time", "attentive"):
            for metric in ("sign_accuracy", "direction_accuracy"):
                (value, resampled), (base, other) = draws[kind, "trained", metric], draws[kind, "random", metric]
                self.add("motion", kind, "trained_minus_random", metric, interval(value - base, resampled - other), len(truth.signs))

    # -- labelled target sets ---------------------------------------------------------------------------------------

    def targets(self, folder: Path) -> None:
        """Linear probes on each labelled set: training split to evaluation split."""
        steps = self.recipe.probes.clip_steps
        for target in read_target_sets(folder, steps, (self.preprocess.height, self.preprocess.width)):
            found = {
                name: seen.pooled_by_time(seen.clip_tokens(encoder, target.clips, self.preprocess))
                for name, encoder in self.encoders.items()
            }
            found["pixels"] = seen.pixel_windows(target.clips)
            found["single_frame"] = seen.pooled(
                seen.frame_tokens(self.encoders["trained"], np.ascontiguousarray(target.clips[:, 0]), self.preprocess)
            )
            for name, values in found.items():
                right = linear_correct(values, target, self.seed)
                kind = "pooled" if name == "single_frame" else "pooled_by_time"
                self.add(target.name, kind, name, "accuracy", wilson(int(right.sum()), len(right)), len(right))


def build_probes(
    folder: Path, cooled_folder: Path, episodes_folder: Path, target_clips: Path | None, *, recipe: Recipe,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probe the target encoder in `cooled_folder`; writes probes.json and probes.png, returns the summary.

    `target_clips` is a `target_videos` artefact or None. Episodes are split by the hash of their ids; the encoder never
    saw them. Sizes come from recipe.probes: `frames` training frames, a fifth as many training windows of `clip_steps`
    frames (each also reversed), and about a third of that held out.
    """
    cpu_started = time.process_time()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        probing = _Probing(load_module(cooled_folder, "target_encoder"), recipe, progress)
        episodes = load_episodes(episodes_folder)
        inside, outside = split_episodes([episode.episode_id for episode in episodes], HELD_SHARE)
        sizes, length = recipe.probes, _even(recipe.probes.clip_steps, recipe.encoder.tubelet_size)
        probing.tell("decoding episodes")
        frames, windows = seen.draw(
            episodes, inside, frames=sizes.frames, windows=max(8, sizes.frames // 5), length=length, seed=recipe.seed
        )
        held_frames, held_windows = seen.draw(
            episodes, outside, frames=max(20, sizes.frames * 3 // 10), windows=max(8, sizes.frames // 10), length=length,
            seed=recipe.seed,
        )  # fmt: skip
        pooled = probing.frames(frames, held_frames)
        probing.motion(windows.with_reversed(), held_windows.with_reversed())
        if target_clips is not None:
            probing.tell("target sets")
            probing.targets(target_clips)
        health = encoder_health(pooled["trained"], pooled["random"])
    finally:
        torch.set_num_threads(threads_before)
    rows = probing.rows
    content = {
        "rows": rows, "health": health.to_dict(), "encoder_digest": state_digest(probing.encoders["trained"]),
        "held_out_episodes": len(outside), "sizes": sizes.model_dump(),
    }  # fmt: skip
    (folder / "probes.json").write_text(json.dumps(content, indent=1))
    draw_probes(rows, folder / "probes.png")
    return {**_summary(rows), "rank_me": health.rank_me, "health": health.line, "rows": len(rows),
            "cpu_seconds": time.process_time() - cpu_started, "pictures": ["probes.png"]}  # fmt: skip


def check_probes(folder: Path) -> dict[str, Check]:
    """`finite`: the comparison that everything else is read against is made of numbers. Quality never blocks here."""
    rows = json.loads((folder / "probes.json").read_text())["rows"]
    means = [row for row in rows if row["task"] == "frame" and row["metric"] == "r2_mean"]
    bad = [row for row in means if not math.isfinite(row["value"])]
    return {
        "finite": Check(
            bool(means) and not bad, "finite mean R2 of every frame probe", f"{len(means) - len(bad)} of {len(means)} finite",
            "look at the encoder's health line: features that are not finite or constant cannot be probed",
        )
    }  # fmt: skip


def _summary(rows: Rows) -> dict[str, Any]:
    def value(task: str, kind: str, encoder: str, metric: str) -> dict[str, Any]:
        return find_row(rows, task, kind, encoder, metric) or {"value": float("nan"), "low": float("nan"), "high": float("nan")}

    gain = value("frame", "pooled", "trained_minus_random", "r2_mean")
    summary = {
        "frame_r2_trained": value("frame", "pooled", "trained", "r2_mean")["value"],
        "frame_r2_random": value("frame", "pooled", "random", "r2_mean")["value"],
        "frame_r2_pixels": value("frame", "pooled", "pixels", "r2_mean")["value"],
        "frame_r2_gain": gain["value"], "frame_r2_gain_low": gain["low"], "frame_r2_gain_high": gain["high"],
    }  # fmt: skip
    for kind in ("pooled_by_time", "attentive"):
        for encoder in ("trained", "random"):
            summary[f"motion_{kind}_{encoder}"] = value("motion", kind, encoder, "sign_accuracy")["value"]
    return {name: number for name, number in summary.items() if math.isfinite(number)}


def _random_twin(encoder: VideoEncoder, seed: int) -> VideoEncoder:
    """The same architecture at the recipe seed's initial weights; the caller's random state is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed("random encoder", seed))
        return VideoEncoder(encoder.config)


def _even(length: int, tubelet: int) -> int:
    """The largest multiple of the tubelet that is not longer, at least one tubelet."""
    return max(1, length // tubelet) * tubelet
