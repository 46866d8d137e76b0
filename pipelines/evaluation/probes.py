"""The `probe_results` stage: what a frozen encoder knows, beside its random twin, raw pixels and a single frame.

Every row is {task, features, encoder, metric, value, low, high, n}: `encoder` is trained, random (same shape, initial
weights), pixels, single_frame, or trained_minus_random (a paired difference); intervals are 95 %, over episodes or videos; `n` counts
items, and in a difference the episodes or videos that they are of. An encoder that went on from a checkpoint stands beside that
too: start, and trained_minus_start.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.encoder import VideoEncoder
from models.preprocessing import Preprocess
from models.weights import load_module, state_digest
from pipelines.checks import Check
from pipelines.episodes.episode import load_episodes
from pipelines.errors import InputError
from pipelines.evaluation import features as seen
from pipelines.evaluation.before_after import verdict
from pipelines.evaluation.features import FrameSet, WindowSet
from pipelines.evaluation.health import encoder_health
from pipelines.evaluation.held_out import halves_found, prediction_errors, read_held_out
from pipelines.evaluation.intervals import (
    Interval,
    clustered_share,
    jackknife,
    left_out_mean,
    left_out_r2,
    paired_mean,
    paired_share,
    r2,
)
from pipelines.evaluation.motion import MotionLabels, attentive_scores, ridge_scores
from pipelines.evaluation.pictures import draw_probes, find_row
from pipelines.evaluation.ridge import choose_ridge
from pipelines.evaluation.target_sets import linear_correct, read_target_sets
from pipelines.identity import stable_seed
from pipelines.posttraining.features import split_episodes
from pipelines.pretraining.start import networks_of_record
from pipelines.recipes import Recipe

Array = NDArray[np.float64]
Rows = list[dict[str, Any]]
Networks = dict[str, nn.Module]
PARTS = ("encoder", "target_encoder", "predictor")
HELD_OUT = "held-out clips"
DEFAULT_FPS = 4.0  # the paper's; of recipes that count stored frames
HELD_SHARE = 0.2
THREADS = 2
SHARE = (0.0, 1.0)
"""Where an accuracy lies."""
R2 = (-math.inf, 1.0)


class _Probing:
    """The encoders by name, what is done to pixels, and the rows found so far. `trained` and `start` (None: it began at random
    weights) are networks by part: encoder, target_encoder, predictor."""

    def __init__(self, trained: Networks, start: Networks | None, recipe: Recipe, progress: Callable[..., None] | None, stages: int) -> None:
        self.recipe, self.seed = recipe, recipe.seed
        self.networks = {"trained": trained, **({"start": start} if start else {})}
        self.encoders = {name: cast(VideoEncoder, parts["target_encoder"]) for name, parts in self.networks.items()}
        self.encoders["random"] = _random_twin(self.encoders["trained"], recipe.seed)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        for module in (*(part for parts in self.networks.values() for part in parts.values()), self.encoders["random"]):
            module.to(device).eval()
        self.bases = [name for name in ("random", "start") if name in self.encoders]
        height, width = recipe.probe_size
        self.preprocess = Preprocess(height=height, width=width)
        self.rows: Rows = []
        self.evaluation_videos: set[str] = set()
        self._progress, self._done, self._stages = progress, 0, stages

    def tell(self, text: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._stages, text)
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
        episodes = len(np.unique(held.episodes))
        found: dict[tuple[str, str], tuple[float, Array]] = {}

        def probe(kind: str, encoder: str, fit_on: Array, judge_on: Array) -> None:
            predicted = choose_ridge(fit_on, targets, train.episodes, self.seed).predict(judge_on)
            values, left_out = r2(predicted, truth), left_out_r2(predicted, truth, held.episodes)
            for column, name in enumerate(names):
                self.add("frame", kind, encoder, f"r2_{name}", jackknife(values[column], left_out[:, column], R2), len(truth))
            self.add("frame", kind, encoder, "r2_mean", jackknife(values.mean(), left_out.mean(1), R2), len(truth))
            found[kind, encoder] = (float(values.mean()), left_out.mean(1))

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
            for name in self.bases:
                (value, left_out), (base, base_left_out) = found[kind, "trained"], found[kind, name]
                self.add("frame", kind, f"trained_minus_{name}", "r2_mean", jackknife(value - base, left_out - base_left_out), episodes)
        return held_pooled

    # -- which way did it move --------------------------------------------------------------------------------------

    def motion(self, train: WindowSet, held: WindowSet) -> None:
        """Ridge and attentive probes from windows, each also reversed, to the direction of the hand's motion."""
        labels, truth = MotionLabels.of(train.moved), MotionLabels.of(held.moved)
        episodes = len(np.unique(held.episodes))
        found: dict[tuple[str, str, str], tuple[float, Array]] = {}

        def judge(kind: str, encoder: str, scores: tuple[Array, Array]) -> None:
            for metric, values in zip(("sign_accuracy", "direction_accuracy"), scores, strict=True):
                counted = ~np.isnan(values)
                value = float(values[counted].mean()) if counted.any() else float("nan")
                left_out = left_out_mean(values, held.episodes)
                self.add("motion", kind, encoder, metric, jackknife(value, left_out, SHARE), int(counted.sum()))
                found[kind, encoder, metric] = (value, left_out)

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
                for name in self.bases:
                    (value, left_out), (base, other) = found[kind, "trained", metric], found[kind, name, metric]
                    self.add("motion", kind, f"trained_minus_{name}", metric, jackknife(value - base, left_out - other), episodes)

    # -- robot episodes ---------------------------------------------------------------------------------------------

    def episodes(self, folder: Path) -> tuple[dict[str, Array], int]:
        """Frame and motion probes; returns each encoder's pooled features of held-out frames, and how many episodes are held out.

        Episodes are split by the hash of their ids; the encoder never saw them.
        """
        episodes, sizes = load_episodes(folder), self.recipe.probes
        inside, outside = split_episodes([episode.episode_id for episode in episodes], HELD_SHARE)
        self.tell("decoding episodes")
        frames, windows = seen.draw(
            episodes, inside, frames=sizes.frames, windows=max(8, sizes.frames // 5), length=self.length, seed=self.seed
        )
        held_frames, held_windows = seen.draw(
            episodes, outside, frames=max(20, sizes.frames * 3 // 10), windows=max(8, sizes.frames // 10), length=self.length,
            seed=self.seed,
        )  # fmt: skip
        pooled = self.frames(frames, held_frames)
        self.motion(windows.with_reversed(), held_windows.with_reversed())
        return pooled, len(outside)

    # -- target sets ------------------------------------------------------------------------------------------------

    def targets(self, folder: Path) -> None:
        """Linear probes on each labelled set: training split to evaluation split."""
        self.tell("target sets")
        for target in read_target_sets(folder, self.recipe.probes.clip_steps, self.size):
            parts: dict[str, list[Array]] = defaultdict(list)
            for clips in target.batches():
                for name, encoder in self.encoders.items():
                    parts[name].append(seen.clips_by_time(encoder, clips, self.preprocess))
                parts["pixels"].append(seen.pixel_windows(clips))
                parts["single_frame"].append(seen.pooled_frames(self.encoders["trained"], np.ascontiguousarray(clips[:, 0]), self.preprocess))
            self.evaluation_videos |= set(target.videos[~target.train])
            right = {name: linear_correct(np.concatenate(values), target, self.seed) for name, values in parts.items()}
            for name, own in right.items():
                kind = "pooled" if name == "single_frame" else "pooled_by_time"
                self.add(target.name, kind, name, "accuracy", clustered_share(own.astype(float), target.videos[~target.train]), len(own))
            for name in self.bases:
                change = paired_share(right["trained"].astype(float) - right[name], target.videos[~target.train])
                self.add(target.name, "pooled_by_time", f"trained_minus_{name}", "accuracy", change, len(np.unique(target.videos[~target.train])))

    def held_out(self, folder: Path) -> dict[str, Array]:
        """Measures without labels on the sets' evaluation clips; returns each encoder's features of them, a row a clip and time step as
        where health is watched in training; empty without clips."""
        phase = self.recipe.pretraining.pretrain
        self.tell("decoding held-out clips")
        clips = read_held_out(folder, self.length, self.size, phase.fps or DEFAULT_FPS)
        if clips is None:
            return {}
        self.evaluation_videos |= set(clips.videos)
        found, videos = {}, len(np.unique(clips.videos))
        for name, encoder in self.encoders.items():
            self.tell(f"held-out clips, {name} encoder")
            found[name] = halves_found(encoder, clips, self.preprocess)
        for name, own in found.items():
            self.add(HELD_OUT, "halves", name, "halves_found", clustered_share(own, clips.videos), len(own))
        for name in self.bases:
            self.add(HELD_OUT, "halves", f"trained_minus_{name}", "halves_found", paired_share(found["trained"] - found[name], clips.videos), videos)
        errors = {name: prediction_errors(parts, clips, self.preprocess, self.recipe) for name, parts in self.networks.items()}
        for name, own in errors.items():
            self.add(HELD_OUT, "masked", name, "prediction_error", jackknife(own.mean(), left_out_mean(own, clips.videos)), len(own))
        change = paired_mean(errors["trained"] - errors["start"], clips.videos)
        self.add(HELD_OUT, "masked", "trained_minus_start", "prediction_error", change, videos)
        steps = clips.first.shape[1] // self.recipe.encoder.tubelet_size
        by_time = {name: seen.clips_by_time(encoder, clips.first, self.preprocess) for name, encoder in self.encoders.items()}
        return {name: rows.reshape(steps * len(rows), -1) for name, rows in by_time.items()}

    @property
    def size(self) -> tuple[int, int]:
        return self.preprocess.height, self.preprocess.width

    @property
    def length(self) -> int:
        """Frames of a window."""
        return _even(self.recipe.probes.clip_steps, self.recipe.encoder.tubelet_size)


def build_probes(
    folder: Path, cooled_folder: Path, episodes_folder: Path | None, target_clips: Path | None, *, recipe: Recipe,
    start: dict[str, Any] | None = None, shown_before: frozenset[str] = frozenset(), progress: Callable[..., None] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Probe the target encoder in `cooled_folder`; writes probes.json and probes.png, returns the summary.

    `episodes_folder` is a `robot_episodes` artefact and `target_clips` a `target_videos` artefact; what is None is left out.
    `start` is the record of the checkpoint that the encoder went on from: then that is probed too, there are measures without
    labels, and a verdict; `shown_before` are videos that it was trained on. Sizes come from recipe.probes: `frames` training
    frames, a fifth as many training windows of `clip_steps` frames (each also reversed), and about a third of that held out.
    """
    cpu_started = time.process_time()
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        trained = {part: load_module(cooled_folder, part) for part in (PARTS if start else ("target_encoder",))}
        encoders = 3 if start else 2
        stages = (1 + 3 * encoders) * (episodes_folder is not None) + (1 + (1 + encoders) * bool(start)) * (target_clips is not None)
        probing = _Probing(trained, networks_of_record(start, recipe) if start else None, recipe, progress, stages)
        pooled: dict[str, Array] = {}
        outside = 0
        if episodes_folder is not None:
            pooled, outside = probing.episodes(episodes_folder)
        if target_clips is not None:
            probing.targets(target_clips)
            held = probing.held_out(target_clips) if start else {}
            pooled = pooled or held
        if not pooled:
            raise InputError(
                "there is nothing to probe this encoder with", expected="robot episodes, or target sets with at least two evaluation clips", found="neither",
                remedy="materialize target_videos with a root (curate --targets), or robot_episodes",
            )  # fmt: skip
        health = encoder_health(pooled["trained"], pooled["random"])
    finally:
        torch.set_num_threads(threads_before)
    rows = probing.rows
    judged = verdict(rows, len(probing.evaluation_videos & shown_before), len(probing.evaluation_videos))
    content = {
        "rows": rows, "health": health.to_dict(), "encoder_digest": state_digest(probing.encoders["trained"]),
        "held_out_episodes": outside, "sizes": recipe.probes.model_dump(), "start": start, "verdict": judged.to_dict() if judged else None,
    }  # fmt: skip
    (folder / "probes.json").write_text(json.dumps(content, indent=1))
    draw_probes(rows, folder / "probes.png")
    told = {"verdict": judged.word, "verdict_lines": list(judged.lines)} if judged else {}
    return {**told, **_summary(rows), "rank_me": health.rank_me, "health": health.line, "rows": len(rows),
            "cpu_seconds": time.process_time() - cpu_started, "pictures": ["probes.png"]}  # fmt: skip


def check_probes(folder: Path) -> dict[str, Check]:
    """`finite`: the comparison that everything else is read against is made of numbers. Quality never blocks here."""
    rows = json.loads((folder / "probes.json").read_text())["rows"]
    means = [row for row in rows if row["metric"] in ("r2_mean", "accuracy", "halves_found")]
    bad = [row for row in means if not math.isfinite(row["value"])]
    return {
        "finite": Check(
            bool(means) and not bad, "finite numbers from every probe of frames, target sets and held-out clips", f"{len(means) - len(bad)} of {len(means)} finite",
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
