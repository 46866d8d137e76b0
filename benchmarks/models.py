"""Speed of models/ beside other implementations of the same networks, on the same weights, in one run.

    python benchmarks/models.py                       encoder, pretraining step, Muon and rollouts; a GPU's part if there is one
    python benchmarks/models.py --quick --only step   a first look in about a minute
    python benchmarks/models.py --official PATH       a checkout of facebookresearch/vjepa2 takes part as well

Every contest proves first that its contestants compute the same thing. Then they take turns, call by call, and medians
and ratios are told. Random weights: speed does not depend on them, and all of them are drawn, biases and mask tokens too.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Started as a script, this folder comes first on the path, and this file would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.contests import encoder_contests, optimizer_contests, rollout_contests, step_contests, step_losses
from benchmarks.gpu import gpu_contests, measured_peak, nominal_peak
from benchmarks.subjects import LARGE, SMALL, Setting, Subject, step
from benchmarks.timing import CLOCKS, Contest, Result, header, hold, lines, machine, plot, write_json

PARTS: dict[str, Callable[[bool, Path | None], Iterator[Contest]]] = {
    "encoder": encoder_contests,
    "step": step_contests,
    "optimizer": optimizer_contests,
    "rollout": rollout_contests,
    "gpu": gpu_contests,
}


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(
        description="Speed of models/ beside other implementations, parity asserted first."
    )
    parser.add_argument("--only", choices=list(PARTS), action="append", help="a part to run (may be repeated)")
    parser.add_argument("--quick", action="store_true", help="small inputs only, 5 rounds")
    parser.add_argument("--repeats", type=int, help="rounds of a light contest (21; heavy ones take about a third)")
    parser.add_argument("--threads", type=int, help="CPU threads (all cores)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: process seconds, for busy machines")
    parser.add_argument("--official", type=Path, help="a checkout of facebookresearch/vjepa2 to run beside")
    parser.add_argument("--json", type=Path, help="write every single time here")
    parser.add_argument("--plot", type=Path, help="write a bar chart (PNG) here")
    parser.add_argument(
        "--profile", action="store_true", help="print where our pretraining step spends its time, and stop"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    facts = machine() | {"clock": options.clock}
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    if options.profile:
        profile(SMALL if options.quick else LARGE)
        return []
    parts = options.only or list(PARTS)
    if "gpu" in parts and not torch.cuda.is_available():
        print("The gpu part was not run: torch sees no CUDA device.\n")
        parts = [part for part in parts if part != "gpu"]
    peak = None
    if "gpu" in parts:
        found, peak = measured_peak(), nominal_peak(torch.cuda.get_device_name())
        sheet = "unknown" if peak is None else f"{peak / 1e12:,.0f}"
        print(f"bfloat16 TFLOP/s: {found / 1e12:,.0f} in one large matrix product, {sheet} on the data sheet\n")
        peak = peak or found
    print(header(), flush=True)
    results = []
    for part in parts:
        for contest in PARTS[part](options.quick, options.official):
            repeats = options.repeats or (5 if options.quick else 21)
            results.append(hold(contest, repeats=repeats, clock=CLOCKS[options.clock]))
            print(lines(results[-1], peak if part == "gpu" else None), flush=True)
    if options.json:
        write_json(options.json, facts, results)
    if options.plot and results:
        plot(options.plot, facts, results)
    return results


def profile(setting: Setting) -> None:
    """torch.profiler over three of our pretraining steps, operators by their own CPU time."""
    ours = step_losses(Subject(setting), None)["ours"]
    step(*ours)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
        for _ in range(3):
            step(*ours)
    print(record.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
