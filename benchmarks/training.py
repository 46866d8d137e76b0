"""A whole training step, loader included, beside the official trainer's on the same clips: CPU time and wall time.

    PYTHONPATH=FOLDER python benchmarks/training.py VIDEOS --official CHECKOUT [--only CASE] [--rounds 9] [--threads 1] [--json FILE]

VIDEOS is a folder with videos, CHECKOUT one of facebookresearch/vjepa2, FOLDER holds decord and pandas, which its dataset needs.
From the videos a long film is made, clips of ten seconds of it are cut into our shards, and the same mp4 files are written down for their dataset.
Ours is the program itself (`pipelines.pretraining.run`, one process) with its metrics on; no checkpoint falls due. Parity comes
first: three steps of the program and three of theirs, on the same clips and masks, give the same losses and weights.

Each contestant is a process of its own and they take turns of a few steps. In a turn's CPU time are all threads and worker processes,
whatever they did ahead since the turn before. Both sides draw masks of their own and pay for it, then train on ours, so that in
every step both have the same tokens. Parts of a step are CPU time of the thread that trains.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import pkgutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Started as a script, this folder comes first on the path, and benchmarks/models.py would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.joined_clips import duration_s
from benchmarks.loader import CLIP_S, RATE, clip_table, make_film
from benchmarks.official_step import OfficialStep, official_batches
from benchmarks.subjects import training_recipe
from benchmarks.timing import Result, header, lines, machine, write_json
from models.preprocessing import normalise
from pipelines.errors import InputError
from pipelines.pretraining import run as program
from pipelines.pretraining.clips import Clips
from pipelines.pretraining.masks import sample_masks
from pipelines.pretraining.spec import Spec, read_spec, write_spec
from pipelines.recipes import Recipe
from pipelines.shards.cutting import ShardConfig
from pipelines.shards.geometry import ClipGeometry
from pipelines.shards.index import ShardIndex
from pipelines.shards.loader import Batch, ClipLoader, Reading
from pipelines.shards.mixture import WHOLE, open_mixture
from pipelines.shards.writer import build_shards
from pipelines.training.guard import Stopped, StopRequest

OURS = {"ours": False, "ours, torch linears": True}
"""Without the kernel that models/linear.py chooses: what it gives depends on the processor, so it is told apart."""
OFFICIAL = {"official, 1 worker": 1, "official, no worker": 0}
PARTS = ("data", "masks", "teacher", "student and predictor", "backward", "optimizer", "average", "health", "rest", "background")
PARITY_STEPS = 3
ENOUGH = 1_000_000  # steps: more than any benchmark runs
SAME_LOSS, SAME_WEIGHTS = 1e-5, 1e-4
READING = Reading(workers=1, prefetch=2, cache_bytes=0)  # a data set that fits into memory is not what is measured


@dataclass(frozen=True, kw_only=True)
class Case:
    """Networks and clips. `short_side` px of the stored clips; a turn has `steps` steps; `share` of the rounds asked for."""

    encoder: dict[str, int]
    predictor: dict[str, int]
    pixels: int
    frames: int
    batch: int
    short_side: int
    steps: int
    share: float = 1.0

    def recipe(self, steps: int, **options: Any) -> Recipe:
        return training_recipe(
            self.encoder, self.predictor, pixels=self.pixels, frames=self.frames, batch=self.batch, steps=steps, **options
        )


SMALL = {"embed_dim": 384, "depth": 12, "num_heads": 6}
PREDICTOR = {"predictor_embed_dim": 384, "depth": 12, "num_heads": 12}
CASES = {
    "ViT-S 96 px 8 f B=2": Case(encoder=SMALL, predictor=PREDICTOR, pixels=96, frames=8, batch=2, short_side=112, steps=2),
    "ViT-S 96 px 8 f B=4": Case(encoder=SMALL, predictor=PREDICTOR, pixels=96, frames=8, batch=4, short_side=112, steps=1),
    "ViT-S 256 px 16 f B=1": Case(encoder=SMALL, predictor=PREDICTOR, pixels=256, frames=16, batch=1, short_side=256, steps=1, share=0.6),
    "nano 80 px 8 f B=16": Case(encoder={}, predictor={}, pixels=80, frames=8, batch=16, short_side=112, steps=4),
    "nano 256 px 16 f B=4": Case(encoder={}, predictor={}, pixels=256, frames=16, batch=4, short_side=256, steps=2),
}
"""ViT-S with the paper's predictor; and the nano recipe's networks, which leave the loader the larger part."""


Bill = dict[str, float]


class Meter:
    """What a contestant's turn costs, in s: wall time, CPU time of the process and its workers, and the parts' CPU time in this thread."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = defaultdict(float)
        self._waited, self._inner = 0.0, [0.0]
        self._cpu, self._thread, self._wall = tree_seconds(), time.thread_time(), time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this part, but for parts of its own."""
        start, wall = time.thread_time(), time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.thread_time() - start
            self.parts[name] += spent - self._inner.pop()
            self._inner[-1] += spent
            self._waited += (time.perf_counter() - wall) * (name == "data")

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            with self.part(name):
                return function(*values, **named)

        return call

    def turns(self, connection: Connection) -> Iterator[int]:
        """Numbers of the steps that are asked for, from 0; a turn's bill is sent when its last step is over."""
        step = 0
        while count := _asked(connection):
            self.parts.clear()
            self._waited, self._wall = 0.0, time.perf_counter()
            for step in range(step, step + count):  # noqa: B020
                yield step
            step += 1
            connection.send(self._bill())

    def _bill(self) -> Bill:
        wall = time.perf_counter() - self._wall
        cpu, thread = tree_seconds(), time.thread_time()
        bill = {"wall": wall, "cpu": cpu - self._cpu, "waited": self._waited, **self.parts}
        bill["rest"] = thread - self._thread - sum(self.parts.values())
        bill["background"] = bill["cpu"] - (thread - self._thread)
        self._cpu, self._thread = cpu, thread
        return bill


