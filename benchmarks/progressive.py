"""Progressive resolution at nano scale: what it saves and what it costs in quality, over several training seeds.

    python benchmarks/progressive.py SHARDS EPISODES --work FOLDER [--seeds 5] [--steps 600] [--cooldown 60] [--equal-cost] [--json FILE]

SHARDS is a `training_shards` artefact, EPISODES a `robot_episodes` artefact. Every arm takes the same optimizer steps under the nano
recipe's learning-rate curve, on the same clips:

* progressive: pretraining at nano's small size, cooldown at its large one;
* full: both phases at the large size;
* small: both phases at the small size, which says whether size matters here at all;
* equal cost (on request): both phases at the large size, with only as many steps as progressive's FLOPs pay for.

A phase is one run of the real program in one process with one thread, two runs at a time; its cost is the CPU time of that process
less that of a run of a single step, which is start, checkpoint and report. Quality is read off the target encoder by the project's own
probes on episodes that no training saw. A stopped benchmark goes on in the same --work. The default takes HOURS.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch

# Started as a script, this folder comes first on the path, and benchmarks/models.py would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.timing import machine
from models.encoder import VideoEncoder
from models.preprocessing import Preprocess
from models.weights import load_module
from pipelines.episodes.episode import load_episodes
from pipelines.evaluation import features as seen
from pipelines.evaluation.intervals import r2
from pipelines.evaluation.motion import MotionLabels, ridge_scores
from pipelines.evaluation.probes import HELD_SHARE
from pipelines.evaluation.ridge import choose_ridge
from pipelines.posttraining.features import split_episodes
from pipelines.pretraining.cost import phase_cost
from pipelines.pretraining.run import build_student
from pipelines.pretraining.spec import write_spec
from pipelines.recipes import Phase, Recipe, load_recipe

ROOT = Path(__file__).resolve().parent.parent
FIRST_SEED = 101
AT_ONCE = 2
SIZES = ("height", "width", "frames")
METRICS = ("frame R2", "motion signs")
PhaseName = Literal["pretrain", "cooldown"]


@dataclass(frozen=True)
class Training:
    """One phase to run, as a folder; `after` is the training it goes on from."""

    folder: Path
    recipe: Recipe
    phase: PhaseName
    after: Training | None = None

    @property
    def settings(self) -> Phase:
        pretraining = self.recipe.pretraining
        return pretraining.pretrain if self.phase == "pretrain" else pretraining.cooldown

    def flops(self) -> float:
        """Of this phase and of all before it."""
        return phase_cost(self.recipe, self.phase).flops + (self.after.flops() if self.after else 0.0)

    def cpu_s(self, start: float = 0.0) -> float:
        """CPU seconds of this phase and of all before it, `start` less for each."""
        return float(json.loads((self.folder / "cpu.json").read_text())) - start + (self.after.cpu_s(start) if self.after else 0.0)

    def target(self) -> VideoEncoder:
        encoder: VideoEncoder = load_module(self.folder / "result", "target_encoder")
        return encoder.eval()


@dataclass(frozen=True)
class Arms:
    """The trainings of one seed: what to compare, every phase that it takes, each after the one it needs, and a run of one step."""

    compared: dict[str, Training]
    phases: list[Training]
    start: Training

    def cpu_s(self, name: str) -> float:
        """CPU seconds of an arm, all its phases together, without starts."""
        return self.compared[name].cpu_s(self.start.cpu_s())


def arms_of(folder: Path, seed: int, steps: int, cooldown: int, equal_cost: bool) -> Arms:
    """The trainings of `seed`; progressive and small share their first phase, which is the same run."""
    nano = load_recipe("nano")
    low, high = nano.pretraining.pretrain, nano.pretraining.cooldown

    def recipe(first: Phase, second: Phase, share: float = 1.0) -> Recipe:
        """Both phases with their own curves at the sizes of `first` and `second`, and `share` of the steps."""
        counts = (max(1, round(share * steps)), max(1, round(share * cooldown)))
        phases = [
            own.model_copy(update={name: getattr(size, name) for name in SIZES} | {"steps": count, "checkpoint_every": count})
            for own, size, count in zip((low, high), (first, second), counts, strict=True)
        ]
        pretraining = nano.pretraining.model_copy(update={"pretrain": phases[0], "cooldown": phases[1], "ranks": 1})
        return nano.model_copy(update={"seed": seed, "pretraining": pretraining})

    def both(name: str, wanted: Recipe, first: Training | None = None) -> tuple[Training, Training]:
        first = first or Training(folder / f"seed-{seed}" / f"{name}-pretrain", wanted, "pretrain")
        return first, Training(folder / f"seed-{seed}" / f"{name}-cooldown", wanted, "cooldown", first)

    full_start, full = both("full", recipe(high, high))
    start, progressive = both("progressive", recipe(low, high))
    _, small = both("small", recipe(low, low), start)
    compared = {"progressive": progressive, "full": full, "small": small, "progressive before the cooldown": start, "full before the cooldown": full_start}
    phases = [full_start, start, full, progressive, small]
    if equal_cost:
        short_start, short = both("equal-cost", recipe(high, high, progressive.flops() / full.flops()))
        compared["equal cost"] = short
        phases += [short_start, short]
    only, _ = both("start", recipe(low, low, 1 / steps))
    return Arms(compared, [*phases, only], only)


def run_phase(training: Training, shards: Path) -> None:
    """Run one phase to its end unless it has ended before, and write down its CPU seconds."""
    told = training.folder / "cpu.json"
    if told.exists():
        return
    spec = write_spec(
        training.folder, training.recipe, training.phase, shards, training.folder / "store",
        init_from=training.after.folder / "result" if training.after else None,
    )  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (training.folder / "log.txt").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "pipelines.pretraining.run", "--spec", str(spec)], cwd=ROOT, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{training.folder} ended with exit code {process.returncode}; see log.txt there")
    told.write_text(json.dumps(usage.ru_utime + usage.ru_stime))
    print(f"{training.folder.parent.name} {training.folder.name}: {usage.ru_utime + usage.ru_stime:.0f} CPU-s", flush=True)


def run_seed(arms: Arms, shards: Path) -> None:
    for training in arms.phases:
        run_phase(training, shards)


def prober(episodes_folder: Path, recipe: Recipe) -> Callable[[VideoEncoder], dict[str, float]]:
    """A function from an encoder to its probes: R2 of the pooled frame probe and accuracy of motion's signs, as `probe_results` takes them."""
    sizes, episodes = recipe.probes, load_episodes(episodes_folder)
    inside, outside = split_episodes([episode.episode_id for episode in episodes], HELD_SHARE)
    (frames, windows), (held_frames, held_windows) = (
        seen.draw(episodes, side, frames=round(share * sizes.frames), windows=round(share * sizes.frames / 5), length=sizes.clip_steps, seed=recipe.seed)
        for side, share in ((inside, 1.0), (outside, 0.3))
    )
    windows, held_windows = windows.with_reversed(), held_windows.with_reversed()
    targets, truth = frames.targets()[0], held_frames.targets()[0]
    labels, held_labels = MotionLabels.of(windows.moved), MotionLabels.of(held_windows.moved)
    preprocess = Preprocess(height=recipe.posttraining.height, width=recipe.posttraining.width)

    def probe(encoder: VideoEncoder) -> dict[str, float]:
        fit, judge = (seen.pooled(seen.frame_tokens(encoder, part.images, preprocess)) for part in (frames, held_frames))
        where = r2(choose_ridge(fit, targets, frames.episodes, recipe.seed).predict(judge), truth)
        fit, judge = (seen.pooled_by_time(seen.clip_tokens(encoder, part.clips, preprocess)) for part in (windows, held_windows))
        signs, _ = ridge_scores(fit, labels, windows.episodes, judge, held_labels, recipe.seed)
        return dict(zip(METRICS, (float(where.mean()), float(np.nanmean(signs))), strict=True))

    return probe


