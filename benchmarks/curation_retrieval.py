"""Retrieval from given assignments at the size of one machine: CPU seconds and peak memory, tables read and written.

    python -m benchmarks.curation_retrieval [--clips 1000000] [--clusters 10000] [--rowwise]

Every case runs in a process of its own, on one thread, so that its peak memory is its own. `--rowwise` also weighs the
same clips by the paper's formula row by row over Python dicts, as the first version did, for the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.checks import failed
from pipelines.curation.codebook import Codebook
from pipelines.curation.retrieval import build_selection, check_selection
from pipelines.curation.selection import SelectionConfig
from pipelines.schemas import ASSIGNMENTS, CLIPS, REMOVALS, SELECTION, read_table, table_of, write_table

TARGETS = {"kinetics710": 0.7, "ssv2": 0.125, "coin": 0.125, "epic_kitchens": 0.05}
TARGET_CLIPS = 100_000
DIMENSIONS = 32
CASES: dict[str, dict[str, Any]] = {
    "uniform part .3, repeat cap 4": {"uniform_mix": 0.3, "repeat_cap": 4.0},
    "the paper: no cap, no uniform part": {"uniform_mix": 0.0, "repeat_cap": None},
    "quotas: 8 a video, 2 % an uploader, licences": {
        "uniform_mix": 0.1, "repeat_cap": 8.0, "video_max": 8, "uploader_share": 0.02, "licence_shares": {"cc-by-nc": 0.1, "": 0.05},
    },
    "a tenth, retrieved": {"uniform_mix": 0.1, "size": 0.1},
    "a tenth, balanced": {"mode": "balanced", "size": 0.1},
    "a tenth, at random": {"mode": "uniform", "size": 0.1},
}  # fmt: skip
"""Options of a selection; `size` in shares of the clips."""


def make_pool(root: Path, clips: int, clusters: int, seed: int = 0) -> None:
    """Artefacts of `clips` clips in `clusters` clusters of Zipf sizes, with four target sets that prefer different ones."""
    random = np.random.default_rng(seed)
    for name in ("distinct", "clusters", "targets"):
        (root / name).mkdir(parents=True)
    top = max(1, clusters // 100)
    levels = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (random.normal(size=(count, DIMENSIONS)) for count in (clusters, top))]
    Codebook(
        tuple(level.astype(np.float32) for level in levels), (random.integers(0, top, clusters).astype(np.int32),), "encoder"
    ).save(root / "clusters")  # fmt: skip
    (root / "distinct" / "encoder.json").write_text(json.dumps({"name": "made up", "digest": "encoder"}))
    sizes = random.permutation(1.0 / np.arange(1, clusters + 1) ** 0.8)
    videos = random.integers(0, max(1, clips // 20), clips)
    uploaders = random.zipf(1.3, clips // 20 + 1) % 200_000
    words = {
        "clip_id": hex_ids(random, clips, 10), "video_id": hex_ids(random, clips // 20 + 1, 16).take(pa.array(videos)), "start_s": random.uniform(0, 3600, clips),
        "licence": pa.array(["", "cc-by", "cc-by-nc"]).take(pa.array(random.choice(3, clips, p=[0.1, 0.6, 0.3]))),
        "uploader": pa.array([f"uploader {number}" for number in range(200_000)]).take(pa.array(uploaders[videos])),
        "language": pa.array(["", "en", "ja"]).take(pa.array(random.integers(0, 3, clips))), "source": pa.repeat("pool", clips),
    }  # fmt: skip
    write_clips(root / "distinct" / "clips.parquet", words, clips)
    write_table(table_of(REMOVALS, []), root / "distinct" / "removals.parquet", REMOVALS)
    write_assignments(root / "clusters" / "assignments.parquet", words["clip_id"], random.choice(clusters, clips, p=sizes / sizes.sum()), random)
    names = sorted(TARGETS)
    liked = [np.concatenate([random.permutation(clusters)[: clusters // 10]] * 2) for _ in names]
    of_set = random.integers(0, len(names), TARGET_CLIPS)
    target_cluster = np.array([random.choice(liked[number]) for number in of_set])
    target_ids = hex_ids(random, TARGET_CLIPS, 10)
    train = random.random(TARGET_CLIPS) < 0.9
    sources = pa.array([f"{name}/{split}" for name in names for split in ("eval", "train")]).take(pa.array(2 * of_set + train))
    write_clips(root / "targets" / "clips.parquet", {"clip_id": target_ids, "video_id": target_ids, "source": sources}, TARGET_CLIPS)
    (root / "targets" / "targets.json").write_text(json.dumps([{"name": name, "weight": weight} for name, weight in TARGETS.items()]))
    write_assignments(root / "clusters" / "target_assignments.parquet", target_ids, target_cluster, random)


def hex_ids(random: np.random.Generator, count: int, size: int) -> pa.Array:
    """`count` sorted ids of 2 * `size` hexadecimal digits, as digests are."""
    data = random.bytes(size * count)
    return pa.array(sorted(data[start : start + size].hex() for start in range(0, len(data), size)))


def write_clips(path: Path, columns: dict[str, Any], count: int) -> None:
    """A clips table with `columns`; the others are null."""
    table = {field.name: columns.get(field.name, pa.nulls(count, field.type)) for field in CLIPS}
    write_table(pa.table(table), path, CLIPS)


def write_assignments(path: Path, clip_ids: pa.Array, cluster: np.ndarray, random: np.random.Generator) -> None:
    count = len(clip_ids)
    columns = {"clip_id": clip_ids, "cluster": cluster, "coarse_cluster": np.zeros(count, np.int32), "similarity": random.random(count), "novel": np.zeros(count, bool)}
    write_table(pa.table(columns), path, ASSIGNMENTS)


def measure(root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds and peak memory of one selection in this process, with what came out."""
    config = SelectionConfig(**options)
    folder = Path(tempfile.mkdtemp(dir=root))
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.process_time()
    summary = build_selection(folder, root / "distinct", root / "clusters", root / "targets", config=config)
    cpu_s = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF)
    report = json.loads((folder / "distribution.json").read_text())
    return {
        "cpu_s": cpu_s, "peak_gb": peak.ru_maxrss / 2**20, "before_gb": before.ru_maxrss / 2**20, "clips": summary["clips"], "rounds": report["rounds"],
        "residual": report["residual"], "draws": sum(int(times) * many for times, many in report["repeats"].items()), "faults": sorted(failed(check_selection(folder))),
        "mb": (folder / "selection.parquet").stat().st_size / 1e6,
    }  # fmt: skip


