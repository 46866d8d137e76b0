"""Side-by-side timing: contestants take turns call by call in one process, and only ratios are meant to be quoted."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One thing that several contestants do. The first of ``contestants`` is ours.

    ``check`` proves first that they do the same thing: it raises AssertionError, or tells the error it measured.
    ``share``: rounds of this contest as a share of the rounds asked for (slow contests take fewer).
    ``flops``: what ours spends, FLOPs a call; every contestant's speed is told by it (model FLOPs, not its own).
    """

    name: str
    contestants: dict[str, Callable[[], Any]]
    check: Callable[[], str]
    share: float = 1.0
    flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class Result:
    """Seconds of every round by contestant; round i of all contestants ran one after the other."""

    name: str
    seconds: dict[str, list[float]]
    parity: str
    flops: int | None = None

    @property
    def ours(self) -> str:
        return next(iter(self.seconds))

    def median(self, contestant: str) -> float:
        return statistics.median(self.seconds[contestant])

    def ratio(self, contestant: str) -> float:
        """How many times longer than ours: ratio of medians."""
        return self.median(contestant) / self.median(self.ours)

    def spread(self, contestant: str) -> tuple[float, float]:
        """10th and 90th percentile of the ratios of single rounds."""
        pairs = zip(self.seconds[contestant], self.seconds[self.ours], strict=True)
        ratios = torch.tensor([theirs / ours for theirs, ours in pairs], dtype=torch.float64)
        low, high = ratios.quantile(torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
        return low, high


def wall_clock() -> float:
    """Seconds of wall time, after the accelerator has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


CLOCKS: dict[str, Clock] = {"wall": wall_clock, "cpu": time.process_time}
"""cpu counts the seconds of all threads of this process: the steadier clock on a machine that does other things too."""


def hold(contest: Contest, *, repeats: int, clock: Clock = wall_clock, warm_up: int = 1) -> Result:
    """Check parity, run every contestant ``warm_up`` times, then time them in turn (A B A B ...)."""
    parity = contest.check()
    for _ in range(warm_up):
        for run in contest.contestants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in contest.contestants}
    for _ in range(max(3, round(repeats * contest.share))):
        for name, run in contest.contestants.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return Result(name=contest.name, seconds=seconds, parity=parity, flops=contest.flops)


def machine() -> dict[str, str]:
    """What the numbers depend on: processor, threads, torch, accelerator."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    facts = {"cpu": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__}
    facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


_COLUMNS = {
    "contest": 46,
    "contestant": 22,
    "median ms": 10,
    "GFLOP/s": 14,
    "time / ours": 12,
    "10-90 % of rounds": 18,
    "parity": 0,
}


def header() -> str:
    """The first two lines of the table."""
    return _line(list(_COLUMNS)) + "\n" + "-" * (sum(_COLUMNS.values()) + 30)


def lines(result: Result, peak: float | None = None) -> str:
    """Lines of the table, one a contestant, ours first; GFLOP/s with its share of `peak` (FLOP/s) where that is known."""
    told = []
    for name in result.seconds:
        median = result.median(name)
        speed = f"{result.flops / median / 1e9:,.0f}" if result.flops else ""
        if result.flops and peak:
            speed += f" ({result.flops / median / peak:.0%})"
        cells = [
            result.name,
            name,
            f"{1e3 * median:,.1f}",
            speed,
            "1",
            f"{len(result.seconds[name])} rounds",
            result.parity,
        ]
        if name != result.ours:
            low, high = result.spread(name)
            cells = ["", *cells[1:4], f"{result.ratio(name):.2f}", f"{low:.2f}-{high:.2f}", ""]
        told.append(_line(cells))
    return "\n".join(told)


def _line(cells: Sequence[str]) -> str:
    return " ".join(cell.ljust(width) for cell, width in zip(cells, _COLUMNS.values(), strict=True)).rstrip()


def write_json(path: Path, facts: dict[str, str], results: Sequence[Result]) -> None:
    """Every single time, for whoever wants to look again."""
    contests = [{"name": r.name, "parity": r.parity, "flops": r.flops, "seconds": r.seconds} for r in results]
    path.write_text(json.dumps({"machine": facts, "contests": contests}, indent=1) + "\n")


def plot(path: Path, facts: dict[str, str], results: Sequence[Result]) -> None:
    """Bars: time of each contestant as a multiple of ours, with the 10-90 % range of single rounds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [(r, name) for r in results for name in r.seconds if name != r.ours]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.38 * len(bars)), layout="constrained")
    names = sorted({name for _, name in bars})
    colours = dict(zip(names, plt.get_cmap("tab10").colors, strict=False))  # type: ignore[attr-defined]
    for place, (result, name) in enumerate(bars):
        ratio, (low, high) = result.ratio(name), result.spread(name)
        error = [[max(0.0, ratio - low)], [max(0.0, high - ratio)]]
        axes.barh(place, ratio, xerr=error, color=colours[name], height=0.7, ecolor="0.35", capsize=2)
        axes.text(0.03, place, f"{ratio:.2f}x", va="center", color="white", fontsize=8)
    axes.set_yticks(range(len(bars)), [f"{result.name} · {name}" for result, name in bars], fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlabel("time, ours = 1")
    axes.set_title(", ".join(f"{key} {value}" for key, value in facts.items() if key != "instructions"), fontsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
