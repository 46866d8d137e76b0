"""Duplicates of a large made-up pool: CPU seconds, peak memory, and how many planted copies are found.

    python -m benchmarks.curation_duplicates [--rows 100000 --scenes 25000]

The pool has `rows` x 384 vectors and looks of many scenes (four clips each where not told otherwise), each clip with a motion
of its own; one clip in fifty is a darker, noisier copy of another. The whole stage runs on one thread in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.curation_clustering import table
from benchmarks.timing import machine
from pipelines.curation.duplicates import DuplicatesConfig, build_distinct
from pipelines.curation.embedding import unit_rows
from pipelines.curation.neighbours import SearchConfig
from pipelines.schemas import CLIPS, REMOVALS, read_table, write_table
from pipelines.sources.targets import build_no_targets
from pipelines.video.fingerprint import CELLS, PICTURES

DIMENSIONS, CHUNK = 384, 2000
COPY_EVERY = 50
BLOBS = 3
MIB = 1024.0

Looks = NDArray[np.uint8]
Vectors = NDArray[np.float32]


def made_chunk(random: np.random.Generator, scene: NDArray[np.int64], backs: Vectors, centres: Vectors) -> tuple[Looks, Vectors]:
    """Looks (N, 8, 24, 24) and vectors (N, 384): the scene's background with blobs that go their own ways over it."""
    count = len(scene)
    cells, time_s = np.arange(CELLS, dtype=np.float32), np.linspace(0, 3, PICTURES, dtype=np.float32)
    looks = np.repeat(backs[scene][:, None], PICTURES, axis=1)
    for _ in range(BLOBS):
        middle, sway, turn, phase = random.uniform((6, 3, 0.5, 0), (18, 7, 4, 7), (count, 2, 4)).astype(np.float32).transpose(2, 0, 1)
        place = middle[..., None] + sway[..., None] * np.sin(turn[..., None] * time_s + phase[..., None])  # (N, 2, 8)
        spread = np.exp(-((cells - place[..., None]) ** 2) / 4)  # (N, 2, 8, 24)
        looks += 120 * spread[:, 0, :, :, None] * spread[:, 1, :, None, :]
    noise = random.standard_normal((count, DIMENSIONS), np.float32)
    return looks.clip(0, 255).astype(np.uint8), unit_rows(centres[scene] + 0.6 * noise)


def copies_of(random: np.random.Generator, looks: Looks, vectors: Vectors) -> tuple[Looks, Vectors]:
    darker = looks * np.float32(0.92) + 4 + random.normal(0, 1.5, looks.shape).astype(np.float32)
    return darker.clip(0, 255).astype(np.uint8), unit_rows(vectors + 0.01 * random.standard_normal(vectors.shape, np.float32))


def write_pool(root: Path, rows: int, scenes: int) -> None:
    """Artefacts of `rows` clips, of which every fiftieth copies the one before it in its chunk, and of no targets."""
    random = np.random.default_rng(0)
    waves = random.normal(size=(scenes, 4, 3)).astype(np.float32)
    down, across = np.mgrid[0:CELLS, 0:CELLS].astype(np.float32)
    backs = 120 + 35 * sum(wave[:, 0, None, None] * np.sin(down / 3 * wave[:, 1, None, None] + across / 4 * wave[:, 2, None, None]) for wave in waves.transpose(1, 0, 2))
    centres = random.standard_normal((scenes, DIMENSIONS), np.float32)
    folder = root / "pool"
    folder.mkdir()
    all_vectors = np.lib.format.open_memmap(folder / "embeddings.npy", "w+", np.float32, (rows, DIMENSIONS))
    all_looks = np.lib.format.open_memmap(folder / "looks.npy", "w+", np.uint8, (rows, PICTURES, CELLS, CELLS))
    for start in tqdm(range(0, rows, CHUNK), desc="making clips", unit_scale=CHUNK, unit=" clips", disable=None):
        stop = min(rows, start + CHUNK)
        looks, vectors = made_chunk(random, random.integers(0, scenes, stop - start), backs, centres)
        copies = np.arange(COPY_EVERY - 1, stop - start, COPY_EVERY)
        looks[copies], vectors[copies] = copies_of(random, looks[copies - 1], vectors[copies - 1])
        all_looks[start:stop], all_vectors[start:stop] = looks, vectors
    all_looks.flush()
    all_vectors.flush()
    clip_ids = [f"{row:020x}" for row in range(rows)]
    (folder / "clip_ids.json").write_text(json.dumps(clip_ids))
    (folder / "encoder.json").write_text(json.dumps({"name": "made up", "digest": "made up"}))
    columns: dict[str, Any] = {
        "clip_id": pa.array(clip_ids), "video_id": pa.array([f"v{row:020x}" for row in range(rows)]), "path": pa.array([f"/videos/{row:08d}.mp4" for row in range(rows)]),
        "start_s": pa.repeat(0.0, rows), "end_s": pa.repeat(5.0, rows), "width": pa.repeat(640, rows), "height": pa.repeat(360, rows), "source": pa.repeat("pool", rows),
    }  # fmt: skip
    columns = {field.name: columns.get(field.name, pa.nulls(rows, field.type)) for field in CLIPS}
    write_table(pa.table(columns).cast(CLIPS), folder / "clips.parquet", CLIPS)
    targets = root / "targets"
    targets.mkdir()
    build_no_targets(targets)
    np.save(targets / "embeddings.npy", np.empty((0, DIMENSIONS), np.float32))
    (targets / "clip_ids.json").write_text("[]")
    (targets / "encoder.json").write_text(json.dumps({"name": "made up", "digest": "made up"}))


