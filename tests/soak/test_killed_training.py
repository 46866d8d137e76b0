"""Long campaign: a training on two ranks killed at twenty moments, some of them inside a save, ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from killed_training import (
    EVERY,
    Attempt,
    largest_difference,
    last_step,
    losses,
    newest_whole,
    spec_in,
    textured_shards,
    wait_for_save,
    wait_for_step,
)

KILLS = 20
STEPS = 200


@pytest.mark.soak
def test_training_killed_twenty_times_ends_bit_for_bit_as_the_undisturbed_one(tmp_path: Path) -> None:
    shards = textured_shards(tmp_path / "made")
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    spec_in(undisturbed, shards, STEPS)
    Attempt(undisturbed, ranks=2).finish()
    spec_in(killed, shards, STEPS)
    random = np.random.default_rng(3)
    hit = inside = repeated_most = 0
    for kill in range(KILLS):
        expected, before = newest_whole(killed), last_step(killed)
        attempt = Attempt(killed, ranks=2)
        goal = int(random.integers(1 + kill * STEPS // (KILLS + 1), 1 + (kill + 1) * STEPS // (KILLS + 1)))
        wait_for_step(attempt, max(goal, expected + 1))
        saving = kill % 2 == 0 and wait_for_save(attempt)
        who = ("all", "rank", "supervisor", "rank", "all")[kill % 5]
        done = attempt.kill(who, rank=int(random.integers(2)))
        hit, inside = hit + done, inside + (saving and any((killed / "checkpoints").glob(".draft-*")))
        assert (attempt.began_at() or 0) == expected, "not the newest whole checkpoint"
        repeated_most = max(repeated_most, before - expected)
    expected = newest_whole(killed)
    last = Attempt(killed, ranks=2)
    last.finish()
    assert (last.began_at() or 0) == expected
    print(f"{hit} of {KILLS} kills hit, {inside} left a half-written checkpoint; at most {repeated_most} steps were done again, one save every {EVERY}")
    assert hit >= KILLS - 2 and inside >= 3
    # A kill inside a save costs the interval before it and the steps that went on beside the writing.
    assert repeated_most < 2 * EVERY
    assert losses(killed) == losses(undisturbed)
    assert largest_difference(undisturbed / "result", killed / "result") == 0.0


@pytest.mark.soak
def test_killed_on_two_ranks_it_goes_on_on_one_within_rounding(tmp_path: Path) -> None:
    shards = textured_shards(tmp_path / "made")
    undisturbed, moved = tmp_path / "undisturbed", tmp_path / "moved"
    spec_in(undisturbed, shards, 60)
    Attempt(undisturbed, ranks=2).finish()
    spec_in(moved, shards, 60)
    attempt = Attempt(moved, ranks=2)
    wait_for_step(attempt, 23)
    assert attempt.kill("all")
    Attempt(moved, ranks=1).finish()
    apart = max(abs(ours - theirs) for ours, theirs in zip(losses(undisturbed), losses(moved), strict=True))
    print(f"losses at most {apart:.2g} apart, weights and moments {largest_difference(undisturbed / 'result', moved / 'result'):.2g}")
    assert apart < 1e-5 and largest_difference(undisturbed / "result", moved / "result") < 1e-5
