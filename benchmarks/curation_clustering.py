"""Clustering beside scikit-learn and plain torch: CPU seconds at which objective; balance and memory of the hierarchy.

    python -m benchmarks.curation_clustering [--only flat] [--rows 200000 --clusters 1000]
    python -m benchmarks.curation_clustering --only hierarchy --seeds 10 --save-data FOLDER --peer FIGURES.json

Everything runs on one thread and contestants take turns in one process; only ratios are meant to be quoted. `--save-data`
writes the rows and concepts of every seed of the hierarchy's contest (seed-N.npz: vectors, concepts), so that any other
program can cluster the same; `--peer` reads what it found: {"name": ..., "runs": [{"seed", "cpu_s", "inertia", "entropy",
"concepts"}, ...]} with the inertia about the means of level 1, and tells it beside ours.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from benchmarks.timing import machine
from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.balanced import balanced_sample
from pipelines.curation.clustering import build_clusters
from pipelines.curation.hierarchy import ClustersConfig, fit_codebook
from pipelines.curation.kmeans import KMeansConfig, Rows, spherical_kmeans
from pipelines.parts import open_parts
from pipelines.schemas import CLIPS, write_table

PASSES = 25
CHUNK = 20_000
HIERARCHY = {"rows": 20_000, "dimensions": 64, "concepts": 200, "noise": 0.6}
LEVELS: dict[str, Any] = {"levels": (200, 40), "rounds": (2,), "round_rows": (50, 3), "iterations": 15, "starts": 1}
SAMPLE = 2000

Matrix = NDArray[np.float32]
Labels = NDArray[np.int64]


def mixture(rows: int, dimensions: int, concepts: int, noise: float, seed: int) -> tuple[Matrix, Labels]:
    """(unit vectors, concepts): normal noise around normal centres, concept k met 1 / k as often as the first."""
    random = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, concepts + 1)
    concept = random.choice(concepts, rows, p=share / share.sum())
    centres = random.normal(size=(concepts, dimensions)).astype(np.float32)
    vectors = np.empty((rows, dimensions), np.float32)
    for start in range(0, rows, CHUNK):
        part = slice(start, min(rows, start + CHUNK))
        drawn = centres[concept[part]] + np.float32(noise) * random.standard_normal((part.stop - start, dimensions), np.float32)
        vectors[part] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return vectors, concept


def objectives(vectors: Matrix, labels: Labels) -> tuple[float, float]:
    """Sums of squared distances of unit rows to the means of their clusters, which the others minimise, and to the means'
    directions, which we do."""
    clusters = int(labels.max()) + 1
    sums = np.stack([np.bincount(labels, weights=column, minlength=clusters) for column in vectors.T.astype(np.float64)], axis=1)
    counts, lengths = np.bincount(labels, minlength=clusters), np.linalg.norm(sums, axis=1)
    return float(len(vectors) - (lengths**2 / np.maximum(counts, 1)).sum()), float(2 * len(vectors) - 2 * lengths.sum())


# --- flat k-means


def ours(vectors: Matrix, clusters: int, seed: int) -> Labels:
    return spherical_kmeans(Rows(vectors), clusters, seed=seed, config=KMeansConfig(iterations=PASSES)).cluster


def scikit_learn(init: str) -> Callable[[Matrix, int, int], Labels]:
    def run(vectors: Matrix, clusters: int, seed: int) -> Labels:
        from sklearn.cluster import KMeans

        return KMeans(clusters, init=init, n_init=1, max_iter=PASSES, random_state=seed, algorithm="lloyd").fit(vectors).labels_.astype(np.int64)

    return run


def plain_torch(vectors: Matrix, clusters: int, seed: int) -> Labels:
    """Lloyd from random rows in a few lines of torch: chunks of 20,000 rows, a matrix product, index_add."""
    import torch

    rows = torch.from_numpy(vectors)
    centroids = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:clusters]].clone()
    labels = torch.empty(len(rows), dtype=torch.int64)
    for _ in range(PASSES):
        half_norms = (centroids**2).sum(dim=1) / 2
        sums, counts = torch.zeros_like(centroids), torch.zeros(clusters)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            nearest = (chunk @ centroids.T - half_norms).argmax(dim=1)
            labels[start : start + CHUNK] = nearest
            sums.index_add_(0, nearest, chunk)
            counts += torch.bincount(nearest, minlength=clusters)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
    return labels.numpy()


def flat(rows: int, clusters: int, turns: int) -> None:
    """All contestants in turn on one Zipf mixture."""
    import torch

    torch.set_num_threads(1)
    vectors, _ = mixture(rows, 384, 2 * clusters, 0.8, seed=0)
    contestants: dict[str, Callable[[Matrix, int, int], Labels]] = {
        "ours": ours, "scikit-learn, k-means++": scikit_learn("k-means++"), "scikit-learn, random": scikit_learn("random"),
        "plain torch, random": plain_torch,
    }  # fmt: skip
    warm = vectors[: 2 * clusters]
    for run in contestants.values():
        run(warm, min(clusters, 10), 0)
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in contestants}
    for turn in range(turns):
        for name, run in contestants.items():
            started = time.process_time()
            labels = run(vectors, clusters, turn)
            found[name].append((time.process_time() - started, *objectives(vectors, labels)))
    print(f"\nflat k-means: {rows:,} x 384, {2 * clusters:,} concepts, {clusters:,} clusters, at most {PASSES} passes, {turns} turns")
    medians = {name: [statistics.median(values) for values in zip(*runs, strict=True)] for name, runs in found.items()}
    lines = [
        [name, f"{values[0]:.1f}", *(f"{value / mine:.{digits}f}" for value, mine, digits in zip(values, medians["ours"], (2, 3, 3), strict=True))]
        for name, values in medians.items()
    ]
    table(["", "CPU s", "CPU / ours", "inertia / ours", "to directions / ours"], lines)
    print("inertia: squared distances to the means, theirs to minimise; to directions: to the means made unit, ours")


# --- hierarchy


def hierarchy(seeds: int, data: Path | None, peer: Path | None) -> None:
    """Balanced samples of 2,000 from the hierarchy, from flat clusters and at random, over several seeds."""
    found: dict[str, list[dict[str, float]]] = {"ours": [], "flat, as many leaves": [], "random": []}
    for seed in range(-1, seeds):  # one before, not counted: libraries are loaded
        vectors, concept = mixture(**HIERARCHY, seed=max(seed, 0))  # type: ignore[arg-type]
        if data is not None and seed >= 0:
            data.mkdir(parents=True, exist_ok=True)
            np.savez(data / f"seed-{seed}.npz", vectors=vectors, concepts=concept)
        flat_levels = {**LEVELS, "levels": LEVELS["levels"][:1], "rounds": (0,)}
        runs = {
            "ours": _sampled(vectors, concept, ClustersConfig(**LEVELS, seed=max(seed, 0))),
            "flat, as many leaves": _sampled(vectors, concept, ClustersConfig(**flat_levels, seed=max(seed, 0))),
            "random": _described(concept, np.random.default_rng(seed + 1).choice(len(concept), SAMPLE, replace=False)),
        }
        if seed >= 0:
            for name, run in runs.items():
                found[name].append(run)
    if peer is not None:
        told = json.loads(peer.read_text())
        by_seed = {run["seed"]: run for run in told["runs"]}
        found[told["name"]] = [by_seed[seed] for seed in range(seeds) if seed in by_seed]
    print(f"\nhierarchy: {HIERARCHY}, {LEVELS}, a balanced sample of {SAMPLE:,}; median (least - most) of {seeds} seeds")
    print(f"entropy of the concepts in nats, {np.log(HIERARCHY['concepts']):.3f} at most")
    names = ["cpu_s", "inertia", "entropy", "concepts"]
    table(["", "CPU s", "inertia of level 1", "entropy", "concepts hit"], [[name, *(_spread(runs, key) for key in names)] for name, runs in found.items()])
    if peer is not None:
        pairs = zip(found[told["name"]], found["ours"], strict=False)
        ratios = sorted(theirs["cpu_s"] / mine["cpu_s"] for theirs, mine in pairs)
        print(f"CPU of {told['name']} / ours, seed by seed: {statistics.median(ratios):.1f} ({ratios[0]:.1f} - {ratios[-1]:.1f})")


def _sampled(vectors: Matrix, concept: Labels, config: ClustersConfig) -> dict[str, float]:
    clip_ids = [f"{row:08d}" for row in range(len(vectors))]
    with open_parts(None) as parts:
        started = time.process_time()
        codebook, _ = fit_codebook(vectors, clip_ids, "made up", config, parts)
        cpu_s = time.process_time() - started
    leaf = nearest_leaf(vectors, codebook.leaves).leaf
    return {"cpu_s": cpu_s, "inertia": objectives(vectors, leaf)[0], **_described(concept, balanced_sample(codebook, leaf, clip_ids, SAMPLE, config.seed))}


def _described(concept: Labels, rows: Labels) -> dict[str, float]:
    share = np.bincount(concept[rows]) / len(rows)
    return {"entropy": float(-np.sum(share[share > 0] * np.log(share[share > 0]))), "concepts": float((share > 0).sum())}


def _spread(runs: Sequence[dict[str, float]], key: str) -> str:
    values = sorted(run[key] for run in runs if key in run)
    if not values:
        return "-"
    digits = 0 if values[-1] >= 100 else 3 if key == "entropy" else 2
    return f"{statistics.median(values):,.{digits}f} ({values[0]:,.{digits}f} - {values[-1]:,.{digits}f})"


# --- memory


def memory(rows: int, clusters: int) -> None:
    """Peak memory of the whole stage on a memory-mapped file, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tubelet-benchmark-") as root:
        command = [sys.executable, "-m", "benchmarks.curation_clustering", "--stage-in", root, "--stage-clusters", str(clusters)]
        write_pool(Path(root), rows)
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    told = json.loads(answer.stdout.splitlines()[-1])
    print(f"\nthe whole stage: {rows:,} x 384 float32 ({rows * 384 * 4 / 2**30:.2f} GiB on disk), {clusters} leaves, 2 levels, 1 round")
    table(["", "CPU s", "peak GiB", "GiB before"], [["build_clusters", f"{told['cpu_s']:.0f}", f"{told['peak_gib']:.2f}", f"{told['before_gib']:.2f}"]])
    print("The peak counts the pages of the mapped file too, which the system takes back when it needs them.")