def status_mib(name: str) -> float:
    """One line of this process' memory (Linux), MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / MIB


def stage(root: Path, neighbours: int) -> None:
    """What the process of its own does: one stage, and a line of JSON on what it took."""
    own, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            own[0] = max(own[0], status_mib("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    (root / "made").mkdir()
    config = DuplicatesConfig(search=SearchConfig(neighbours=neighbours, by_fingerprint=max(1, neighbours // 2)))
    started = time.process_time()
    summary = build_distinct(root / "made", {"pool": (root / "pool", root / "pool")}, root / "targets", root / "targets", config, progress=_bar())
    cpu_s = time.process_time() - started
    done.set()
    told = {"cpu_s": cpu_s, "own_gib": own[0] / MIB, "peak_gib": status_mib("VmHWM") / MIB}
    print(json.dumps({**told, "removed": summary["removed"], "pairs": summary["pairs"]}))


def _bar() -> Any:
    bar = tqdm(desc="distinct clips", unit=" clips", unit_scale=True, disable=None)

    def heard(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return heard


def found_copies(root: Path, rows: int) -> tuple[int, int, int]:
    """(planted copies, those of them told as a pair, other pairs)."""
    removals = read_table(root / "made" / "removals.parquet", REMOVALS, columns=["clip_id", "twin_id"])
    pairs = {tuple(sorted(pair)) for pair in zip(removals.column("clip_id").to_pylist(), removals.column("twin_id").to_pylist(), strict=True)}
    starts = np.arange(0, rows, CHUNK)
    copies = np.concatenate([np.arange(start + COPY_EVERY - 1, min(rows, start + CHUNK), COPY_EVERY) for start in starts])
    planted = {(f"{row - 1:020x}", f"{row:020x}") for row in copies.tolist()}
    return len(planted), len(planted & pairs), len(pairs - planted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--scenes", type=int, help="a quarter of the rows where not given")
    parser.add_argument("--neighbours", type=int, default=SearchConfig().neighbours, help="few of them make a look at memory short")
    parser.add_argument("--stage-in", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage_in is not None:
        stage(options.stage_in, options.neighbours)
        return
    print(", ".join(f"{key} {value}" for key, value in machine().items() if key != "threads") + ", 1 thread")
    scenes = options.scenes or options.rows // 4
    with tempfile.TemporaryDirectory(prefix="tubelet-benchmark-") as root:
        write_pool(Path(root), options.rows, scenes)
        command = [sys.executable, "-m", "benchmarks.curation_duplicates", "--stage-in", root, "--neighbours", str(options.neighbours)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        told = json.loads(answer.stdout.splitlines()[-1])
        planted, found, others = found_copies(Path(root), options.rows)
    print(f"\ndistinct clips: {options.rows:,} x {DIMENSIONS}, {scenes:,} scenes, {options.neighbours} neighbours, {planted:,} planted copies")
    header = ["", "CPU s", "ms a clip", "own memory GiB", "with mapped files", "copies found", "other pairs"]
    values = [f"{told['cpu_s']:.0f}", f"{1e3 * told['cpu_s'] / options.rows:.2f}", f"{told['own_gib']:.2f}", f"{told['peak_gib']:.2f}", f"{found / planted:.4f}", str(others)]
    table(header, [["build_distinct", *values]])
    print("Pages of mapped files count only until the system wants them back; own memory is what the stage cannot do without.")


if __name__ == "__main__":
    main()
