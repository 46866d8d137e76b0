"""What a batch of new clips costs on a frozen codebook, as the pool behind it grows: it should follow the batch alone.

    python -m benchmarks.curation_increment                     20,000 clips a batch, 384 dimensions, 1,000 leaves, ten batches
    python -m benchmarks.curation_increment --clips 5000 --batches 4

Two contestants in one run, batch by batch: the increment, and the whole pool assigned and counted from scratch, as a stage
without memory must. Only the increment measures drift and draws its pictures, which is told apart. CPU seconds of this
process; BLAS and FAISS on one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.curation import increment, pictures
from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.drift import DriftConfig
from pipelines.curation.hierarchy import ClustersConfig
from pipelines.curation.leaf_statistics import LeafStatistics
from pipelines.identity import digest_of
from pipelines.parts import cpu_seconds
from pipelines.schemas import CLIPS, write_table

TARGETS = 2000
PER_VIDEO = 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--clips", type=int, default=20_000, help="clips in the first fit and in every batch")
    arguments.add_argument("--dimensions", type=int, default=384)
    arguments.add_argument("--leaves", type=int, default=1000)
    arguments.add_argument("--batches", type=int, default=10)
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tubelet-increment-") as folder:
        rows = run(Path(folder), options)
    new = options.clips
    print(f"\n{new:,} new clips a batch, {options.dimensions} dimensions, {options.leaves:,} leaves; CPU seconds, {os.cpu_count()} cores seen")
    print("batch   clips in the pool   drift and pictures   increment without   from scratch   ratio")
    for number, (clips, extra, rest, scratch) in enumerate(rows):
        print(f"{number + 1:5d}   {clips:17,d}   {extra:18.2f}   {rest:17.2f}   {scratch:12.2f}   {scratch / rest:5.1f}")
    columns = np.array(rows).T
    print("CPU a batch against clips in the pool, least squares:")
    for name, cost in zip(("drift and pictures", "increment without", "from scratch"), columns[1:], strict=True):
        slope, start = np.polyfit(columns[0] - new, cost, 1)
        print(f"  {name:18s}   {start:5.2f} s, and {1e6 * slope:+5.1f} us for every clip that was there before")


class Watch:
    """CPU seconds spent in functions that it is put around, as long as they are called from their module."""

    def __init__(self, *functions: tuple[ModuleType, str]) -> None:
        self.seconds = 0.0
        for module, name in functions:
            setattr(module, name, self._around(getattr(module, name)))

    def _around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **options: Any) -> Any:
            before = cpu_seconds()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds += cpu_seconds() - before

        return watched


def run(root: Path, options: argparse.Namespace) -> list[tuple[int, float, float, float]]:
    """(clips in the pool, CPU s of drift and pictures, of the rest of the increment, and from scratch) of every batch."""
    watch = Watch((increment, "measure"), (increment, "target_drift"), (increment, "draw_drift"), (pictures, "draw_cluster_map"))
    random = np.random.default_rng(0)
    concepts = _unit(random.normal(size=(options.leaves, options.dimensions)))
    targets = _targets(root, concepts, random)
    # Growth would have the codebook fitted again; here it is to be kept.
    drift, clusters = DriftConfig(on_drift="keep"), ClustersConfig(levels=(options.leaves, 30), rounds=(0,), iterations=10)
    ids: list[tuple[str, str]] = []
    vectors = np.empty((0, options.dimensions), np.float32)
    previous: Path | None = None
    rows = []
    for batch in range(options.batches + 1):
        videos = random.integers(len(concepts), size=-(-options.clips // PER_VIDEO)).repeat(PER_VIDEO)[: options.clips]
        drawn = _unit(concepts[videos] + random.normal(size=(len(videos), options.dimensions)) / np.sqrt(options.dimensions))
        ids += [(digest_of([batch, row], 20), digest_of(["video", batch, row // PER_VIDEO], 20)) for row in range(len(videos))]
        vectors = np.concatenate([vectors, drawn])
        distinct = _distinct(root, ids, vectors)
        folder = root / f"clusters-{batch}"
        folder.mkdir()
        before, watch.seconds = cpu_seconds(), 0.0
        increment.update_clusters(folder, previous, distinct, *targets, clusters, drift)
        spent = cpu_seconds() - before
        if previous is not None:
            before = cpu_seconds()
            _from_scratch(folder, distinct)
            rows.append((len(ids), watch.seconds, spent - watch.seconds, cpu_seconds() - before))
            print(f"batch {batch}: {spent:.2f} s", flush=True)
        previous = folder
    return rows


def _from_scratch(folder: Path, distinct: Path) -> None:
    """Every clip of the pool assigned to the codebook and counted again."""
    leaves = Codebook.load(folder).leaves
    vectors = np.load(distinct / "embeddings.npy", mmap_mode="r")
    found = nearest_leaf(np.asarray(vectors), leaves)
    LeafStatistics.empty(*leaves.shape).add(vectors, found.leaf, (1 - found.cosine).astype(np.float32))


def _unit(vectors: Any) -> Any:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def _embedded(folder: Path, ids: list[tuple[str, str]], vectors: Any, source: str) -> None:
    columns: dict[str, Any] = {"clip_id": [clip for clip, _ in ids], "video_id": [video for _, video in ids], "source": [source] * len(ids)}
    table = pa.table({field.name: pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(len(ids), field.type) for field in CLIPS})
    write_table(table, folder / "clips.parquet", CLIPS)
    np.save(folder / "embeddings.npy", vectors)
    (folder / "clip_ids.json").write_text(json.dumps(columns["clip_id"]))
    (folder / "encoder.json").write_text(json.dumps({"name": "synthetic", "digest": "synthetic"}))


def _distinct(root: Path, ids: list[tuple[str, str]], vectors: Any) -> Path:
    folder = root / "distinct"
    folder.mkdir(exist_ok=True)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    _embedded(folder, [ids[row] for row in order], vectors[order], "pool")
    return folder


def _targets(root: Path, concepts: Any, random: np.random.Generator) -> tuple[Path, Path]:
    folder = root / "targets"
    folder.mkdir()
    ids = [(digest_of(["target", row], 20), digest_of(["target", row], 20)) for row in range(TARGETS)]
    drawn = _unit(concepts[random.integers(len(concepts), size=TARGETS)] + random.normal(size=(TARGETS, concepts.shape[1])) / np.sqrt(concepts.shape[1]))
    _embedded(folder, ids, drawn, "targets/train")
    (folder / "targets.json").write_text(json.dumps([{"name": "targets", "weight": 1.0}]))
    return folder, folder


if __name__ == "__main__":
    main()
