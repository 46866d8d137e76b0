"""Long campaign: does a target-retrieved set pretrain a better encoder than a random set of the same size from the same pool?

For each of five seeds, four encoders are pretrained for the same steps from the same initial weights: on a random set, and
on sets retrieved with three embedders (middle frame, three frames, V-JEPA 2 clip features of an encoder trained on the
whole pool). Each is probed on the four target sets, whose classes only motion tells apart. One table; what it asserts is
that the comparison was fair, not who wins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
SEEDS = (11, 12, 13, 14, 15)
CORPUS_SEED = 31
STEPS = 250
SIZE = 48  # clips of about 210 in the pool; the targets lie in clusters that hold 54, 57 and 140 of them, by embedder
BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Arm:
    """A way to choose the training set: which embedder's clusters, and whether the targets choose or chance does."""

    name: str
    embedder: str
    mode: str


ARMS = (Arm("random", "three frames", "uniform"), Arm("middle frame", "middle frame", "retrieval"),
        Arm("three frames", "three frames", "retrieval"), Arm("V-JEPA 2", "V-JEPA 2", "retrieval"))  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus probed and cut, with evaluation splits large enough to tell encoders apart."""
    from pipelines.corpus.pool import make_corpus
    from pipelines.curation.scenes import build_clips
    from pipelines.sources.folder import scan_folder
    from pipelines.sources.registry import Batch
    from pipelines.sources.targets import build_target_videos
    from pipelines.video.probe import build_videos

    root = Path(os.environ.get("TUBELET_SOAK_STORE") or tmp_path_factory.mktemp("curation")) / "earns_its_place"
    make_corpus(root / "corpus", seed=CORPUS_SEED, scale="study")
    batch = Batch("pool-0001", "pool", tuple(scan_folder(root / "corpus" / "pool")[0]), "", "")
    once(root / "videos", lambda folder: build_videos(folder, batch))
    once(root / "clips", lambda folder: build_clips(folder, root / "videos"))
    once(root / "target_videos", lambda folder: build_target_videos(folder, root / "corpus" / "targets"))
    return root


def once(folder: Path, build: Any) -> None:
    """Build into `folder` unless a finished build is there."""
    if (folder / "summary.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    summary = build(folder)
    (folder / "summary.json").write_text(json.dumps(summary, default=str))


def pretrain(root: Path, name: str, shards: Path, seed: int, steps: int) -> Path:
    """Pretrain nano's encoder on `shards` in one process on one thread; returns the folder of its weights."""
    from pipelines.pretraining.spec import write_spec
    from pipelines.recipes import load_recipe

    nano = load_recipe("nano")
    phase = nano.pretraining.pretrain.model_copy(update={"steps": steps, "checkpoint_every": 200})
    recipe = nano.model_copy(update={"seed": seed, "pretraining": nano.pretraining.model_copy(update={"pretrain": phase, "zero_stage": 0})})
    spec = write_spec(root / "runs" / name, recipe, "pretrain", shards, root / "store")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "pipelines.pretraining.run", "--spec", str(spec)], cwd=ROOT, env=environment, check=True)
    return root / "runs" / name / "result"


def curate(root: Path, embedder: str) -> None:
    """Embed, compare and cluster the pool with one embedder."""
    from pipelines.curation.duplicates import build_distinct
    from pipelines.curation.embedding import EmbeddingSettings, build_embeddings
    from pipelines.curation.increment import update_clusters

    if embedder == "V-JEPA 2":
        shards = root / "shards" / "whole pool"
        once(shards, lambda folder: shard(folder, root / "three frames", root / "selections" / "whole pool", root / "three frames", "uniform", None, 0))
        settings = EmbeddingSettings(encoder=str(pretrain(root, "embedder", shards, 7, 2 * STEPS)), frames="clip", part="target_encoder")
    else:
        settings = EmbeddingSettings(frames=1 if embedder == "middle frame" else 3)
    own = root / embedder
    once(own / "clip_embeddings", lambda folder: build_embeddings(folder, root / "clips", config=settings))
    once(own / "target_embeddings", lambda folder: build_embeddings(folder, root / "target_videos", config=settings))
    once(own / "distinct", lambda folder: build_distinct(
        folder, {"pool-0001": (root / "clips", own / "clip_embeddings")}, root / "target_videos", own / "target_embeddings"
    ))  # fmt: skip
    once(own / "clusters", lambda folder: update_clusters(folder, None, own / "distinct", root / "target_videos", own / "target_embeddings"))