def _asked(connection: Connection) -> int:
    """How many steps are wanted; none any more when whoever asks has gone."""
    try:
        return int(connection.recv())
    except EOFError:
        return 0


def tree_seconds() -> float:
    """CPU seconds of this process and of its workers so far."""
    children = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + sum(times.user + times.system for times in children)


def ours(spec_path: Path, torch_linears: bool, connection: Connection) -> None:
    """The program, step by step."""
    meter = Meter()

    class Turns(Clips):
        def batches(self, start: int, stop: int) -> Iterator[Batch]:
            supply = super().batches(start, stop)
            for _ in meter.turns(connection):
                with meter.part("data"):
                    batch = next(supply)
                yield batch
            raise Stopped("the last round is over")

    with ExitStack() as stack:
        stack.enter_context(patch.object(program, "Clips", Turns))
        if torch_linears:
            stack.enter_context(patch("models.linear._takes_onednn", return_value=False))
        for place, name in {
            "pipelines.pretraining.task.sample_masks": "masks", "pipelines.pretraining.task.normalise": "data",
            "pipelines.pretraining.task.target_tokens": "teacher", "pipelines.pretraining.task.strategy_losses": "student and predictor",
            "pipelines.pretraining.task.update_": "average", "pipelines.pretraining.watch.Watch.measure": "health",
            "pipelines.training.engine.PlainEngine.__call__": "student and predictor", "pipelines.training.engine.PlainEngine.backward": "backward",
            "pipelines.training.engine.PlainEngine.step": "optimizer",
        }.items():  # fmt: skip
            stack.enter_context(patch(place, meter.timed(name, pkgutil.resolve_name(place))))
        try:
            program.run(read_spec(spec_path), StopRequest())
        except Stopped:
            return


def official(spec_path: Path, table: Path, checkout: Path, workers: int, masked: int, connection: Connection) -> None:
    """Their step on their data, `masked` steps at most."""
    spec, meter = read_spec(spec_path), Meter()
    torch.set_num_threads(spec.threads)
    shape, phase = spec.recipe.encoder, spec.settings
    step = OfficialStep(checkout, program.build_student(spec.recipe, phase), phase)
    masks = [masks_of(spec, number) for number in range(masked)]
    batches = official_batches(checkout, table, phase, shape.patch_size, shape.tubelet_size, workers, meter.part)
    logger = importlib.import_module("src.utils.logging")
    columns = (("%d", "epoch"), ("%d", "itr"), ("%.5f", "loss"), ("%d", "iter-time(ms)"), ("%d", "gpu-time(ms)"), ("%d", "dataload-time(ms)"))
    rows, average = logger.CSVLogger(str(spec_path.with_suffix(f".{workers}.csv")), *columns), logger.AverageMeter()
    for number in meter.turns(connection):
        started = time.time()
        with meter.part("data"):
            clips, _, _ = next(batches)
        waited = time.time() - started
        loss = step(list(clips), *([ids] for ids in masks[number]), part=meter.part)
        average.update(loss)
        rows.log(1, number, loss, 1e3 * (time.time() - started), -1.0, 1e3 * waited)


