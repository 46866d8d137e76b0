"""A loader that is killed goes on with the same samples: one kill in `make test`, twenty in `make soak`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from killed_loader import finish, kill_at

KILLS, STEPS = 20, 400


def test_a_loader_killed_in_the_middle_goes_on_with_the_same_samples(made_shards: Path, tmp_path: Path) -> None:
    straight = finish(made_shards, tmp_path / "straight.jsonl", 60, 1)
    assert 20 <= kill_at(made_shards, tmp_path / "killed.jsonl", 60, 2, 20) < 60
    assert finish(made_shards, tmp_path / "killed.jsonl", 60, 4) == straight


@pytest.mark.soak
def test_a_loader_killed_at_twenty_random_steps_goes_on_with_the_same_samples(made_shards: Path, tmp_path: Path) -> None:
    straight = finish(made_shards, tmp_path / "straight.jsonl", STEPS, 1)
    random = np.random.default_rng(0)
    done: list[int] = [0]
    for step in sorted(random.choice(np.arange(1, STEPS - 20), KILLS, replace=False).tolist()):
        done.append(kill_at(made_shards, tmp_path / "killed.jsonl", STEPS, int(random.choice([1, 2, 4])), max(step, done[-1] + 1)))
    print(f"killed after steps {done[1:]}")
    assert finish(made_shards, tmp_path / "killed.jsonl", STEPS, 2) == straight and done[-1] < STEPS