def shard(folder: Path, curation: Path, selection: Path, own: Path, mode: str, size: int | None, seed: int) -> dict[str, Any]:
    """Select `size` clips and cut them into shards."""
    from pipelines.curation.retrieval import build_selection
    from pipelines.curation.selection import SelectionConfig
    from pipelines.shards.writer import build_shards

    config = SelectionConfig(mode=mode, size=size, seed=seed, uniform_mix=0.0 if mode == "retrieval" else 1.0)  # type: ignore[arg-type]
    targets = curation.parent / "target_videos"
    once(selection, lambda place: build_selection(place, own / "distinct", own / "clusters", targets, own / "target_embeddings", config))
    return build_shards(folder, own / "distinct", selection, progress=lambda *_: None)


def probe(encoder_folder: Path, targets: Path, seed: int) -> dict[str, float]:
    """Accuracy of a linear probe on each target set's evaluation split."""
    from models.preprocessing import Preprocess
    from models.weights import load_module
    from pipelines.evaluation import features as seen
    from pipelines.evaluation.target_sets import linear_correct, read_target_sets

    encoder: Any = load_module(encoder_folder, "target_encoder").eval()
    preprocess = Preprocess(height=96, width=96)
    found = {}
    for target in read_target_sets(targets, 8, (96, 96)):
        right = linear_correct(seen.pooled_by_time(seen.clip_tokens(encoder, np.concatenate(list(target.batches())), preprocess)), target, seed)
        found[target.name] = float(right.mean())
    return found


@pytest.mark.soak
def test_target_retrieved_sets_against_random_ones_of_the_same_size(world: Path) -> None:
    for embedder in ("three frames", "middle frame", "V-JEPA 2"):
        curate(world, embedder)
    jobs = [(arm, seed) for seed in SEEDS for arm in ARMS]
    for arm, seed in jobs:
        own, name = world / arm.embedder, f"{arm.name}-{seed}"
        once(world / "shards" / name, lambda folder, a=arm, s=seed, o=own, n=name: shard(folder, o, world / "selections" / n, o, a.mode, SIZE, s))  # type: ignore[misc]
    with ThreadPoolExecutor(2) as pool:
        weights = list(pool.map(lambda job: pretrain(world, f"{job[0].name}-{job[1]}", world / "shards" / f"{job[0].name}-{job[1]}", job[1], STEPS), jobs))
    accuracy: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for (arm, seed), folder in zip(jobs, weights, strict=True):
        summary = json.loads((world / "shards" / f"{arm.name}-{seed}" / "summary.json").read_text())
        assert summary["clips"] == SIZE, (arm.name, seed, summary)  # every set has the same number of clips
        by_set = probe(folder, world / "target_videos", seed)
        accuracy[arm.name].append(float(np.mean(list(by_set.values()))))
        print(f"seed {seed}  {arm.name:<14} " + "  ".join(f"{name} {value:.3f}" for name, value in by_set.items()), flush=True)
    print(verdict(accuracy))
    assert all(0.3 < value <= 1.0 for values in accuracy.values() for value in values)


def verdict(accuracy: dict[str, list[float]]) -> str:
    """Mean accuracy of each arm, and its paired difference from the random sets with a 95 % bootstrap interval over seeds."""
    random = np.random.default_rng(0)
    draws = random.integers(0, len(SEEDS), (BOOTSTRAPS, len(SEEDS)))
    base = np.array(accuracy["random"])
    lines = [f"mean accuracy over four target sets, {len(SEEDS)} seeds, {SIZE} clips, {STEPS} steps"]
    for name, values in accuracy.items():
        difference = np.array(values) - base
        low, high = np.quantile(difference[draws].mean(axis=1), [0.025, 0.975])
        told = "" if name == "random" else f"  over random {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        lines.append(f"  {name:<14} {np.mean(values):.3f} (seeds {', '.join(f'{value:.3f}' for value in values)}){told}")
    return "\n".join(lines)