def masks_of(spec: Spec, step: int) -> tuple[list[Tensor], list[Tensor]]:
    """Context and target ids of each strategy at a step of the program."""
    phase, shape = spec.settings, spec.recipe.encoder
    grid = (phase.frames // shape.tubelet_size, phase.height // shape.patch_size, phase.width // shape.patch_size)
    masks = sample_masks(
        phase.masks, grid, seed=spec.recipe.seed, phase=spec.phase, step=step, global_batch=phase.global_batch,
        truncation=spec.recipe.pretraining.mask_truncation,
    )  # fmt: skip
    return [mask.context_ids for mask in masks], [mask.target_ids for mask in masks]


def parity(case: Case, shards: Path, folder: Path, checkout: Path) -> str:
    """Asserts that the program's first steps are the official ones: losses, and how far all weights have moved."""
    logging.disable(logging.INFO)
    # With the paper's momentum the target moves by hardly more than float32 can tell.
    path = write_spec(folder, case.recipe(PARITY_STEPS, ema=(0.9, 0.9)), "pretrain", shards, folder / "store", reading=READING)
    spec = read_spec(path)
    phase = spec.settings
    program.run(spec, StopRequest())
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in found if "loss" in row}
    student = program.build_student(spec.recipe, phase)
    step = OfficialStep(checkout, student, phase)
    loader = ClipLoader(
        open_mixture(WHOLE, shards), ClipGeometry.of_phase(phase), seed=spec.recipe.seed, phase=spec.phase, global_batch=phase.global_batch, reading=READING
    )  # fmt: skip
    worst = 0.0
    for number in range(PARITY_STEPS):
        theirs = step([normalise(loader.batch(number).video)], *([ids] for ids in masks_of(spec, number)))
        worst = max(worst, abs(losses[number + 1] / theirs - 1))
    assert worst <= SAME_LOSS, f"losses differ by {worst:.1e}"
    apart = 0.0
    for name, network, before in (
        ("encoder", step.encoder, student.encoder), ("predictor", step.predictor, student.predictor), ("target_encoder", step.target, student.encoder),
    ):  # fmt: skip
        weights, start = load_file(spec.result / f"{name}.safetensors"), before.state_dict()
        moved = {key: value - start[key] for key, value in network.backbone.state_dict().items()}
        difference = _norm([weights[key] - start[key] - value for key, value in moved.items()]) / _norm(list(moved.values()))
        apart = max(apart, difference)
        assert difference <= SAME_WEIGHTS, f"{name}: after {PARITY_STEPS} steps apart by {difference:.1e} of the way"
    return f"{PARITY_STEPS} steps: losses {worst:.0e}, weights {apart:.0e} of their way"


def _norm(tensors: Sequence[Tensor]) -> float:
    return float(torch.stack([tensor.double().norm() for tensor in tensors]).norm())


def hold_case(
    case: Case, contestants: Sequence[str], folder: Path, shards: Path, table: Path, checkout: Path, threads: int, rounds: int
) -> dict[str, list[Bill]]:
    """Bills of every round by contestant, in s a step; the first round is warm-up and left out."""
    context = multiprocessing.get_context("spawn")
    masked = case.steps * (rounds + 1)
    connections: dict[str, Connection] = {}
    processes = []
    for name in contestants:
        spec = write_spec(
            folder / name.replace(" ", "-"), case.recipe(ENOUGH), "pretrain", shards, folder / "store", threads=threads, reading=READING
        )  # fmt: skip
        connections[name], end = context.Pipe()
        target, arguments = (ours, (spec, OURS[name], end)) if name in OURS else (official, (spec, table, checkout, OFFICIAL[name], masked, end))
        process = context.Process(target=target, args=arguments, name=name)
        process.start()
        end.close()
        processes.append(process)
    bills: dict[str, list[Bill]] = {name: [] for name in connections}
    for _ in range(rounds + 1):
        for name, connection in connections.items():
            connection.send(case.steps)
            bills[name].append({part: seconds / case.steps for part, seconds in connection.recv().items()})
    for connection, process in zip(connections.values(), processes, strict=True):
        connection.send(0)
        process.join()
    return {name: each[1:] for name, each in bills.items()}