def paired(first: Sequence[float], second: Sequence[float]) -> str:
    """Mean of first - second over seeds with its 95 % interval by Student's t, and the single differences."""
    differences = np.subtract(first, second)
    half = scipy.stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.inf
    mean = differences.mean()
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]   by seed {', '.join(f'{value:+.3f}' for value in differences)}"


def report(seeds: dict[int, Arms], probes: dict[int, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Print the comparison and return it."""
    names = list(next(iter(probes.values())))
    some = next(iter(seeds.values())).compared
    spent = np.array([arms.cpu_s("progressive") for arms in seeds.values()])
    costs = {
        name: {
            "flops": some[name].flops() / some["progressive"].flops(),
            "cpu": (np.array([arms.cpu_s(name) for arms in seeds.values()]) / spent).tolist(),
        }
        for name in some
    }
    print(f"\n{'arm':<34}{'FLOPs':>8}{'CPU-s':>8}{'frame R2':>12}{'motion signs':>14}   (costs as multiples of progressive; means over {len(seeds)} seeds)")
    for name in names:
        means = [np.mean([row[name][metric] for row in probes.values()]) for metric in METRICS]
        told = f"{costs[name]['flops']:>8.2f}{np.mean(costs[name]['cpu']):>8.2f}" if name in costs else f"{'-':>8}{'-':>8}"
        print(f"{name:<34}{told}{means[0]:>12.3f}{means[1]:>14.3f}")
    print(f"progressive: {some['progressive'].flops():.3g} FLOPs, {spent.mean():.0f} CPU-s a seed, and {np.mean([arms.start.cpu_s() for arms in seeds.values()]):.0f} a start")
    for metric in METRICS:
        print(f"\n{metric}, paired over seeds:")
        for first, second in [("progressive", name) for name in names if name != "progressive"] + [("full", "random"), ("full", "small")]:
            values = [[row[name][metric] for row in probes.values()] for name in (first, second)]
            print(f"  {first + ' - ' + second:<46} {paired(*values)}")
    return {"machine": machine(), "costs": costs, "probes": probes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("episodes", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder of the trainings; a second call goes on there")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cooldown", type=int, default=60)
    parser.add_argument("--equal-cost", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seeds = {
        seed: arms_of(asked.work, seed, asked.steps, asked.cooldown, asked.equal_cost) for seed in range(FIRST_SEED, FIRST_SEED + asked.seeds)
    }
    with ThreadPoolExecutor(AT_ONCE) as workers:
        for ended in [workers.submit(run_seed, arms, asked.shards) for arms in seeds.values()]:
            ended.result()
    nano = load_recipe("nano")
    probe = prober(asked.episodes, nano)
    probes: dict[int, dict[str, dict[str, float]]] = {}
    for seed, arms in seeds.items():
        first = next(iter(arms.compared.values()))
        encoders = {name: training.target() for name, training in arms.compared.items()}
        encoders["random"] = build_student(first.recipe, first.recipe.pretraining.pretrain).encoder.eval()
        probes[seed] = {name: probe(encoder) for name, encoder in encoders.items()}
    found = report(seeds, probes)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
