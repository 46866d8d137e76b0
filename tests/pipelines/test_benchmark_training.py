"""The benchmark of whole training steps: what it times is the trainer's own step, and no second is counted twice. No time is looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from benchmarks.gpu import whole_step_contest
from benchmarks.subjects import training_recipe
from benchmarks.training import Meter

TINY: dict[str, Any] = {"pixels": 32, "frames": 4, "batch": 2, "steps": 1000}
ENCODER, PREDICTOR = {"embed_dim": 32, "depth": 2, "num_heads": 2}, {"predictor_embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(("precision", "checkpointing"), [("fp32", "none"), ("bf16", "full")])
def test_a_whole_step_moves_the_weights_at_every_call(precision: str, checkpointing: str) -> None:
    recipe = training_recipe(ENCODER, PREDICTOR, precision=precision, activation_checkpointing=checkpointing, **TINY)
    assert recipe.pretraining.precision == precision and recipe.pretraining.pretrain.activation_checkpointing == checkpointing
    (contest,) = whole_step_contest("tiny", recipe, None, "cpu")
    assert not _works(contest.contestants["ours"])  # its memory was let go when the next contest was asked for
    contests = whole_step_contest("tiny", recipe, None, "cpu")
    contest = next(contests)
    assert contest.check().startswith("float32: loss ")
    first, second = (float(contest.contestants["ours"]()) for _ in range(2))
    assert first != second


def _works(step: Any) -> bool:
    try:
        step()
    except KeyError:
        return False
    return True


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at this thread's clock costs a second."""
    ticking = count()
    monkeypatch.setattr(time, "thread_time", lambda: float(next(ticking)))
    yield


def test_a_part_within_a_part_is_counted_once(ticks: None) -> None:
    meter = Meter()
    with meter.part("student and predictor"):
        with meter.part("masks"):
            pass
        with meter.part("masks"):
            pass
    assert meter.parts == {"masks": 2.0, "student and predictor": 3.0}  # from the first look to the last are 5 s