def split(bills: dict[str, list[Bill]]) -> str:
    """A table of the parts, ms of CPU time a step, medians; waiting is wall time."""
    table = [f"    {'ms a step':24s}" + "".join(f"{name:>22s}" for name in bills)]
    for part in (*PARTS, "waited"):
        values = [1e3 * statistics.median(bill.get(part, 0.0) for bill in each) for each in bills.values()]
        table.append(f"    {'(wall: wait for data)' if part == 'waited' else part:24s}" + "".join(f"{value:22,.1f}" for value in values))
    return "\n".join(table)


def prepare(videos: Path, short_side: int, clips: int, folder: Path) -> tuple[Path, Path]:
    """Shards of clips out of a film, and a table, as the official dataset reads it, of the same clips as files."""
    shards = folder / f"shards-{short_side}"
    table = shards / "clips.csv"
    if table.is_file():
        return shards, table
    shards.mkdir(parents=True, exist_ok=True)  # one that was interrupted goes on where it stopped
    film = folder / "film.mp4"
    if not film.is_file():
        usable = [path for path in sorted(videos.rglob("*")) if path.suffix in {".mp4", ".mkv", ".webm", ".mov"} and duration_s(path) > 4]
        if not usable:
            raise InputError(f"no videos in {videos}", expected="mp4, mkv, webm or mov of more than 4 s", found="none", remedy="name another folder")
        make_film(usable, film, 480, 270, 60, (clips + 1) * CLIP_S)
        clip_table(film, folder, clips)
    build_shards(shards, folder, folder, config=ShardConfig(short_side=short_side), progress=lambda *_: None)
    index, rows = ShardIndex(shards), []
    for number in range(len(index)):
        stored = index.stored(index.entry(number))
        path = shards / f"{stored.clip_id}.mp4"
        path.write_bytes(stored.data)
        rows.append(f"{path} 0\n")
    table.write_text("".join(rows))
    return shards, table


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("videos", type=Path, help="folder with videos of a few seconds or more each")
    parser.add_argument("--official", type=Path, required=True, help="a checkout of facebookresearch/vjepa2")
    parser.add_argument("--only", choices=list(CASES), action="append", help="a case to run (may be repeated)")
    parser.add_argument("--against", choices=[*OURS, *OFFICIAL][1:], action="append", help="a contestant beside ours (all; each holds its networks)")
    parser.add_argument("--rounds", type=int, default=9, help="of a case with small clips; others take fewer")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1, help="of the networks, on both sides; each loader has one thread or process")
    parser.add_argument("--data", type=Path, help="keep film and shards in this folder, and take them from there the next time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    contestants = [name for name in (*OURS, *OFFICIAL) if name == next(iter(OURS)) or not options.against or name in options.against]
    torch.set_num_threads(options.threads)
    logging.disable(logging.INFO)
    facts, results = machine(), []
    print("machine:", ", ".join(f"{key} {value}" for key, value in facts.items()))
    print(f"clips of {CLIP_S} s at {RATE}/s; GFLOP/s are left out; 'median ms' is a step's")
    print(header(), flush=True)
    with tempfile.TemporaryDirectory(prefix="training-benchmark-") as scratch:
        root = Path(scratch)
        for number, (name, case) in enumerate((name, CASES[name]) for name in options.only or CASES):
            shards, table = prepare(options.videos, case.short_side, options.clips, options.data or root)
            # In a process of its own, whose memory goes back before the contestants need theirs.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                agreed = pool.submit(parity, case, shards, root / f"parity-{number}", options.official).result()
            rounds = max(3, round(options.rounds * case.share))
            bills = hold_case(case, contestants, root / f"run-{number}", shards, table, options.official, options.threads, rounds)
            for clock in ("cpu", "wall"):
                seconds = {contestant: [bill[clock] for bill in each] for contestant, each in bills.items()}
                results.append(Result(name=f"{name}, {clock}", seconds=seconds, parity=agreed))
                print(lines(results[-1]))
            print(split(bills), flush=True)
    if options.json:
        write_json(options.json, facts, results)


if __name__ == "__main__":
    main()
