"""Speed of the masks beside upstream's collator: both strategies of one rank's batch, and the share of a large global batch.

    python benchmarks/masks.py                   ours alone
    python benchmarks/masks.py --official PATH   beside a checkout of facebookresearch/vjepa2

Both run on one thread and take turns. Masks are random, so it is proved first that the lengths have the same distribution.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Started as a script, this folder comes first on the path, and benchmarks/models.py would hide the package models.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from benchmarks.peers import import_official
from benchmarks.timing import CLOCKS, Contest, Result, header, hold, lines, machine, write_json
from pipelines.pretraining.masks import Masks, sample_masks
from pipelines.recipes import SHORT_AND_LONG

GLOBAL_BATCH = 3072
"""The paper's, whose lengths every rank computes."""
SETTINGS = {"16f 256px": ((8, 16, 16), 24), "64f 256px": ((32, 16, 16), 12), "64f 384px": ((32, 24, 24), 6)}
"""Grid in tubelets and patches, and clips a rank, of the paper's phases."""
PIXELS, FRAMES = 16, 2
"""Of a patch and a tubelet."""
CHECKED = 100
"""Batches whose lengths are compared."""
DEVIATIONS = 5.0
"""Standard errors that the means of lengths may be apart."""

Lengths = list[tuple[int, int]]


def official_masks(checkout: Path, grid: tuple[int, int, int], batch: int) -> Callable[[], Lengths]:
    """Their generators of both strategies, called as their collator does; (context, target) lengths."""
    import_official(checkout)
    module = importlib.import_module("src.masks.multiseq_multiblock3d")
    frames = grid[0] * FRAMES
    strategies = [strategy.model_dump() for strategy in SHORT_AND_LONG]
    collator = module.MaskCollator(strategies, [frames], (grid[1] * PIXELS, grid[2] * PIXELS), (PIXELS, PIXELS), FRAMES)

    def run() -> Lengths:
        pairs = [generator(batch) for generator in collator.mask_generators[frames]]
        return [(context.shape[1], targets.shape[1]) for context, targets in pairs]

    return run


def our_masks(grid: tuple[int, int, int], batch: int, global_batch: int, **options: Any) -> Callable[[], list[Masks]]:
    """Ours, one step after the other: of a rank in the middle of the global batch."""
    steps = itertools.count()
    first = global_batch // batch // 2 * batch

    def run() -> list[Masks]:
        return sample_masks(
            SHORT_AND_LONG, grid, seed=0, phase="pretrain", step=next(steps), global_batch=global_batch, first=first, count=batch, **options
        )  # fmt: skip

    return run


def same_lengths(ours: Callable[[], list[Masks]], theirs: Callable[[], Lengths]) -> Callable[[], str]:
    """A check that contexts and targets are as long as theirs on average."""

    def check() -> str:
        found = np.array([[(mask.context_ids.shape[1], mask.target_ids.shape[1]) for mask in ours()] for _ in range(CHECKED)])
        wanted = np.array([theirs() for _ in range(CHECKED)])
        error = np.sqrt((found.var(axis=0) + wanted.var(axis=0)) / CHECKED)
        apart = float((np.abs(found.mean(axis=0) - wanted.mean(axis=0)) / error).max())
        assert apart < DEVIATIONS, f"lengths {found.mean(axis=0)} are not the official {wanted.mean(axis=0)}"
        return f"mean lengths {apart:.1f} standard errors apart"

    return check


def contests(official: Path | None) -> Sequence[Contest]:
    made = []
    for name, (grid, batch) in SETTINGS.items():
        ours = our_masks(grid, batch, batch)
        contestants: dict[str, Callable[[], Any]] = {"ours": ours}
        check: Callable[[], str] = str
        if official is not None:
            contestants["official"] = official_masks(official, grid, batch)
            check = same_lengths(ours, contestants["official"])
        contestants["ours, random"] = our_masks(grid, batch, batch, truncation="random")
        contestants["ours, uncut"] = our_masks(grid, batch, batch, truncation="none")
        contestants[f"ours, of {GLOBAL_BATCH}"] = our_masks(grid, batch, GLOBAL_BATCH)
        made.append(Contest(name=f"masks {name} B={batch}", contestants=contestants, check=check))
    return made


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    parser = argparse.ArgumentParser(description="Speed of the masks beside upstream's collator.")
    parser.add_argument("--official", type=Path, help="a checkout of facebookresearch/vjepa2 to run beside")
    parser.add_argument("--repeats", type=int, default=41, help="rounds")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: process seconds, for busy machines")
    parser.add_argument("--json", type=Path, help="write every single time here")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    facts = machine() | {"clock": options.clock}
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    print(header(), flush=True)
    results = []
    for contest in contests(options.official):
        results.append(hold(contest, repeats=options.repeats, clock=CLOCKS[options.clock], warm_up=3))
        print(lines(results[-1]), flush=True)
    if options.json:
        write_json(options.json, facts, results)
    return results


if __name__ == "__main__":
    main()