def write_pool(root: Path, rows: int) -> None:
    """Artefacts of `rows` clips and 1,000 target clips, written chunk by chunk."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((2000, 384), np.float32)
    for name, count in (("pool", rows), ("targets", 1000)):
        folder = root / name
        folder.mkdir()
        vectors = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float32, (count, 384))
        for start in range(0, count, CHUNK):
            chunk = centres[random.zipf(1.2, min(CHUNK, count - start)) % 2000] + 0.8 * random.standard_normal((min(CHUNK, count - start), 384), np.float32)
            vectors[start : start + CHUNK] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
        vectors.flush()
        clip_ids = [f"{row:020x}" for row in range(count)]
        (folder / "clip_ids.json").write_text(json.dumps(clip_ids))
        (folder / "encoder.json").write_text(json.dumps({"name": "made up", "digest": "made up"}))
        columns = {"clip_id": pa.array(clip_ids), "source": pa.repeat("push/train", count)}
        write_table(pa.table({field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in CLIPS}), folder / "clips.parquet", CLIPS)


def stage(root: Path, clusters: int) -> None:
    """What the process of its own does: one stage, and a line of JSON on what it took."""
    (root / "made").mkdir()
    before, started = peak_gib(), time.process_time()
    config = ClustersConfig(levels=(clusters, max(1, clusters // 10)), rounds=(1,), starts=1)
    build_clusters(root / "made", root / "pool", root / "targets", root / "targets", config)
    print(json.dumps({"cpu_s": time.process_time() - started, "peak_gib": peak_gib(), "before_gib": before}))


def peak_gib() -> float:
    """Peak resident memory of this process (Linux). getrusage would count what the parent held when it forked."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def table(header: list[str], lines: list[list[str]]) -> None:
    widths = [max(len(line[column]) for line in [header, *lines]) + 2 for column in range(len(header))]
    for line in [header, *lines]:
        print("".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(line, widths, strict=True))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["flat", "hierarchy", "memory"], action="append")
    parser.add_argument("--rows", type=int, default=50_000, help="rows of the flat contest (the fact sheet's case: 200,000 with 1,000 clusters)")
    parser.add_argument("--clusters", type=int, default=500)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--save-data", type=Path)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--memory-clusters", type=int, default=200)
    for hidden, kind in (("--stage-in", Path), ("--stage-clusters", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage_in is not None:
        stage(options.stage_in, options.stage_clusters)
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items() if key != "threads") + ", 1 thread")
    parts = options.only or ["flat", "hierarchy", "memory"]
    with threadpool_limits(1):
        if "flat" in parts:
            flat(options.rows, options.clusters, options.turns)
        if "hierarchy" in parts:
            hierarchy(options.seeds, options.save_data, options.peer)
    if "memory" in parts:
        memory(options.memory_rows, options.memory_clusters)


if __name__ == "__main__":
    main()