def rowwise(root: Path) -> dict[str, Any]:
    """The paper's formula over rows of Python values, for the ratio."""
    started = time.process_time()
    clips = read_table(root / "distinct" / "clips.parquet", CLIPS).to_pylist()
    cluster = read_table(root / "clusters" / "assignments.parquet", ASSIGNMENTS).column("cluster").to_pylist()
    targets = read_table(root / "targets" / "clips.parquet", CLIPS).to_pylist()
    target_cluster = read_table(root / "clusters" / "target_assignments.parquet", ASSIGNMENTS).column("cluster").to_pylist()
    hits: dict[str, dict[int, int]] = {name: {} for name in TARGETS}
    for clip, number in zip(targets, target_cluster, strict=True):
        name, split = clip["source"].split("/")
        if split == "train":
            hits[name][number] = hits[name].get(number, 0) + 1
    demand: dict[int, float] = {}
    for name, weight in TARGETS.items():
        for number, count in hits[name].items():
            demand[number] = demand.get(number, 0.0) + weight * count / sum(hits[name].values())
    sizes: dict[int, int] = {}
    for number in cluster:
        sizes[number] = sizes.get(number, 0) + 1
    rows = [
        {"clip_id": clip["clip_id"], "video_id": clip["video_id"], "cluster": number, "weight": demand[number] / sizes[number]}
        for clip, number in zip(clips, cluster, strict=True)
        if demand.get(number, 0.0) > 0
    ]
    write_table(table_of(SELECTION, rows), root / "rowwise.parquet", SELECTION)
    return {"cpu_s": time.process_time() - started, "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "clips": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--clusters", type=int, default=10_000)
    parser.add_argument("--rowwise", action="store_true")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(rowwise(asked.root) if asked.case == "rowwise" else measure(asked.root, json.loads(asked.case))))
        return
    with tempfile.TemporaryDirectory(prefix="tubelet-retrieval-") as folder:
        root = Path(folder)
        make_pool(root, asked.clips, asked.clusters)
        print(f"{asked.clips:,} clips in {asked.clusters:,} clusters, {TARGET_CLIPS:,} target clips; tables read and selection.parquet written")
        print(f"{'case':48} {'CPU s':>6} {'peak GB':>8} {'clips':>9} {'rounds':>7} {'residual':>9}")
        cases = {name: json.dumps(_sized(options, asked.clips)) for name, options in CASES.items()}
        for name, case in {**cases, **({"row by row, no report": "rowwise"} if asked.rowwise else {})}.items():
            found = in_own_process(root, case)
            solved = f"{found['rounds']:7} {found['residual']:9.1e}" if "rounds" in found else ""
            print(f"{name:48} {found['cpu_s']:6.2f} {found['peak_gb']:8.2f} {found['clips']:9,} {solved}", flush=True)


def _sized(options: dict[str, Any], clips: int) -> dict[str, Any]:
    return {**options, "size": int(options["size"] * clips)} if "size" in options else options


def in_own_process(root: Path, case: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.curation_retrieval", "--root", str(root), "--case", case]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    found: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
