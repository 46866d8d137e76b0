"""A training that is killed again and again: what the test and the long campaign share."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import conftest
import numpy as np
import psutil
from safetensors.torch import load_file

from pipelines import schemas
from pipelines.pretraining.result import read_metrics
from pipelines.pretraining.spec import write_spec
from pipelines.recipes import Recipe, load_recipe
from pipelines.shards.cutting import ShardConfig
from pipelines.shards.writer import build_shards
from pipelines.training import checkpoint
from pipelines.video.encode import write_video

ROOT = Path(__file__).parents[2]
WEIGHTS = ("encoder", "target_encoder", "predictor", "optimizer")
EVERY = 5
SUPERVISOR = """
import sys
from pathlib import Path
from pipelines.training.launcher import distributed_jobs, launch
work, ranks = Path(sys.argv[1]), int(sys.argv[2])
jobs = distributed_jobs("pipelines.pretraining.run", ["--spec", str(work / "spec.json")], ranks)
sys.exit(max(launch(jobs, cwd=Path.cwd(), work_folder=work, on_line=lambda line: print(line, flush=True), grace_s=2)))
"""


def textured_shards(folder: Path) -> Path:
    """Shards of clips in which something moves: grey ones have gradients of rounding's size, which AdamW makes large."""
    clips = folder / "clips"
    clips.mkdir(parents=True)
    random = np.random.default_rng(5)
    rows = []
    for number in range(8):
        wide = np.kron(random.integers(0, 256, (6, 40, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
        frames = np.stack([wide[:, 2 * moment : 2 * moment + 64] for moment in range(75)])
        path = clips / f"{number}.mp4"
        write_video(path, frames, 25.0)
        rows += conftest.clip_rows(path, f"video-{number}", 75, 25.0)
    chosen = [{"clip_id": row["clip_id"], "video_id": row["video_id"], "cluster": 0, "weight": 1.0, "target": "t", "uniform_weight": 1.0} for row in rows]
    schemas.write_table(schemas.table_of(schemas.CLIPS, rows), clips / "clips.parquet", schemas.CLIPS)
    schemas.write_table(schemas.table_of(schemas.SELECTION, chosen), clips / "selection.parquet", schemas.SELECTION)
    (folder / "shards").mkdir()
    build_shards(folder / "shards", clips, clips, config=ShardConfig(short_side=48, shard_bytes=100_000), progress=lambda *_: None)
    return folder / "shards"


def spec_in(work: Path, shards: Path, steps: int) -> Path:
    """A phase of `steps` steps with a checkpoint every `EVERY`."""
    recipe = load_recipe("smoke").resolved()
    recipe["pretraining"]["pretrain"] |= {
        "steps": steps, "checkpoint_every": EVERY, "height": 48, "width": 48,
        "learning_rate": {"start": 1e-5, "peak": 1e-4, "final": 1e-5, "warmup_steps": 5, "shape": "cosine"},
    }  # fmt: skip
    return write_spec(work, Recipe.model_validate(recipe), "pretrain", shards, work / "store")


class Attempt:
    """One start of a training on `ranks` ranks, with its supervisor, guardians and trainers."""

    def __init__(self, work: Path, ranks: int) -> None:
        self.work = work
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", SUPERVISOR, str(work), str(ranks)]
        self.log = work / f"attempt-{len(list(work.glob('attempt-*')))}.log"
        with open(self.log, "w") as log:
            self.process = psutil.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def trainers(self) -> list[psutil.Process]:
        return [process for process in self._below() if "pipelines.pretraining.run" in process.cmdline() and "guardian.py" not in " ".join(process.cmdline())]

    def kill(self, who: str, rank: int = 0) -> bool:
        """SIGKILL to everything, the supervisor, or one rank's trainer; waits until nothing is left. False when it had ended."""
        try:
            below = self._below()
            if self.process.poll() is not None:
                return False
            victims = {"all": [self.process, *below], "supervisor": [self.process], "rank": self.trainers()[rank : rank + 1]}[who]
            for victim in victims:
                victim.kill()
        except psutil.NoSuchProcess:
            return False
        self.process.wait(timeout=60)
        _, alive = psutil.wait_procs(below, timeout=30)
        assert not alive, f"orphans: {alive}"
        return True

    def finish(self) -> None:
        assert self.process.wait(timeout=600) == 0, self.log.read_text()[-3000:]

    def began_at(self) -> int | None:
        """The step of the checkpoint that the log says it went on from; None when it does not say so."""
        found = re.findall(r"going on from the checkpoint of step (\d+)", self.log.read_text())
        return int(found[-1]) if found else None

    def _below(self) -> list[psutil.Process]:
        try:
            return self.process.children(recursive=True)
        except psutil.NoSuchProcess:
            return []


def last_step(work: Path) -> int:
    rows = read_metrics(work / "metrics.jsonl")
    return int(rows[-1]["step"]) if rows else 0


def newest_whole(work: Path) -> int:
    """Step of the newest checkpoint whose bytes are the listed ones, looked at without touching anything; 0 without one."""
    whole = [path for path in (work / "checkpoints").glob("step-*") if not checkpoint.verify(path)]
    return max((checkpoint.step_of(path) for path in whole), default=0)


def wait_for_step(attempt: Attempt, step: int) -> None:
    while attempt.process.poll() is None and last_step(attempt.work) < step:
        time.sleep(0.005)


def wait_for_save(attempt: Attempt) -> bool:
    """Wait until a checkpoint is being written; whether one is."""
    while attempt.process.poll() is None:
        if any((attempt.work / "checkpoints").glob(".draft-*")):
            return True
        time.sleep(0.0005)
    return False


def losses(work: Path) -> list[float]:
    return [row["loss"] for row in read_metrics(work / "metrics.jsonl")]


def largest_difference(first: Path, second: Path) -> float:
    """Over all weights and moments of two results; inf when their names differ."""
    worst = 0.0
    for name in WEIGHTS:
        ours, theirs = load_file(first / f"{name}.safetensors"), load_file(second / f"{name}.safetensors")
        if ours.keys() != theirs.keys():
            return float("inf")
        worst = max(worst, *(float((value - theirs[key]).abs().max()) for key, value in ours.items()))
    return worst


def summary(work: Path) -> dict[str, object]:
    return dict(json.loads((work / "result" / "state.json").read_text())["summary"])
